"""Prepares KerasCV's blocks for use.

Every layer with weights has the name of its module in diffusers' model, such as
`down_blocks.0.resnets.1`, so that `trainer.weights.diffusers_format` need not know how a network
is built.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import keras
import tensorflow as tf

from trainer.networks import seam
from trainer.networks.seam import GEGLU, compute_as, layers_within
from trainer.presets import Numerics

LayerT = TypeVar("LayerT", bound=keras.layers.Layer)

EPSILON = 1e-5
"""KerasCV's epsilon in every normalization, and diffusers' in most."""

_EXACT_EPSILON = 1e-6


class SplitGEGLU(GEGLU):
    """KerasCV's gated unit with a split into two halves: slices have a slower gradient.

    This is a class for existing layers: `with_split_gates` converts them to it.
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
    """Converts every gated unit in a layer to one of ours."""
    for part in layers_within(layer):
        if type(part) is GEGLU:
            # A new layer instead would come last in the order of the weights.
            compute_as(part, ExactGEGLU if numerics == "diffusers" else SplitGEGLU)
    return layer


class _SamePositions(keras.layers.Layer):
    """A block that states the shape of its output.

    Otherwise Keras would trace it to find out, and take twice as long to build a network.
    """

    def compute_output_shape(self, input_shape: Sequence[Any]) -> tuple[int | None, ...]:
        """From [B, h, w, C], or a list that begins with it, to [B, h, w, `output_dim`]."""
        first = input_shape[0] if isinstance(input_shape[0], Sequence) else input_shape
        return (*first[:-1], getattr(self, "output_dim", first[-1]))


class ResBlock(_SamePositions, seam.ResBlock):
    """The residual block of the U-Net."""


class SpatialTransformer(_SamePositions, seam.SpatialTransformer):
    """The attention of the U-Net."""


class ResnetBlock(_SamePositions, seam.ResnetBlock):
    """The residual block of the autoencoder."""


class AttentionBlock(_SamePositions, seam.AttentionBlock):
    """The attention of the autoencoder."""


def apply_block(
    block: keras.layers.Layer, inputs: keras.KerasTensor | list[keras.KerasTensor]
) -> keras.KerasTensor:
    """The output of a new block for symbolic inputs.

    Calling it once on zeros creates its variables. Otherwise Keras builds a composite layer without
    its own `build` by tracing it, which doubles the work at each level of nesting.
    """
    for part in layers_within(block):
        if type(part).build is keras.layers.Layer.build:
            part.built = True
    block(keras.tree.map_structure(_zeros_like, inputs))
    return block(inputs)


def _zeros_like(x: keras.KerasTensor) -> tf.Tensor:
    """Zeros of the same rank and width, otherwise small: variables depend only on these."""
    return tf.zeros((1, *[2] * (len(x.shape) - 2), x.shape[-1]))
