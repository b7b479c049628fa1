"""A training with more steps goes on from a shorter one, and ends as if it had been one."""

import dataclasses
import json
import logging
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_runs
import tensorflow as tf
from small_runs import batches_from, config, state, tuner

from storage.user_errors import UserError
from trainer.training.checkpoints import (
    KeptWeights,
    RunCheckpoints,
    StartingPoint,
    checkpoint_steps,
)
from trainer.training.evaluations import Evaluations, Plan, plan_for
from trainer.training.fine_tuner import Batch, FineTuner, StepRecord, read_history
from trainer.training.going_on import Candidate, Line, Note, chosen_alike, goes_on
from trainer.training_config import ResolvedTrainingConfig

HELD_OUT = 40


def facts(records: Sequence[StepRecord]) -> list[tuple]:
    """Records without the time that they took."""
    return [dataclasses.astuple(dataclasses.replace(r, images_per_second=0.0)) for r in records]


@dataclasses.dataclass(frozen=True)
class End:
    """What a training leaves."""

    folder: Path
    state: list[np.ndarray]
    history: list[StepRecord]
    evaluations: Evaluations
    kept: list[np.ndarray]

    def is_like(self, other: "End") -> None:
        for a, b in zip(self.state, other.state, strict=True):
            np.testing.assert_array_equal(a, b)
        assert facts(self.history) == facts(other.history)
        assert facts(read_history(str(self.folder))) == facts(other.history)
        assert self.evaluations.done == other.evaluations.done
        assert self.evaluations.best == other.evaluations.best
        for a, b in zip(self.kept, other.kept, strict=True):
            np.testing.assert_array_equal(a, b)


def train(subject: FineTuner, folder: Path, **options: Any) -> End:
    scored = small_runs.evaluations(subject.config, HELD_OUT)
    batches = options.pop("batches", batches_from)
    history = subject.train(batches, str(folder), evaluations=scored, **options)
    weights = tf.train.load_checkpoint(str(folder / f"kept-{scored.best.step:06d}"))
    names = sorted(name for name in weights.get_variable_to_shape_map() if "VALUE" in name)
    kept = [weights.get_tensor(name) for name in names]
    assert len(kept) >= len(subject.variables)
    return End(folder, state(subject), history, scored, kept)


# A record every four steps, which is none of the last step of six.
SHARED = {
    "log_every_steps": 4,
    "checkpoint_every_steps": 3,
    "evaluate_every_steps": 2,
    "choose_from_pictures": 2,
    "keep": "best",
}


@pytest.mark.parametrize(
    "settings",
    [
        {"plain": True, "accumulation_steps": 2, "min_snr_gamma": 5.0, "noise_offset": 0.1},
        pytest.param(
            {"lora_rank": 2, "accumulation_steps": 2, "min_snr_gamma": 5.0, "ema_decay": 0.99},
            marks=pytest.mark.slow,
        ),
        pytest.param(
            {"train_text_encoder": True, "lora_rank": 2, "precision": "float16"},
            marks=pytest.mark.slow,
        ),
    ],
    ids=str,
)
def test_with_more_steps_it_ends_bit_for_bit_as_if_it_had_been_one(
    tmp_path: Path, settings: dict[str, Any]
) -> None:
    long, short = (tuner(steps=steps, **SHARED, **settings) for steps in (9, 6))
    whole = train(long, tmp_path / "whole")
    shorter = train(short, tmp_path / "shorter")
    # The last record of the shorter one is none of the longer one's.
    assert [record.step for record in shorter.history] == [4, 6]
    assert [record.step for record in whole.history] == [4, 8, 9]
    before = {path.name: path.read_bytes() for path in shorter.folder.iterdir()}
    told = []

    def killed(first_step: int) -> Iterator[Batch]:
        assert first_step == 6
        yield small_runs.batch_of(first_step)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(
            long,
            tmp_path / "longer",
            batches=killed,
            start=StartingPoint(str(shorter.folder), checkpoint_steps(str(shorter.folder))[-1]),
            on_start=lambda records, evaluated: told.append(
                ([r.step for r in records], [e.step for e in evaluated])
            ),
        )
    assert told == [([4], [0, 2, 4, 6])]
    assert {path.name: path.read_bytes() for path in shorter.folder.iterdir()} == before
    # From its beginning on it needs the shorter one no more.
    shutil.rmtree(shorter.folder)
    train(long, tmp_path / "longer").is_like(whole)


def test_a_damaged_checkpoint_is_told_with_the_way_out(tmp_path: Path) -> None:
    value = tf.Variable(tf.zeros(1000))
    RunCheckpoints(str(tmp_path / "shorter"), kept=1, value=value).save(6)
    assert checkpoint_steps(str(tmp_path / "shorter")) == [6]
    [data] = (tmp_path / "shorter").glob("ckpt-6.data-*")
    data.write_bytes(data.read_bytes()[:100])
    checkpoints = RunCheckpoints(str(tmp_path / "longer"), kept=1, value=value)
    with pytest.raises(UserError, match=r"cannot be read \(.*: remove .*shorter to do all steps"):
        checkpoints.restore(StartingPoint(str(tmp_path / "shorter"), 6))


CONSTANT = config(steps=20, warmup_steps=2, evaluate_every_steps=1)
LONGER = dataclasses.replace(CONSTANT, steps=40)


def write_checkpoints(folder: Path, *steps: int) -> None:
    value = tf.Variable(0.0)
    manager = tf.train.CheckpointManager(tf.train.Checkpoint(value=value), str(folder), 9)
    for step in steps:
        manager.save(checkpoint_number=step)


def noted(
    folder: Path | str, training_id: str, settings: ResolvedTrainingConfig, plan: Plan | None = None
) -> Line:
    line = Line(str(folder), "line", training_id)
    line.note(Note(settings.steps, settings.warmup_steps, plan, {}))
    return line


def test_checkpoints_weights_and_notes_may_be_remote() -> None:
    folder, value = "ram://going-on/run", tf.Variable(3.0)
    RunCheckpoints(f"{folder}/short", kept=1, value=value).save(20)
    KeptWeights(f"{folder}/short", [value]).save(7)
    noted(folder, "short", CONSTANT)
    [found] = Line(folder, "line", "mine").candidates(LONGER)
    assert found == Candidate(StartingPoint(f"{folder}/short", 20), Note(20, 2))
    value.assign(0.0)
    assert RunCheckpoints(f"{folder}/mine", kept=1, value=value).restore(found.start) == found.start
    assert float(value) == 3.0
    value.assign(0.0)
    mine = KeptWeights(f"{folder}/mine", [value])
    mine.take_over(found.start.folder, 7)
    mine.restore(7)
    assert float(value) == 3.0


def test_what_tensorflow_would_not_restore_is_not_gone_on_from(tmp_path: Path) -> None:
    folder = str(tmp_path / "[a] *")
    RunCheckpoints(f"{folder}/short", kept=1, value=tf.Variable(3.0)).save(20)
    noted(folder, "short", CONSTANT)
    assert Line(folder, "line", "mine").candidates(LONGER) == []


def test_the_furthest_checkpoint_of_a_line_that_is_not_too_far_is_gone_on_from(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "trainer")
    line = Line(str(tmp_path), "line", "mine")
    assert line.own is None
    assert line.candidates(LONGER) == []
    plan = plan_for(CONSTANT, 20, False)
    # Of one that is longer, and was killed; of another line; and what is no note.
    for training_id, settings, steps in (
        ("short", CONSTANT, (10, 20)),
        ("long", dataclasses.replace(LONGER, steps=80), (30, 39, 60)),
        ("mine", LONGER, (1,)),
    ):
        write_checkpoints(tmp_path / training_id, *steps)
        noted(tmp_path, training_id, settings, plan)
    write_checkpoints(tmp_path / "other", 35)
    Line(str(tmp_path), "another line", "other").note(Note(35, 2))
    (tmp_path / "lines" / "line" / "odd.json").write_text('{"steps": 3}')
    found = line.candidates(LONGER)
    assert [(Path(c.start.folder).name, c.start.step) for c in found] == [
        ("long", 39),
        ("short", 20),
    ]
    assert found[1].note == Note(20, 2, plan, {})
    assert line.own == Note(40, 2, plan, {})
    assert "odd.json is not a note of a training" in caplog.text
    assert "Not continuing" not in caplog.text


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (
            {"learning_rate_schedule": "cosine"},
            "the learning rate schedule, cosine, depends on the last step",
        ),
        (
            {"learning_rate_schedule": "linear"},
            "the learning rate schedule, linear, depends on the last step",
        ),
        ({"warmup_steps": 9}, "its warm-up had 2 steps, and the warm-up of this one has 9"),
        ({}, "its checkpoints are gone"),
        ({"steps": 20}, None),
    ],
    ids=str,
)
def test_why_all_steps_are_done_anew_is_told(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    settings: dict[str, Any],
    reason: str | None,
) -> None:
    caplog.set_level(logging.INFO, "trainer")
    line = noted(tmp_path, "short", CONSTANT)
    if settings:
        write_checkpoints(tmp_path / "short", 20)
    else:
        # Half of one, as somebody leaves it who makes room.
        write_checkpoints(tmp_path / "short", 20)
        next((tmp_path / "short").glob("*.data-*")).unlink()
    line = Line(str(tmp_path), "line", "mine")
    assert line.candidates(dataclasses.replace(LONGER, **settings)) == []
    if reason is None:
        assert not caplog.text
    else:
        assert f"Not continuing the training of 20 steps: {reason}" in caplog.text
        assert "All steps are done again." in caplog.text


def test_what_chose_otherwise_is_not_gone_on_from(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "trainer")
    settings = {**SHARED, "evaluate_every_steps": 4}
    shorter = small_runs.evaluations(config(**settings, steps=6), HELD_OUT)
    longer = small_runs.evaluations(config(**settings, steps=9), HELD_OUT)
    start = StartingPoint(str(tmp_path), 6)
    rows = shorter.pictures.num_rows

    def chosen(plan: Plan | None = shorter.plan) -> Candidate | None:
        caplog.clear()
        return chosen_alike([Candidate(start, Note(6, 2, plan))], longer)

    for step, loss in ((0, 0.9), (4, 0.5), (6, 0.5)):
        shorter.add(step, np.full(rows, loss, np.float32))
    shorter.write(str(tmp_path))
    kept = KeptWeights(str(tmp_path), [tf.Variable(1.0)])
    kept.save(4)
    assert chosen() == Candidate(start, Note(6, 2, shorter.plan))
    # At its end, which is no step at which the longer one evaluates, it found a better one.
    shorter.add(7, np.full(rows, 0.1, np.float32))
    assert shorter.best.step == 7
    kept.save(7)
    assert chosen() is None
    assert "4 is the best, but its weights were not kept" in caplog.text
    assert chosen(Plan(3, 8, 1, 0.1)) is None
    assert "every 3 steps 8 at 1 timestep each then, every 4 steps 8 at 1" in caplog.text
    assert chosen(None) is None
    # Where nothing is chosen, nothing of that matters.
    assert chosen_alike([Candidate(start, Note(6, 2, None))], None) is not None
    assert chosen_alike([], longer) is None


def test_as_many_pictures_choose_from_the_twentieth_evaluation_on() -> None:
    base = {"batch_size": 32, "evaluate_every_steps": 10}
    plans = [plan_for(config(**base, steps=10 * n), 500, True) for n in (5, 20, 21, 40, 400)]
    assert len({plan.pictures for plan in plans[1:]}) == 1
    assert plans[0].pictures < plans[1].pictures
    assert all(plan.cost <= 0.05 for plan in plans)
    assert [plan.is_like(plans[1]) for plan in plans] == [False, True, True, True, True]
    assert not plans[1].is_like(None)


@pytest.mark.parametrize(
    ("steps", "settings", "every"),
    [
        # Up to four times as long, both have one curve.
        (700, {}, 18),
        (1400, {}, 18),
        (2000, {}, 100),
        (700, {"evaluate_every_steps": 18}, 18),
        (700, {"evaluate_every_steps": 20}, 20),
        # What chooses is what it would be without the shorter one.
        (700, {"keep": "best"}, 35),
    ],
)
def test_the_curve_goes_on_as_it_began(steps: int, settings: dict[str, Any], every: int) -> None:
    base = {"batch_size": 32}
    former = small_runs.evaluations(config(**base, steps=350), HELD_OUT).plan
    found = small_runs.evaluations(config(**base, steps=steps, **settings), HELD_OUT, former).plan
    assert found.every == every
    assert found.cost <= 0.05
    if every == 18:
        assert found.is_like(former)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, True),
        ({"learning_rate_schedule": "cosine"}, False),
        # A warm-up that was shortened to half of the steps, and one that was given.
        ({"steps": 30, "warmup_steps": 15}, False),
        ({"steps": 30, "warmup_steps": 14}, True),
        ({"steps": 30, "warmup_steps": 30}, True),
        ({"keep": "best", "evaluate_every_steps": 20}, True),
        ({"keep": "best", "evaluate_every_steps": None}, False),
    ],
    ids=str,
)
def test_whether_a_longer_training_will_go_on_is_known(
    settings: dict[str, Any], expected: bool
) -> None:
    base = config(**{"steps": 400, "warmup_steps": 20, "evaluate_every_steps": None, **settings})
    scored = small_runs.evaluations(base, HELD_OUT)
    assert goes_on(base, small_runs.preset(), scored) == expected
    assert goes_on(base, small_runs.preset(), None) == (expected or settings.get("keep") == "best")


def test_a_note_is_json(tmp_path: Path) -> None:
    line = Line(str(tmp_path), "line", "mine")
    note = Note(20, 2, Plan(3, 8, 1, 0.1), {"training_id": "a", "step": 7})
    line.note(note)
    assert line.own == note
    assert json.loads((tmp_path / "lines/line/mine.json").read_text())["start"]["step"] == 7
