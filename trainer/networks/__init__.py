"""The four networks of Stable Diffusion, built from KerasCV's layers and a preset's numbers."""

from trainer.networks.decoder import build_decoder
from trainer.networks.diffusion_model import build_diffusion_model
from trainer.networks.image_encoder import build_image_encoder
from trainer.networks.text_encoder import build_text_encoder

__all__ = [
    "build_decoder",
    "build_diffusion_model",
    "build_image_encoder",
    "build_text_encoder",
]
