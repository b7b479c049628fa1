"""Releases over time, what was added between two, and who knows a picture."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from pathlib import Path

import pytest
from made_store import Settings, StoreMaker

from pipeline import lineage
from pipeline.lineage import cli, history, pages
from pipeline.lineage.model import LineageError
from storage.row_index import IndexedRow

PICTURE = b"the bytes of a picture"
DIGEST = hashlib.sha256(PICTURE).hexdigest()
OTHER = "0" * 64


def rows(*captions: str, **pictures: str) -> bytes:
    named = {caption: f"picture of {caption}" for caption in captions} | pictures
    return b"".join(IndexedRow(f"{p}/{c}", p, c).line() for c, p in named.items())


@pytest.fixture(scope="module")
def weeks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three releases and a model that was not blessed; the last one's files were not kept."""
    folder = tmp_path_factory.mktemp("weeks")
    maker = StoreMaker(folder=str(folder))
    splits = {
        "one": ({"train": rows("cat", "dog"), "eval": rows("fox", "owl")}, 0.16, True),
        "two": (
            {"train": rows("cat", "bat"), "eval": rows("fox", "owl", dragon=DIGEST)},
            0.3,
            False,
        ),
        "three": ({"train": rows("cat", "bat", dragon=DIGEST), "eval": rows("fox")}, 0.12, True),
        "four": ({}, 0.1, True),
    }
    for run, (files, loss, blessed) in splits.items():
        made = maker.run(run, Settings(fingerprint=run), loss=loss, blessed=blessed)
        for split, lines in files.items():
            path = Path(maker.artifacts[made["examples"][0].place][1].uri, "rows")
            path.mkdir(parents=True, exist_ok=True)
            (path / f"{split}-00000.jsonl").write_bytes(lines)
        for step in (0, 160):
            drawn = Path(
                maker.artifacts[made["model_run"][0].place][1].uri, f"validation/step_{step:06}"
            )
            drawn.mkdir(parents=True)
            (drawn / "00.png").write_bytes(PICTURE)
        if files:
            model = Path(maker.artifacts[made["model"][0].place][1].uri)
            model.mkdir(parents=True)
            (model / "weights").write_bytes(bytes(3_000_000))
    maker.save(folder / "metadata.sqlite")
    return folder


def test_releases_are_told_with_what_is_new_in_each(weeks: Path) -> None:
    location = lineage.locate(str(weeks))
    with location.open() as store:
        first, second, third = history.history(store, location.roots)
    assert [r.version for r in (first, second, third)] == ["1", "2", "3"]
    assert [r.run.name for r in (first, second, third)] == ["one", "three", "four"]
    assert (first.rows, first.changes, first.size) == (4, None, 3_000_000)
    assert second.rows == 4
    assert second.run.shown_change == "-40.0 %"
    [drawn] = second.pictures
    assert (drawn.prompt, drawn.file.name) == ("a dragon", "validation/step_000160/00.png")
    assert sorted((c.kind, c.now or c.before) for c in second.changes.changes) == [
        ("added", "bat"),
        ("added", "dragon"),
        ("removed", "dog"),
        ("removed", "owl"),
    ]
    # What is not here any more is not made up.
    assert (third.rows, third.changes, third.size) == (None, None, None)


def test_the_page_shows_the_same_prompt_of_each_release(weeks: Path) -> None:
    location = lineage.locate(str(weeks))
    with location.open() as store:
        page = pages.Pages(store, pages.Urls(), location.roots).history()
    assert ">2 rows added, 2 removed<" in page
    [row] = re.findall(r'<tr><th scope="row">a dragon</th>.*?</tr>', page)
    sources = re.findall(r'src="(.*?)"', row)
    assert len(set(sources)) == 3
    assert all(re.fullmatch(r"/files/\d+/validation/step_000160/00.png", s) for s in sources)


def test_what_was_added_between_two_releases(weeks: Path, capsys) -> None:
    assert cli.main(["--store", str(weeks), "added", "1", "release:2"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == "2 rows added, 2 removed; before, there were 4"
    kept = ["  added: bat", "  added: dragon", "  removed: dog", "  removed: owl"]
    assert sorted(shown[1:]) == kept
    assert cli.main(["--store", str(weeks), "added", "1", "9"]) == 1
    assert "there is no release '9'" in capsys.readouterr().err


def test_who_knows_a_picture(weeks: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "dragon.png").write_bytes(PICTURE)
    for what in (
        str(tmp_path / "dragon.png"),
        DIGEST,
        DIGEST.upper(),
        f"{DIGEST}/dragon",
        "dragon",
    ):
        assert cli.main(["--store", str(weeks), "--json", "known", what]) == 0
        found = json.loads(capsys.readouterr().out)
        # The model of the second week has never been released.
        assert (found["trained_on"], found["held_out"]) == (["2"], [])
        assert (found["captions"], found["unknown"]) == (["dragon"], ["3"])
    location = lineage.locate(str(weeks))
    with location.open() as store:
        cat, fox, owl = (
            history.known(store, what, location.roots) for what in ("cat", "fox", "owl")
        )
        with pytest.raises(LineageError, match=r"SHA-256 000000000000\.\.\.; of 3 nobody can tell"):
            history.known(store, OTHER, location.roots)
    assert cat.trained_on == ("1", "2")
    assert (fox.trained_on, fox.held_out) == ((), ("1", "2"))
    assert (owl.trained_on, owl.held_out) == ((), ("1",))
    assert cli.main(["--store", str(weeks), "known", "cat"]) == 0
    assert "first known to" in capsys.readouterr().out


def test_a_model_that_was_trained_on_from_another_knows_what_that_knew(tmp_path: Path) -> None:
    maker = StoreMaker(folder=str(tmp_path))
    one = maker.run("one", Settings(fingerprint="one"), blessed=False)
    made = {name: [maker.artifact("Examples", str(tmp_path / name))] for name in ("raw", "latents")}
    maker.execution("two", "CaptionExampleGen", outputs={"examples": made["raw"]})
    maker.execution("two", "LatentGen", inputs={"e": made["raw"]}, outputs={"l": made["latents"]})
    model = [maker.artifact("Model", str(tmp_path / "model"))]
    inputs = {"examples": made["latents"], "start_model": one["model"]}
    maker.execution("two", "Trainer", inputs=inputs, outputs={"model": model})
    pushed = [maker.artifact("PushedModel", pushed_version="1", pushed_destination="s")]
    maker.execution("two", "ServingPusher", inputs={"model": model}, outputs={"p": pushed})
    for uri, lines in (
        (maker.artifacts[one["examples"][0].place][1].uri, rows("cat")),
        (str(tmp_path / "raw"), rows("dog")),
    ):
        folder = Path(uri, "rows")
        folder.mkdir(parents=True)
        (folder / "train-00000.jsonl").write_bytes(lines)
    maker.save(tmp_path / "metadata.sqlite")
    location = lineage.locate(str(tmp_path))
    with location.open() as store:
        assert history.known(store, "cat", location.roots).trained_on == ("1",)
        assert history.known(store, "dog", location.roots).trained_on == ("1",)
        [release] = history.history(store, location.roots)
        # Its own dataset is the latest alone.
        assert release.rows == 1
    shutil.rmtree(tmp_path / "raw")
    with location.open() as store:
        assert history.known(store, "cat", location.roots).unknown == ("1",)
