"""How all sides time a row. Imports only the standard library."""

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
        call: Starts one step or one drawing; was called before, so that nothing needs preparation.
        wait: Returns when everything that was started is done.
        window_seconds: Approximate length of a window, if a call takes less.
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
    """Seconds that the first call takes longer than later ones, and seconds of a later call.

    Args:
        call: Starts one step or one drawing; has not been called yet.
        wait: As in `seconds_a_call`.
    """
    since = time.perf_counter()
    call()
    wait()
    first = time.perf_counter() - since
    # The second call may still choose kernels.
    call()
    seconds = seconds_a_call(call, wait)
    return max(0.0, first - seconds), seconds


def speed(row: dict[str, Any], device: str, seconds: float) -> dict[str, Any]:
    """Speeds from the settings of a row and the seconds that one step or drawing takes."""
    return {
        "seconds": seconds,
        "pictures_per_second": row["batch_size"] / seconds,
        "flops_per_second": row["flops"] / seconds,
        "peak_share": peak_share(device, row["flops"], seconds, row["precision"]),
    }
