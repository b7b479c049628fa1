"""Progress of the work done by Beam workers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from apache_beam.utils import shared

from storage.progress import Work, WorkProgress


class SharedProgress:
    """Counts the work of this process; other processes have their own logs and are not counted.

    It travels to the workers with the DoFns that hold it.
    """

    def __init__(self, *works: Work) -> None:
        """See `WorkProgress`."""
        self._works = works
        self._handle = shared.Shared()

    @contextlib.contextmanager
    def shown(self) -> Iterator[None]:
        """Shows progress inside this context."""
        with self._handle.acquire(lambda: WorkProgress(*self._works)):
            yield

    def update(self, what: str, count: int = 1) -> None:
        """Adds `count` to the work called `what`."""
        self._handle.acquire(WorkProgress).update(what, count)
