"""The search: which trials are trained, their results, and what is kept at the end.

Every result is a separate file, named by the training and its steps. So a search that was killed
trains no trial twice, even if KerasTuner's state file was truncated.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence

import keras_tuner
import numpy as np
import tensorflow as tf
from keras_tuner.engine import base_tuner
from keras_tuner.engine import trial as trials

from storage.user_errors import UserError
from trainer.data.whole_files import write_whole
from trainer.tuning.oracle import (
    OBJECTIVE,
    SuccessiveHalving,
    continued_by,
    found_values,
    round_of,
    steps_of,
)
from trainer.tuning.schedule import Rung, total_steps

_PROJECT, _RESULTS, _TRAININGS = "search", "results", "trainings"
# TensorFlow finds the checkpoints of a folder through this file.
_CHECKPOINT_INDEX = "checkpoint"
_WAIT_SECONDS = 1.0

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class TrialResult:
    """The result of a trial.

    Attributes:
        training_id: Names the training and its folder; "" if it was not started.
        step: Step whose weights were scored.
        losses: Mean over the timesteps for each picture, always in the same order of pictures;
            empty if there is a problem.
        seconds: Time from its start, or its last restart, to its score.
        problem: Why it has no loss; "" if it has one.
    """

    training_id: str
    step: int
    losses: tuple[float, ...]
    seconds: float
    problem: str = ""

    @property
    def loss(self) -> float:
        """The mean of the losses; infinite if there are none."""
        loss = float(np.mean(self.losses)) if self.losses else math.inf
        return loss if math.isfinite(loss) else math.inf


@dataclasses.dataclass(frozen=True)
class TrialRecord:
    """The record of a trial.

    Attributes:
        trial: Its id.
        continues: The id of the trial that it continues; `None` if it starts new.
        round: Its round, counted from 0.
        hyperparameters: Values by the names of the training fields.
        steps: Optimizer steps done, including the trials that it continues.
        result: Its result.
        chosen: Whether it is the best.
    """

    trial: str
    continues: str | None
    round: int
    hyperparameters: Mapping[str, float]
    steps: int
    result: TrialResult
    chosen: bool


@dataclasses.dataclass(frozen=True)
class Search:
    """A complete search.

    Attributes:
        rungs: The rounds.
        records: The trials, in the order of their ids.
        pictures: Number of held-out pictures that each was scored on.
        timesteps: Number of timesteps for each picture.
    """

    rungs: tuple[Rung, ...]
    records: tuple[TrialRecord, ...]
    pictures: int
    timesteps: int

    @property
    def chosen(self) -> TrialRecord:
        """The best trial."""
        return next(record for record in self.records if record.chosen)

    @property
    def cost(self) -> float:
        """Optimizer steps of all trials, in multiples of one training."""
        return total_steps(self.rungs) / self.rungs[-1].steps


TrainTrial = Callable[[Mapping[str, float], int, str], TrialResult]
"""Trains with hyperparameters up to a step, with checkpoints below a folder."""


class TrialTuner(base_tuner.BaseTuner):
    """Trains the trials that the oracle requests, one after the other or next to other workers.

    Attributes:
        train: Trains a trial.
    """

    def __init__(
        self,
        oracle: SuccessiveHalving,
        train: TrainTrial,
        folder: str,
        *,
        rungs: Sequence[Rung],
        pictures: int,
        timesteps: int,
    ) -> None:
        """Reads what was tried before.

        Args:
            oracle: Decides what is tried.
            train: Trains a trial.
            folder: Folder of this search only, where a later run finds it again.
            rungs: The rounds.
            pictures: Number of held-out pictures that trials are scored on.
            timesteps: Number of timesteps for each picture.
        """
        self.train = train
        self._folder = folder
        self._waiting = False
        self._rungs, self._pictures, self._timesteps = tuple(rungs), pictures, timesteps
        # If there is a chief, only the chief keeps the state.
        keeps = "chief" in os.environ.get("KERASTUNER_TUNER_ID", "chief")
        cut_off = keeps and not _state_is_whole(os.path.join(folder, _PROJECT))
        super().__init__(oracle, directory=folder, project_name=_PROJECT, overwrite=cut_off)

    def search(self) -> None:
        """Tries everything; see `BaseTuner`.

        Raises:
            Exception: Whatever ended the training of a trial, except a problem with its
                hyperparameters.
        """
        try:
            super().search()
        except keras_tuner.errors.FatalError as error:
            if error.__cause__ is None:
                raise
            raise error.__cause__ from None

    def pre_create_trial(self) -> None:
        """Waits if trials of others have to end first; KerasTuner would ask again at once."""
        if self._waiting:
            time.sleep(_WAIT_SECONDS)
        self._waiting = True

    def on_trial_begin(self, trial: trials.Trial) -> None:
        """Notes that there is something to do."""
        super().on_trial_begin(trial)
        self._waiting = False

    def run_trial(self, trial: trials.Trial) -> dict[str, float]:
        """Trains a trial, unless that was done before; returns its loss."""
        try:
            return {OBJECTIVE: self._result_of(trial).loss}
        except Exception as error:
            # KerasTuner would treat any other error as a failed trial, and continue.
            raise keras_tuner.errors.FatalError(str(error)) from error

    def _result_of(self, trial: trials.Trial) -> TrialResult:
        if (known := self._read(trial)) is not None:
            return known
        values, steps = found_values(trial.hyperparameters.values), steps_of(trial)
        before = continued_by(trial)
        logger.info(
            "Trial %s: %s, up to step %d of %d%s.",
            trial.trial_id,
            in_words(values),
            steps,
            self._rungs[-1].steps,
            "" if before is None else f", continuing trial {before}",
        )
        since = time.monotonic()
        result = self.train(values, steps, os.path.join(self._folder, _TRAININGS))
        result = dataclasses.replace(result, seconds=round(time.monotonic() - since, 1))
        self._write(trial, result)
        logger.info(
            "Trial %s: %s.", trial.trial_id, result.problem or f"held-out loss {result.loss:.4f}"
        )
        return result

    def on_trial_end(self, trial: trials.Trial) -> None:
        """Removes the checkpoints that no trial will continue from."""
        super().on_trial_end(trial)
        # A worker does not know what other workers do.
        if isinstance(self.oracle, SuccessiveHalving):
            self._remove(self._given_up(self.oracle.trials.values()))

    def conclude(self, checkpoint_dir: str) -> Search:
        """Moves the training of the best trial to where the Trainer finds it, and removes the rest.

        Args:
            checkpoint_dir: Folder for the checkpoints of all runs.

        Raises:
            UserError: No trial has a loss.
        """
        best = self.oracle.get_best_trials(1)
        found = {t.trial_id: self._read(t) for t in self.oracle.trials.values()}
        records = [
            TrialRecord(
                trial.trial_id,
                continued_by(trial),
                round_of(trial),
                found_values(trial.hyperparameters.values),
                steps_of(trial),
                result,
                chosen=trial in best,
            )
            for trial in sorted(self.oracle.trials.values(), key=lambda t: t.trial_id)
            if (result := found[trial.trial_id]) is not None
        ]
        if not best:
            problems = "; ".join(dict.fromkeys(r.result.problem for r in records)) or "none ran"
            raise UserError(
                f"none of {len(records)} trials has a held-out loss ({problems}): give "
                "tuning.learning_rate a lower range"
            )
        search = Search(self._rungs, tuple(records), self._pictures, self._timesteps)
        training = search.chosen.result.training_id
        source = os.path.join(self._folder, _TRAININGS, training)
        if tf.io.gfile.isdir(source):
            _copy_training(source, os.path.join(checkpoint_dir, training))
        folder = os.path.join(self._folder, _TRAININGS)
        if tf.io.gfile.isdir(folder):
            tf.io.gfile.rmtree(folder)
        return search

    def _given_up(self, known: Sequence[trials.Trial]) -> set[str]:
        """Trainings of a round that are not needed because the next round is full."""
        given_up = set()
        for index, rung in enumerate(self._rungs[1:], start=1):
            promoted = {continued_by(trial) for trial in known if round_of(trial) == index}
            if len(promoted) < rung.trials:
                continue
            for trial in known:
                if round_of(trial) == index - 1 and trial.trial_id not in promoted:
                    result = self._read(trial)
                    given_up |= {result.training_id} if result and result.training_id else set()
        return given_up

    def _remove(self, trainings: set[str]) -> None:
        for training in trainings:
            folder = os.path.join(self._folder, _TRAININGS, training)
            if tf.io.gfile.isdir(folder):
                tf.io.gfile.rmtree(folder)

    def _path(self, trial: trials.Trial) -> str:
        values = found_values(trial.hyperparameters.values)
        name = ",".join(f"{key}={value:g}" for key, value in sorted(values.items()))
        return os.path.join(self._folder, _RESULTS, f"{name},steps={steps_of(trial)}.json")

    def _read(self, trial: trials.Trial) -> TrialResult | None:
        path = self._path(trial)
        if not tf.io.gfile.exists(path):
            return None
        with tf.io.gfile.GFile(path) as f:
            content = json.loads(f.read())
        return TrialResult(**{**content, "losses": tuple(content["losses"])})

    def _write(self, trial: trials.Trial, result: TrialResult) -> None:
        write_whole(self._path(trial), json.dumps(dataclasses.asdict(result)))


def in_words(hyperparameters: Mapping[str, float]) -> str:
    """Hyperparameters in words, such as `learning_rate 0.0012, min_snr_gamma 5`."""
    return ", ".join(f"{name} {value:g}" for name, value in hyperparameters.items())


def _state_is_whole(folder: str) -> bool:
    """Whether KerasTuner's state, which it writes in place, can be read."""
    for path in tf.io.gfile.glob([f"{folder}/*.json", f"{folder}/*/*.json"]):
        with tf.io.gfile.GFile(path) as f:
            try:
                json.loads(f.read())
            except json.JSONDecodeError:
                return False
    return True


def _copy_training(source: str, target: str) -> None:
    """Copies the folder of a training; an interrupted copy has no checkpoint and is made again."""
    for folder, _, names in tf.io.gfile.walk(source):
        here = os.path.join(target, os.path.relpath(folder, source))
        tf.io.gfile.makedirs(here)
        for name in sorted(names, key=lambda name: name == _CHECKPOINT_INDEX):
            tf.io.gfile.copy(os.path.join(folder, name), os.path.join(here, name), overwrite=True)
