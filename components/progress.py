"""Progress of work that Beam's workers do."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from apache_beam.utils import shared

from storage.progress import Work, WorkProgress


class SharedProgress:
    """Counts what is done by workers in this process; others have their own logs, and do not count.

    Goes to the workers with the DoFns that it is given to.
    """

    def __init__(self, *works: Work) -> None:
        """See `WorkProgress`."""
        self._works = works
        self._handle = shared.Shared()

    @contextlib.contextmanager
    def shown(self) -> Iterator[None]:
        """Within this, what is done is shown."""
        with self._handle.acquire(lambda: WorkProgress(*self._works)):
            yield

    def update(self, what: str, count: int = 1) -> None:
        """Counts `count` more of a work."""
        self._handle.acquire(WorkProgress).update(what, count)
