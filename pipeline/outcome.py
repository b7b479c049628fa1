"""The outcome of a run, component by component."""

from __future__ import annotations

import dataclasses
import enum


class Status(enum.Enum):
    """The outcome of a component in a run."""

    EXECUTED = "executed"
    CACHED = "cached"
    RESOLVED = "resolved"


@dataclasses.dataclass(frozen=True)
class ComponentOutcome:
    """One component of one run.

    Attributes:
        component: The component's id in the pipeline.
        status: Its outcome.
        seconds: Wall-clock time.
        execution_id: Id of the execution in ML Metadata.
    """

    component: str
    status: Status
    seconds: float
    execution_id: int


@dataclasses.dataclass(frozen=True)
class RunOutcome:
    """The outcome of a run, with its components in the order they ran."""

    run_id: str
    components: tuple[ComponentOutcome, ...]

    @property
    def nothing_executed(self) -> bool:
        """Whether every step was up to date; resolvers only look things up and do not count."""
        return all(c.status is not Status.EXECUTED for c in self.components)


class ComponentError(RuntimeError):
    """A component failed; `__cause__` is its own error if it raised one."""

    def __init__(self, component: str, seconds: float, detail: str) -> None:
        super().__init__(detail)
        self.component = component
        self.seconds = seconds


def duration(seconds: float) -> str:
    """`seconds` in words, such as `0.4 s`, `12 s` or `3 min 05 s`."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def outcome_table(outcome: RunOutcome) -> str:
    """A line per component: its name, its outcome, how long it took."""
    width = max(len(c.component) for c in outcome.components)
    rows = []
    for component in outcome.components:
        rows.append(
            f"  {component.component:<{width}}  {component.status.value:<8}  "
            f"{duration(component.seconds):>12}"
        )
    total = duration(sum(c.seconds for c in outcome.components))
    rows.append(f"  {'total':<{width}}  {'':<8}  {total:>12}")
    return "\n".join(rows)
