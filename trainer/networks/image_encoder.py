from __future__ import annotations

import keras

from trainer.networks.blocks import (
    AttentionBlock,
    ResnetBlock,
    apply_block,
    autoencoder_epsilon,
    with_group_norms,
)
from trainer.networks.seam import PaddedConv2D
from trainer.presets import LATENT_CHANNELS, Preset


def build_image_encoder(preset: Preset) -> keras.Model:
    """The encoder half of the KL autoencoder.

    KerasCV's own class drops the log-variance and scales the mean at its end. This one returns both
    moments unchanged, because training samples from them.

    Args:
        preset: Its `image_encoder` dimensions and `numerics` are used.

    Returns:
        A model from pictures, float32 [B, H, W, 3] in [-1, 1], to moments, float32
        [B, H/8, W/8, 8]: the 4 channels of the mean, then those of the log-variance.
    """
    dimensions = preset.image_encoder
    groups, epsilon = dimensions.norm_groups, autoencoder_epsilon(preset.numerics)

    def residual(x: keras.KerasTensor, width: int, name: str) -> keras.KerasTensor:
        block = ResnetBlock(width, name=f"encoder.{name}")
        return apply_block(with_group_norms(block, groups, epsilon), x)

    top = dimensions.widths[-1]
    image = keras.Input((None, None, 3), name="image")
    x = PaddedConv2D(dimensions.widths[0], 3, padding=1, name="encoder.conv_in")(image)
    for level, width in enumerate(dimensions.widths):
        for block in range(dimensions.num_blocks):
            x = residual(x, width, f"down_blocks.{level}.resnets.{block}")
        if level < len(dimensions.widths) - 1:
            name = f"encoder.down_blocks.{level}.downsamplers.0.conv"
            x = PaddedConv2D(width, 3, padding=((0, 1), (0, 1)), strides=2, name=name)(x)
    x = residual(x, top, "mid_block.resnets.0")
    attention = AttentionBlock(top, name="encoder.mid_block.attentions.0")
    x = apply_block(with_group_norms(attention, groups, epsilon), x)
    x = residual(x, top, "mid_block.resnets.1")
    x = keras.layers.GroupNormalization(groups, epsilon=epsilon, name="encoder.conv_norm_out")(x)
    x = keras.layers.Activation("swish")(x)
    x = PaddedConv2D(2 * LATENT_CHANNELS, 3, padding=1, name="encoder.conv_out")(x)
    moments = PaddedConv2D(2 * LATENT_CHANNELS, 1, name="quant_conv")(x)
    return keras.Model(image, moments, name="image_encoder")
