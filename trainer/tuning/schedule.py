"""How many trials are trained for how long: successive halving with a third instead of a half.

All trials are trained for a fraction of the steps, the best third of them continues up to three
times as many, and so on, up to the end of the training.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

FACTOR = 3
"""A rung has this many times fewer trials than the one before, and this many times more steps."""


@dataclasses.dataclass(frozen=True)
class Rung:
    """A round of the search.

    Attributes:
        trials: Number of trials that reach it.
        steps: Optimizer steps done at its end, including earlier rungs.
    """

    trials: int
    steps: int


def rungs(trials: int, steps: int) -> tuple[Rung, ...]:
    """The rounds of a search.

    Args:
        trials: Number of trials that are started, at least one.
        steps: Steps of a whole training, which the last round completes.
    """
    count = 1
    while FACTOR**count <= min(trials, steps):
        count += 1
    return tuple(
        Rung(math.ceil(trials / FACTOR**index), steps // FACTOR ** (count - 1 - index))
        for index in range(count)
    )


def total_steps(schedule: Sequence[Rung]) -> int:
    """Optimizer steps of all trials; a trial that continues repeats none."""
    before = [0, *(rung.steps for rung in schedule)]
    return sum(
        rung.trials * (rung.steps - done) for rung, done in zip(schedule, before, strict=False)
    )


def total_scores(schedule: Sequence[Rung]) -> int:
    """Number of times that trials are scored."""
    return sum(rung.trials for rung in schedule)
