from __future__ import annotations

import keras
from keras_cv.src.models.stable_diffusion.attention_block import AttentionBlock
from keras_cv.src.models.stable_diffusion.padded_conv2d import PaddedConv2D
from keras_cv.src.models.stable_diffusion.resnet_block import ResnetBlock

from trainer.models.blocks import EPSILON, with_norm_groups
from trainer.noise_schedule import LATENT_SCALE
from trainer.presets import LATENT_CHANNELS, Preset


def build_decoder(preset: Preset, image_size: int) -> keras.Model:
    """The decoder half of the KL autoencoder.

    Args:
        preset: Its `decoder` dimensions are used.
        image_size: Side of the square image in pixels.

    Returns:
        A model from scaled latents, float32 [B, h, w, 4], to images, float32 [B, H, W, 3], about
        in [-1, 1].
    """
    dimensions = preset.decoder
    *lower, top = dimensions.widths
    latent = keras.Input(preset.latent_shape(image_size), name="latent")
    x = keras.layers.Rescaling(1.0 / LATENT_SCALE)(latent)
    x = PaddedConv2D(LATENT_CHANNELS, 1)(x)
    x = PaddedConv2D(top, 3, padding=1)(x)
    x = with_norm_groups(ResnetBlock(top), dimensions.norm_groups)(x)
    x = with_norm_groups(AttentionBlock(top), dimensions.norm_groups)(x)
    for _ in range(dimensions.num_blocks + 1):
        x = with_norm_groups(ResnetBlock(top), dimensions.norm_groups)(x)
    for width, width_above in zip(reversed(lower), reversed(dimensions.widths), strict=False):
        x = keras.layers.UpSampling2D(2)(x)
        x = PaddedConv2D(width_above, 3, padding=1)(x)
        for _ in range(dimensions.num_blocks):
            x = with_norm_groups(ResnetBlock(width), dimensions.norm_groups)(x)
    x = keras.layers.GroupNormalization(dimensions.norm_groups, epsilon=EPSILON)(x)
    x = keras.layers.Activation("swish")(x)
    image = PaddedConv2D(3, 3, padding=1)(x)
    return keras.Model(latent, image, name="decoder")
