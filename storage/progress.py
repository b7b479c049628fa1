"""Progress of long work: bars in a terminal, a line at each tenth elsewhere."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

_LINES = 10
# Shorter work needs no progress.
_SHORT_SECONDS = 5.0

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def on_screen() -> Iterator[None]:
    """Within this context, lines of progress are printed, for commands that show no other log."""
    level, handler = logger.level, logging.StreamHandler(sys.stdout)
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


@dataclasses.dataclass(frozen=True)
class Work:
    """A piece of work.

    Attributes:
        what: What is being done, such as "encoding".
        total: Number of units in total.
        unit: What is counted, in the plural, such as "pictures".
    """

    what: str
    total: int
    unit: str


class _Speed(ProgressColumn):
    """Units per second."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{_shown_speed(speed)} {task.fields['unit']}/s")


class WorkProgress:
    """Context manager that shows the progress of work that takes longer than five seconds.

    Several threads may update it.
    """

    def __init__(self, *works: Work, clock: Callable[[], float] = time.monotonic) -> None:
        """Shows nothing yet."""
        self._works = {work.what: work for work in works if work.total > 0}
        self._done = dict.fromkeys(self._works, 0)
        self._tenths = dict.fromkeys(self._works, 0)
        self._clock = clock
        self._begun = dict[str, float]()
        self._lock = threading.Lock()
        self._bars: Progress | None = None
        self._tasks = {}
        # The current stream: a runner may have replaced sys.stdout.
        console = Console(file=sys.stdout)
        if console.is_terminal:
            self._bars = Progress(
                TextColumn("  {task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                _Speed(),
                TimeRemainingColumn(),
                console=console,
            )
            self._tasks = {
                work.what: self._bars.add_task(
                    work.what, total=work.total, start=False, visible=False, unit=work.unit
                )
                for work in self._works.values()
            }

    def __enter__(self) -> WorkProgress:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._bars:
            self._bars.stop()

    def update(self, what: str, count: int = 1) -> None:
        """Counts `count` more units of a piece of work; empty work is not shown."""
        work = self._works.get(what)
        if work is None:
            return
        with self._lock:
            now = self._clock()
            begun = self._begun.setdefault(what, now)
            self._done[what] += count
            if self._bars:
                self._show(work, now - begun)
            else:
                self._tell(work, now - begun)

    def _show(self, work: Work, seconds: float) -> None:
        assert self._bars is not None
        task = self._tasks[work.what]
        if not self._bars.tasks[task].started:
            self._bars.start_task(task)
        self._bars.update(task, completed=self._done[work.what], visible=seconds >= _SHORT_SECONDS)
        if seconds >= _SHORT_SECONDS:
            self._bars.start()

    def _tell(self, work: Work, seconds: float) -> None:
        done = self._done[work.what]
        tenth = _LINES * done // work.total
        if seconds < _SHORT_SECONDS or tenth <= self._tenths[work.what]:
            return
        self._tenths[work.what] = tenth
        # The first units were done before the clock started.
        left = seconds * (work.total - done) / done
        logger.info(
            "%s: %s of %s %s, %s a second%s",
            work.what,
            f"{done:,}",
            f"{work.total:,}",
            work.unit,
            _shown_speed(done / seconds),
            f", about {_shown_time(left)} left" if done < work.total else "",
        )


def _shown_speed(speed: float) -> str:
    return f"{speed:,.0f}" if speed >= 10 else f"{speed:.2g}"


def _shown_time(seconds: float) -> str:
    minutes = round(seconds / 60)
    if seconds < 100.0:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min"
