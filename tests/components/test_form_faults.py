"""Every form with the faults that datasets have: a picture or a caption is missing, or is twice."""

import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from made_datasets import csv_text, error_of, jsonl, pairs_of, png, put, put_tar, rows_of

ONE, TWO, LEFT = png(1), png(2), png(3)
UNNAMED = "no record of a table names this picture"
NO_FILE = "no file '"


def packed(columns, write=pq.write_table):
    buffer = io.BytesIO()
    write(pa.table(columns), buffer)
    return buffer.getvalue()


def arrow(columns):
    buffer = io.BytesIO()
    table = pa.table(columns)
    with pa.ipc.new_stream(buffer, table.schema) as writer:
        writer.write_table(table)
    return buffer.getvalue()


# Each makes the files of samples: of each its name, its picture, if it is there, and its captions.


def beside(samples, folder="", texts=None, suffixes=(".txt", ".caption"), said=str):
    files = {f"{folder}{name}.png": image for name, image, _ in samples if image}
    for name, _, captions in samples:
        for suffix, caption in zip(suffixes, captions, strict=False):
            files[f"{folder if texts is None else texts}{name}{suffix}"] = said(caption)
    return files


def whole_names(samples):
    return beside(samples, suffixes=(".png.txt", ".txt"))


def json_beside(samples):
    files = beside([(name, image, []) for name, image, _ in samples])
    for name, _, captions in samples:
        if captions:
            said = captions if len(captions) > 1 else captions[0]
            files[f"{name}.json"] = json.dumps({"prompt": said})
    return files


def repeats(samples):
    return beside(samples, folder="10_a dog/")


def caption_folders(samples):
    return beside(samples, folder="images/", texts="captions/")


def records(samples, folder=""):
    """(name of the picture, caption) for every caption."""
    return [(f"{folder}{name}.png", text) for name, _, captions in samples for text in captions]


def table(name, columns, write, folder="img/", suffixed=True):
    def make(samples):
        pictures = beside([(name, image, []) for name, image, _ in samples], folder)
        rows = records(samples, folder)
        if not suffixed:
            rows = [(picture.removesuffix(".png"), text) for picture, text in rows]
        return {**pictures, name: write([dict(zip(columns, row, strict=True)) for row in rows])}

    return make


def as_csv(rows):
    return csv_text([list(rows[0]), *(list(row.values()) for row in rows)])


def as_bars(rows):
    lines = ["| ".join(rows[0]), *("| ".join(row.values()) for row in rows)]
    return "\n".join(lines)


def as_mapping(rows):
    return json.dumps({picture: {"caption": text} for picture, text in (r.values() for r in rows)})


def as_part(rows):
    others = {"se": 1, "c": 7.0, "st": 50, "sa": "k_lms"}
    return json.dumps({picture: {"p": text, **others} for picture, text in map(dict.values, rows)})


def label_studio(samples):
    tasks = [
        {
            "data": {"image": f"/data/upload/1/abcd1234-{name}.png"},
            "annotations": [{"result": [written_by_hand(text) for text in texts]}],
        }
        for name, _, texts in samples
    ]
    pictures = beside([(name, image, []) for name, image, _ in samples], "img/")
    return {**pictures, "project.json": json.dumps(tasks)}


def written_by_hand(text):
    return {"type": "textarea", "from_name": "caption", "value": {"text": [text]}}


def as_columns(rows):
    return packed({key: [row[key] for row in rows] for key in rows[0]})


def coco(samples):
    images = [{"id": i, "file_name": f"{name}.png"} for i, (name, _, _) in enumerate(samples)]
    said = [
        {"image_id": i, "caption": text}
        for i, (_, _, texts) in enumerate(samples)
        for text in texts
    ]
    pictures = beside([(name, image, []) for name, image, _ in samples], "train2017/")
    document = json.dumps({"images": images, "annotations": said})
    return {**pictures, "annotations/captions_train2017.json": document}


def embedded(write, path):
    def make(samples):
        rows = [
            ({"bytes": image, "path": f"{name}.png"}, text)
            for name, image, texts in samples
            for text in texts or [None]
        ]
        image = pa.array([row[0] for row in rows], pa.struct({"bytes": "binary", "path": "string"}))
        text = pa.array([row[1] for row in rows], pa.string())
        return {path: write({"image": image, "text": text})}

    return make


def members(samples):
    return list(beside(samples).items())


def webdataset(samples):
    return {"set.tar": members(samples)}


def keras_archive(samples):
    pictures = beside([(name, image, []) for name, image, _ in samples])
    rows = [{"image_path": p, "caption": text} for p, text in records(samples)]
    return {"set.tar": [("data.csv", as_csv(rows)), *pictures.items()]}


def fetched(packs):
    def make(samples):
        there = [sample for sample in samples if sample[1]]
        columns = {"key": [], "caption": [], "status": [], "error_message": []}
        for name, image, texts in samples:
            status = "success" if image else "failed_to_download"
            for key, value in zip(
                columns, (name, "".join(texts[:1]), status, None if image else "404"), strict=True
            ):
                columns[key].append(value)
        columns = {key: pa.array(values, pa.string()) for key, values in columns.items()}
        files = {"00000.parquet": packed(columns), "00000_stats.json": "{}"}
        if packs:
            return {**files, "00000.tar": members(there)}
        return {**files, **beside(there, "00000/")}

    return make


BOTH = "two captions for one picture"
COLUMNS = "several columns that could be the caption column: txt, caption"
LONE = "no caption file (*.txt"
# What makes it; what is said of a missing picture, and of a missing caption; whether two captions
# of one picture are two examples, or what is said of them.
FORMS = {
    "caption-files": (beside, "no picture of the name of", LONE, BOTH),
    "caption-files by whole names": (whole_names, "no picture of the name of", LONE, BOTH),
    "caption-files in JSON": (json_beside, "no picture of the name of", "no caption file", True),
    "caption-folders": (caption_folders, "no picture of the name of", LONE, BOTH),
    # The rest of the folder's name is the caption.
    "repeats": (repeats, "no picture of the name of", b"a dog", BOTH),
    "image-folder": (
        table("metadata.jsonl", ("file_name", "text"), jsonl, ""), NO_FILE, UNNAMED, True,
    ),
    "keras-folder": (
        table("data.csv", ("image_path", "caption"), as_csv), NO_FILE, UNNAMED, True,
    ),
    "table of JSON lines": (
        table("all.jsonl", ("image", "caption"), jsonl), NO_FILE, UNNAMED, True,
    ),
    "table in JSON": (table("all.json", ("path", "caption"), json.dumps), NO_FILE, UNNAMED, True),
    "table in CSV": (table("all.csv", ("image", "caption"), as_csv), NO_FILE, UNNAMED, True),
    "table with bars": (table("all.csv", ("image", "comment"), as_bars), NO_FILE, UNNAMED, True),
    "table of names without suffix": (
        table("all.csv", ("id", "caption"), as_csv, suffixed=False), NO_FILE, UNNAMED, True,
    ),
    "coco": (coco, NO_FILE, "", True),
    # A mapping has one of every name.
    "sd-scripts": (
        table("meta_cap.json", ("image", "caption"), as_mapping), NO_FILE, UNNAMED, None,
    ),
    "diffusion-db": (
        table("part-000001.json", ("image", "p"), as_part), NO_FILE, UNNAMED, None,
    ),
    "label-studio": (label_studio, NO_FILE, "", True),
    "parquet": (embedded(packed, "data/train.parquet"), NO_FILE, "", True),
    "parquet with paths": (
        table("all.parquet", ("image", "text"), as_columns), NO_FILE, None, True,
    ),
    "arrow": (embedded(arrow, "train/data.arrow"), NO_FILE, "", True),
    "img2dataset in folders": (fetched(False), "img2dataset says: failed_to_do", LONE, BOTH),
    "img2dataset in tars": (fetched(True), "img2dataset says: failed_to_do", "", COLUMNS),
    "webdataset": (webdataset, "has no picture, only txt", "", COLUMNS),
    "keras-archive": (keras_archive, NO_FILE, UNNAMED, True),
}  # fmt: skip


@pytest.fixture(params=FORMS)
def form(request):
    return request.param


def written(folder, form, samples):
    files = FORMS[form][0](samples)
    for path, content in files.items():
        if isinstance(content, list):
            put_tar(folder / path.removesuffix(".tar"), content)
        else:
            put(folder, {path: content})
    return folder


def test_a_form_without_faults_is_read(tmp_path, form):
    written(tmp_path, form, [("1", ONE, ["one"]), ("2", TWO, ["two"])])
    assert sorted(pairs_of(tmp_path)) == sorted([(ONE, ["one"]), (TWO, ["two"])])


@pytest.mark.parametrize("name", ["a space", "100%", "%20", "grün", "gru\u0308n", "日本", "a,b;c"])
def test_names_of_any_kind(tmp_path, form, name):
    if name == "a,b;c" and form == "table with bars":
        name = "a,b"
    written(tmp_path, form, [("1", ONE, ["one"]), (name, TWO, ["two"])])
    assert sorted(pairs_of(tmp_path)) == sorted([(ONE, ["one"]), (TWO, ["two"])])


def test_a_missing_picture_is_said(tmp_path, form):
    said = FORMS[form][1]
    written(tmp_path, form, [("1", ONE, ["one"]), ("gone", None, ["lost"]), ("2", TWO, ["two"])])
    rows = rows_of(tmp_path)
    [lost] = [row for row in rows if row.image is None]
    assert (lost.captions, said in lost.image_problem) == ((b"lost",), True), lost
    assert sorted(r.image for r in rows if r.image) == sorted([ONE, TWO])


def test_a_missing_caption_is_said(tmp_path, form):
    said = FORMS[form][2]
    written(tmp_path, form, [("1", ONE, ["one"]), ("left", LEFT, []), ("2", TWO, ["two"])])
    rows = rows_of(tmp_path)
    found = [row for row in rows if row.captions not in ((b"one",), (b"two",))]
    if said is None:
        # Pictures beside Parquet are not gone through.
        assert (found, len(rows)) == ([], 2)
        return
    [left] = found
    if isinstance(said, bytes):
        assert (left.image, left.captions) == (LEFT, (said,))
        return
    assert left.captions == (None,)
    assert said in left.image_problem
    assert left.image == (None if said == UNNAMED else LEFT)


def test_two_captions_for_one_picture(tmp_path, form):
    said = FORMS[form][3]
    if said is None:
        return
    written(tmp_path, form, [("1", ONE, ["one"]), ("2", TWO, ["two", "more"])])
    if said is True:
        rows = rows_of(tmp_path)
        found = [(row.image, text) for row in rows for text in row.captions]
        assert sorted(found) == sorted([(ONE, b"one"), (TWO, b"two"), (TWO, b"more")])
    elif form == "caption-files by whole names":
        one, two = rows_of(tmp_path)
        assert (one.captions, two.captions) == ((b"one",), (None,))
        assert f"{BOTH}, 2.txt and 2.png.txt" in two.image_problem
    else:
        assert said in error_of(tmp_path)
        read = rows_of(tmp_path, caption_column="caption")
        assert [row.captions for row in read if row.image == TWO] == [(b"more",)]
