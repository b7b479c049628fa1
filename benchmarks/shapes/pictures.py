"""Portraits and landscapes, with creatures above or beside each other, as captioned files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from data.colours import COLOURS, with_article
from data.drawing import EXPRESSIONS, FEATURES, IMAGE_SIZE, SHAPES, Creature, draw_creature
from data.generate import encode_png

# Creatures per picture, and whether one is above the other: portraits, landscapes and squares.
_LAYOUTS = ((2, True), (2, False), (2, True), (2, False), (1, True))
_MOST_GAP = 24
_WHITE = (255, 255, 255)


def composed(index: int, seed: int) -> tuple[Image.Image, str]:
    """Picture and caption for a number, the same for the same seed."""
    rng = np.random.default_rng([seed, index])
    count, above = _LAYOUTS[index % len(_LAYOUTS)]
    creatures = [_invented(rng) for _ in range(count)]
    picture = _composed([draw_creature(each, rng) for each in creatures], above, rng)
    return picture, _caption(creatures, above)


def write_pictures(folder: Path, number: int, seed: int) -> None:
    """Writes `<folder>/NNNN.png` with captions beside them, as `runner_local.py` reads them.

    Args:
        folder: Folder to write to; made if it does not exist.
        number: Number of pictures.
        seed: Decides all pictures.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(number):
        picture, caption = composed(index, seed)
        (folder / f"{index:04d}.png").write_bytes(encode_png(picture))
        (folder / f"{index:04d}.txt").write_text(f"{caption}\n")


def _invented(rng: np.random.Generator) -> Creature:
    colour, other = rng.permutation(list(COLOURS))[:2]
    place = list(FEATURES)[int(rng.integers(len(FEATURES)))]
    return Creature(
        shape=str(rng.choice(SHAPES)),
        colour=str(colour),
        features=((str(rng.choice(FEATURES[place])), str(other)),),
        expression=str(rng.choice(EXPRESSIONS)),
        num_eyes=2,
    )


def _composed(
    pictures: Sequence[Image.Image], above: bool, rng: np.random.Generator
) -> Image.Image:
    gap = int(rng.integers(_MOST_GAP))
    long = len(pictures) * IMAGE_SIZE + (len(pictures) - 1) * gap
    canvas = Image.new("RGB", (IMAGE_SIZE, long) if above else (long, IMAGE_SIZE), _WHITE)
    for place, picture in enumerate(pictures):
        at = place * (IMAGE_SIZE + gap)
        canvas.paste(picture, (0, at) if above else (at, 0))
    return canvas


def _caption(creatures: Sequence[Creature], above: bool) -> str:
    named = [with_article(f"{each.shape} {each.colour} creature") for each in creatures]
    # Also true of the mirror image.
    return "a drawing of " + (" above " if above else " next to ").join(named)
