"""What KerasCV's blocks need before they are used.

Every layer with weights is named after the module of diffusers' model that it is, such as
`down_blocks.0.resnets.1`, so that `trainer.weights.diffusers_format` need not know how a network
is built.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import keras
import tensorflow as tf

from trainer.networks.seam import GEGLU, compute_as, layers_within
from trainer.presets import Numerics

LayerT = TypeVar("LayerT", bound=keras.layers.Layer)

EPSILON = 1e-5
"""KerasCV's epsilon in every normalization, and diffusers' in most."""

_EXACT_EPSILON = 1e-6


class SplitGEGLU(GEGLU):
    """KerasCV's gated unit, whose two halves are split: slices have a slower gradient.

    A class for layers that are there already: `with_split_gates` makes them of it.
    """

    def call(self, inputs: keras.KerasTensor) -> keras.KerasTensor:
        """From [..., C] to [..., `output_dim`]."""
        x, gate = keras.ops.split(self.dense(inputs), 2, axis=-1)
        return x * self._gelu(gate)

    def _gelu(self, x: keras.KerasTensor) -> keras.KerasTensor:
        return 0.5 * x * (1 + keras.ops.tanh(0.7978845608 * x * (1 + 0.044715 * x**2)))


class ExactGEGLU(SplitGEGLU):
    """The same without the tanh approximation (Hendrycks and Gimpel 2016, section 2)."""

    def _gelu(self, x: keras.KerasTensor) -> keras.KerasTensor:
        return keras.activations.gelu(x, approximate=False)


def autoencoder_epsilon(numerics: Numerics) -> float:
    """Epsilon of the group normalizations in the autoencoder and in the spatial transformers."""
    return _EXACT_EPSILON if numerics == "diffusers" else EPSILON


def with_group_norms(layer: LayerT, groups: int, epsilon: float = EPSILON) -> LayerT:
    """Sets groups and epsilon of every group normalization in a layer that is not yet built."""
    for part in layers_within(layer):
        if isinstance(part, keras.layers.GroupNormalization):
            part.groups = groups
            part.epsilon = epsilon
    return layer


def with_split_gates(layer: LayerT, numerics: Numerics) -> LayerT:
    """Makes every gated unit in a layer one of ours."""
    for part in layers_within(layer):
        if type(part) is GEGLU:
            # A new layer in its place would come last in the order of the weights.
            compute_as(part, ExactGEGLU if numerics == "diffusers" else SplitGEGLU)
    return layer


def prebuilt(layer: LayerT, input_shapes: Sequence[Sequence[int]]) -> LayerT:
    """Creates a composite layer's variables by calling it once on zeros.

    Left alone, Keras traces a composite layer without a `build` of its own twice on symbolic
    inputs, once to build it and once to call it, and so doubles the work at each level of nesting.

    Args:
        layer: Takes a list of tensors.
        input_shapes: Their shapes without the batch dimension.
    """
    for part in layers_within(layer):
        if type(part).build is keras.layers.Layer.build:
            part.built = True
    layer([tf.zeros((1, *shape)) for shape in input_shapes])
    return layer
