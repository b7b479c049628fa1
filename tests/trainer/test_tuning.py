"""The search for hyperparameters: KerasTuner's oracle on trials that are made up."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from storage.user_errors import UserError
from trainer.presets import get_preset
from trainer.training.evaluations import trial_rows
from trainer.training.interruption import TrainingInterruptedError
from trainer.training_config import TrainingConfig, TuningConfig
from trainer.tuning.oracle import SuccessiveHalving, num_trials, search_space
from trainer.tuning.schedule import Rung, rungs, total_scores, total_steps
from trainer.tuning.search import Search, TrialResult, TrialTuner

STEPS = 90
BEST_RATE = 2e-3


class Trials:
    """Trains nothing: a loss falls with the steps, and is lowest at one learning rate."""

    def __init__(self, diverges_from: float = math.inf, dies_at: int = 0) -> None:
        self.calls: list[tuple[dict[str, float], int]] = []
        self._diverges_from, self._dies_at = diverges_from, dies_at

    def __call__(self, found: Mapping[str, float], steps: int, folder: str) -> TrialResult:
        self.calls.append((dict(found), steps))
        if len(self.calls) == self._dies_at:
            raise TrainingInterruptedError("told to stop")
        training = "-".join(f"{value:g}" for value in found.values())
        checkpoints = Path(folder, training)
        checkpoints.mkdir(parents=True, exist_ok=True)
        (checkpoints / "checkpoint").write_text(str(steps))
        rate = found.get("learning_rate", BEST_RATE)
        if rate >= self._diverges_from:
            return TrialResult("", 0, (), 0.0, problem="the training diverged")
        loss = self.loss(rate, steps) + 0.01 * found.get("min_snr_gamma", 0.0)
        return TrialResult(training, steps, (loss - 0.01, loss + 0.01), 0.0)

    def loss(self, rate: float, steps: int) -> float:
        return 0.1 + abs(math.log10(rate / BEST_RATE)) + 1 / steps


def tuner(folder: Path, made_up: Trials, **settings: object) -> TrialTuner:
    tuning = TuningConfig(**{"trials": 12, "learning_rate": [1e-4, 1e-2], **settings})
    training = TrainingConfig(steps=STEPS, learning_rate=1e-3, lora_rank=4)
    schedule = rungs(num_trials(tuning), STEPS)
    space = search_space(tuning, training.resolved(get_preset("tiny")))
    return TrialTuner(
        SuccessiveHalving(schedule, space, seed=0),
        made_up,
        str(folder / "search-1"),
        rungs=schedule,
        pictures=2,
        timesteps=3,
    )


def searched(folder: Path, made_up: Trials, **settings: object) -> Search:
    made = tuner(folder, made_up, **settings)
    made.search()
    return made.conclude(str(folder))


def steps_trained(calls: list[tuple[dict[str, float], int]]) -> int:
    """Steps of all trials, where each goes on from what was trained of it."""
    done: dict[tuple[float, ...], int] = {}
    total = 0
    for found, steps in calls:
        key = tuple(found.values())
        total += steps - done.get(key, 0)
        done[key] = steps
    return total


def test_the_rounds_of_a_search() -> None:
    assert rungs(12, 350) == (Rung(12, 38), Rung(4, 116), Rung(2, 350))
    assert total_steps(rungs(12, 350)) == 12 * 38 + 4 * 78 + 2 * 234
    assert total_scores(rungs(12, 350)) == 18
    assert rungs(2, 350) == (Rung(2, 350),)
    assert rungs(27, 270) == (Rung(27, 10), Rung(9, 30), Rung(3, 90), Rung(1, 270))
    # There are no fractions of a step.
    assert rungs(12, 5) == (Rung(12, 1), Rung(4, 5))


def test_twelve_trials_cost_less_than_four_trainings() -> None:
    for steps in (*range(9, 1000), 15_000):
        assert total_steps(rungs(12, steps)) <= 4 * steps, steps


def test_trials_are_scored_for_a_twentieth_of_their_work() -> None:
    schedule = rungs(12, 350)
    pictures, strata = trial_rows(total_steps(schedule), 32, total_scores(schedule), 23)
    rows = 18 * pictures * strata
    assert pictures == 23
    assert 0.9 * 0.05 <= rows / (3 * 32 * total_steps(schedule)) <= 0.05
    # However little there is to do, some are.
    assert trial_rows(1, 1, 18, 23) == (8, 1)


def test_the_best_third_goes_on_and_the_best_of_the_last_round_is_found(tmp_path: Path) -> None:
    trials = Trials()
    search = searched(tmp_path, trials)
    assert [steps for _, steps in trials.calls] == [10] * 12 + [30] * 4 + [90] * 2
    assert steps_trained(trials.calls) == total_steps(search.rungs)
    assert search.cost == total_steps(search.rungs) / STEPS < 4
    rates = [found["learning_rate"] for found, _ in trials.calls]
    assert len(set(rates[:12])) == 12
    assert 1e-4 <= min(rates) < 1e-3 < max(rates) <= 1e-2
    distance = {rate: abs(math.log10(rate / BEST_RATE)) for rate in rates}
    best = sorted(rates[:12], key=distance.__getitem__)
    assert set(rates[12:16]) == set(best[:4])
    assert set(rates[16:]) == set(best[:2])
    assert search.chosen.hyperparameters == {"learning_rate": best[0]}
    assert search.chosen.steps == STEPS
    assert search.chosen.result.loss == pytest.approx(trials.loss(best[0], STEPS))
    # Its training is where the Trainer looks for it, and no other is left.
    assert (tmp_path / f"{best[0]:g}" / "checkpoint").read_text() == str(STEPS)
    assert {path.name for path in (tmp_path / "search-1").iterdir()} == {"results", "search"}


def test_checkpoints_that_nobody_goes_on_from_are_removed(tmp_path: Path) -> None:
    left: list[int] = []

    class Watched(Trials):
        def __call__(self, found: Mapping[str, float], steps: int, folder: str) -> TrialResult:
            result = super().__call__(found, steps, folder)
            left.append(len([*Path(folder).iterdir()]))
            return result

    searched(tmp_path, Watched())
    # Four are chosen when the fourth has begun, and end as the first of the next round begins.
    assert left == [*range(1, 13), 12, 12, 12, 12, 4, 4]


@pytest.mark.parametrize("dies_at", [1, 7, 13, 18])
def test_a_killed_search_goes_on_and_repeats_nothing(tmp_path: Path, dies_at: int) -> None:
    whole = Trials()
    expected = searched(tmp_path / "whole", whole)
    first, second = Trials(dies_at=dies_at), Trials()
    with pytest.raises(TrainingInterruptedError):
        searched(tmp_path / "killed", first)
    found = searched(tmp_path / "killed", second)
    assert first.calls[:-1] + second.calls == whole.calls
    assert first.calls[-1] == second.calls[0]
    assert found.chosen.hyperparameters == expected.chosen.hyperparameters
    assert [r.trial for r in found.records] == [r.trial for r in expected.records]
    # Ended as it was, it does nothing once more.
    third = Trials()
    assert searched(tmp_path / "killed", third) == found
    assert not third.calls


def test_a_state_that_was_cut_off_costs_no_trial(tmp_path: Path) -> None:
    whole = searched(tmp_path / "whole", Trials())
    with pytest.raises(TrainingInterruptedError):
        searched(tmp_path / "killed", Trials(dies_at=9))
    state = tmp_path / "killed" / "search-1" / "search" / "oracle.json"
    state.write_text(state.read_text()[:100])
    again = Trials()
    found = searched(tmp_path / "killed", again)
    assert len(again.calls) == 18 - 8
    assert found.chosen.hyperparameters == whole.chosen.hyperparameters


def test_trainings_that_diverge_are_out_and_stop_nothing(tmp_path: Path) -> None:
    trials = Trials(diverges_from=5e-4)
    search = searched(tmp_path, trials)
    assert len(trials.calls) == 18
    diverged = {r.trial for r in search.records if r.result.problem}
    assert len(diverged) >= 5
    rate = search.chosen.hyperparameters["learning_rate"]
    assert rate < 5e-4
    # One without a folder takes no other's along.
    assert (tmp_path / f"{rate:g}" / "checkpoint").is_file()
    with pytest.raises(UserError, match=r"none of \d+ trials has .*diverged.*lower range"):
        searched(tmp_path / "all", Trials(diverges_from=0.0))


def test_a_trial_that_was_trained_for_longer_is_better_than_a_lower_loss(tmp_path: Path) -> None:
    class Overfit(Trials):
        def loss(self, rate: float, steps: int) -> float:
            return abs(math.log10(rate / BEST_RATE)) + steps

    search = searched(tmp_path, Overfit())
    assert search.chosen.steps == STEPS
    assert search.chosen.result.loss > min(r.result.loss for r in search.records)


def test_single_values_are_tried_once_each(tmp_path: Path) -> None:
    trials = Trials()
    settings = {"learning_rate": [], "min_snr_gamma": [0.0, 5.0], "ema_decay": [0.9, 0.99]}
    search = searched(tmp_path, trials, trials=50, **settings)
    assert search.rungs == (Rung(4, 30), Rung(2, 90))
    first = [tuple(found.values()) for found, _ in trials.calls[:4]]
    assert len(set(first)) == 4
    assert search.chosen.hyperparameters["min_snr_gamma"] == 0.0


def test_ranks_are_whole_numbers_and_rates_the_same_on_every_machine(tmp_path: Path) -> None:
    trials = Trials()
    searched(tmp_path, trials, trials=2, rank=[4, 16])
    for found, _ in trials.calls:
        assert found["lora_rank"] in (4, 16)
        assert isinstance(found["lora_rank"], int)
        rate = found["learning_rate"]
        # Through a float32, as between workers.
        assert float(f"{np.float32(rate):.6g}") == rate


def test_another_error_ends_the_search_as_what_it_is(tmp_path: Path) -> None:
    class Wrong(Trials):
        def __call__(self, found: Mapping[str, float], steps: int, folder: str) -> TrialResult:
            raise UserError("the disk is full")

    with pytest.raises(UserError, match="the disk is full"):
        searched(tmp_path, Wrong())
