"""What a picture has got into: rows, runs, releases."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from drawings import COPIES, drawing, saved
from made_store import FIRST_DAY, MINUTE, Settings, StoreMaker
from PIL import Image
from recorded_pictures import (
    CAT,
    DOG,
    MIRRORED_CAT,
    SMALL_CAT,
    digest,
    folder_of,
    record_releases,
    write_dataset,
)

from components.caption_example_gen.rows import example_of
from pipeline import lineage
from pipeline.lineage import cli, pages
from pipeline.lineage.affected import Affected, affected
from pipeline.lineage.model import LineageError
from storage import filesystem


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return record_releases(tmp_path_factory.mktemp("affected"))


def ask(folder: Path, **which: Any) -> Affected:
    location = lineage.locate(str(folder))
    with location.open() as store:
        return affected(store, location.roots, **which)


def told(found: Affected) -> dict[str, Any]:
    datasets = sorted({n for r in found.found.rows for n in (*r.trained_on, *r.held_out)})
    return {
        "rows": {row.caption: row.near for row in found.found.rows},
        "datasets": len(datasets),
        "runs": {m.run.name: m.how for m in found.models if m.run is not None},
        "releases": {r.version: (r.how, r.served) for r in found.releases},
    }


BEFORE = "started from a model that was"
EXPECTED = {
    "rows": {"a cat": "", "small": digest(CAT), "mirrored": digest(CAT)},
    "datasets": 2,
    "runs": {"one": "trained on it", "two": BEFORE, "three": "held out"},
    "releases": {"1": ("trained on it", False), "2": (BEFORE, False), "3": ("held out", False)},
}


@pytest.mark.parametrize(
    "which",
    [
        {"picture": ("renamed.png", CAT)},
        {"sha256": digest(CAT).upper()},
        {"sha256": example_of(CAT, "a cat").indexed.id},
        {"caption": "a cat "},
    ],
)
def test_a_picture_is_found_with_its_copies(output: Path, which: dict[str, Any]) -> None:
    found = ask(output, **which)
    assert told(found) == EXPECTED
    assert found.served == {str(output / "serving_model"): "4"}
    assert set(found.lines) == {
        f"sha256:{digest(picture)}" for picture in (CAT, SMALL_CAT, MIRRORED_CAT)
    }


@pytest.mark.parametrize("name", COPIES)
def test_a_picture_that_was_edited_is_found(output: Path, name: str) -> None:
    edited = COPIES[name](drawing(0))
    found = ask(output, picture=("edited", edited))
    assert set(told(found)["rows"]) == {"a cat", "small", "mirrored"}
    of_cat = {row.caption: row.near for row in found.found.rows}["a cat"]
    assert of_cat == digest(edited)
    assert told(found)["releases"] == EXPECTED["releases"]


def test_a_served_release_is_told(output: Path) -> None:
    assert told(ask(output, caption="a fox"))["releases"] == {
        "2": ("trained on it", False),
        "3": ("trained on it", False),
        "4": ("trained on it", True),
    }


def test_a_caption_is_found_as_it_was_before_its_template(tmp_path: Path) -> None:
    maker = StoreMaker(folder=str(tmp_path))
    made = maker.run("one")["examples"][0]
    maker.artifacts[made.place][1].custom_properties[
        "caption_template"
    ].string_value = "{caption}, {{sks}}"
    write_dataset(folder_of(maker, made), {"train": {"a cat, {sks}": CAT}, "eval": {}})
    maker.save(tmp_path / "metadata.sqlite")
    for caption in ("a cat", "a cat, {sks}"):
        assert told(ask(tmp_path, caption=caption))["rows"] == {"a cat, {sks}": ""}


def test_what_nobody_can_tell_any_more_is_said(output: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(output, folder)
    maker = StoreMaker(folder=str(folder))
    examples = []
    for number, run in enumerate(("one", "two", "three")):
        at = FIRST_DAY + number * 10 * MINUTE
        examples.append(maker.run(run, Settings(fingerprint=run), at)["examples"][0])
    (folder / "metadata.sqlite").unlink()
    maker.save(folder / "metadata.sqlite")
    (first, second, third) = (folder_of(maker, made) for made in examples)
    shutil.rmtree(first)
    former = sorted(output.glob("CaptionExampleGen/examples/*"), key=lambda p: int(p.name))
    for target, source in ((second, former[1]), (third, former[2])):
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(source, target)
    [shard] = (third / "Split-eval").iterdir()
    shard.write_bytes(shard.read_bytes()[:-20])
    found = ask(folder, sha256=digest(DOG))
    assert found.found.unread == {examples[0].id: "its files are gone"}
    assert list(found.found.unseen) == [examples[2].id]
    assert told(found)["releases"] == {
        "1": ("unknown", False),
        "2": ("trained on it", False),
    }
    with pytest.raises(LineageError, match=rf"rows of artifact {examples[0].id} are unknown"):
        ask(folder, picture=("cat.png", CAT))


def test_datasets_in_a_bucket_are_read_where_the_folder_is_given(tmp_path: Path) -> None:
    bucket = "ram://affected/root"
    maker = StoreMaker(folder=bucket)
    made = maker.run("one")["examples"][0]
    write_dataset(tmp_path / "here", {"train": {"a cat": CAT, "small": SMALL_CAT}, "eval": {}})
    there = maker.artifacts[made.place][1].uri
    for name in filesystem.files_below(str(tmp_path / "here")):
        target = filesystem.join(there, name)
        filesystem.make_folder(filesystem.parent(target))
        filesystem.write_bytes(target, (tmp_path / "here" / name).read_bytes())
    filesystem.make_folder(f"{bucket}/serving_model")
    filesystem.write_bytes(f"{bucket}/serving_model/models.config", b"versions: 1")
    maker.save(tmp_path / "metadata.sqlite")
    location = lineage.locate(str(tmp_path))
    with location.open() as store:
        found = affected(store, [*location.roots, bucket], picture=("x", SMALL_CAT))
        assert told(found)["rows"] == {"a cat": digest(SMALL_CAT), "small": ""}
        assert told(found)["releases"] == {"1": ("trained on it", True)}
        with pytest.raises(LineageError, match=r"rows of artifact 1 are unknown"):
            affected(store, location.roots, picture=("x", SMALL_CAT))


@pytest.mark.parametrize(
    ("which", "problem"),
    [
        (
            {"caption": "a bat"},
            "none of the 4 datasets .* has the caption 'a bat', or nearly the same",
        ),
        ({"picture": ("x.png", saved(drawing(99)))}, "has the picture x.png"),
        ({"picture": ("x.txt", b"text")}, "the picture cannot be read"),
        ({"sha256": "12ab"}, "'12ab' is not a SHA-256"),
    ],
)
def test_what_is_nowhere_is_told(output: Path, which: dict[str, Any], problem: str) -> None:
    with pytest.raises(LineageError, match=problem):
        ask(output, **which)


def test_the_command_answers_in_text_and_json(
    output: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "converted.jpg"
    Image.Image.save(drawing(0), file, quality=80)
    command = ["--store", str(output), "affected", "--picture", str(file), "--all"]
    assert cli.main(command) == 0
    shown = capsys.readouterr().out
    assert "release 4, which is not listed below" in shown
    assert f"sha256:{digest(CAT)} # REASON" in shown
    assert cli.main([*command, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert {row["caption"] for row in answer["found"]["rows"]} == {"a cat", "small", "mirrored"}
    assert [r["version"] for r in answer["releases"]] == ["1", "2", "3"]
    assert len(answer["lines"]) == 3
    assert cli.main(["--store", str(output), "affected", "--caption", "a bat"]) == 1
    with pytest.raises(SystemExit):
        cli.main(["--store", str(output), "affected", "--caption", "x", "--sha256", "y"])


def test_the_page_shows_it(output: Path) -> None:
    location = lineage.locate(str(output))
    with location.open() as store:
        found = affected(store, location.roots, caption="a cat")
        shown = pages.Pages(store, pages.Urls(), location.roots).affected(found)
    assert '<a href="/release/1">1</a></td><td>trained on it</td><td>no</td>' in shown
    assert f"sha256:{digest(SMALL_CAT)} # REASON" in shown
    assert "release 4, which is not listed below" in shown
