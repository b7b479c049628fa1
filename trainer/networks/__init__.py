"""The four networks of Stable Diffusion, built from KerasCV's layers and a preset."""

import keras

from trainer.networks.decoder import build_decoder
from trainer.networks.diffusion_model import build_diffusion_model
from trainer.networks.image_encoder import build_image_encoder
from trainer.networks.text_encoder import build_text_encoder
from trainer.presets import ImageSize, Preset

__all__ = [
    "build_decoder",
    "build_diffusion_model",
    "build_image_encoder",
    "build_network",
    "build_text_encoder",
]


def build_network(network: str, preset: Preset, image_size: ImageSize) -> keras.Model:
    """One of `trainer.presets.NETWORKS`, for pictures of `image_size`."""
    if network == "text_encoder":
        return build_text_encoder(preset)
    if network == "image_encoder":
        return build_image_encoder(preset)
    build = build_decoder if network == "decoder" else build_diffusion_model
    return build(preset, image_size)
