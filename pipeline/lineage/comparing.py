"""What differs between runs, and why a step ran or did not."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pipeline.lineage.model import (
    ARTIFACT_NAMES,
    CONTENT_DIGEST,
    NOT_CONTENT,
    NOTED_SETTINGS,
    Artifact,
    ArtifactState,
    Execution,
    LineageError,
    Run,
    State,
    Value,
    headline_metrics,
    short_type,
)
from pipeline.lineage.row_changes import row_changes
from pipeline.lineage.store import LOOKUPS, Store

DIFF_SECTIONS = ("settings", "data", "code", "metrics", "steps")

_MAX_CAUSES = 12
_MAX_ROWS = 5
_FINGERPRINT = "dataset_fingerprint"
_ROWS = "rows"
_TRIED = {State.FAILED: "failed", State.INTERRUPTED: "been interrupted"}


@dataclasses.dataclass(frozen=True)
class Difference:
    """One thing that differs between two runs.

    Attributes:
        section: One of `DIFF_SECTIONS`.
        step: The step whose setting or output it is.
        name: What it is.
        first: Its value in the first run; None if it has none.
        second: Its value in the second run.
    """

    section: str
    step: str
    name: str
    first: Value
    second: Value


@dataclasses.dataclass(frozen=True)
class Diff:
    """Two runs side by side.

    Attributes:
        first: The first run.
        second: The second run.
        differences: What differs, by section.
        equal: How many settings, facts and metrics are the same.
    """

    first: Run
    second: Run
    differences: tuple[Difference, ...]
    equal: int


@dataclasses.dataclass(frozen=True)
class Cause:
    """One thing that made the cache miss.

    Attributes:
        depth: 0 for the step itself, 1 for the step that made a changed input, and so on.
        step: The step.
        kind: `setting` or `input`; for a changed dataset also `rows`, a summary of what differs,
            and `row`, one of the rows that differ.
        name: The setting or the input, or what happened to the row.
        before: Its value at the earlier execution.
        now: Its value.
    """

    depth: int
    step: str
    kind: str
    name: str
    before: Value
    now: Value


@dataclasses.dataclass(frozen=True)
class Why:
    """Why a step was executed, or was not.

    Attributes:
        execution: The step.
        run: Its run.
        verdict: `hit`, `miss` or `not cached`.
        explanation: The answer, in a sentence.
        earlier: The execution that it took its outputs from, or that it is compared with.
        earlier_run: The run of `earlier`.
        causes: What had changed since; later causes explain earlier ones.
    """

    execution: Execution
    run: Run | None
    verdict: str
    explanation: str
    earlier: Execution | None
    earlier_run: Run | None
    causes: tuple[Cause, ...]


@dataclasses.dataclass(frozen=True)
class ComparedRun:
    """A row of `compare`: a run and its values of the requested settings."""

    run: Run
    settings: Mapping[str, Value]


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Metrics over runs, the earliest first.

    Attributes:
        metrics: Names of the metrics, in order.
        settings: Names of the settings.
        rows: The runs.
    """

    metrics: tuple[str, ...]
    settings: tuple[str, ...]
    rows: tuple[ComparedRun, ...]


def diff(store: Store, first: str, second: str, roots: Sequence[str] = ()) -> Diff:
    """Two runs side by side, each as for `Store.find_run`.

    Args:
        store: Where to look.
        first: A run.
        second: Another run.
        roots: Folders whose files may be read, to find the rows in which their datasets differ.

    Raises:
        LineageError: There is no such run.
    """
    return diff_runs(store, store.find_run_id(first), store.find_run_id(second), roots)


def diff_runs(store: Store, first: int, second: int, roots: Sequence[str] = ()) -> Diff:
    """Two runs side by side, by id; see `diff`."""
    runs = {run.id: run for run in store.runs([first, second])}
    sides = [_facts_of_run(store, i) for i in (first, second)]
    names = sorted({*sides[0], *sides[1]}, key=lambda key: (DIFF_SECTIONS.index(key[0]), *key[1:]))
    differences = tuple(
        Difference(*name, sides[0].get(name), sides[1].get(name))
        for name in names
        if sides[0].get(name) != sides[1].get(name)
    )
    rows = tuple(
        _row_difference(store, first, second, difference.step, roots)
        for difference in differences
        # The setting and the property of the resulting artifact share this name.
        if difference.name == _FINGERPRINT
    )
    equal = len(names) - len(differences)
    differences = tuple(
        sorted((*differences, *rows), key=lambda each: DIFF_SECTIONS.index(each.section))
    )
    return Diff(runs[first], runs[second], differences, equal)


def why(store: Store, step: str, run: str | None = None, roots: Sequence[str] = ()) -> Why:
    """Explains why a step was executed or taken from the cache.

    Args:
        store: Where to look.
        step: Its name, or the id of an execution.
        run: The run, as for `Store.find_run`; by default the latest that has the step.
        roots: Folders whose files may be read, to find which rows of a dataset changed.

    Raises:
        LineageError: There is no such step or run.
    """
    if run is None and step.isascii() and step.isdecimal():
        return why_execution(store, store.execution(int(step)), roots)
    run_id = None if run is None else store.find_run_id(run)
    return why_execution(store, store.latest_step(step, run_id), roots)


def why_execution(store: Store, execution: Execution, roots: Sequence[str] = ()) -> Why:
    """See `why`."""
    earlier, verdict, explanation = _judge(store, execution)
    causes: list[Cause] = []
    if verdict == "miss" and earlier is not None:
        causes = _causes(store, execution, earlier, 0, set(), roots)
        changed: dict[str, list[str]] = {}
        for cause in sorted(causes, key=lambda c: -c.depth):
            if cause.kind == "setting":
                changed.setdefault(cause.step, []).append(cause.name.rpartition(".")[2])
        if changed:
            named = "; ".join(
                f"{', '.join(names[:4])}{' and more' if len(names) > 4 else ''} of {step}"
                for step, names in changed.items()
            )
            rows = "; ".join(str(c.now) for c in causes if c.kind == _ROWS and c.before)
            explanation = f"executed because this had changed: {named}{rows and f' ({rows})'}"
        elif causes:
            explanation = f"executed because {causes[-1].name} of {causes[-1].step} is new"
        else:
            explanation = _unexplained(store, execution)
    runs = _runs_by_execution(store, [e for e in (execution, earlier) if e is not None])
    return Why(
        execution,
        runs.get(execution.id),
        verdict,
        explanation,
        earlier,
        runs.get(earlier.id) if earlier else None,
        tuple(causes),
    )


def compare(
    store: Store,
    runs: Sequence[str] = (),
    metrics: Sequence[str] = (),
    settings: Sequence[str] = (),
) -> Comparison:
    """Compares metrics over runs.

    Args:
        store: Where to look.
        runs: The runs, as for `Store.find_run`; if empty, all runs that have a metric.
        metrics: Names of the metrics; if empty, all.
        settings: Names of settings to show beside the metrics: `STEP.NAME`, or the end of it, such
            as `learning_rate`.

    Raises:
        LineageError: There is no such run, metric or setting.
    """
    chosen = store.runs([store.find_run_id(text) for text in runs] if runs else None)
    chosen = sorted(chosen, key=lambda run: (run.started, run.id))
    known = sorted({name for run in chosen for name in run.metrics})
    for name in metrics:
        if name not in known:
            raise LineageError(
                f"no run has a metric {name!r}; there are: {', '.join(known) or 'none'}"
            )
    shown = tuple(metrics or headline_metrics(chosen))
    if not runs:
        chosen = [run for run in chosen if any(name in run.metrics for name in shown)]
    values: dict[int, dict[str, Value]] = {run.id: {} for run in chosen}
    if settings:
        for name in settings:
            _add_setting(store, name, values)
    return Comparison(
        shown, tuple(settings), tuple(ComparedRun(run, values[run.id]) for run in chosen)
    )


def _add_setting(store: Store, name: str, values: dict[int, dict[str, Value]]) -> None:
    steps = {e: run for e, run in store.run_of.items() if run in values}
    last = name.rpartition(".")[2]
    found = False
    for execution in store.executions(store.executions_with_setting(last) & steps.keys()):
        for setting, value in execution.settings.items():
            path = f"{execution.node}.{setting}"
            if path == name or path.endswith(f".{name}"):
                values[steps[execution.id]][name] = value
                found = True
    if not found:
        known = {f"{e.node}.{s}" for e in store.executions(steps) for s in e.settings}
        near = sorted(k for k in known if last in k) or sorted(known)
        raise LineageError(
            f"no step of these runs has a setting {name!r}; there are: {', '.join(near[:12])}"
        )


def _facts_of_run(store: Store, run_id: int) -> dict[tuple[str, str, str], Value]:
    """Settings, data, code and metrics of a run, each by section, step and name."""
    steps = store.steps(run_id)
    links = [k for k in store.links(executions=[e.id for e in steps]) if k.output]
    artifacts = {a.id: a for a in store.artifacts(k.artifact_id for k in links)}
    facts: dict[tuple[str, str, str], Value] = {}
    for execution in steps:
        facts["steps", execution.node, "state"] = execution.state.value
        source = not store.graph.inputs(execution.id)
        for name, value in execution.settings.items():
            section = "data" if source else "settings"
            if _is_code(name):
                section = "code"
            facts[section, execution.node, name] = value
    nodes = {e.id: e.node for e in steps}
    for link in links:
        artifact = artifacts[link.artifact_id]
        key = link.key if link.index == 0 else f"{link.key}[{link.index}]"
        for name, value in artifact.properties.items():
            if name in ARTIFACT_NAMES:
                continue
            section = "metrics" if _is_metric(artifact, name, value) else "data"
            if _is_code(name):
                section = "code"
            facts[section, nodes[link.execution_id], f"{key}.{name}"] = value
    return facts


def _is_code(name: str) -> bool:
    return name.endswith(("code_version", "tfx_version", "run_fn", "module_file"))


def _is_metric(artifact: Artifact, name: str, value: Value) -> bool:
    judgement = artifact.type in ("ModelBlessing", "PushedModel") and name != CONTENT_DIGEST
    return isinstance(value, float) or judgement


def _judge(store: Store, execution: Execution) -> tuple[Execution | None, str, str]:
    """The execution to compare with, the verdict, and the explanation if nothing changed."""
    graph = store.graph
    outputs = graph.outputs(execution.id)
    if short_type(execution.type) in LOOKUPS:
        return None, "not cached", "resolvers and importers look things up in every run"
    if execution.state is State.CACHED:
        makers = {m for a in outputs if (m := graph.maker(a)) is not None} - {execution.id}
        source = store.execution(max(makers)) if makers else None
        return (
            source,
            "hit",
            "taken from the cache: settings, code and inputs were the same as when it was executed",
        )
    earlier = _earlier(store, execution)
    done = [e for e in earlier if e.state in (State.COMPLETE, State.CACHED)]
    if not done:
        first = "executed because it had never been completed before"
        tried = [
            f"{words} {'once' if number == 1 else f'{number} times'}"
            for state, words in _TRIED.items()
            if (number := sum(e.state is state for e in earlier))
        ]
        if tried:
            first += f"; it had {' and '.join(tried)}, and only complete steps are cached"
        return None, "miss", first
    return done[-1], "miss", ""


def _causes(
    store: Store,
    execution: Execution,
    earlier: Execution,
    depth: int,
    seen: set[int],
    roots: Sequence[str],
) -> list[Cause]:
    if execution.id in seen or len(seen) >= _MAX_CAUSES:
        return []
    seen.add(execution.id)
    causes = [
        Cause(
            depth,
            execution.node,
            "setting",
            name,
            earlier.settings.get(name),
            execution.settings.get(name),
        )
        for name in sorted({*earlier.settings, *execution.settings} - NOTED_SETTINGS)
        if earlier.settings.get(name) != execution.settings.get(name)
    ]
    if any(cause.name == _FINGERPRINT for cause in causes):
        causes += _row_causes(store, execution, earlier, depth, roots)
    before, now = _inputs(store, earlier.id), _inputs(store, execution.id)
    for key in sorted({*before, *now}):
        old, new = before.get(key, ()), now.get(key, ())
        if _contents(store, old) == _contents(store, new):
            continue
        causes.append(
            Cause(depth, execution.node, "input", key, _artifact_list(old), _artifact_list(new))
        )
        for artifact in new:
            if artifact in old:
                continue
            maker = store.graph.maker(artifact)
            if maker is None or maker in seen:
                continue
            made = store.execution(maker)
            former = next(
                (m for a in old if (m := store.graph.maker(a)) not in (None, maker)), None
            )
            if former is None:
                continue
            other = store.execution(former)
            if other.node == made.node:
                causes += _causes(store, made, other, depth + 1, seen, roots)
    return causes


def _row_difference(
    store: Store, first: int, second: int, node: str, roots: Sequence[str]
) -> Difference:
    """The rows in which the datasets of two runs differ."""
    try:
        before, now = (
            store.artifacts(store.graph.outputs(store.latest_step(node, run).id))
            for run in (first, second)
        )
        found = row_changes(before, now, roots)
    except (LineageError, OSError, ValueError) as error:
        return Difference("data", node, _ROWS, None, f"not known: {error}")
    return Difference("data", node, _ROWS, f"{found.rows_before:,} rows", found.summary)


def _row_causes(
    store: Store, execution: Execution, earlier: Execution, depth: int, roots: Sequence[str]
) -> Iterator[Cause]:
    """The rows that changed a dataset's fingerprint."""
    former, latter = (
        store.artifacts(store.graph.outputs(each.id)) for each in (earlier, execution)
    )
    try:
        found = row_changes(former, latter, roots)
    except (LineageError, OSError, ValueError) as error:
        yield Cause(depth, execution.node, _ROWS, "rows", None, f"not known: {error}")
        return
    rows_before = f"{found.rows_before:,} rows"
    yield Cause(depth, execution.node, _ROWS, "rows", rows_before, found.summary)
    by_kind = itertools.groupby(found.changes, key=lambda change: change.kind)
    for kind, several in by_kind:
        changes = list(several)
        for change in changes[:_MAX_ROWS]:
            yield Cause(depth, execution.node, "row", kind, change.before, change.now)
        if (more := len(changes) - _MAX_ROWS) > 0:
            yield Cause(depth, execution.node, "row", kind, None, f"and {more:,} more")


def _unexplained(store: Store, execution: Execution) -> str:
    """The explanation if settings and inputs equal those of an earlier execution."""
    key = store.cache_keys.get(execution.id)
    same = [
        e
        for e in _earlier(store, execution)
        if key is not None and store.cache_keys.get(e.id) == key and e.state is State.COMPLETE
    ]
    gone = [
        a
        for e in same
        for a in store.artifacts(store.graph.outputs(e.id))
        if a.state is not ArtifactState.LIVE
    ]
    if gone:
        return (
            f"executed although nothing had changed, because an earlier output is gone: artifact "
            f"{gone[0].id} is {gone[0].state.value}"
        )
    if same:
        return "executed although nothing had changed: the cache was switched off for that run"
    return (
        "executed although no setting or input differs: TFX's cache key also contains the "
        "executor's class and the Beam flags, and one of these must have changed"
    )


def _earlier(store: Store, execution: Execution) -> list[Execution]:
    """Earlier executions of the same step of the same pipeline, latest last."""
    ids = store.executions_of_node(execution.node)
    if execution.run_id is not None:
        pipelines = store.pipelines
        mine = pipelines.get(execution.run_id)
        ids = [i for i in ids if pipelines.get(store.run_of.get(i, -1)) == mine]
    return sorted(store.executions(i for i in ids if i < execution.id), key=lambda e: e.id)


def _inputs(store: Store, execution_id: int) -> dict[str, tuple[int, ...]]:
    inputs: dict[str, list[tuple[int, int]]] = {}
    for link in store.links(executions=[execution_id]):
        if not link.output:
            inputs.setdefault(link.key, []).append((link.index, link.artifact_id))
    return {key: tuple(a for _, a in sorted(several)) for key, several in inputs.items()}


def _contents(store: Store, ids: Sequence[int]) -> list[Any]:
    """The contents of artifacts, as the local cache compares them; else their ids."""
    contents = {
        artifact.id: (
            artifact.type,
            {name: v for name, v in artifact.properties.items() if name not in NOT_CONTENT},
        )
        for artifact in store.artifacts(ids)
        if CONTENT_DIGEST in artifact.properties
    }
    return [contents.get(i, i) for i in ids]


def _artifact_list(ids: Sequence[int]) -> str | None:
    return ", ".join(f"artifact {i}" for i in ids) or None


def _runs_by_execution(store: Store, executions: Sequence[Execution]) -> dict[int, Run]:
    ids = {e.id: e.run_id for e in executions if e.run_id is not None}
    runs = {run.id: run for run in store.runs(ids.values())} if ids else {}
    return {e: runs[r] for e, r in ids.items()}
