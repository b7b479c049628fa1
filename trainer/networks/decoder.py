from __future__ import annotations

import keras

from trainer.diffusion.noise_schedule import LATENT_SCALE
from trainer.networks.blocks import (
    AttentionBlock,
    ResnetBlock,
    apply_block,
    autoencoder_epsilon,
    with_group_norms,
)
from trainer.networks.seam import PaddedConv2D
from trainer.presets import LATENT_CHANNELS, ImageSize, Preset


def build_decoder(preset: Preset, image_size: ImageSize) -> keras.Model:
    """The decoder half of the KL autoencoder.

    Args:
        preset: Its `decoder` dimensions and `numerics` are used.
        image_size: Size of the pictures.

    Returns:
        A model from scaled latents, float32 [B, h, w, 4], to pictures, float32 [B, H, W, 3],
        roughly in [-1, 1].
    """
    dimensions = preset.decoder
    groups, epsilon = dimensions.norm_groups, autoencoder_epsilon(preset.numerics)

    def residual(x: keras.KerasTensor, width: int, name: str) -> keras.KerasTensor:
        block = ResnetBlock(width, name=f"decoder.{name}")
        return apply_block(with_group_norms(block, groups, epsilon), x)

    widths = tuple(reversed(dimensions.widths))
    latent = keras.Input(preset.latent_shape(image_size), name="latent")
    x = keras.layers.Rescaling(1.0 / LATENT_SCALE)(latent)
    x = PaddedConv2D(LATENT_CHANNELS, 1, name="post_quant_conv")(x)
    x = PaddedConv2D(widths[0], 3, padding=1, name="decoder.conv_in")(x)
    x = residual(x, widths[0], "mid_block.resnets.0")
    attention = AttentionBlock(widths[0], name="decoder.mid_block.attentions.0")
    x = apply_block(with_group_norms(attention, groups, epsilon), x)
    x = residual(x, widths[0], "mid_block.resnets.1")
    for level, width in enumerate(widths):
        for block in range(dimensions.num_blocks):
            x = residual(x, width, f"up_blocks.{level}.resnets.{block}")
        if level < len(widths) - 1:
            x = keras.layers.UpSampling2D(2)(x)
            name = f"decoder.up_blocks.{level}.upsamplers.0.conv"
            x = PaddedConv2D(width, 3, padding=1, name=name)(x)
    x = keras.layers.GroupNormalization(groups, epsilon=epsilon, name="decoder.conv_norm_out")(x)
    x = keras.layers.Activation("swish", name="decoder.conv_act")(x)
    image = PaddedConv2D(3, 3, padding=1, name="decoder.conv_out")(x)
    return keras.Model(latent, image, name="decoder")
