"""Mixed precision: networks compute in 16 bits, everything that is kept is float32.

See Micikevicius et al. 2018. Building, exporting and drawing use float32; only while a training
step is traced do the layers of the networks compute in another type.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Sequence

import keras
import tensorflow as tf

from storage.machine import BFLOAT16_CAPABILITY, BFLOAT16_FLAGS, cpu_flags
from trainer.networks.seam import computing_as
from trainer.training.distribution import assign_here
from trainer.training_config import Precision, ResolvedTrainingConfig

_INITIAL_SCALE = 2.0**15
_GROWTH_STEPS = 2000

logger = logging.getLogger(__name__)


def on_this_machine(config: ResolvedTrainingConfig) -> ResolvedTrainingConfig:
    """The configuration with `auto` resolved: bfloat16 if this machine supports it."""
    if config.precision != "auto":
        return config
    precision: Precision = "bfloat16" if _has_bfloat16() else "float32"
    logger.info("The networks compute in %s (training.precision is auto).", precision)
    return dataclasses.replace(config, precision=precision)


def _has_bfloat16() -> bool:
    if not tf.config.list_logical_devices("GPU"):
        return bool(cpu_flags() & BFLOAT16_FLAGS)
    return all(
        tf.config.experimental.get_device_details(gpu).get("compute_capability", (0, 0))
        >= BFLOAT16_CAPABILITY
        for gpu in tf.config.list_physical_devices("GPU")
    )


def computing_in(
    precision: str, models: Sequence[keras.Model]
) -> contextlib.AbstractContextManager[None]:
    """Within this, the models' layers compute in `precision`; their variables stay float32."""
    if precision == "float32":
        return contextlib.nullcontext()
    return computing_as(models, {}, keras.DTypePolicy(f"mixed_{precision}"))


class LossScale:
    """Dynamic loss scaling (Micikevicius et al. 2018, section 3.2).

    Many gradients are below 6e-8, the smallest number in float16. So the loss is multiplied by a
    scale, which doubles after 2000 updates without overflow; an update that overflows is skipped
    and halves it.

    Attributes:
        scale: float32 [].
        updates_at_scale: int64 [], updates since the scale last changed.
        skipped: int64 [], steps that made no update.
    """

    def __init__(self) -> None:
        """Creates the state; under `tf.distribute`, call it in the strategy's scope."""
        self.scale = tf.Variable(_INITIAL_SCALE, trainable=False)
        self.updates_at_scale = tf.Variable(0, dtype=tf.int64, trainable=False)
        self.skipped = tf.Variable(0, dtype=tf.int64, trainable=False)

    def update(self, finite: tf.Tensor) -> tf.Tensor:
        """Records whether all gradients of a step were finite.

        Returns:
            bool [], whether they were not, although the scale could not be halved further.
        """
        scale, updates = tf.identity(self.scale), tf.identity(self.updates_at_scale) + 1
        grows = finite & (updates >= _GROWTH_STEPS)
        # A larger scale gains nothing: by then the smallest gradient is above 1.
        larger = tf.minimum(2.0 * scale, 2.0**24)
        smaller = tf.maximum(0.5 * scale, 1.0)
        assign_here(self.scale, tf.where(finite, tf.where(grows, larger, scale), smaller))
        assign_here(self.updates_at_scale, tf.where(finite & ~grows, updates, 0))
        assign_here(self.skipped, self.skipped + tf.cast(~finite, tf.int64))
        return ~finite & (scale <= 1.0)
