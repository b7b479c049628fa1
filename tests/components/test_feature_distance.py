from __future__ import annotations

import math

import numpy as np
import pytest

from components.measures.feature_distance import latent_features


def test_features_are_the_quarters_means_and_the_deviation():
    mean = np.zeros((4, 4, 4), np.float32)
    mean[:2, :2, 0], mean[:2, 2:, 1], mean[2:, :2, 2], mean[2:, 2:, 3] = 1, 2, 3, 4
    features = latent_features(mean)
    assert features[:16] == pytest.approx(0.18215 * np.diag([1.0, 2.0, 3.0, 4.0]).ravel())
    assert features[16:] == pytest.approx(0.18215 * np.arange(1, 5) * math.sqrt(3 / 16))
