"""Networks on maps of another height and width than they were built for."""

from __future__ import annotations

import keras
import tensorflow as tf

from trainer.networks.seam import mapped_call


def call_at_any_size(
    model: keras.Model, inputs: tf.Tensor | list[tf.Tensor], *, training: bool
) -> tf.Tensor:
    """What a functional model gives of inputs of whatever sides, which are known when it is traced.

    Keras holds the inputs of a model against the shapes that it was built for; its layers, of which
    none has a weight for each position, take any.

    Args:
        model: Of layers that compute the same while they are trained.
        inputs: One tensor, or several in the order of the model's inputs.
        training: As Keras has it.
    """
    given = [tuple(x.shape[1:]) for x in keras.tree.flatten(inputs)]
    # A model of another kind holds nothing against them.
    built_for = getattr(model, "inputs", None)
    if built_for is None or given == [tuple(x.shape[1:]) for x in built_for]:
        return model(inputs, training=training)
    return mapped_call(model, inputs, lambda layer: layer)
