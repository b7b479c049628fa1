"""Training runs of a network of a few thousand parameters; as a program, one run in a process."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# As tests/conftest.py, for the processes that this is run in.
os.environ["TF_USE_LEGACY_KERAS"] = "0"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

import numpy as np
import tensorflow as tf

from trainer.distribution import is_chief, training_strategy
from trainer.fine_tuner import Batch, FineTuner
from trainer.models import build_diffusion_model, build_text_encoder
from trainer.presets import (
    AutoencoderDimensions,
    DiffusionModelDimensions,
    Preset,
    TextEncoderDimensions,
    get_preset,
)
from trainer.tokenizer import tokenize
from trainer.training_config import ResolvedTrainingConfig, TrainingConfig
from trainer.weights import load_base_weights

BATCH = 4


def preset() -> Preset:
    """A few thousand parameters, from the builders that full-size networks come from."""
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


def config(**overrides: Any) -> ResolvedTrainingConfig:
    """Six steps of four examples; a checkpoint every two, a record every step."""
    settings = {
        "steps": 6,
        "batch_size": BATCH,
        "learning_rate": 1e-2,
        "learning_rate_schedule": "constant",
        "warmup_steps": 2,
        "ema_decay": 0.9,
        "checkpoint_every_steps": 2,
        "log_every_steps": 1,
        "seed": 3,
    }
    return TrainingConfig(**{**settings, **overrides}).resolved(preset())


def batch_of(step: int) -> Batch:
    """Latents, contexts and tokens that depend on the step alone."""
    rng = np.random.default_rng(step)
    return {
        "id": tf.constant([f"{step}-{row}" for row in range(BATCH)]),
        "latent/mean": tf.constant(rng.standard_normal((BATCH, 8, 8, 4)), tf.float32),
        "latent/log_variance": tf.constant(rng.standard_normal((BATCH, 8, 8, 4)) - 4, tf.float32),
        "context": tf.constant(rng.standard_normal((BATCH, 77, 8)), tf.float32),
        "tokens": tf.constant(rng.integers(0, 49408, (BATCH, 77)), tf.int64),
    }


def batches_from(first_step: int) -> Iterator[Batch]:
    """The batches after `first_step` steps."""
    while True:
        yield batch_of(first_step)
        first_step += 1


def tuner(*, strategy: tf.distribute.Strategy | None = None, **overrides: Any) -> FineTuner:
    """A fine-tuner of the small network."""
    with (strategy or tf.distribute.get_strategy()).scope():
        model = build_diffusion_model(preset(), 64)
        load_base_weights(model, "diffusion_model", preset(), "random")
        text_encoder = None
        if overrides.get("train_text_encoder"):
            text_encoder = build_text_encoder(preset())
            load_base_weights(text_encoder, "text_encoder", preset(), "random")
    empty = tf.constant(tokenize([""])[0]) if text_encoder else tf.zeros((77, 8))
    return FineTuner(
        model,
        preset(),
        config(**overrides),
        empty_caption=empty,
        text_encoder=text_encoder,
        strategy=strategy,
    )


def state(subject: FineTuner) -> list[np.ndarray]:
    """Everything that a run leaves behind."""
    optimizer = subject.optimizer
    return [
        np.array(tf.convert_to_tensor(v))
        for v in (
            *subject.variables,
            *optimizer.first_moments,
            *optimizer.second_moments,
            *optimizer.averages,
            *([subject.loss_scale.scale] if subject.loss_scale else []),
        )
    ]


def main() -> None:
    """Trains as the JSON in the first argument says, and writes `<folder>/end.npz`.

    Keys: `folder`, `overrides` of the configuration, `signal` and `at_step` to send oneself a
    signal when a step's batch is asked for, `distributed`.
    """
    order = json.loads(sys.argv[1])
    strategy = training_strategy("all") if order.get("distributed") else None
    subject = tuner(strategy=strategy, **order["overrides"])

    def batches(first_step: int) -> Iterator[Batch]:
        for step, batch in enumerate(batches_from(first_step), first_step + 1):
            if step == order.get("at_step"):
                os.kill(os.getpid(), signal.Signals[order["signal"]])
            yield batch

    records = subject.train(batches, order["folder"])
    if is_chief(strategy):
        losses = [(r.step, r.loss, r.learning_rate, r.gradient_norm) for r in records]
        arrays = {f"{i:04d}": array for i, array in enumerate(state(subject))}
        np.savez(Path(order["folder"], "end.npz"), losses=np.array(losses), **arrays)


if __name__ == "__main__":
    main()
