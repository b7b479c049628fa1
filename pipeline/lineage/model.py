"""What a store holds, typed."""

from __future__ import annotations

import dataclasses
import datetime
import enum
from collections.abc import Iterable, Mapping
from typing import Any

Value = str | int | float | bool | None

CONTENT_DIGEST = "content_digest"
"""Property of an artifact: digest of its files, by which the local cache knows it."""

ARTIFACT_NAMES = ("current_model", "current_model_id", "baseline_model", "baseline_model_id")
"""Properties that name artifacts, which are others in every run."""

FAILURE_REASON = "failure_reason"
"""Property of an execution that did not end well: why, in the words of what it raised."""

TAKEN_OVER = (
    *("pictures_taken_over", "pictures_encoded"),
    *("captions_taken_over", "captions_encoded"),
)
"""Properties of latents: how many are from former runs, and how many this one encoded."""

INTERRUPTED = "interrupted"
"""Property of an execution that was ended from outside: 1. To ML Metadata it has failed."""

LOSS, LOSS_BASELINE = "loss", "loss_baseline"
"""Metrics: the held-out loss, and that of the model that it is compared with."""

REMOVED_ON, CHECKPOINTS_REMOVED_ON = "removed_on", "checkpoints_removed_on"
"""Properties of an artifact whose files, or of a model whose checkpoints, a clean-up removed: when,
as ISO 8601 has it."""

NOT_CONTENT = frozenset(
    {
        *ARTIFACT_NAMES,
        *(REMOVED_ON, CHECKPOINTS_REMOVED_ON),
        *TAKEN_OVER,
        *("name", "state", "pipeline_name", "producer_component", "tfx_version"),
    }
)
"""Properties that say nothing of what an artifact holds; the last five are TFX's own."""

RECORDED_SETTINGS = "settings"
"""Property of a push: all settings of its run, which other steps have one by one."""

NOTED_SETTINGS = frozenset(
    {"training_dataset", "latents_index", "datasets_index", RECORDED_SETTINGS}
)
"""Settings that what comes out does not depend on, such as what a step only writes down: another
value is no reason to execute it again."""


class LineageError(RuntimeError):
    """A question that has no answer; the message is one line for the user."""


class State(str, enum.Enum):
    """What became of an execution, in ML Metadata's words and one of ours: INTERRUPTED.

    That is one that failed because somebody or something ended the run, or that says it runs
    although no process holds the output folder.
    """

    UNKNOWN = "unknown"
    NEW = "new"
    RUNNING = "running"
    COMPLETE = "complete"
    FAILED = "failed"
    CACHED = "cached"
    CANCELED = "canceled"
    INTERRUPTED = "interrupted"


class ArtifactState(str, enum.Enum):
    """What became of an artifact, in ML Metadata's words."""

    UNKNOWN = "unknown"
    PENDING = "pending"
    LIVE = "live"
    MARKED_FOR_DELETION = "marked for deletion"
    DELETED = "deleted"
    ABANDONED = "abandoned"
    REFERENCE = "reference"


class RunStatus(str, enum.Enum):
    """What became of a run, from the states of its steps."""

    RUNNING = "running"
    SUCCEEDED = "succeeded"
    CACHED = "all cached"
    FAILED = "failed"
    CANCELED = "canceled"
    INTERRUPTED = "interrupted"
    UNKNOWN = "unknown"


@dataclasses.dataclass(frozen=True)
class Artifact:
    """A thing that a step left or took.

    Attributes:
        id: Its id in the store.
        type: Name of its type, such as `Model` or `components.RejectedRows`.
        name: Its name; TFX gives none, Vertex does.
        uri: Where its files are.
        state: What became of it.
        created: Milliseconds since 1970.
        properties: Typed and custom properties.
    """

    id: int
    type: str
    name: str
    uri: str
    state: ArtifactState
    created: int
    properties: Mapping[str, Value]

    @property
    def removed(self) -> str:
        """When its files were removed by a clean-up; "" where they were not."""
        gone = self.state in (ArtifactState.DELETED, ArtifactState.MARKED_FOR_DELETION)
        return str(self.properties.get(REMOVED_ON, "")) if gone else ""

    @property
    def shown_state(self) -> str:
        """Its state, as people write it."""
        return f"removed on {self.removed}" if self.removed else self.state.value


@dataclasses.dataclass(frozen=True)
class Execution:
    """One step of one run.

    Attributes:
        id: Its id in the store.
        node: The step's name in the pipeline, such as `Trainer`.
        type: Name of its type: for TFX, the class of the component.
        state: What became of it.
        started: Milliseconds since 1970.
        ended: Milliseconds since 1970 of the last change of its state; None while it runs.
        settings: Its execution properties; JSON objects are taken apart, with dots in the names.
        error: What a failed step said, or why it was interrupted.
        run_id: Id of its run; None for a step outside of any run.
        recorded: All settings of its run, as JSON, where it wrote them down for whoever wants to
            make its release again; "" elsewhere.
    """

    id: int
    node: str
    type: str
    state: State
    started: int
    ended: int | None
    settings: Mapping[str, Value]
    error: str
    run_id: int | None
    recorded: str = ""

    @property
    def seconds(self) -> float | None:
        """Wall-clock time, None while it runs."""
        return None if self.ended is None else (self.ended - self.started) / 1000


@dataclasses.dataclass(frozen=True)
class Link:
    """An artifact that a step took or left.

    Attributes:
        execution_id: The step.
        artifact_id: The artifact.
        output: Whether the step left it.
        key: The name of the input or output, such as `examples`.
        index: The place among the artifacts of the same name.
        internal: Whether the step only looked it up, as resolvers do.
    """

    execution_id: int
    artifact_id: int
    output: bool
    key: str
    index: int
    internal: bool


@dataclasses.dataclass(frozen=True)
class Run:
    """A run of a pipeline.

    Attributes:
        id: Its id in the store.
        name: Its name: for TFX's local runner the time at which it began.
        pipeline: Name of the pipeline.
        status: What became of it.
        started: Milliseconds since 1970 at which its first step began.
        ended: Milliseconds since 1970 at which its last step ended; None while it runs.
        steps: How many steps ended in each state.
        metrics: Numbers (not whole ones) that its artifacts carry, such as `loss`.
        blessed: Whether the evaluation lets it be pushed; None where there was none.
        unsure: Whether it does so although nothing can be told, or forbids it for that.
        releases: Versions that it pushed, or took from the cache.
    """

    id: int
    name: str
    pipeline: str
    status: RunStatus
    started: int
    ended: int | None
    steps: Mapping[str, int]
    metrics: Mapping[str, float]
    blessed: bool | None
    releases: tuple[str, ...]
    unsure: bool = False

    @property
    def shown_blessing(self) -> str:
        """What the evaluation said, as people write it."""
        return ", ".join(filter(None, [shown_value(self.blessed), "unsure" if self.unsure else ""]))

    @property
    def loss_change(self) -> float | None:
        """How much its loss is above its baseline's, as a fraction of that; None without both."""
        loss, baseline = (self.metrics.get(name) for name in (LOSS, LOSS_BASELINE))
        return None if loss is None or not baseline else loss / baseline - 1.0

    @property
    def shown_change(self) -> str:
        """The same as people write it, such as `-35.5 %`."""
        return "" if self.loss_change is None else f"{100.0 * self.loss_change:+.1f} %"

    @property
    def seconds(self) -> float | None:
        """Wall-clock time, None while it runs."""
        return None if self.ended is None else (self.ended - self.started) / 1000


def headline_metrics(runs: Iterable[Run]) -> list[str]:
    """Names of the metrics of runs, without the ends of their intervals; the losses come first."""
    names = {name for run in runs for name in run.metrics}
    shown = (
        name
        for name in names
        if not any(
            name.endswith(end) and name.removesuffix(end) in names for end in ("_lower", "_upper")
        )
    )
    return sorted(shown, key=lambda name: (name != LOSS, name != LOSS_BASELINE, name))


def shown_time(milliseconds: int | None) -> str:
    """A moment in this machine's time zone, such as `2026-03-01 14:05:09`."""
    if not milliseconds:
        return ""
    try:
        moment = datetime.datetime.fromtimestamp(milliseconds / 1000)
    except (OverflowError, OSError, ValueError):
        return str(milliseconds)
    return moment.isoformat(sep=" ", timespec="seconds")


def shown_seconds(seconds: float | None) -> str:
    """A duration in words, such as `0.4 s`, `12 s`, `3 min 05 s` or `2 h 03 min`."""
    if seconds is None:
        return ""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def shown_value(value: Any) -> str:
    """A property's value as people write it."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    return str(value)


def short_type(name: str) -> str:
    """A type's name without its package."""
    return name.rpartition(".")[2] or name
