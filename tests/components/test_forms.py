"""The forms in which people keep captioned pictures, whole and broken, wherever they lie."""

import base64
import gzip
import hashlib
import io
import json
import os
import tarfile
import zipfile
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hub_server import HubServer
from made_datasets import (
    csv_text,
    embedded,
    error_of,
    jsonl,
    kind_of,
    pairs_of,
    png,
    put,
    put_parquet,
    put_tar,
    rows_of,
)
from PIL import ExifTags, Image
from PIL.PngImagePlugin import PngInfo

from components.caption_example_gen import look
from components.caption_example_gen.sources import (
    DatasetSpec,
    check_dataset,
    dataset_fingerprint,
    forms,
    image_table,
    open_dataset,
    picture_files,
)
from components.caption_example_gen.sources.base import is_picture

ROOT = Path(__file__).resolve().parents[2]
COUNT = 4
TEXTS = [f"picture {i}" for i in range(COUNT)]
NAMES = ["plain", "a space", "100%", "grün 日本"]
PICTURES = {f"{name}.png": png(i) for i, name in enumerate(NAMES)}


def files_with(suffix, texts=TEXTS):
    return {f"{name}{suffix}": text for name, text in zip(NAMES, texts, strict=True)}


def table_bytes(columns):
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer)
    return buffer.getvalue()


def arrow_bytes(columns, opened=pa.ipc.new_stream, rows=3):
    buffer = io.BytesIO()
    table = pa.table(columns)
    with opened(buffer, table.schema) as writer:
        writer.write_table(table, max_chunksize=rows)
    return buffer.getvalue()


def columns_of(texts=TEXTS):
    return {"image": embedded([png(i) for i in range(COUNT)]), "text": texts}


def records(name, caption, folder="", texts=TEXTS):
    return [
        {name: f"{folder}{picture}", caption: text}
        for picture, text in zip(PICTURES, texts, strict=True)
    ]


def moved(folder, files):
    return {f"{folder}/{path}": content for path, content in files.items()}


def coco(texts=TEXTS):
    images = [{"id": 10 + i, "file_name": name} for i, name in enumerate(PICTURES)]
    said = [{"id": i, "image_id": 10 + i, "caption": text} for i, text in enumerate(texts)]
    return json.dumps({"images": images, "annotations": said})


def label_studio(texts=TEXTS, lead="/data/upload/1/abcd1234-"):
    """Tasks as Label Studio exports them, with what it puts before the name of an upload."""
    return json.dumps(
        [
            {
                "id": i,
                "data": {"image": f"{lead}{name}"},
                "annotations": [
                    {
                        "result": [
                            {
                                "type": "textarea",
                                "from_name": "caption",
                                "to_name": "image",
                                "value": {"text": [text]},
                            }
                            for text in [text]
                            if text is not None
                        ],
                        "was_cancelled": False,
                    }
                ],
                "file_upload": f"abcd1234-{name}",
            }
            for i, (name, text) in enumerate(zip(PICTURES, texts, strict=True))
        ]
    )


def by_row(columns):
    return {name: dict(enumerate(values)) for name, values in columns.items()}


def encoded(i):
    return base64.b64encode(png(i)).decode()


FETCHED = [
    {"caption": text, "key": f"{i:05}", "status": "success", "error_message": None}
    for i, text in enumerate(TEXTS)
]
FAILED = {"caption": "gone", "key": "00004", "status": "failed_to_download", "error_message": "404"}
SAMPLES = {f"{i:05}.jpg": png(i) for i in range(COUNT)} | {
    f"{i:05}.txt": text for i, text in enumerate(TEXTS)
}


def tar_bytes(files, mode="w"):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:
        for name, content in files.items():
            content = content.encode() if isinstance(content, str) else content
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def zip_bytes(files):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


KERAS = csv_text([("image_path", "caption"), *zip(PICTURES, TEXTS, strict=True)])

# What is in the files, what is asked for, and what it is taken for; "" where that depends on the
# place.
FORMS = {
    "keras-folder": ({**PICTURES, "data.csv": KERAS}, {}, "keras-folder"),
    "keras-archive": ({"set.tar": tar_bytes({**PICTURES, "data.csv": KERAS})}, {}, ""),
    "webdataset": ({"00000.tar": tar_bytes(SAMPLES)}, {}, ""),
    "webdataset in xz": ({"00000.tar.xz": tar_bytes(SAMPLES, "w:xz")}, {}, ""),
    "img2dataset tars": (
        {
            "00000.tar": tar_bytes(SAMPLES),
            "00000.parquet": table_bytes({k: [r[k] for r in FETCHED] for k in FAILED}),
            "00000_stats.json": "{}",
        },
        {},
        "img2dataset",
    ),
    "img2dataset Parquet": (
        {
            "00000.parquet": table_bytes(
                {
                    **{k: [r[k] for r in FETCHED] for k in FAILED},
                    "jpg": [png(i) for i in range(COUNT)],
                }
            ),
            "00000_stats.json": "{}",
        },
        {},
        "",
    ),
    "folder in a zip": ({"all.zip": zip_bytes({**PICTURES, **files_with(".txt")})}, {}, ""),
    "table in gzip": (
        {**PICTURES, "train.jsonl.gz": gzip.compress(jsonl(records("image", "text")).encode())},
        {},
        "table",
    ),
    "metadata.csv in gzip": (
        {
            **PICTURES,
            "metadata.csv.gz": gzip.compress(
                csv_text([("file_name", "text"), *zip(PICTURES, TEXTS, strict=True)]).encode()
            ),
        },
        {},
        "image-folder",
    ),
    "conversations": (
        {
            **moved("images", PICTURES),
            "llava.json": json.dumps(
                [
                    {
                        "id": str(i),
                        "image": name,
                        "conversations": [
                            {"from": "human", "value": "<image>\nWhat is it?"},
                            {"from": "gpt", "value": TEXTS[i]},
                        ],
                    }
                    for i, name in enumerate(PICTURES)
                ]
            ),
        },
        {},
        "table",
    ),
    "txt": ({**PICTURES, **files_with(".txt")}, {}, "caption-files"),
    "caption": ({**PICTURES, **files_with(".caption")}, {}, "caption-files"),
    "upper case": ({**PICTURES, **files_with(".TXT")}, {}, "caption-files"),
    "whole name": ({**PICTURES, **files_with(".png.txt")}, {}, "caption-files"),
    "json beside": (
        {**PICTURES, **files_with(".json", [json.dumps({"prompt": t, "n": 1}) for t in TEXTS])},
        {},
        "caption-files",
    ),
    "repeats": ({**moved("10_a dog", {**PICTURES, **files_with(".txt")})}, {}, "repeats"),
    "arrow": ({"state.json": "{}", "data-0.arrow": arrow_bytes(columns_of())}, {}, "arrow"),
    "arrow file": ({"data.arrow": arrow_bytes(columns_of(), pa.ipc.new_file)}, {}, "arrow"),
    "arrow with a dictionary": (
        {"data.arrow": arrow_bytes(columns_of(pa.array(TEXTS).dictionary_encode()))},
        {},
        "arrow",
    ),
    "parquet": ({"data/train.parquet": table_bytes(columns_of())}, {}, "parquet"),
    "parquet with paths": (
        {
            **moved("img", PICTURES),
            "train.parquet": table_bytes({"image": [f"img/{p}" for p in PICTURES], "text": TEXTS}),
        },
        {},
        "parquet",
    ),
    "parquet with names": (
        {**moved("img", PICTURES), "t.parquet": table_bytes({"path": [*PICTURES], "text": TEXTS})},
        {},
        "parquet",
    ),
    "parquet with base64": (
        {"t.parquet": table_bytes({"image": [encoded(i) for i in range(COUNT)], "text": TEXTS})},
        {},
        "parquet",
    ),
    "img2dataset files": (
        {
            **moved("00000", SAMPLES),
            "00000.parquet": table_bytes({k: [r[k] for r in FETCHED] for k in FAILED}),
            "00000_stats.json": "{}",
        },
        {},
        "img2dataset",
    ),
    "metadata.jsonl": ({**PICTURES, "metadata.jsonl": jsonl(records("file_name", "text"))}, {}, ""),
    "train.jsonl": (
        {**moved("img", PICTURES), "train.jsonl": jsonl(records("image", "caption", "img/"))},
        {},
        "table",
    ),
    "json list": (
        {**PICTURES, "x.json": json.dumps(records("path", "caption"), indent=1)},
        {},
        "table",
    ),
    "json lines called json": ({**PICTURES, "x.json": jsonl(records("img", "text"))}, {}, "table"),
    "json of names": (
        {**PICTURES, "x.json": json.dumps(dict(zip(PICTURES, TEXTS, strict=True)))},
        {},
        "table",
    ),
    "relative to the root": (
        {**moved("img", PICTURES), "notes/x.json": json.dumps(records("img", "text", "img/"))},
        {},
        "table",
    ),
    "another machine's paths": (
        {
            **moved("img", PICTURES),
            "x.csv": csv_text(
                [("image", "text")]
                + [(f"C:\\me\\img\\{p}", t) for p, t in zip(PICTURES, TEXTS, strict=True)]
            ),
        },
        {},
        "table",
    ),
    "as in a URL": (
        {
            **{name: PICTURES[name] for name in ("plain.png", "a space.png")},
            "x.csv": "image,text\nplain.png,picture 0\na%20space.png,picture 1\n",
        },
        {},
        "table",
    ),
    "base64": (
        {"x.jsonl": jsonl({"image": encoded(i), "text": t} for i, t in enumerate(TEXTS))},
        {},
        "table",
    ),
    "data URI": (
        {
            "x.json": json.dumps(
                [
                    {"image": f"data:image/png;base64,{encoded(i)}", "text": t}
                    for i, t in enumerate(TEXTS)
                ]
            )
        },
        {},
        "table",
    ),
    "semicolons": (
        {
            **PICTURES,
            "x.csv": "image;text\n"
            + "".join(f"{p};{t}\n" for p, t in zip(PICTURES, TEXTS, strict=True)),
        },
        {},
        "table",
    ),
    "tabs": (
        {
            **PICTURES,
            "x.tsv": "image\ttext\n"
            + "".join(f"{p}\t{t}\n" for p, t in zip(PICTURES, TEXTS, strict=True)),
        },
        {},
        "table",
    ),
    "no header": (
        {**PICTURES, "x.csv": csv_text(list(zip(PICTURES, TEXTS, strict=True)))},
        {},
        "table",
    ),
    "UTF-16": (
        {
            **PICTURES,
            "metadata.csv": csv_text(
                [("file_name", "text"), *zip(PICTURES, TEXTS, strict=True)]
            ).encode("utf-16"),
        },
        {},
        "image-folder",
    ),
    "bar and numbers, as Flickr30k": (
        {
            **moved("flickr30k_images", PICTURES),
            "results.csv": "image_name| comment_number| comment\n"
            + "".join(f"{p}| 0| {t}\n" for p, t in zip(PICTURES, TEXTS, strict=True)),
        },
        {},
        "table",
    ),
    "captions.txt, as Flickr8k": (
        {
            **moved("Images", PICTURES),
            "captions.txt": csv_text([("image", "caption"), *zip(PICTURES, TEXTS, strict=True)]),
        },
        {},
        "table",
    ),
    "token.txt, as Flickr8k at first": (
        {
            **moved("Flicker8k_Dataset", PICTURES),
            "Flickr8k.token.txt": "".join(
                f"{p}#0\t{t}\n" for p, t in zip(PICTURES, TEXTS, strict=True)
            ),
            "Flickr_8k.trainImages.txt": "\n".join(PICTURES),
        },
        {},
        "table",
    ),
    "coco": (
        {**moved("train2017", PICTURES), "annotations/captions_train2017.json": coco()},
        {},
        "coco",
    ),
    "sd-scripts": (
        {
            **moved("img", PICTURES),
            "meta_cap.json": json.dumps(
                {f"/home/me/img/{n}": {"caption": t} for n, t in zip(NAMES, TEXTS, strict=True)}
            ),
        },
        {},
        "sd-scripts",
    ),
    "label studio": (
        {**moved("img", PICTURES), "project-1.json": label_studio()},
        {},
        "label-studio",
    ),
    "diffusion db": (
        {
            **moved("part-000001", PICTURES),
            "part-000001/part-000001.json": json.dumps(
                {
                    name: {"p": text, "se": 1, "c": 7.0, "st": 50, "sa": "k_lms"}
                    for name, text in zip(PICTURES, TEXTS, strict=True)
                }
            ),
        },
        {},
        "diffusion-db",
    ),
    "columns by row, as pandas writes": (
        {**PICTURES, "x.json": json.dumps(by_row({"image": [*PICTURES], "text": TEXTS}))},
        {},
        "table",
    ),
    "a list called jsonl": (
        {**PICTURES, "metadata.jsonl": json.dumps(records("file_name", "text"), indent=1)},
        {},
        "image-folder",
    ),
    "languages": (
        {
            **PICTURES,
            "x.jsonl": jsonl(
                {"image": p, "caption": {"de": "Bild", "en": t}}
                for p, t in zip(PICTURES, TEXTS, strict=True)
            ),
        },
        {"caption_column": "caption.en"},
        "table",
    ),
    "json of names without suffix": (
        {**PICTURES, "x.json": json.dumps(dict(zip(NAMES, TEXTS, strict=True)))},
        {},
        "table",
    ),
    "caption folders": (
        {**moved("images/a", PICTURES), **moved("text/a", files_with(".txt"))},
        {},
        "caption-folders",
    ),
    "folder of captions": (
        {**PICTURES, **moved("captions", files_with(".caption"))},
        {},
        "caption-folders",
    ),
    "caption given": (PICTURES, {"caption": "sks"}, "pictures"),
    "file names": (PICTURES, {"captions_from": "file_name"}, "pictures"),
}
EXPECTED = {"caption given": ["sks"] * COUNT, "file names": NAMES}


@pytest.fixture
def memory():
    fs = fsspec.filesystem("memory")
    yield fs
    fs.rm("/", recursive=True)


def put_zip(path, files):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(zip_bytes(files))
    return path


@pytest.mark.parametrize("place", ["folder", "sub-folder", "zip", "tar.gz", "remote"])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_read_wherever_it_lies(form, place, tmp_path, memory):
    files, settings, kind = FORMS[form]
    dataset = tmp_path / "set"
    if place == "folder":
        put(dataset, files)
    elif place == "sub-folder":
        put(dataset, moved("deep/er", files))
    elif place == "zip":
        junk = {"__MACOSX/set/._plain.png": "x", "set/.DS_Store": "x", "set/Thumbs.db": "x"}
        dataset = put_zip(tmp_path / "set.zip", {**moved("set", files), **junk})
    elif place == "tar.gz":
        # What has samples is read as such, and img2dataset's tables would be broken ones.
        if "img2dataset" in form and any(map(is_picture, files)):
            files = {p: c for p, c in files.items() if not p.startswith(("00000.", "00000_"))}
        dataset = put_tar(tmp_path / "set", list(moved("set", files).items()), ".tar.gz")
    else:
        for path, content in files.items():
            memory.pipe_file(
                f"/set/{path}", content.encode() if isinstance(content, str) else content
            )
        dataset = "memory://set"
    found = dict(pairs_of(dataset, **settings))
    texts = EXPECTED.get(form, TEXTS)
    wanted = {png(i): [text] for i, text in enumerate(texts)}
    assert found == (wanted if form != "as in a URL" else {png(i): [TEXTS[i]] for i in range(2)})
    spec = DatasetSpec(str(dataset), **settings)
    source = open_dataset(spec)
    check_dataset(spec, source)
    assert len(dataset_fingerprint(spec, source)) == 64
    if kind and place != "tar.gz":
        assert source.kind == kind
        assert source.taken_for.startswith(f"taken for {kind}")
    # Of files that a tar has side by side, samples are made while it is read.
    of_tars = {"webdataset", "keras-archive"}
    assert source.kind in {form.kind for form in forms.FORMS} | of_tars


def test_forms_have_names_of_their_own():
    kinds = [form.kind for form in forms.FORMS]
    assert len(set(kinds)) == len(kinds)
    assert set().union(*(form.settles for form in forms.FORMS)) <= set(kinds)


# Caption files.


def test_lines_of_a_caption_file(tmp_path):
    put(tmp_path, {"1.png": png(1), "1.txt": "\ufeffone\r\n\r\n two \n", "2.png": png(2)})
    put(tmp_path, {"2.txt": "zwei".encode("utf-16")})
    assert pairs_of(tmp_path) == [(png(1), ["one\r\n\r\n two "]), (png(2), ["zwei"])]
    assert pairs_of(tmp_path, caption_lines="each")[0] == (png(1), ["one", "two"])


def test_caption_files_that_are_broken(tmp_path):
    put(tmp_path, {"1.png": png(1), "1.txt": "one", "2.png": png(2), "3.txt": "three"})
    put(tmp_path, {"4.png": png(4), "4.txt": b"gr\xfcn", "5.png": png(5), "5.txt": "  \n"})
    put(tmp_path, {"README.txt": "about", "texts/notes.txt": "far from pictures"})
    put(tmp_path, {"1-masklabel.png": png(9), "multiply.txt": "2", "train.txt": "1.png\n2.png\n"})
    put(tmp_path, {"@eaDir/1.png/SYNOPHOTO_THUMB.png": png(9), "#recycle/6.png": png(6)})
    rows = {row.file: row for row in rows_of(tmp_path)}
    assert sorted(rows) == ["1.png", "2.png", "3.txt", "4.png", "5.png"]
    assert rows["2.png"].captions == (None,)
    assert "no caption file (*.txt) of the picture's name" in rows["2.png"].image_problem
    assert (rows["3.txt"].image, rows["3.txt"].captions) == (None, (b"three",))
    assert "no picture of the name of '3.txt'" in rows["3.txt"].image_problem
    assert rows["4.png"].captions == (b"gr\xfcn",)
    assert rows["5.png"].captions == (b"  ",)
    given = {row.file: row.captions for row in rows_of(tmp_path, caption="sks")}
    assert [given[name] for name in ("1.png", "2.png", "5.png")] == [
        (b"one",),
        (b"sks",),
        (b"sks",),
    ]
    # Without a picture there is nothing to give a caption to.
    assert given["3.txt"] == (b"three",)


def test_two_captions_for_one_picture(tmp_path):
    put(tmp_path, {"1.png": png(1), "1.txt": "tags", "1.caption": "words", "2.png": png(2)})
    put(tmp_path, {"2.txt": "more tags"})
    message = error_of(tmp_path)
    assert "two captions for one picture, 1.caption and *.txt" in message
    assert "--caption-column caption or --caption-column txt" in message
    assert pairs_of(tmp_path, caption_column="txt")[0] == (png(1), ["tags"])
    assert rows_of(tmp_path, caption_column="caption")[0].captions == (b"words",)
    (tmp_path / "1.txt").unlink()
    # One each is no question.
    assert pairs_of(tmp_path) == [(png(1), ["words"]), (png(2), ["more tags"])]


def test_a_folder_of_captions_that_lacks_some(tmp_path):
    put(
        tmp_path, {"img/1.png": png(1), "img/2.png": png(2), "text/1.txt": "one", "text/3.txt": "3"}
    )
    put(tmp_path, {"notes.txt": "elsewhere"})
    first, second, alone = rows_of(tmp_path)
    assert (first.captions, second.captions) == ((b"one",), (None,))
    assert (alone.file, alone.image, alone.captions) == ("text/3.txt", None, (b"3",))


def test_folders_of_captions_in_several_folders(tmp_path):
    for i, folder in enumerate(("train/a", "train/b", "test/a")):
        put(tmp_path, {f"{folder}/images/x/1.png": png(i), f"{folder}/text/x/1.txt": folder})
    assert pairs_of(tmp_path) == [(png(0), ["train/a"]), (png(1), ["train/b"])]
    assert pairs_of(tmp_path, split="test") == [(png(2), ["test/a"])]
    put(tmp_path, {"train/b/images/2.png": png(7), "train/b/text/3.txt": "alone"})
    rows = {row.file: (row.image, row.captions) for row in rows_of(tmp_path)}
    assert rows["train/b/images/2.png"] == (png(7), (None,))
    assert rows["train/b/text/3.txt"] == (None, (b"alone",))


@pytest.mark.parametrize("folder", ["images", "labels"])
def test_labels_of_object_detectors_are_no_captions(tmp_path, folder):
    put(tmp_path, {"images/1.png": png(1), f"{folder}/1.txt": "0 0.5 0.25 1e-1 .2\n14 1 1 1 1\n"})
    message = error_of(tmp_path)
    assert "has pictures but no captions" in message
    assert ("have only numbers" in message) == (folder == "images")
    assert pairs_of(tmp_path, form="pictures", caption="x") == [(png(1), ["x"])]


def test_json_beside_pictures(tmp_path):
    put(tmp_path, {"1.png": png(1), "1.json": '{"prompt": "one", "sampler": "x"}'})
    put(tmp_path, {"2.png": png(2), "2.json": "{"})
    assert "prompt" in open_dataset(DatasetSpec(str(tmp_path))).caption_column
    one, two = rows_of(tmp_path, caption_column="sampler")
    assert one.captions == (b"x",)
    assert (two.captions, "cannot be read as JSON" in two.image_problem) == ((None,), True)
    assert "has no caption column 'said': the keys of 1.json are prompt, sampler" in error_of(
        tmp_path, caption_column="said"
    )


def test_json_of_google_photos_has_descriptions_or_nothing(tmp_path):
    said = {"title": "1.png", "description": "", "imageViews": "7", "url": "https://p/1", "id": "a"}
    put(tmp_path, {"1.png": png(1), "1.png.json": json.dumps(said)})
    message = error_of(tmp_path)
    assert "has pictures but no captions: the JSON files beside them have none" in message
    assert "the keys of 1.png.json are title, description" in message
    assert pairs_of(tmp_path, caption="sks") == [(png(1), ["sks"])]
    put(tmp_path, {"2.png": png(2), "2.png.json": json.dumps({**said, "description": "a dog"})})
    assert [row.captions for row in rows_of(tmp_path)] == [(b"",), (b"a dog",)]


def test_names_that_differ_in_the_case_of_letters(tmp_path):
    files = {"A.JPG": png(1), "a.txt": "one", "b.png": png(2), "B.PNG.Txt": "two", "c.png": png(3)}
    put(tmp_path, {**files, "c.txt": "three", "C.txt": "alone", "d/A.png": png(4), "a/x.txt": "x"})
    rows = {row.path or row.file: row for row in rows_of(tmp_path)}
    assert {path: row.captions for path, row in rows.items()} == {
        "A.JPG": (b"one",),
        "b.png": (b"two",),
        "c.png": (b"three",),
        "C.txt": (b"alone",),
        "d/A.png": (None,),
    }
    assert rows["C.txt"].image is None
    assert "a.txt" in open_dataset(DatasetSpec(str(tmp_path))).paths


def test_masks_are_not_trained_on(tmp_path):
    put(tmp_path, {"img/1.png": png(1), "img/1.txt": "one", "masks/1.png": png(9)})
    put(tmp_path, {"img/_controls/1.png": png(8)})
    assert pairs_of(tmp_path) == [(png(1), ["one"])]
    said = open_dataset(DatasetSpec(str(tmp_path))).taken_for
    assert said.endswith("; without the pictures in img/_controls, masks, which have no captions")
    # Those of carnival have captions.
    put(tmp_path, {"masks/1.txt": "a mask"})
    assert pairs_of(tmp_path) == [(png(1), ["one"]), (png(9), ["a mask"])]


def test_masks_are_no_pictures_of_a_folder_of_captions(tmp_path):
    put(tmp_path, {"pictures/1.png": png(1), "masks/1.png": png(9), "text/1.txt": "one"})
    assert pairs_of(tmp_path) == [(png(1), ["one"])]


def test_what_a1111_writes_behind_a_prompt_is_no_caption(tmp_path):
    settings = "\nNegative prompt: blurry,\nbad\nSteps: 20, Sampler: Euler a, CFG scale: 7\n"
    put(tmp_path, {"1.png": png(1), "1.txt": f"a fox,\nred{settings}"})
    put(tmp_path, {"2.png": png(2), "2.txt": "a dog\nSteps: 20, Sampler: DDIM"})
    put(tmp_path, {"3.png": png(3), "3.txt": "a stair\nSteps: many"})
    captions = [text for _, [text] in pairs_of(tmp_path)]
    assert captions == ["a fox,\nred", "a dog", "a stair\nSteps: many"]


def test_notes_of_simpletuner_are_no_table(tmp_path):
    notes = {f"/data/{name}": {"original_size": [8, 8], "crop": "x"} for name in PICTURES}
    put(tmp_path, {**PICTURES, **files_with(".txt")})
    put(tmp_path, {"aspect_ratio_bucket_metadata_a.json": json.dumps(notes)})
    assert len(pairs_of(tmp_path)) == COUNT


def test_units_of_picture_files_are_read_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(picture_files, "_UNIT_ROWS", 2)
    put(tmp_path, {**PICTURES, **files_with(".txt"), "x.txt": "alone"})
    source = open_dataset(DatasetSpec(str(tmp_path)))
    units = list(source.units())
    assert [(unit.start, unit.num_rows) for unit in units] == [(0, 2), (2, 2), (4, 1)]
    rows = rows_of(tmp_path)
    assert [row for unit in reversed(units) for row in list(source.read(unit))[::-1]] == rows[::-1]
    assert source.image_bytes == sum(map(len, PICTURES.values()))


def test_splits_of_caption_files(tmp_path):
    for name, i in (("train", 1), ("test", 2)):
        put(tmp_path, {f"{name}/1.png": png(i), f"{name}/1.txt": name})
    assert pairs_of(tmp_path) == [(png(1), ["train"])]
    assert pairs_of(tmp_path, split="test") == [(png(2), ["test"])]
    assert open_dataset(DatasetSpec(str(tmp_path))).left_out == ("test/1.png", "test/1.txt")


def test_links_that_lead_nowhere_are_rows_of_their_own_trouble(tmp_path):
    put(tmp_path, {"1.png": png(1), "1.txt": "one"})
    (tmp_path / "2.png").symlink_to(tmp_path / "gone.png")
    put(tmp_path, {"2.txt": "two"})
    first, second = rows_of(tmp_path)
    assert (first.image, second.image, second.file) == (png(1), None, "2.txt")


# Repeats, and captions that are given.


def test_repeats_are_of_the_nearest_folder(tmp_path):
    put(tmp_path, {"img/10_sks_dog/1.png": png(1), "img/10_sks_dog/deep/2.png": png(2)})
    put(tmp_path, {"img/3_cat/3.png": png(3), "img/3_cat/3.txt": "own", "img/0_x/4.png": png(4)})
    put(tmp_path, {"img/2024_trip/5.png": png(5), "img/01_y/6.png": png(6), "7.png": png(7)})
    rows = {row.path: row for row in rows_of(tmp_path)}
    assert {path.rpartition("/")[2]: row.repeats for path, row in rows.items()} == {
        "1.png": 10, "2.png": 10, "3.png": 3, "4.png": 1, "5.png": 1, "6.png": 1, "7.png": 1,
    }  # fmt: skip
    assert rows["img/10_sks_dog/1.png"].captions == (b"sks dog",)
    assert rows["img/3_cat/3.png"].captions == (b"own",)
    assert rows["7.png"].captions == (None,)
    given = {row.path: row.captions for row in rows_of(tmp_path, caption="given")}
    assert given["img/10_sks_dog/1.png"] == (b"given",)
    assert given["img/3_cat/3.png"] == (b"own",)
    assert rows_of(tmp_path, form="pictures", caption="x")[0].repeats is None
    (tmp_path / "5_alone").mkdir()
    put(tmp_path / "5_alone", {"8.png": png(8)})
    assert "give the folder that contains it" in error_of(tmp_path / "5_alone")


def test_names_of_folders_with_repeats_are_no_splits(tmp_path):
    put(tmp_path, {"5_test pilot/1.png": png(1), "2_train driver/2.png": png(2)})
    assert len(rows_of(tmp_path)) == 2
    put(tmp_path, {"test/5_pilot/3.png": png(3), "train/5_pilot/4.png": png(4)})
    assert [row.path for row in rows_of(tmp_path, split="test")] == ["test/5_pilot/3.png"]


def test_tables_win_over_names_of_folders(tmp_path):
    put(tmp_path, {"1_cat/1.png": png(1), "metadata.csv": "file_name,text\n1_cat/1.png,one\n"})
    assert kind_of(tmp_path) == "image-folder"
    assert rows_of(tmp_path)[0].repeats is None


def test_pictures_without_captions_are_an_error_that_offers_what_there_is(tmp_path):
    put(tmp_path, {"golden_retriever/a red ball (2).png": png(1), "cat/b_03.png": png(2)})
    put(tmp_path, {"3.png": png(3), "all.xlsx": b"PK", "a/b.xml": "<a/>", "README.md": "a"})
    message = error_of(tmp_path)
    for said in (
        "has 3 pictures, and 1 .xml, 1 .xlsx without captions in a supported form (save spread",
        '--caption "a photo',
        "--captions-from folder",
        "--captions-from file_name",
        "--captions-from parameters",
        "1.txt",
    ):
        assert said in message
    folders = [row.captions for row in rows_of(tmp_path, captions_from="folder")]
    assert folders == [(None,), (b"cat",), (b"golden retriever",)]
    names = [row.captions for row in rows_of(tmp_path, captions_from="file_name")]
    assert names == [(b"3",), (b"b",), (b"a red ball",)]
    put(tmp_path / "m", {"a_red_car_--ar_32_0f8fad5b-d9cb-469f-a165-70867728950e_1.png": png(1)})
    assert pairs_of(tmp_path / "m", captions_from="file_name") == [(png(1), ["a red car"])]


def test_captions_are_given_to_any_form(tmp_path):
    put_parquet(tmp_path / "a" / "a.parquet", {"image": embedded([png(1)])})
    assert "has no caption column" in error_of(tmp_path / "a")
    assert pairs_of(tmp_path / "a", caption="sks") == [(png(1), ["sks"])]
    put(tmp_path / "b", {"cat/1.png": png(1), "dog/2.png": png(2)})
    put(tmp_path / "b", {"x.csv": "image,text\ncat/1.png,\ndog/2.png,a dog\n"})
    assert pairs_of(tmp_path / "b", captions_from="folder") == [
        (png(1), ["cat"]),
        (png(2), ["a dog"]),
    ]
    put_tar(tmp_path / "c" / "c", [("cat/1.png", png(1)), ("cat/1.txt", ""), ("cat/2.png", png(2))])
    assert pairs_of(tmp_path / "c", captions_from="folder") == [
        (png(1), ["cat"]),
        (png(2), ["cat"]),
    ]


def drawn(seed, texts=None, comment=None, kind="PNG"):
    """A picture with texts in it, as programs that draw write them."""
    image, buffer = Image.open(io.BytesIO(png(seed))), io.BytesIO()
    written = PngInfo()
    for keyword, text in (texts or {}).items():
        written.add_text(keyword, text)
    exif = image.getexif()
    if comment:
        exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment] = comment
    image.save(buffer, kind, **({"pnginfo": written} if kind == "PNG" else {"exif": exif}))
    return buffer.getvalue()


def graph_of(text, other=""):
    """A graph of ComfyUI, in which one sampler is asked for a text, and perhaps another."""
    nodes = {
        "3": {"inputs": {"positive": ["9", 0], "negative": ["7", 0], "model": ["4", 0]}},
        "5": {"inputs": {"positive": ["8", 0] if other else ["6", 0], "seed": 5}},
        "6": {"inputs": {"text": ["10", 0], "clip": ["4", 1]}, "class_type": "CLIPTextEncode"},
        "7": {"inputs": {"text": "blurry", "clip": ["4", 1]}, "class_type": "CLIPTextEncode"},
        "8": {"inputs": {"text": other, "clip": ["4", 1]}, "class_type": "CLIPTextEncode"},
        "9": {"inputs": {"conditioning": ["6", 0], "guidance": 3.5, "round": ["9", 0]}},
        "10": {"inputs": {"string": text}},
    }
    return json.dumps(nodes)


SETTINGS = "\nNegative prompt: blurry, Steps\nSteps: 20, Sampler: Euler a, Size: 8x8"
DRAWN = {
    "A1111": ({"parameters": f"a red cat,\n(big:1.2){SETTINGS}"}, "a red cat,\n(big:1.2)"),
    "without a negative": ({"parameters": "a cat\nSteps: 20, Sampler: Euler"}, "a cat"),
    "in one line": ({"parameters": "a cat Negative prompt: b Steps: 20"}, "a cat"),
    "the prompt alone": ({"parameters": " Steps: to a house "}, "Steps: to a house"),
    "other letters": ({"parameters": f"ein grünes 犬{SETTINGS}"}, "ein grünes 犬"),
    "Fooocus": ({"parameters": json.dumps({"prompt": "a cat", "steps": 30})}, "a cat"),
    "ComfyUI": ({"prompt": graph_of("a cat"), "workflow": "{}"}, "a cat"),
}


@pytest.mark.parametrize("name", DRAWN)
def test_prompts_that_are_written_into_pictures(tmp_path, name):
    texts, prompt = DRAWN[name]
    picture = drawn(1, texts)
    put(tmp_path, {"00001-5.png": picture})
    assert pairs_of(tmp_path, captions_from="parameters") == [(picture, [prompt])]
    assert "--captions-from parameters" in error_of(tmp_path)


def test_prompts_in_the_comments_of_jpeg_and_webp(tmp_path):
    comment = b"UNICODE\0" + f"a grünes cat{SETTINGS}".encode("utf-16-be")
    put(tmp_path, {"1.jpg": drawn(1, comment=comment, kind="JPEG")})
    put(tmp_path, {"2.webp": drawn(1, comment=comment, kind="WEBP")})
    put(tmp_path, {"3.jpg": drawn(1, comment=b"ASCII\0\0\0my camera", kind="JPEG")})
    rows = rows_of(tmp_path, captions_from="parameters")
    assert [row.captions for row in rows] == [("a grünes cat".encode(),)] * 2 + [(None,)]


def test_pictures_that_no_prompt_is_written_into(tmp_path, capsys):
    put(tmp_path, {"1.png": png(1), "2.png": drawn(2, {"parameters": SETTINGS}), "3.png": b"x"})
    put(tmp_path, {"4.png": drawn(4, {"prompt": graph_of("a cat", other="a dog")})})
    put(tmp_path, {"5.png": drawn(5, {"parameters": "unused"}), "5.txt": "own"})
    put(tmp_path, {"6.png": drawn(6, {"prompt": '{"3": [], "x": {"inputs": {"positive": 1}}}'})})
    rows = rows_of(tmp_path, captions_from="parameters")
    for row in (*rows[:4], rows[5]):
        assert row.captions == (None,)
        assert "no prompt" in row.image_problem
    assert "the picture cannot be decoded" in rows[2].image_problem
    assert rows[4].captions == (b"own",)
    assert look.main([str(tmp_path), "--captions-from", "parameters"]) == 0
    said = capsys.readouterr().out
    assert "1.png (png, 8 x 8)  no caption (no caption file (*.txt) of the picture's name" in said
    assert "the picture has no prompt written into it (the text 'parameters' of PNG" in said


# Tables.


def test_tables_that_are_broken(tmp_path):
    put(tmp_path, {"img/1.png": png(1), "img/2.png": png(2), "img/3.png": png(3)})
    lines = [
        {"image": "img/1.png", "text": "one"},
        {"image": "img/gone.png", "text": "missing"},
        {"image": "img/2.png"},
        {"image": "../../out.png", "text": "outside"},
        {"image": "data:image/png;hex,00", "text": "no base64"},
        {"text": "no picture"},
    ]
    put(tmp_path, {"x.jsonl": jsonl(lines)})
    rows = rows_of(tmp_path)
    assert [row.image for row in rows[:3]] == [png(1), None, png(2)]
    assert [row.image for row in rows[3:]] == [None] * 4
    assert rows[1].image_problem == "no file 'img/gone.png'"
    assert rows[2].captions == (None,)
    assert "leads out" in rows[3].image_problem
    assert rows[4].image_problem == "the data URI is not in base64"
    assert rows[5].image_problem == "the record names no picture in 'image'"
    assert (rows[6].file, rows[6].image_problem) == (
        "img/3.png",
        "no record of a table names this picture",
    )


def test_tables_called_after_their_split(tmp_path):
    put(tmp_path, {f"img/{i}.png": png(i) for i in range(3)})
    put(tmp_path, {"train.jsonl": jsonl([{"image": "img/0.png", "text": "zero"}])})
    put(tmp_path, {"test.jsonl": jsonl([{"image": "img/1.png", "text": "one"}])})
    named, unnamed = rows_of(tmp_path)
    assert (named.image, unnamed.file) == (png(0), "img/2.png")
    assert rows_of(tmp_path, split="test")[0].image == png(1)


def test_documents_with_a_list_for_each_split(tmp_path):
    lists = {"train": [{"image": "1.png", "text": "a"}], "val": [{"image": "2.png", "text": "b"}]}
    put(tmp_path, {"1.png": png(1), "2.png": png(2), "x.json": json.dumps(lists)})
    assert rows_of(tmp_path)[0].captions == (b"a",)
    assert rows_of(tmp_path, split="validation")[0].captions == (b"b",)
    assert pairs_of(tmp_path, split="all") == [(png(1), ["a"]), (png(2), ["b"])]


def test_names_are_not_guessed_between_two_folders(tmp_path):
    put(tmp_path, {"a/1.png": png(1), "b/1.png": png(2)})
    put(tmp_path, {"x.csv": "image,text\n1.png,one\n"})
    assert rows_of(tmp_path)[0].image_problem == "no file '1.png'"
    # Unless the table is called after one of them.
    (tmp_path / "x.csv").rename(tmp_path / "of_b.csv")
    assert rows_of(tmp_path)[0].image == png(2)


def test_accents_are_composed_in_tables_and_not_in_file_names(tmp_path):
    put(tmp_path, {"u\u0308ber.png": png(1), "x.csv": "image,text\n\u00fcber.png,one\n"})
    assert pairs_of(tmp_path) == [(png(1), ["one"])]


TABLES = {
    "metadata.csv": "file_name,text\n1.png,one\n2.png,grün\n",
    "data.csv": "image_path,caption\n1.png,one\n2.png,grün\n",
    "captions.txt": "image,caption\n1.png,one\n2.png,grün\n",
    "x.tsv": "image\ttext\n1.png\tone\n2.png\tgrün\n",
    "x.jsonl": '{"image": "1.png", "text": "one"}\n\n{"image": "2.png", "text": "grün"}\n',
    "x.json": '[{"image": "1.png", "text": "one"},\n\n {"image": "2.png", "text": "grün"}]',
    "meta_cap.json": '{"1": {"caption": "one"},\n\n "2": {"caption": "grün"}}',
    "captions_all.json": '{"images": [{"id": 1, "file_name": "1.png"}, {"id": 2, "file_name": '
    '"2.png"}],\n\n"annotations": [{"image_id": 1, "caption": "one"}, {"image_id": 2, "caption": '
    '"grün"}]}',
}


@pytest.mark.parametrize("given", [{}, {"caption": "sks"}], ids=["alone", "with --caption"])
@pytest.mark.parametrize("name", TABLES)
def test_tables_in_other_encodings_are_an_error_with_line_and_byte(tmp_path, name, given):
    content = TABLES[name].encode("cp1252")
    put(tmp_path, {"1.png": png(1), "2.png": png(2), name: content})
    # Only what comes before the byte is needed to see what the table is.
    message = error_of(tmp_path, **given)
    place = content.index(b"\xfc")
    assert f"{name} in dataset" in message
    assert f"is neither UTF-8 nor UTF-16: byte {place} (line 3) is b'\\xfc'" in message
    assert f"iconv -f CP1252 -t UTF-8 {name} > NEW" in message


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("name", TABLES)
def test_tables_in_unicode(tmp_path, name, encoding):
    put(tmp_path, {"1.png": png(1), "2.png": png(2), name: TABLES[name].encode(encoding)})
    assert pairs_of(tmp_path) == [(png(1), ["one"]), (png(2), ["grün"])]


def test_the_bad_byte_of_a_long_table_is_counted_from_its_start(tmp_path):
    lines = [f"{i}.png,text {i}".encode() for i in range(1000)]
    lines[900] += b" \xe9"
    content = b"\xef\xbb\xbfimage,text\r\n" + b"\r\n".join(lines)
    put(tmp_path, {"1.png": png(1), "x.csv": content})
    # The first records are in order, so that it turns up when all are gone through.
    message = error_of(tmp_path, read=True)
    assert f"byte {content.index(bytes([0xE9]))} (line 902) is b'\\xe9'" in message


def test_half_of_utf_16_is_an_error(tmp_path):
    content = "image,text\n1.png,one\n".encode("utf-16")[:-1]
    put(tmp_path, {"1.png": png(1), "x.csv": content})
    assert "x.csv in dataset" in error_of(tmp_path)
    assert "is not valid UTF-16" in error_of(tmp_path)


@pytest.mark.parametrize("lines", ["joined", "each"])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("2.txt", b"\xef\xbb\xbftwo\nand gr\xfcn\n"),
        ("2.json", b'{"prompt":\n "gr\xfcn"}'),
    ],
)
def test_one_caption_file_in_another_encoding_is_a_reject(tmp_path, name, content, packed, lines):
    first = "one" if name.endswith("txt") else '{"prompt": "one"}'
    files = {"1.png": png(1), name.replace("2", "1"): first, "2.png": png(2), name: content}
    if packed:
        put_tar(tmp_path / "a", list(files.items()))
    else:
        put(tmp_path, files)
    shown = f"a.tar/{name}" if packed else name
    one, two = rows_of(tmp_path, caption_lines=lines)
    assert (one.captions, one.image_problem) == ((b"one",), "")
    assert two.image == png(2)
    assert b"gr\xfcn" in two.captions[-1]
    assert two.image_problem.startswith(
        f"{shown} is neither UTF-8 nor UTF-16: byte {content.index(bytes([0xFC]))} (line 2) is "
    )
    assert f"iconv -f CP1252 -t UTF-8 {name} > NEW" in two.image_problem


def test_json_that_is_broken(tmp_path):
    put(tmp_path, {"1.png": png(1), "x.json": '[{"image": "1.png", "text": '})
    assert "x.json in dataset" in error_of(tmp_path)


def test_json_that_has_nothing_to_do_with_pictures(tmp_path):
    put(
        tmp_path,
        {**PICTURES, **files_with(".txt"), "sampler.json": '[{"steps": 20}]', "x.csv": "a,b\n"},
    )
    put(tmp_path, {"broken.json": "{"})
    assert kind_of(tmp_path) == "caption-files"


def test_ids_are_no_captions(tmp_path):
    talk = [{"from": "human", "value": "what is it?"}, {"from": "gpt", "value": "a dog"}]
    record = {"id": "a1", "image": "1.png", "conversations": talk}
    put(tmp_path, {"1.png": png(1), "x.json": json.dumps([record])})
    for column in ("", "conversations", "conversations.value"):
        assert pairs_of(tmp_path, caption_column=column) == [(png(1), ["a dog"])]
    put(tmp_path, {"x.json": json.dumps([{"id": "a1", "image": "1.png", "said": "one"}])})
    assert pairs_of(tmp_path) == [(png(1), ["one"])]


def test_conversations_of_parquet(tmp_path):
    talk = [[{"from": "human", "value": "what is it?"}, {"from": "gpt", "value": "a dog"}]]
    put_parquet(tmp_path / "a.parquet", {"image": embedded([png(1)]), "conversations": talk})
    assert pairs_of(tmp_path) == [(png(1), ["a dog"])]


SPLITS = {f"img/{i}.png": png(i) for i in range(4)}
SPLIT_RECORDS = [
    {"image": "img/0.png", "text": "zero", "split": "train"},
    {"image": "img/1.png", "text": "one", "split": "val"},
    {"image": "img/2.png", "text": "two", "split": "Test"},
    {"image": "img/3.png", "text": "three", "split": "restval"},
    {"image": "img/0.png", "text": "again", "split": ""},
]
SPLIT_TABLES = {
    "x.jsonl": jsonl(SPLIT_RECORDS),
    "x.json": json.dumps(SPLIT_RECORDS),
    "train.csv": csv_text([["image", "text", "Split"], *(r.values() for r in SPLIT_RECORDS)]),
    "metadata.jsonl": jsonl({"file_name": r.pop("image"), **r} for r in map(dict, SPLIT_RECORDS)),
    "meta.json": json.dumps(
        {
            r["image"] + " " * i: {"caption": r["text"], "split": r["split"]}
            for i, r in enumerate(SPLIT_RECORDS)
        }
    ),
    "captions.json": json.dumps(
        {
            "images": [
                {"id": i, "file_name": r["image"], "split": r["split"]}
                for i, r in enumerate(SPLIT_RECORDS)
            ],
            "annotations": [
                {"image_id": i, "caption": r["text"]} for i, r in enumerate(SPLIT_RECORDS)
            ],
        }
    ),
}


@pytest.mark.parametrize("name", SPLIT_TABLES)
def test_records_that_say_which_split_they_are_of(tmp_path, monkeypatch, name):
    monkeypatch.setattr(image_table, "_UNIT_ROWS", 1)
    put(tmp_path, {**SPLITS, name: SPLIT_TABLES[name]})

    def texts(split):
        return [text for _, [text] in pairs_of(tmp_path, split=split)]

    # The pictures of other splits are none that no record names.
    assert texts("train") == ["zero", "again"]
    assert texts("validation") == texts("val") == ["one"]
    assert texts("test+train") == ["zero", "two", "again"]
    assert texts("restval") == ["three"]
    assert texts("all") == ["zero", "one", "two", "three", "again"]
    message = error_of(tmp_path, read=True, split="dev2")
    assert "'restval' (1), 'test' (1), 'train' (2), 'validation' (1)" in message
    assert "--dataset-split" in message
    said = open_dataset(DatasetSpec(str(tmp_path))).taken_for.lower()
    assert said.endswith("; only the records whose 'split' is train are read")


def test_a_split_column_that_is_none(tmp_path):
    put(tmp_path, {**SPLITS, "x.csv": "image,text,split\nimg/0.png,zero,5\nimg/1.png,one,leg\n"})
    assert [row.captions for row in rows_of(tmp_path)[:2]] == [(b"zero",), (b"one",)]
    # Tables that are called after their split are of it as a whole.
    put(tmp_path / "b", {**SPLITS, "train.jsonl": jsonl(SPLIT_RECORDS[:2])})
    put(tmp_path / "b", {"test.jsonl": jsonl(SPLIT_RECORDS[2:])})
    assert [row.captions for row in rows_of(tmp_path / "b")] == [(b"zero",), (b"one",)]


def split_columns(write, kind=None, name="split"):
    splits = pa.array([r["split"] or None for r in SPLIT_RECORDS], kind)
    texts = [r["text"] for r in SPLIT_RECORDS]
    pictures = embedded([png(i) for i in (0, 1, 2, 3, 0)])
    return write({"image": pictures, "words": texts, name: splits})


SPLIT_FILES = {
    "a.parquet": split_columns(table_bytes),
    # As `push_to_hub` names it where nobody says otherwise.
    "data/train-00000-of-00001.parquet": split_columns(table_bytes, name="Split"),
    "test.parquet": split_columns(table_bytes, pa.dictionary(pa.int32(), pa.string())),
    "data-00000-of-00001.arrow": split_columns(arrow_bytes),
}


@pytest.mark.parametrize("name", SPLIT_FILES)
def test_columns_that_say_which_split_a_row_is_of(tmp_path, name):
    put(tmp_path, {name: SPLIT_FILES[name]})

    def texts(split):
        return [text for _, [text] in pairs_of(tmp_path, split=split)]

    assert texts("train") == ["zero", "again"]
    assert texts("val") == ["one"]
    assert texts("test+train") == ["zero", "two", "again"]
    assert texts("restval") == ["three"]
    assert texts("all") == ["zero", "one", "two", "three", "again"]
    # The number of a row is that in its file.
    assert [row.number for row in rows_of(tmp_path)] == [0, 4]
    message = error_of(tmp_path, read=True, split="dev2")
    assert "'restval' (1), 'test' (1), 'train' (2), 'validation' (1)" in message
    assert "--dataset-split" in message
    said = open_dataset(DatasetSpec(str(tmp_path))).taken_for.lower()
    assert said.endswith("; only the records whose 'split' is train are read")


def test_files_of_several_splits_have_the_word_before_their_columns(tmp_path):
    put(tmp_path, {"train.parquet": split_columns(table_bytes), "README.md": "a"})
    put_parquet(tmp_path / "test.parquet", {"image": embedded([png(9)]), "words": ["nine"]})
    assert len(pairs_of(tmp_path)) == 5
    assert pairs_of(tmp_path, split="test") == [(png(9), ["nine"])]
    # With the one of several files that has no such column, all of it is `train`.
    (tmp_path / "test.parquet").rename(tmp_path / "train2.parquet")
    assert [text for _, [text] in pairs_of(tmp_path)] == ["zero", "again", "nine"]


def test_a_column_that_says_no_split(tmp_path):
    columns = {"image": embedded([png(1)]), "split": ["leg"]}
    put_parquet(tmp_path / "a" / "a.parquet", columns)
    # The only text there is.
    assert pairs_of(tmp_path / "a") == [(png(1), ["leg"])]
    assert pairs_of(tmp_path / "a", caption="x") == [(png(1), ["x"])]
    put_parquet(tmp_path / "b" / "a.parquet", {**columns, "split": [5], "text": ["one"]})
    assert pairs_of(tmp_path / "b") == [(png(1), ["one"])]
    put_parquet(tmp_path / "c" / "a.parquet", {**columns, "split": [""], "text": ["one"]})
    assert pairs_of(tmp_path / "c") == [(png(1), ["one"])]


def test_pictures_in_other_columns_are_not_missed(tmp_path):
    put(tmp_path, {f"{folder}/{i}.png": png(i) for folder in ("to", "by") for i in (1, 2)})
    records = [{"image": f"to/{i}.png", "text": str(i), "by": f"by/{i}.png"} for i in (1, 2)]
    put(tmp_path, {"x.jsonl": jsonl(records)})
    assert pairs_of(tmp_path) == [(png(1), ["1"]), (png(2), ["2"])]
    put(tmp_path, {"x.jsonl": jsonl({"to": r.pop("image"), **r} for r in records)})
    assert "several columns that could be the image column: to, by" in error_of(tmp_path)
    assert pairs_of(tmp_path, image_column="by") == [(png(1), ["1"]), (png(2), ["2"])]


def test_pictures_in_lists_of_one(tmp_path):
    talk = [{"role": "user", "content": "<image>"}, {"role": "assistant", "content": "a dog"}]
    put(tmp_path, {"i/1.png": png(1), "i/2.png": png(2)})
    images = [
        ["i/1.png"],
        [{"path": "i/2.png", "bytes": None}],
        ["i/1.png", "i/2.png"],
        [],
        ["i/1.png"],
    ]
    put(tmp_path, {"x.json": json.dumps([{"messages": talk, "images": each} for each in images])})
    one, two, several, none, _ = rows_of(tmp_path)
    assert [row.image for row in (one, two)] == [png(1), png(2)]
    assert one.captions == (b"a dog",)
    assert several.image_problem == "the record names several pictures in 'images'"
    assert none.image_problem == "the record names no picture in 'images'"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("x.csv", "sep=;\r\nimage;text\r\n1.png;a dog, red\r\n"),
        ("x.csv", '"sep=\t"\n1.png\ta dog, red\n'),
        # More commas than tabs, and no names of columns.
        ("captions.txt", "1.png\ta dog, red\n"),
        ("x.csv", "1.png|a dog, red\n"),
        ("x.csv", ',image,text\n0,1.png,"a dog, red"\n'),
    ],
)
def test_what_parts_the_fields(tmp_path, name, content):
    put(tmp_path, {"1.png": png(1), name: content})
    assert pairs_of(tmp_path) == [(png(1), ["a dog, red"])]


def test_a_table_of_which_no_record_can_be_read_is_named(tmp_path):
    put(tmp_path, {"1.png": png(1), "x.tsv": 'image\ttext\n1.png\t"a" dog\n'})
    message = error_of(tmp_path)
    assert "x.tsv in dataset" in message
    assert "has no record that can be read: the record is no CSV: " in message
    assert message.endswith("; otherwise there is only 1 picture")


def test_tables_that_are_not_alike(tmp_path):
    put(tmp_path, {"1.png": png(1), "a.csv": "image,caption\n1.png,one\n"})
    put(tmp_path, {"b.csv": "image,label\n1.png,dog\n"})
    message = error_of(tmp_path, read=True)
    assert "b.csv has no column 'caption', the columns of b.csv are image, label" in message
    assert "--caption-column caption reads only tables that have it" in message
    assert pairs_of(tmp_path, caption_column="caption") == [(png(1), ["one"])]
    assert pairs_of(tmp_path, caption_column="label") == [(png(1), ["dog"])]


def test_coco_of_two_splits(tmp_path):
    def document(names):
        images = [{"id": n, "file_name": f"{n}.png"} for n in names]
        said = [{"image_id": n, "caption": f"{n} {k}"} for n in names for k in "ab"]
        return json.dumps({"images": images, "annotations": said})

    put(tmp_path, {f"train2017/{i}.png": png(i) for i in range(3)})
    put(
        tmp_path,
        {"val2017/7.png": png(7), "annotations/captions_train2017.json": document([0, 1, 9])},
    )
    put(tmp_path, {"annotations/captions_val2017.json": document([7])})
    put(tmp_path, {"annotations/instances_train2017.json": "{not read"})
    one, two, missing, unnamed = rows_of(tmp_path)
    assert [row.image for row in (one, two)] == [png(0), png(1)]
    assert one.captions == (b"0 a", b"0 b")
    assert missing.image_problem == "no file '9.png'"
    assert unnamed.file == "train2017/2.png"
    assert pairs_of(tmp_path, split="validation") == [(png(7), ["7 a", "7 b"])]


def test_coco_captions_without_image(tmp_path):
    content = {"images": [{"id": 1, "file_name": "1.png"}], "annotations": []}
    content["annotations"] = [{"image_id": 1, "caption": "one"}, {"image_id": 2, "caption": "two"}]
    put(tmp_path, {"1.png": png(1), "captions.json": json.dumps(content)})
    one, two = rows_of(tmp_path)
    assert (one.image, one.captions) == (png(1), (b"one",))
    assert (two.image, two.captions) == (None, (b"two",))


def test_sd_scripts_metadata_that_is_broken(tmp_path):
    meta = {"1": {"caption": "one", "tags": "a, b"}, "gone": {"caption": "x"}, "2": {"tags": "c"}}
    put(tmp_path, {"1.png": png(1), "2.png": png(2), "meta.json": json.dumps(meta)})
    rows = rows_of(tmp_path)
    assert [row.captions for row in rows] == [(b"one",), (b"x",), (None,)]
    assert rows[1].image is None
    assert rows_of(tmp_path, caption_column="tags")[2].captions == (b"c",)


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
def test_addresses_are_an_error_with_the_command(tmp_path, suffix):
    urls, texts = [f"https://h/{i}.jpg" for i in range(3)], TEXTS[:3]
    if suffix == ".parquet":
        put_parquet(tmp_path / "part 0.parquet", {"URL": urls, "TEXT": texts})
    else:
        put(tmp_path, {"part 0.csv": csv_text([("URL", "TEXT"), *zip(urls, texts, strict=True)])})
    message = error_of(tmp_path)
    assert "has the URLs of pictures in column 'URL'" in message
    assert (
        f"img2dataset --url_list 'part 0{suffix}' --input_format {suffix[1:]} --url_col URL "
        "--caption_col TEXT" in message
    )


def test_addresses_without_a_header_or_a_usual_name(tmp_path):
    put(tmp_path, {"x.tsv": "a dog\thttps://h/1.jpg\na cat\thttps://h/2.jpg\n"})
    assert "has the URLs of pictures in column 'column_2'" in error_of(tmp_path)
    put(tmp_path, {"x.tsv": "said\tphoto\na dog\thttps://h/1.jpg\n"})
    assert "--url_col photo" in error_of(tmp_path)


# Columns.


def test_nested_captions_of_parquet(tmp_path):
    sentences = [[{"raw": "one"}, {"raw": "uno"}], []]
    languages = [{"de": "eins", "en": "one"}, {"de": "zwei", "en": None}]
    pairs = pa.array([list(each.items()) for each in languages], pa.map_(pa.string(), pa.string()))
    put_parquet(
        tmp_path / "a.parquet",
        {"image": embedded([png(1), png(2)]), "s": sentences, "l": languages, "m": pairs},
    )

    def captions(column):
        return [row.captions for row in rows_of(tmp_path, caption_column=column)]

    assert captions("s.raw") == [(b"one", b"uno"), (None,)]
    assert captions("l.en") == captions("m.en") == [(b"one",), (None,)]
    assert "could be the caption column: l.de, l.en, s.raw" in error_of(tmp_path).replace(
        "s.raw, l.de, l.en", "l.de, l.en, s.raw"
    )
    assert "has no caption column 'l.fr'" in error_of(tmp_path, caption_column="l.fr")


def test_parquet_that_names_pictures_which_are_missing(tmp_path):
    put(tmp_path, {"img/1.png": png(1)})
    put_parquet(tmp_path / "a.parquet", {"path": ["1.png", "2.png", None], "text": ["a", "b", "c"]})
    rows = rows_of(tmp_path)
    assert [row.image for row in rows] == [png(1), None, None]
    assert rows[1].image_problem == "no file '2.png'"


def test_arrow_files_in_parts(tmp_path):
    put(tmp_path, {"train/a.arrow": arrow_bytes(columns_of(), rows=3)})
    put(
        tmp_path,
        {"test/a.arrow": arrow_bytes(columns_of(["x"] * COUNT)), "dataset_dict.json": "{}"},
    )
    source = open_dataset(DatasetSpec(str(tmp_path)))
    units = list(source.units())
    assert [(unit.first_row, unit.num_rows) for unit in units] == [(0, 3), (3, 1)]
    assert [row.captions for row in source.read(units[1])] == [(b"picture 3",)]
    assert source.left_out == ("test/a.arrow",)
    content = arrow_bytes(columns_of())
    put(tmp_path, {"train/a.arrow": content[: len(content) // 2]})
    assert "train/a.arrow in dataset" in error_of(tmp_path, read=True)
    put(tmp_path, {"train/a.arrow": b"no arrow at all"})
    assert "train/a.arrow in dataset" in error_of(tmp_path)


# Archives.


def test_pictures_in_a_zip_and_their_table_beside(tmp_path):
    put_zip(tmp_path / "images.zip", PICTURES)
    put(tmp_path, {"metadata.jsonl": jsonl(records("file_name", "text"))})
    assert pairs_of(tmp_path) == [(png(i), [text]) for i, text in enumerate(TEXTS)]


def test_tables_in_gzip(tmp_path):
    put(tmp_path, {**PICTURES, "x.csv.gz": gzip.compress(b"image,text\nplain.png,one\n")})
    first, *unnamed = rows_of(tmp_path)
    assert (first.image, first.captions, len(unnamed)) == (png(0), (b"one",), COUNT - 1)
    spec = DatasetSpec(str(tmp_path))
    before = dataset_fingerprint(spec)
    put(tmp_path, {"x.csv.gz": gzip.compress(b"image,text\nplain.png,two\n")})
    assert dataset_fingerprint(spec) != before
    # The same table, which is not read twice.
    put(tmp_path, {"x.csv": "image,text\nplain.png,plain\n"})
    assert rows_of(tmp_path)[0].captions == (b"plain",)
    assert len(rows_of(tmp_path)) == COUNT
    os.remove(tmp_path / "x.csv")
    put(tmp_path, {"x.csv.gz": gzip.compress(b"image,text\nplain.png,one\n" * 9)[:-9]})
    assert "x.csv.gz in dataset" in error_of(tmp_path)


@pytest.mark.parametrize("name", ["a.7z", "a.rar", "a.tar.zst"])
def test_archives_that_are_not_unpacked_here(tmp_path, name):
    put(tmp_path, {name: "7z"})
    assert f"such as {name}: unpack them in place" in error_of(tmp_path)
    assert "unpack it, and give the folder" in error_of(tmp_path / name)
    put(tmp_path, {"metadata.csv": "file_name,text\n1.png,one\n"})
    message = error_of(tmp_path)
    assert "has no pictures, only their names, such as '1.png' in metadata.csv" in message
    assert f"unpack {name}, an archive of an unsupported kind" in message
    # Of no concern where the pictures are there.
    put(tmp_path, {"1.png": png(1)})
    assert pairs_of(tmp_path) == [(png(1), ["one"])]


def test_tables_without_the_pictures_that_they_name(tmp_path):
    put(tmp_path, {"annotations/captions_train2017.json": coco()})
    assert "give the folder that contains the pictures, too" in error_of(tmp_path)
    put(tmp_path / "b", {"metadata.csv": "file_name,text\nhttps://h/1.png,one\n"})
    assert "img2dataset --url_list metadata.csv" in error_of(tmp_path / "b")


def test_scores_beside_captions_are_no_table(tmp_path):
    scores = csv_text([("id", "score", "model"), *((name, "5.1", "vit") for name in NAMES)])
    put(tmp_path, {**PICTURES, **files_with(".txt"), "scores.csv": scores})
    assert kind_of(tmp_path) == "caption-files"
    put(tmp_path / "b", {**PICTURES, "scores.csv": csv_text([("id", "score"), ("plain", "5")])})
    assert kind_of(tmp_path / "b", caption="sks") == "pictures"


@pytest.mark.parametrize(
    "files",
    [
        {"a.parquet": ""},
        {"a.zip": ""},
        {"00000.tar": ""},
        {"1.png": "", "1.txt": "one"},
        {"1.png": "", "metadata.csv": "file_name,text\n1.png,one\n"},
    ],
    ids=" ".join,
)
def test_what_git_leaves_without_lfs_is_an_error(tmp_path, files):
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
    put(tmp_path, {path: content or pointer for path, content in files.items()})
    message = error_of(tmp_path)
    assert f"{next(iter(files))} in dataset" in message
    assert "is a Git LFS pointer and not the file itself: install git-lfs" in message


def test_zips_that_have_no_end(tmp_path):
    content = zip_bytes(PICTURES)
    for _ in range(5):
        content = zip_bytes({"inner.zip": content})
    put(tmp_path, {"a.zip": content})
    deepest = "a.zip/inner.zip/inner.zip/inner.zip"
    assert f"({deepest} is inside more than 3 others: unpack them)" in error_of(tmp_path)


def test_zip_names_in_utf8_that_do_not_say_so(tmp_path):
    path = put_zip(tmp_path / "a.zip", {"grün.png": png(1), "x.csv": "image,text\ngrün.png,one\n"})
    raw = path.read_bytes()
    # The flag of each entry, in its own head and in the directory.
    for head, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        start = raw.find(head)
        while start >= 0:
            flags = int.from_bytes(raw[start + at : start + at + 2], "little") & ~0x800
            raw = raw[: start + at] + flags.to_bytes(2, "little") + raw[start + at + 2 :]
            start = raw.find(head, start + 4)
    path.write_bytes(raw)
    assert pairs_of(path) == [(png(1), ["one"])]


def test_zips_that_are_broken(tmp_path):
    path = put_zip(tmp_path / "a.zip", {**PICTURES, **files_with(".txt")})
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    assert "a.zip in dataset" in error_of(path)
    place = content.find(b"plain.png") + 20
    path.write_bytes(content[:place] + b"\0\0\0\0" + content[place + 4 :])
    assert "a.zip/plain.png in dataset" in error_of(path, read=True)
    put_zip(path, {"../out.png": png(1), "/etc/x.png": png(2), "in.png": png(3)})
    assert [row.path for row in rows_of(path, caption="x")] == ["a.zip/etc/x.png", "a.zip/in.png"]


def test_a_tar_of_folders_with_repeats_keeps_them(tmp_path):
    members = [("5_dog/1.png", png(1)), ("5_dog/1.txt", "one"), ("2_cat/2.png", png(2))]
    path = put_tar(tmp_path / "set", members)
    assert [(row.repeats, row.captions) for row in rows_of(path)] == [
        (2, (b"cat",)),
        (5, (b"one",)),
    ]


def test_webdataset_with_compound_names(tmp_path):
    members = [
        (f"./{i:04}.{suffix}", content)
        for i, text in enumerate(TEXTS)
        for suffix, content in (("image.png", png(i)), ("caption.txt", text), ("mask.png", png(9)))
    ]
    put_tar(tmp_path / "s", members)
    expected = [(png(i), [text]) for i, text in enumerate(TEXTS)]
    assert pairs_of(tmp_path) == pairs_of(tmp_path, image_column="image.png") == expected
    assert pairs_of(tmp_path, image_column=".mask.png")[0] == (png(9), ["picture 0"])
    assert "no image column 'depth.png'" in error_of(tmp_path, image_column="depth.png")


@pytest.mark.parametrize("suffix", ["prompt", "caption", "cls", "text"])
def test_webdataset_with_other_captions(tmp_path, suffix):
    put_tar(tmp_path / "s", [("1.png", png(1)), (f"1.{suffix}", "a dog\n"), ("2.png", png(2))])
    first, second = rows_of(tmp_path)
    assert (first.captions, second.captions) == ((b"a dog",), (None,))


# img2dataset.


def fetched(tmp_path, rows):
    put_parquet(tmp_path / "00000.parquet", {key: [row[key] for row in rows] for key in FAILED})
    put(tmp_path, {"00000_stats.json": "{}"})


@pytest.mark.parametrize("packed", [True, False])
def test_img2dataset_says_what_was_not_fetched(tmp_path, packed):
    fetched(tmp_path, [*FETCHED, FAILED])
    if packed:
        put_tar(tmp_path / "00000", list(SAMPLES.items()))
    else:
        put(tmp_path, moved("00000", SAMPLES))
    *rows, failed = rows_of(tmp_path)
    assert {row.image: row.captions for row in rows} == {
        png(i): (text.encode(),) for i, text in enumerate(TEXTS)
    }
    assert (failed.file, failed.number, failed.captions) == ("00000.parquet", 4, (b"gone",))
    assert failed.image_problem == "img2dataset says: failed_to_download: 404"
    assert kind_of(tmp_path) == "img2dataset"


def test_img2dataset_with_the_pictures_in_parquet(tmp_path):
    columns = {key: [*(row[key] for row in FETCHED), FAILED[key]] for key in FAILED}
    columns["jpg"] = pa.array([*(png(i) for i in range(COUNT)), None])
    put_parquet(tmp_path / "00000.parquet", columns)
    put(tmp_path, {"00000_stats.json": "{}"})
    *rows, failed = rows_of(tmp_path)
    assert [row.image for row in rows] == [png(i) for i in range(COUNT)]
    assert failed.image_problem == "img2dataset says: failed_to_download: 404"


# Two readings.


def test_two_readings_are_an_error_with_the_flag(tmp_path):
    put(tmp_path, {**PICTURES, **files_with(".txt")})
    put(tmp_path, {"metadata.csv": csv_text([("file_name", "text"), ("plain.png", "by table")])})
    message = error_of(tmp_path)
    assert "image folders (metadata.jsonl or metadata.csv): 1 metadata.csv" in message
    assert "caption files beside pictures" in message
    assert "--dataset-form image-folder or --dataset-form caption-files" in message
    assert pairs_of(tmp_path, form="caption-files")[-1] == (png(0), ["picture 0"])
    assert rows_of(tmp_path, form="image-folder")[0].captions == (b"by table",)
    assert "does not have the form 'coco': it has image-folder (1 metadata.csv)" in error_of(
        tmp_path, form="coco"
    )
    assert "there is no form 'x': --dataset-form is one of img2dataset, " in error_of(
        tmp_path, form="x"
    )


# look.


def test_look_says_what_would_be_read_and_changes_nothing(tmp_path, capsys):
    put(tmp_path / "set", {"10_dog/1.png": png(1), "10_dog/2.png": b"no picture"})
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    assert look.main([str(tmp_path / "set")]) == 0
    said = capsys.readouterr().out
    assert "taken for repeats: 1 folder with repeats: '10_dog' (2 pictures)" in said
    assert "10_dog/1.png x10 (png, 8 x 8)  'dog'" in said
    assert "10_dog/2.png: SET ASIDE, the picture cannot be decoded" in said
    assert said.endswith("2 rows, of which 1 would be set aside.\n")
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")} == before
    assert look.main([str(tmp_path / "set"), "--rows", "0"]) == 0
    assert capsys.readouterr().out.count("SET ASIDE") == 1
    put(tmp_path / "pictures", PICTURES)
    assert (
        look.main([str(tmp_path / "pictures"), "--captions-from", "file_name", "--rows", "1"]) == 0
    )
    assert "The first 1 rows:\n  100%.png (png, 8 x 8)  '100%'\n" in capsys.readouterr().out
    assert look.main([str(tmp_path / "pictures")]) == 2
    assert "--captions-from folder" in capsys.readouterr().err


# Elsewhere.


def test_a_bucket_is_listed_once_and_not_asked_for_every_file(memory, monkeypatch):
    for i in range(50):
        memory.pipe_file(f"/set/{i}.png", png(i))
        memory.pipe_file(f"/set/{i}.txt", f"picture {i}".encode())
    asked = []

    def counted(name):
        known = getattr(memory, name)

        def ask(*args, **options):
            asked.append(name)
            return known(*args, **options)

        return ask

    for name in ("find", "info"):
        monkeypatch.setattr(memory, name, counted(name))
    source = open_dataset(DatasetSpec("memory://set"))
    assert (source.kind, len(list(source.units()))) == ("caption-files", 1)
    assert asked.count("find") == 1
    # The dataset's own folder, and no file in it.
    assert asked.count("info") <= 4


HUB_CODE = """
import hashlib
from components.caption_example_gen.sources import (
    DatasetSpec, check_dataset, dataset_fingerprint, open_dataset,
)

def pairs(source, peek):
    rows = [row for unit in source.units() for row in source.read(unit, peek=peek)]
    assert all(row.image and not row.image_problem for row in rows), rows
    return sorted([sha256(row.image), *map(bytes.decode, row.captions)] for row in rows)

def sha256(content):
    return hashlib.sha256(content).hexdigest()

for form, number, settings in json.loads(ASKED):
    spec = DatasetSpec(f"org/set{number}", **settings)
    source = open_dataset(spec)
    check_dataset(spec, source)
    peeked = pairs(source, True)
    source.files.fetch(source.paths)
    assert pairs(source, False) == peeked
    out[form] = [source.kind, len(dataset_fingerprint(spec, source)), peeked]
"""
# One for each way to get at files, of which each costs requests.
ON_THE_HUB = [
    "txt", "json beside", "repeats", "caption folders", "caption given", "metadata.jsonl",
    "keras-folder", "train.jsonl", "table in gzip", "coco", "sd-scripts", "parquet",
    "parquet with paths", "arrow", "img2dataset files", "img2dataset tars", "webdataset",
    "keras-archive", "folder in a zip",
]  # fmt: skip


def test_every_form_on_the_hub(tmp_path):
    asked = []
    with HubServer() as hub:
        for number, form in enumerate(ON_THE_HUB):
            files, settings, _ = FORMS[form]
            hub.add(f"org/set{number}", Path(put(tmp_path / f"set{number}", files)))
            asked.append([form, number, settings])
        ran = hub.run(tmp_path / "home", f"ASKED = {json.dumps(asked)!r}\n{HUB_CODE}")
    assert list(ran.out) == ON_THE_HUB
    for form, (kind, length, pairs) in ran.out.items():
        texts = EXPECTED.get(form, TEXTS)
        wanted = sorted([hashlib.sha256(png(i)).hexdigest(), texts[i]] for i in range(COUNT))
        assert (pairs, length) == (wanted, 64), form
        assert kind == (FORMS[form][2] or kind)


# More of what people have.


def test_karpathys_splits_have_sentences_beside_their_tokens(tmp_path):
    images = [
        {
            "filename": f"{i}.png",
            "split": split,
            "sentences": [{"tokens": ["a", "dog"], "raw": f"A dog {i}."}, {"raw": "Again."}],
        }
        for i, split in ((1, "train"), (2, "restval"))
    ]
    put(tmp_path, {"img/1.png": png(1), "img/2.png": png(2)})
    put(tmp_path, {"dataset.json": json.dumps({"images": images, "dataset": "flickr30k"})})
    assert pairs_of(tmp_path) == [(png(1), ["A dog 1.", "Again."])]


def test_conversations_in_parts(tmp_path):
    talk = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "A dog."}]},
    ]
    put(tmp_path, {"i/1.png": png(1)})
    put(tmp_path, {"x.jsonl": jsonl([{"messages": talk, "images": ["i/1.png"]}])})
    assert pairs_of(tmp_path) == [(png(1), ["A dog."])]
    # Nobody answers.
    put(tmp_path, {"x.jsonl": jsonl([{"messages": talk[:1], "images": ["i/1.png"]}])})
    assert "has no caption column" in error_of(tmp_path)


def test_numbers_that_name_pictures(tmp_path):
    put(tmp_path, {"1.png": png(1), "2.png": png(2)})
    put(tmp_path, {"x.json": json.dumps([{"id": i, "caption": f"no. {i}"} for i in (1, 2)])})
    assert pairs_of(tmp_path) == [(png(1), ["no. 1"]), (png(2), ["no. 2"])]
    put(tmp_path, {"x.json": json.dumps([{"id": i, "caption": f"no. {i}"} for i in (1, 3)])})
    first, second, third = rows_of(tmp_path)
    assert (first.image, second.image_problem) == (png(1), "no file '3'")
    assert (third.file, third.image_problem) == ("2.png", "no record of a table names this picture")


@pytest.mark.parametrize("parted", ["\t", "|", ","])
def test_text_files_that_are_tables(tmp_path, parted):
    put(tmp_path, {"1.png": png(1), "a b/2.png": png(2), "readme.txt": "a, b\nc"})
    put(tmp_path, {"list.txt": f"1.png{parted}one\na b/2.png{parted}two\n"})
    assert pairs_of(tmp_path) == [(png(1), ["one"]), (png(2), ["two"])]
    put(tmp_path, {"list.txt": f"1.png{parted}one\na b/3.png{parted}two\n"})
    assert [row.image_problem for row in rows_of(tmp_path)] == [
        "", "no file 'a b/3.png'", "no record of a table names this picture",
    ]  # fmt: skip
    put(tmp_path, {"list.txt": "1.png\na b/2.png\n"})
    assert "has pictures but no captions" in error_of(tmp_path)


def test_lists_of_one_picture_in_parquet(tmp_path):
    pictures = [{"bytes": png(i), "path": None} for i in range(3)]
    images = [[pictures[0]], [], pictures[1:], None, [pictures[2]]]
    texts = ["one", "none", "two", "nothing", "last"]
    put_parquet(tmp_path / "a.parquet", {"images": images, "text": texts})
    rows = rows_of(tmp_path)
    assert [row.image for row in rows] == [png(0), None, None, None, png(2)]
    assert [row.captions for row in rows] == [(text.encode(),) for text in texts]
    assert rows[2].image_problem == "the row has 2 pictures in 'images', and not one"


def test_paths_of_another_machine_as_file_addresses(tmp_path, capsys):
    put(tmp_path, {"img/a b.png": png(1), "img/2.png": png(2)})
    put(
        tmp_path, {"x.csv": "image,text\nfile:///data/img/a%20b.png,one\nfile:///data/img/2.png,\n"}
    )
    first, second = rows_of(tmp_path)
    assert (first.image, first.captions, second.image) == (png(1), (b"one",), png(2))
    assert look.main([str(tmp_path)]) == 0
    assert "img/2.png (png, 8 x 8)  '': SET ASIDE, it is empty\n" in capsys.readouterr().out
    put(tmp_path, {"x.csv": "image,text\nfile:///data/img/a%20b.png,one\ngs://b/img/2.png,two\n"})
    assert "'gs://b/img/2.png' is a URL" in rows_of(tmp_path)[1].image_problem


def test_a_tar_of_pictures_beside_their_table(tmp_path):
    put(tmp_path, {"images.tar": tar_bytes(PICTURES), "x.json": json.dumps(records("image", "t"))})
    assert "choose one with --dataset-form tar or --dataset-form table" in error_of(tmp_path)
    found = dict(pairs_of(tmp_path, form="tar"))
    assert found == {png(i): [text] for i, text in enumerate(TEXTS)}


def test_tasks_of_label_studio(tmp_path):
    texts = ["one", None, "three", "four"]
    put(tmp_path, {**PICTURES, "p.json": label_studio(texts, "/data/local-files/?d=")})
    rows = rows_of(tmp_path)
    assert [row.image for row in rows] == [png(i) for i in range(COUNT)]
    assert [row.captions for row in rows] == [(b"one",), (None,), (b"three",), (b"four",)]
    tasks = json.loads(label_studio())
    # Skipped, and so no caption; a picture that is gone; two fields.
    tasks[0]["annotations"][0]["was_cancelled"] = True
    tasks[1]["data"]["image"] = "/data/upload/1/abcd1234-gone.png"
    put(tmp_path, {"p.json": json.dumps(tasks)})
    first, second, *_, unnamed = rows_of(tmp_path)
    assert (first.captions, second.captions) == ((None,), (TEXTS[1].encode(),))
    assert "abcd1234-gone.png" in second.image_problem
    assert (unnamed.file, unnamed.image) == ("a space.png", None)
    tasks[2]["annotations"][0]["result"] *= 2
    tasks[2]["annotations"][0]["result"][1] = {
        **tasks[2]["annotations"][0]["result"][0], "from_name": "style", "value": {"text": "blue"},
    }  # fmt: skip
    put(tmp_path, {"p.json": json.dumps(tasks)})
    assert [row.captions for row in rows_of(tmp_path, caption_column="style")][2] == (b"blue",)


def test_names_that_differ_in_the_case_of_letters_in_tables(tmp_path):
    names = csv_text([("image", "text"), ("IMG/ONE.PNG", "one"), ("img/two.png", "two")])
    put(tmp_path, {"img/one.png": png(1), "img/Two.png": png(2), "x.csv": names})
    assert pairs_of(tmp_path) == [(png(1), ["one"]), (png(2), ["two"])]
    # Of two, none is meant more than the other.
    put(tmp_path, {"img/TWO.png": png(3)})
    assert "no file 'img/two.png'" in [row.image_problem for row in rows_of(tmp_path)]


def test_accents_of_captions_and_their_pictures_may_differ_in_form(tmp_path):
    put(
        tmp_path,
        {"gru\u0308n.png": png(1), "gr\u00fcn.txt": "one", "2.png": png(2), "2.txt": "two"},
    )
    assert sorted(pairs_of(tmp_path)) == sorted([(png(1), ["one"]), (png(2), ["two"])])
    put(tmp_path, {"gru\u0308n.txt": "nearer"})
    rows = {row.file: row for row in rows_of(tmp_path)}
    assert rows["gru\u0308n.png"].captions == (b"nearer",)
    assert "no picture of the name of" in rows["gr\u00fcn.txt"].image_problem


def test_two_caption_files_that_differ_in_case(tmp_path):
    put(tmp_path, {"1.png": png(1), "1.txt": "one", "1.TXT": "other", "2.png": png(2)})
    put(tmp_path, {"2.txt": "two"})
    first, second = rows_of(tmp_path)
    assert (first.captions, second.captions) == ((None,), (b"two",))
    assert "two captions for one picture, 1.TXT and 1.txt" in first.image_problem


def test_columns_of_one_name_are_told_apart(tmp_path):
    put(tmp_path, {**PICTURES, "x.csv": "image,text,text\nplain.png,one,other\n"})
    assert "caption column: text (column 2), text (column 3)" in error_of(tmp_path)
    row, *_ = rows_of(tmp_path, caption_column="text (column 3)")
    assert (row.image, row.captions) == (png(0), (b"other",))
    put(tmp_path, {"x.csv": "image,text,n,n\nplain.png,one,1,2\n"})
    assert rows_of(tmp_path)[0].captions == (b"one",)


def test_keys_that_are_there_twice_are_a_reject_or_an_error(tmp_path):
    twice = '{"image": "plain.png", "text": "one", "text": "other"}'
    put(tmp_path, {**PICTURES, "x.jsonl": twice + "\n" + jsonl(records("image", "text")[1:])})
    first, second, *_ = rows_of(tmp_path)
    assert first.image_problem == "the record is no JSON: the key 'text' is there twice"
    assert (first.image, second.captions) == (None, (TEXTS[1].encode(),))
    put(tmp_path, {"x.jsonl": "", "y.json": '{"plain.png": "one", "plain.png": "other"}'})
    assert "the key 'plain.png' is there twice" in error_of(tmp_path)


@pytest.mark.parametrize(
    ("column", "values", "suffix"),
    [
        ("label", ["0", "1", "0", "1"], ".csv"),
        ("md5", ["a1", "b2", "c3", "d4"], ".csv"),
        ("md5", ["a1", "b2", "c3", "d4"], ".parquet"),
        ("filepath", ["img", "img", "img", "img"], ".csv"),
    ],
)
def test_labels_and_ids_are_captions_only_if_asked_for(tmp_path, column, values, suffix):
    columns = {"file_name": [*PICTURES], column: values}
    as_csv = csv_text([[*columns], *zip(*columns.values(), strict=True)])
    put(tmp_path, {**PICTURES, f"x{suffix}": as_csv if suffix == ".csv" else table_bytes(columns)})
    assert f"--caption-column {column} uses it anyway" in error_of(tmp_path)
    asked = pairs_of(tmp_path, caption_column=column)
    assert asked == [(png(i), [value]) for i, value in enumerate(values)]
    assert pairs_of(tmp_path, caption="x") == [(png(i), ["x"]) for i in range(COUNT)]


def test_numbers_in_a_column_of_captions_are_captions(tmp_path):
    put(tmp_path, {"7.png": png(7), "x.csv": "image,caption\n7.png,7\n"})
    assert pairs_of(tmp_path) == [(png(7), ["7"])]


def test_karpathys_coco_has_a_folder_that_is_no_caption(tmp_path):
    record = {"filepath": "val2014", "filename": "1.png", "split": "train", "cocoid": 1}
    images = [{**record, "sentences": [{"tokens": ["a"], "raw": "A dog.", "imgid": 1}]}]
    put(tmp_path, {"val2014/1.png": png(1), "dataset_coco.json": json.dumps({"images": images})})
    assert pairs_of(tmp_path) == [(png(1), ["A dog."])]


@pytest.mark.parametrize("nothing", ["nan", "NaN", "None", "NULL"])
def test_what_pandas_writes_for_nothing_is_no_caption(tmp_path, nothing):
    put(tmp_path, {"1.png": png(1), "2.png": png(2)})
    put(tmp_path, {"x.csv": f"image,text\n1.png,{nothing}\n2.png,nan bread\n"})
    assert [row.captions for row in rows_of(tmp_path)] == [(None,), (b"nan bread",)]


@pytest.mark.parametrize(
    "document",
    [
        {"image": [*PICTURES], "text": TEXTS},
        {
            "columns": ["image", "text"],
            "index": [*range(COUNT)],
            "data": [list(pair) for pair in zip(PICTURES, TEXTS, strict=True)],
        },
        [list(pair) for pair in zip(PICTURES, TEXTS, strict=True)],
        {"images": records("image", "text"), "kinds": [{"id": 1, "name": "dog"}]},
    ],
    ids=["columns", "split", "pairs", "one of two lists"],
)
def test_tables_in_json_of_other_shapes(tmp_path, document):
    put(tmp_path, {**PICTURES, "x.json": json.dumps(document)})
    assert pairs_of(tmp_path) == [(png(i), [text]) for i, text in enumerate(TEXTS)]


def test_columns_of_addresses(tmp_path):
    put(tmp_path, {"x.json": json.dumps({"image_urls": ["http://x/1.jpg"], "captions": ["one"]})})
    assert "img2dataset --url_list x.json" in error_of(tmp_path)
    put(tmp_path / "b", {"1.png": png(1), "x.json": json.dumps({"image": ["1.png"], "text": []})})
    assert "has pictures but no captions" in error_of(tmp_path / "b")


def test_commas_in_what_is_called_tsv(tmp_path):
    put(tmp_path, {"1.png": png(1), "x.tsv": 'image,text\n1.png,"one, two"\n'})
    assert pairs_of(tmp_path) == [(png(1), ["one, two"])]


def test_tables_without_captions_beside_those_with(tmp_path):
    flickr = "".join(f"{p}#0\t{t}\n" for p, t in zip(PICTURES, TEXTS, strict=True))
    scores = "".join(f"{p}\tplain.png#2\t1\t1\t1\n" for p in PICTURES)
    texts = {"Flickr8k.token.txt": flickr, "Flickr8k.lemma.token.txt": flickr.lower() + "x"}
    put(tmp_path, {**moved("Images", PICTURES), **texts, "ExpertAnnotations.txt": scores})
    assert pairs_of(tmp_path) == [(png(i), [text]) for i, text in enumerate(TEXTS)]
    assert open_dataset(DatasetSpec(str(tmp_path))).paths[-1] == "Images/plain.png"


def test_documents_that_are_not_alike(tmp_path):
    put(tmp_path, {**PICTURES, "a.json": json.dumps(records("image", "caption"))})
    put(tmp_path, {"b.json": json.dumps(records("image", "blip"))})
    message = error_of(tmp_path, read=True)
    assert "b.json has no column 'caption'" in message
    assert [text for _, [text] in pairs_of(tmp_path, caption_column="blip")] == TEXTS


def test_sd_scripts_before_and_after_their_documents_are_merged(tmp_path):
    both = {
        f"meta_{key}.json": json.dumps(
            {name: {key: text} for name, text in zip(NAMES, said, strict=True)}
        )
        for key, said in (("caption", TEXTS), ("tags", ["a, b"] * COUNT))
    }
    put(tmp_path, {**PICTURES, **both})
    assert "--caption-column caption reads only tables" in error_of(tmp_path, read=True)
    assert [text for _, [text] in pairs_of(tmp_path, caption_column="tags")] == ["a, b"] * COUNT


def test_prompts_inside_of_json_beside_pictures(tmp_path):
    said = {"username": "me", "baseModel": "SD 1.5", "meta": {"prompt": "one", "sampler": "Euler"}}
    put(tmp_path, {"1.png": png(1), "1.json": json.dumps(said)})
    assert pairs_of(tmp_path) == [(png(1), ["one"])]
    put(tmp_path, {"1.json": json.dumps({**said, "more": {"caption": "two"}})})
    assert "caption column: username, baseModel" in error_of(tmp_path)


def test_pictures_that_cannot_be_read_are_said(tmp_path):
    put(tmp_path, {"1.png": png(1), "1.txt": "one", "2.psd": b"8BPS", "3.rar": b"Rar!"})
    assert open_dataset(DatasetSpec(str(tmp_path))).taken_for.endswith(
        "; unsupported files, skipped: 1 .psd, 1 .rar"
    )
    put(tmp_path / "b", {"1.jxl": b"", "1.txt": "one"})
    assert "(1 .jxl cannot be read: save them as PNG or JPEG)" in error_of(tmp_path / "b")


@pytest.mark.parametrize("written", [json.dumps, str], ids=["json", "python"])
def test_lists_of_captions_that_were_made_text(tmp_path, written):
    """As in Flickr30k's table on the hub."""
    rows = [("raw", "sentids", "filename"), (written(["one, two", 'a "dog"']), "[0, 1]", "1.png")]
    put(tmp_path, {"1.png": png(1), "2.png": png(2)})
    put(tmp_path, {"annotations.csv": csv_text([*rows, ("[not a list]", "[2]", "2.png")])})
    assert pairs_of(tmp_path) == [(png(1), ["one, two", 'a "dog"']), (png(2), ["[not a list]"])]


@pytest.mark.parametrize(
    "value", ["2024-01-31 10:00:00", "2024-01-31T10:00:00Z", "False", "texts/1.txt", "-1.5", "[1]"]
)
def test_values_without_words_are_no_captions(tmp_path, value):
    put(tmp_path, {"1.png": png(1), "x.csv": csv_text([("image", "what"), ("1.png", value)])})
    assert "--caption-column what uses it anyway" in error_of(tmp_path)
    put(tmp_path, {"x.csv": csv_text([("image", "text"), ("1.png", value)])})
    if value.endswith(".txt"):
        assert "--caption-column text uses it anyway" in error_of(tmp_path)
    else:
        assert pairs_of(tmp_path) == [(png(1), [value])]


def test_pictures_in_base64_without_a_header_or_of_any_size(tmp_path):
    large = png(1, (300, 300))
    said = [(base64.b64encode(large).decode(), "one"), (encoded(2), "two")]
    put(tmp_path, {"x.tsv": "".join(f"{image}\t{text}\n" for image, text in said)})
    assert pairs_of(tmp_path) == [(large, ["one"]), (png(2), ["two"])]


def test_json_of_samples_without_a_caption(tmp_path):
    for said in ({"url": "https://x/1.jpg"}, {"id": "a1"}):
        put_tar(tmp_path / "0", [("1.jpg", png(1)), ("1.json", json.dumps(said))])
        assert f"the keys of 0.tar/1.json are {next(iter(said))}" in error_of(tmp_path)
    twice = '{"caption": "one", "caption": "other"}'
    members = [("1.jpg", png(1)), ("1.json", twice), ("2.jpg", png(2))]
    put_tar(tmp_path / "0", [*members, ("2.json", '{"caption": "two"}')])
    first, second = rows_of(tmp_path)
    assert (first.image, second.captions) == (None, (b"two",))
    assert "the key 'caption' is there twice" in first.image_problem
    put(tmp_path / "b", {"1.png": png(1), "1.json": twice, "2.png": png(2)})
    put(tmp_path / "b", {"2.json": '{"caption": "two"}'})
    first, second = rows_of(tmp_path / "b")
    assert (first.captions, second.captions) == ((None,), (b"two",))
    assert "1.json cannot be read as JSON: the key 'caption' is there twice" in first.image_problem


def test_links_in_a_tar_have_what_they_lead_to(tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        info = tarfile.TarInfo("s/1.png")
        info.size = len(png(1))
        archive.addfile(info, io.BytesIO(png(1)))
        for name, kind, target in (
            ("s/2.png", tarfile.LNKTYPE, "s/1.png"),
            ("s/3.png", tarfile.SYMTYPE, "1.png"),
            ("s/4.png", tarfile.SYMTYPE, "../../../1.png"),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            archive.addfile(info)
    rows = rows_of(tmp_path, captions_from="file_name")
    assert [(row.image, row.captions) for row in rows] == [
        (png(1), (text.encode(),)) for text in "123"
    ]


def test_a_table_beside_a_folder_of_captions_is_a_second_reading(tmp_path):
    put(tmp_path, {**moved("images", PICTURES), **moved("captions", files_with(".txt"))})
    put(tmp_path, {"x.json": json.dumps(records("image", "text", "images/", ["other"] * COUNT))})
    assert "--dataset-form table or --dataset-form caption-folders" in error_of(tmp_path)
    found = dict(pairs_of(tmp_path, form="caption-folders"))
    assert found == {png(i): [text] for i, text in enumerate(TEXTS)}
