from __future__ import annotations

import keras

from trainer.networks.blocks import (
    EPSILON,
    ResBlock,
    SpatialTransformer,
    apply_block,
    autoencoder_epsilon,
    with_group_norms,
    with_split_gates,
)
from trainer.networks.seam import PaddedConv2D, Upsample
from trainer.presets import LATENT_CHANNELS, ImageSize, Preset


def build_diffusion_model(preset: Preset, image_size: ImageSize) -> keras.Model:
    """The conditional U-Net that predicts the noise or the velocity of a latent.

    Args:
        preset: Its `diffusion_model` and `text_encoder` dimensions and `numerics` are used.
        image_size: Size of the pictures.

    Returns:
        A model from `[latent, timestep_embedding, context]`, float32 [B, h, w, 4],
        [B, timestep_width] and [B, 77, D], to the prediction, float32 [B, h, w, 4].
    """
    dimensions = preset.diffusion_model
    text = preset.text_encoder
    latent = keras.Input(preset.latent_shape(image_size), name="latent")
    timestep = keras.Input((dimensions.timestep_width,), name="timestep_embedding")
    context = keras.Input((text.max_length, text.width), name="context")

    embedding = keras.layers.Dense(dimensions.embedding_width, name="time_embedding.linear_1")(
        timestep
    )
    embedding = keras.layers.Activation("swish")(embedding)
    embedding = keras.layers.Dense(dimensions.embedding_width, name="time_embedding.linear_2")(
        embedding
    )

    groups = dimensions.norm_groups

    def residual(x: keras.KerasTensor, width: int, name: str) -> keras.KerasTensor:
        block = with_group_norms(ResBlock(width, name=name), groups)
        return apply_block(block, [x, embedding])

    def attend(x: keras.KerasTensor, level: int, name: str) -> keras.KerasTensor:
        heads = dimensions.heads(level)
        size = dimensions.widths[level] // heads
        linear = dimensions.linear_projections
        block = SpatialTransformer(heads, size, fully_connected=linear, name=name)
        block = with_group_norms(block, groups, autoencoder_epsilon(preset.numerics))
        block = with_split_gates(block, preset.numerics)
        return apply_block(block, [x, context])

    levels = list(zip(dimensions.widths, dimensions.cross_attention, strict=True))
    x = PaddedConv2D(dimensions.widths[0], 3, padding=1, name="conv_in")(latent)
    skips = [x]
    for level, (width, has_attention) in enumerate(levels):
        down = f"down_blocks.{level}"
        for block in range(dimensions.num_blocks):
            x = residual(x, width, f"{down}.resnets.{block}")
            if has_attention:
                x = attend(x, level, f"{down}.attentions.{block}")
            skips.append(x)
        if level < len(levels) - 1:
            name = f"{down}.downsamplers.0.conv"
            x = PaddedConv2D(width, 3, strides=2, padding=1, name=name)(x)
            skips.append(x)

    x = residual(x, dimensions.widths[-1], "mid_block.resnets.0")
    x = attend(x, len(levels) - 1, "mid_block.attentions.0")
    x = residual(x, dimensions.widths[-1], "mid_block.resnets.1")

    for level, (width, has_attention) in enumerate(reversed(levels)):
        up = f"up_blocks.{level}"
        for block in range(dimensions.num_blocks + 1):
            x = keras.layers.Concatenate()([x, skips.pop()])
            x = residual(x, width, f"{up}.resnets.{block}")
            if has_attention:
                x = attend(x, len(levels) - 1 - level, f"{up}.attentions.{block}")
        if level < len(levels) - 1:
            x = Upsample(width, name=f"{up}.upsamplers.0")(x)

    x = keras.layers.GroupNormalization(groups, epsilon=EPSILON, name="conv_norm_out")(x)
    x = keras.layers.Activation("swish", name="conv_act")(x)
    predicted = PaddedConv2D(LATENT_CHANNELS, 3, padding=1, name="conv_out")(x)
    return keras.Model([latent, timestep, context], predicted, name="diffusion_model")
