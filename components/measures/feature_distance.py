"""Do the pictures, as a set, have the colours, contrasts and layout of the held-out ones?

This applies the formula of the FID to a few numbers from the image encoder's output and needs no
second model.
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
    """Frechet distance between the features of the drawn and of the held-out pictures."""

    name = "feature_distance"
    label = "Feature distance"
    format = "{:.2f}"
    better = "lower"
    note = (
        "The feature distance applies the formula of the FID to 20 numbers from the image "
        "encoder's output. It is not the FID, and can only be compared between models that drew "
        "the same number of pictures of one size."
    )

    def load(self, settings: MeasureSettings) -> Measuring:
        """See `Measure`."""
        return features_of

    def features(
        self, candidate: Value | None, baseline: Value | None, held_out_mean: np.ndarray
    ) -> dict[str, Value | None]:
        """See `Measure`: the feature vectors of all three pictures."""
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
    """Describes a picture by a few numbers, computed from the image encoder's mean.

    Args:
        mean: float32 [h, w, 4].

    Returns:
        float32 [20], scaled like the latents of the diffusion model: the mean of each channel in
        each quarter, and the standard deviation of each channel.
    """
    mean = LATENT_SCALE * mean
    quarters = [
        part.mean(axis=(0, 1))
        for half in np.array_split(mean, _GRID, axis=0)
        for part in np.array_split(half, _GRID, axis=1)
    ]
    return np.concatenate([*quarters, mean.std(axis=(0, 1))]).astype(np.float32)
