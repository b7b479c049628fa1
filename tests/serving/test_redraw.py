"""Pictures say what drew them, and are drawn again from what they say."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from serving import generate, marking, redraw
from serving.releases import find_release
from storage import picture_marks


@pytest.fixture(scope="module")
def drawn(released: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A grid of four pictures from a picture, of which half may change."""
    folder = tmp_path_factory.mktemp("drawn")
    colours = np.random.default_rng(1).integers(0, 256, (50, 80, 3)).astype(np.uint8)
    Image.fromarray(colours).save(folder / "from.png")
    Image.fromarray(np.uint8(255) * (np.arange(80) > 40)[None].repeat(50, 0)).save(
        folder / "mask.png"
    )
    arguments = ["a cat", "a dog", "--count", "2", "--height", "40", "--sampler", "euler_a"]
    pictures = ["--image", f"{folder}/from.png", "--mask", f"{folder}/mask.png"]
    out = ["--serving-dir", str(released), "--out", f"{folder}/grid.png"]
    assert generate.main([*arguments, *pictures, *out]) == 0
    return folder


def test_a_grid_says_what_drew_each(drawn: Path, released: Path) -> None:
    found = picture_marks.read((drawn / "grid.png").read_bytes())
    assert (found.columns, found.is_as_marked, found.agrees) == (2, True, True)
    assert [(m.prompt, m.seed) for m in found.pictures] == [
        ("a cat", 0),
        ("a cat", 1),
        ("a dog", 0),
        ("a dog", 1),
    ]
    first = found.pictures[0]
    assert (first.height, first.width, first.num_steps, first.sampler) == (40, 64, 2, "euler_a")
    assert (first.guidance_scale, first.strength, first.release) == (3.0, 1.0, 1)
    assert first.networks == find_release(str(released)).marks["networks"]
    assert set(first.networks) == {"text_encoder", "diffusion_model", "decoder", "image_encoder"}


def test_it_is_drawn_again(drawn: Path, released: Path, capsys, tmp_path: Path) -> None:
    grid = drawn / "grid.png"
    where = ["--serving-dir", str(released)]
    pictures = ["--image", f"{drawn}/from.png", "--mask", f"{drawn}/mask.png"]
    assert redraw.main([str(grid), *where, *pictures, "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert [(one["prompt"], one["seed"], one["most"]) for one in again] == [
        ("a cat", 0, 0),
        ("a cat", 1, 0),
        ("a dog", 0, 0),
        ("a dog", 1, 0),
    ]
    # One pixel of the last picture.
    found = picture_marks.read(grid.read_bytes())
    pixels = picture_marks.pixels_of(grid.read_bytes()).copy()
    pixels[79, 127] ^= 1
    changed = tmp_path / "changed.png"
    changed.write_bytes(picture_marks.encode(pixels, found.pictures, 2))
    assert redraw.main([str(changed), *where, *pictures]) == 1
    shown = capsys.readouterr().out.splitlines()
    assert [line.partition(": ")[2] for line in shown] == [
        *["the same pixels"] * 3,
        "different pixels: 0.00 of 255 on average, 1 at most",
    ]
    for given, said in (
        ([], "it was drawn from a picture: give that with --image"),
        (pictures[:2], "it was drawn from a mask: give that with --mask"),
        (["--image", str(grid), *pictures[2:]], "is not the one it was drawn from"),
    ):
        assert redraw.main([str(grid), *where, *given]) == 2
        assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("marked", "said"),
    [
        (marking.Marking(metadata=False), "carries no marks"),
        (marking.Marking(prompt=False), "do not include the prompt"),
    ],
)
def test_what_is_not_to_be_told(
    marked: marking.Marking, said: str, drawn: Path, released: Path, tmp_path: Path, capsys
) -> None:
    marks = picture_marks.read((drawn / "grid.png").read_bytes()).pictures[0]
    secret = dataclasses.replace(marks, prompt="a secret prompt", negative_prompt="secret, too")
    contents = marked.encode(np.zeros((40, 64, 3), np.uint8), [secret])
    assert b"secret" not in contents
    found = picture_marks.read(contents)
    assert bool(found.pictures) == found.says_generated == marked.metadata
    (tmp_path / "x.png").write_bytes(contents)
    assert redraw.main([f"{tmp_path}/x.png", "--serving-dir", str(released)]) == 2
    assert said in capsys.readouterr().err


def test_without_pillow_it_says_so_before_anything_is_loaded(
    released: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *rest: None if name == "PIL" else find(name, *rest),
    )
    request = ["a cat", "--out", f"{tmp_path}/x.png", "--serving-dir", str(released)]
    assert generate.main(request) == 2
    assert "needs Pillow, which is not installed" in capsys.readouterr().err
    arguments = generate.command().parse_args([*request, "--no-metadata"])
    assert marking.of(arguments) == marking.Marking(metadata=False)


def test_a_picture_that_was_cut_is_not_compared(drawn: Path, released: Path) -> None:
    marks = picture_marks.read((drawn / "grid.png").read_bytes()).pictures[0]
    whole = dataclasses.replace(marks, strength=None, image_sha256=None, mask_sha256=None)

    class Same:
        def generate(self, *args, **options) -> np.ndarray:
            return np.zeros((1, options["height"], options["width"], 3), np.uint8)

    black = np.zeros((40, 64, 3), np.uint8)
    [same] = redraw.redraw(black, [whole], 1, Same)  # type: ignore[arg-type]
    assert (same.mean, same.most) == (0, 0)
    with pytest.raises(redraw.ServingError, match="it was scaled or cropped since"):
        redraw.redraw(black[:30], [whole], 1, Same)  # type: ignore[arg-type]
