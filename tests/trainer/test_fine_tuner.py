"""The training step against NumPy, and runs that are stopped and resumed."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from trainer.fine_tuner import (
    Batch,
    FineTuner,
    TrainingDivergedError,
    learning_rate_at,
    read_history,
)
from trainer.models import build_diffusion_model
from trainer.noise_schedule import alphas_cumprod, timestep_embedding
from trainer.presets import Preset
from trainer.training_config import ResolvedTrainingConfig, TrainingConfig
from trainer.weights import load_base_weights


def config(preset: Preset, **overrides) -> ResolvedTrainingConfig:
    settings = {
        "steps": 6,
        "batch_size": 4,
        "learning_rate": 1e-2,
        "learning_rate_schedule": "constant",
        "warmup_steps": 2,
        "ema_decay": 0.9,
        "checkpoint_every_steps": 2,
        "log_every_steps": 1,
        "seed": 3,
    }
    return TrainingConfig(**{**settings, **overrides}).resolved(preset)


def batch_of(step: int) -> Batch:
    rng = np.random.default_rng(step)
    return {
        "latent/mean": tf.constant(rng.standard_normal((4, 8, 8, 4)), tf.float32),
        "latent/log_variance": tf.constant(rng.standard_normal((4, 8, 8, 4)) - 4, tf.float32),
        "context": tf.constant(rng.standard_normal((4, 77, 8)), tf.float32),
    }


def batches_from(first_step: int) -> Iterator[Batch]:
    while True:
        yield batch_of(first_step)
        first_step += 1


def tuner(preset: Preset, **overrides) -> FineTuner:
    model = build_diffusion_model(preset, 64)
    load_base_weights(model, "diffusion_model", preset, "random")
    return FineTuner(model, preset, config(preset, **overrides), empty_caption=tf.zeros((77, 8)))


def weights(tuner: FineTuner) -> list[np.ndarray]:
    return [np.array(v) for v in (*tuner.variables, *tuner.optimizer.averages)]


def test_loss_is_the_mean_squared_error_of_epsilon_by_hand(small_preset: Preset) -> None:
    subject = tuner(small_preset, caption_dropout=0.0)
    batch, step = batch_of(0), tf.constant(5, tf.int64)
    seen = {}

    class Spy(keras.Model):
        def call(self, inputs, training=False):
            seen["inputs"] = [np.array(x) for x in inputs]
            seen["prediction"] = subject_model(inputs, training=training)
            return seen["prediction"]

    subject_model, subject.diffusion_model = subject.diffusion_model, Spy()
    loss = float(subject.loss(batch, step))

    key = tf.random.experimental.stateless_fold_in(tf.constant([3, 0], tf.int64), step)
    time_key, noise_key, posterior_key, _, _ = tf.unstack(tf.random.split(key, 5))
    noise = tf.random.stateless_normal((4, 8, 8, 4), posterior_key).numpy()
    latent = (
        0.18215 * (batch["latent/mean"] + np.exp(batch["latent/log_variance"] / 2) * noise).numpy()
    )
    timesteps = tf.random.stateless_uniform([4], time_key, 0, 1000, tf.int32).numpy()
    epsilon = tf.random.stateless_normal((4, 8, 8, 4), noise_key).numpy()
    alpha = alphas_cumprod()[timesteps][:, None, None, None]
    noisy = np.sqrt(alpha) * latent + np.sqrt(1 - alpha) * epsilon
    np.testing.assert_allclose(seen["inputs"][0], noisy, atol=1e-4)
    np.testing.assert_allclose(seen["inputs"][1], timestep_embedding(timesteps, 8), atol=1e-5)
    np.testing.assert_allclose(seen["inputs"][2], batch["context"])
    assert loss == pytest.approx(np.mean((epsilon - seen["prediction"]) ** 2), rel=1e-5)


def test_captions_are_dropped_at_the_given_rate(small_preset: Preset) -> None:
    subject = tuner(small_preset, caption_dropout=0.3)
    dropped = []

    class Spy(keras.Model):
        def call(self, inputs, training=False):
            dropped.extend(np.all(np.asarray(inputs[2]) == 0.0, axis=(1, 2)))
            return inputs[0]

    subject.diffusion_model = Spy()
    for step in range(100):
        subject.loss(batch_of(0), tf.constant(step, tf.int64))
    assert np.mean(dropped) == pytest.approx(0.3, abs=0.07)


def test_clipping_is_global(small_preset: Preset, monkeypatch: pytest.MonkeyPatch) -> None:
    subject = tuner(small_preset, max_gradient_norm=0.05)
    applied: list[np.ndarray] = []
    monkeypatch.setattr(
        subject.optimizer,
        "apply",
        lambda gradients, learning_rate, step: applied.extend(g.numpy() for g in gradients),
    )
    _, norm = subject._train_step(batch_of(0))
    assert float(norm) > 0.05
    clipped = np.sqrt(sum(np.square(g).sum() for g in applied))
    assert clipped == pytest.approx(0.05, rel=1e-4)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [0.5, 1.0, 1.0, 1.0, 1.0]),
        ("linear", [0.5, 1.0, 1.0, 0.75, 0.25]),
        ("cosine", [0.5, 1.0, 1.0, 0.5 + 0.5 * np.cos(np.pi / 4), 0.5 - 0.5 * np.cos(np.pi / 4)]),
    ],
)
def test_learning_rate_by_hand(small_preset: Preset, schedule: str, expected: list[float]) -> None:
    settings = config(small_preset, learning_rate=1.0, learning_rate_schedule=schedule)
    actual = [float(learning_rate_at(settings, tf.constant(step))) for step in (0, 1, 2, 3, 5)]
    np.testing.assert_allclose(actual, expected, atol=1e-6)


def test_a_resumed_run_ends_bit_for_bit_like_one_that_was_never_stopped(
    small_preset: Preset, tmp_path: Path
) -> None:
    whole = tuner(small_preset)
    history = whole.train(batches_from, str(tmp_path / "whole"))

    class Stopped(Exception):
        pass

    def stop(record) -> None:
        if record.step == 5:
            raise Stopped

    with pytest.raises(Stopped):
        tuner(small_preset).train(batches_from, str(tmp_path / "stopped"), stop)
    resumed = tuner(small_preset)
    steps: list[int] = []
    resumed_history = resumed.train(
        batches_from, str(tmp_path / "stopped"), lambda record: steps.append(record.step)
    )
    assert steps == [5, 6]
    for a, b in zip(weights(whole), weights(resumed), strict=True):
        np.testing.assert_array_equal(a, b)

    def facts(records) -> list[tuple]:
        return [(r.step, r.loss, r.learning_rate, r.gradient_norm) for r in records]

    assert facts(resumed_history) == facts(history)
    assert facts(read_history(str(tmp_path / "stopped"))) == facts(history)


def test_a_loss_that_is_not_a_number_stops_the_run(small_preset: Preset, tmp_path: Path) -> None:
    def broken(first_step: int) -> Iterator[Batch]:
        for step, batch in enumerate(batches_from(first_step)):
            factor = np.nan if step == 3 else 1.0
            yield {**batch, "context": batch["context"] * factor}

    with pytest.raises(TrainingDivergedError, match=r"step 4.*ckpt-2"):
        tuner(small_preset).train(broken, str(tmp_path))


def test_settings_left_open_are_the_presets(small_preset: Preset) -> None:
    resolved = TrainingConfig(steps=10).resolved(small_preset)
    assert resolved.steps == 10
    assert resolved.batch_size == small_preset.training.batch_size
    assert resolved.warmup_steps == 5
    assert not any(value is None for value in dataclasses.asdict(resolved).values())
