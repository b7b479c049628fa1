"""How a training loop is timed and reports its result. Imports only the standard library."""

from __future__ import annotations

import argparse
import contextlib
import json
import resource
import statistics
import time
from collections.abc import Callable, Iterator

LEARNING_RATE, WEIGHT_DECAY, CLIP_NORM = 1e-5, 1e-2, 1.0
"""The same for all loops."""


def arguments_of(description: str | None) -> argparse.ArgumentParser:
    """The command line that all loops share."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--image-size", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--steps", type=int, default=5, help="timed steps, after two untimed ones")
    return parser


class Timer:
    """Times the start of a loop, its steps, and its forward pass; prints one line of JSON."""

    def __init__(self) -> None:
        """Starts the clock."""
        self._since = time.perf_counter()
        self._facts: dict[str, float] = {"build_seconds": 0.0}

    @contextlib.contextmanager
    def building(self) -> Iterator[None]:
        """Counts the time within this as building the network or tracing its step."""
        since = time.perf_counter()
        yield
        self._facts["build_seconds"] += time.perf_counter() - since

    def measure(
        self, step: Callable[[], object], forward: Callable[[], object], steps: int
    ) -> None:
        """Times `step`, which must return only when its result is there, and then `forward`."""
        step()
        self._facts["first_step_seconds"] = time.perf_counter() - self._since
        step()
        self._facts["step_seconds"] = statistics.median(_seconds(step) for _ in range(steps))
        self._facts["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        forward()
        forward()
        self._facts["forward_seconds"] = statistics.median(_seconds(forward) for _ in range(steps))
        print(json.dumps(self._facts))


def _seconds(call: Callable[[], object]) -> float:
    since = time.perf_counter()
    call()
    return time.perf_counter() - since
