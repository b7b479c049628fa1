"""Held-out losses while a model is trained: what they cost, and what they choose."""

import dataclasses
import logging
import math
import signal
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import small_runs
import tensorflow as tf
from scipy import stats
from small_runs import Zygote, batches_from, config, ends_alike, ends_identical, tuner

from trainer.data.held_out import HeldOutPictures, Pictures, held_out_pictures
from trainer.diffusion.draws import draw_noise
from trainer.diffusion.noise_schedule import alphas_cumprod, timestep_embedding
from trainer.training.evaluations import (
    Evaluation,
    ScoredPictures,
    best_of,
    evaluations_for,
    paired_interval,
    plan_for,
    read_evaluations,
)
from trainer.training.fine_tuner import Batch

# On the batches of `led_astray`, the held-out loss falls and then rises.
ASTRAY = {
    "plain": True,
    "steps": 40,
    "learning_rate": 3e-2,
    "ema_decay": 0.5,
    "caption_dropout": 0.0,
    "checkpoint_every_steps": 7,
    "evaluate_every_steps": 4,
}


@pytest.mark.parametrize(
    ("settings", "pictures", "chooses", "expected"),
    [
        # The default run: 1,680 forward passes for the base weights and 20 evaluations.
        ({"steps": 350, "batch_size": 32}, 25, False, (18, 25, 3)),
        ({"steps": 350, "batch_size": 32}, 200, False, (18, 80, 1)),
        ({"steps": 15000, "batch_size": 4}, 50, True, (750, 50, 8)),
        # Few steps: 120 passes are 7 evaluations of 15 pictures.
        ({"steps": 200, "batch_size": 4}, 40, False, (29, 15, 1)),
        ({"steps": 200, "batch_size": 4, "evaluate_every_steps": 100}, 40, False, (100, 40, 1)),
        ({"steps": 6, "batch_size": 4}, 40, False, None),
        ({"steps": 6, "batch_size": 4}, 40, True, (3, 8, 1)),
        ({"steps": 6, "batch_size": 4, "evaluate_every_steps": 9}, 3, False, (6, 3, 1)),
        ({"steps": 350, "batch_size": 32, "evaluate_every_steps": 0}, 25, False, None),
        ({"steps": 350, "batch_size": 32}, 0, False, None),
    ],
)
def test_evaluations_cost_a_twentieth_of_the_training(
    settings: Mapping, pictures: int, chooses: bool, expected: tuple[int, int, int] | None
) -> None:
    found = config(**settings)
    plan = plan_for(found, pictures, chooses)
    assert (plan and (plan.every, plan.pictures, plan.strata)) == expected
    if plan is not None:
        passes = plan.pictures * plan.strata * (1 + math.ceil(found.steps / plan.every))
        assert plan.cost == pytest.approx(passes / (3 * found.steps * found.batch_size))
        assert found.steps == 6 or 0.03 < plan.cost <= 0.05


def test_the_interval_is_students() -> None:
    values = np.array([1.0, 2.0, 4.0, -1.0])
    expected = stats.t.interval(0.95, 3, values.mean(), stats.sem(values))
    assert paired_interval(values) == pytest.approx(expected)
    assert paired_interval(values[:1]) == (-math.inf, math.inf)


def steps_of(*losses: Sequence[float]) -> list[Evaluation]:
    return [Evaluation(10 * i, tuple(of), "x") for i, of in enumerate(losses)]


def test_of_steps_that_cannot_be_told_apart_the_earlier_is_kept() -> None:
    base = np.array([0.5, 0.9, 0.1, 0.3])
    lower, lowest = base - 0.1, base - 0.12
    chance = np.array([0.3, -0.3, 0.3, -0.3])
    # The base weights are never kept.
    assert best_of(steps_of(base)) is None
    assert best_of(steps_of(base - 1, base, base)).step == 10
    assert best_of(steps_of(base, base, lower)).step == 20
    # Lower on average, by an interval that includes 0.
    assert best_of(steps_of(base, base, lower + chance)).step == 10
    assert best_of(steps_of(base, base, lower, lowest + chance / 10, base)).step == 20
    assert best_of(steps_of(base, base, lower, lowest + chance / 100, base)).step == 30
    # What is no number is not kept, and hides no other.
    nothing = np.full(4, math.nan)
    assert best_of(steps_of(base, nothing, nothing)) is None
    assert best_of(steps_of(base, nothing, base, lower)).step == 30


def test_pictures_are_told_apart_and_divided() -> None:
    records = [small_runs.picture(index) for index in range(6)]
    second = tf.train.Example.FromString(records[0])
    second.features.feature["id"].bytes_list.value[0] = b"another caption"
    records.append(second.SerializeToString(deterministic=True))
    choosing = frozenset(["held-out-0", "another caption", "held-out-4"])
    found = held_out_pictures(records, choosing)
    assert [part.count for part in (found.all, found.choosing, found.judging)] == [6, 2, 4]
    assert set(found.choosing.records) == {records[6], records[4]}
    assert set(found.judging.records) == {records[i] for i in (1, 2, 3, 5)}
    assert set(found.all.records) == set(records[1:])
    # Neither their order nor how many there are besides moves them.
    assert held_out_pictures(reversed(records), choosing) == found
    some = held_out_pictures(records[1:4], choosing).all.records
    assert list(some) == [record for record in found.all.records if record in records[1:4]]


@pytest.mark.parametrize("accumulation_steps", [1, 2])
def test_scores_are_those_of_a_numpy_loop(accumulation_steps: int) -> None:
    subject = tuner(plain=True, caption_dropout=0.0, accumulation_steps=accumulation_steps)
    records = [small_runs.picture(index) for index in range(3)]
    pictures = ScoredPictures(records, 3, small_runs.preset(), 64)
    found = subject.score(pictures).reshape(3, 3)

    for index, record in enumerate(records):
        features = tf.train.Example.FromString(record).features.feature
        mean, log_variance, context = (
            np.frombuffer(features[name].bytes_list.value[0], "<f2").astype(np.float32)
            for name in ("latent/mean", "latent/log_variance", "context")
        )
        for stratum in range(3):
            draw = draw_noise(f"held-out-{index}", stratum, 3, 0, (8, 8, 4))
            deviation = np.exp(log_variance.reshape(8, 8, 4) / 2)
            latent = 0.18215 * (mean.reshape(8, 8, 4) + deviation * draw.posterior_noise)
            alpha = alphas_cumprod()[draw.timestep]
            noisy = np.sqrt(alpha) * latent + np.sqrt(1 - alpha) * draw.epsilon
            embedding = timestep_embedding(tf.constant([draw.timestep]), 8)
            inputs = [tf.constant(noisy[None]), embedding, tf.constant(context.reshape(1, 77, 8))]
            predicted = subject.diffusion_model(inputs).numpy()[0]
            expected = np.mean(np.square(predicted - draw.epsilon))
            assert found[index, stratum] == pytest.approx(expected, rel=1e-4)
    assert pictures.means(found.ravel()) == pytest.approx(found.mean(axis=1), rel=1e-6)


def led_astray(first_step: int) -> Iterator[Batch]:
    """From step 20 on, pictures as no others are."""
    for step, batch in enumerate(batches_from(first_step), first_step + 1):
        mean = batch["latent/mean"]
        yield batch if step < 20 else {**batch, "latent/mean": 40.0 + 20.0 * mean}


def weights(subject) -> list[np.ndarray]:
    return [np.array(tf.convert_to_tensor(v)) for v in subject.variables]


def test_the_best_step_is_kept_of_a_training_that_is_led_astray(tmp_path: Path) -> None:
    judging = ScoredPictures(
        [small_runs.picture(index) for index in range(100, 120)], 4, small_runs.preset(), 64
    )
    subject = tuner(**ASTRAY, keep="best")
    scored = small_runs.evaluations(subject.config, 40)
    averages: dict[int, list[np.ndarray]] = {}

    def on_evaluation(evaluation: Evaluation) -> None:
        averages[evaluation.step] = [np.array(v) for v in subject.optimizer.averages]

    subject.train(led_astray, str(tmp_path), evaluations=scored, on_evaluation=on_evaluation)
    assert [e.step for e in scored.done] == list(range(0, 41, 4))
    best, last = scored.best, scored.done[-1]
    assert 4 < best.step <= 20
    assert best.loss < last.loss
    # The choice is that of its losses alone, which are beside the checkpoints.
    assert read_evaluations(str(tmp_path)) == list(scored.done)
    assert {path.stem for path in tmp_path.glob("kept-*")} == {f"kept-{best.step:06d}"}

    subject.assign_averages()
    loss_of_last = subject.score(judging).mean()
    subject.assign_kept(str(tmp_path), best.step)
    for kept, average in zip(weights(subject), averages[best.step], strict=True):
        np.testing.assert_array_equal(kept, average)
    # Of pictures that nothing was chosen by, too, it is better by far.
    assert subject.score(judging).mean() < loss_of_last - 0.01


def test_what_is_scored_changes_nothing_of_what_is_trained(tmp_path: Path) -> None:
    ends = []
    for count in (0, 40):
        subject = tuner(**{**ASTRAY, "steps": 8})
        scored = small_runs.evaluations(subject.config, count)
        subject.train(batches_from, str(tmp_path / f"{count}"), evaluations=scored)
        ends.append(small_runs.state(subject))
    assert not list(tmp_path.glob("40/kept-*"))
    for a, b in zip(*ends, strict=True):
        np.testing.assert_array_equal(a, b)


def test_training_stops_where_the_loss_falls_no_more_and_is_then_done(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "trainer")
    settings = {**ASTRAY, "stop_early": 3}
    subject = tuner(**settings)
    scored = small_runs.evaluations(subject.config, 40)
    history = subject.train(led_astray, str(tmp_path), evaluations=scored)
    last = history[-1].step
    assert last == scored.done[-1].step == scored.best.step + 12 < 40
    assert f"Training stops at step {last} of 40" in caplog.text
    assert scored.kept is scored.done[-1]
    assert f"lower than at step {scored.best.step} " in scored.why()

    again = tuner(**settings)
    scored_again = small_runs.evaluations(again.config, 40)
    repeated = again.train(led_astray, str(tmp_path), evaluations=scored_again)
    assert [record.step for record in repeated] == [record.step for record in history]
    assert scored_again.done == scored.done


def test_few_pictures_choose_nothing_and_that_is_said(caplog: pytest.LogCaptureFixture) -> None:
    settings = config(keep="best", stop_early=2)
    found = small_runs.evaluations(settings, 15)
    assert found is None
    assert "there are 15, but at least 16 are required (training.choose_from" in caplog.text
    caplog.clear()
    asked = dataclasses.replace(settings, choose_from_pictures=4)
    assert small_runs.evaluations(asked, 15).chooses
    assert not caplog.text
    asked = dataclasses.replace(settings, choose_from_pictures=2)
    assert small_runs.evaluations(asked, 3) is None
    assert "1 of 3 would choose and 2 would judge" in caplog.text


def test_where_hyperparameters_are_chosen_the_judges_are_not_looked_at() -> None:
    pictures = [small_runs.picture(index) for index in range(40)]
    # Those that judge come first, and would be scored if all were.
    parts = (pictures, pictures[20:], pictures[:20])
    held_out = HeldOutPictures(*(Pictures(len(part), part) for part in parts))
    settings = config(steps=100)
    found = evaluations_for(settings, held_out, small_runs.preset(), 64, tuned=True)
    assert found.plan.pictures <= 20
    choosing = ScoredPictures(
        pictures[20 : 20 + found.plan.pictures], found.plan.strata, small_runs.preset(), 64
    )
    assert found.pictures.name == choosing.name
    assert not found.keeps_best


ORDER = {
    "plain": True,
    "held_out": 40,
    "overrides": {"keep": "best", "evaluate_every_steps": 1, "checkpoint_every_steps": 3},
}


def test_killed_in_an_evaluation_it_ends_bit_for_bit_with_the_same_step(
    zygote: Zygote, tmp_path: Path
) -> None:
    whole, folder = tmp_path / "whole", tmp_path / "killed"
    status, log = zygote.run(folder=str(whole), **ORDER)
    assert status == 0, log
    # Number 6 is that of step 5, of which the checkpoint of step 3 knows nothing, nor of step 4's.
    for number, at_evaluation in ((signal.SIGKILL, 6), (signal.SIGTERM, 1)):
        order = {**ORDER, "signal": number.name, "at_evaluation": at_evaluation}
        status, log = zygote.run(folder=str(folder), **order)
        assert status == (-number if number == signal.SIGKILL else 1), log
    # What a kill leaves of files that were being written.
    (folder / "kept-000005_temp").mkdir()
    status, log = zygote.run(folder=str(folder), **ORDER)
    assert status == 0, log
    ends_identical(whole, folder)
    kept = {path.name.split(".")[0] for path in folder.glob("kept-*")}
    assert kept == {path.name.split(".")[0] for path in whole.glob("kept-*")}
    assert len(kept) == 1


def test_two_devices_choose_the_step_that_one_does(zygote: Zygote, tmp_path: Path) -> None:
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder, devices in zip(folders, ({}, {"virtual_cpus": 2}), strict=True):
        status, log = zygote.run(folder=str(folder), **ORDER, **devices)
        assert status == 0, log
    ends_alike(*folders)
    assert {p.name.split(".")[0] for p in folders[0].glob("kept-*")} == {
        p.name.split(".")[0] for p in folders[1].glob("kept-*")
    }
