"""The colours of all generated pictures.

The base domain (`trainer/pretraining/shapes.py`) and the sample dataset (`data/`) name the same
ten colours with the same words. A caption about a creature thus uses words that the base weights
already know, and one script can compare the colour in a picture with the colour in its caption.
"""

from __future__ import annotations

Colour = tuple[int, int, int]

COLOURS: dict[str, Colour] = {
    "red": (217, 45, 45),
    "orange": (243, 134, 30),
    "yellow": (250, 214, 52),
    "green": (74, 168, 66),
    "teal": (32, 184, 178),
    "blue": (52, 98, 216),
    "purple": (128, 66, 178),
    "pink": (246, 138, 190),
    "brown": (132, 84, 48),
    "grey": (142, 144, 150),
}
"""The ten colours of bodies and shapes, from name to sRGB (0 to 255)."""

DETAIL_COLOURS: dict[str, Colour] = {"white": (252, 252, 250), "black": (38, 36, 44)}
"""Further colours for details; no body is white (the background) or black (the outline)."""

OUTLINE: Colour = (44, 38, 50)
"""Dark line around drawn things."""


def with_article(words: str) -> str:
    """Returns `words` with the indefinite article that fits the first letter."""
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def shade(colour: Colour, factor: float) -> Colour:
    """Returns `colour` darkened (`factor` below 1) or moved towards white (`factor` above 1).

    Args:
        colour: sRGB, 0 to 255.
        factor: 0 gives black, 1 the colour itself, 2 white.
    """
    if factor <= 1.0:
        red, green, blue = (round(value * factor) for value in colour)
    else:
        red, green, blue = (round(value + (255 - value) * (factor - 1.0)) for value in colour)
    return red, green, blue
