from __future__ import annotations

import keras
from keras_cv.src.models.stable_diffusion.diffusion_model import (
    ResBlock,
    SpatialTransformer,
    Upsample,
)
from keras_cv.src.models.stable_diffusion.padded_conv2d import PaddedConv2D

from trainer.models.blocks import EPSILON, prebuilt, with_norm_groups
from trainer.presets import LATENT_CHANNELS, Preset


def build_diffusion_model(preset: Preset, image_size: int) -> keras.Model:
    """The conditional U-Net that predicts the noise in a latent.

    Args:
        preset: Its `diffusion_model` and `text_encoder` dimensions are used.
        image_size: Side of the square image in pixels.

    Returns:
        A model from `[latent, timestep_embedding, context]`, float32 [B, h, w, 4],
        [B, timestep_width] and [B, 77, D], to epsilon, float32 [B, h, w, 4].
    """
    dimensions = preset.diffusion_model
    text = preset.text_encoder
    latent = keras.Input(preset.latent_shape(image_size), name="latent")
    timestep = keras.Input((dimensions.timestep_width,), name="timestep_embedding")
    context = keras.Input((text.max_length, text.width), name="context")

    embedding = keras.layers.Dense(dimensions.embedding_width)(timestep)
    embedding = keras.layers.Activation("swish")(embedding)
    embedding = keras.layers.Dense(dimensions.embedding_width)(embedding)

    def residual(x: keras.KerasTensor, width: int) -> keras.KerasTensor:
        block = with_norm_groups(ResBlock(width), dimensions.norm_groups)
        return prebuilt(block, [(2, 2, x.shape[-1]), embedding.shape[1:]])([x, embedding])

    def attend(x: keras.KerasTensor, width: int) -> keras.KerasTensor:
        heads = dimensions.num_heads
        block = SpatialTransformer(heads, width // heads, fully_connected=False)
        block = with_norm_groups(block, dimensions.norm_groups)
        return prebuilt(block, [(2, 2, width), context.shape[1:]])([x, context])

    levels = list(zip(dimensions.widths, dimensions.cross_attention, strict=True))
    x = PaddedConv2D(dimensions.widths[0], 3, padding=1)(latent)
    skips = [x]
    for level, (width, has_attention) in enumerate(levels):
        for _ in range(dimensions.num_blocks):
            x = residual(x, width)
            if has_attention:
                x = attend(x, width)
            skips.append(x)
        if level < len(levels) - 1:
            x = PaddedConv2D(width, 3, strides=2, padding=1)(x)
            skips.append(x)

    x = residual(x, dimensions.widths[-1])
    x = attend(x, dimensions.widths[-1])
    x = residual(x, dimensions.widths[-1])

    for level, (width, has_attention) in reversed(list(enumerate(levels))):
        for _ in range(dimensions.num_blocks + 1):
            x = keras.layers.Concatenate()([x, skips.pop()])
            x = residual(x, width)
            if has_attention:
                x = attend(x, width)
        if level > 0:
            x = Upsample(width)(x)

    x = keras.layers.GroupNormalization(dimensions.norm_groups, epsilon=EPSILON)(x)
    x = keras.layers.Activation("swish")(x)
    epsilon = PaddedConv2D(LATENT_CHANNELS, 3, padding=1)(x)
    return keras.Model([latent, timestep, context], epsilon, name="diffusion_model")
