from __future__ import annotations

import keras
from keras_cv.src.models.stable_diffusion.attention_block import AttentionBlock
from keras_cv.src.models.stable_diffusion.padded_conv2d import PaddedConv2D
from keras_cv.src.models.stable_diffusion.resnet_block import ResnetBlock

from trainer.models.blocks import EPSILON, with_norm_groups
from trainer.presets import LATENT_CHANNELS, Preset


def build_image_encoder(preset: Preset) -> keras.Model:
    """The encoder half of the KL autoencoder.

    KerasCV's own class ends by cutting off the log-variance and scaling the mean; this one gives
    both moments as they are, because training samples from them.

    Args:
        preset: Its `image_encoder` dimensions are used.

    Returns:
        A model from images, float32 [B, H, W, 3] in [-1, 1], to moments, float32
        [B, H/8, W/8, 8]: the mean's 4 channels, then the log-variance's.
    """
    dimensions = preset.image_encoder
    *upper, top = dimensions.widths
    image = keras.Input((None, None, 3), name="image")
    x = PaddedConv2D(dimensions.widths[0], 3, padding=1)(image)
    for width in upper:
        for _ in range(dimensions.num_blocks):
            x = with_norm_groups(ResnetBlock(width), dimensions.norm_groups)(x)
        x = PaddedConv2D(width, 3, padding=((0, 1), (0, 1)), strides=2)(x)
    for _ in range(dimensions.num_blocks + 1):
        x = with_norm_groups(ResnetBlock(top), dimensions.norm_groups)(x)
    x = with_norm_groups(AttentionBlock(top), dimensions.norm_groups)(x)
    x = with_norm_groups(ResnetBlock(top), dimensions.norm_groups)(x)
    x = keras.layers.GroupNormalization(dimensions.norm_groups, epsilon=EPSILON)(x)
    x = keras.layers.Activation("swish")(x)
    x = PaddedConv2D(2 * LATENT_CHANNELS, 3, padding=1)(x)
    moments = PaddedConv2D(2 * LATENT_CHANNELS, 1)(x)
    return keras.Model(image, moments, name="image_encoder")
