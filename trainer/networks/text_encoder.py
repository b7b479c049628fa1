from __future__ import annotations

import keras
from keras_cv.src.models.stable_diffusion.text_encoder import (
    CLIPEmbedding,
    CLIPEncoderLayer,
    quick_gelu,
)

from trainer.networks.blocks import EPSILON
from trainer.presets import Preset

_ROOT = "text_model"


def build_text_encoder(preset: Preset) -> keras.Model:
    """CLIP's text transformer, up to its last layer normalization.

    Args:
        preset: Its `text_encoder` dimensions are used.

    Returns:
        A model from `[tokens, positions]`, int32 [B, 77] each, to the context, float32 [B, 77, D].
    """
    dimensions = preset.text_encoder
    tokens = keras.Input((dimensions.max_length,), dtype="int32", name="tokens")
    positions = keras.Input((dimensions.max_length,), dtype="int32", name="positions")
    embedding = CLIPEmbedding(
        dimensions.vocabulary_size,
        dimensions.width,
        dimensions.max_length,
        name=f"{_ROOT}.embeddings",
    )
    x = embedding([tokens, positions])
    for layer in range(dimensions.num_layers):
        x = CLIPEncoderLayer(
            dimensions.width,
            dimensions.num_heads,
            activation=quick_gelu,
            name=f"{_ROOT}.encoder.layers.{layer}",
        )(x)
    norm = keras.layers.LayerNormalization(epsilon=EPSILON, name=f"{_ROOT}.final_layer_norm")
    context = norm(x)
    return keras.Model([tokens, positions], context, name="text_encoder")
