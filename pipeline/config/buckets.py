"""Turns the settings of a model into the limits of its buckets."""

from __future__ import annotations

import dataclasses

from pipeline.config.schema import ModelConfig
from trainer.data.buckets import BucketLimits
from trainer.presets import Preset

BUCKET_LIMITS = tuple(field.name for field in dataclasses.fields(BucketLimits))
"""Names of the limits; in the section `model`, they have the prefix `bucket_`."""


def bucket_limits(model: ModelConfig, preset: Preset) -> BucketLimits | None:
    """The limits for sorting pictures into buckets; `None`: pictures become squares.

    Args:
        model: Settings of the model.
        preset: The preset that they name.

    Raises:
        ImpossibleLimitError: The limits allow no buckets.
    """
    if not model.buckets:
        return None
    given = {name: getattr(model, f"bucket_{name}") for name in BUCKET_LIMITS}
    return BucketLimits.of(preset, model.image_size, **given)
