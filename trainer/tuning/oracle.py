"""KerasTuner's Hyperband with a single bracket: successive halving."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import keras_tuner
from keras_tuner.engine import trial as trials

from trainer.training_config import ResolvedTrainingConfig, TuningConfig
from trainer.tuning.schedule import FACTOR, Rung

OBJECTIVE = "held_out_loss"

_LEARNING_RATE = "learning_rate"
_STEPS, _ROUND, _CONTINUED = "tuner/epochs", "tuner/round", "tuner/trial_id"
# Workers exchange values as float32.
_SIGNIFICANT_DIGITS = 6
# Discrete values have few combinations, and the last new one is seldom drawn.
_MOST_COLLISIONS = 1000


def search_space(
    tuning: TuningConfig, training: ResolvedTrainingConfig
) -> keras_tuner.HyperParameters:
    """The search space, by the names of the training fields."""
    space = keras_tuner.HyperParameters()
    if ends := tuning.learning_rates(training.learning_rate):
        space.Float(_LEARNING_RATE, *ends, sampling="log")
    for name, values in tuning.choices.items():
        space.Choice(name, list(values))
    return space


def num_trials(tuning: TuningConfig) -> int:
    """Number of trials: as configured, or at most the combinations of discrete values."""
    if tuning.learning_rate is None or tuning.learning_rate:
        return tuning.trials
    return min(tuning.trials, math.prod(len(values) for values in tuning.choices.values()))


def found_values(values: Mapping[str, Any]) -> dict[str, float]:
    """The training fields among the values of a trial, rounded so that every machine agrees."""
    return {
        name: value if isinstance(value, int) else float(f"{value:.{_SIGNIFICANT_DIGITS}g}")
        for name, value in values.items()
        if "/" not in name
    }


def steps_of(trial: trials.Trial) -> int:
    """The step up to which a trial is trained."""
    return int(trial.hyperparameters.values[_STEPS])


def round_of(trial: trials.Trial) -> int:
    """The round of a trial, counted from 0."""
    return int(trial.hyperparameters.values[_ROUND])


def continued_by(trial: trials.Trial) -> str | None:
    """The id of the trial that this one continues."""
    found = trial.hyperparameters.values.get(_CONTINUED)
    return None if found is None else str(found)


class SuccessiveHalving(keras_tuner.oracles.HyperbandOracle):
    """Hyperband with one bracket and given rounds; its epochs are optimizer steps.

    The other brackets of Hyperband guard against losses that say little after few steps, at several
    times the cost.
    """

    def __init__(
        self, schedule: Sequence[Rung], space: keras_tuner.HyperParameters, seed: int
    ) -> None:
        """Tries nothing yet.

        Args:
            schedule: The rounds.
            space: The search space.
            seed: Decides what is tried.
        """
        # Hyperband uses it in its constructor.
        self._schedule = tuple(schedule)
        super().__init__(
            objective=keras_tuner.Objective(OBJECTIVE, "min"),
            max_epochs=schedule[-1].steps,
            factor=FACTOR,
            hyperparameters=space,
            # 0 would mean a random seed.
            seed=seed + 1,
        )
        # TFX reads it, but KerasTuner's own Hyperband does not have it.
        self.max_trials = sum(rung.trials for rung in schedule)
        self._max_collisions = _MOST_COLLISIONS
        self.verbose = 0

    def get_best_trials(self, num_trials: int = 1) -> list[trials.Trial]:
        """The trials that were trained the longest, lowest loss first; none without a loss."""
        done = [
            trial
            for trial in self.trials.values()
            if trial.status == trials.TrialStatus.COMPLETED and math.isfinite(trial.score)
        ]
        return sorted(done, key=lambda trial: (-round_of(trial), trial.score))[:num_trials]

    def _get_num_brackets(self) -> int:
        return 1

    def _get_num_rounds(self, bracket_num: int) -> int:
        return len(self._schedule)

    def _get_size(self, bracket_num: int, round_num: int) -> int:
        return self._schedule[round_num].trials

    def _get_epochs(self, bracket_num: int, round_num: int) -> int:
        return self._schedule[round_num].steps
