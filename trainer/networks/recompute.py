"""Gradient checkpointing (Chen et al. 2016): trades time for memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from trainer.networks.seam import mapped_call


def call_recomputing(model: keras.Model, inputs: tf.Tensor | list[tf.Tensor]) -> tf.Tensor:
    """The result of `model(inputs, training=True)`, with less memory kept for the backward pass.

    For every composite layer (a residual block, a transformer block), only inputs and output are
    kept; its inner values are computed again together with its gradient.

    Args:
        model: A functional model of layers that take a tensor or a list of them.
        inputs: One tensor, or several in the order of the model's inputs.
    """

    def kept_or_recomputed(layer: keras.layers.Layer) -> Callable[..., Any]:
        # A kernel and a bias are one operation: recomputing it would save nothing.
        if len(layer.weights) <= 2:
            return layer

        def call(x: tf.Tensor | list[tf.Tensor]) -> tf.Tensor:
            single = not isinstance(x, (list, tuple))

            @tf.recompute_grad
            def block(*parts: tf.Tensor) -> tf.Tensor:
                return layer(parts[0] if single else list(parts), training=True)

            return block(x) if single else block(*x)

        return call

    return mapped_call(model, inputs, kept_or_recomputed)
