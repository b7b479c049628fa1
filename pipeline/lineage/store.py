"""Runs, steps and artifacts of a store."""

from __future__ import annotations

import base64
import collections
import dataclasses
import functools
import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

from pipeline.lineage.database import Database, rows_by_ids
from pipeline.lineage.graph import Graph
from pipeline.lineage.model import (
    FAILURE_REASON,
    INTERRUPTED,
    RECORDED_SETTINGS,
    Artifact,
    ArtifactState,
    Execution,
    LineageError,
    Link,
    Run,
    RunStatus,
    State,
    Value,
    short_type,
)
from storage.addresses import redacted
from storage.verdict import UNSURE, VERDICT

# ML Metadata's numbers: `Execution.State`, `Artifact.State`, `Event.Type`.
_STATES = dict(enumerate(state for state in State if state is not State.INTERRUPTED))
_ARTIFACT_STATES = dict(enumerate(ArtifactState))
_DECLARED_OUTPUT, _DECLARED_INPUT, _INPUT, _OUTPUT, _INTERNAL_INPUT, _INTERNAL_OUTPUT = range(1, 7)
_PENDING_OUTPUT = 7
_OUTPUTS = (_DECLARED_OUTPUT, _OUTPUT, _INTERNAL_OUTPUT, _PENDING_OUTPUT)
_INTERNAL = (_INTERNAL_INPUT, _INTERNAL_OUTPUT)
_UNFINISHED = (State.NEW, State.RUNNING, State.UNKNOWN)
_GOING_ON = (State.NEW, State.RUNNING)

# Steps that look things up in every run and do not make anything.
LOOKUPS = ("Resolver", "Importer")

_RUN_TYPE, _PIPELINE_TYPE, _NODE_TYPE, _CACHE_TYPE = (
    "pipeline_run",
    "pipeline",
    "node",
    "execution_cache",
)
_ERROR_PROPERTIES = (FAILURE_REASON, "__execution_result__")
_OURS = (FAILURE_REASON, INTERRUPTED, RECORDED_SETTINGS)
_ABANDONED = "the run ended before this step did"
_MAX_JSON_DEPTH = 6
# Prefix of a JSON value that ML Metadata's client wrote as text.
_STRUCT = "mlmd-struct::"


@dataclasses.dataclass(frozen=True)
class _Step:
    """What the status of a run depends on."""

    id: int
    node: str
    resolver: bool
    state: State
    started: int
    ended: int


class Store:
    """The contents of an ML Metadata store at one moment; every question starts here."""

    def __init__(self, database: Database, abandoned: bool = False) -> None:
        """Reads from `database`.

        Args:
            database: The tables.
            abandoned: Whether no process is known to write to the store, so that a step recorded as
                running is not running.
        """
        self._database = database
        self._abandoned = abandoned

    @property
    def name(self) -> str:
        """The name of the store in error messages."""
        return self._database.name

    @functools.cached_property
    def graph(self) -> Graph:
        """Which artifacts each step used and produced."""
        events = self._database.rows(
            "SELECT execution_id, artifact_id, type FROM Event ORDER BY id"
        )
        compared = self._database.rows(
            "SELECT e.execution_id, e.artifact_id FROM EventPath p JOIN Event e ON e.id = "
            "p.event_id WHERE p.step_key LIKE 'baseline%' AND e.type IN (2, 3)"
        )
        started = self._database.rows(
            "SELECT e.execution_id, e.artifact_id FROM EventPath p JOIN Event e ON e.id = "
            "p.event_id WHERE p.step_key = 'base_model' AND e.type IN (2, 3)"
        )
        states = self._database.rows("SELECT id, last_known_state FROM Execution")
        return Graph(
            ((e, a, kind in _OUTPUTS, kind in _INTERNAL) for e, a, kind in events),
            compared=set(compared),
            started=set(started),
            reused={i for i, state in states if _STATES.get(state) is State.CACHED},
            complete={i for i, state in states if _STATES.get(state) is State.COMPLETE},
        )

    def runs(self, ids: Iterable[int] | None = None) -> list[Run]:
        """Returns the runs, latest first; all runs, or the runs with these `ids`."""
        wanted = None if ids is None else set(ids)
        contexts = {
            i: name for i, name in self._contexts(_RUN_TYPE) if wanted is None or i in wanted
        }
        steps = self._steps_of_runs(contexts)
        metrics, blessed, unsure, releases = self._results(steps)
        runs = [
            self._run(
                i,
                name,
                self.pipelines.get(i, ""),
                steps.get(i, []),
                metrics.get(i, {}),
                blessed.get(i),
                i in unsure,
                releases.get(i, []),
            )
            for i, name in contexts.items()
        ]
        return sorted(runs, key=lambda run: (run.started, run.id), reverse=True)

    def find_run(self, text: str) -> Run:
        """Finds a run by id, name, start of a name, or `latest`.

        Raises:
            LineageError: There is no such run, or more than one.
        """
        return self.runs([self.find_run_id(text)])[0]

    def find_run_id(self, text: str) -> int:
        """See `find_run`."""
        contexts = self._contexts(_RUN_TYPE)
        if not contexts:
            raise LineageError(f"{self.name} has no pipeline run yet")
        if text == "latest":
            return self._latest(contexts)
        matches = (
            [i for i, name in contexts if name == text]
            or [i for i, _ in contexts if str(i) == text]
            or [i for i, name in contexts if text and name.startswith(text)]
        )
        if len(matches) == 1:
            return matches[0]
        if matches:
            raise LineageError(
                f"{len(matches)} runs have names that start with {text!r}: give more of the name, "
                "or the run's id"
            )
        raise LineageError(
            f"there is no run {text!r} in {self.name}: `runs` lists all {len(contexts)} runs"
        )

    def run_ids(self) -> dict[int, str]:
        """Ids and names of all runs."""
        return dict(self._contexts(_RUN_TYPE))

    def steps(self, run_id: int) -> list[Execution]:
        """The steps of a run, in the order in which they began."""
        return self.executions(self.step_ids(run_id))

    def step_ids(self, run_id: int) -> list[int]:
        """Ids of the steps of a run."""
        return [e for e, run in self.run_of.items() if run == run_id]

    def executions(self, ids: Iterable[int]) -> list[Execution]:
        """Executions by id, in the order in which they began."""
        wanted = set(ids)
        properties, hidden = self._properties("Execution", wanted)
        found = []
        query = (
            "SELECT e.id, t.name, e.last_known_state, e.create_time_since_epoch, "
            "e.last_update_time_since_epoch FROM Execution e JOIN Type t ON t.id = e.type_id "
            "WHERE e.id IN ({ids})"
        )
        for i, kind, number, created, updated in rows_by_ids(self._database, query, wanted):
            recorded = _STATES.get(number, State.UNKNOWN)
            state = self._state(i, recorded)
            error = next((hidden[i][p] for p in _ERROR_PROPERTIES if hidden[i].get(p)), "")
            if state is not recorded and not error:
                error = _ABANDONED
            found.append(
                Execution(
                    id=i,
                    node=self.node_of.get(i) or short_type(kind),
                    type=kind,
                    state=state,
                    started=created or 0,
                    ended=None if recorded in _UNFINISHED else updated or created or 0,
                    settings=_flat(properties[i]),
                    error=_error_text(str(error)) if state is not State.COMPLETE else "",
                    run_id=self.run_of.get(i),
                    recorded=str(hidden[i].get(RECORDED_SETTINGS) or ""),
                )
            )
        return sorted(found, key=lambda e: (e.started, e.id))

    def artifacts(self, ids: Iterable[int]) -> list[Artifact]:
        """Artifacts by id, in the order of their ids."""
        wanted = set(ids)
        properties, _ = self._properties("Artifact", wanted)
        query = (
            "SELECT a.id, t.name, a.name, a.uri, a.state, a.create_time_since_epoch "
            "FROM Artifact a JOIN Type t ON t.id = a.type_id WHERE a.id IN ({ids})"
        )
        return [
            Artifact(
                id=i,
                type=kind,
                name=name or "",
                uri=redacted(uri or ""),
                state=_ARTIFACT_STATES.get(state, ArtifactState.UNKNOWN),
                created=created or 0,
                properties=properties[i],
            )
            for i, kind, name, uri, state, created in sorted(
                rows_by_ids(self._database, query, wanted)
            )
        ]

    @functools.cached_property
    def artifact_types(self) -> dict[int, str]:
        """Names of the types of all artifacts."""
        return dict(
            self._database.rows(
                "SELECT a.id, t.name FROM Artifact a JOIN Type t ON t.id = a.type_id"
            )
        )

    def artifact(self, artifact_id: int) -> Artifact:
        """One artifact.

        Raises:
            LineageError: There is no artifact with this id.
        """
        found = self.artifacts([artifact_id]) if abs(artifact_id) < 1 << 63 else []
        if not found:
            raise LineageError(f"there is no artifact {artifact_id} in {self.name}")
        return found[0]

    def execution(self, execution_id: int) -> Execution:
        """One execution.

        Raises:
            LineageError: There is no execution with this id.
        """
        found = self.executions([execution_id]) if abs(execution_id) < 1 << 63 else []
        if not found:
            raise LineageError(f"there is no step {execution_id} in {self.name}")
        return found[0]

    def links(self, executions: Iterable[int] = (), artifacts: Iterable[int] = ()) -> list[Link]:
        """The links of these steps, or the links of these artifacts.

        TFX records everything that a resolver looked at as its output; artifacts that its own run
        had made before count as inputs here.
        """
        query = (
            "SELECT e.id, e.execution_id, e.artifact_id, e.type, p.is_index_step, p.step_index, "
            "p.step_key FROM Event e LEFT JOIN EventPath p ON p.event_id = e.id WHERE "
        )
        rows = [
            *rows_by_ids(self._database, query + "e.execution_id IN ({ids})", executions),
            *rows_by_ids(self._database, query + "e.artifact_id IN ({ids})", artifacts),
        ]
        handed_on = self._handed_on(
            (execution, artifact)
            for _, execution, artifact, kind, *_ in rows
            if kind == _INTERNAL_OUTPUT
        )
        links: dict[int, Link] = {}
        for event, execution, artifact, kind, is_index, index, key in rows:
            former = links.get(event)
            links[event] = Link(
                execution_id=execution,
                artifact_id=artifact,
                output=kind in _OUTPUTS and (execution, artifact) not in handed_on,
                key=former.key if is_index in (1, None) and former else key or "",
                index=index or 0 if is_index else (former.index if former else 0),
                internal=kind in _INTERNAL,
            )
        return [links[event] for event in sorted(links)]

    def latest_step(self, node: str, run_id: int | None = None) -> Execution:
        """The latest execution of a step, in one run or in any run.

        Raises:
            LineageError: There is no such step.
        """
        of_node = self.executions_of_node(node)
        if run_id is not None:
            of_node = sorted({*of_node} & {*self.step_ids(run_id)})
        if of_node:
            return self.execution(max(of_node))
        where = f"run {self.run_ids().get(run_id, run_id)}" if run_id is not None else self.name
        names = sorted(
            {e.node for e in self.steps(run_id)}
            if run_id is not None
            else set(self.node_of.values())
        )
        raise LineageError(
            f"there is no step {node!r} in {where}"
            + (f"; there are: {', '.join(names)}" if names else "")
        )

    def executions_of_node(self, node: str) -> list[int]:
        """Ids of all executions of a step."""
        return sorted(i for i, name in self.node_of.items() if name == node)

    @functools.cached_property
    def cache_keys(self) -> dict[int, str]:
        """TFX's cache key of each execution that has one."""
        return {e: name for e, _, name in self._associated(_CACHE_TYPE)}

    def artifacts_with(self, name: str, text: str) -> list[int]:
        """Ids of artifacts whose property `name` is `text`."""
        rows = self._database.rows(
            "SELECT artifact_id FROM ArtifactProperty WHERE name = ? AND string_value = ?",
            name,
            text,
        )
        return sorted({i for (i,) in rows})

    def artifacts_with_uri(self, uri: str) -> list[int]:
        """Ids of artifacts whose files are at `uri`."""
        return [i for (i,) in self._database.rows("SELECT id FROM Artifact WHERE uri = ?", uri)]

    def artifacts_of_type(self, name: str) -> list[int]:
        """Ids of all artifacts of a type."""
        return [i for i, kind in self.artifact_types.items() if kind == name]

    def artifacts_named(self, name: str) -> list[int]:
        """Ids of artifacts with this name; only Vertex gives artifacts names."""
        return [i for (i,) in self._database.rows("SELECT id FROM Artifact WHERE name = ?", name)]

    def property_texts(self, table: str, pattern: str) -> list[tuple[int, str, str]]:
        """Id, name and text of the properties whose text is LIKE `pattern`.

        Args:
            table: `Artifact` or `Execution`.
            pattern: An SQL pattern; `!` escapes.
        """
        return self._database.rows(
            f"SELECT {table.lower()}_id, name, string_value FROM {table}Property "
            "WHERE string_value LIKE ? ESCAPE '!'",
            pattern,
        )

    def executions_with_setting(self, name: str) -> set[int]:
        """Ids of executions that may have a setting whose name ends with `name`."""
        escaped = escape_like(name)
        rows = self._database.rows(
            "SELECT execution_id FROM ExecutionProperty "
            "WHERE name LIKE ? ESCAPE '!' OR string_value LIKE ? ESCAPE '!'",
            f"%{escaped}",
            f"{{%{escaped}%",
        )
        return {i for (i,) in rows}

    @functools.cached_property
    def pipelines(self) -> dict[int, str]:
        """Name of the pipeline of each run: its parent, or else the pipeline of its steps."""
        of_steps = {
            self.run_of[e]: name
            for e, _, name in self._associated(_PIPELINE_TYPE)
            if e in self.run_of
        }
        parents = self._database.rows(
            "SELECT p.context_id, c.name FROM ParentContext p JOIN Context c ON c.id = "
            "p.parent_context_id JOIN Type t ON t.id = c.type_id WHERE t.name = ?",
            _PIPELINE_TYPE,
        )
        return of_steps | dict(parents)

    @functools.cached_property
    def run_of(self) -> dict[int, int]:
        """Id of the run of each execution that belongs to one."""
        return {e: run for e, run, _ in self._associated(_RUN_TYPE)}

    @functools.cached_property
    def node_of(self) -> dict[int, str]:
        """Name of the step of each execution that has one.

        TFX names the context `<pipeline>.<node>`, and both may contain dots.
        """
        prefixes = [f"{name}." for _, name in self._contexts(_PIPELINE_TYPE)]
        shown: dict[str, str] = {}
        nodes = {}
        for execution, _, name in self._associated(_NODE_TYPE):
            if name not in shown:
                prefix = max((p for p in prefixes if name.startswith(p)), key=len, default="")
                shown[name] = name[len(prefix) :] or name
            nodes[execution] = shown[name]
        return nodes

    def counts(self) -> dict[str, int]:
        """How much the store holds."""
        return {
            name: self._database.rows(f"SELECT count(*) FROM {table}")[0][0]
            for name, table in (("executions", "Execution"), ("artifacts", "Artifact"))
        }

    def _handed_on(self, pairs: Iterable[tuple[int, int]]) -> set[tuple[int, int]]:
        """The (resolver, artifact) pairs whose artifact was made in the resolver's own run."""
        resolved = set(pairs)
        query = (
            "SELECT execution_id, artifact_id FROM Event WHERE type IN (1, 4) AND artifact_id IN "
        )
        makers = collections.defaultdict(list)
        for execution, artifact in rows_by_ids(
            self._database, query + "({ids})", {artifact for _, artifact in resolved}
        ):
            makers[artifact].append(execution)
        return {
            (resolver, artifact)
            for resolver, artifact in resolved
            for maker in makers[artifact]
            if maker < resolver and self.run_of.get(maker) == self.run_of.get(resolver)
        }

    @functools.cached_property
    def _interrupted(self) -> set[int]:
        """Ids of executions that were ended from outside."""
        query = "SELECT execution_id FROM ExecutionProperty WHERE name = ? AND int_value = 1"
        return {i for (i,) in self._database.rows(query, INTERRUPTED)}

    def _state(self, execution_id: int, recorded: State) -> State:
        """The state of an execution that ML Metadata records as `recorded`."""
        abandoned = self._abandoned and recorded in _GOING_ON
        if abandoned or (recorded is State.FAILED and execution_id in self._interrupted):
            return State.INTERRUPTED
        return recorded

    def _contexts(self, type_name: str) -> list[tuple[int, str]]:
        rows = self._database.rows(
            "SELECT c.id, c.name FROM Context c JOIN Type t ON t.id = c.type_id WHERE t.name = ?",
            type_name,
        )
        return [(i, name) for i, name in rows]

    def _latest(self, contexts: list[tuple[int, str]]) -> int:
        rows = rows_by_ids(
            self._database,
            "SELECT a.context_id, min(e.create_time_since_epoch) FROM Association a JOIN "
            "Execution e ON e.id = a.execution_id WHERE a.context_id IN ({ids}) "
            "GROUP BY a.context_id",
            (i for i, _ in contexts),
        )
        return max(((started, i) for i, started in rows), default=(0, contexts[-1][0]))[1]

    def _steps_of_runs(self, runs: Mapping[int, str]) -> dict[int, list[_Step]]:
        query = (
            "SELECT a.context_id, e.id, e.last_known_state, e.create_time_since_epoch, "
            "e.last_update_time_since_epoch, t.name FROM Association a JOIN Execution e ON "
            "e.id = a.execution_id JOIN Type t ON t.id = e.type_id WHERE a.context_id IN ({ids})"
        )
        rows = list(rows_by_ids(self._database, query, runs))
        steps: dict[int, list[_Step]] = collections.defaultdict(list)
        for run, execution, number, created, updated, kind in rows:
            steps[run].append(
                _Step(
                    id=execution,
                    node=self.node_of.get(execution) or kind,
                    resolver=short_type(kind) in LOOKUPS,
                    state=self._state(execution, _STATES.get(number, State.UNKNOWN)),
                    started=created or 0,
                    ended=updated or created or 0,
                )
            )
        return steps

    def _run(
        self,
        run_id: int,
        name: str,
        pipeline: str,
        steps: list[_Step],
        metrics: Mapping[str, float],
        blessed: bool | None,
        unsure: bool,
        releases: list[str],
    ) -> Run:
        # Of a step that was tried again, only the last attempt counts.
        last = {step.node: step for step in sorted(steps, key=lambda step: step.id)}
        status = _status(list(last.values()))
        counted = collections.Counter(step.state.value for step in last.values())
        ended = max((step.ended for step in steps), default=0)
        return Run(
            id=run_id,
            name=name,
            pipeline=pipeline,
            status=status,
            started=min((step.started for step in steps), default=0),
            ended=None if status is RunStatus.RUNNING else ended,
            steps=dict(counted),
            metrics=metrics,
            blessed=blessed,
            releases=tuple(releases),
            unsure=unsure,
        )

    def _results(
        self, steps: Mapping[int, list[_Step]]
    ) -> tuple[dict[int, dict[str, float]], dict[int, bool], set[int], dict[int, list[str]]]:
        """Metrics, blessing, unsure runs and releases, from the outputs of the steps."""
        run_of = {step.id: run for run, of_run in steps.items() for step in of_run}
        query = (
            "SELECT e.execution_id, p.name, p.int_value, p.double_value, p.string_value "
            "FROM Event e JOIN ArtifactProperty p ON p.artifact_id = e.artifact_id "
            "WHERE e.type IN (1, 4) AND (p.double_value IS NOT NULL "
            "OR p.name IN ('blessed', 'verdict', 'pushed_version')) AND e.execution_id IN ({ids})"
        )
        metrics: dict[int, dict[str, float]] = collections.defaultdict(dict)
        blessed: dict[int, bool] = {}
        unsure: set[int] = set()
        releases: dict[int, list[str]] = collections.defaultdict(list)
        for execution, name, whole, number, text in sorted(
            rows_by_ids(self._database, query, run_of), key=lambda row: row[:2]
        ):
            run = run_of[execution]
            if name == "pushed_version":
                version = text if text is not None else str(whole)
                if version not in releases[run]:
                    releases[run].append(version)
            elif name == VERDICT:
                if text == UNSURE:
                    unsure.add(run)
            elif name == "blessed":
                # TFDV's anomalies also have a `blessed` property, with a value for every split.
                if text is None:
                    blessed[run] = bool(whole if whole is not None else number)
            elif math.isfinite(number):
                metrics[run][name] = number
        return metrics, blessed, unsure, releases

    def _associated(self, type_name: str) -> list[tuple[int, int, str]]:
        """Execution, context and name of the context, for all contexts of a type.

        Reads all at once: if the query also had a list of executions, SQLite would look for each of
        them in every context.
        """
        return self._database.rows(
            "SELECT a.execution_id, c.id, c.name FROM Type t JOIN Context c ON c.type_id = t.id "
            "JOIN Association a ON a.context_id = c.id WHERE t.name = ?",
            type_name,
        )

    def _properties(
        self, table: str, ids: set[int]
    ) -> tuple[dict[int, dict[str, Value]], dict[int, dict[str, Value]]]:
        """Properties by id; then, separately, the properties that are hidden from users."""
        query = (
            f"SELECT {table.lower()}_id, name, int_value, double_value, string_value, bool_value, "
            f"proto_value FROM {table}Property WHERE {table.lower()}_id IN ({{ids}}) "
        )
        shown: dict[int, dict[str, Value]] = collections.defaultdict(dict)
        hidden: dict[int, dict[str, Value]] = collections.defaultdict(dict)
        for i, name, whole, number, text, truth, message in sorted(
            rows_by_ids(self._database, query, ids), key=lambda row: row[:2]
        ):
            value: Value = next((v for v in (whole, number, text) if v is not None), None)
            if text is not None and text.startswith(_STRUCT):
                value = _decoded(text)
            if isinstance(value, str):
                # Former versions and other pipelines recorded secrets as they were given.
                value = redacted(value)
            if truth is not None:
                value = bool(truth)
            elif message is not None:
                value = f"(a message of {len(message)} bytes)"
            target = hidden if name.startswith("__") or name in _OURS else shown
            target[i][name] = value
        return shown, hidden


def escape_like(text: str) -> str:
    """Escapes `text` for a LIKE pattern with the escape character `!`."""
    return text.replace("!", "!!").replace("%", "!%").replace("_", "!_")


def _status(steps: list[_Step]) -> RunStatus:
    states = [step.state for step in steps]
    if State.FAILED in states:
        return RunStatus.FAILED
    if State.CANCELED in states:
        return RunStatus.CANCELED
    if State.INTERRUPTED in states:
        return RunStatus.INTERRUPTED
    if any(state in _GOING_ON for state in states):
        return RunStatus.RUNNING
    if not states or State.UNKNOWN in states:
        return RunStatus.UNKNOWN
    if State.CACHED in states and all(
        step.state is State.CACHED or step.resolver for step in steps
    ):
        return RunStatus.CACHED
    return RunStatus.SUCCEEDED


def _flat(settings: Mapping[str, Value]) -> dict[str, Value]:
    """Settings with JSON objects flattened, such as `custom_config.training.steps`."""
    flat: dict[str, Value] = {}
    for name, value in settings.items():
        content = _json_object(value)
        if content:
            flat |= taken_apart(name, content)
        else:
            flat[name] = value
    return flat


def _json_object(value: Value) -> dict[str, Any] | None:
    if not isinstance(value, str) or not value.lstrip().startswith("{"):
        return None
    try:
        content = json.loads(value)
    except (ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def taken_apart(
    prefix: str, content: Mapping[str, Any], depth: int = _MAX_JSON_DEPTH
) -> dict[str, Value]:
    """Flattens a JSON object to names and values, such as `training.steps`; lists stay JSON."""
    flat: dict[str, Value] = {}
    for name, value in content.items():
        if isinstance(value, dict) and value and depth:
            flat |= taken_apart(f"{prefix}.{name}", value, depth - 1)
        elif isinstance(value, (dict, list)):
            flat[f"{prefix}.{name}"] = json.dumps(value, ensure_ascii=False)
        else:
            flat[f"{prefix}.{name}"] = value
    return flat


def _decoded(text: str) -> str:
    """The JSON in a value that ML Metadata's client wrote as a protocol buffer in base 64."""
    from google.protobuf import json_format, message, struct_pb2

    try:
        content = struct_pb2.Struct.FromString(base64.b64decode(text[len(_STRUCT) :]))
    except (ValueError, message.DecodeError):
        return text
    whole = json_format.MessageToDict(content)
    # A value that is not an object is wrapped under this name; TFX also puts JSON there.
    value = whole["__value__"] if list(whole) == ["__value__"] else whole
    if isinstance(value, str):
        value = _json_object(value) or value
    if isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False, sort_keys=True)


def _error_text(text: str) -> str:
    """The message in TFX's execution result, which is JSON around a traceback."""
    content = _json_object(text)
    if content is None:
        return text
    found = content.get("resultMessage") or content.get("result_message") or text
    return str(found)
