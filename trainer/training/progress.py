"""Progress of a training run: a bar in a terminal, plain lines elsewhere."""

from __future__ import annotations

import logging
import sys
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from trainer.training.evaluations import Evaluation
from trainer.training.fine_tuner import StepRecord

_PLAIN_LINES = 10

logger = logging.getLogger(__name__)


class TrainingProgress:
    """Shows every `StepRecord`; use as a context manager."""

    def __init__(self, steps: int) -> None:
        self._steps = steps
        self._held_out = ""
        self._next_line = 0
        # The stream in use when training starts: a runner may have replaced sys.stdout.
        console = Console(file=sys.stdout)
        self._bar = (
            Progress(
                TextColumn("  training"),
                BarColumn(),
                TextColumn("step {task.completed:.0f}/{task.total:.0f}  {task.description}"),
                TimeRemainingColumn(),
                console=console,
            )
            if console.is_terminal
            else None
        )
        self._task = self._bar.add_task("", total=steps) if self._bar else None

    def __enter__(self) -> TrainingProgress:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._bar:
            self._bar.stop()

    def held_out(self, loss: float, best: Evaluation | None) -> None:
        """Shows a held-out loss with the records that follow, and the best step if it decides."""
        marked = f" (best: step {best.step}, {best.loss:.4f})" if best else ""
        self._held_out = f"held out {loss:.4f}{marked}, "

    def update(self, record: StepRecord) -> None:
        """Shows a record."""
        speed = f"{record.images_per_second:.0f} images/s"
        facts = f"loss {record.loss:.4f}, {self._held_out}{speed}"
        if self._bar and self._task is not None:
            self._bar.update(self._task, completed=record.step, description=facts)
        elif record.step >= self._next_line or record.step == self._steps:
            logger.info("step %d of %d: %s", record.step, self._steps, facts)
            self._next_line = record.step + max(1, self._steps // _PLAIN_LINES)
