"""Lineage of Vertex AI: Google's own client against a loopback server that speaks its API.

The server's answers are made by Google's own message types out of a local store, so that the
questions must have the same answers as there. What the real service writes beyond that (labels of
events, names of steps) is not known here.
"""

from __future__ import annotations

import http.server
import json
import re
import threading
import urllib.parse

import pytest
from google.cloud.aiplatform_v1.types import (
    Artifact,
    Context,
    Event,
    Execution,
    LineageSubgraph,
    ListContextsResponse,
)
from google.protobuf import struct_pb2, timestamp_pb2

from pipeline import lineage
from pipeline.lineage import cli

PARENT = "projects/my-project/locations/us-central1/metadataStores/default"
PAGE = 2


def _struct(values, prefix=""):
    struct = struct_pb2.Struct()
    struct.update({f"{prefix}{name}": value for name, value in values.items() if value is not None})
    return struct


def _time(milliseconds):
    stamp = timestamp_pb2.Timestamp()
    stamp.FromMilliseconds(milliseconds)
    return stamp


def vertex_of(path):
    """A local store as the service would tell it: (contexts, subgraph of each)."""
    contexts, graphs = [], {}
    with lineage.locate(str(path)).open() as store:
        for run in store.runs():
            name = f"{PARENT}/contexts/{run.name.replace(' ', '-')}"
            contexts.append(
                Context(
                    name=name,
                    schema_title="system.PipelineRun",
                    create_time=_time(run.started),
                    parent_contexts=[f"{PARENT}/contexts/{run.pipeline}"],
                )
            )
            steps = [s for s in store.steps(run.id) if s.node != "LatestBlessedModel"]
            links = store.links(executions=[s.id for s in steps])
            graphs[name] = LineageSubgraph(
                artifacts=[
                    Artifact(
                        name=f"{PARENT}/artifacts/a{a.id}",
                        uri=a.uri,
                        schema_title=a.type if "." in a.type else f"tfx.{a.type}",
                        state=Artifact.State.LIVE,
                        create_time=_time(a.created + a.id),
                        metadata=_struct(a.properties),
                    )
                    for a in store.artifacts(k.artifact_id for k in links)
                ],
                executions=[
                    Execution(
                        name=f"{PARENT}/executions/e{s.id}",
                        display_name=s.node,
                        schema_title="system.ContainerExecution",
                        state=list(lineage.State).index(s.state),
                        create_time=_time(s.started),
                        update_time=_time(s.ended or s.started),
                        metadata=_struct(s.settings, "input:"),
                    )
                    for s in steps
                ]
                + [
                    Execution(
                        name=f"{PARENT}/executions/run{run.id}",
                        schema_title="system.Run",
                        state=Execution.State.COMPLETE,
                    )
                ],
                events=[
                    Event(
                        artifact=f"{PARENT}/artifacts/a{k.artifact_id}",
                        execution=f"{PARENT}/executions/e{k.execution_id}",
                        type_=Event.Type.OUTPUT if k.output else Event.Type.INPUT,
                        labels={"key": k.key},
                    )
                    for k in links
                ],
            )
    return contexts, graphs


class Handler(http.server.BaseHTTPRequestHandler):
    """GET .../contexts?filter=...&pageToken=..., GET .../contexts/X:queryContextLineageSubgraph."""

    def do_GET(self):
        address = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(address.query))
        path = urllib.parse.unquote(address.path).removeprefix("/v1/")
        server = self.server
        server.requests.append((path, query, self.headers.get("Authorization")))
        if path == f"{PARENT}/contexts":
            assert query["filter"] == 'schema_title="system.PipelineRun"'
            assert query["orderBy"] == "create_time desc"
            start = int(query.get("pageToken", 0))
            more = start + PAGE < len(server.contexts)
            answer = ListContextsResponse(
                contexts=server.contexts[start : start + PAGE],
                next_page_token=str(start + PAGE) if more else "",
            )
            self.reply(200, ListContextsResponse.to_json(answer))
        elif path.removesuffix(":queryContextLineageSubgraph") in server.graphs:
            graph = server.graphs[path.removesuffix(":queryContextLineageSubgraph")]
            self.reply(200, LineageSubgraph.to_json(graph))
        else:
            error = {"code": 404, "status": "NOT_FOUND", "message": f"there is no {path}"}
            self.reply(404, json.dumps({"error": error}))

    def do_POST(self):
        self.server.requests.append(("written", self.path, None))
        self.reply(403, "{}")

    do_PATCH = do_DELETE = do_PUT = do_POST  # noqa: N815 - names of the base class's contract

    def reply(self, status, text):
        content = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def server(small):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.contexts, server.graphs = vertex_of(small[0])
    server.requests = []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()


@pytest.fixture
def address(server):
    server.requests.clear()
    port = server.server_address[1]
    return f"vertex://my-project/us-central1?endpoint=http://127.0.0.1:{port}"


def facts_of(trace):
    return {
        (f.section, f.step, f.name, f.value)
        for f in trace.facts
        # Ids are the store's own.
        if not re.search(r"_id$|baseline_model|blessed$", f.name)
    }


def test_same_answers_as_the_local_store(address, small, server):
    location = lineage.locate(address)
    with location.open() as vertex, lineage.locate(str(small[0])).open() as local:
        theirs, ours = vertex.runs(), local.runs()
        assert [(r.name, r.releases, r.metrics, r.started) for r in theirs] == [
            (r.name.replace(" ", "-"), r.releases, r.metrics, r.started) for r in ours
        ]
        assert [r.status for r in theirs] == [r.status for r in ours]
        assert {r.pipeline for r in theirs} == {"sd-finetuning"}
        assert facts_of(lineage.trace(vertex, "release:2")) == facts_of(
            lineage.trace(local, "release:2")
        )
        for what in ("data/bad", "b" * 16):
            one, other = lineage.impact(vertex, what), lineage.impact(local, what)
            assert [r.name.replace("-", " ") for r in one.runs] == [r.name for r in other.runs]
            assert [(t.version, t.made_of) for t in one.releases] == [
                (t.version, t.made_of) for t in other.releases
            ]
        assert ("Trainer", "custom_config.training.learning_rate", 3e-4, 1e-4) in [
            (d.step, d.name, d.first, d.second)
            for d in lineage.diff(vertex, "first", "second").differences
        ]
        assert lineage.why(vertex, "Trainer", "again").verdict == "hit"
        assert lineage.why(vertex, "Trainer", "second").explanation == (
            "executed because this had changed: learning_rate of Trainer"
        )
    with location.open() as again:
        assert len(again.runs()) == 6
    # Two pages of contexts and a third, six runs; nothing twice, nothing written, no credentials.
    assert len(server.requests) == 3 + 6
    assert {authorization for _, _, authorization in server.requests} == {None}


def test_commands(address, capsysbinary):
    assert cli.main(["--store", address, "runs"]) == 0
    assert b"other-data" in capsysbinary.readouterr().out
    assert cli.main(["--store", address, "trace", "a1", "--json"]) == 0
    assert json.loads(capsysbinary.readouterr().out)["subject"]["name"] == "a1"


def test_only_the_latest_runs(address, server):
    with lineage.locate(f"{address}&runs=1").open() as store:
        assert [run.name for run in store.runs()] == ["running"]
    assert len(server.requests) == 2


@pytest.mark.parametrize(
    "address",
    [
        "vertex://",
        "vertex://project",
        "vertex://project/",
        "vertex://a/b/c/d",
        "vertex://a/b?runs=0",
        "vertex://a/b?runs=x",
        "vertex://a/b?colour=red",
    ],
)
def test_addresses_that_are_none(address):
    with pytest.raises(lineage.LineageError, match="give vertex://PROJECT/LOCATION"):
        lineage.locate(address)


def refusal(address):
    with pytest.raises(lineage.LineageError) as error, lineage.locate(address).open():
        pass
    assert "\n" not in str(error.value)
    return str(error.value)


def test_errors_of_the_service(address):
    other = address.replace("my-project", "another")
    assert "cannot be read: 404" in refusal(other)
    assert "there is no projects/another" in refusal(other)
    for endpoint, message in (
        ("http://example.com", "neither Google's nor on this machine"),
        ("https://evil.example", "neither Google's nor on this machine"),
        ("http://us-central1-aiplatform.googleapis.com", "neither Google's nor"),
        ("ftp://127.0.0.1", "is not an endpoint"),
        ("http://127.0.0.1:1", "cannot be read"),
    ):
        assert message in refusal(f"vertex://a/b?endpoint={endpoint}")


def test_without_credentials(monkeypatch, tmp_path):
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "")
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    assert refusal("vertex://a/b").startswith("there are no credentials for vertex://a/b: ")
