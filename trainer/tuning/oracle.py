"""KerasTuner's Hyperband, of which one bracket is run: successive halving."""

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
# Values go from worker to worker as float32.
_SIGNIFICANT_DIGITS = 6
# Of single values there are few combinations, and the last new one is seldom drawn.
_MOST_COLLISIONS = 1000


def search_space(
    tuning: TuningConfig, training: ResolvedTrainingConfig
) -> keras_tuner.HyperParameters:
    """What is searched, by the names of the training's fields."""
    space = keras_tuner.HyperParameters()
    if ends := tuning.learning_rates(training.learning_rate):
        space.Float(_LEARNING_RATE, *ends, sampling="log")
    for name, values in tuning.choices.items():
        space.Choice(name, list(values))
    return space


def num_trials(tuning: TuningConfig) -> int:
    """How many trials there are: as many as asked for, or as combinations of single values."""
    if tuning.learning_rate is None or tuning.learning_rate:
        return tuning.trials
    return min(tuning.trials, math.prod(len(values) for values in tuning.choices.values()))


def found_values(values: Mapping[str, Any]) -> dict[str, float]:
    """The training's fields among a trial's values, as every machine reads them."""
    return {
        name: value if isinstance(value, int) else float(f"{value:.{_SIGNIFICANT_DIGITS}g}")
        for name, value in values.items()
        if "/" not in name
    }


def steps_of(trial: trials.Trial) -> int:
    """How far a trial is trained."""
    return int(trial.hyperparameters.values[_STEPS])


def round_of(trial: trials.Trial) -> int:
    """In which round, from 0 on."""
    return int(trial.hyperparameters.values[_ROUND])


def continued_by(trial: trials.Trial) -> str | None:
    """The id of the trial that this one goes on from."""
    found = trial.hyperparameters.values.get(_CONTINUED)
    return None if found is None else str(found)


class SuccessiveHalving(keras_tuner.oracles.HyperbandOracle):
    """Hyperband with one bracket, of rounds that are given; its epochs are optimizer steps.

    Hyperband's further brackets guard against losses that say little after few steps, for several
    times the cost.
    """

    def __init__(
        self, schedule: Sequence[Rung], space: keras_tuner.HyperParameters, seed: int
    ) -> None:
        """Nothing is tried yet.

        Args:
            schedule: The rounds.
            space: What is searched.
            seed: Decides what is tried.
        """
        # Hyperband asks for it as soon as it is made.
        self._schedule = tuple(schedule)
        super().__init__(
            objective=keras_tuner.Objective(OBJECTIVE, "min"),
            max_epochs=schedule[-1].steps,
            factor=FACTOR,
            hyperparameters=space,
            # 0 would be any seed.
            seed=seed + 1,
        )
        # TFX asks for it, and KerasTuner's own Hyperband does not know it.
        self.max_trials = sum(rung.trials for rung in schedule)
        self._max_collisions = _MOST_COLLISIONS
        self.verbose = 0

    def get_best_trials(self, num_trials: int = 1) -> list[trials.Trial]:
        """Those that were trained for longest, the lowest loss first; none without a loss."""
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
