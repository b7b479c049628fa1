"""Where a picture comes from: true marks, forged ones, and none."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from made_store import Settings, StoreMaker
from PIL import Image, PngImagePlugin
from small_marks import small_marks

from pipeline import lineage
from pipeline.lineage import cli, pages, whence
from pipeline.lineage.model import LineageError
from storage import picture_marks
from storage.picture_marks import network_digests

PIXELS = np.zeros((8, 8, 3), np.uint8)
FILES = {f"{network}/1/weights": network * 3 for network in ("decoder", "text_encoder")}
MARKS = small_marks(negative_prompt="a dog", training_id="t1", networks=network_digests(FILES))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two releases, of which the second one's file is gone, and a model that was not pushed."""
    folder = tmp_path_factory.mktemp("runs")
    maker = StoreMaker(folder=str(folder))
    for number, blessed in ((1, True), (2, True), (3, False)):
        settings = Settings(fingerprint=f"data {number}", model={"training_id": f"t{number}"})
        maker.run(f"run {number}", settings, blessed=blessed)
    maker.save(folder / "metadata.sqlite")
    releases = folder / "serving_model" / "releases"
    releases.mkdir(parents=True)
    (releases / "1.json").write_text(json.dumps({"version": 1, "files": FILES}))
    return folder


Ask = Callable[[bytes], whence.Whence]


@pytest.fixture
def ask(folder: Path) -> Iterator[Ask]:
    location = lineage.locate(str(folder))
    with location.open() as store:
        yield lambda contents: whence.whence(store, "x.png", contents, location.roots)


def marked(**changes: object) -> bytes:
    return picture_marks.encode(PIXELS, [dataclasses.replace(MARKS, **changes)])  # type: ignore[arg-type]


def holds(found: whence.Whence) -> dict[str, bool | None]:
    return {check.name: check.holds for check in found.checks}


def test_a_picture_leads_to_its_release_run_and_data(ask: Ask) -> None:
    found = ask(marked())
    assert found.trace.release == "1"
    assert found.trace.run is not None
    assert found.trace.run.name == "run 1"
    assert "data 1" in {fact.value for fact in found.trace.facts}
    assert holds(found) == dict.fromkeys(
        ("pixels", "text for others", "training", "networks"), True
    )


def test_what_cannot_be_told_is_said(ask: Ask) -> None:
    # The release's file is gone.
    found = ask(marked(release=2, training_id="t2"))
    assert (found.trace.release, holds(found)["networks"]) == ("2", None)
    # A server knows its number alone.
    found = ask(marked(training_id=None, networks={}))
    assert (found.trace.release, holds(found)["release"]) == ("1", None)
    assert "may be from another store" in found.checks[-1].said
    # No release, but a training.
    found = ask(marked(release=None, training_id="t3", networks={}))
    assert found.trace.release is None
    assert found.trace.run is not None
    assert found.trace.run.name == "run 3"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"release": 9}, r"release 9 drew it \(training t1\), but .* has no such release"),
        ({"training_id": "t2"}, "its training is t1, not t2"),
        ({"networks": {"decoder": "00"}}, "different digests for its decoder"),
        ({"release": None, "training_id": "none"}, "and .* has no such model"),
        ({"release": None, "training_id": None}, "names no model"),
    ],
)
def test_forged_marks_name_nothing(ask: Ask, changes: dict[str, object], said: str) -> None:
    with pytest.raises(LineageError, match=said):
        ask(marked(**changes))


def test_a_picture_that_was_changed(ask: Ask, tmp_path: Path) -> None:
    with Image.open(_file(tmp_path, marked())) as image:
        image.load()
        texts = dict(image.info)
    Image.fromarray(PIXELS + 1).save(tmp_path / "changed.png", pnginfo=_with(texts))
    found = ask((tmp_path / "changed.png").read_bytes())
    assert (holds(found)["pixels"], holds(found)["text for others"]) == (False, True)
    texts["parameters"] = "another prompt"
    Image.fromarray(PIXELS).save(tmp_path / "forged.png", pnginfo=_with(texts))
    found = ask((tmp_path / "forged.png").read_bytes())
    assert (holds(found)["pixels"], holds(found)["text for others"]) == (True, False)


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_a_picture_without_marks(ask: Ask, tmp_path: Path, suffix: str) -> None:
    Image.fromarray(PIXELS).save(tmp_path / f"plain.{suffix}")
    with pytest.raises(LineageError, match=r"x\.png carries no marks .* it is unknown"):
        ask((tmp_path / f"plain.{suffix}").read_bytes())


def test_two_releases_in_one_file(ask: Ask) -> None:
    both = [MARKS, dataclasses.replace(MARKS, release=2)]
    with pytest.raises(LineageError, match="several releases"):
        ask(picture_marks.encode(PIXELS, both, 2))


def test_the_command(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = _file(tmp_path, marked())
    command = ["--store", str(folder), "whence", str(path)]
    assert cli.main(command) == 0
    shown = capsys.readouterr().out
    assert "drawn    'a cat', without 'a dog'" in shown
    assert "  networks         yes  have the digests of the release" in shown
    assert cli.main([*command, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["marks"][0]["seed"], answer["trace"]["release"]) == (7, "1")
    assert cli.main([*command[:-1], str(tmp_path / "none.png")]) == 1
    assert "none.png cannot be read" in capsys.readouterr().err


def test_it_is_not_compared_where_the_release_cannot_draw(folder: Path, tmp_path: Path) -> None:
    path = _file(tmp_path, marked())
    location = lineage.locate(str(folder))
    with location.open() as store:
        found = whence.whence(store, path.name, path.read_bytes(), location.roots)
        check = whence.drawn_again(found, str(path))
        assert check.holds is None
        assert check.said.startswith("not compared: release 1 is incomplete")
        page = pages.Pages(store, pages.Urls(), location.roots).whence(found.with_check(check))
    assert '<a href="/release/1">release 1</a>' in page
    assert "<td>unknown</td><td>not compared: release 1 is incomplete" in page


def _file(folder: Path, contents: bytes) -> Path:
    path = folder / "picture.png"
    path.write_bytes(contents)
    return path


def _with(texts: dict[str, str]) -> PngImagePlugin.PngInfo:
    info = PngImagePlugin.PngInfo()
    for name, text in texts.items():
        info.add_text(name, text)
    return info
