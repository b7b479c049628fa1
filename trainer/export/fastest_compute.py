"""The type in which a network draws fastest: `model.compute: auto`."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping

import keras
import tensorflow as tf

from storage.machine import BFLOAT16_FLAGS, cpu_flags
from trainer.export.saved_models import DiffusionModelModule
from trainer.presets import Preset
from trainer.training_config import ComputeDtype, WeightsDtype

_MEASURED_CALLS = 3
# A smaller gain is as likely to be chance; and float16 is eight times as precise as bfloat16.
_WORTH_IT = 0.9

logger = logging.getLogger(__name__)


def fastest_compute(
    model: keras.Model, preset: Preset, image_size: int, weights_dtype: WeightsDtype
) -> ComputeDtype:
    """Computes a prediction in each type that could be faster here, and returns the fastest.

    Args:
        model: The diffusion model.
        preset: Its preset.
        image_size: The side in pixels that it was trained at.
        weights_dtype: The type in which its weights are stored, and so read.
    """
    seconds = {
        compute: _seconds(model, preset, image_size, weights_dtype, compute)
        for compute in ("float32", *candidates(_has_gpu(), cpu_flags()))
    }
    chosen = choice(seconds)
    said = ", ".join(f"{compute} {1000 * value:.0f} ms" for compute, value in seconds.items())
    logger.info("The exported models compute in %s; a prediction takes: %s.", chosen, said)
    return chosen


def candidates(has_gpu: bool, flags: frozenset[str]) -> tuple[ComputeDtype, ...]:
    """Types that may be faster than float32; a CPU without bfloat16 instructions emulates it."""
    if has_gpu:
        return ("float16", "bfloat16")
    return ("bfloat16",) if flags & BFLOAT16_FLAGS else ()


def choice(seconds: Mapping[ComputeDtype, float]) -> ComputeDtype:
    """The most precise type that no other beats by a tenth.

    Args:
        seconds: Seconds per prediction for each type, the most precise type first.
    """
    chosen, *others = seconds
    for compute in others:
        if seconds[compute] < _WORTH_IT * seconds[chosen]:
            chosen = compute
    return chosen


def _seconds(
    model: keras.Model,
    preset: Preset,
    image_size: int,
    weights_dtype: WeightsDtype,
    compute: ComputeDtype,
) -> float:
    """The shortest of several calls, after one that traces and warms up."""
    module = DiffusionModelModule(model, preset, image_size, weights_dtype, compute)
    latent = tf.zeros([1, *preset.latent_shape(image_size)])
    context = tf.zeros([1, preset.text_encoder.max_length, preset.text_encoder.width])
    taken = []
    for _ in range(1 + _MEASURED_CALLS):
        since = time.monotonic()
        module.predict(latent, tf.constant([500]), context).numpy()
        taken.append(time.monotonic() - since)
    return min(taken[1:])


def _has_gpu() -> bool:
    return bool(tf.config.list_logical_devices("GPU"))
