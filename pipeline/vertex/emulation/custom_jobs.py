"""Vertex's custom jobs on this machine: every worker of a job is a process.

A server on loopback speaks as much of Vertex's REST API as `components.diffusion_trainer` needs.
The workers find each other by the `TF_CONFIG` and `CLUSTER_SPEC` that Vertex gives them.
"""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from pipeline.vertex.emulation.emulator import FreshProcesses

_LAST_BYTES = 2000


class EmulatedJobs:
    """The custom jobs of one emulated run."""

    def __init__(self, launch: FreshProcesses, logs: Path, environment: Mapping[str, str]) -> None:
        """Prepares for jobs.

        Args:
            launch: How a worker's container is started.
            logs: Folder for a log of every worker.
            environment: That of every worker, beside those.
        """
        self._launch, self._logs, self._environment = launch, logs, environment
        self._jobs: list[dict[str, Any]] = []

    def create(self, job: dict[str, Any]) -> dict[str, Any]:
        """Starts a job's workers; returns the job."""
        self._jobs.append(job)
        job |= {"name": f"customJobs/{len(self._jobs)}", "state": "JOB_STATE_RUNNING"}
        threading.Thread(target=self._run, args=(job, len(self._jobs)), daemon=True).start()
        return job

    def get(self, number: int) -> dict[str, Any]:
        """The job of this number, from 1 on."""
        return self._jobs[number - 1]

    def _run(self, job: dict[str, Any], number: int) -> None:
        pools = job["jobSpec"]["workerPoolSpecs"]
        workers = [
            (kind, index, pool["containerSpec"])
            for kind, pool in zip(("chief", "worker"), pools, strict=True)
            for index in range(int(pool["replicaCount"]))
        ]
        cluster: dict[str, list[str]] = {}
        for (kind, _, _), port in zip(workers, _free_ports(len(workers)), strict=True):
            cluster.setdefault(kind, []).append(f"127.0.0.1:{port}")

        def work(kind: str, index: int, container: Mapping[str, Any]) -> tuple[str, int]:
            tf_config = {"cluster": cluster, "task": {"type": kind, "index": index}}
            # The same by the names of the pools.
            pools = {"chief": "workerpool0", "worker": "workerpool1"}
            cluster_spec = {
                "cluster": {pools[kind]: places for kind, places in cluster.items()},
                "task": {"type": pools[kind], "index": index},
            }
            log = self._logs / f"custom-job-{number}-{kind}-{index}.log"
            argv = [*container["command"], *container.get("args", ())]
            environment = {
                **self._environment,
                "TF_CONFIG": json.dumps(tf_config),
                "CLUSTER_SPEC": json.dumps(cluster_spec),
            }
            status = self._launch(argv, log, environment)
            return f"{kind} {index} ended with status {status}: {_end_of(log)}", status

        with ThreadPoolExecutor(len(workers)) as pool:
            ended = list(pool.map(lambda worker: work(*worker), workers))
        failed = [text for text, status in ended if status]
        if failed:
            job |= {"state": "JOB_STATE_FAILED", "error": {"code": 3, "message": failed[0]}}
        else:
            job["state"] = "JOB_STATE_SUCCEEDED"


@contextlib.contextmanager
def serve(jobs: EmulatedJobs) -> Iterator[str]:
    """Serves `jobs` until the context ends; gives the server's address."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            """Says nothing."""

        def do_POST(self) -> None:
            """Creates a job."""
            length = int(self.headers.get("Content-Length", 0))
            self._answer(jobs.create(json.loads(self.rfile.read(length))))

        def do_GET(self) -> None:
            """Tells of a job."""
            number = self.path.partition("?")[0].rpartition("/")[2]
            self._answer(jobs.get(int(number)))

        def _answer(self, job: Mapping[str, Any]) -> None:
            parent = self.path.partition("/customJobs")[0].removeprefix("/v1/")
            body = json.dumps({**job, "name": f"{parent}/{job['name']}"}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _end_of(log: Path) -> str:
    return log.read_text(errors="replace")[-_LAST_BYTES:]
