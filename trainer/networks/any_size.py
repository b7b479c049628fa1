"""Calls networks on maps of a different height and width than they were built for."""

from __future__ import annotations

import keras
import tensorflow as tf

from trainer.networks.seam import mapped_call


def call_at_any_size(
    model: keras.Model, inputs: tf.Tensor | list[tf.Tensor], *, training: bool
) -> tf.Tensor:
    """The output of a functional model for inputs of any size, which is known when it is traced.

    Keras checks the inputs of a model against the shapes that it was built for. Its layers take any
    size, because none has a weight for each position.

    Args:
        model: A model whose layers compute the same in training.
        inputs: One tensor, or several in the order of the model's inputs.
        training: As in Keras.
    """
    given = [tuple(x.shape[1:]) for x in keras.tree.flatten(inputs)]
    # A model of another kind does not check its inputs.
    built_for = getattr(model, "inputs", None)
    if built_for is None or given == [tuple(x.shape[1:]) for x in built_for]:
        return model(inputs, training=training)
    return mapped_call(model, inputs, lambda layer: layer)
