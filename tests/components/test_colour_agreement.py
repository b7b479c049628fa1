from __future__ import annotations

import numpy as np
import pytest

from components.measures.colour_agreement import body_colour, caption_colour, colours_agree
from data.colours import COLOURS


def disc(colour: tuple[int, int, int]) -> np.ndarray:
    y, x = np.mgrid[:64, :64] - 31.5
    image = np.full((64, 64, 3), (240, 244, 252), np.uint8)
    image[x**2 + y**2 < 24**2] = (44, 38, 50)
    image[x**2 + y**2 < 21**2] = colour
    return image


@pytest.mark.parametrize("name", COLOURS)
@pytest.mark.parametrize("brightness", [0.86, 1.0])
def test_body_colour_of_a_disc(name, brightness):
    colour = np.asarray(COLOURS[name]) * brightness
    noise = np.random.default_rng(0).normal(0.0, 8.0, (64, 64, 3))
    image = np.clip(disc(tuple(colour.astype(np.uint8))) + noise, 0, 255).astype(np.uint8)
    assert body_colour(image) == name


def test_empty_picture_has_some_colour():
    assert body_colour(np.full((8, 8, 3), 255, np.uint8)) in COLOURS


@pytest.mark.parametrize("image", [np.zeros((8, 8, 3), np.float32), np.zeros((8, 8), np.uint8)])
def test_what_is_no_picture_is_refused(image):
    with pytest.raises(ValueError, match=r"takes uint8 \[H, W, 3\]"):
        body_colour(image)


def test_caption_colour_is_the_bodys_and_no_other():
    assert caption_colour("a drawing of a round blue creature with yellow horns") == "blue"
    assert caption_colour("a drawing of a blue house") is None


def test_agreement_is_told_of_captions_that_name_a_colour_alone():
    images = [disc(COLOURS[name]) for name in ("red", "red", "green", "blue")]
    captions = ["a red creature", "a blue creature", "a tall green creature", "a house"]
    assert colours_agree(images, captions) == [1.0, 0.0, 1.0, None]
    with pytest.raises(ValueError, match="shorter"):
        colours_agree(images, captions[:1])
