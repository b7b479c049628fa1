from __future__ import annotations

import functools
from collections.abc import Callable

import keras

from trainer.networks.blocks import EPSILON
from trainer.networks.seam import CLIPEmbedding, CLIPEncoderLayer, quick_gelu
from trainer.presets import Activation, Numerics, Preset

_ROOT = "text_model"


class _Positions(keras.layers.Layer):
    """Position of each token in its sequence, int32, in the shape of the tokens."""

    def call(self, tokens: keras.KerasTensor) -> keras.KerasTensor:
        return keras.ops.broadcast_to(
            keras.ops.arange(tokens.shape[1], dtype="int32"), keras.ops.shape(tokens)
        )

    def compute_output_spec(self, tokens: keras.KerasTensor) -> keras.KerasTensor:
        return keras.KerasTensor(tokens.shape, dtype="int32")


def _activation(
    name: Activation, numerics: Numerics
) -> Callable[[keras.KerasTensor], keras.KerasTensor]:
    if name == "quick_gelu":
        activation: Callable[[keras.KerasTensor], keras.KerasTensor] = quick_gelu
        return activation
    # KerasCV uses the default of Keras, the tanh approximation.
    return functools.partial(keras.ops.gelu, approximate=numerics == "keras_cv")


def build_text_encoder(preset: Preset) -> keras.Model:
    """CLIP's text transformer, up to its last layer normalization.

    Args:
        preset: Its `text_encoder` dimensions and `numerics` are used.

    Returns:
        A model from tokens, int32 [B, 77], to the context, float32 [B, 77, D].
    """
    dimensions = preset.text_encoder
    activation = _activation(dimensions.activation, preset.numerics)
    tokens = keras.Input((dimensions.max_length,), dtype="int32", name="tokens")
    embedding = CLIPEmbedding(
        dimensions.vocabulary_size,
        dimensions.width,
        dimensions.max_length,
        name=f"{_ROOT}.embeddings",
    )
    x = embedding([tokens, _Positions(name="positions")(tokens)])
    for layer in range(dimensions.num_layers):
        x = CLIPEncoderLayer(
            dimensions.width,
            dimensions.num_heads,
            activation=activation,
            name=f"{_ROOT}.encoder.layers.{layer}",
        )(x)
    norm = keras.layers.LayerNormalization(epsilon=EPSILON, name=f"{_ROOT}.final_layer_norm")
    context = norm(x)
    return keras.Model(tokens, context, name="text_encoder")
