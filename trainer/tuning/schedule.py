"""How many trials are trained for how long: successive halving, with a third instead of a half.

All trials are trained for a fraction of the steps, the best third of them goes on for three times
as long, and so on, up to the end of the training.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

FACTOR = 3
"""A rung has so many times fewer trials than the one before, which go on for so many times longer.
"""


@dataclasses.dataclass(frozen=True)
class Rung:
    """A round of the search.

    Attributes:
        trials: How many get there.
        steps: Optimizer steps done at its end, those of the rungs before among them.
    """

    trials: int
    steps: int


def rungs(trials: int, steps: int) -> tuple[Rung, ...]:
    """The rounds of a search.

    Args:
        trials: How many are begun, at least one.
        steps: Of a whole training, which the last round comes to.
    """
    count = 1
    while FACTOR**count <= min(trials, steps):
        count += 1
    return tuple(
        Rung(math.ceil(trials / FACTOR**index), steps // FACTOR ** (count - 1 - index))
        for index in range(count)
    )


def total_steps(schedule: Sequence[Rung]) -> int:
    """Optimizer steps of all trials; whoever goes on repeats none."""
    before = [0, *(rung.steps for rung in schedule)]
    return sum(
        rung.trials * (rung.steps - done) for rung, done in zip(schedule, before, strict=False)
    )


def total_scores(schedule: Sequence[Rung]) -> int:
    """How often a trial is scored."""
    return sum(rung.trials for rung in schedule)
