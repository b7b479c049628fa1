"""Class pictures beside those that are trained on (Ruiz et al. 2023, section 3.3)."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import small_runs
import tensorflow as tf
from small_runs import Zygote, batch_of, batch_with_prior, ends_alike, state, tuner

from trainer.data.latents import LatentsManifest, batch_spec, make_latent_example
from trainer.data.prior import PRIOR, ClassLatents
from trainer.diffusion.noise_schedule import alphas_cumprod
from trainer.training.fine_tuner import FineTuner, read_history

WEIGHT = 0.7


class _Spy(keras.Model):
    """Predicts by a rule that is done by hand below."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[int, ...]] = []

    def call(self, inputs: list[tf.Tensor], training: bool = False) -> tf.Tensor:
        self.seen.append(tuple(inputs[0].shape))
        return 0.5 * inputs[0] + tf.reduce_mean(inputs[2], axis=[1, 2])[:, None, None, None]


def by_hand(batch: dict[str, tf.Tensor], step: int, stream: int) -> np.ndarray:
    """Each row's squared error of what `_Spy` predicts, by NumPy; random numbers by TensorFlow."""
    key = tf.random.experimental.stateless_fold_in(
        tf.constant([3, stream], tf.int64), tf.constant(step, tf.int64)
    )
    time_key, noise_key, posterior_key, _, _ = tf.unstack(tf.random.split(key, 5))
    posterior, epsilon = (
        tf.random.stateless_normal((4, 8, 8, 4), k).numpy() for k in (posterior_key, noise_key)
    )
    timesteps = tf.random.stateless_uniform([4], time_key, 0, 1000, tf.int32).numpy()
    mean, log_variance = (batch[f"latent/{n}"].numpy() for n in ("mean", "log_variance"))
    latent = 0.18215 * (mean + np.exp(log_variance / 2) * posterior)
    alpha = alphas_cumprod()[timesteps].astype(np.float64)[:, None, None, None]
    noisy = np.sqrt(alpha) * latent + np.sqrt(1 - alpha) * epsilon
    context = batch["context"].numpy().mean((1, 2))[:, None, None, None]
    return np.mean((epsilon - (0.5 * noisy + context)) ** 2, axis=(1, 2, 3))


def test_the_weighed_loss_of_class_pictures_is_added_by_hand() -> None:
    spy = _Spy()
    subject = FineTuner(
        spy,
        small_runs.preset(),
        small_runs.config(caption_dropout=0.0),
        empty_caption=tf.zeros((77, 8)),
        prior_weight=WEIGHT,
    )
    batch, step = batch_with_prior(0), tf.constant(5, tf.int64)
    own, prior = by_hand(batch_of(0), 5, 0), by_hand(batch_of(1000), 5, 1)
    loss = float(subject.loss(batch, step))
    assert loss == pytest.approx(np.mean(own) + WEIGHT * np.mean(prior), rel=1e-5)
    # All through the network at once, as in the paper.
    assert spy.seen == [(8, 8, 8, 4)]
    # Parts of a batch, and devices, have the same rows of both.
    parts = [
        float(subject.loss({k: v[row : row + 1] for k, v in batch.items()}, step, row))
        for row in range(4)
    ]
    rows = own / 4 + WEIGHT * prior / 4
    np.testing.assert_allclose(parts, rows, rtol=1e-4)


def test_without_class_pictures_nothing_else_is_drawn() -> None:
    """What is random for the subject is what it was, whether class pictures are there or not."""
    step = tf.constant(5, tf.int64)
    losses = tuner(plain=True, prior_weight=WEIGHT)._losses(batch_with_prior(0), step, 0)
    alone = tuner(plain=True).loss(batch_of(0), step)
    assert float(losses[0]) == pytest.approx(float(alone), rel=1e-5)
    assert float(losses[1]) != pytest.approx(float(alone), rel=1e-2)


def with_prior_from(first_step: int) -> Iterator[dict[str, tf.Tensor]]:
    return (batch_with_prior(step) for step in itertools.count(first_step))


@pytest.mark.parametrize("overrides", [{}, {"accumulation_steps": 2}], ids=str)
def test_a_resumed_run_ends_bit_for_bit_like_one_that_was_never_stopped(
    tmp_path: Path, overrides: dict[str, Any]
) -> None:
    settings = {
        **{"plain": True, "prior_weight": WEIGHT, "log_every_steps": 4},
        **{"checkpoint_every_steps": 3, **overrides},
    }
    whole = tuner(**settings)

    def copied_in_step_6(first_step: int) -> Iterator[dict[str, tf.Tensor]]:
        for step, batch in enumerate(with_prior_from(first_step), first_step + 1):
            if step == 6:
                shutil.copytree(tmp_path / "whole", tmp_path / "stopped")
            yield batch

    history = whole.train(copied_in_step_6, str(tmp_path / "whole"))
    resumed = tuner(**settings)
    again = resumed.train(with_prior_from, str(tmp_path / "stopped"))
    for a, b in zip(state(whole), state(resumed), strict=True):
        np.testing.assert_array_equal(a, b)
    said = [(r.step, r.loss, r.prior_loss, r.gradient_norm) for r in history]
    assert [(r.step, r.loss, r.prior_loss, r.gradient_norm) for r in again] == said
    read = read_history(str(tmp_path / "stopped"))
    assert [(r.step, r.loss, r.prior_loss, r.gradient_norm) for r in read] == said
    # Both losses of the last two steps, each by itself, are means of what those steps had.
    assert all(r.prior_loss > 0 and r.prior_loss != r.loss for r in history)


def test_the_history_of_a_run_without_class_pictures_does_not_speak_of_them(tmp_path: Path) -> None:
    tuner(plain=True).train(small_runs.batches_from, str(tmp_path))
    assert "prior" not in (tmp_path / "history.jsonl").read_text()


def test_two_devices_and_parts_of_a_batch_are_one_device_with_the_whole(
    zygote: Zygote, tmp_path: Path
) -> None:
    order = {"plain": True, "prior_weight": WEIGHT}
    status, log = zygote.run(folder=str(tmp_path / "one"), **order)
    assert status == 0, log
    parts = {"overrides": {"accumulation_steps": 2}}
    status, log = zygote.run(folder=str(tmp_path / "two"), virtual_cpus=2, **order, **parts)
    assert status == 0, log
    ends_alike(tmp_path / "one", tmp_path / "two")


def write_latents(folder: Path, names: dict[str, list[str]], views: int | None = None) -> Path:
    """Latents of noise, the ids of each split."""
    rng = np.random.default_rng(0)
    options = tf.io.TFRecordOptions(compression_type="GZIP")
    for split, ids in names.items():
        (folder / f"Split-{split}").mkdir(parents=True)
        path = folder / f"Split-{split}" / "latents-00000-of-00001.gz"
        with tf.io.TFRecordWriter(str(path), options) as writer:
            for name in ids:
                example = make_latent_example(
                    example_id=name,
                    tokens=rng.integers(0, 49408, 77),
                    context=rng.standard_normal((77, 8)),
                    mean=rng.standard_normal((8, 8, 4)),
                    log_variance=rng.standard_normal((8, 8, 4)),
                    repeats=None if views is None or split == "eval" else 2,
                )
                writer.write(example.SerializeToString(deterministic=True))
    counts = {split: len(ids) for split, ids in names.items()}
    LatentsManifest("small", 64, "hash", False, counts, views).write(str(folder))
    return folder


@pytest.mark.parametrize("repeats", [1, 2])
def test_class_pictures_of_all_splits_come_in_an_order_that_the_step_decides(
    tmp_path: Path, repeats: int
) -> None:
    names = {"train": ["a", "b", "c"], "eval": ["d", "e"]}
    uri = str(write_latents(tmp_path, names, None if repeats == 1 else 3 * repeats))
    prior, small = ClassLatents.read(uri), small_runs.preset()

    def batches(first_step: int, steps: int) -> list[dict[str, tf.Tensor]]:
        own = small_runs.batches_from(first_step)
        options = {"batch_size": 4, "seed": 3, "first_step": first_step}
        return list(itertools.islice(prior.with_prior(own, small, 64, **options), steps))

    found = batches(0, 7)
    seen = [name.decode() for batch in found for name in batch[f"{PRIOR}id"].numpy()]
    assert len(seen) == 28
    epoch = 3 * repeats + 2
    for start in range(0, len(seen) - epoch, epoch):
        expected = [*"abc" * repeats, *"de"]
        assert sorted(seen[start : start + epoch]) == sorted(expected)
    # Where a resumed run goes on, it finds what one that was never stopped would.
    for again, before in zip(batches(4, 3), found[4:], strict=True):
        assert again.keys() == before.keys()
        for name in again:
            np.testing.assert_array_equal(again[name], before[name])
    spec = {**batch_spec(small, 64, False, 4), **prior.spec(small, 64, 4)}
    assert {name for name in found[0] if not name.endswith("id")} == spec.keys()
    for name, like in spec.items():
        assert (found[0][name].shape, found[0][name].dtype) == (like.shape, like.dtype)
