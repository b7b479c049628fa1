"""The preset of `tests/data/diffusers_tiny`, which `benchmarks/weights/reference.py` made."""

import dataclasses
from pathlib import Path

from trainer.presets import (
    AutoencoderDimensions,
    DiffusionModelDimensions,
    Preset,
    TextEncoderDimensions,
    get_preset,
)

CHECKPOINT = Path(__file__).resolve().parent.parent / "data" / "diffusers_tiny"
IMAGE_SIZE = 64

PRESET: Preset = dataclasses.replace(
    get_preset("tiny"),
    text_encoder=TextEncoderDimensions(width=12, num_layers=2, num_heads=3, vocabulary_size=50),
    diffusion_model=DiffusionModelDimensions(
        widths=(8, 12, 12),
        cross_attention=(False, True, True),
        num_blocks=1,
        num_heads=2,
        timestep_width=8,
        embedding_width=24,
        norm_groups=4,
    ),
    image_encoder=AutoencoderDimensions(widths=(4, 8, 8, 12), num_blocks=1, norm_groups=4),
    decoder=AutoencoderDimensions(widths=(4, 8, 8, 12), num_blocks=2, norm_groups=4),
)
