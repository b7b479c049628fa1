"""The emulator on small containers: what is passed on, cached, resolved, skipped."""

from __future__ import annotations

import copy
import json
import os
import re
import shutil
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from ml_metadata.proto import metadata_store_pb2 as mlmd

from pipeline import housekeeping, lineage
from pipeline.vertex.emulation import custom_jobs
from pipeline.vertex.emulation.conditions import holds
from pipeline.vertex.emulation.emulator import (
    Emulator,
    FreshProcesses,
    State,
    TaskError,
    container_environment,
    fork_server,
)

# Writes what it was given into its outputs, as metadata what its name says.
CONTAINER = """
import argparse, json, os, pathlib, sys
parser = argparse.ArgumentParser()
parser.add_argument("--executor_class_path")
parser.add_argument("--json_serialized_invocation_args")
arguments, _ = parser.parse_known_args()
given = json.loads(arguments.json_serialized_invocation_args)
parameters = given["inputs"].get("parameterValues", {})
if parameters.get("steps") == 13:
    sys.exit("thirteen steps bring bad luck")
outputs = {}
for key, listed in given["outputs"]["artifacts"].items():
    [artifact] = listed["artifacts"]
    text = json.dumps({"parameters": parameters, "inputs": given["inputs"].get("artifacts", {})})
    pathlib.Path(artifact["uri"], "given.json").write_text(text)
    metadata = {"steps": float(parameters.get("steps", 0)), "report": {"a": 1.0}}
    if key == "blessing":
        [model] = given["inputs"]["artifacts"]["model"]["artifacts"]
        metadata = {"blessed": 1.0, "current_model_id": model["name"]}
    outputs[key] = {"artifacts": [{
        "name": artifact["name"], "uri": artifact["uri"], "metadata": metadata,
    }]}
pathlib.Path(given["outputs"]["outputFile"]).write_text(json.dumps({"artifacts": outputs}))
print("environment", sorted(os.environ))
"""


def schema(name: str) -> dict[str, Any]:
    return {"artifactType": {"instanceSchema": f"title: tfx.{name}\ntype: object\n"}}


def container(name: str) -> dict[str, Any]:
    return {
        "container": {
            "image": "none",
            "command": ["python", "-m", "small_container"],
            "args": [
                *("--executor_class_path", f"small_container.{name}"),
                *("--json_serialized_invocation_args", "{{$}}"),
            ],
        }
    }


def comes_from(task: str, key: str) -> dict[str, Any]:
    return {"taskOutputArtifact": {"producerTask": task, "outputArtifactKey": key}}


def resolver(key: str, query: str) -> dict[str, Any]:
    return {"resolver": {"outputArtifactQueries": {key: {"filter": query}}}}


@pytest.fixture
def job(tmp_path: Path) -> dict[str, Any]:
    """Train, Judge what was trained, and Push if it is of more than two steps."""
    tasks = {
        "Push": {
            "dependentTasks": ["Judge", "Train"],
            "inputs": {"artifacts": {"model": comes_from("Train", "model")}},
            "triggerPolicy": {
                "condition": "!(inputs.artifacts['model'].artifacts[0].metadata['steps'] < 2.0)"
            },
        },
        "After": {
            "dependentTasks": ["Push"],
            "inputs": {"artifacts": {"pushed": comes_from("Push", "pushed")}},
        },
        "Judge": {
            "dependentTasks": ["Latest-model", "Train"],
            "inputs": {
                "artifacts": {
                    "model": comes_from("Train", "model"),
                    "baseline": comes_from("Latest-model", "model"),
                }
            },
        },
        "Train": {
            "inputs": {
                "parameters": {
                    "steps": {"componentInputParameter": "steps"},
                    "note": {"runtimeValue": {"constant": 'a "note"'}},
                }
            },
            "cachingOptions": {"enableCache": True},
        },
        "Latest-blessing": {},
        "Latest-model": {
            "dependentTasks": ["Latest-blessing"],
            "inputs": {"artifacts": {"input": comes_from("Latest-blessing", "blessing")}},
        },
    }
    outputs = {
        "Train": {"model": schema("Model")},
        "Judge": {"blessing": schema("ModelBlessing")},
        "Push": {"pushed": schema("PushedModel")},
        "After": {"report": schema("PushedModel")},
        "Latest-blessing": {"blessing": schema("ModelBlessing")},
        "Latest-model": {"model": schema("Model")},
    }
    executors = {name: container(name) for name in ("Train", "Judge", "Push", "After")}
    executors["Latest-blessing"] = resolver(
        "blessing",
        'schema_title="tfx.ModelBlessing" AND state=LIVE AND metadata.blessed.number_value=1',
    )
    executors["Latest-model"] = resolver(
        "model",
        'schema_title="tfx.Model" AND state=LIVE AND '
        "name=\"{{$.inputs.artifacts['input'].metadata['current_model_id']}}\"",
    )
    for name, task in tasks.items():
        task["componentRef"] = {"name": name}
    return {
        "displayName": "small",
        "runtimeConfig": {
            "gcsOutputDirectory": str(tmp_path / "root"),
            "parameterValues": {"steps": 5.0},
        },
        "pipelineSpec": {
            "pipelineInfo": {"name": "small"},
            "root": {"dag": {"tasks": tasks}},
            "components": {
                name: {"executorLabel": name, "outputDefinitions": {"artifacts": outputs[name]}}
                for name in tasks
            },
            "deploymentSpec": {"executors": executors},
        },
    }


class Here:
    """A place for emulated runs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.code, home = folder / "code", folder / "home"
        self.code.mkdir()
        home.mkdir()
        (self.code / "small_container.py").write_text(CONTAINER)
        self.environment = container_environment(self.code, home)
        self.said: list[str] = []

    def run(self, job: dict[str, Any], launch: Any = None, **parameters: float) -> dict[str, State]:
        job = copy.deepcopy(job)
        job["runtimeConfig"]["parameterValues"] |= parameters
        emulator = Emulator(
            job,
            str(self.folder / housekeeping.DATABASE_NAME),
            self.folder / "logs",
            launch or FreshProcesses(self.code),
            self.environment,
            self.said.append,
        )
        return {outcome.task: outcome.state for outcome in emulator.run()}

    def given(self, task: str, key: str) -> dict[str, Any]:
        """What the latest execution of a task was given."""
        files = (self.folder / "root").glob(f"*/*/{task}_*/{key}/given.json")
        return json.loads(max(files, key=os.path.getmtime).read_text())


@pytest.fixture
def here(tmp_path: Path) -> Here:
    return Here(tmp_path)


def test_parameters_and_artifacts_are_passed_on(here: Here, job, monkeypatch) -> None:
    monkeypatch.setenv("MY_SECRET", "x")
    states = here.run(job)
    assert list(states) == [
        "Train", "Latest-blessing", "Latest-model", "Judge", "Push", "After",
    ]  # fmt: skip
    assert here.given("Train", "model")["parameters"] == {"steps": 5.0, "note": 'a "note"'}
    [model] = here.given("Push", "pushed")["inputs"]["model"]["artifacts"]
    assert model["metadata"] == {"steps": 5.0, "report": {"a": 1.0}}
    assert model["type"] == schema("Model")["artifactType"]
    assert Path(model["uri"], "given.json").is_file()
    # A container finds nothing of the user's.
    [log] = (here.folder / "logs").glob("*-Train.log")
    assert "'HOME'" in log.read_text()
    assert "MY_SECRET" not in log.read_text()


def test_what_did_not_change_is_taken_from_the_cache(here: Here, job) -> None:
    assert here.run(job)["Train"] == State.EXECUTED
    again = here.run(job)
    assert again["Train"] == State.CACHED
    # Judge may not be cached.
    assert again["Judge"] == State.EXECUTED
    assert here.given("Judge", "blessing")["inputs"]["model"]["artifacts"][0]["metadata"] == {
        "steps": 5.0,
        "report": {"a": 1.0},
    }
    assert here.run(job, steps=6.0)["Train"] == State.EXECUTED
    for model in (here.folder / "root").glob("*/*/Train_*/model"):
        shutil.rmtree(model)
    assert here.run(job)["Train"] == State.EXECUTED


def test_resolvers_find_the_latest_blessed_model(here: Here, job) -> None:
    assert here.run(job)["Latest-model"] == State.RESOLVED
    assert here.given("Judge", "blessing")["inputs"]["baseline"] == {"artifacts": []}
    [first] = here.given("Judge", "blessing")["inputs"]["model"]["artifacts"]
    here.run(job, steps=6.0)
    assert here.given("Judge", "blessing")["inputs"]["baseline"]["artifacts"] == [first]
    [second] = here.given("Judge", "blessing")["inputs"]["model"]["artifacts"]
    here.run(job, steps=7.0)
    assert here.given("Judge", "blessing")["inputs"]["baseline"]["artifacts"] == [second]


def test_an_importer_finds_what_is_known_already_and_records_what_is_not(here: Here, job) -> None:
    here.run(job)
    [model] = here.given("Judge", "blessing")["inputs"]["model"]["artifacts"]
    spec = job["pipelineSpec"]
    spec["root"]["dag"]["tasks"]["Start"] = {"componentRef": {"name": "Start"}}
    spec["components"]["Start"] = {
        "executorLabel": "Start",
        "outputDefinitions": {"artifacts": {"model": schema("Model")}},
    }
    importer = {"artifactUri": {"constant": model["uri"]}}
    spec["deploymentSpec"]["executors"]["Start"] = {"importer": importer}
    judge = spec["root"]["dag"]["tasks"]["Judge"]
    judge["dependentTasks"].append("Start")
    judge["inputs"]["artifacts"]["baseline"] = comes_from("Start", "model")
    assert here.run(job, steps=6.0)["Start"] == State.RESOLVED
    assert here.given("Judge", "blessing")["inputs"]["baseline"]["artifacts"] == [model]
    # Of other content, as its properties say, it is another one; the same for the next run.
    importer["metadata"] = {"manifest_sha256": "abc"}
    found = []
    for steps in (7.0, 8.0):
        here.run(job, steps=steps)
        found += here.given("Judge", "blessing")["inputs"]["baseline"]["artifacts"]
    assert found[0] == found[1]
    assert found[0]["name"] != model["name"]
    assert (found[0]["uri"], found[0]["metadata"]) == (model["uri"], importer["metadata"])


def test_a_condition_that_does_not_hold_skips_the_task_and_all_after(here: Here, job) -> None:
    states = here.run(job, steps=1.0)
    assert states["Judge"] == State.EXECUTED
    assert states["Push"] == states["After"] == State.SKIPPED


@pytest.mark.parametrize(
    ("condition", "value"),
    [
        ("(inputs.artifacts['m'].artifacts[0].metadata['n'] == 2.0)", True),
        ("(inputs.artifacts['m'].artifacts[0].metadata['n'] > 2.0)", False),
        ("!((inputs.artifacts['m'].artifacts[0].metadata['n'] > 2.0))", True),
        ("(inputs.artifacts['m'].artifacts[0].uri == 'u') && (1.0 < 2.0)", True),
        ("(inputs.artifacts['m'].artifacts[0].uri == 'v') || (2.0 < 1.0)", False),
    ],
)
def test_conditions(condition: str, value: bool) -> None:
    assert holds(condition, {"m": [{"uri": "u", "metadata": {"n": 2.0}}]}) is value


@pytest.mark.parametrize(
    "condition", ["open('/etc/passwd')", "1.0 + 2.0 == 3.0", "others == 1", "1 < 2 < 3", "(1 <"]
)
def test_what_is_no_condition_is_not_run(condition: str) -> None:
    with pytest.raises(ValueError, match="is not understood"):
        holds(condition, {})


def test_a_failing_task_ends_the_run_with_its_last_words(here: Here, job) -> None:
    with pytest.raises(TaskError, match="thirteen steps bring bad luck") as error:
        here.run(job, steps=13.0)
    assert error.value.task == "Train"
    assert "Train ended with status 1" in str(error.value)
    [log] = (here.folder / "logs").glob("*-Train.log")

    def interrupted(*_: Any) -> int:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        here.run(job, interrupted)
    with lineage.locate(str(here.folder)).open() as store:
        now, before = store.runs()
        assert (now.status.value, before.status.value) == ("interrupted", "failed")
        assert store.latest_step("Train", now.id).error == "interrupted by Ctrl-C"
        said = store.latest_step("Train", before.id).error.splitlines()
        assert said[0] == f"Train ended with status 1; the end of {log}:"
        assert said[-1] == "thirteen steps bring bad luck"
    here.said.clear()
    assert here.run(job)["Train"] == State.EXECUTED
    assert re.fullmatch(r"      Train executed in \d+\.\d s", here.said[1])


def test_forked_containers_are_no_different(here: Here, job) -> None:
    before = dict(os.environ)
    # The entry point and the executors are one module here.
    for executor in job["pipelineSpec"]["deploymentSpec"]["executors"].values():
        if "container" in executor:
            executor["container"]["command"][2] = "small_entry"
    source = "import runpy\nif __name__ == '__main__':\n    runpy.run_module('small_code')\n"
    (here.code / "small_entry.py").write_text(source)
    (here.code / "small_container.py").write_text("print('imported')\n")
    (here.code / "small_code.py").write_text(CONTAINER)
    with fork_server(here.code, job, here.environment) as launch:
        states = here.run(job, launch)
        assert states["After"] == State.EXECUTED
        with pytest.raises(TaskError, match="thirteen steps bring bad luck"):
            here.run(job, launch, steps=13.0)
    assert here.given("Train", "model")["parameters"]["steps"] == 5.0
    assert dict(os.environ) == before


def test_the_metadata_has_the_runs(here: Here, job) -> None:
    here.run(job)
    here.run(job)
    store = housekeeping.open_store(str(here.folder), read_only=True)
    assert {c.name for c in store.get_contexts_by_type("pipeline")} == {"small"}
    assert len(store.get_contexts_by_type("pipeline_run")) == 2
    assert {c.name for c in store.get_contexts_by_type("node")} >= {"small.Train", "small.Judge"}
    train, cached = store.get_executions_by_type("small_container.Train")
    assert cached.last_known_state == mlmd.Execution.CACHED
    assert train.custom_properties["steps"].int_value == 5
    assert len(store.get_artifacts_by_type("Model")) == 1
    assert len(store.get_artifacts_by_type("ModelBlessing")) == 2


WORKER = """
import json, os, sys
tf_config = json.loads(os.environ["TF_CONFIG"])
print(json.dumps(tf_config), sys.argv[1:])
if "fail" in sys.argv and tf_config["task"] == {"type": "worker", "index": 1}:
    sys.exit("the second worker fails")
"""


@pytest.mark.parametrize("argument", ["work", "fail"])
def test_a_custom_jobs_workers_know_of_each_other(here: Here, argument: str) -> None:
    (here.code / "worker.py").write_text(WORKER)
    (here.folder / "logs").mkdir()
    spec = {"containerSpec": {"imageUri": "i", "command": ["python", "-m", "worker", argument]}}
    body = {
        "displayName": "d",
        "jobSpec": {
            "workerPoolSpecs": [{**spec, "replicaCount": "1"}, {**spec, "replicaCount": "2"}]
        },
    }
    jobs = custom_jobs.EmulatedJobs(
        FreshProcesses(here.code), here.folder / "logs", here.environment
    )
    with custom_jobs.serve(jobs) as address:
        url = f"{address}/v1/projects/p/locations/l/customJobs"
        request = urllib.request.Request(url, json.dumps(body).encode(), method="POST")
        made = json.load(urllib.request.urlopen(request, timeout=30))
        assert made["name"] == "projects/p/locations/l/customJobs/1"
        while made["state"] in ("JOB_STATE_PENDING", "JOB_STATE_RUNNING"):
            made = json.load(urllib.request.urlopen(f"{url}/1", timeout=30))
    found = {}
    for log in (here.folder / "logs").iterdir():
        tf_config = json.loads(log.read_text().splitlines()[0].rpartition(" [")[0])
        found[log.stem.removeprefix("custom-job-1-")] = tf_config["task"]
        assert len(tf_config["cluster"]["chief"]) == 1
        assert len(tf_config["cluster"]["worker"]) == 2
    assert found == {
        "chief-0": {"type": "chief", "index": 0},
        "worker-0": {"type": "worker", "index": 0},
        "worker-1": {"type": "worker", "index": 1},
    }
    if argument == "fail":
        assert made["state"] == "JOB_STATE_FAILED"
        assert "the second worker fails" in made["error"]["message"]
    else:
        assert made["state"] == "JOB_STATE_SUCCEEDED"
