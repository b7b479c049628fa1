"""What can be told of a model at which size: the two statistics that thresholds are put on."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats
from tensorflow_model_analysis.api.types import ValueWithTDistribution
from tensorflow_model_analysis.utils.math_util import calculate_confidence_interval

from components.evaluator.metrics import shown_increase, shown_lower_end, surely_lower
from pipeline.config import load_config
from trainer.diffusion.draws import num_draws

SETTINGS = load_config().evaluation
STRATA = SETTINGS.num_strata
LOOKS = STRATA + 1
# As the pictures of the sample dataset have them: of the relative change, the deviation between
# pictures, and that between single draws.
BETWEEN_PICTURES, BETWEEN_DRAWS = 0.1, 0.25
BASELINE = np.geomspace(0.8, 0.01, STRATA)


def drawn(rng: np.random.Generator, pictures: int, change: np.ndarray) -> np.ndarray:
    """Changes in loss, mean over the draws: [pictures, strata]."""
    draws = num_draws(pictures, SETTINGS.min_draws)
    of_pictures = rng.normal(0, BETWEEN_PICTURES, (pictures, 1))
    of_draws = rng.normal(0, BETWEEN_DRAWS / math.sqrt(draws), (pictures, STRATA))
    return BASELINE * (change + of_pictures + of_draws)


def mean(values: np.ndarray) -> ValueWithTDistribution:
    """What `cluster_mean` makes of a row for each picture."""
    found, count = float(values.mean()), len(values)
    error = stats.sem(values) if count > 1 else math.nan
    return ValueWithTDistribution(found, float(error), count - 1, found)


def lower(changes: np.ndarray, **settings: float) -> float:
    given = {"min_improvement": 0.0, "max_regression": 0.0, **settings}
    return surely_lower(mean(changes.mean(axis=1)), BASELINE.mean(), LOOKS, **given)


def blocking(changes: np.ndarray) -> list[bool]:
    """The strata that a model is refused for."""
    bound = SETTINGS.max_stratum_regression
    columns = zip(changes.T, BASELINE, strict=True)
    return [shown_increase(mean(of), scale, LOOKS) > bound for of, scale in columns]


def refused(changes: np.ndarray) -> bool:
    return lower(changes) < 0 or any(blocking(changes))


def would_have_been_blocked(changes: np.ndarray, stratum: int) -> bool:
    """By the rule that this one replaced: the interval reaches higher than is allowed."""
    _, _, upper = calculate_confidence_interval(mean(changes[:, stratum]))
    return upper / BASELINE[stratum] > SETTINGS.max_stratum_regression


@pytest.mark.parametrize("pictures", [1, 2, 3, 4, 12, 40, 400])
@pytest.mark.parametrize("change", [0.0, -0.1])
def test_of_models_that_are_no_worse_one_in_twenty_is_refused_at_most(
    pictures: int, change: float
) -> None:
    rng = np.random.default_rng(pictures)
    number = 400
    count = sum(refused(drawn(rng, pictures, np.full(STRATA, change))) for _ in range(number))
    # Two deviations of such a count.
    assert count <= 0.05 * number + 2 * math.sqrt(number * 0.05 * 0.95)


@pytest.mark.parametrize(("pictures", "worse"), [(400, 0.05), (400, 0.1), (400, 0.2), (40, 0.3)])
def test_of_models_that_are_worse_in_a_stratum_as_many_are_caught_as_before(
    pictures: int, worse: float
) -> None:
    rng = np.random.default_rng(0)
    change = np.full(STRATA, -0.1)
    change[7] = worse
    now = before = 0
    for _ in range(200):
        changes = drawn(rng, pictures, change)
        now += blocking(changes)[7]
        before += would_have_been_blocked(changes, 7)
    assert now == before
    assert worse < 0.1 or now == 200


def test_the_lower_end_is_that_of_all_looks_together() -> None:
    values = np.array([1.0, 2.0, 4.0])
    expected = values.mean() - stats.t.ppf(1 - 0.05 / 11, 2) * stats.sem(values)
    assert shown_lower_end(mean(values), 11) == pytest.approx(expected)
    assert shown_lower_end(mean(values[:1]), 11) == -math.inf


@pytest.mark.parametrize("pictures", [3, 4, 12, 400])
def test_what_is_clear_can_be_told_from_few_pictures(pictures: int) -> None:
    rng = np.random.default_rng(1)
    for _ in range(20):
        better, worse = (drawn(rng, pictures, np.full(STRATA, c)) for c in (-0.9, 1.5))
        assert (lower(better), refused(better)) == (1, False)
        assert lower(worse) == -1


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        # One picture has no interval, and that of two holds nearly everything.
        ([-0.07], 0),
        ([0.05], 0),
        # What a few pictures come to that are trained on until they are known by heart.
        ([0.18], 0),
        ([0.86], -1),
        ([-0.1, -0.02], 0),
        ([0.2, 0.25], 0),
        ([0.8, 1.0], -1),
        # The same model is no better one.
        ([0.0], -1),
        ([1e-6, -2e-6], -1),
        ([0.0] * 9, -1),
        ([math.nan, 0.1], math.nan),
        ([math.inf], math.nan),
    ],
)
def test_what_one_and_two_pictures_tell(changes: list[float], expected: float) -> None:
    found = surely_lower(mean(np.array(changes)), 0.15, LOOKS, 0.0, 0.0)
    assert found == pytest.approx(expected, nan_ok=True)


def test_settings_move_the_bar() -> None:
    changes = np.random.default_rng(2).normal(-0.1, 0.02, (40, 1)) * np.ones(STRATA)
    assert lower(changes) == 1
    assert lower(changes, min_improvement=0.05) == 1
    assert lower(changes, min_improvement=0.1) == 0
    assert lower(changes, min_improvement=0.2) == -1
    assert lower(-changes) == -1
    assert lower(-changes, min_improvement=-0.2, max_regression=0.2) == 1
    assert lower(-changes, min_improvement=-0.2, max_regression=0.05) == -1
    assert lower(np.zeros((5, STRATA)), min_improvement=-0.1, max_regression=0.1) == 1
