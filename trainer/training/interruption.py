"""Stop requests: Ctrl-C, a closing terminal, or SIGTERM, as sent before a preemption."""

from __future__ import annotations

import logging
import signal
import threading
from types import FrameType, TracebackType
from typing import Any

logger = logging.getLogger(__name__)


class TrainingInterruptedError(RuntimeError):
    """The run was told to stop; it saved its progress.

    Attributes:
        signal: The signal that told it.
    """

    def __init__(self, message: str, number: signal.Signals = signal.SIGTERM) -> None:
        super().__init__(message)
        self.signal = number


class StopRequest:
    """Notes SIGTERM, SIGHUP and Ctrl-C instead of dying; use as a context manager.

    A second Ctrl-C takes effect at once. Only the main thread of a process may handle signals; in
    other threads this notes nothing.

    Attributes:
        made: Whether a signal arrived.
        signal: Which one; SIGTERM if another worker was told.
    """

    def __init__(self) -> None:
        self.made = False
        self.signal = signal.SIGTERM
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
                # A process that a shell starts in the background ignores Ctrl-C and should go on
                # doing so; with nohup, the same holds for SIGHUP.
                if signal.getsignal(number) != signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.made and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.made, self.signal = True, signal.Signals(number)
        again = ""
        if number == signal.SIGINT:
            again = " Ctrl-C again stops at once, and loses the steps since the last checkpoint."
        logger.info("Stopping after this step, which is saved first.%s", again)
