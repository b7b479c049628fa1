"""The four networks of Stable Diffusion, built from KerasCV's layers and a preset's numbers."""

from trainer.models.decoder import build_decoder
from trainer.models.diffusion_model import build_diffusion_model
from trainer.models.image_encoder import build_image_encoder
from trainer.models.text_encoder import build_text_encoder

__all__ = [
    "build_decoder",
    "build_diffusion_model",
    "build_image_encoder",
    "build_text_encoder",
]
