from __future__ import annotations

import re

import numpy as np
import pytest

from data.colours import COLOURS, DETAIL_COLOURS, shade
from trainer.pretraining import shapes

CREATURE_WORDS = re.compile(
    r"\b(creature|monster|animal|fish|bird|cat|dog|eye|face|mouth|arm|leg|wing|horn|tail|ear|belly"
    r"|smile|smiling|frown|antenna|antennae|crest)s?\b"
)


@pytest.fixture(scope="module")
def collection() -> tuple[np.ndarray, list[str]]:
    return shapes.generate(300, seed=5)


def test_pictures_are_a_function_of_seed_and_index(collection):
    pictures, captions = collection
    for index in (0, 7, 299):
        picture, caption = shapes.draw(5, index)
        assert np.array_equal(picture, pictures[index])
        assert caption == captions[index]
    other, _ = shapes.draw(6, 0)
    assert not np.array_equal(other, pictures[0])


def test_shape_dtype_and_variety(collection):
    pictures, captions = collection
    assert pictures.shape == (300, 64, 64, 3)
    assert pictures.dtype == np.uint8
    assert len({picture.tobytes() for picture in pictures}) == 300
    assert len(set(captions)) > 280
    assert shapes.draw(0, 0, size=128)[0].shape == (128, 128, 3)


def test_first_colour_of_the_caption_is_in_the_picture(collection):
    names = "|".join([*COLOURS, *DETAIL_COLOURS])
    for picture, caption in zip(*collection, strict=True):
        found = re.findall(rf"\b({names})\b", caption)
        assert found, caption
        base = COLOURS[found[0]]
        near = [shade(base, factor) for factor in (0.76, 0.82, 0.95, 1.0, 1.05)]
        distance = np.abs(picture.astype(int)[..., None, :] - np.asarray(near)).max(axis=-1)
        assert (distance.min(axis=-1) < 16).mean() > 0.001, caption


def test_every_colour_is_named_about_as_often(collection):
    _, captions = collection
    counts = [sum(name in caption for caption in captions) for name in COLOURS]
    assert min(counts) > 20


def test_nothing_that_creatures_have_is_named(collection):
    _, captions = collection
    for caption in captions:
        assert not CREATURE_WORDS.search(caption), caption


def test_articles_and_plurals_are_right(collection):
    _, captions = collection
    for caption in captions:
        assert not re.search(r"\ba (?=[aeiou])|\ban (?![aeiou])", caption), caption
        assert not re.search(r"\b(two|three|four) \w+( \w+)*?(box|leaf)\b", caption), caption


def test_impossible_arguments_are_refused():
    with pytest.raises(ValueError, match="too small"):
        shapes.draw(0, 0, size=8)
    with pytest.raises(ValueError, match="0 or more"):
        shapes.draw(-1, 0)
    with pytest.raises(ValueError, match="Cannot draw -1 pictures"):
        shapes.generate(-1, seed=0)
