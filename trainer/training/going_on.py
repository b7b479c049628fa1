"""Which training one with more steps goes on from, and why it does not.

Trainings that differ in nothing but their number of steps are of one line. Everything random in a
step follows from the seed and the step's number, so where nothing else depends on how long a
training is, the longer one takes the shorter one's steps first, to the last bit.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
from collections.abc import Iterator
from typing import Any

import tensorflow as tf

from trainer.data.whole_files import write_whole
from trainer.presets import Preset
from trainer.training.checkpoints import StartingPoint, checkpoint_steps, kept_files
from trainer.training.evaluations import Evaluations, Plan
from trainer.training_config import ResolvedTrainingConfig

OF_LENGTH = ("steps", "warmup_steps")
"""Settings in which the trainings of a line may differ."""

_LINES = "lines"

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Note:
    """What the others of its line have to know of a training.

    Attributes:
        steps: How many it is to have.
        warmup_steps: Of the learning rate.
        plan: What is evaluated; `None` for nothing.
        start: What it went on from itself: `training_id` and `step`; empty where it did not.
    """

    steps: int
    warmup_steps: int
    plan: Plan | None = None
    start: dict[str, Any] = dataclasses.field(default_factory=dict)

    @classmethod
    def from_json(cls, text: str) -> Note:
        """Reads what `to_json` wrote; raises a KeyError, TypeError or ValueError if it is none."""
        content = json.loads(text)
        plan = content["plan"]
        return cls(**{**content, "plan": None if plan is None else Plan(**plan)})

    def to_json(self) -> str:
        """As JSON."""
        return json.dumps(dataclasses.asdict(self), indent=2, sort_keys=True)


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A training that another one could go on from, as far as their settings go.

    Attributes:
        start: Its latest checkpoint of fewer steps.
        note: What is noted of it.
    """

    start: StartingPoint
    note: Note


class Line:
    """The trainings of a line, which lie in folders beside each other.

    Each has a note at `<folder>/lines/<line>/<training id>.json`, which stays when its checkpoints
    are removed.
    """

    def __init__(self, folder: str, name: str, training_id: str) -> None:
        """Reads nothing yet.

        Args:
            folder: Holds a folder for every training.
            name: Of the line.
            training_id: Of the training that is to begin.
        """
        self._folder = folder
        self._notes = os.path.join(folder, _LINES, name)
        self._training_id = training_id

    @property
    def own(self) -> Note | None:
        """What is noted of this training."""
        return self._read(self._training_id)

    def note(self, note: Note) -> None:
        """Notes it of this training, whole or not at all."""
        write_whole(self._path(self._training_id), note.to_json())

    def candidates(self, config: ResolvedTrainingConfig) -> list[Candidate]:
        """The others that this training could go on from, first those that are furthest.

        Where there are shorter ones, and none of them will do, the log says why.

        Args:
            config: Hyperparameters; the number of steps must be known.
        """
        assert config.steps is not None
        found, problems = [], {}
        for training_id, note in self._others():
            folder = os.path.join(self._folder, training_id)
            problem = _of_length(note, config)
            if problem is None:
                steps = [step for step in checkpoint_steps(folder) if step < config.steps]
                if steps:
                    found.append(Candidate(StartingPoint(folder, steps[-1]), note))
                problem = "its checkpoints are gone"
            if note.steps < config.steps:
                problems[note.steps] = problem
        if problems and not found:
            _tell(max(problems), problems[max(problems)])
        return sorted(found, key=lambda c: (-c.start.step, c.start.folder))

    def _others(self) -> Iterator[tuple[str, Note]]:
        if not tf.io.gfile.isdir(self._notes):
            return
        for name in sorted(tf.io.gfile.listdir(self._notes)):
            training_id, ending = os.path.splitext(name)
            if ending == ".json" and training_id != self._training_id:
                note = self._read(training_id)
                if note is not None:
                    yield training_id, note

    def _read(self, training_id: str) -> Note | None:
        path = self._path(training_id)
        if not tf.io.gfile.exists(path):
            return None
        with tf.io.gfile.GFile(path) as f:
            text = f.read()
        try:
            return Note.from_json(text)
        except (KeyError, TypeError, ValueError):
            logger.warning("%s is no note of a training, and is not looked at.", path)
            return None

    def _path(self, training_id: str) -> str:
        return os.path.join(self._notes, f"{training_id}.json")


def chosen_alike(candidates: list[Candidate], evaluations: Evaluations | None) -> Candidate | None:
    """The first of the candidates of which held-out pictures choose as if it had been longer.

    Args:
        candidates: From `Line.candidates`.
        evaluations: Those of this training.

    Returns:
        `None` where there is none; the log says why.
    """
    problems = []
    for candidate in candidates:
        problem = _of_choice(candidate, evaluations)
        if problem is None:
            return candidate
        problems.append(problem)
    if problems:
        _tell(candidates[0].note.steps, problems[0])
    return None


def goes_on(
    config: ResolvedTrainingConfig, preset: Preset, evaluations: Evaluations | None
) -> bool:
    """Whether a training of twice the steps would go on from the end of this one.

    Args:
        config: Its hyperparameters; the number of steps must be known.
        preset: Recommends a warm-up, which may be longer then.
        evaluations: All that were made.
    """
    assert config.steps is not None
    assert config.warmup_steps is not None
    recommended, warmup_steps = preset.training.warmup_steps, config.warmup_steps
    if warmup_steps == config.steps // 2 < recommended:
        warmup_steps = min(recommended, config.steps)
    longer = dataclasses.replace(config, steps=2 * config.steps, warmup_steps=warmup_steps)
    if _of_length(Note(config.steps, config.warmup_steps), longer) is not None:
        return False
    return evaluations is None or not evaluations.chooses or evaluations.same_if_longer(longer)


def _of_length(note: Note, config: ResolvedTrainingConfig) -> str | None:
    """What keeps a training from going on from one of other steps, whatever is evaluated."""
    if config.learning_rate_schedule != "constant":
        return (
            f"the learning rate's schedule, {config.learning_rate_schedule}, ends with the last "
            "step (training.learning_rate_schedule: constant does not)"
        )
    if note.warmup_steps != config.warmup_steps:
        return (
            f"its warm-up was of {note.warmup_steps} steps, and this one's is of "
            f"{config.warmup_steps} (training.warmup_steps)"
        )
    return None


def _of_choice(candidate: Candidate, evaluations: Evaluations | None) -> str | None:
    """What keeps the choice from being that of one training."""
    if evaluations is None or not evaluations.chooses:
        return None
    if not evaluations.plan.is_like(candidate.note.plan):
        return (
            f"held-out pictures choose, and other ones would have: {candidate.note.plan or 'none'} "
            f"then, {evaluations.plan} now (give training.evaluate_every_steps, and at least "
            "twenty evaluations)"
        )
    start = candidate.start
    evaluations.restore(start.folder, start.step, of_another=True)
    best = evaluations.best
    if evaluations.keeps_best and best and not kept_files(start.folder, best.step):
        return (
            f"of the steps at which this one evaluates, {best.step} is the best, whose weights "
            "were not kept (make training.steps a multiple of training.evaluate_every_steps)"
        )
    return None


def _tell(steps: int, problem: str | None) -> None:
    logger.info(
        "A training of %d steps is not gone on from: %s. All steps are done anew.", steps, problem
    )
