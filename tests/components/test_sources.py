import gzip
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hub_server import HubServer
from made_datasets import (
    HUB_TYPE,
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

from components.caption_example_gen import sources
from components.caption_example_gen.sources import (
    DatasetError,
    DatasetSpec,
    check_dataset,
    dataset_fingerprint,
    image_table,
    measures_of,
    open_dataset,
    resolve_dataset,
    split_of,
)
from components.caption_example_gen.sources.forms import parquet, webdataset

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def parquet_folder(tmp_path):
    """Nine rows in two files, one of them in a sub-folder."""
    folder = tmp_path / "set"
    for name, start, stop in (("data/a.parquet", 0, 5), ("b.parquet", 5, 9)):
        images = embedded([png(i) for i in range(start, stop)])
        texts = pa.array([f"picture {i}" for i in range(start, stop)])
        put_parquet(folder / name, {"image": images, "text": texts}, row_group_size=2)
    return folder


def test_import_needs_no_tensorflow():
    code = (
        "import sys; import components.caption_example_gen.sources; "
        "print([m for m in ('tensorflow', 'tfx', 'apache_beam') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (result.returncode, result.stdout.strip()) == (0, "[]"), result.stderr


# Where a dataset is.


def test_local_path_becomes_absolute(tmp_path, monkeypatch):
    put(tmp_path, {"org/name/metadata.csv": ""})
    monkeypatch.chdir(tmp_path)
    for given in ("org/name", "./org/name/", f"file://{tmp_path}/org/name"):
        spec = DatasetSpec(given, split="test", caption_column="c")
        resolved = resolve_dataset(spec)
        assert resolved == DatasetSpec(f"{tmp_path}/org/name", split="test", caption_column="c")
        assert resolve_dataset(resolved) == resolved
        assert sources.revision_of(resolved) == ""


@pytest.mark.parametrize(
    ("given", "resolved"),
    [
        ("gs://bucket/set/", "gs://bucket/set"),
        ("memory://", "memory://"),
        ("hf://datasets/org/name@" + "0a" * 20, "hf://datasets/org/name@" + "0a" * 20),
    ],
)
def test_urls_stay(given, resolved):
    assert resolve_dataset(DatasetSpec(given)).dataset == resolved


def test_commit_of_a_hub_dataset():
    spec = DatasetSpec("hf://datasets/org/name@" + "0a" * 20)
    assert sources.revision_of(spec) == "0a" * 20


@pytest.mark.parametrize("given", ["", "/nowhere/at/all", "./nowhere", "a/b/c", "nowhere.tar"])
def test_nowhere(given, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DatasetError) as caught:
        resolve_dataset(DatasetSpec(given))
    if given:
        assert f"dataset {given!r} does not exist: give a folder or an archive" in str(caught.value)


def test_unknown_file_system():
    assert "is not a path or URL that can be opened" in error_of("nothing://somewhere")


def test_file_that_is_a_dataset_or_none(parquet_folder):
    assert len(rows_of(parquet_folder / "b.parquet")) == 4
    put(parquet_folder, {"b.xlsx": "x"})
    assert "is a file, but not one of .tar, " in error_of(parquet_folder / "b.xlsx")


def test_missing_remote_folder():
    assert "does not exist: give a folder" in error_of("memory://no/such/folder")


# What a dataset is.


def test_folder_of_nothing_known(tmp_path):
    put(tmp_path, {"1.mp4": b"", "2.mp4": b"", "x/notes": "", ".hidden/a.parquet": b""})
    message = error_of(tmp_path)
    assert "it has 2 .mp4, 1 notes" in message
    for known in ("*.parquet", "metadata.jsonl or metadata.csv", "data.csv", "*.tar.gz"):
        assert known in message
    (tmp_path / "empty").mkdir()
    assert "it has no files" in error_of(tmp_path / "empty")


def test_several_kinds(parquet_folder):
    put(parquet_folder, {"more/metadata.csv": "file_name,text\n1.png,one\n", "more/1.png": png(0)})
    message = error_of(parquet_folder)
    assert "can be read in several ways" in message
    assert "Parquet files (*.parquet)" in message
    assert "image folders (metadata.jsonl or metadata.csv)" in message
    assert "sub-folder" in message
    assert kind_of(parquet_folder / "more") == "image-folder"
    assert kind_of(parquet_folder, config="data") == "parquet"
    card = "---\nconfigs:\n- config_name: default\n  data_files: '*.parquet'\n---\n"
    put(parquet_folder, {"README.md": card})
    assert len(rows_of(parquet_folder)) == 4


# Parquet.


@pytest.mark.parametrize("peek", [False, True])
def test_parquet_rows(parquet_folder, peek):
    rows = rows_of(parquet_folder, peek=peek)
    assert [(row.file, row.number) for row in rows] == [
        *(("b.parquet", i) for i in range(4)),
        *(("data/a.parquet", i) for i in range(5)),
    ]
    order = [5, 6, 7, 8, 0, 1, 2, 3, 4]
    assert [row.image for row in rows] == [png(i) for i in order]
    assert [row.captions for row in rows] == [(f"picture {i}".encode(),) for i in order]


def test_parquet_unit_is_a_row_group(parquet_folder):
    source = open_dataset(DatasetSpec(str(parquet_folder)))
    units = list(source.units())
    assert [(u.file, u.start, u.first_row, u.num_rows) for u in units] == [
        ("b.parquet", 0, 0, 2),
        ("b.parquet", 1, 2, 2),
        ("data/a.parquet", 0, 0, 2),
        ("data/a.parquet", 1, 2, 2),
        ("data/a.parquet", 2, 4, 1),
    ]
    assert (source.kind, source.image_column, source.caption_column) == ("parquet", "image", "text")
    assert source.paths == ("b.parquet", "data/a.parquet")
    assert [row.number for row in source.read(units[3])] == [2, 3]
    sizes = [os.path.getsize(parquet_folder / path) for path in source.paths]
    assert source.image_bytes == sum(sizes)


def test_parquet_rows_are_read_in_batches(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet, "_BATCH_ROWS", 3)
    texts = [[f"{i}"] * (i % 3) for i in range(10)]
    put_parquet(tmp_path / "a.parquet", {"image": embedded([b"x"] * 10), "text": pa.array(texts)})
    rows = rows_of(tmp_path)
    assert [len(row.captions) for row in rows] == [1, 1, 2, 1, 1, 2, 1, 1, 2, 1]
    assert rows[3].captions == (None,)
    assert rows[8].captions == (b"8", b"8")


def test_columns_by_features_of_the_hub(tmp_path):
    images = [png(0), png(1)]
    put_parquet(
        tmp_path / "a.parquet",
        {
            "thumbnail": pa.array([b"no", b"picture"]),
            "photo": embedded(images),
            "id": pa.array(["1", "2"]),
            "said": pa.array([["a", "b"], ["c"]]),
        },
        features={
            "thumbnail": {"dtype": "binary", "_type": "Value"},
            "photo": {"_type": "Image"},
            "id": {"dtype": "string", "_type": "ClassLabel"},
            "said": {"feature": {"dtype": "string", "_type": "Value"}, "_type": "Sequence"},
        },
    )
    assert pairs_of(tmp_path) == [(images[0], ["a", "b"]), (images[1], ["c"])]


@pytest.mark.parametrize(
    "feature",
    [
        {"dtype": "string", "_type": "Value"},
        [{"dtype": "string", "_type": "Value"}],
        {"feature": {"dtype": "string", "_type": "Value"}, "_type": "List"},
    ],
)
def test_forms_of_text_features(tmp_path, feature):
    put_parquet(
        tmp_path / "a.parquet",
        {"image": embedded([png(0)]), "a": pa.array(["x"]), "b": pa.array(["y"])},
        features={"image": {"_type": "Image"}, "a": {"_type": "ClassLabel"}, "b": feature},
    )
    assert open_dataset(DatasetSpec(str(tmp_path))).caption_column == "b"


@pytest.mark.parametrize(
    ("names", "found"),
    [(["x"], "x"), (["x", "caption", "text"], "text"), (["caption", "x"], "caption")],
)
def test_caption_column_by_type_and_name(tmp_path, names, found):
    columns = {name: pa.array(["a"]) for name in names}
    put_parquet(
        tmp_path / "a.parquet", {**columns, "n": pa.array([1]), "photo": pa.array([png(0)])}
    )
    source = open_dataset(DatasetSpec(str(tmp_path)))
    assert (source.image_column, source.caption_column) == ("photo", found)


def test_columns_that_cannot_be_told(tmp_path):
    columns = {"a": embedded([png(0)]), "b": embedded([png(1)])}
    put_parquet(tmp_path / "a.parquet", {**columns, "c": pa.array(["c"]), "d": pa.array(["d"])})
    assert "could be the image column: a, b; choose one with --image-column" in error_of(tmp_path)
    message = error_of(tmp_path, image_column="b")
    assert "could be the caption column: c, d; choose one with --caption-column" in message
    assert pairs_of(tmp_path, image_column="b", caption_column="c") == [(png(1), ["c"])]


def test_columns_that_are_not_there(tmp_path):
    put_parquet(tmp_path / "a.parquet", {"image": embedded([png(0)]), "n": pa.array([1])})
    there = "the columns of a.parquet are image (struct of bytes, path), n (int64)"
    assert error_of(tmp_path).endswith(f"has no caption column: {there}")
    message = error_of(tmp_path, caption_column="said")
    assert f"has no caption column 'said': {there}" in message
    assert "--caption-column" in message
    assert "the caption column 'n'" in error_of(tmp_path, caption_column="n")
    assert "must hold text, or lists of text: " + there in error_of(tmp_path, caption_column="n")
    assert "the image column 'n'" in error_of(tmp_path, image_column="n", caption_column="n")


def test_second_file_without_the_column(parquet_folder):
    put_parquet(parquet_folder / "c.parquet", {"image": embedded([png(0)])})
    source = open_dataset(DatasetSpec(str(parquet_folder)))
    with pytest.raises(DatasetError, match=r"no caption column 'text': the columns of c\.parquet"):
        list(source.units())


@pytest.mark.parametrize(
    "kind",
    [
        pa.binary(),
        pa.large_binary(),
        pa.large_string(),
        pa.dictionary(pa.int32(), pa.string()),
        pa.list_(pa.string()),
        pa.list_(pa.string(), 1),
        pa.large_list(pa.large_string()),
    ],
)
def test_types_of_captions(tmp_path, kind):
    texts = ["grün", "blue"]
    if "list" in str(kind):
        column = pa.array([[text] for text in texts], kind)
    elif pa.types.is_dictionary(kind):
        column = pa.array(texts).dictionary_encode()
    else:
        column = pa.array([text.encode() for text in texts]).cast(kind)
    images = pa.array([png(0), png(1)], pa.large_binary())
    put_parquet(tmp_path / "a.parquet", {"image": images, "said": column})
    named = {"image_column": "image", "caption_column": "said"}
    assert pairs_of(tmp_path, **named) == [(png(0), ["grün"]), (png(1), ["blue"])]


def test_parquet_captions_that_are_no_utf8(tmp_path):
    column = pa.array([b"\xff\xfe", None])
    put_parquet(tmp_path / "a.parquet", {"image": embedded([png(0), png(1)]), "text": column})
    rows = rows_of(tmp_path, image_column="image", caption_column="text")
    assert [row.captions for row in rows] == [(b"\xff\xfe",), (None,)]


def test_parquet_that_names_pictures(tmp_path):
    put(tmp_path, {"set/in/1.png": png(1), "out.png": png(2), "set/.in/3.png": png(3)})
    put(tmp_path, {"set/notes.txt": "x", "set/empty.png": b""})
    given = [
        {"bytes": None, "path": "in/1.png"},
        {"bytes": b"", "path": "in\\1.png"},
        {"bytes": png(4), "path": "no/such.png"},
        {"bytes": None, "path": "../out.png"},
        {"bytes": None, "path": str(tmp_path / "out.png")},
        {"bytes": None, "path": ".in/3.png"},
        {"bytes": None, "path": "notes.txt"},
        {"bytes": None, "path": "http://x/1.png"},
        {"bytes": None, "path": "no/such.png"},
        {"bytes": None, "path": "nul\0.png"},
        {"bytes": None, "path": "empty.png"},
        {"bytes": None, "path": None},
        None,
    ]
    columns = {"image": pa.array(given, HUB_TYPE), "text": pa.array(["x"] * len(given))}
    put_parquet(tmp_path / "set" / "a.parquet", columns)
    rows = rows_of(tmp_path / "set")
    assert [row.image for row in rows[:3]] == [png(1), png(1), png(4)]
    assert [row.image for row in rows[3:]] == [None] * 10
    problems = [row.image_problem for row in rows]
    assert all("leads out of the dataset's folder" in problem for problem in problems[3:6])
    assert problems[6] == "'notes.txt' is not called like a picture"
    assert "is a URL" in problems[7]
    assert problems[8:] == ["no file 'no/such.png'", "no file 'nul\\x00.png'", "", "", ""]
    assert open_dataset(DatasetSpec(str(tmp_path / "set"))).paths == (
        "a.parquet",
        "empty.png",
        "in/1.png",
    )


def test_parquet_that_is_none(tmp_path):
    put(tmp_path, {"x.parquet": b"no parquet at all"})
    assert f"x.parquet in dataset '{tmp_path}' cannot be read: " in error_of(tmp_path)


def test_parquet_that_is_cut_off(parquet_folder):
    content = (parquet_folder / "b.parquet").read_bytes()
    put(parquet_folder, {"b.parquet": content[: len(content) // 2]})
    assert "b.parquet in dataset" in error_of(parquet_folder)


def test_parquet_that_is_damaged_inside(tmp_path):
    columns = {"image": embedded([png(i) for i in range(9)]), "text": pa.array(["x"] * 9)}
    put_parquet(tmp_path / "a.parquet", columns, row_group_size=4, use_dictionary=False)
    group = pq.read_metadata(tmp_path / "a.parquet").row_group(1)
    content = bytearray((tmp_path / "a.parquet").read_bytes())
    place = group.column(0).data_page_offset
    content[place : place + 20] = b"\xff" * 20
    put(tmp_path, {"a.parquet": bytes(content)})
    message = error_of(tmp_path, read=True)
    assert f"a.parquet in dataset '{tmp_path}' cannot be read after 4 rows: " in message


def test_parquet_without_rows(tmp_path):
    columns = {"image": embedded([]), "text": pa.array([], pa.string())}
    put_parquet(tmp_path / "a.parquet", columns)
    assert "has no rows" in error_of(tmp_path, read=True)


def test_splits_of_parquet(tmp_path):
    for name, number in (("train-0", 0), ("train-1", 1), ("test-0", 2)):
        columns = {"image": embedded([png(number)]), "text": pa.array([name])}
        put_parquet(tmp_path / f"{name}.parquet", columns)
    source = open_dataset(DatasetSpec(str(tmp_path)))
    assert source.paths == ("train-0.parquet", "train-1.parquet")
    assert source.left_out == ("test-0.parquet",)
    assert [t for _, [t] in pairs_of(tmp_path, split="test")] == ["test-0"]
    assert len(rows_of(tmp_path, split="all")) == 3
    assert "'validation'" in error_of(tmp_path, split="validation")
    prints = {dataset_fingerprint(DatasetSpec(str(tmp_path), split=s)) for s in ("train", "test")}
    assert len(prints) == 2


# Image folders.


@pytest.mark.parametrize("unit_rows", [256, 2])
@pytest.mark.parametrize("form", ["jsonl", "csv", "csv with bom", "csv with unix lines"])
def test_image_folder(tmp_path, monkeypatch, form, unit_rows):
    monkeypatch.setattr(image_table, "_UNIT_ROWS", unit_rows)
    texts = ["plain", 'with "quotes", and a comma', "two\nlines\r\nand three", "grün 🐉", "last"]
    put(tmp_path, {f"deep/{i}.png": png(i) for i in range(5)})
    names = [f"deep/{i}.png" for i in range(5)]
    if form == "jsonl":
        records = [{"file_name": n, "text": t} for n, t in zip(names, texts, strict=True)]
        put(tmp_path, {"metadata.jsonl": jsonl(records[:2]) + "\n  \n" + jsonl(records[2:])})
    else:
        newline = "\n" if "unix" in form else "\r\n"
        table = csv_text([("file_name", "text"), *zip(names, texts, strict=True)], newline)
        bom = b"\xef\xbb\xbf" if "bom" in form else b""
        put(tmp_path, {"metadata.csv": bom + table.encode()})
    assert pairs_of(tmp_path) == [(png(i), [text]) for i, text in enumerate(texts)]
    rows = rows_of(tmp_path)
    assert [row.number for row in rows] == [0, 1, 2, 3, 4]
    source = open_dataset(DatasetSpec(str(tmp_path)))
    assert (source.kind, source.image_column) == ("image-folder", "file_name")
    units = list(source.units())
    assert [unit.num_rows for unit in units] == ([5] if unit_rows == 256 else [2, 2, 1])
    assert [unit.first_row for unit in units] == ([0] if unit_rows == 256 else [0, 2, 4])
    # Every unit can be read without those before it.
    assert [row for unit in reversed(units) for row in reversed(list(source.read(unit)))] == rows[
        ::-1
    ]


def test_tables_in_sub_folders(tmp_path):
    put(tmp_path, {f"{folder}/{folder}.png": png(n) for n, folder in enumerate("ab")})
    put(tmp_path, {"a/metadata.jsonl": jsonl([{"file_name": "a.png", "text": "an a"}])})
    put(tmp_path, {"b/metadata.csv": "file_name,text\n../b/b.png,a b\n"})
    assert pairs_of(tmp_path) == [(png(0), ["an a"]), (png(1), ["a b"])]


def test_several_captions(tmp_path):
    put(tmp_path, {"1.png": png(1), "2.png": png(2)})
    records = [
        {"file_name": "1.png", "text": ["a", "b"]},
        {"file_name": "1.png", "text": ["c"]},
        {"file_name": "2.png", "text": []},
    ]
    put(tmp_path, {"metadata.jsonl": jsonl(records)})
    rows = rows_of(tmp_path)
    assert [row.captions for row in rows] == [(b"a", b"b"), (b"c",), (None,)]
    assert [row.image for row in rows] == [png(1), png(1), png(2)]


def test_half_of_a_surrogate_pair(tmp_path):
    put(tmp_path, {"1.png": png(1), "metadata.jsonl": r'{"file_name": "1.png", "text": "\ud83d"}'})
    [row] = rows_of(tmp_path)
    with pytest.raises(UnicodeDecodeError):
        row.captions[0].decode()


def test_pictures_that_no_record_names(tmp_path):
    put(tmp_path, {f"{i}.png": png(i) for i in range(3)})
    put(tmp_path, {"deep/x.jpg": b"x", "metadata.csv": "file_name,text\n1.png,one\n"})
    named, *rest = rows_of(tmp_path)
    assert (named.file, named.image, named.captions) == ("metadata.csv", png(1), (b"one",))
    assert [(row.file, row.number, row.captions) for row in rest] == [
        ("0.png", 0, (None,)),
        ("2.png", 0, (None,)),
        ("deep/x.jpg", 0, (None,)),
    ]
    assert {row.image_problem for row in rest} == {"no record of a table names this picture"}


def test_broken_records_are_rows(tmp_path):
    put(tmp_path, {"set/1.png": png(1), "out.png": png(2), "set/.x.png": png(3)})
    lines = [
        '{"file_name": "1.png", "text": "fine"}',
        '{"file_name": "1.png", "text": ',
        "[1, 2]",
        '{"text": "no name"}',
        '{"file_name": 5, "text": "number"}',
        '{"file_name": "../out.png", "text": "outside"}',
        '{"file_name": ".x.png", "text": "hidden"}',
        '{"file_name": "3.png", "text": "missing"}',
        '{"file_name": "1.png", "text": {"a": 1}}',
        '{"file_name": "1.png"}',
        "[" * 100_000,
    ]
    put(tmp_path, {"set/metadata.jsonl": "\n".join(lines)})
    rows = rows_of(tmp_path / "set")
    assert [row.number for row in rows] == list(range(11))
    assert [row.image is None for row in rows] == [False, *[True] * 8, False, True]
    assert rows[1].image_problem.startswith("the record is no JSON: ")
    assert rows[1].captions == (lines[1].encode(),)
    assert rows[2].image_problem == "the record is no JSON object"
    assert rows[3].image_problem == "the record names no picture in 'file_name'"
    assert rows[3].captions == (b"no name",)
    assert rows[4].image_problem == "no file '5'"
    assert "leads out" in rows[5].image_problem
    assert "hidden" in rows[6].image_problem
    assert rows[7].image_problem == "no file '3.png'"
    assert rows[8].image_problem == 'the caption is no text: {"a": 1}'
    assert rows[9].captions == (None,)
    assert rows[10].image_problem.startswith("the record is no JSON: ")


def test_broken_csv_records_are_rows(tmp_path):
    put(tmp_path, {"1.png": png(1), "2.png": png(2)})
    lines = [
        "file_name,text",
        "1.png,one",
        "1.png,two, three",
        "1.png,four,,",
        "1.png",
        '1.png,"five" six',
        '1.png,a "quoted" word',
        "2.png,nul\0",
        "2.png,last",
        '2.png,"never closed',
    ]
    put(tmp_path, {"metadata.csv": "\n".join(lines) + "\n"})
    rows = rows_of(tmp_path)
    assert [row.number for row in rows] == list(range(9))
    assert [row.image is None for row in rows] == [0, 1, 0, 0, 1, 0, 1, 0, 1]
    assert "3 fields, the columns are 2" in rows[1].image_problem
    assert rows[1].captions == (b"1.png,two, three",)
    assert rows[2].captions == (b"four",)
    assert rows[3].captions == (None,)
    assert rows[4].image_problem.startswith("the record is no CSV: ")
    assert rows[5].captions == (b'a "quoted" word',)
    assert rows[7].captions == (b"last",)
    assert rows[8].captions == (b'2.png,"never closed',)


def test_columns_of_tables(tmp_path):
    record = {"file_name": "1.png", "said": "a", "source": "b", "width": 3}
    put(tmp_path, {"1.png": png(1), "metadata.jsonl": jsonl([record])})
    message = error_of(tmp_path)
    assert "could be the caption column: said, source; choose one" in message
    assert pairs_of(tmp_path, caption_column="said") == [(png(1), ["a"])]
    assert pairs_of(tmp_path, image_column="image", caption_column="said") == [(png(1), ["a"])]
    message = error_of(tmp_path, caption_column="text")
    assert "no caption column 'text'" in message
    assert "the columns of metadata.jsonl are file_name, said, source, width" in message
    assert "no image column 'photo'" in error_of(tmp_path, image_column="photo")


def test_hub_name_of_a_picture_column(tmp_path):
    records = [{"photo_file_name": "1.png", "text": "a"}]
    put(tmp_path, {"1.png": png(1), "metadata.jsonl": jsonl(records)})
    assert pairs_of(tmp_path) == [(png(1), ["a"])]
    assert pairs_of(tmp_path, image_column="photo") == [(png(1), ["a"])]


def test_tables_without_records(tmp_path):
    put(tmp_path, {"1.png": png(1), "metadata.csv": "file_name,text\n"})
    assert "has no record that can be read in metadata.csv" in error_of(tmp_path)
    put(tmp_path, {"metadata.csv": ""})
    assert "metadata.csv in dataset" in error_of(tmp_path)
    (tmp_path / "metadata.csv").unlink()
    put(tmp_path, {"metadata.jsonl": "{\n{\n"})
    assert "the record is no JSON" in error_of(tmp_path)


def test_second_table_without_the_column(tmp_path):
    put(tmp_path, {"a/metadata.csv": "file_name,text\n1.png,a\n", "a/1.png": png(1)})
    put(tmp_path, {"b/metadata.csv": "file_name,said\n1.png,b\n", "b/1.png": png(2)})
    assert "no caption column 'text': the columns of b/metadata.csv" in error_of(
        tmp_path, read=True
    )


@pytest.mark.parametrize("table_place", ["", "train/"])
def test_splits_of_an_image_folder(tmp_path, table_place):
    # The names of pictures say nothing: this one is a dog in training.
    put(tmp_path, {"train/test_1.png": png(1), "train/2.png": png(2), "test/3.png": png(3)})
    if table_place:
        tables = {
            "train/metadata.csv": "file_name,text\ntest_1.png,one\n",
            "test/metadata.csv": "file_name,text\n3.png,three\n",
        }
    else:
        tables = {"metadata.csv": "file_name,text\ntest/3.png,three\ntrain/test_1.png,one\n"}
    put(tmp_path, tables)
    one, unnamed = rows_of(tmp_path)
    assert (one.image, one.captions) == (png(1), (b"one",))
    assert one.number == (0 if table_place else 1)
    assert unnamed.file == "train/2.png"
    assert pairs_of(tmp_path, split="test") == [(png(3), ["three"])]
    assert len(rows_of(tmp_path, split="all")) == 3
    assert "test/3.png" in open_dataset(DatasetSpec(str(tmp_path))).left_out


def test_picture_names_that_are_no_utf8(tmp_path):
    name = b"gr\xfcn.png"
    with open(os.path.join(os.fsencode(tmp_path), name), "wb") as f:
        f.write(png(1))
    # As Python's json writes what os.listdir gives.
    record = {"file_name": os.fsdecode(name), "text": "green"}
    put(tmp_path, {"metadata.jsonl": json.dumps(record)})
    assert pairs_of(tmp_path) == [(png(1), ["green"])]
    assert dataset_fingerprint(DatasetSpec(str(tmp_path)))
    put(tmp_path, {"metadata.jsonl": jsonl([{"file_name": "2.png", "text": "other"}])})
    assert [row.file for row in rows_of(tmp_path)] == [
        "metadata.jsonl",
        "gr\N{REPLACEMENT CHARACTER}n.png",
    ]


def test_links_are_followed_and_go_round_in_circles(tmp_path):
    put(tmp_path, {"elsewhere/1.png": png(1), "set/metadata.csv": "file_name,text\nin/1.png,a\n"})
    (tmp_path / "set" / "in").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "set")
    (tmp_path / "set" / "gone.png").symlink_to(tmp_path / "nothing")
    assert pairs_of(tmp_path / "set") == [(png(1), ["a"])]
    (tmp_path / "set" / "metadata.jsonl").symlink_to(tmp_path / "nothing")
    assert "metadata.jsonl in dataset" in error_of(tmp_path / "set")


# The Keras example.

KERAS_CSV = "image_path,caption\nb.png,a bee\na.png,an ant\nc.png,a cat\n"


def test_keras_folder(tmp_path):
    put(tmp_path, {f"sub/{name}.png": png(n) for n, name in enumerate("abcd")})
    put(tmp_path, {"sub/data.csv": KERAS_CSV})
    *named, unnamed = rows_of(tmp_path)
    assert [row.image for row in named] == [png(1), png(0), png(2)]
    assert [row.captions for row in named] == [(b"a bee",), (b"an ant",), (b"a cat",)]
    assert unnamed.file == "sub/d.png"
    source = open_dataset(DatasetSpec(str(tmp_path)))
    assert (source.kind, source.image_column) == ("keras-folder", "image_path")
    assert source.caption_column == "caption"


@pytest.mark.parametrize("lead", ["archive/", "/content/archive/", "./"])
def test_keras_names_with_a_prefix(tmp_path, lead):
    put(tmp_path, {"images/1.png": png(1), "images/2.png": png(2), "3.png": png(3)})
    table = f"image_path,caption\n{lead}images/1.png,one\n{lead}images/2.png,two\n{lead}x.png,x\n"
    put(tmp_path, {"data.csv": table})
    rows = rows_of(tmp_path)
    assert [row.image for row in rows[:2]] == [png(1), png(2)]
    assert rows[2].image is None


def test_keras_names_with_the_archives_folder(tmp_path):
    put(tmp_path, {"ds/1.png": png(1), "ds/data.csv": "image_path,caption\nds/1.png,one\n"})
    assert pairs_of(tmp_path) == [(png(1), ["one"])]


def test_keras_prefix_is_not_guessed(tmp_path):
    # If x/1.png could be 1.png, then a missing picture would get the caption of another.
    put(tmp_path, {"1.png": png(1), "x/2.png": png(2)})
    put(tmp_path, {"data.csv": "image_path,caption\nx/1.png,one\nx/2.png,two\n"})
    assert [row.image for row in rows_of(tmp_path)[:2]] == [None, png(2)]
    put(tmp_path, {"data.csv": "image_path,caption\na/b/1.png,one\n", "b/1.png": png(3)})
    assert rows_of(tmp_path)[0].image_problem == "no file 'a/b/1.png'"


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz", ".tgz", ".tar.bz2", ".txz"])
@pytest.mark.parametrize("table_first", [True, False])
def test_keras_archive(tmp_path, suffix, table_first):
    pictures = [(f"ds/{name}.png", png(n)) for n, name in enumerate("abcd")]
    table = [("ds/data.csv", KERAS_CSV + "e.png,no elk\n")]
    members = table + pictures if table_first else pictures + table
    members += [("ds/._a.png", b"a fork"), ("ds/notes.txt.bak", b"")]
    path = put_tar(tmp_path / "set", members, suffix)
    for dataset in (tmp_path, path):
        assert kind_of(dataset) == "keras-archive"
        rows = {(row.file, row.number): row for row in rows_of(dataset)}
        assert [rows[path.name, i].image for i in range(4)] == [png(1), png(0), png(2), None]
        captions = [rows[path.name, i].captions for i in range(4)]
        assert captions == [(b"a bee",), (b"an ant",), (b"a cat",), (b"no elk",)]
        assert rows[path.name, 3].image_problem == "no file 'e.png'"
        unnamed = rows[f"{path.name}/ds/d.png", 0]
        assert (unnamed.image, unnamed.captions) == (None, (None,))
        assert len(rows) == 5
    source = open_dataset(DatasetSpec(str(path)))
    assert [(u.file, u.num_rows) for u in source.units()] == [(path.name, None)]
    assert (source.image_column, source.caption_column) == ("image_path", "caption")


def test_keras_archive_with_many_pictures_before_the_table(tmp_path):
    members = [(f"{i:03}.png", png(i)) for i in range(60)]
    table = csv_text([("image_path", "caption"), *((f"{i:03}.png", f"n {i}") for i in range(60))])
    put_tar(tmp_path / "set", [*members, ("data.csv", table)])
    assert pairs_of(tmp_path) == [(png(i), [f"n {i}"]) for i in range(60)]


def test_keras_archive_twice_the_same_picture(tmp_path):
    table = "image_path,caption\nx/1.png,one\nx/1.png,uno\n"
    put_tar(tmp_path / "set", [("1.png", png(1)), ("data.csv", table)])
    assert pairs_of(tmp_path) == [(png(1), ["one"]), (png(1), ["uno"])]


def test_keras_archives_with_and_without_a_table(tmp_path):
    put_tar(tmp_path / "a", [("data.csv", KERAS_CSV), ("a.png", png(0))])
    put_tar(tmp_path / "b", [("a.png", png(0))])
    message = error_of(tmp_path, read=True)
    assert "b.tar in dataset" in message
    assert "must have one data.csv, but has" in message


# WebDataset.


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz", ".tar.bz2", ".tar.xz"])
def test_webdataset(tmp_path, suffix):
    for shard in range(2):
        members = []
        for i in range(20):
            members += [
                (f"./x/{i:03}.png", png(100 * shard + i)),
                (f"./x/{i:03}.cls", "7"),
                (f"./x/{i:03}.txt", f"shard {shard}\nsample {i}\n"),
            ]
        put_tar(tmp_path / f"{shard:05}", members, suffix)
    rows = rows_of(tmp_path)
    assert [row.image for row in rows] == [png(100 * s + i) for s in range(2) for i in range(20)]
    assert rows[25].captions == (b"shard 1\nsample 5",)
    assert (rows[25].file, rows[25].number) == (f"00001{suffix}", 5)
    source = open_dataset(DatasetSpec(str(tmp_path)))
    assert (source.kind, source.image_column, source.caption_column) == ("webdataset", "", "txt")
    assert [(u.file, u.num_rows) for u in source.units()] == [
        (f"00000{suffix}", None),
        (f"00001{suffix}", None),
    ]
    assert rows_of(tmp_path / f"00001{suffix}") == rows[20:]


def test_webdataset_with_json(tmp_path):
    samples = [
        {"url": "x", "caption": "one", "width": 5},
        {"caption": ["two", "zwei"]},
        {"url": "y"},
        {"caption": 5},
    ]
    members = []
    for i, sample in enumerate(samples):
        members += [(f"{i}.json", json.dumps(sample)), (f"{i}.jpg", png(i))]
    members += [("4.json", "{"), ("4.jpg", png(4)), ("5.JPG", png(5)), ("6.webp", png(6))]
    members += [("6.json", b'{"caption": "gr\xfcn"}')]
    put_tar(tmp_path / "a", members)
    rows = rows_of(tmp_path)
    assert [row.captions for row in rows[:3]] == [(b"one",), (b"two", b"zwei"), (None,)]
    assert [row.image for row in rows[:3]] == [png(0), png(1), png(2)]
    assert (rows[3].image, rows[3].image_problem) == (None, "the caption is no text: 5")
    assert rows[4].image_problem.startswith("the sample's JSON cannot be read: ")
    assert rows[4].captions == (b"{",)
    assert (rows[5].image, rows[5].captions) == (png(5), (None,))
    assert (rows[6].image, rows[6].captions) == (png(6), (b"gr\xfcn",))
    assert rows_of(tmp_path, caption_column="url")[0].captions == (b"x",)


def test_webdataset_text_wins_over_json_unless_named(tmp_path):
    members = [("1.jpg", png(1)), ("1.json", '{"caption": "json"}'), ("1.txt", "text")]
    put_tar(tmp_path / "a", members)
    assert pairs_of(tmp_path) == [(png(1), ["text"])]
    assert pairs_of(tmp_path, caption_column="caption") == [(png(1), ["json"])]
    message = error_of(tmp_path, caption_column="said")
    assert "no caption column 'said'" in message
    assert "*.jpg, *.json, *.txt, the keys of the JSON caption" in message


def test_webdataset_samples_that_lack_something(tmp_path):
    members = [
        *(("1.jpg", png(1)), ("1.txt", "fine")),
        ("2.jpg", png(2)),
        ("3.txt", "alone"),
        *(("4.jpg", png(4)), ("4.png", png(5)), ("4.txt", "two")),
        *(("5.jpg", None), ("5.txt", "a link")),
        *(("6.jpg", b""), ("6.txt", "empty")),
        # The same name twice is two samples.
        *(("6.jpg", png(6)), ("6.txt", "again")),
        ("README.md", "read me"),
    ]
    put_tar(tmp_path / "a", members)
    rows = rows_of(tmp_path)
    assert [row.image for row in rows] == [png(1), png(2), *[None] * 4, png(6), None]
    assert [row.captions[0] for row in rows] == [
        *(b"fine", None, b"alone", b"two", b"a link", b"empty", b"again", None)
    ]
    assert rows[2].image_problem == "the sample '3' has no picture, only txt"
    assert "several pictures, jpg, png" in rows[3].image_problem
    assert "is a link" in rows[4].image_problem
    assert rows_of(tmp_path, image_column="png")[3].image == png(5)
    assert "no image column 'gif'" in error_of(tmp_path, image_column="gif")


def test_webdataset_without_pictures_or_captions(tmp_path):
    put_tar(tmp_path / "a", [("1.mp4", b"x"), ("1.txt", "film")])
    assert error_of(tmp_path).endswith("it has 1 .mp4, 1 .txt")
    put_tar(tmp_path / "a", [("1.jpg", png(1)), ("1.cls", "1")])
    assert "has pictures but no captions: it has 1 picture" in error_of(tmp_path)
    assert pairs_of(tmp_path, caption_column="cls") == [(png(1), ["1"])]
    put_tar(tmp_path / "a", [("1.jpg", png(1)), ("1.json", '{"a": "x", "b": "y"}')])
    assert "could be the caption column: a, b; choose one" in error_of(tmp_path)
    put_tar(tmp_path / "a", [])
    assert "has no files" in error_of(tmp_path)


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz", ".tar.bz2", ".tar.xz"])
@pytest.mark.parametrize("order", ["pictures first", "captions first", 1, 2, 3])
def test_webdataset_in_any_order_has_the_same_samples(tmp_path, suffix, order):
    members = []
    for i in range(40):
        members += [
            (f"x/{i:02}.png", png(i)),
            (f"x/{i:02}.json", "{}"),
            (f"x/{i:02}.txt", f"n {i}"),
        ]
    # One without a caption, one without a picture, one with two, and a file of another kind.
    members += [("a.png", png(50)), ("b.txt", "b"), ("x/00.jpg", png(51)), ("README.md", "read me")]
    put_tar(tmp_path / "sorted" / "a", sorted(members, key=lambda member: member[0]), suffix)
    if isinstance(order, int):
        shuffled = [members[i] for i in np.random.default_rng(order).permutation(len(members))]
    else:
        last = ".txt" if order == "pictures first" else ".png"
        shuffled = sorted(members, key=lambda member: member[0].endswith(last))
    put_tar(tmp_path / "shuffled" / "a", shuffled, suffix)

    def found(folder):
        rows = rows_of(folder)
        assert [row.number for row in rows] == list(range(len(rows)))
        key = {None: b"", **{png(i): b"%d" % i for i in range(52)}}
        return sorted((key[row.image], row.captions[0] or b"") for row in rows)

    expected = [(b"", b""), (b"", b"b"), (b"", b"n 0"), (b"50", b"")]
    expected += [(b"%d" % i, b"n %d" % i) for i in range(1, 40)]
    assert found(tmp_path / "sorted") == sorted(expected)
    assert found(tmp_path / "shuffled") == sorted(expected)
    # The same archive gives the same order.
    assert rows_of(tmp_path / "shuffled") == rows_of(tmp_path / "shuffled")


def test_webdataset_of_a_folder_that_tar_packed(tmp_path):
    put(tmp_path, {f"my set/{i}.png": png(i) for i in range(30)})
    put(tmp_path, {f"my set/{i}.txt": f"n {i}\n" for i in range(30)})
    for name in ("a.tar", "b.tar.gz"):
        subprocess.run(["tar", "caf", name, "my set"], cwd=tmp_path, check=True)
        found = pairs_of(tmp_path / name)
        assert sorted(found) == sorted((png(i), [f"n {i}"]) for i in range(30))


def test_webdataset_whose_files_lie_too_far_apart_to_be_waited_for(tmp_path, monkeypatch):
    pictures = {f"set/{i:02}.png": png(i, (40, 40)) for i in range(40)}
    captions = {f"set/{i:02}.txt": f"n {i}" for i in range(40)}
    monkeypatch.setattr(webdataset, "_WAITING_BYTES", sum(map(len, pictures.values())) // 2)
    path = put_tar(tmp_path / "a", [*pictures.items(), *captions.items()])
    source = open_dataset(DatasetSpec(str(path)))
    [unit] = source.units()
    for peek in (True, False):
        with pytest.raises(DatasetError) as caught:
            list(source.read(unit, peek=peek))
        message = str(caught.value)
        assert f"a.tar in dataset '{path}' has the files of a sample too far apart" in message
        assert "such as 'set/00' with only png so far" in message
        assert "more than 0 MB would have to stay in memory" in message
        command = message.partition("order of names: ")[2].removesuffix(" (GNU tar)")
    put(tmp_path, {**pictures, **captions})
    command = command.replace("NAME.tar", "b.tar").replace("FOLDER", "set").split()
    subprocess.run(command, cwd=tmp_path, check=True)
    assert pairs_of(tmp_path / "b.tar") == [(png(i, (40, 40)), [f"n {i}"]) for i in range(40)]


def test_webdataset_whose_pictures_lack_captions_makes_nobody_wait(tmp_path, monkeypatch):
    """What has nothing more to come is no reason for an error, however much of it there is."""
    members = [("000.png", png(0)), ("000.txt", "first")]
    members += [(f"{i:03}.png", png(i)) for i in range(1, 30)]
    members += [("030.png", png(30)), ("030.txt", "last")]
    monkeypatch.setattr(webdataset, "_WAITING_BYTES", 5 * len(png(0)))
    source = open_dataset(DatasetSpec(str(put_tar(tmp_path / "a", members))))
    [unit] = source.units()
    for peek in (True, False):
        rows = list(source.read(unit, peek=peek))
        assert [row.captions for row in rows] == [(b"first",), *[(None,)] * 29, (b"last",)]


def test_splits_of_webdataset(tmp_path):
    put_tar(tmp_path / "train-0", [("1.jpg", png(1)), ("1.txt", "one")])
    put_tar(tmp_path / "val-0", [("1.jpg", png(2)), ("1.txt", "two")])
    assert pairs_of(tmp_path) == [(png(1), ["one"])]
    assert pairs_of(tmp_path, split="validation") == [(png(2), ["two"])]


def shard(tmp_path, suffix):
    members = []
    for i in range(40):
        members += [(f"{i:02}.png", png(i)), (f"{i:02}.txt", f"picture {i}")]
    return put_tar(tmp_path / "a", members, suffix)


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz", ".tar.xz"])
def test_tar_that_is_cut_off(tmp_path, suffix):
    path = shard(tmp_path, suffix)
    content = path.read_bytes()
    # In the middle of a file, of a header, and between two files.
    for length in (len(content) * 3 // 4 // 512 * 512 - 100, 512 * 100 + 7, 512 * 120):
        put(tmp_path, {path.name: content[:length]})
        if length < len(content):
            message = error_of(tmp_path, read=True)
            assert f"{path.name} in dataset '{tmp_path}' cannot be read after " in message
            assert ".txt'" in message or ".png'" in message


def test_tar_that_is_damaged(tmp_path):
    path = shard(tmp_path, ".tar")
    content = path.read_bytes()
    put(tmp_path, {"a.tar": content[: 512 * 80] + b"x" * 512 + content[512 * 81 :]})
    assert "cannot be read after " in error_of(tmp_path, read=True)
    put(tmp_path, {"a.tar": content + content})
    assert "data follows its end" in error_of(tmp_path, read=True)
    put(tmp_path, {"a.tar": b"no tar at all, not even long enough"})
    assert "a.tar in dataset" in error_of(tmp_path)
    zipped = bytearray(gzip.compress(content))
    zipped[-6] ^= 1
    put(tmp_path, {"a.tar": bytes(zipped)})
    assert "CRC" in error_of(tmp_path, read=True)


def test_long_names_in_tars(tmp_path):
    folder = "long/" * 60
    put_tar(tmp_path / "a", [(f"{folder}ä.png", png(1)), (f"{folder}ä.txt", "deep")])
    assert pairs_of(tmp_path) == [(png(1), ["deep"])]


# Object stores.


@pytest.fixture
def memory():
    fs = fsspec.filesystem("memory")
    yield fs
    fs.rm("/", recursive=True)


def upload(fs, folder, target):
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            fs.pipe_file(f"{target}/{path.relative_to(folder)}", path.read_bytes())


def test_remote_parquet(parquet_folder, memory):
    upload(memory, parquet_folder, "/bucket/set")
    assert rows_of("memory://bucket/set") == rows_of(parquet_folder)
    local, remote = DatasetSpec(str(parquet_folder)), DatasetSpec("memory://bucket/set/")
    assert dataset_fingerprint(remote) == dataset_fingerprint(local)


def test_remote_image_folder_and_tar(tmp_path, memory):
    put(tmp_path, {"set/1.png": png(1), "set/.x/2.png": png(2), "set/3.png": png(3)})
    put(tmp_path, {"set/metadata.csv": 'file_name,text\n1.png,"one\ntwo"\n4.png,x\n'})
    upload(memory, tmp_path / "set", "/bucket/folder")
    assert rows_of("memory://bucket/folder") == rows_of(tmp_path / "set")
    path = put_tar(tmp_path / "a", [("1.png", png(1)), ("1.txt", "one")], ".tgz")
    memory.pipe_file("/bucket/tars/a.tgz", path.read_bytes())
    for dataset in ("memory://bucket/tars", "memory://bucket/tars/a.tgz"):
        assert pairs_of(dataset) == [(png(1), ["one"])]


class ListingWithChecksums(fsspec.get_filesystem_class("memory")):
    """What an object store says of its files; reading one of them is an error."""

    protocol = "checksummed"

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.replace("checksummed://", "memory://"))

    def find(self, path, *args, **kwargs):
        found = super().find(path, *args, **kwargs)
        for name, info in found.items():
            info["md5Hash"] = hashlib.md5(self.cat_file(name)).hexdigest()
            info["etag"] = os.urandom(4).hex()
        return found


def test_fingerprint_by_checksums_of_the_listing(memory):
    fsspec.register_implementation("checksummed", ListingWithChecksums, clobber=True)
    files = sources.FsspecFiles("checksummed://bucket")
    memory.pipe_file("/bucket/a.png", b"one")
    memory.pipe_file("/bucket/b.png", b"two")
    before = files.fingerprint(["a.png", "b.png"])
    memory.pipe_file("/bucket/b.png", b"six")
    # The listing is read once; were the file itself read, this would be another fingerprint.
    assert files.fingerprint(["a.png", "b.png"]) == before
    again = sources.FsspecFiles("checksummed://bucket")
    assert again.fingerprint(["a.png"]) == files.fingerprint(["a.png"])
    assert again.fingerprint(["a.png", "b.png"]) != before


# The hub.

HUB_CODE = """
import dataclasses, hashlib, json, sys
from components.caption_example_gen.sources import *
out = []
for given in sys.argv[1:]:
    try:
        spec = resolve_dataset(DatasetSpec(given))
        check_dataset(spec)
        source = open_dataset(spec)
        source.files.fetch(source.paths)
        rows = [row for unit in source.units() for row in source.read(unit)]
        pairs = [(hashlib.sha256(r.image).hexdigest(), r.captions[0].decode()) for r in rows]
        name = spec.dataset.replace(revision_of(spec), "COMMIT")
        out.append([name, source.kind, dataset_fingerprint(spec), pairs])
    except DatasetError as error:
        out.append(str(error))
print(json.dumps(out))
"""


def test_datasets_of_the_hub(tmp_path):
    numbers = range(12)
    texts = pa.array([f"n {i}" for i in numbers])
    columns = {"image": embedded([png(i) for i in numbers]), "text": texts}
    put_parquet(tmp_path / "parquet" / "data" / "train-00000-of-00001.parquet", columns)
    table = [("file_name", "text"), *((f"{i}.png", f"n {i}") for i in numbers)]
    put(tmp_path / "folder", {"train/metadata.csv": csv_text(table)})
    put(tmp_path / "folder", {f"train/{i}.png": png(i) for i in numbers})
    table[0] = ("image_path", "caption")
    members = [("data.csv", csv_text(table)), *((f"{i}.png", png(i)) for i in numbers)]
    put_tar(tmp_path / "keras" / "set", members, ".tar.gz")
    (tmp_path / "none").mkdir()
    with HubServer() as hub:
        for name in ("parquet", "folder", "keras"):
            hub.add(f"org/{name}", tmp_path / name)
        given = ["org/parquet", "hf://datasets/org/folder@main", "org/keras", "org/gone"]
        result = subprocess.run(
            [sys.executable, "-c", HUB_CODE, *given],
            capture_output=True,
            text=True,
            cwd=tmp_path / "none",
            env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), **hub.env(tmp_path / "home")},
        )
    assert result.returncode == 0, result.stderr
    *found, gone = json.loads(result.stdout)
    pairs = [[hashlib.sha256(png(i)).hexdigest(), f"n {i}"] for i in numbers]
    assert [(name, kind) for name, kind, _, _ in found] == [
        ("hf://datasets/org/parquet@COMMIT", "parquet"),
        ("hf://datasets/org/folder@COMMIT", "image-folder"),
        ("hf://datasets/org/keras@COMMIT", "keras-archive"),
    ]
    assert sorted(found[2][3]) == sorted(pairs)
    assert [each[3] for each in found[:2]] == [pairs, pairs]
    assert len({fingerprint for _, _, fingerprint, _ in found}) == 3
    assert gone.startswith("there is no local folder or archive 'org/gone', and on the hub: ")
    assert "is private" in gone


# Fingerprints.


def test_fingerprint_is_of_content(parquet_folder, tmp_path):
    def fingerprint(**settings):
        return dataset_fingerprint(DatasetSpec(str(tmp_path / "copy"), **settings))

    shutil.copytree(parquet_folder, tmp_path / "copy")
    before = dataset_fingerprint(DatasetSpec(str(parquet_folder)))
    assert len(before) == 64
    path = tmp_path / "copy" / "data" / "a.parquet"
    os.utime(path, (1, 1))
    put(tmp_path / "copy", {"README.md": "a card", "notes.txt": "x", ".x/y.parquet": b""})
    assert fingerprint() == before
    assert fingerprint(image_column="image") == before
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)
    changed = fingerprint()
    content[100] ^= 1
    path.write_bytes(content)
    assert fingerprint() == before
    path.rename(path.with_name("other.parquet"))
    renamed = fingerprint()
    put(tmp_path / "copy", {"beside.png": b"x"})
    assert len({before, changed, renamed, fingerprint(), fingerprint(split="all")}) == 5


def test_a_dataset_asks_for_measures_in_its_card(parquet_folder):
    def asked(head):
        put(parquet_folder, {"README.md": f"---\nlicense: mit\n{head}\n---\nPictures\n"})
        return measures_of(open_dataset(DatasetSpec(str(parquet_folder))))

    assert measures_of(open_dataset(DatasetSpec(str(parquet_folder)))) == ()
    assert asked("") == ()
    assert asked("measures: [colour_agreement, another]") == ("colour_agreement", "another")
    with pytest.raises(DatasetError, match=r"`measures` in README\.md .* must be a list of texts"):
        asked("measures: colour_agreement")


def test_fingerprint_sees_that_a_picture_left_its_split(tmp_path):
    # Before, its record was of another split; afterwards, it is one that has no picture.
    put(tmp_path, {"train/1.png": png(1), "test/2.png": png(2), "test/3.png": png(3)})
    put(tmp_path, {"metadata.csv": "file_name,text\ntrain/1.png,one\ntest/2.png,two\n"})
    before = dataset_fingerprint(DatasetSpec(str(tmp_path)))
    (tmp_path / "test" / "2.png").unlink()
    assert dataset_fingerprint(DatasetSpec(str(tmp_path))) != before
    assert len(rows_of(tmp_path)) == 2


def test_fingerprint_of_many_files(tmp_path):
    files = {f"{i:04}.png": f"{i}".encode() for i in range(600)}
    put(tmp_path, files)
    expected = hashlib.sha256()
    for path, content in sorted(files.items()):
        content_hash = hashlib.sha256(content).hexdigest()
        expected.update(f"{path}\0{len(content)}\0sha256:{content_hash}\n".encode())
    found = sources.FsspecFiles(str(tmp_path)).fingerprint(reversed(files))
    assert found == expected.hexdigest()


# Before a run.


def test_check_dataset(parquet_folder):
    check_dataset(DatasetSpec(str(parquet_folder)))


def test_check_says_that_there_is_one_picture(tmp_path):
    put(tmp_path, {"1.png": png(1), "metadata.csv": "file_name,text\n1.png,a\n1.png,b\n"})
    with pytest.raises(DatasetError, match=r"all 2 rows .* the same picture"):
        check_dataset(DatasetSpec(str(tmp_path)))
    put(tmp_path, {"2.png": png(2), "metadata.csv": "file_name,text\n1.png,a\n2.png,b\n"})
    check_dataset(DatasetSpec(str(tmp_path)))


def test_check_says_that_there_are_no_pictures(tmp_path):
    put(tmp_path, {"1.png": b"", "metadata.csv": "file_name,text\n1.png,a\n2.png,b\n"})
    with pytest.raises(DatasetError, match=r"none of the 2 rows .* has a picture in column"):
        check_dataset(DatasetSpec(str(tmp_path)))


def test_split_of_by_hand():
    digest = hashlib.sha256(b"7:abc").digest()
    fraction = int.from_bytes(digest[:8], "big") / 2**64
    assert split_of("abc", fraction + 1e-9, 7) == "eval"
    assert split_of("abc", fraction - 1e-9, 7) == "train"
    share = np.mean([split_of(str(i), 0.2, 1) == "eval" for i in range(5000)])
    assert share == pytest.approx(0.2, abs=0.02)
