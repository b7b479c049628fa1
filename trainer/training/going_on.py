"""Which shorter training a longer one continues from, or why it does not.

Trainings that differ only in their number of steps form a line. Everything random in a step
follows from the seed and the number of the step, so if nothing else depends on the length of a
training, the longer one begins with the steps of the shorter one, bit for bit.
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
    """What other trainings of the line need to know about a training.

    Attributes:
        steps: Its number of steps.
        warmup_steps: Warm-up steps of the learning rate.
        plan: What is evaluated; `None` for nothing.
        start: The `training_id` and `step` that it continued from itself; empty if it did not.
    """

    steps: int
    warmup_steps: int
    plan: Plan | None = None
    start: dict[str, Any] = dataclasses.field(default_factory=dict)

    @classmethod
    def from_json(cls, text: str) -> Note:
        """Reads what `to_json` wrote; raises a KeyError, TypeError or ValueError otherwise."""
        content = json.loads(text)
        plan = content["plan"]
        return cls(**{**content, "plan": None if plan is None else Plan(**plan)})

    def to_json(self) -> str:
        """As JSON."""
        return json.dumps(dataclasses.asdict(self), indent=2, sort_keys=True)


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A training that another one could continue, according to their settings.

    Attributes:
        start: Its latest checkpoint with fewer steps.
        note: Its note.
    """

    start: StartingPoint
    note: Note


class Line:
    """The trainings of a line, whose folders are next to each other.

    Each has a note at `<folder>/lines/<line>/<training id>.json`, which stays after its checkpoints
    are removed.
    """

    def __init__(self, folder: str, name: str, training_id: str) -> None:
        """Reads nothing yet.

        Args:
            folder: Holds a folder for every training.
            name: Name of the line.
            training_id: Id of the training that is about to begin.
        """
        self._folder = folder
        self._notes = os.path.join(folder, _LINES, name)
        self._training_id = training_id

    @property
    def own(self) -> Note | None:
        """The note of this training."""
        return self._read(self._training_id)

    def note(self, note: Note) -> None:
        """Writes the note of this training, whole or not at all."""
        write_whole(self._path(self._training_id), note.to_json())

    def candidates(self, config: ResolvedTrainingConfig) -> list[Candidate]:
        """The other trainings that this one could continue, the furthest first.

        If there are shorter ones but none of them is suitable, the log says why.

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
            logger.warning("%s is not a note of a training, so it is ignored.", path)
            return None

    def _path(self, training_id: str) -> str:
        return os.path.join(self._notes, f"{training_id}.json")


def chosen_alike(candidates: list[Candidate], evaluations: Evaluations | None) -> Candidate | None:
    """The first candidate for which held-out pictures would choose the same in a longer training.

    Args:
        candidates: From `Line.candidates`.
        evaluations: The evaluations of this training.

    Returns:
        `None` if there is none; the log says why.
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
    """Whether a training with twice the steps would continue from the end of this one.

    Args:
        config: Its hyperparameters; the number of steps must be known.
        preset: Recommends a warm-up, which may be longer in that case.
        evaluations: All evaluations so far.
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
    """Why a training cannot continue one of another length, whatever is evaluated."""
    if config.learning_rate_schedule != "constant":
        return (
            f"the learning rate schedule, {config.learning_rate_schedule}, depends on the last "
            "step (training.learning_rate_schedule: constant does not)"
        )
    if note.warmup_steps != config.warmup_steps:
        return (
            f"its warm-up had {note.warmup_steps} steps, and the warm-up of this one has "
            f"{config.warmup_steps} (training.warmup_steps)"
        )
    return None


def _of_choice(candidate: Candidate, evaluations: Evaluations | None) -> str | None:
    """Why the choice would differ from the choice of a single training."""
    if evaluations is None or not evaluations.chooses:
        return None
    if not evaluations.plan.is_like(candidate.note.plan):
        return (
            f"held-out pictures choose, but evaluations differ: {candidate.note.plan or 'none'} "
            f"then, {evaluations.plan} now (set training.evaluate_every_steps, with at least "
            "twenty evaluations)"
        )
    start = candidate.start
    evaluations.restore(start.folder, start.step, of_another=True)
    best = evaluations.best
    if evaluations.keeps_best and best and not kept_files(start.folder, best.step):
        return (
            f"of the steps that this one evaluates, {best.step} is the best, but its weights were "
            "not kept (make training.steps a multiple of training.evaluate_every_steps)"
        )
    return None


def _tell(steps: int, problem: str | None) -> None:
    logger.info(
        "Not continuing the training of %d steps: %s. All steps are done again.", steps, problem
    )
