"""How far a model's pictures of a class have moved from the ones that the base weights draw.

Both start from the same noise, so the two pictures of a pair differ only by what training changed.
"""

from __future__ import annotations

import math

import numpy as np

from components.measures.feature_distance import latent_features

CLASS_DISTANCE = "class_distance"
"""The feature that holds a row's distance, and the metric that is the mean of all distances."""

NUM_CLASS_PICTURES, CLASS_CAPTION = "num_class_pictures", "class_caption"
"""Custom properties of the scores: how many of these pictures were drawn, and for which caption."""


def class_distances(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """How far each picture has moved, relative to the mean distance of two pictures before.

    Args:
        before: float32 [N, h, w, 4], the image encoder's means for pictures of the base weights.
        after: The same for pictures that the model draws from the same noise.

    Returns:
        float32 [N]: 0 for a picture that has not changed, 1 for one that has moved as far as two
        pictures before are apart on average. Distances are between `latent_features`: colours,
        contrasts and layout. NaN if there is only one picture before, or all are the same.
    """
    of_before, of_after = (
        np.stack([latent_features(mean) for mean in means]).astype(np.float64)
        for means in (before, after)
    )
    pairs = np.linalg.norm(of_before[:, None] - of_before[None], axis=-1)
    number = len(of_before)
    usual = pairs.sum() / (number * (number - 1)) if number > 1 else 0.0
    moved = np.linalg.norm(of_after - of_before, axis=-1)
    return (moved / usual if usual else np.full(number, math.nan)).astype(np.float32)
