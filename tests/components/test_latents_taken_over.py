"""What former runs encoded is taken over; what comes out is the same as of a run from nothing."""

import hashlib
import io
import json
import os
import shutil

import numpy as np
import pytest
import small_runs
import tensorflow as tf
from built_encoders import build_once
from PIL import Image
from tfx.dsl.components.base import base_beam_executor
from tfx.types import artifact_utils, standard_artifacts

from components.caption_example_gen.example_bytes import example_bytes
from components.caption_example_gen.rows import shard_index
from components.latent_gen import encoding, executor
from components.latent_gen.encoders import Encoders
from components.latent_gen.index import IndexedRecord, IndexedShard, LatentsIndex, find_uses
from components.loss_scorer.records import bytes_of
from components.tfrecords import describe_examples, read_shard, shard_name, write_shard
from pipeline.lineage.model import NOT_CONTENT, TAKEN_OVER
from storage import filesystem, row_index
from trainer import presets
from trainer.data.latents import LatentsManifest, parse_latents, size_of
from trainer.presets import ENCODERS
from trainer.weights.base_model import BaseModel

PRESET = small_runs.preset()
BASE_MODEL = BaseModel.locate(PRESET, 64, "random")
# Picture, caption, split; two captions of one picture, and one caption of two.
FIRST_WEEK = [
    (0, "a ghost", "train"),
    (1, "a fox", "train"),
    (2, "a fox", "train"),
    (2, "a red fox", "train"),
    (3, "a tree", "train"),
    (4, "a house", "eval"),
    (5, "a horse", "eval"),
]
# One is gone, two are new, one has another caption, one is not held out any more.
SECOND_WEEK = [
    (0, "a ghost", "train"),
    (2, "a fox", "train"),
    (2, "a red fox", "train"),
    (3, "a tall tree", "train"),
    (4, "a house", "train"),
    (5, "a horse", "eval"),
    (6, "a hill", "train"),
    (7, "a lake", "eval"),
]

# Of pictures that are not about square, of some that were there and of one that is new.
HEIGHTS = {2: 150, 5: 40, 7: 200}
IN_BUCKETS = {
    "buckets": json.dumps({"step": 32, "max_pixels": 4096, "min_side": 32, "max_side": 128})
}


@pytest.fixture(scope="module", autouse=True)
def encoders():
    """Those of the module; `tiny` is a small preset."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(presets, "PRESETS", {**presets.PRESETS, "tiny": PRESET})
        yield build_once(patch)(BASE_MODEL, True)


def _picture(seed):
    shape = (HEIGHTS.get(seed, 66), 70 + seed, 3)
    pixels = np.random.default_rng(seed).integers(0, 256, shape, np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def _examples(folder, rows, shards=1):
    """An artifact as CaptionExampleGen leaves it."""
    artifact = standard_artifacts.Examples()
    artifact.uri = str(folder)
    describe_examples(artifact, ["train", "eval"])
    made = {(split, n): [] for split in ("train", "eval") for n in range(shards)}
    for seed, caption, split in rows:
        encoded = _picture(seed)
        picture = hashlib.sha256(encoded).hexdigest()
        example = hashlib.sha256(f"{picture}{caption}".encode()).hexdigest()
        features = {"id": example.encode(), "image/encoded": encoded, "caption": caption.encode()}
        sides = {"image/width": 70 + seed, "image/height": HEIGHTS.get(seed, 66)}
        record = example_bytes({**{n: [v] for n, v in features.items()}, **sides})
        row = row_index.IndexedRow(example, picture, caption)
        made[split, shard_index(example, shards)].append((example, record, row.line()))
    os.makedirs(os.path.join(artifact.uri, row_index.FOLDER_NAME))
    for (split, number), found in made.items():
        found.sort()
        uri = artifact_utils.get_split_uri([artifact], split)
        os.makedirs(uri, exist_ok=True)
        path = os.path.join(uri, shard_name("examples", number, shards))
        write_shard(path, [record for _, record, _ in found], artifact.uri)
        name = os.path.join(artifact.uri, row_index.FOLDER_NAME, row_index.file_name(split, number))
        filesystem.write_bytes(name, b"".join(line for _, _, line in found))
    return artifact


def _encode(root, name, rows, shards=1, *, index=True, workers=1, **settings):
    """Runs LatentGen as the run of that name below `root`."""
    latents = standard_artifacts.Examples()
    latents.uri = str(root / "artifacts" / name)
    properties = {
        **{"preset": "tiny", "image_size": 64, "base_weights": "random"},
        **{"encoders_hash": BASE_MODEL.hash(ENCODERS), "flip": "always"},
        **{"crop": "centre", "crop_seed": 0},
        **{"tag_variants": 0, "tag_keep": 1, "tag_dropout": 0.0, "tag_seed": 0},
        **{"code_version": "1", "latents_index": str(root / "latents_index") if index else ""},
        **settings,
    }
    examples = _examples(root / "examples" / name, rows, shards)
    arguments = [f"--direct_num_workers={workers}", "--sdk_container_image=none"]
    arguments.append("--direct_running_mode=multi_threading")
    context = base_beam_executor.BaseBeamExecutor.Context(beam_pipeline_args=arguments)
    executor.Executor(context).Do({"examples": [examples]}, {"latents": [latents]}, properties)
    return latents


def _files(latents):
    return {
        name: filesystem.read_bytes(os.path.join(latents.uri, name))
        for name in filesystem.files_below(latents.uri)
    }


def _records(latents, split):
    uri = artifact_utils.get_split_uri([latents], split)
    return [record for name in sorted(os.listdir(uri)) for record in read_shard(f"{uri}/{name}")]


def _counts(latents):
    """Taken over and encoded pictures, taken over and encoded captions."""
    return tuple(latents.get_int_custom_property(name) for name in TAKEN_OVER)


def _said(caplog):
    return "\n".join(record.getMessage() for record in caplog.records)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Where the first week was encoded."""
    folder = tmp_path_factory.mktemp("runs")
    assert _counts(_encode(folder, "1", FIRST_WEEK, shards=2)) == (0, 7, 0, 7)
    return folder


@pytest.fixture(scope="module")
def from_nothing(tmp_path_factory):
    """The second week's latents, with nothing taken over."""
    latents = _encode(tmp_path_factory.mktemp("fresh"), "1", SECOND_WEEK, index=False)
    assert _counts(latents) == (0, 8, 0, 8)
    return _files(latents)


@pytest.fixture
def copied(root, tmp_path):
    """A copy of `root` to do as one likes with."""
    return shutil.copytree(root, tmp_path / "copied")


def test_only_what_is_new_is_encoded_and_the_bytes_are_the_same(copied, from_nothing, caplog):
    with caplog.at_level("INFO"):
        latents = _encode(copied, "2", SECOND_WEEK, workers=2)
    # A changed caption is encoded, its picture is not; so it is with what was held out.
    assert _counts(latents) == (6, 2, 5, 3)
    assert "Encoded 2 pictures and 3 captions" in _said(caplog)
    assert "6 unchanged pictures are taken over from former runs" in _said(caplog)
    assert _files(latents) == from_nothing
    # And the third week stands on the second, and on what the first knows of what came back.
    back = [*SECOND_WEEK, (1, "a fox", "train")]
    assert _counts(_encode(copied, "3", back)) == (9, 0, 9, 0)


def test_a_run_that_takes_all_over_writes_the_same(root, copied):
    again = _encode(copied, "2", FIRST_WEEK, shards=2)
    assert _counts(again) == (7, 0, 7, 0)
    first = standard_artifacts.Examples()
    first.uri = str(root / "artifacts" / "1")
    assert _files(again) == _files(first)


@pytest.mark.parametrize("harm", ["missing", "truncated", "exchanged"])
def test_damaged_latents_are_encoded_again(copied, from_nothing, harm, caplog):
    paths = [
        copied / "artifacts" / "1" / "Split-train" / shard_name("latents", number, 2)
        for number in range(2)
    ]
    records = [len(list(read_shard(str(path)))) for path in paths]
    assert min(records) > 0
    contents = [path.read_bytes() for path in paths]
    if harm == "missing":
        paths[0].unlink()
        # A bit of a picture that the second week has.
        middle = contents[1].index(b"latent/mean") + 100
        flipped = bytes([contents[1][middle] ^ 1])
        paths[1].write_bytes(contents[1][:middle] + flipped + contents[1][middle + 1 :])
    elif harm == "truncated":
        paths[0].write_bytes(contents[0][: len(contents[0]) // 2])
        paths[1].write_bytes(b"")
    else:
        # Whole files, each in the other's place.
        paths[0].write_bytes(contents[1])
        paths[1].write_bytes(contents[0])
    latents = _encode(copied, "2", SECOND_WEEK)
    assert _files(latents) == from_nothing
    assert "latent records of former runs are missing or damaged" in _said(caplog)
    # What was held out lies in files of its own, which are whole.
    assert 2 <= _counts(latents)[0] < 6


def test_an_index_that_is_damaged_is_not_used(copied, from_nothing, caplog):
    [path] = (copied / "latents_index").glob("*/*.json")
    content = path.read_bytes()
    # What an id, a picture or a digest is made of.
    path.write_bytes(content[:-40] + bytes([content[-40] ^ 1]) + content[-39:])
    latents = _encode(copied, "2", SECOND_WEEK)
    assert (_files(latents), _counts(latents)) == (from_nothing, (0, 8, 0, 8))
    assert "which is damaged" in _said(caplog)


def test_a_run_whose_index_cannot_be_written_is_done_all_the_same(tmp_path, caplog):
    (tmp_path / "latents_index").write_text("a file")
    latents = _encode(tmp_path, "1", FIRST_WEEK[-3:])
    assert _counts(latents) == (0, 3, 0, 3)
    assert "The next run will encode all of this again" in _said(caplog)


def test_other_numerics_take_nothing_over(copied, from_nothing, caplog):
    [path] = (copied / "latents_index").glob("*/*.json")
    header, body = path.read_bytes().split(b"\n")
    shards = json.loads(body)
    assert len({shard["numerics"] for shard in shards}) == 1
    body = json.dumps([{**shard, "numerics": "others"} for shard in shards]).encode()
    header = json.loads(header) | {"sha256": hashlib.sha256(body).hexdigest()}
    path.write_bytes(json.dumps(header).encode() + b"\n" + body)
    with caplog.at_level("INFO"):
        latents = _encode(copied, "2", SECOND_WEEK)
    assert (_files(latents), _counts(latents)) == (from_nothing, (0, 8, 0, 8))
    assert (
        "6 pictures are encoded again, not taken over from former runs: the encoders rounded"
        in _said(caplog)
    )


def test_what_other_code_encoded_is_not_found(copied):
    assert _counts(_encode(copied, "2", FIRST_WEEK, code_version="2")) == (0, 7, 0, 7)


def test_another_part_of_a_picture_is_another_picture(copied):
    random = {"crop": "random", "crop_seed": 1}
    assert _counts(_encode(copied, "2", FIRST_WEEK, **random)) == (0, 7, 0, 7)
    # Which part it is depends on the caption, too. Of variants, there are others of each.
    settings = {**random, "tag_variants": 2}
    latents = _encode(copied, "3", SECOND_WEEK, **settings)
    assert _counts(latents) == (5, 3, 1, 7)
    fresh = _encode(copied, "4", SECOND_WEEK, index=False, **settings)
    assert _files(latents) == _files(fresh)


def test_pictures_in_buckets_are_taken_over_where_the_limits_are_the_same(
    copied, encoders, tmp_path
):
    # What was encoded of squares is of no use.
    assert _counts(_encode(copied, "2", FIRST_WEEK, **IN_BUCKETS)) == (0, 7, 0, 7)
    latents = _encode(copied, "3", SECOND_WEEK, **IN_BUCKETS)
    assert _counts(latents) == (6, 2, 5, 3)
    fresh = _encode(tmp_path, "1", SECOND_WEEK, index=False, **IN_BUCKETS)
    assert _files(latents) == _files(fresh)
    sizes = [bucket.name for bucket in LatentsManifest.read(latents.uri).buckets]
    assert sizes == ["32 x 96", "64 x 64", "96 x 32"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoders, "batch_size", 4)
        several = _encode(tmp_path, "2", SECOND_WEEK, index=False, **IN_BUCKETS)
    for split in ("train", "eval"):
        ours, theirs = (_records(each, split) for each in (several, fresh))
        assert [bytes_of(one, "id") for one in ours] == [bytes_of(one, "id") for one in theirs]
        for one, other in zip(ours, theirs, strict=True):
            size = size_of(one, 64)
            pair = [parse_latents(tf.constant([r]), PRESET, size, flip=True) for r in (one, other)]
            for name in ("context", "latent/mean", "latent/mirror_log_variance"):
                np.testing.assert_allclose(*(each[name] for each in pair), rtol=2e-3, atol=2e-3)


def test_an_example_whose_row_says_another_picture_is_encoded(copied, monkeypatch):
    """The index of rows only tells where to look."""
    line = row_index.IndexedRow.line
    claimed, true = (hashlib.sha256(_picture(seed)).hexdigest() for seed in (3, 13))

    def lying(row):
        return line(row).replace(true.encode(), claimed.encode())

    monkeypatch.setattr(row_index.IndexedRow, "line", lying)
    rows = [(seed + 10 * (seed == 3), caption, split) for seed, caption, split in FIRST_WEEK]
    assert _counts(_encode(copied, "2", rows)) == (6, 1, 6, 1)


def test_several_at_once_come_out_in_their_order(encoders, tmp_path):
    """As on a GPU, where the last batch is filled up."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoders, "batch_size", 4)
        patch.delitem(vars(encoders), "numerics", raising=False)
        _encode(tmp_path, "1", FIRST_WEEK)
        latents = _encode(tmp_path, "2", SECOND_WEEK)
    vars(encoders).pop("numerics", None)
    alone = _encode(tmp_path, "3", SECOND_WEEK, index=False)
    for split, count in (("train", 6), ("eval", 2)):
        [one], [other] = (
            [
                os.path.join(artifact_utils.get_split_uri([a], split), name)
                for name in os.listdir(artifact_utils.get_split_uri([a], split))
            ]
            for a in (latents, alone)
        )
        parsed, expected = (
            parse_latents(tf.constant(list(read_shard(path))), PRESET, 64, flip=True)
            for path in (one, other)
        )
        assert parsed["id"].shape == (count,)
        assert list(parsed["id"].numpy()) == list(expected["id"].numpy())
        for name in ("context", "latent/mean", "latent/mirror_log_variance"):
            np.testing.assert_allclose(parsed[name], expected[name], rtol=2e-3, atol=2e-3)


def test_numerics_are_those_of_the_machine(encoders):
    before = encoders.numerics
    del encoders.numerics
    assert encoders.numerics == before
    del encoders.numerics
    pictures = encoders.pictures
    with pytest.MonkeyPatch.context() as patch:
        factor = np.float32(1 + 1e-6)
        patch.setattr(encoders, "pictures", lambda images: pictures([i * factor for i in images]))
        assert encoders.numerics != before
        del encoders.numerics


def test_numerics_that_depend_on_the_place_are_never_the_same():
    class Uneven(Encoders):
        batch_size = 2

        def __init__(self):
            self._image_size, self._length = 8, 77

        def pictures(self, images):
            mean = np.stack(images)
            mean[0] += 1
            return encoding.Moments(mean, mean)

        def captions(self, tokens):
            return np.stack(tokens)

    assert Uneven().numerics != Uneven().numerics


def test_properties_of_what_was_taken_over_are_no_content():
    assert NOT_CONTENT.issuperset(TAKEN_OVER)


def _shard(path, *records):
    return IndexedShard(path, "n", tuple(IndexedRecord(*record) for record in records))


def test_index_knows_the_newest_few_and_what_lies_below_the_root(tmp_path, caplog):
    index = LatentsIndex(str(tmp_path / "latents_index"), {"size": 1})
    shards = {}
    for number in range(6):
        folder = tmp_path / "artifacts" / str(number)
        folder.mkdir(parents=True)
        shards[number] = _shard(str(folder / "a.gz"), (f"{number}", "p", "d"))
        index.write(str(folder), [shards[number]])
    assert list(index.read()) == [[shards[number]] for number in (5, 4, 3, 2)]
    other = LatentsIndex(str(tmp_path / "latents_index"), {"size": 2})
    assert not list(other.read())
    # What was removed is said once, and forgotten by whoever writes next.
    shutil.rmtree(tmp_path / "artifacts" / "4")
    with caplog.at_level("INFO"):
        assert len(list(index.read())) == 3
    assert "The latents of a former run were removed" in _said(caplog)
    other.write(str(tmp_path / "artifacts" / "5"), [shards[5]])
    caplog.clear()
    with caplog.at_level("INFO"):
        assert len(list(index.read())) == 3
    assert not _said(caplog)
    elsewhere = tmp_path.parent / "elsewhere"
    index.write(str(elsewhere), [_shard(str(elsewhere / "a.gz"))])
    assert len(list(index.read())) == 3
    # A folder that is renamed is found where it is.
    moved = tmp_path.rename(tmp_path.with_name("moved"))
    index = LatentsIndex(str(moved / "latents_index"), {"size": 1})
    assert next(index.read())[0].path == str(moved / "artifacts" / "5" / "a.gz")


def test_uses_are_an_example_s_own_record_or_one_of_its_picture():
    newest = [_shard("a", ("1", "p", "d1"), ("2", "q", "d2")), _shard("b", ("3", "q", "d3"))]
    older = [_shard("c", ("9", "r", "d9"), ("1", "p", "old"))]
    examples = {"s": [("1", "p"), ("3", "other"), ("4", "q")], "t": [("5", "q"), ("6", "r")]}
    found = [
        (shard.path, place, record.digest, uses)
        for shard, wanted in find_uses([newest, older], examples)
        for place, record, uses in wanted
    ]
    assert found == [
        ("a", 0, "d1", [("s", "1")]),
        ("a", 1, "d2", [("s", "4"), ("t", "5")]),
        ("c", 0, "d9", [("t", "6")]),
    ]
