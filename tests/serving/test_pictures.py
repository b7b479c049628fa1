"""Pictures to draw from, and masks: how they are read, made to fit, or refused."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from small_sources import write_source

from serving import generate, pictures, png
from serving.errors import ServingError
from serving.serving_directory import ServingDirectory


def noisy(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height * width).integers(0, 256, (height, width, 3), np.uint8)


def _encoded(image: Image.Image, format_: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format_, **options)
    return file.getvalue()


def test_pictures_of_every_mode_are_read(tmp_path: Path) -> None:
    grey = np.arange(64, dtype=np.uint8).reshape(8, 8)
    deep = Image.fromarray(grey.astype(np.uint16) * 257)
    expected = np.repeat(grey[..., None], 3, axis=-1)
    for encoded in (_encoded(deep), _encoded(Image.fromarray(grey))):
        read = pictures.decode_picture(encoded, "x")
        assert read.dtype == np.uint8
        np.testing.assert_array_equal(read, expected)
    # Over white.
    clear = Image.new("RGBA", (2, 3), (10, 20, 30, 0))
    assert (pictures.decode_picture(_encoded(clear), "x") == 255).all()
    with pytest.raises(ServingError, match=r"^x cannot be used: the picture cannot be decoded: "):
        pictures.decode_picture(b"<svg/>", "x")
    with pytest.raises(ServingError, match=r"nowhere\.png cannot be read: No such file"):
        pictures.read_picture(str(tmp_path / "nowhere.png"))


def test_masks_are_white_where_they_are_drawn() -> None:
    grey = np.array([[0, 127, 128, 255]], np.uint8)
    expected = [[False, False, True, True]]
    opaque = Image.fromarray(grey).convert("RGBA")
    palette = Image.fromarray(grey).convert("P")
    for image in (Image.fromarray(grey), opaque, palette):
        assert pictures.decode_mask(_encoded(image), "m").tolist() == expected
    opaque.putpixel((0, 0), (0, 0, 0, 254))
    with pytest.raises(
        ServingError, match=r"^the mask m has transparent pixels, which are neither"
    ):
        pictures.decode_mask(_encoded(opaque), "m")


def test_a_picture_covers_what_is_drawn_and_no_pixel_of_its_mask_is_lost() -> None:
    image, mask = np.zeros((30, 90, 3), np.uint8), np.zeros((30, 90), bool)
    image[:, 45:] = 200
    mask[7, 46] = True
    original = pictures.Original(image, 0.5, mask)
    fitted = original.fitted(10, 10)
    assert fitted.pixels.shape == (10, 10, 3)
    # The middle third, a third as large, is black to the left and grey to the right.
    np.testing.assert_array_equal(fitted.pixels[:, [0, -1], 0], [[0, 200]] * 10)
    assert np.argwhere(fitted.mask).tolist() == [[2, 5]]
    # Made larger, a pixel is all that it becomes.
    larger = pictures.Original(image[:2, :2], 0.5, np.eye(2, dtype=bool)).fitted(4, 4)
    np.testing.assert_array_equal(larger.mask, np.kron(np.eye(2), np.ones((2, 2))))
    same = original.fitted(30, 90)
    np.testing.assert_array_equal(same.pixels, image)
    np.testing.assert_array_equal(same.mask, mask)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"strength": 0.5},
            "there is a strength but no picture to draw from; give both or neither",
        ),
        ({"mask": "mask"}, "there is a mask but no picture to draw from; give both or neither"),
        ({"image": "picture", "strength": 1.5}, "the strength is 1.5; it must be 0 to 1"),
        (
            {"image": "picture", "mask": "mask"},
            "the mask is 5 x 4 pixels, and its picture 8 x 6; both must have the same size",
        ),
        (
            {"image": "text"},
            "{text} cannot be used: the picture cannot be decoded: its format is not one of JPEG, ",
        ),
    ],
)
def test_what_does_not_fit_together_is_told_before_anything_is_loaded(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: dict[str, Any],
    message: str,
) -> None:
    root = tmp_path / "serving_model"
    source = write_source(tmp_path / "source", "model 1", image_to_image=True)
    ServingDirectory(str(root)).publish(source, {"model": 1}, lambda _: None)
    files = {name: str(tmp_path / name) for name in ("picture", "mask", "text")}
    Path(files["picture"]).write_bytes(png.encode(noisy(6, 8)))
    Path(files["mask"]).write_bytes(png.encode(noisy(4, 5)))
    Path(files["text"]).write_text(json.dumps("a picture"))
    flags = [f"--{name}={files.get(value, value)}" for name, value in arguments.items()]
    out = ["--out", str(tmp_path / "x.png"), "--serving-dir", str(root)]
    assert generate.main(["a cave", *flags, *out]) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith(f"error: {message.format(**files)}")
    assert printed.out == ""


def test_arrays_that_are_no_pictures_are_refused() -> None:
    for image, mask, message in (
        (noisy(8, 8).astype(float), None, r"picture to draw from is float64 \[8, 8, 3\]; it must"),
        (noisy(8, 8)[..., 0], None, r"uint8 \[8, 8\]; it must be uint8 \[H, W, 3\], as serving"),
        (noisy(8, 8)[:0], None, r"uint8 \[0, 8, 3\]"),
        (noisy(8, 8), np.zeros((8, 8), np.uint8), r"mask is uint8 \[8, 8\]; it must be bool"),
    ):
        with pytest.raises(ServingError, match=message):
            pictures.Original.of(image, None, mask)
