"""All that the networks need of KerasCV and Keras that neither promises to keep.

KerasCV is the source of the layers and the judge of ours, but it stands still, its Stable Diffusion
lies in modules that are not public, and its layers have to compute otherwise here: as matrix
products on a CPU, with adapters, with diffusers' numerics. What that takes is in this module, and
no other may use a private name of the two: tests/trainer/test_seam.py lists the names and looks
through the code for others. What a new version of KerasCV lacks is told by importing this.

The one means to give layers another arithmetic is to exchange in place what they compute by: their
class, for a subclass that only computes differently, or their dtype policy. So a layer keeps its
variables, and a network the order of its weights, by which weight files and exported models know
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
        f"keras-cv {version('keras-cv')} lacks what the networks are made of ({error}): mend "
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
    """A layer or model, and all layers that it is made of, at any depth."""
    return list(layer._flatten_layers())


def mapped_call(
    model: keras.Model,
    inputs: tf.Tensor | list[tf.Tensor],
    form: Callable[[keras.layers.Layer], Callable[..., Any]],
) -> tf.Tensor:
    """What a functional model computes of `inputs`, with `form(layer)` called for each layer."""
    flat = keras.tree.flatten(inputs)
    [output] = keras.tree.flatten(model._run_through_graph(flat, operation_fn=form))
    return output


@contextlib.contextmanager
def reading(model: keras.Model, values: Sequence[tf.Tensor]) -> Iterator[None]:
    """Within this, a model computes with other values than those of its variables.

    `Model.stateless_call` would cast them to what the variables are of, and so turn a network of
    16 bits into one of 32 in each call.

    Args:
        model: Whose `weights`.
        values: Of any type, in their order.
    """
    with keras.StatelessScope() as scope:
        for variable, value in zip(model.weights, values, strict=True):
            scope.state_mapping[id(variable)] = value
        yield


def compute_as(layer: keras.layers.Layer, form: LayerClass) -> None:
    """Gives a layer another arithmetic.

    Args:
        layer: Keeps its variables.
        form: A subclass of its class that only computes differently, or its class without it.
    """
    layer.__class__ = form


def compute_in(layer: keras.layers.Layer, dtype: str) -> None:
    """Has a layer compute in a type of its own, within `computing_as`, which takes it back."""
    layer.dtype_policy = keras.DTypePolicy(dtype)


@contextlib.contextmanager
def computing_as(
    models: Sequence[keras.Model],
    forms: Mapping[LayerClass, LayerClass],
    policy: keras.DTypePolicy | None = None,
) -> Iterator[None]:
    """Within this, the models' layers have another arithmetic: while a network is traced.

    Args:
        models: Their layers of each class (not of its subclasses) compute as its value does.
        forms: See `compute_as`.
        policy: What all their layers compute under; by default each under its own.
    """
    before = [
        (layer, type(layer), layer.dtype_policy)
        for model in models
        for layer in layers_within(model)
    ]
    default = keras.config.dtype_policy()
    # KerasCV's attention creates a layer at every call, which follows the default.
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
