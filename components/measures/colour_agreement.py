"""Does a picture have the colour that its caption names?

This measure of a fine-tuned model needs no second model: generate pictures for captions that name
a body colour, find the body colour in each picture, and count how often they agree. With ten
colours, pictures that ignore their captions agree one time in ten.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from components.measures.measure import MeanMeasure, MeasureSettings, Measuring
from data.colours import COLOURS, shade

_CAPTION_COLOUR = re.compile(rf"\b({'|'.join(COLOURS)}) creature\b")
_MIN_BACKGROUND_DISTANCE = 18.0
_MIN_LIGHTNESS = 30.0
_WHITE_LIGHTNESS = 93.0
_CENTRE = (0.56, 0.5)
_SPREAD = 0.24


class ColourAgreement(MeanMeasure):
    """Fraction of pictures whose body has the colour that the caption names."""

    name = "colour_agreement"
    label = "Colours right"
    format = "{:.0%}"
    possible = (0.0, 1.0)
    # Captions of other datasets may say "blue creature", too, but for different kinds of pictures.
    particular = True

    def load(self, settings: MeasureSettings) -> Measuring:
        """See `Measure`."""
        return lambda drawn: colours_agree(drawn.pictures, drawn.captions)


def caption_colour(caption: str) -> str | None:
    """Returns the body colour that a caption names, as in "a round blue creature".

    Returns:
        A name of `data.colours.COLOURS`, or `None` if the caption names no creature's colour.
    """
    found = _CAPTION_COLOUR.search(caption)
    return found.group(1) if found else None


def body_colour(image: np.ndarray) -> str:
    """Returns the name of the colour that dominates the middle of a picture.

    Pixels that look like the border (the background), dark pixels (outlines, pupils) and white
    pixels (eyes) do not count. Every other pixel votes for the nearest of `data.colours.COLOURS` in
    CIELAB, lit or in shadow, with a weight that falls with its distance from the middle and from
    the colour.

    Args:
        image: uint8 [H, W, 3], sRGB.

    Returns:
        A name of `data.colours.COLOURS`; for an empty picture, the one nearest to its mean.

    Raises:
        ValueError: If `image` is not uint8 [H, W, 3].
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(
            f"body_colour got {image.dtype} {list(image.shape)}; it takes uint8 [H, W, 3]."
        )
    height, width, _ = image.shape
    lab = _to_lab(image.reshape(-1, 3)).reshape(height, width, 3)
    border = np.concatenate([lab[0], lab[-1], lab[:, 0], lab[:, -1]])
    background = np.median(border, axis=0)
    counted = (
        (np.linalg.norm(lab - background, axis=2) > _MIN_BACKGROUND_DISTANCE)
        & (lab[..., 0] > _MIN_LIGHTNESS)
        & (lab[..., 0] < _WHITE_LIGHTNESS)
    )
    rows = (np.arange(height) + 0.5) / height - _CENTRE[0]
    columns = (np.arange(width) + 0.5) / width - _CENTRE[1]
    distance = rows[:, None] ** 2 + columns[None, :] ** 2
    weight = np.exp(-distance / (2.0 * _SPREAD**2))

    names, references = _references()
    pixels = lab[counted]
    if not len(pixels):
        pixels, weights = lab.reshape(-1, 3).mean(axis=0, keepdims=True), np.ones(1)
    else:
        weights = weight[counted]
    differences = np.linalg.norm(pixels[:, None, :] - references[None, :, :], axis=2)
    nearest = differences.argmin(axis=1)
    # At edges, blends of two colours are far from every named colour.
    weights = weights * np.exp(-differences.min(axis=1) / 15.0)
    votes = np.bincount(nearest, weights=weights, minlength=len(names))
    totals = dict.fromkeys(COLOURS, 0.0)
    for name, vote in zip(names, votes, strict=True):
        totals[name] += float(vote)
    return max(totals, key=lambda name: totals[name])


def colours_agree(
    images: Sequence[np.ndarray] | np.ndarray, captions: Sequence[str]
) -> list[float | None]:
    """Whether each picture's body has the colour that its caption names: 1 or 0.

    Args:
        images: Each uint8 [H, W, 3].
        captions: One for each picture.

    Returns:
        One value for each picture; `None` if its caption names no creature's colour.
    """
    return [
        None if colour is None else float(body_colour(picture) == colour)
        for picture, colour in zip(images, map(caption_colour, captions), strict=True)
    ]


def _references() -> tuple[list[str], np.ndarray]:
    """Returns the name and CIELAB value, float64 [N, 3], of every colour, plain and in shadow."""
    names, values = [], []
    for name, colour in COLOURS.items():
        for factor in (1.0, 0.86):
            names.append(name)
            values.append(shade(colour, factor))
    return names, _to_lab(np.asarray(values, dtype=np.uint8))


def _to_lab(rgb: np.ndarray) -> np.ndarray:
    """Converts sRGB, uint8 [N, 3], to CIELAB under D65, float64 [N, 3] (IEC 61966-2-1, CIE 15)."""
    values = rgb.astype(np.float64) / 255.0
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array(
        [
            [0.4124564, 0.3575761, 0.1804375],
            [0.2126729, 0.7151522, 0.0721750],
            [0.0193339, 0.1191920, 0.9503041],
        ]
    )
    xyz = linear @ to_xyz.T / np.array([0.95047, 1.0, 1.08883])
    epsilon, kappa = (6.0 / 29.0) ** 3, (29.0 / 6.0) ** 2 / 3.0
    f = np.where(xyz > epsilon, np.cbrt(xyz), kappa * xyz + 4.0 / 29.0)
    return np.stack(
        [
            116.0 * f[:, 1] - 16.0,
            500.0 * (f[:, 0] - f[:, 1]),
            200.0 * (f[:, 1] - f[:, 2]),
        ],
        axis=1,
    )
