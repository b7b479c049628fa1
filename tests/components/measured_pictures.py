"""Pictures as two models drew them, and what every measure makes of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from components.measures import MEASURES, Measure, MeasureSettings
from components.measures.measure import Drawn

CLIP = Path(__file__).resolve().parent.parent / "data" / "clip_tiny"
EVERYTHING = MeasureSettings(
    asked_for=tuple(measure.name for measure in MEASURES if measure.particular),
    clip_model=str(CLIP),
)


def drawn() -> Drawn:
    """The candidate's picture and the baseline's, for the same caption."""
    rng = np.random.default_rng(0)
    tokens = np.full((2, 77), 99)  # all that the small CLIP knows
    tokens[:, 0] = 98
    return Drawn(
        pictures=rng.integers(0, 256, (2, 32, 32, 3)).astype(np.uint8),
        means=rng.normal(size=(2, 4, 4, 4)).astype(np.float32),
        tokens=tokens,
        captions=["a drawing of a round red creature with horns"] * 2,
    )


def features_of(measure: Measure) -> dict[str, np.ndarray]:
    """What rows of these pictures have of a measure, by the names of features."""
    values = measure.load(EVERYTHING)(drawn())
    held_out = np.ones((4, 4, 4), np.float32)
    return {n: np.ravel(v) for n, v in measure.features(*values, held_out).items()}
