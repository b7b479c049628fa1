"""What Vertex ML Metadata does for an emulated run, by ML Metadata in an SQLite file.

Types and contexts are named as in local runs, so that the same tools read both.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from google.protobuf import json_format, struct_pb2
from ml_metadata.metadata_store import metadata_store
from ml_metadata.proto import metadata_store_pb2 as mlmd

from pipeline.lineage.model import FAILURE_REASON, INTERRUPTED

RuntimeArtifact = dict[str, Any]
"""Vertex's: `name`, `uri`, `type` and `metadata`."""

Artifacts = dict[str, list[RuntimeArtifact]]

_STORE = "projects/emulated/locations/local/metadataStores/default/artifacts/"
_CACHE_KEY = "vertex_cache_key"
_TFX_TYPES = "tfx."
_CLAUSE = re.compile(r'(?P<key>[\w.]+)="?(?P<value>[^"]*)"?')


def new_name() -> str:
    """A resource name for an artifact."""
    return f"{_STORE}{uuid.uuid4().int % 10**19}"


class EmulatedMetadata:
    """Artifacts and executions of emulated runs."""

    def __init__(self, path: str, pipeline: str, run: str) -> None:
        """Opens the file at `path`, or makes it, for a run of `pipeline`."""
        config = mlmd.ConnectionConfig()
        config.sqlite.filename_uri = path
        config.sqlite.connection_mode = mlmd.SqliteMetadataSourceConfig.READWRITE_OPENCREATE
        self.store = metadata_store.MetadataStore(config)
        self._pipeline = pipeline
        self._contexts = [self._context("pipeline", pipeline), self._context("pipeline_run", run)]

    def record(
        self,
        task: str,
        executor: str,
        state: mlmd.Execution.State,
        parameters: Mapping[str, Any],
        inputs: Artifacts,
        outputs: Artifacts,
        cache_key: str = "",
        failure: str = "",
        interrupted: bool = False,
    ) -> int:
        """Writes an execution with its inputs and outputs, or why it failed; returns its id."""
        execution_type = mlmd.ExecutionType(name=executor)
        execution = mlmd.Execution(
            type_id=self.store.put_execution_type(execution_type, can_add_fields=True),
            name=uuid.uuid4().hex,
            last_known_state=state,
        )
        for name, value in parameters.items():
            _set(execution.custom_properties[name], value)
        if cache_key:
            execution.custom_properties[_CACHE_KEY].string_value = cache_key
        if failure:
            execution.custom_properties[FAILURE_REASON].string_value = failure
        if interrupted:
            execution.custom_properties[INTERRUPTED].int_value = 1
        pairs = []
        for kind, artifacts in ((mlmd.Event.INPUT, inputs), (mlmd.Event.OUTPUT, outputs)):
            seen: set[str] = set()
            for key, listed in artifacts.items():
                for index, artifact in enumerate(listed):
                    # ML Metadata has room for one event, although a model can be its own baseline.
                    if artifact["name"] not in seen:
                        seen.add(artifact["name"])
                        pairs.append((self._artifact(artifact), _event(kind, key, index)))
        node = self._context("node", f"{self._pipeline}.{task}")
        execution_id, _, _ = self.store.put_execution(execution, pairs, [*self._contexts, node])
        return execution_id

    def cached(self, cache_key: str) -> Artifacts | None:
        """The outputs of the latest execution with this key."""
        found = [
            execution
            for execution in self.store.get_executions()
            if execution.last_known_state == mlmd.Execution.COMPLETE
            and dict(execution.custom_properties).get(_CACHE_KEY, mlmd.Value()).string_value
            == cache_key
        ]
        if not found:
            return None
        latest = max(found, key=lambda execution: execution.id)
        outputs: Artifacts = {}
        for event in self.store.get_events_by_execution_ids([latest.id]):
            if event.type == mlmd.Event.OUTPUT:
                [artifact] = self.store.get_artifacts_by_id([event.artifact_id])
                outputs.setdefault(event.path.steps[0].key, []).append(_runtime(artifact))
        return outputs

    def resolve(self, query: str, inputs: Artifacts) -> list[RuntimeArtifact]:
        """The latest artifact that a resolver's filter describes, or none.

        Raises:
            NotImplementedError: The filter has a clause that TFX's compiler does not write.
        """
        query = re.sub(
            r"\{\{\$\.inputs\.artifacts\['(\w+)'\]\.metadata\['(\w+)'\]\}\}",
            lambda m: str(_metadata_of(inputs, m[1]).get(m[2], "")),
            query,
        )
        clauses = []
        for text in query.split(" AND "):
            clause = _CLAUSE.fullmatch(text)
            if clause is None:
                raise NotImplementedError(f"a resolver's filter has {text!r}")
            clauses.append((clause["key"], clause["value"]))
        found = [
            a
            for a in self.store.get_artifacts()
            if all(_matches(a, key, value) for key, value in clauses)
        ]
        found.sort(key=lambda artifact: artifact.id)
        return [_runtime(artifact) for artifact in found[-1:]]

    def known(self, artifact: RuntimeArtifact) -> RuntimeArtifact | None:
        """The latest artifact that an importer would import again, or none."""
        kind, wanted = _type_name(_title(artifact)), artifact.get("metadata", {})
        found = [
            a
            for a in self.store.get_artifacts_by_uri(artifact["uri"])
            if a.type == kind
            and a.state == mlmd.Artifact.LIVE
            and wanted.items() <= _runtime(a)["metadata"].items()
        ]
        return _runtime(max(found, key=lambda a: a.id)) if found else None

    def withdraw(self, artifacts: Iterable[RuntimeArtifact]) -> None:
        """Marks artifacts whose files are gone."""
        for artifact in artifacts:
            stored = self._find(artifact["name"])
            if stored is not None:
                stored.state = mlmd.Artifact.DELETED
                self.store.put_artifacts([stored])

    def _find(self, name: str) -> mlmd.Artifact | None:
        return next((a for a in self.store.get_artifacts() if a.name == name), None)

    def _artifact(self, artifact: RuntimeArtifact) -> mlmd.Artifact:
        stored = self._find(artifact["name"])
        if stored is not None:
            return stored
        artifact_type = mlmd.ArtifactType(name=_type_name(_title(artifact)))
        made = mlmd.Artifact(
            type_id=self.store.put_artifact_type(artifact_type, can_add_fields=True),
            name=artifact["name"],
            uri=artifact["uri"],
            state=mlmd.Artifact.LIVE,
        )
        for name, value in artifact.get("metadata", {}).items():
            _set(made.custom_properties[name], value)
        return made

    def _context(self, kind: str, name: str) -> mlmd.Context:
        found = self.store.get_context_by_type_and_name(kind, name)
        if found is not None:
            return found
        kind_id = self.store.put_context_type(mlmd.ContextType(name=kind))
        [context_id] = self.store.put_contexts([mlmd.Context(type_id=kind_id, name=name)])
        [context] = self.store.get_contexts_by_id([context_id])
        return context


def _event(kind: mlmd.Event.Type, key: str, index: int) -> mlmd.Event:
    event = mlmd.Event(type=kind)
    event.path.steps.add().key = key
    event.path.steps.add().index = index
    return event


def _set(target: mlmd.Value, value: Any) -> None:
    if isinstance(value, str):
        target.string_value = value
    elif isinstance(value, Mapping):
        target.struct_value.update(dict(value))
    elif float(value).is_integer():
        # A container's output has no other numbers than floating ones.
        target.int_value = int(value)
    else:
        target.double_value = float(value)


def _value(stored: mlmd.Value) -> Any:
    value = getattr(stored, str(stored.WhichOneof("value")))
    if isinstance(value, struct_pb2.Struct):
        return json_format.MessageToDict(value)
    return value if isinstance(value, str) else float(value)


def _runtime(artifact: mlmd.Artifact) -> RuntimeArtifact:
    title = artifact.type if "." in artifact.type else f"{_TFX_TYPES}{artifact.type}"
    return {
        "name": artifact.name,
        "uri": artifact.uri,
        "type": {"schemaTitle": title},
        "metadata": {name: _value(v) for name, v in dict(artifact.custom_properties).items()},
    }


def _type_name(title: str) -> str:
    return title.removeprefix(_TFX_TYPES)


def _title(artifact: RuntimeArtifact) -> str:
    kind = artifact["type"]
    if "schemaTitle" in kind:
        return str(kind["schemaTitle"])
    [title] = re.findall(r"^title: (\S+)", kind["instanceSchema"], flags=re.MULTILINE)
    return str(title)


def _metadata_of(artifacts: Artifacts, key: str) -> Mapping[str, Any]:
    listed: Sequence[RuntimeArtifact] = artifacts.get(key, [])
    return listed[0].get("metadata", {}) if listed else {}


def _matches(artifact: mlmd.Artifact, key: str, value: str) -> bool:
    if key == "schema_title":
        return artifact.type == _type_name(value)
    if key == "state":
        return mlmd.Artifact.State.Name(artifact.state) == value
    if key == "name":
        return artifact.name == value
    path = key.split(".")
    if len(path) == 3 and path[0] == "metadata":
        stored = dict(artifact.custom_properties).get(path[1])
        if stored is None:
            return False
        return (
            float(_value(stored)) == float(value)
            if path[2] == "number_value"
            else (_value(stored) == value)
        )
    raise NotImplementedError(f"a resolver's filter asks for {key!r}")
