"""The typed contents of a store."""

from __future__ import annotations

import dataclasses
import datetime
import enum
from collections.abc import Iterable, Mapping
from typing import Any

Value = str | int | float | bool | None

CONTENT_DIGEST = "content_digest"
"""Property of an artifact: the digest of its files, by which the local cache recognises it."""

ARTIFACT_NAMES = ("current_model", "current_model_id", "baseline_model", "baseline_model_id")
"""Properties that name artifacts, which differ in every run."""

FAILURE_REASON = "failure_reason"
"""Property of an execution that did not complete: why, in the words of the exception."""

TAKEN_OVER = (
    *("pictures_taken_over", "pictures_encoded"),
    *("captions_taken_over", "captions_encoded"),
)
"""Properties of latents: how many come from earlier runs, and how many this run encoded."""

INTERRUPTED = "interrupted"
"""Property of an execution that was ended from outside: 1. ML Metadata records it as failed."""

LOSS, LOSS_BASELINE = "loss", "loss_baseline"
"""Metrics: the held-out loss, and the held-out loss of the baseline."""

REMOVED_ON, CHECKPOINTS_REMOVED_ON = "removed_on", "checkpoints_removed_on"
"""Properties with the date (ISO 8601) on which a clean-up removed an artifact's files, or a model's
checkpoints."""

NOT_CONTENT = frozenset(
    {
        *ARTIFACT_NAMES,
        *(REMOVED_ON, CHECKPOINTS_REMOVED_ON),
        *TAKEN_OVER,
        *("name", "state", "pipeline_name", "producer_component", "tfx_version"),
    }
)
"""Properties that say nothing about an artifact's contents; the last five are TFX's own."""

RECORDED_SETTINGS = "settings"
"""Property of a push: all settings of its run; other steps have them as separate properties."""

NOTED_SETTINGS = frozenset(
    {"training_dataset", "latents_index", "datasets_index", RECORDED_SETTINGS}
)
"""Settings that do not affect a step's outputs, such as values that it only records: a changed
value is not a reason to execute the step again."""


class LineageError(RuntimeError):
    """A question cannot be answered; the message is one line for the user."""


class State(str, enum.Enum):
    """The state of an execution: ML Metadata's states, and INTERRUPTED.

    An interrupted execution failed because somebody or something ended the run, or it is recorded
    as running although no process holds the output folder.
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
    """The state of an artifact, in ML Metadata's words."""

    UNKNOWN = "unknown"
    PENDING = "pending"
    LIVE = "live"
    MARKED_FOR_DELETION = "marked for deletion"
    DELETED = "deleted"
    ABANDONED = "abandoned"
    REFERENCE = "reference"


class RunStatus(str, enum.Enum):
    """The status of a run, from the states of its steps."""

    RUNNING = "running"
    SUCCEEDED = "succeeded"
    CACHED = "all cached"
    FAILED = "failed"
    CANCELED = "canceled"
    INTERRUPTED = "interrupted"
    UNKNOWN = "unknown"


@dataclasses.dataclass(frozen=True)
class Artifact:
    """An output or input of a step.

    Attributes:
        id: Its id in the store.
        type: Name of its type, such as `Model` or `components.RejectedRows`.
        name: Its name; TFX gives none, Vertex does.
        uri: Where its files are.
        state: Its state.
        created: Time of creation, in milliseconds since 1970.
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
        """When a clean-up removed its files; "" if none did."""
        gone = self.state in (ArtifactState.DELETED, ArtifactState.MARKED_FOR_DELETION)
        return str(self.properties.get(REMOVED_ON, "")) if gone else ""

    @property
    def shown_state(self) -> str:
        """Its state, formatted for people."""
        return f"removed on {self.removed}" if self.removed else self.state.value


@dataclasses.dataclass(frozen=True)
class Execution:
    """One step of one run.

    Attributes:
        id: Its id in the store.
        node: The step's name in the pipeline, such as `Trainer`.
        type: Name of its type: for TFX, the class of the component.
        state: Its state.
        started: Time of its start, in milliseconds since 1970.
        ended: Time of the last change of its state, in milliseconds since 1970; None while it runs.
        settings: Its execution properties; JSON objects are flattened, with dots in the names.
        error: The error of a failed step, or why the step was interrupted.
        run_id: Id of its run; None for a step outside any run.
        recorded: All settings of its run, as JSON, if the step recorded them so that its release
            can be made again; otherwise "".
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
    """An artifact that is an input or output of a step.

    Attributes:
        execution_id: The step.
        artifact_id: The artifact.
        output: Whether it is an output.
        key: The name of the input or output, such as `examples`.
        index: The position among the artifacts of the same name.
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
        name: Its name: for TFX's local runner, the time at which it began.
        pipeline: Name of the pipeline.
        status: Its status.
        started: When its first step began, in milliseconds since 1970.
        ended: When its last step ended, in milliseconds since 1970; None while it runs.
        steps: How many steps ended in each state.
        metrics: Floating-point properties of its artifacts, such as `loss`.
        blessed: Whether the evaluation allows a push; None if there was no evaluation.
        unsure: Whether the evaluation was inconclusive, whether it allows the push or not.
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
        """The verdict of the evaluation, formatted for people."""
        return ", ".join(filter(None, [shown_value(self.blessed), "unsure" if self.unsure else ""]))

    @property
    def loss_change(self) -> float | None:
        """Relative change of its loss from the baseline's loss; None if one is missing."""
        loss, baseline = (self.metrics.get(name) for name in (LOSS, LOSS_BASELINE))
        return None if loss is None or not baseline else loss / baseline - 1.0

    @property
    def shown_change(self) -> str:
        """The change of the loss, formatted for people, such as `-35.5 %`."""
        return "" if self.loss_change is None else f"{100.0 * self.loss_change:+.1f} %"

    @property
    def seconds(self) -> float | None:
        """Wall-clock time, None while it runs."""
        return None if self.ended is None else (self.ended - self.started) / 1000


def headline_metrics(runs: Iterable[Run]) -> list[str]:
    """Names of the metrics of runs, without interval bounds; the losses come first."""
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
    """A time in this machine's time zone, such as `2026-03-01 14:05:09`."""
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
    """The value of a property, formatted for people."""
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
