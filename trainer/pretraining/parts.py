"""Parts added to pictures of things without any: eyes, horns, ears, wings, a tail, spots, stripes.

So the diffusion model learns, on apples, houses and guitars, what the words mean and how such small
parts look in latents. A thing has either a face or parts that stick out, never both: none of them
is a creature.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from data.colours import COLOURS, with_article

BEHIND = ("", "horns", "ears", "antennae", "wings", "tail")
"""Parts that may stick out behind a thing."""

ON = ("", "spots", "stripes", "belly")
"""Parts that may be painted on it."""

MOUTHS = ("", "smile", "frown")

_EYES = ("", "one big eye", "two eyes", "three eyes")
_HAS_FACE, _HAS_MOUTH, _HAS_PATTERN = 0.65, 0.6, 0.5


@dataclasses.dataclass(frozen=True)
class Parts:
    """The parts of N things, as indices into the tuples of this module and into `COLOURS`.

    Attributes:
        num_eyes: int [N], 0 to 3.
        mouth: int [N].
        behind: int [N].
        behind_colour: int [N].
        on: int [N].
        on_colour: int [N].
    """

    num_eyes: np.ndarray
    mouth: np.ndarray
    behind: np.ndarray
    behind_colour: np.ndarray
    on: np.ndarray
    on_colour: np.ndarray

    def words(self, index: int) -> str:
        """The parts in words, such as `"with blue horns, two eyes and a smile"`, or nothing."""
        names = tuple(COLOURS)
        said = []
        for options, chosen, colour in (
            (BEHIND, self.behind, self.behind_colour),
            (ON, self.on, self.on_colour),
        ):
            if part := options[chosen[index]]:
                coloured = f"{names[colour[index]]} {part}"
                said.append(with_article(coloured) if part in ("tail", "belly") else coloured)
        said += [_EYES[self.num_eyes[index]]] if self.num_eyes[index] else []
        said += [with_article(MOUTHS[self.mouth[index]])] if self.mouth[index] else []
        if not said:
            return ""
        *others, last = said
        return f"with {', '.join(others)} and {last}" if others else f"with {last}"


def drawn_parts(wanted: np.ndarray, rng: np.random.Generator) -> Parts:
    """Draws random parts for the wanted things, bool [N]; none for the others."""
    count = len(wanted)
    has_face = wanted & (rng.random(count) < _HAS_FACE)

    def one_of(options: tuple[str, ...], chosen: np.ndarray) -> np.ndarray:
        return np.where(chosen, rng.integers(1, len(options), size=count), 0)

    return Parts(
        num_eyes=one_of(_EYES, has_face),
        mouth=one_of(MOUTHS, has_face & (rng.random(count) < _HAS_MOUTH)),
        behind=one_of(BEHIND, wanted & ~has_face),
        behind_colour=rng.integers(len(COLOURS), size=count),
        on=one_of(ON, wanted & (rng.random(count) < _HAS_PATTERN)),
        on_colour=rng.integers(len(COLOURS), size=count),
    )
