"""How far a model's pictures of a class have moved from those that the base weights draw.

Both draw from the same noise, so that two pictures of a pair differ by what training has changed,
and by nothing else.
"""

from __future__ import annotations

import math

import numpy as np

from components.measures.feature_distance import latent_features

CLASS_DISTANCE = "class_distance"
"""The feature of a row that has one of the distances, and the metric that is their mean."""

NUM_CLASS_PICTURES, CLASS_CAPTION = "num_class_pictures", "class_caption"
"""Custom properties of the scores: how many of these pictures were drawn, and for which caption."""


def class_distances(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """How far each picture has moved, in mean distances of two of the pictures before.

    Args:
        before: float32 [N, h, w, 4], the image encoder's means of the base weights' pictures.
        after: The same of the model's, from the same noise.

    Returns:
        float32 [N]: 0 of a picture that is the same, 1 of one that is as far from what it was as
        one of the pictures before is from another. Distances are those of `latent_features`: of
        colours, contrasts and layout. NaN where the pictures before are all the same, or one.
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
