import hashlib
import io
import json
import os
import zlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow as tf
from ingested_rows import (
    TWO_WORKERS,
    file_bytes,
    generate,
    png,
    read_rejects,
    read_split,
    sha256,
    write,
)
from PIL import Image
from tfx.types import artifact_utils, standard_artifacts

from components import RejectedRows
from components.caption_example_gen import CaptionExampleGen, executor
from components.caption_example_gen.example_bytes import example_bytes
from components.caption_example_gen.sources import (
    DatasetError,
    DatasetSpec,
    check_dataset,
    dataset_fingerprint,
    split_of,
)
from pipeline import failures
from storage import row_index
from storage.user_errors import UserError
from trainer.text.tokenizer import token_count


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """Thirty good rows in the hub's layout, two files, and what the component makes of them."""
    tmp_path = tmp_path_factory.mktemp("good")
    rows = [(png(i, (8 + i, 10)), f"picture number {i}") for i in range(30)]
    write(tmp_path / "set" / "data" / "train-00000-of-00002.parquet", rows[:17])
    write(tmp_path / "set" / "data" / "train-00001-of-00002.parquet", rows[17:])
    (tmp_path / "set" / "README.md").write_text("a card")
    return rows, tmp_path / "set", *generate(tmp_path, tmp_path / "set")


def test_every_row_is_there_once_as_it_was(good):
    rows, _, examples, rejects = good
    found = read_split(examples, "train") + read_split(examples, "eval")
    assert sorted(row["caption"].decode() for row in found) == sorted(c for _, c in rows)
    by_caption = {row["caption"].decode(): row for row in found}
    for index, (image, caption) in enumerate(rows):
        image_id = hashlib.sha256(image).hexdigest()
        with Image.open(io.BytesIO(image)) as picture:
            brightness = np.asarray(picture) @ [0.299, 0.587, 0.114] / 255
        found_brightness = by_caption[caption].pop("image/brightness")
        assert found_brightness == pytest.approx(brightness.mean(), abs=0.5 / 255)
        assert by_caption[caption] == {
            "id": hashlib.sha256(f"{image_id}{caption}".encode()).hexdigest().encode(),
            "image/id": image_id.encode(),
            "image/aspect_ratio": pytest.approx((8 + index) / 10),
            "caption/num_tokens": token_count(caption),
            "caption/words": [b"picture", b"number", str(index).encode()],
            "image/encoded": image,
            "image/format": b"png",
            "image/height": 10,
            "image/width": 8 + index,
            "caption": caption.encode(),
        }
    assert read_rejects(rejects) == []


def test_split_follows_the_picture_and_the_seed(good):
    rows, _, examples, _ = good
    for split in ("train", "eval"):
        found = {row["image/encoded"] for row in read_split(examples, split)}
        assert found == {image for image, _ in rows if split_of(sha256(image), 0.3, 0) == split}
        assert found


def test_split_of_by_hand():
    digest = hashlib.sha256(b"7:picture").digest()
    fraction = int.from_bytes(digest[:8], "big") / 2**64
    assert split_of("picture", fraction + 1e-9, 7) == "eval"
    assert split_of("picture", fraction - 1e-9, 7) == "train"
    share = np.mean([split_of(str(i), 0.2, 1) == "eval" for i in range(5000)])
    assert share == pytest.approx(0.2, abs=0.02)


def test_order_is_that_of_the_ids(good):
    _, _, examples, _ = good
    ids = [row["id"] for row in read_split(examples, "train")]
    assert ids == sorted(ids)


def test_artifact_is_described_as_tfx_expects(good):
    _, dataset, examples, rejects = good
    assert artifact_utils.decode_split_names(examples.split_names) == ["train", "eval"]
    assert (examples.span, examples.version) == (0, 0)
    expected = {
        "file_format": "tfrecords_gzip",
        "payload_format": "FORMAT_TF_EXAMPLE",
        "dataset": str(dataset),
        "dataset_fingerprint": dataset_fingerprint(DatasetSpec(str(dataset))),
        "dataset_revision": "",
        "dataset_kind": "parquet",
        "image_column": "image",
        "caption_column": "text",
    }
    for name, value in expected.items():
        assert examples.get_string_custom_property(name) == value
    counts = {
        name: examples.get_int_custom_property(name)
        for name in ("num_train", "num_eval", "captions_truncated", "rejected_total")
    }
    assert counts == {
        "num_train": len(read_split(examples, "train")),
        "num_eval": len(read_split(examples, "eval")),
        "captions_truncated": 0,
        "rejected_total": 0,
    }
    assert rejects.get_int_custom_property("rejected_total") == 0
    assert sorted(os.listdir(examples.uri)) == [
        "Split-eval",
        "Split-train",
        "near_duplicates.json",
        "rows",
    ]


def test_the_index_names_the_rows(good):
    _, _, examples, _ = good
    rows = [row for split in ("eval", "train") for row in read_split(examples, split)]
    index = list(row_index.read_rows(os.path.join(examples.uri, row_index.FOLDER_NAME)))
    assert [(r.id, r.picture, r.caption) for r in index] == [
        tuple(row[name].decode() for name in ("id", "image/id", "caption")) for row in rows
    ]


@pytest.mark.parametrize("beam_args", [["--direct_num_workers=1"], TWO_WORKERS])
def test_bytes_do_not_depend_on_run_or_workers(good, tmp_path, beam_args, monkeypatch):
    _, dataset, _, _ = good
    # Several shards and spills, as a large dataset has.
    monkeypatch.setattr(executor, "_SHARD_BYTES", 3000)
    monkeypatch.setattr(executor, "_SPILL_BYTES", 500)
    first = file_bytes(generate(tmp_path, dataset)[0])
    assert len(first) > 3
    assert file_bytes(generate(tmp_path, dataset, beam_args)[0]) == first


def test_shards_hold_what_one_file_holds(good, tmp_path, monkeypatch):
    _, dataset, examples, _ = good
    monkeypatch.setattr(executor, "_SHARD_BYTES", 1000)
    sharded, _ = generate(tmp_path, dataset)
    names = os.listdir(artifact_utils.get_split_uri([sharded], "train"))
    assert all(name.endswith(f"-of-{len(names):05d}.gz") for name in names)
    assert len(names) > 3
    for split in ("train", "eval"):
        assert read_split(sharded, split) == read_split(examples, split)


def test_example_bytes_are_those_of_tensorflow():
    features = {
        "words": [b"a", b"", b"b" * 200],
        "picture": [bytes(range(256)) * 100],
        "none": [],
        "zero": 0,
        "large": 3_000_000_000,
        "small": 0.0,
        "third": 1 / 3,
    }
    example = tf.train.Example()
    for name, value in features.items():
        feature = example.features.feature[name]
        if isinstance(value, int):
            feature.int64_list.value.append(value)
        elif isinstance(value, float):
            feature.float_list.value.append(value)
        else:
            feature.bytes_list.SetInParent()
            feature.bytes_list.value.extend(value)
    assert example_bytes(features) == example.SerializeToString(deterministic=True)


def test_split_is_stable_when_rows_are_added(good, tmp_path):
    rows, _, examples, _ = good
    write(tmp_path / "set" / "all.parquet", [*((png(99 + i), "new") for i in range(9)), *rows])
    more, _ = generate(tmp_path, tmp_path / "set")
    for split in ("train", "eval"):
        before = {row["id"] for row in read_split(examples, split)}
        after = {row["id"] for row in read_split(more, split)}
        assert before <= after


def test_picture_with_two_captions_is_in_one_split(tmp_path):
    rows = [(png(i), f"{word} {i}") for i in range(20) for word in ("first", "second")]
    write(tmp_path / "set" / "all.parquet", rows)
    examples, _ = generate(tmp_path, tmp_path / "set")
    images = {s: [r["image/encoded"] for r in read_split(examples, s)] for s in ("train", "eval")}
    assert len(images["train"]) + len(images["eval"]) == 40
    assert not set(images["train"]) & set(images["eval"])
    assert all(images["eval"].count(image) == 2 for image in images["eval"])


def _zero_height_png():
    """An otherwise whole PNG whose header says that it is 4 x 0 pixels."""

    def chunk(kind, content):
        return (
            len(content).to_bytes(4, "big")
            + kind
            + content
            + zlib.crc32(kind + content).to_bytes(4, "big")
        )

    header = (4).to_bytes(4, "big") + (0).to_bytes(4, "big") + bytes([8, 2, 0, 0, 0])
    data = zlib.compress(b"")
    signature = b"\x89PNG\r\n\x1a\n"
    return signature + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def _animation():
    frames = [Image.new("RGB", (6, 6), colour) for colour in ("white", "black")]
    buffer = io.BytesIO()
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    return buffer.getvalue()


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """Good rows among one or more of every kind that must be set aside."""
    tmp_path = tmp_path_factory.mktemp("mixed")
    buffer = io.BytesIO()
    Image.new("1", (9000, 9000)).save(buffer, "PNG")
    (tmp_path / "set" / "pictures").mkdir(parents=True)
    (tmp_path / "set" / "pictures" / "1.png").write_bytes(png(1000))
    (tmp_path / "outside.png").write_bytes(png(1001))
    rows = [(png(i), f"good {i}") for i in range(20)]
    rows += [
        ({"bytes": None, "path": "pictures/1.png"}, "beside the file"),  # row 20: good
        (png(3), "good 3"),  # 21
        (png(3), "good 3"),
        (png(500), None),
        (png(501), " \n\t"),
        (png(502)[:60], "cut off"),  # 25
        (b"no picture", "no picture"),
        (buffer.getvalue(), "a bomb"),
        (_zero_height_png(), "no height"),
        ({"bytes": None, "path": None}, "nothing"),
        (None, "missing struct"),  # 30
        (b"", "empty"),
        ({"bytes": None, "path": "pictures/2.png"}, "no such file"),
        ({"bytes": None, "path": "../outside.png"}, "outside"),
        (png(503), "word " * 100),  # 34: good, and long
        (png(504, (44, 4)), "a ribbon"),  # 35
        (png(505, (4, 44)), "a ribbon on end"),
        (png(506, (40, 4)), "to the Left, just wide enough"),  # 37: good
        (_animation(), "it moves"),  # 38: good, its first frame
        (png(507), "cafe\u0301 &amp; \u201cfi\ufb01\u201d \uff01"),  # 39: good
        (png(507), 'caf&eacute; & "fifi" !'),  # 40: the same caption
        (png(508), "&nbsp;"),
    ]
    write(tmp_path / "set" / "all.parquet", rows, row_group_size=10)
    return generate(tmp_path, tmp_path / "set", TWO_WORKERS)


def test_rejects_say_why_and_where(mixed):
    _, rejects = mixed
    found = read_rejects(rejects)
    assert {reject["origin"] for reject in found} == {"all.parquet"}
    reasons = {reject["row"]: reject["reason"] for reject in found}
    assert reasons.pop(28) in ("image_zero_size", "image_undecodable")
    assert reasons == {
        21: "duplicate",
        22: "duplicate",
        23: "caption_missing",
        24: "caption_blank",
        25: "image_undecodable",
        26: "image_undecodable",
        27: "image_too_large",
        29: "image_missing",
        30: "image_missing",
        31: "image_missing",
        32: "image_missing",
        33: "image_missing",
        35: "image_extreme_aspect_ratio",
        36: "image_extreme_aspect_ratio",
        40: "duplicate",
        41: "caption_blank",
    }
    by_row = {reject["row"]: reject for reject in found}
    assert by_row[27]["caption"] == "a bomb"
    assert "9000 x 9000" in by_row[27]["detail"]
    assert by_row[21]["detail"] == "same picture and caption as all.parquet row 3"
    assert by_row[23]["caption"] is None
    assert [reject["row"] for reject in found] == sorted(by_row)


def test_rejects_are_counted_by_reason(mixed):
    _, rejects = mixed
    reasons = [reject["reason"] for reject in read_rejects(rejects)]
    for reason in set(reasons):
        assert rejects.get_int_custom_property(f"rejected_{reason}") == reasons.count(reason)
    assert rejects.get_int_custom_property("rejected_total") == 17


def test_what_is_not_rejected_is_kept(mixed):
    examples, _ = mixed
    kept = read_split(examples, "train") + read_split(examples, "eval")
    captions = [row["caption"].decode() for row in kept]
    assert sorted(captions) == sorted(
        [
            *(f"good {i}" for i in range(20)),
            "beside the file",
            "word " * 100,
            "to the Left, just wide enough",
            "it moves",
            'caf\u00e9 & "fifi" !',
        ]
    )
    for name in ("captions_truncated", "captions_left_right", "images_animated"):
        assert examples.get_int_custom_property(name) == 1
    [first_frame] = [row for row in kept if row["caption"] == b"it moves"]
    assert first_frame["image/brightness"] == 1.0
    [long] = [row for row in kept if row["caption"].startswith(b"word")]
    assert long["caption/num_tokens"] == 102


def test_long_captions_are_reported_with_examples(tmp_path, caplog):
    rows = [(png(i), f"number {i}") for i in range(9)] + [(png(9), "very " * 80 + "long")]
    write(tmp_path / "set" / "all.parquet", rows)
    with caplog.at_level("WARNING"):
        generate(tmp_path, tmp_path / "set")
    [message] = [r.getMessage() for r in caplog.records if "longer than" in r.getMessage()]
    assert message.startswith("1 captions are longer")
    assert "'very very" in message
    assert "(83 tokens)" in message


def test_each_caption_of_a_list_gives_an_example(tmp_path):
    rows = [(png(i), [f"first {i}", f"second {i}"]) for i in range(9)]
    rows.append((png(9), ["good", " ", None, "good"]))
    rows.append((png(10), []))
    write(tmp_path / "set" / "all.parquet", rows, caption_type=pa.list_(pa.string()))
    examples, rejects = generate(tmp_path, tmp_path / "set")
    kept = read_split(examples, "train") + read_split(examples, "eval")
    assert sorted(row["caption"].decode() for row in kept) == sorted(
        ["good", *(f"{word} {i}" for i in range(9) for word in ("first", "second"))]
    )
    reasons = [(reject["row"], reject["reason"]) for reject in read_rejects(rejects)]
    assert sorted(reasons) == [
        (9, "caption_blank"),
        (9, "caption_missing"),
        (9, "duplicate"),
        (10, "caption_missing"),
    ]


def test_limits_of_a_picture_are_settings(tmp_path):
    write(tmp_path / "set" / "all.parquet", [(png(i, (8 + i, 8)), str(i)) for i in range(9)])
    _, rejects = generate(tmp_path, tmp_path / "set", max_pixels=110, max_aspect_ratio=1.5)
    found = {reject["row"]: reject["reason"] for reject in read_rejects(rejects)}
    assert found == {
        5: "image_extreme_aspect_ratio",
        6: "image_too_large",
        7: "image_too_large",
        8: "image_too_large",
    }


def test_other_kinds_of_datasets_go_the_same_way(good, tmp_path):
    rows, _, examples, _ = good
    for index, (image, caption) in enumerate(rows):
        picture = tmp_path / "set" / f"part{index % 2}" / f"{index}.png"
        picture.parent.mkdir(parents=True, exist_ok=True)
        picture.write_bytes(image)
        with (tmp_path / "set" / "metadata.jsonl").open("a") as f:
            name = str(picture.relative_to(tmp_path / "set"))
            f.write(json.dumps({"file_name": name, "text": caption}) + "\n")
    folder, rejects = generate(tmp_path, tmp_path / "set", TWO_WORKERS)
    assert read_rejects(rejects) == []
    for split in ("train", "eval"):
        assert read_split(folder, split) == read_split(examples, split)


def test_captions_beside_pictures_and_repeats_of_folders(tmp_path, caplog):
    folders = {"10_sks dog": range(6), "3_cat": range(6, 12)}
    for folder, numbers in folders.items():
        (tmp_path / "set" / folder).mkdir(parents=True)
        for i in numbers:
            (tmp_path / "set" / folder / f"{i} 100%.png").write_bytes(png(i))
    (tmp_path / "set" / "3_cat" / "7 100%.txt").write_text("a cat, grün\n", encoding="utf-8")
    (tmp_path / "set" / "3_cat" / "gone.txt").write_text("no picture")
    with caplog.at_level("INFO"):
        examples, rejects = generate(tmp_path, tmp_path / "set", TWO_WORKERS)
    rows = [row for split in ("train", "eval") for row in read_split(examples, split)]
    assert {(row["caption"].decode(), row["repeats"]) for row in rows} == {
        ("sks dog", 10),
        ("cat", 3),
        ("a cat, grün", 3),
    }
    assert {row["image/id"].decode() for row in rows} == {sha256(png(i)) for i in range(12)}
    [reject] = read_rejects(rejects)
    assert (reject["reason"], reject["origin"]) == ("image_missing", "3_cat/gone.txt")
    taken_for = examples.get_string_custom_property("dataset_taken_for")
    assert taken_for.startswith("taken for repeats: 2 folders with repeats: '10_sks dog'")
    assert f"Dataset {tmp_path / 'set'} is {taken_for}." in caplog.text
    assert examples.get_string_custom_property("dataset_kind") == "repeats"


def test_captions_that_are_given(tmp_path):
    for i in range(8):
        path = tmp_path / "set" / ("cat" if i % 2 else "red_dog") / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(i))
    for settings, captions in (
        ({"caption": "a photo of sks"}, {"a photo of sks"}),
        ({"captions_from": "folder"}, {"cat", "red dog"}),
    ):
        examples, _ = generate(tmp_path, tmp_path / "set", **settings)
        rows = [row for split in ("train", "eval") for row in read_split(examples, split)]
        assert {row["caption"].decode() for row in rows} == captions
        assert not any("repeats" in row for row in rows)


def test_captions_that_are_not_utf8(tmp_path):
    rows = [(png(i), f"grün {i}".encode()) for i in range(10)] + [(png(77), b"\xff\xfe")]
    write(tmp_path / "set" / "all.parquet", rows, caption_type=pa.binary())
    _, rejects = generate(tmp_path, tmp_path / "set", caption_column="text")
    [reject] = read_rejects(rejects)
    assert (reject["reason"], reject["row"]) == ("caption_not_utf8", 10)
    assert "can't decode byte 0xff in position 0" in reject["detail"]
    assert "encode it as UTF-8" in reject["detail"]


def test_caption_files_in_another_encoding_are_named(tmp_path):
    for i in range(30):
        (tmp_path / "set").mkdir(exist_ok=True)
        (tmp_path / "set" / f"{i}.png").write_bytes(png(i))
        (tmp_path / "set" / f"{i}.txt").write_bytes(
            f"grün {i}".encode("cp1252" if i == 7 else "utf-8")
        )
    _, rejects = generate(tmp_path, tmp_path / "set")
    [reject] = read_rejects(rejects)
    assert (reject["reason"], reject["origin"]) == ("caption_not_utf8", "7.png")
    assert reject["detail"].startswith("7.txt is neither UTF-8 nor UTF-16: byte 2 (line 1)")


def test_size_is_that_of_the_upright_picture(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    rows = [(png(i, (12, 8), exif=exif), f"turned {i}") for i in range(20)]
    write(tmp_path / "set" / "all.parquet", rows)
    examples, _ = generate(tmp_path, tmp_path / "set")
    row = read_split(examples, "train")[0]
    assert (row["image/width"], row["image/height"]) == (8, 12)


def test_columns_can_be_named_and_pictures_can_be_plain_binary(tmp_path):
    rows = [(png(i), f"picture {i}") for i in range(10)]
    path = tmp_path / "set" / "all.parquet"
    write(path, rows, captions="said", image_type=pa.large_binary())
    examples, _ = generate(tmp_path, tmp_path / "set", caption_column="said")
    kept = read_split(examples, "train") + read_split(examples, "eval")
    assert {row["image/encoded"] for row in kept} == {image for image, _ in rows}


def test_repeated_rows_stop_nothing(tmp_path, caplog):
    rows = [(png(i), f"good {i}") for i in range(18)] + [(b"x", "bad")] + [(png(3), "good 3")] * 9
    write(tmp_path / "set" / "all.parquet", rows)
    caplog.set_level("INFO", "components")
    examples, rejects = generate(tmp_path, tmp_path / "set", max_rejected_fraction=0.04)
    assert sum(len(read_split(examples, split)) for split in ("train", "eval")) == 18
    assert rejects.get_int_custom_property("rejected_duplicate") == 9
    assert "9 rows repeat the picture and caption of another" in caplog.text
    assert "1 of 28 rows were set aside (1 image undecodable)" in caplog.text
    # The others are counted as before.
    with pytest.raises(UserError, match="1 of 28 rows"):
        generate(tmp_path, tmp_path / "set", max_rejected_fraction=0.03)


def test_too_many_rejects_fail_with_a_table(tmp_path):
    rows = [(png(i), f"good {i}") for i in range(18)] + [(b"x", "bad"), (png(50), " ")]
    write(tmp_path / "set" / "all.parquet", rows)
    generate(tmp_path, tmp_path / "set", max_rejected_fraction=0.1)
    with pytest.raises(UserError) as caught:
        generate(tmp_path, tmp_path / "set", max_rejected_fraction=0.09)
    first, header, *table = str(caught.value).splitlines()
    assert "2 of 20 rows" in first
    assert "at most 9 % may be" in first
    assert "--max-rejected-fraction" in first
    assert header.split() == ["reason", "rows", "first", "row"]
    assert [line.split()[:3] for line in table] == [
        ["caption", "blank", "1"],
        ["image", "undecodable", "1"],
    ]
    assert "all.parquet row 19" in table[0]


@pytest.mark.parametrize(("fraction", "held_out"), [(1e-9, 1), (1 - 1e-9, 2)])
def test_an_empty_split_gets_the_picture_nearest_to_it(tmp_path, fraction, held_out):
    images = [png(i) for i in range(3)]
    rows = [(image, f"{caption} {i}") for i, image in enumerate(images) for caption in "ab"]
    write(tmp_path / "set" / "all.parquet", rows)
    examples, _ = generate(tmp_path, tmp_path / "set", TWO_WORKERS, eval_fraction=fraction)

    def place(image):
        digest = hashlib.sha256(f"0:{sha256(image)}".encode()).digest()
        return int.from_bytes(digest[:8], "big")

    in_order = sorted(images, key=place)
    expected = {"eval": in_order[:held_out], "train": in_order[held_out:]}
    for split, wanted in expected.items():
        found = read_split(examples, split)
        assert {row["image/encoded"] for row in found} == set(wanted)
        # All captions of a picture go with it, in the order of the ids.
        assert len(found) == 2 * len(wanted)
        assert [row["id"] for row in found] == sorted(row["id"] for row in found)
        assert examples.get_int_custom_property(f"num_{split}") == len(found)
        index = os.path.join(examples.uri, row_index.FOLDER_NAME)
        assert [row.id for row in row_index.read_rows(index, split)] == [
            row["id"].decode() for row in found
        ]
    # Nothing unfinished is left.
    assert sorted(os.listdir(examples.uri)) == [
        "Split-eval",
        "Split-train",
        "near_duplicates.json",
        "rows",
    ]


def test_one_picture_is_an_error_that_says_what_to_change(tmp_path):
    write(tmp_path / "set" / "all.parquet", [(png(0), "one"), (png(0), "two"), (b"x", "broken")])
    said = "rows of dataset .* have the same picture: there must be at least two pictures"
    with pytest.raises(UserError, match=f"all 2 usable {said}"):
        generate(tmp_path, tmp_path / "set", max_rejected_fraction=0.5)
    # Whether a picture is broken is not known before the run.
    check_dataset(DatasetSpec(str(tmp_path / "set")))
    write(tmp_path / "one" / "all.parquet", [(png(0), "one"), (png(0), "two")])
    with pytest.raises(DatasetError, match=f"all 2 {said}"):
        check_dataset(DatasetSpec(str(tmp_path / "one")))


def test_dataset_changed_since_its_fingerprint_was_taken(good, tmp_path):
    _, dataset, _, _ = good
    with pytest.raises(UserError, match="start the run again"):
        generate(tmp_path, dataset, dataset_fingerprint="0" * 64)


@pytest.mark.parametrize("what", ["removed", "replaced", "added", "touched"])
def test_a_dataset_that_changes_while_it_is_read_is_told_so(tmp_path, monkeypatch, what):
    folder = tmp_path / "set"
    folder.mkdir()
    for number in range(4):
        (folder / f"{number}.png").write_bytes(png(number))
        (folder / f"{number}.txt").write_text(f"picture {number}")
    whole = executor._run

    def written_to(*arguments):
        if what == "removed":
            (folder / "2.png").unlink()
        whole(*arguments)
        if what == "replaced":
            (folder / "2.txt").write_text("another 2")
        elif what == "added":
            (folder / "4.png").write_bytes(png(4))
            (folder / "4.txt").write_text("picture 4")
        elif what == "touched":
            os.utime(folder / "2.txt")

    monkeypatch.setattr(executor, "_run", written_to)
    # Also where nobody has said what to expect, as in the runs of a schedule on Vertex.
    if what == "touched":
        generate(tmp_path, folder, dataset_fingerprint="")
        return
    with pytest.raises(UserError, match=r"changed while it was read: .*; start the run again when"):
        generate(tmp_path, folder, dataset_fingerprint="")


def test_without_a_fingerprint_what_is_there_is_taken(good, tmp_path):
    _, dataset, _, _ = good
    examples, *_ = generate(tmp_path, dataset, dataset_fingerprint="")
    assert examples.get_string_custom_property("dataset_fingerprint") == dataset_fingerprint(
        DatasetSpec(str(dataset))
    )


def test_check_dataset_passes(good):
    _, dataset, _, _ = good
    check_dataset(DatasetSpec(str(dataset)))


def test_component_has_the_spec(good):
    _, dataset, _, _ = good
    component = CaptionExampleGen(str(dataset), "fingerprint", eval_fraction=0.2, seed=3)
    properties = component.exec_properties
    assert properties["dataset_fingerprint"] == "fingerprint"
    assert (properties["eval_fraction"], properties["seed"]) == (0.2, 3)
    assert len(properties["code_version"]) == 16
    assert component.outputs["examples"].type is standard_artifacts.Examples
    assert component.outputs["rejects"].type is RejectedRows
    assert RejectedRows.TYPE_NAME == "components.RejectedRows"


@pytest.mark.parametrize(
    "settings",
    [
        {"eval_fraction": 0.0},
        {"eval_fraction": 1.0},
        {"max_rejected_fraction": 1.5},
        {"max_pixels": 0},
        {"max_aspect_ratio": 0.5},
        {"near_duplicates": "drop"},
    ],
)
def test_component_refuses_impossible_settings(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        CaptionExampleGen("x", "y", **settings)


def test_what_a_worker_finds_wrong_comes_through_beam_in_a_line(tmp_path):
    path = tmp_path / "set" / "all.parquet"
    write(path, [(png(i), f"good {i}") for i in range(40)])
    # The file opens, and its first rows can be read.
    page = pq.read_metadata(path).row_group(5).column(0).data_page_offset
    with open(path, "r+b") as f:
        f.seek(page)
        f.write(bytes(40))
    with pytest.raises(RuntimeError, match="Traceback") as caught:
        generate(tmp_path, tmp_path / "set", TWO_WORKERS)
    told = failures.explanation(caught.value)
    assert told is not None
    assert told.startswith("all.parquet in dataset")
    assert "\n" not in told
    assert "while running" not in told


def test_no_usable_row_is_told_with_the_reasons_and_an_example_each(tmp_path):
    write(tmp_path / "set" / "all.parquet", [(b"x", "one"), (b"y", "two"), (png(1), " ")])
    with pytest.raises(UserError, match=r"no row of dataset .* can be used") as caught:
        generate(tmp_path, tmp_path / "set", max_rejected_fraction=1.0)
    _, _, *table = str(caught.value).splitlines()
    assert [line.split()[:3] for line in table] == [
        ["image", "undecodable", "2"],
        ["caption", "blank", "1"],
    ]
    assert "all.parquet row 0" in table[0]
