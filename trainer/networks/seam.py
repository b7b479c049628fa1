"""Everything that the networks need from KerasCV and Keras that neither promises to keep.

KerasCV is the source of the layers and the reference for ours, but it is no longer developed, its
Stable Diffusion is in modules that are not public, and its layers have to compute differently here:
as matrix products on a CPU, with adapters, with diffusers' numerics. All this is in this module,
and no other may use a private name of the two: tests/trainer/test_seam.py lists the names and
searches the code for others. Importing this module shows whether a new version of KerasCV lacks
any of them.

The only way to give layers another arithmetic is to replace in place either their class, with a
subclass that only computes differently, or their dtype policy. So a layer keeps its variables, and
a network keeps the order of its weights, by which weight files and exported models identify
them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import version
from typing import Any

import keras
import tensorflow as tf

try:
    from keras_cv.src.models.stable_diffusion.attention_block import AttentionBlock
    from keras_cv.src.models.stable_diffusion.diffusion_model import (
        GEGLU,
        CrossAttention,
        ResBlock,
        SpatialTransformer,
        Upsample,
    )
    from keras_cv.src.models.stable_diffusion.padded_conv2d import PaddedConv2D
    from keras_cv.src.models.stable_diffusion.resnet_block import ResnetBlock
    from keras_cv.src.models.stable_diffusion.text_encoder import (
        CLIPEmbedding,
        CLIPEncoderLayer,
        quick_gelu,
    )
except ImportError as error:
    raise ImportError(
        f"keras-cv {version('keras-cv')} lacks layers that the networks are made of ({error}): fix "
        f"{__name__}, or install the version of the lock file"
    ) from error

__all__ = [
    "GEGLU",
    "AttentionBlock",
    "CLIPEmbedding",
    "CLIPEncoderLayer",
    "CrossAttention",
    "PaddedConv2D",
    "ResBlock",
    "ResnetBlock",
    "SpatialTransformer",
    "Upsample",
    "compute_as",
    "compute_in",
    "computing_as",
    "layers_within",
    "mapped_call",
    "quick_gelu",
    "reading",
]

LayerClass = type[keras.layers.Layer]


def layers_within(layer: keras.layers.Layer) -> list[keras.layers.Layer]:
    """A layer or model, and all layers that it contains, at any depth."""
    return list(layer._flatten_layers())


def mapped_call(
    model: keras.Model,
    inputs: tf.Tensor | list[tf.Tensor],
    form: Callable[[keras.layers.Layer], Callable[..., Any]],
) -> tf.Tensor:
    """The output of a functional model, with `form(layer)` called in place of each layer."""
    flat = keras.tree.flatten(inputs)
    [output] = keras.tree.flatten(model._run_through_graph(flat, operation_fn=form))
    return output


@contextlib.contextmanager
def reading(model: keras.Model, values: Sequence[tf.Tensor]) -> Iterator[None]:
    """Within this, a model computes with given values instead of its variables.

    `Model.stateless_call` would cast them to the type of the variables, and so turn a 16-bit
    network into a 32-bit one in each call.

    Args:
        model: The model; its `weights` are replaced.
        values: Values of any type, in the order of the weights.
    """
    with keras.StatelessScope() as scope:
        for variable, value in zip(model.weights, values, strict=True):
            scope.state_mapping[id(variable)] = value
        yield


def compute_as(layer: keras.layers.Layer, form: LayerClass) -> None:
    """Gives a layer another arithmetic.

    Args:
        layer: The layer, which keeps its variables.
        form: A subclass of its class that only computes differently, or the original class.
    """
    layer.__class__ = form


def compute_in(layer: keras.layers.Layer, dtype: str) -> None:
    """Makes a layer compute in its own type, within `computing_as`, which restores it."""
    layer.dtype_policy = keras.DTypePolicy(dtype)


@contextlib.contextmanager
def computing_as(
    models: Sequence[keras.Model],
    forms: Mapping[LayerClass, LayerClass],
    policy: keras.DTypePolicy | None = None,
) -> Iterator[None]:
    """Within this, the layers of the models have another arithmetic, for tracing.

    Args:
        models: The models.
        forms: For a class of layers (not its subclasses), the class that they compute as; see
            `compute_as`.
        policy: Dtype policy of all their layers; by default each keeps its own.
    """
    before = [
        (layer, type(layer), layer.dtype_policy)
        for model in models
        for layer in layers_within(model)
    ]
    default = keras.config.dtype_policy()
    # KerasCV's attention creates a layer in every call, which follows the default.
    keras.config.set_dtype_policy(policy or default)
    try:
        for layer, own_class, own_policy in before:
            compute_as(layer, forms.get(own_class, own_class))
            layer.dtype_policy = policy or own_policy
        yield
    finally:
        keras.config.set_dtype_policy(default)
        for layer, own_class, own_policy in before:
            compute_as(layer, own_class)
            layer.dtype_policy = own_policy
