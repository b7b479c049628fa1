"""Networks of a few thousand parameters, from the builders that full-size ones come from."""

import dataclasses

import pytest

from trainer.presets import (
    AutoencoderDimensions,
    DiffusionModelDimensions,
    Preset,
    TextEncoderDimensions,
    get_preset,
)


@pytest.fixture(scope="session")
def small_preset() -> Preset:
    return dataclasses.replace(
        get_preset("tiny"),
        text_encoder=TextEncoderDimensions(width=8, num_layers=1, num_heads=2),
        diffusion_model=DiffusionModelDimensions(
            widths=(8,),
            cross_attention=(True,),
            num_blocks=1,
            num_heads=2,
            timestep_width=8,
            embedding_width=16,
            norm_groups=4,
        ),
        image_encoder=AutoencoderDimensions(widths=(8, 8, 8, 16), num_blocks=1, norm_groups=4),
        decoder=AutoencoderDimensions(widths=(8, 8, 8, 16), num_blocks=1, norm_groups=4),
    )
