"""How far pictures of a class have moved, by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from components.measures.class_distance import class_distances
from components.measures.feature_distance import latent_features


def means(*values: float) -> np.ndarray:
    """Of pictures of one colour each."""
    return np.stack([np.full((4, 4, 4), value, np.float32) for value in values])


def test_it_is_measured_by_what_is_usual_between_two_pictures() -> None:
    before = means(0.0, 1.0, 3.0)
    # Distances of 1, 3 and 2: 2 is usual.
    found = class_distances(before, means(0.0, 2.0, 7.0))
    np.testing.assert_allclose(found, [0.0, 0.5, 2.0], rtol=1e-6)
    # Each picture is compared with its own, and not with the nearest one.
    np.testing.assert_allclose(class_distances(before, means(3.0, 1.0, 0.0)), [1.5, 0.0, 1.5])


def test_it_is_of_what_features_say() -> None:
    rng = np.random.default_rng(0)
    before, after = rng.standard_normal((2, 5, 8, 8, 4)).astype(np.float32)
    features = np.stack([latent_features(mean) for mean in before]).astype(float)
    pairs = [np.linalg.norm(a - b) for i, a in enumerate(features) for b in features[:i]]
    moved = [
        np.linalg.norm(latent_features(b).astype(float) - a)
        for a, b in zip(features, after, strict=True)
    ]
    expected = np.array(moved) / np.mean(pairs)
    np.testing.assert_allclose(class_distances(before, after), expected, rtol=1e-5)


@pytest.mark.parametrize("before", [means(1.0), means(1.0, 1.0)])
def test_without_two_different_pictures_there_is_no_number(before: np.ndarray) -> None:
    assert all(math.isnan(value) for value in class_distances(before, before + 1))
