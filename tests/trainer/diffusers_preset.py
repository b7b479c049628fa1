"""The presets of `tests/data/diffusers_tiny*`, which `benchmarks/weights/reference.py` made.

`PYTHONPATH=. python tests/trainer/diffusers_preset.py FILE` writes it as a single file, for
`benchmarks/weights/single_file.py --values`.
"""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import pytest

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


CHECKPOINT_V2 = CHECKPOINT.with_name("diffusers_tiny_v2")

PRESET_V2: Preset = dataclasses.replace(
    get_preset("sd-v2-1-base"),
    name="tiny-v2",
    image_size=IMAGE_SIZE,
    image_size_multiple=64,
    text_encoder=dataclasses.replace(
        get_preset("sd-v2-1-base").text_encoder,
        width=12,
        num_layers=2,
        num_heads=3,
        vocabulary_size=50,
    ),
    diffusion_model=dataclasses.replace(
        get_preset("sd-v2-1-base").diffusion_model,
        widths=(8, 12),
        cross_attention=(True, False),
        num_blocks=1,
        num_heads=(2, 3),
        timestep_width=8,
        embedding_width=32,
        norm_groups=4,
    ),
    image_encoder=AutoencoderDimensions(widths=(4, 4, 4, 4), num_blocks=1, norm_groups=2),
    decoder=AutoencoderDimensions(widths=(4, 4, 4, 4), num_blocks=2, norm_groups=2),
)


def edit(path: Path, **fields: Any) -> None:
    """Gives fields of a configuration other values."""
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def one_line(error: pytest.ExceptionInfo[BaseException]) -> str:
    """The message of an error, which must be of one line."""
    message = str(error.value)
    assert "\n" not in message
    return message


def write_single_file(path: Path | str, dtype: str = "float32") -> None:
    """Writes the checkpoint as `python -m trainer.diffusers_export` does."""
    from trainer.weights import diffusers_export

    get_preset_ = diffusers_export.get_preset
    diffusers_export.get_preset = lambda name: PRESET
    try:
        diffusers_export.export_base_weights(
            PRESET.name, str(path), base_weights=str(CHECKPOINT), dtype=dtype
        )
    finally:
        diffusers_export.get_preset = get_preset_


if __name__ == "__main__":
    write_single_file(sys.argv[1])
