"""Runs a compiled job on this machine as Vertex AI would, container task by container task.

Every task is the command line of the job specification in a process of its own, which finds nothing
but a staged copy of the code, the environment of the image, and what Vertex's `ExecutorInput` says.
What it leaves in its `ExecutorOutput` is all that is passed on: no Python object survives a task.

It has no machines: resources and retries are for Vertex alone, and tasks run one after another.
"""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import functools
import hashlib
import json
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Protocol

from ml_metadata.proto import metadata_store_pb2 as mlmd

from pipeline import interruption
from pipeline.failures import explanation_in
from pipeline.lineage.model import shown_seconds
from pipeline.lineage.moved import EMULATED_NAME
from pipeline.vertex.emulation.conditions import holds
from pipeline.vertex.emulation.metadata import (
    Artifacts,
    EmulatedMetadata,
    RuntimeArtifact,
    new_name,
)
from pipeline.vertex.places import ENVIRONMENT

_LAST_LINES = 30
# The machine's, and how the network and the storage are reached; no other variable of the user's is
# there.
_INHERITED = (
    "PATH", "LANG", "LD_LIBRARY_PATH", "TMPDIR", "PYTHONPYCACHEPREFIX",
    "https_proxy", "no_proxy", "CURL_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "STORAGE_EMULATOR_HOST",
    "GOOGLE_APPLICATION_CREDENTIALS", "GOOGLE_AUTH_TOKEN_FOR_TESTING", "NO_GCE_CHECK",
)  # fmt: skip
_FORK_SERVER = Path(__file__).with_name("fork_server.py")


class State(enum.Enum):
    """How a task ended."""

    EXECUTED = "executed"
    CACHED = "cached"
    RESOLVED = "resolved"
    SKIPPED = "skipped"


_TIMED = (State.EXECUTED, State.RESOLVED)


@dataclasses.dataclass(frozen=True)
class TaskOutcome:
    """One task of one run.

    Attributes:
        task: Its name in the job.
        state: How it ended.
        seconds: Wall-clock time.
        execution_id: Id of the execution in ML Metadata; 0 for one that was skipped.
    """

    task: str
    state: State
    seconds: float
    execution_id: int = 0


class TaskError(RuntimeError):
    """A task failed; the message is what a user can mend, or its log's last lines."""

    def __init__(self, task: str, status: int, log: Path) -> None:
        text = log.read_text(errors="replace")
        said = explanation_in(text)
        super().__init__(
            "\n".join(
                [
                    f"{task} ended with status {status}; the end of {log}:",
                    *text.splitlines()[-_LAST_LINES:],
                ]
            )
            if said is None
            else f"{task} failed: {said}\n\nIts log: {log}"
        )
        self.task = task


class Launcher(Protocol):
    """How a container is started."""

    def __call__(self, argv: Sequence[str], log: Path, environment: Mapping[str, str]) -> int:
        """Runs a command line to its end, both outputs into `log`; returns its exit status."""


@dataclasses.dataclass(frozen=True)
class FreshProcesses:
    """Starts every container as Vertex does, with an interpreter of its own.

    Attributes:
        code: The staged code, which is the working folder.
    """

    code: Path

    def __call__(self, argv: Sequence[str], log: Path, environment: Mapping[str, str]) -> int:
        """See `Launcher`."""
        with self.started(argv, log, environment) as process:
            return process.wait()

    def started(
        self, argv: Sequence[str], log: Path, environment: Mapping[str, str]
    ) -> subprocess.Popen[bytes]:
        """The container's process, to wait for or to kill."""
        with open(log, "ab") as output:
            return subprocess.Popen(
                _command(argv), cwd=self.code, env=environment, stdout=output, stderr=output
            )


class ForkServer:
    """Starts every container by a fork of a process that has TFX imported: seconds faster."""

    def __init__(self, code: Path, modules: Sequence[str], environment: Mapping[str, str]) -> None:
        """Imports `modules` from `code`."""
        self._process = subprocess.Popen(
            [sys.executable, str(_FORK_SERVER), *modules],
            cwd=code,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        if self._read() != "ready":
            raise RuntimeError("the fork server could not import the steps' code")

    def __call__(self, argv: Sequence[str], log: Path, environment: Mapping[str, str]) -> int:
        """See `Launcher`."""
        python, flag, *module_argv = argv
        if (python, flag) != ("python", "-m"):
            raise ValueError(f"the container's command {argv[:3]} is not `python -m MODULE`")
        request = {"argv": module_argv, "log": str(log), "environment": dict(environment)}
        stdin: IO[str] = self._process.stdin  # type: ignore[assignment]
        stdin.write(json.dumps(request) + "\n")
        stdin.flush()
        return int(self._read() or 1)

    def close(self) -> None:
        """Ends the server."""
        self._process.stdin.close()  # type: ignore[union-attr]
        self._process.wait()

    def _read(self) -> str:
        return self._process.stdout.readline().strip()  # type: ignore[union-attr]


def container_environment(code: Path, home: Path, others: Sequence[str] = ()) -> dict[str, str]:
    """The environment of a container.

    Args:
        code: The staged code.
        home: The home folder, which in a container is empty, too.
        others: Variables that it takes from this one, by their names, as an image has its own.
    """
    inherited = {n: os.environ[n] for n in (*_INHERITED, *others) if n in os.environ}
    return {
        **inherited,
        **ENVIRONMENT,
        "TF_CPP_MIN_LOG_LEVEL": "2",
        "PYTHONPATH": str(code),
        "HOME": str(home),
        # Vertex sets these for every task.
        "CLOUD_ML_REGION": "local",
        "CLOUD_ML_PROJECT_ID": "emulated",
    }


class Emulator:
    """Runs one job.

    Attributes:
        run_id: Names the run.
        task: What it is at; "" before it begins.
    """

    def __init__(
        self,
        job: Mapping[str, Any],
        metadata_path: str,
        logs: Path,
        launch: Launcher,
        environment: Mapping[str, str],
        report: Callable[[str], None],
    ) -> None:
        """Prepares a run.

        Args:
            job: The compiled `PipelineJob`, with a value for every runtime parameter.
            metadata_path: SQLite file with the metadata of this and former runs.
            logs: Folder for a log of every task.
            launch: How a container is started.
            environment: That of every container.
            report: Is told, one line a call, what happens.
        """
        self._spec = job["pipelineSpec"]
        self._parameters = job["runtimeConfig"].get("parameterValues", {})
        name = self._spec["pipelineInfo"]["name"]
        self.run_id = f"{name}-{time.strftime('%Y%m%d%H%M%S')}-{uuid.uuid4().hex[:4]}"
        self._root = f"{job['runtimeConfig']['gcsOutputDirectory']}/{EMULATED_NAME}/{self.run_id}"
        self._metadata = EmulatedMetadata(metadata_path, name, self.run_id)
        self._logs, self._launch, self._environment = logs, launch, environment
        self._report = report
        self._outputs: dict[str, Artifacts] = {}
        self.task = ""
        logs.mkdir(parents=True, exist_ok=True)

    def run(self) -> tuple[TaskOutcome, ...]:
        """Runs every task whose condition holds.

        Raises:
            TaskError: The first task that fails ends the run.
        """
        tasks = self._spec["root"]["dag"]["tasks"]
        order = list(_in_order(tasks))
        outcomes: list[TaskOutcome] = []
        for position, name in enumerate(order, start=1):
            self._report(f"[{position}/{len(order)}] {name}")
            self.task = name
            since = time.monotonic()
            state, execution_id = self._run_task(name, tasks[name])
            seconds = time.monotonic() - since
            took = f" in {shown_seconds(seconds)}" if state in _TIMED else ""
            self._report(f"{' ' * len(f'[{position}/{len(order)}]')} {name} {state.value}{took}")
            outcomes.append(TaskOutcome(name, state, seconds, execution_id))
        return tuple(outcomes)

    def _run_task(self, name: str, task: Mapping[str, Any]) -> tuple[State, int]:
        component = self._spec["components"][task["componentRef"]["name"]]
        executor = self._spec["deploymentSpec"]["executors"][component["executorLabel"]]
        if any(producer not in self._outputs for producer in task.get("dependentTasks", [])):
            return State.SKIPPED, 0
        inputs = self._input_artifacts(task)
        condition = task.get("triggerPolicy", {}).get("condition")
        if condition and not holds(condition, inputs):
            return State.SKIPPED, 0
        if "resolver" in executor:
            return self._resolve(name, component, executor["resolver"], inputs)
        if "importer" in executor:
            return self._import(name, task, component, executor["importer"])
        if "container" not in executor:
            raise NotImplementedError(f"task {name} is of kind {', '.join(executor)}")
        return self._run_container(name, task, component, executor["container"], inputs)

    def _resolve(
        self,
        name: str,
        component: Mapping[str, Any],
        resolver: Mapping[str, Any],
        inputs: Artifacts,
    ) -> tuple[State, int]:
        outputs = {
            key: self._metadata.resolve(query["filter"], inputs)
            for key, query in resolver["outputArtifactQueries"].items()
        }
        return self._found(name, component, "resolver", inputs, outputs)

    def _import(
        self,
        name: str,
        task: Mapping[str, Any],
        component: Mapping[str, Any],
        importer: Mapping[str, Any],
    ) -> tuple[State, int]:
        [(key, definition)] = component["outputDefinitions"]["artifacts"].items()
        artifact: RuntimeArtifact = {
            "name": new_name(),
            "uri": self._address(importer["artifactUri"], task),
            "type": definition["artifactType"],
            "metadata": importer.get("metadata", {}),
        }
        known = None if importer.get("reimport") else self._metadata.known(artifact)
        return self._found(name, component, "importer", {}, {key: [known or artifact]})

    def _found(
        self,
        name: str,
        component: Mapping[str, Any],
        kind: str,
        inputs: Artifacts,
        outputs: Artifacts,
    ) -> tuple[State, int]:
        """Notes what a task without a container found."""
        self._outputs[name] = _typed(outputs, component)
        complete = mlmd.Execution.COMPLETE
        record = self._metadata.record(name, kind, complete, {}, inputs, self._outputs[name])
        return State.RESOLVED, record

    def _address(self, given: Mapping[str, Any], task: Mapping[str, Any]) -> str:
        """An importer's address: a value, or the name of a parameter of its task."""
        if "constant" in given:
            return str(given["constant"])
        return str(self._parameter(task["inputs"]["parameters"][given["runtimeParameter"]]))

    def _run_container(
        self,
        name: str,
        task: Mapping[str, Any],
        component: Mapping[str, Any],
        container: Mapping[str, Any],
        inputs: Artifacts,
    ) -> tuple[State, int]:
        parameters = {
            key: self._parameter(value)
            for key, value in task.get("inputs", {}).get("parameters", {}).items()
        }
        executor_class = container["args"][container["args"].index("--executor_class_path") + 1]
        facts = (name, executor_class)
        key = _cache_key(component, container, parameters, inputs)
        if task.get("cachingOptions", {}).get("enableCache"):
            cached = self._from_cache(key)
            if cached is not None:
                self._outputs[name] = _typed(cached, component)
                state = mlmd.Execution.CACHED
                record = self._metadata.record(*facts, state, parameters, inputs, cached)
                return State.CACHED, record

        folder = f"{self._root}/{name}_{uuid.uuid4().int % 10**19}"
        definitions = component.get("outputDefinitions", {}).get("artifacts", {})
        outputs = {
            output: [
                {
                    "name": new_name(),
                    "uri": f"{folder}/{output}",
                    "type": definition["artifactType"],
                    "metadata": definition.get("metadata", {}),
                }
            ]
            for output, definition in definitions.items()
        }
        output_file = f"{folder}/executor_output.json"
        executor_input = {
            "inputs": {"artifacts": _listed(inputs), "parameterValues": parameters},
            "outputs": {"artifacts": _listed(outputs), "outputFile": output_file},
        }
        if "://" not in folder:
            # In an object store there are no folders to be missing.
            for listed in outputs.values():
                os.makedirs(listed[0]["uri"])
        argv = [
            argument.replace("{{$}}", json.dumps(executor_input))
            for argument in (*container["command"], *container["args"])
        ]
        log = self._logs / f"{self.run_id}-{name}.log"
        record_failure = functools.partial(
            self._metadata.record, *facts, mlmd.Execution.FAILED, parameters, inputs, {}
        )
        try:
            status = self._launch(argv, log, self._environment)
        except KeyboardInterrupt as stop:
            said = interruption.in_words(interruption.signal_of(stop))
            record_failure(failure=f"interrupted by {said}", interrupted=True)
            raise
        if status:
            error = TaskError(name, status, log)
            record_failure(failure=str(error))
            raise error
        left = json.loads(_read(output_file))
        for output, listed in left.get("artifacts", {}).items():
            [artifact] = listed["artifacts"]
            # It says nothing of the type.
            outputs[output][0] |= {k: artifact[k] for k in ("uri", "metadata") if k in artifact}
        self._outputs[name] = outputs
        return State.EXECUTED, self._metadata.record(
            *facts, mlmd.Execution.COMPLETE, parameters, inputs, outputs, key
        )

    def _from_cache(self, key: str) -> Artifacts | None:
        cached = self._metadata.cached(key)
        if cached is None:
            return None
        gone = [a for listed in cached.values() for a in listed if not _exists(a["uri"])]
        self._metadata.withdraw(gone)
        return None if gone else cached

    def _input_artifacts(self, task: Mapping[str, Any]) -> Artifacts:
        found: Artifacts = {}
        for key, value in task.get("inputs", {}).get("artifacts", {}).items():
            output = value["taskOutputArtifact"]
            found[key] = self._outputs[output["producerTask"]][output["outputArtifactKey"]]
        return found

    def _parameter(self, value: Mapping[str, Any]) -> Any:
        if "componentInputParameter" in value:
            return self._parameters[value["componentInputParameter"]]
        return value["runtimeValue"]["constant"]


def entry_modules(job: Mapping[str, Any]) -> list[str]:
    """Modules that the containers of a job import: the entry points and the executors."""
    modules = []
    for executor in job["pipelineSpec"]["deploymentSpec"]["executors"].values():
        container = executor.get("container")
        if container is not None:
            path = container["args"][container["args"].index("--executor_class_path") + 1]
            modules += [container["command"][2], path.rpartition(".")[0]]
    return list(dict.fromkeys(modules))


@contextlib.contextmanager
def fork_server(
    code: Path, job: Mapping[str, Any], environment: Mapping[str, str]
) -> Iterator[ForkServer]:
    """A `ForkServer` for the containers of a job, until the context ends."""
    server = ForkServer(code, entry_modules(job), environment)
    try:
        yield server
    finally:
        server.close()


def _in_order(tasks: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Task names, each after those it depends on."""
    done: set[str] = set()
    while len(done) < len(tasks):
        ready = [
            name
            for name, task in tasks.items()
            if name not in done and done.issuperset(task.get("dependentTasks", []))
        ]
        if not ready:
            raise ValueError(f"tasks wait for each other: {sorted(set(tasks) - done)}")
        yield from ready
        done.update(ready)


def _listed(artifacts: Artifacts) -> dict[str, Any]:
    return {key: {"artifacts": listed} for key, listed in artifacts.items()}


def _typed(artifacts: Artifacts, component: Mapping[str, Any]) -> Artifacts:
    definitions = component["outputDefinitions"]["artifacts"]
    return {
        key: [{**artifact, "type": definitions[key]["artifactType"]} for artifact in listed]
        for key, listed in artifacts.items()
    }


def _cache_key(
    component: Mapping[str, Any],
    container: Mapping[str, Any],
    parameters: Mapping[str, Any],
    inputs: Artifacts,
) -> str:
    names = {key: [artifact["name"] for artifact in listed] for key, listed in inputs.items()}
    facts = [component, container, parameters, names]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _command(argv: Sequence[str]) -> list[str]:
    return [sys.executable if argv[0] == "python" else argv[0], *argv[1:]]


def _read(path: str) -> str:
    if "://" not in path:
        return Path(path).read_text()
    import tensorflow as tf

    with tf.io.gfile.GFile(path, "r") as f:
        return str(f.read())


def _exists(uri: str) -> bool:
    if "://" not in uri:
        return os.path.exists(uri)
    import tensorflow as tf

    return bool(tf.io.gfile.exists(uri))
