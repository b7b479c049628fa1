"""What KerasCV's blocks need before they are used."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import keras
import tensorflow as tf

LayerT = TypeVar("LayerT", bound=keras.layers.Layer)

EPSILON = 1e-5
"""KerasCV's epsilon in every normalization."""


def with_norm_groups(layer: LayerT, groups: int) -> LayerT:
    """Sets the number of groups in every group normalization of a layer not yet built."""
    for part in layer._flatten_layers():
        if isinstance(part, keras.layers.GroupNormalization):
            part.groups = groups
    return layer


def prebuilt(layer: LayerT, input_shapes: Sequence[Sequence[int]]) -> LayerT:
    """Creates a composite layer's variables by calling it once on zeros.

    Left alone, Keras traces a composite layer without a `build` of its own twice on symbolic
    inputs, once to build it and once to call it, and so doubles the work at each level of nesting.

    Args:
        layer: Takes a list of tensors.
        input_shapes: Their shapes without the batch dimension.
    """
    for part in layer._flatten_layers():
        if type(part).build is keras.layers.Layer.build:
            part.built = True
    layer([tf.zeros((1, *shape)) for shape in input_shapes])
    return layer
