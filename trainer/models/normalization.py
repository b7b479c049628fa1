"""Group counts for KerasCV's blocks, which hold Keras' default of 32."""

from __future__ import annotations

from typing import TypeVar

import keras

LayerT = TypeVar("LayerT", bound=keras.layers.Layer)

EPSILON = 1e-5
"""KerasCV's epsilon in every normalization."""


def with_norm_groups(layer: LayerT, groups: int) -> LayerT:
    """Sets the number of groups in every group normalization of a layer not yet built."""
    for part in layer._flatten_layers():
        if isinstance(part, keras.layers.GroupNormalization):
            part.groups = groups
    return layer
