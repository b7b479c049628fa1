"""Handles Ctrl-C, `kill` and a terminal that closes in the same way.

During training, the Trainer handles these signals itself and saves first (see
`trainer.training.interruption`).
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# By convention, a shell adds this to the number of the signal that ended a process.
_STATUS = 128


class Stopped(KeyboardInterrupt):
    """A signal told this process to end; like Ctrl-C's, it is not an `Exception`.

    Attributes:
        signal: The signal.
    """

    def __init__(self, number: int) -> None:
        self.signal = signal.Signals(number)
        super().__init__(self.signal.name)


@contextlib.contextmanager
def signals_raise() -> Iterator[None]:
    """Within this context, Ctrl-C, SIGTERM and SIGHUP raise `Stopped` in the main thread."""
    before = {}
    for number in _SIGNALS:
        # Ignored signals stay ignored: Ctrl-C in a shell's background, SIGHUP under nohup.
        if signal.getsignal(number) != signal.SIG_IGN:
            before[number] = signal.signal(number, _stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def signals_wait() -> Iterator[None]:
    """Within this context, signals are only recorded; the first raises `Stopped` at the end."""
    noted: list[int] = []
    before = {
        number: signal.signal(number, lambda noticed, frame: noted.append(noticed))
        for number in _SIGNALS
        if signal.getsignal(number) != signal.SIG_IGN
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if noted:
        raise Stopped(noted[0])


def ignore_signals() -> None:
    """Ignores these signals, so that what must be finished can be finished."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def signal_of(error: KeyboardInterrupt) -> signal.Signals:
    """The signal that raised the error."""
    return error.signal if isinstance(error, Stopped) else signal.SIGINT


def exit_status(number: signal.Signals) -> int:
    """130 for Ctrl-C, 143 for SIGTERM, 129 for SIGHUP."""
    return _STATUS + number


def in_words(number: signal.Signals) -> str:
    """The signal's name, as text for users."""
    return "Ctrl-C" if number == signal.SIGINT else number.name


def _stop(number: int, frame: FrameType | None) -> None:
    raise Stopped(number)
