"""Being told to stop: a preempted machine sends SIGTERM and waits a little."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType


class TrainingInterruptedError(RuntimeError):
    """The run was told to stop; it saved what it had."""


class StopRequest:
    """Notes SIGTERM instead of dying of it; use as a context manager.

    Only a process's main thread may handle signals; elsewhere this notes nothing.

    Attributes:
        made: Whether SIGTERM came.
    """

    def __init__(self) -> None:
        self.made = False
        self._handles = threading.current_thread() is threading.main_thread()

    def __enter__(self) -> StopRequest:
        if self._handles:
            self._before = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._handles:
            signal.signal(signal.SIGTERM, self._before)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.made = True
