"""Reads runs on Vertex AI from Vertex ML Metadata.

The service differs from the ML Metadata library: it has names instead of ids, and an HTTP API
instead of tables. Its answers about the latest runs are put into ML Metadata's tables in memory, so
that every question, export and page is the same as for a local run.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import ipaddress
import json
import sqlite3
import threading
import time
import urllib.parse
from collections.abc import Hashable, Iterator, Mapping
from typing import Any

from pipeline.lineage.database import SCHEMA_VERSION, SqliteDatabase
from pipeline.lineage.model import LineageError
from pipeline.lineage.store import Store
from storage.errors import one_line

_FORM = "vertex://PROJECT/LOCATION[/STORE][?runs=50]"
_DEFAULT_STORE = "default"
_DEFAULT_RUNS = 50
_PARALLEL = 8
_FRESH_SECONDS = 20.0
_TIMEOUT_SECONDS = 60.0
_RUN, _PIPELINE = "system.PipelineRun", "system.Pipeline"
# The run as a whole, and groups of tasks: these are not steps.
_NO_STEPS = ("system.Run", "system.DagExecution")
_PARAMETER = "input:"
# States have the same numbers as in ML Metadata; events have others.
_EVENTS = {1: 3, 2: 4}

_TABLES = """
CREATE TABLE MLMDEnv (schema_version INTEGER);
CREATE TABLE Type (id INTEGER PRIMARY KEY, name TEXT);
CREATE TABLE Context (id INTEGER PRIMARY KEY, type_id INT, name TEXT);
CREATE TABLE ParentContext (context_id INT, parent_context_id INT);
CREATE TABLE Association (context_id INT, execution_id INT);
CREATE TABLE Artifact (
  id INTEGER PRIMARY KEY, type_id INT, name TEXT, uri TEXT, state INT,
  create_time_since_epoch INT, last_update_time_since_epoch INT
);
CREATE TABLE Execution (
  id INTEGER PRIMARY KEY, type_id INT, name TEXT, last_known_state INT,
  create_time_since_epoch INT, last_update_time_since_epoch INT
);
CREATE TABLE ArtifactProperty (
  artifact_id INT, name TEXT, int_value INT, double_value DOUBLE, string_value TEXT,
  bool_value BOOLEAN, proto_value BLOB
);
CREATE TABLE ExecutionProperty (
  execution_id INT, name TEXT, int_value INT, double_value DOUBLE, string_value TEXT,
  bool_value BOOLEAN, proto_value BLOB
);
CREATE TABLE Event (
  id INTEGER PRIMARY KEY, artifact_id INT, execution_id INT, type INT
);
CREATE TABLE EventPath (event_id INT, is_index_step INT, step_index INT, step_key TEXT);
CREATE INDEX by_artifact ON ArtifactProperty (artifact_id);
CREATE INDEX by_execution ON ExecutionProperty (execution_id);
CREATE INDEX events_by_execution ON Event (execution_id);
CREATE INDEX events_by_artifact ON Event (artifact_id);
CREATE INDEX paths_by_event ON EventPath (event_id);
"""


class VertexLocation:
    """A metadata store of Vertex AI.

    Attributes:
        text: Its address, as it was given.
        roots: Empty: its files are in buckets.
    """

    def __init__(self, text: str) -> None:
        """Names the store; connects to nothing.

        Args:
            text: `vertex://PROJECT/LOCATION[/STORE]`, with `?runs=N` for another number of latest
                runs, and `&endpoint=URL` for an address other than Google's.

        Raises:
            LineageError: The address does not have this form.
        """
        self.text = text
        self.roots: list[str] = []
        parts = urllib.parse.urlsplit(text)
        names = [parts.netloc, *parts.path.strip("/").split("/")]
        query = dict(urllib.parse.parse_qsl(parts.query))
        number = query.get("runs", str(_DEFAULT_RUNS))
        if (
            not all(names)
            or not 2 <= len(names) <= 3
            or not set(query) <= {"runs", "endpoint"}
            or not (number.isascii() and number.isdecimal() and 0 < int(number) <= 10000)
        ):
            raise LineageError(f"{text} is not the address of a Vertex AI store: give {_FORM}")
        self._project, self._region = names[:2]
        store = names[2] if len(names) == 3 else _DEFAULT_STORE
        self._parent = f"projects/{self._project}/locations/{self._region}/metadataStores/{store}"
        self._runs = int(number)
        self._endpoint = query.get("endpoint", f"https://{self._region}-aiplatform.googleapis.com")
        self._lock = threading.Lock()
        self._copy: sqlite3.Connection | None = None
        self._read_at = 0.0

    @contextlib.contextmanager
    def open(self) -> Iterator[Store]:
        """See `Location`; what was read in the last 20 seconds is not read again."""
        with contextlib.closing(sqlite3.connect(":memory:", check_same_thread=False)) as memory:
            with self._lock:
                if self._copy is None or time.monotonic() - self._read_at > _FRESH_SECONDS:
                    self._copy = _tables(self._read())
                    self._read_at = time.monotonic()
                self._copy.backup(memory)
            memory.execute("PRAGMA query_only = ON")
            yield Store(SqliteDatabase(memory, self.text.partition("?")[0]))

    def stamp(self) -> Hashable:
        """See `Location`."""
        return int(time.monotonic() / _FRESH_SECONDS)

    def _read(self) -> _Read:
        from google.api_core import exceptions
        from google.auth import exceptions as auth

        name = self.text.partition("?")[0]
        try:
            return self._fetch()
        except auth.DefaultCredentialsError:
            raise LineageError(
                f"there are no credentials for {name}: run `gcloud auth application-default "
                "login`, or set GOOGLE_APPLICATION_CREDENTIALS to a file"
            ) from None
        except (exceptions.GoogleAPIError, auth.GoogleAuthError, OSError) as error:
            reason = one_line(error)[:300]
            raise LineageError(f"{name} cannot be read: {reason}") from None

    def _fetch(self) -> _Read:
        client = self._client()
        request: dict[str, Any] = {
            "parent": self._parent,
            "filter": f'schema_title="{_RUN}"',
            "order_by": "create_time desc",
            "page_size": min(self._runs, 100),
        }
        runs = []
        for context in client.list_contexts(request=request, timeout=_TIMEOUT_SECONDS):
            runs.append(context)
            if len(runs) == self._runs:
                break

        def subgraph(run: Any) -> Any:
            return client.query_context_lineage_subgraph(context=run.name, timeout=_TIMEOUT_SECONDS)

        with concurrent.futures.ThreadPoolExecutor(_PARALLEL) as pool:
            return _Read(runs, list(pool.map(subgraph, runs)))

    def _client(self) -> Any:
        from google.auth.credentials import AnonymousCredentials
        from google.cloud.aiplatform_v1.services import metadata_service
        from google.cloud.aiplatform_v1.services.metadata_service.transports import rest

        parts = urllib.parse.urlsplit(self._endpoint)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise LineageError(f"{self._endpoint} is not an endpoint: give https://HOST")
        # Credentials are sent only encrypted, and only to Google.
        credentials = None
        if not parts.hostname.endswith(".googleapis.com") or parts.scheme == "http":
            if not _is_loopback(parts.hostname):
                raise LineageError(f"{self._endpoint} is neither Google's nor on this machine")
            credentials = AnonymousCredentials()
        transport = rest.MetadataServiceRestTransport(
            host=parts.netloc, url_scheme=parts.scheme, credentials=credentials
        )
        return metadata_service.MetadataServiceClient(transport=transport)


@dataclasses.dataclass(frozen=True)
class _Read:
    """Runs, and the inputs, steps and outputs of each."""

    runs: list[Any]
    subgraphs: list[Any]


def _tables(read: _Read) -> sqlite3.Connection:
    """ML Metadata's tables, filled with what was read."""
    connection = sqlite3.connect(":memory:", check_same_thread=False)
    connection.executescript(_TABLES)
    _Writer(connection).write(read)
    connection.commit()
    return connection


class _Writer:
    """Puts the service's answers into tables; ids are numbers in the order of creation."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._add = connection.execute
        self._types: dict[str, int] = {}
        self._contexts: dict[tuple[str, str], int] = {}

    def write(self, read: _Read) -> None:
        """Writes each item once, however many runs it belongs to."""
        self._add("INSERT INTO MLMDEnv VALUES (?)", (SCHEMA_VERSION,))
        artifacts = _by_age(a for graph in read.subgraphs for a in graph.artifacts)
        steps = _by_age(
            e
            for graph in read.subgraphs
            for e in graph.executions
            if e.schema_title not in _NO_STEPS
        )
        artifact_ids = {name: i for i, name in enumerate(artifacts, start=1)}
        step_ids = {name: i for i, name in enumerate(steps, start=1)}
        for name, artifact in artifacts.items():
            self._artifact(artifact_ids[name], artifact)
        for name, step in steps.items():
            self._step(step_ids[name], step)
        seen = set()
        for run, graph in sorted(
            zip(read.runs, read.subgraphs, strict=True), key=lambda pair: pair[0].create_time
        ):
            pipeline = next((_last(name) for name in run.parent_contexts), "")
            run_id = self._context("pipeline_run", _last(run.name))
            if pipeline:
                self._add(
                    "INSERT INTO ParentContext VALUES (?, ?)",
                    (run_id, self._context("pipeline", pipeline)),
                )
            for step in graph.executions:
                if step.name in step_ids:
                    node = f"{pipeline}.{step.display_name or _last(step.name)}"
                    for context in (run_id, self._context("node", node)):
                        self._add(
                            "INSERT INTO Association VALUES (?, ?)", (context, step_ids[step.name])
                        )
            for event in graph.events:
                key = (event.artifact, event.execution, int(event.type_))
                if (
                    event.artifact in artifact_ids
                    and event.execution in step_ids
                    and key not in seen
                ):
                    seen.add(key)
                    kind = _short(artifacts[event.artifact].schema_title)
                    self._event(
                        len(seen),
                        event,
                        artifact_ids[event.artifact],
                        step_ids[event.execution],
                        kind,
                    )

    def _artifact(self, number: int, artifact: Any) -> None:
        self._add(
            "INSERT INTO Artifact VALUES (?, ?, ?, ?, ?, ?, ?)",
            (
                number,
                self._type(_short(artifact.schema_title)),
                _last(artifact.name),
                artifact.uri,
                int(artifact.state),
                _milliseconds(artifact.create_time),
                _milliseconds(artifact.update_time),
            ),
        )
        self._properties("Artifact", number, _plain(artifact))

    def _step(self, number: int, step: Any) -> None:
        self._add(
            "INSERT INTO Execution VALUES (?, ?, ?, ?, ?, ?)",
            (
                number,
                self._type(step.schema_title),
                _last(step.name),
                int(step.state),
                _milliseconds(step.create_time),
                _milliseconds(step.update_time),
            ),
        )
        settings = {name.removeprefix(_PARAMETER): v for name, v in _plain(step).items()}
        self._properties("Execution", number, settings)

    def _properties(self, table: str, number: int, values: Mapping[str, Any]) -> None:
        for name, value in values.items():
            whole = number_value = text = truth = None
            if isinstance(value, bool):
                truth = value
            elif isinstance(value, float) and value.is_integer() and abs(value) < 1 << 53:
                # The service has no whole numbers.
                whole = int(value)
            elif isinstance(value, float):
                number_value = value
            elif value is not None:
                text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            self._add(
                f"INSERT INTO {table}Property VALUES (?, ?, ?, ?, ?, ?, NULL)",
                (number, name, whole, number_value, text, truth),
            )

    def _event(self, number: int, event: Any, artifact: int, step: int, kind: str) -> None:
        labels = dict(event.labels)
        key = labels.get("key") or labels.get("name") or kind.rpartition(".")[2]
        self._add(
            "INSERT INTO Event VALUES (?, ?, ?, ?)",
            (number, artifact, step, _EVENTS.get(int(event.type_), 0)),
        )
        self._add("INSERT INTO EventPath VALUES (?, 0, NULL, ?)", (number, key))

    def _type(self, name: str) -> int:
        if name not in self._types:
            self._types[name] = len(self._types) + 1
            self._add("INSERT INTO Type VALUES (?, ?)", (self._types[name], name))
        return self._types[name]

    def _context(self, kind: str, name: str) -> int:
        if (kind, name) not in self._contexts:
            number = self._contexts[kind, name] = len(self._contexts) + 1
            self._add("INSERT INTO Context VALUES (?, ?, ?)", (number, self._type(kind), name))
        return self._contexts[kind, name]


def _by_age(resources: Iterator[Any]) -> dict[str, Any]:
    named = {resource.name: resource for resource in resources}
    return dict(sorted(named.items(), key=lambda pair: (pair[1].create_time, pair[0])))


def _plain(resource: Any) -> dict[str, Any]:
    """A resource's metadata as plain values."""
    from google.protobuf import json_format

    return dict(json_format.MessageToDict(type(resource).pb(resource).metadata))


def _milliseconds(moment: Any) -> int:
    return round(moment.timestamp() * 1000) if moment is not None else 0


def _short(schema_title: str) -> str:
    return schema_title.removeprefix("tfx.")


def _last(name: str) -> str:
    return name.rpartition("/")[2]


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
