"""How a row is timed, by all sides alike. Imports the standard library alone."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

from .cards import peak_share

WINDOWS = 3
_MOST_CALLS = 50


def seconds_a_call(
    call: Callable[[], object], wait: Callable[[], object], window_seconds: float = 2.0
) -> float:
    """Median over windows, in each of which calls follow one another without waiting.

    Args:
        call: Starts one step or one drawing; has been called before, so that nothing is prepared.
        wait: Returns when all that was started is done.
        window_seconds: About which a window takes, if a call takes less.
    """

    def window(calls: int) -> float:
        since = time.perf_counter()
        for _ in range(calls):
            call()
        wait()
        return (time.perf_counter() - since) / calls

    wait()
    calls = int(min(_MOST_CALLS, max(1.0, window_seconds / window(1))))
    return statistics.median(window(calls) for _ in range(WINDOWS))


def compiling_and_calls(
    call: Callable[[], object], wait: Callable[[], object]
) -> tuple[float, float]:
    """Seconds that the first call takes longer than others, and those of one of the others.

    Args:
        call: Starts one step or one drawing; has not been called yet.
        wait: As of `seconds_a_call`.
    """
    since = time.perf_counter()
    call()
    wait()
    first = time.perf_counter() - since
    # The second one may still choose kernels.
    call()
    seconds = seconds_a_call(call, wait)
    return max(0.0, first - seconds), seconds


def speed(row: dict[str, Any], device: str, seconds: float) -> dict[str, Any]:
    """What follows from a row's settings and the seconds that one step or drawing takes."""
    return {
        "seconds": seconds,
        "pictures_per_second": row["batch_size"] / seconds,
        "flops_per_second": row["flops"] / seconds,
        "peak_share": peak_share(device, row["flops"], seconds, row["precision"]),
    }
