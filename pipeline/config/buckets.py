"""From the settings of a model to the limits of its buckets."""

from __future__ import annotations

import dataclasses

from pipeline.config.schema import ModelConfig
from trainer.data.buckets import BucketLimits
from trainer.presets import Preset

BUCKET_LIMITS = tuple(field.name for field in dataclasses.fields(BucketLimits))
"""What limits them; in the section `model`, `bucket_` stands before these."""


def bucket_limits(model: ModelConfig, preset: Preset) -> BucketLimits | None:
    """The limits that pictures are brought to buckets by; `None`: they are brought to a square.

    Args:
        model: Its settings.
        preset: The one that it names.

    Raises:
        ImpossibleLimitError: There can be no such buckets.
    """
    if not model.buckets:
        return None
    given = {name: getattr(model, f"bucket_{name}") for name in BUCKET_LIMITS}
    return BucketLimits.of(preset, model.image_size, **given)
