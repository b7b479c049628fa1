"""Have the pictures, as a set, the colours, the contrasts and the layout of the held-out ones?

The FID's formula on a few numbers of the image encoder's output, which needs no second model.
"""

from __future__ import annotations

import numpy as np

from components.measures.measure import (
    Drawn,
    Measure,
    MeasureSettings,
    Measuring,
    MetricSpec,
    Value,
)
from trainer.presets import LATENT_SCALE

_GRID = 2
_CANDIDATE, _BASELINE, _HELD_OUT = "features_candidate", "features_baseline", "features_held_out"


class FeatureDistance(Measure):
    """Frechet distance of the drawn pictures' features and the held-out ones'."""

    name = "feature_distance"
    label = "Feature distance"
    format = "{:.2f}"
    better = "lower"
    note = (
        "The feature distance is the FID's formula on 20 numbers of the image encoder's output; it "
        "is not the FID, and can only be compared between models that drew as many pictures of one "
        "size."
    )

    def load(self, settings: MeasureSettings) -> Measuring:
        """See `Measure`."""
        return features_of

    def features(
        self, candidate: Value | None, baseline: Value | None, held_out_mean: np.ndarray
    ) -> dict[str, Value | None]:
        """See `Measure`: the vectors of all three pictures."""
        return {
            _CANDIDATE: candidate,
            _BASELINE: baseline,
            _HELD_OUT: latent_features(held_out_mean),
        }

    def metrics(self) -> tuple[MetricSpec, MetricSpec]:
        """See `Measure`."""
        candidate, baseline = (
            MetricSpec(
                "FrechetDistance", {"feature": feature, "reference": _HELD_OUT, "name": name}
            )
            for feature, name in ((_CANDIDATE, self.name), (_BASELINE, self.baseline_name))
        )
        return candidate, baseline


def features_of(drawn: Drawn) -> list[np.ndarray]:
    """The features of each picture; see `latent_features`."""
    return [latent_features(mean) for mean in drawn.means]


def latent_features(mean: np.ndarray) -> np.ndarray:
    """A picture in a few numbers, out of the image encoder's mean.

    Args:
        mean: float32 [h, w, 4].

    Returns:
        float32 [20], scaled as the diffusion model sees latents: the mean of each channel in each
        quarter, and each channel's standard deviation.
    """
    mean = LATENT_SCALE * mean
    quarters = [
        part.mean(axis=(0, 1))
        for half in np.array_split(mean, _GRID, axis=0)
        for part in np.array_split(half, _GRID, axis=1)
    ]
    return np.concatenate([*quarters, mean.std(axis=(0, 1))]).astype(np.float32)
