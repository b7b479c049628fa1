"""Stores that lie elsewhere than when they were written."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
from made_store import COMPLETE, StoreMaker

from pipeline import lineage
from pipeline.lineage.moved import Relocation


def saved(folder: Path, name: str, *uris: str) -> list[str]:
    """Where artifacts that were recorded at `uris` are, read in `folder`, which has a `name`."""
    maker = StoreMaker()
    outputs = [maker.artifact("Model", uri) for uri in uris]
    maker.execution("run", "Trainer", COMPLETE, {}, {}, {"model": outputs})
    (folder / name).mkdir()
    maker.save(folder / "metadata.sqlite")
    before = (folder / "metadata.sqlite").read_bytes()
    with lineage.locate(str(folder)).open() as store:
        found = [artifact.uri for artifact in store.artifacts(range(1, len(uris) + 1))]
    assert (folder / "metadata.sqlite").read_bytes() == before
    return found


@pytest.mark.parametrize(
    ("name", "uri"),
    [
        ("artifacts", "artifacts/Trainer/model/1"),
        ("000000000000", "000000000000/sd-finetuning-2026/Trainer_123/model"),
    ],
)
def test_artifacts_are_below_the_folder_of_the_store(tmp_path, name, uri):
    beside, other = "/old/run/serving_model/decoder", "/old/run-2/serving_model"
    found = saved(tmp_path, name, f"/old/run/{uri}", beside, other, "gs://old/run")
    assert found == [
        f"{tmp_path}/{uri}",
        f"{tmp_path}/serving_model/decoder",
        other,
        "gs://old/run",
    ]


@pytest.mark.parametrize(
    ("name", "uri"),
    [
        # The database lies apart from what it tells of.
        ("elsewhere", "/old/run/artifacts/Trainer/model/1"),
        # Imported: not made by the step that gives it out.
        ("artifacts", "/old/run/artifacts/SchemaGen/schema/7"),
        ("artifacts", "/old/run/artifacts/1"),
        ("artifacts", "gs://bucket/artifacts/Trainer/model/1"),
    ],
)
def test_what_does_not_lie_as_a_run_leaves_it_stays_where_it_is(tmp_path, name, uri):
    assert saved(tmp_path, name, uri) == [uri]


def test_a_write_that_fails_changes_nothing(tmp_path):
    from pipeline.lineage.moved import relocate

    saved(tmp_path, "artifacts", "/old/artifacts/Trainer/model/1", "/old/x")
    connection = sqlite3.connect(tmp_path / "metadata.sqlite", isolation_level=None)
    connection.execute(
        "CREATE TRIGGER refuse BEFORE UPDATE ON Artifact WHEN OLD.id = 2 "
        "BEGIN SELECT RAISE(FAIL, 'no'); END"
    )
    with pytest.raises(sqlite3.Error, match="no"):
        relocate(connection, str(tmp_path))
    uris = connection.execute("SELECT uri FROM Artifact ORDER BY id").fetchall()
    assert uris == [("/old/artifacts/Trainer/model/1",), ("/old/x",)]
    connection.close()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/a/b", "/x y"),
        ("/a/b/c", "/x y/c"),
        ("/a/b-c", "/a/b-c"),
        ("/a/bc", "/a/bc"),
        ("/mnt/a/b/c", "/mnt/a/b/c"),
        ("file:///a/b/c", "file:///x y/c"),
        ("gs://bucket/a/b/c", "gs://bucket/a/b/c"),
        # Below a former folder, and below the one that it is in now.
        ("/x y/a/b/c", "/x y/a/b/c"),
        ("/z/q/c", "/x y/c"),
        ("/z/c", "/x y/c"),
        (
            '{"k": "/a/b/c", "l": ["/a/b"], "m": "in /a/b/c"}',
            '{"k": "/x y/c", "l": ["/x y"], "m": "in /x y/c"}',
        ),
    ],
)
def test_addresses_in_texts(text, expected):
    assert Relocation(["/z", "/z/q", "/a/b"], "/x y").apply(text) == expected


def test_a_folder_that_moved_into_its_former_one():
    assert Relocation(["/a"], "/a/b").apply("/a/b/c and /a/c") == "/a/b/c and /a/b/c"
    assert Relocation(["/a"], '/"').apply('{"k": "/a/c"}') == '{"k": "/\\"/c"}'
