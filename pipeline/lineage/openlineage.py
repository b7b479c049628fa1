"""Runs as OpenLineage events, for catalogues such as Marquez or DataHub.

The schema beside this file is OpenLineage's own, unchanged: version 2-0-2 of
`spec/OpenLineage.json` in https://github.com/OpenLineage/OpenLineage, under the Apache License 2.0.
Every event is validated against it before it is returned.
"""

from __future__ import annotations

import datetime
import functools
import json
import urllib.parse
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jsonschema_rs

from pipeline.lineage.model import (
    Artifact,
    Execution,
    LineageError,
    Link,
    Run,
    RunStatus,
    State,
    shown_value,
)
from pipeline.lineage.store import Store

PRODUCER = "urn:sd-finetuning-tfx:pipeline.lineage"

_SCHEMA = Path(__file__).with_name("openlineage-2-0-2.json")
_SCHEMA_URL = "https://openlineage.io/spec/2-0-2/OpenLineage.json#/$defs/RunEvent"
_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, PRODUCER)
_ENDS = {
    State.COMPLETE: "COMPLETE",
    State.CACHED: "COMPLETE",
    State.FAILED: "FAIL",
    State.CANCELED: "ABORT",
    State.INTERRUPTED: "ABORT",
}
_RUN_ENDS = {
    RunStatus.SUCCEEDED: "COMPLETE",
    RunStatus.CACHED: "COMPLETE",
    RunStatus.FAILED: "FAIL",
    RunStatus.CANCELED: "ABORT",
    RunStatus.INTERRUPTED: "ABORT",
}
_Json = dict[str, Any]


def events(store: Store, run_ids: Iterable[int]) -> Iterator[_Json]:
    """Yields the validated events of runs: a START for every run and step, and how it ended.

    A step that was taken from the cache is a run of its own with the tag `cached`; a dataset is the
    address of an artifact. Events of one run add up, so the start event of a step has its inputs
    and settings, and the end event has its outputs.

    Raises:
        LineageError: The store contains something that a valid event cannot express.
    """
    runs = store.runs(run_ids)
    runs.reverse()
    steps: dict[int, list[Execution]] = {run.id: [] for run in runs}
    for step in store.executions(e for run in runs for e in store.step_ids(run.id)):
        if step.run_id is not None:
            steps[step.run_id].append(step)
    links: dict[int, list[Link]] = {}
    for link in store.links(executions=[e.id for several in steps.values() for e in several]):
        if not link.internal:
            links.setdefault(link.execution_id, []).append(link)
    used = {link.artifact_id for several in links.values() for link in several}
    datasets = {a.id: _dataset(a) for a in store.artifacts(used)}
    for run in runs:
        for event in _run_events(store.name, run, steps[run.id], links, datasets):
            validate(event)
            yield event


def lines(store: Store, run_ids: Iterable[int]) -> str:
    """Returns `events` as JSON, one per line."""
    return "".join(
        json.dumps(event, ensure_ascii=False, sort_keys=True, allow_nan=False) + "\n"
        for event in events(store, run_ids)
    )


def validate(event: Any) -> None:
    """Validates an event against OpenLineage's schema.

    Raises:
        LineageError: The event is not valid.
    """
    try:
        _validator().validate(event)
    except jsonschema_rs.ValidationError as error:
        raise LineageError(f"OpenLineage cannot express this: {error.message}") from None


@functools.cache
def _validator() -> Any:
    schema = json.loads(_SCHEMA.read_text())
    # The kind of event is known; trying all three in turn would not say what is wrong.
    return jsonschema_rs.Draft202012Validator(
        {**schema, "oneOf": [{"$ref": "#/$defs/RunEvent"}]}, validate_formats=True
    )


def _run_events(
    store: str,
    run: Run,
    steps: Sequence[Execution],
    links: Mapping[int, Sequence[Link]],
    datasets: Mapping[int, _Json],
) -> Iterator[_Json]:
    job = {"namespace": run.pipeline or "tfx", "name": run.pipeline or "pipeline"}
    run_id = _identity(store, "run", run.id, run.name)
    tags = [_tag("run", run.name), *(_tag(k, shown_value(v)) for k, v in run.metrics.items())]
    tags += [_tag("release", version) for version in run.releases]
    identity = {"runId": run_id, "facets": {"tags": _facet("TagsRunFacet", "1-0-0", tags=tags)}}
    yield _event("START", run.started, identity, job)
    parent = _facet("ParentRunFacet", "1-2-0", run={"runId": run_id}, job=job)
    for step in steps:
        yield from _step_events(store, run, step, parent, links.get(step.id, ()), datasets)
    if run.ended is not None and run.status in _RUN_ENDS:
        yield _event(_RUN_ENDS[run.status], run.ended, {"runId": run_id}, job)


def _step_events(
    store: str,
    run: Run,
    step: Execution,
    parent: _Json,
    links: Sequence[Link],
    datasets: Mapping[int, _Json],
) -> Iterator[_Json]:
    kind = _facet(
        "JobTypeJobFacet", "2-0-4", processingType="BATCH", integration="TFX", jobType="COMPONENT"
    )
    job = {
        "namespace": run.pipeline or "tfx",
        "name": f"{run.pipeline or 'pipeline'}.{step.node}",
        "facets": {"jobType": kind},
    }
    run_id = _identity(store, "step", step.id, run.name)
    settings = [{"key": k, "value": shown_value(v)} for k, v in step.settings.items()]
    start: _Json = {"parent": parent}
    if settings:
        start["executionParameters"] = _facet(
            "ExecutionParametersRunFacet", "1-0-0", parameters=settings
        )
    if step.state is State.CACHED:
        start["tags"] = _facet("TagsRunFacet", "1-0-0", tags=[_tag("cached", "true")])
    end: _Json = {"parent": parent}
    if step.error:
        end["errorMessage"] = _facet(
            "ErrorMessageRunFacet", "1-0-1", message=step.error, programmingLanguage="PYTHON"
        )
    inputs = [datasets[link.artifact_id] for link in links if not link.output]
    outputs = [datasets[link.artifact_id] for link in links if link.output]
    yield _event("START", step.started, {"runId": run_id, "facets": start}, job, inputs)
    if step.ended is not None and step.state in _ENDS:
        identity = {"runId": run_id, "facets": end}
        yield _event(_ENDS[step.state], step.ended, identity, job, (), outputs)


def _event(
    kind: str,
    milliseconds: int,
    run: _Json,
    job: _Json,
    inputs: Sequence[_Json] = (),
    outputs: Sequence[_Json] = (),
) -> _Json:
    """Builds an event; raises as `events` does."""
    try:
        moment = datetime.datetime.fromtimestamp(milliseconds / 1000, datetime.timezone.utc)
    except (OverflowError, OSError, ValueError):
        raise LineageError(
            f"OpenLineage cannot express this: {milliseconds} ms since 1970 is not a valid time"
        ) from None
    return {
        "eventTime": moment.isoformat(timespec="milliseconds"),
        "eventType": kind,
        "producer": PRODUCER,
        "schemaURL": _SCHEMA_URL,
        "run": run,
        "job": job,
        "inputs": list(inputs),
        "outputs": list(outputs),
    }


def _dataset(artifact: Artifact) -> _Json:
    """A dataset, named by OpenLineage's rules for files and buckets."""
    parts = urllib.parse.urlsplit(artifact.uri) if "://" in artifact.uri else None
    if parts is not None and parts.scheme != "file":
        namespace, name = f"{parts.scheme}://{parts.netloc}", parts.path.strip("/") or "/"
    elif artifact.uri:
        namespace, name = "file", artifact.uri.removeprefix("file://")
    else:
        namespace, name = "mlmd", f"artifact/{artifact.id}"
    tags = [_tag("artifact", str(artifact.id))]
    tags += [_tag(key, shown_value(value)) for key, value in artifact.properties.items()]
    facets = {
        "datasetType": _facet(
            "DatasetTypeDatasetFacet", "1-0-1", datasetType="ARTIFACT", subType=artifact.type
        ),
        "tags": _facet("TagsDatasetFacet", "1-0-0", tags=tags),
    }
    return {"namespace": namespace, "name": name, "facets": facets}


def _facet(name: str, version: str, **fields: Any) -> _Json:
    url = f"https://openlineage.io/spec/facets/{version}/{name}.json#/$defs/{name}"
    return {"_producer": PRODUCER, "_schemaURL": url, **fields}


def _tag(key: str, value: str) -> _Json:
    return {"key": key, "value": value}


def _identity(store: str, kind: str, number: int, run: str) -> str:
    return str(uuid.uuid5(_NAMESPACE, f"{store}\0{kind}\0{number}\0{run}"))
