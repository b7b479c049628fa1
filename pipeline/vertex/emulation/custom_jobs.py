"""Vertex's custom jobs on this machine: every worker of a job is a process.

A server on loopback speaks as much of Vertex's REST API as `components.diffusion_trainer` needs.
The workers find each other by the `TF_CONFIG` and `CLUSTER_SPEC` that Vertex gives them. Spot
machines come and go as a market says.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import json
import re
import socket
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from pipeline.vertex.emulation.emulator import FreshProcesses

_LAST_BYTES = 2000
_LOOK_SECONDS = 0.02
_LABEL = re.compile(r'labels\.(?P<key>\w+)="(?P<value>[^"]*)"')
# As JSON may have an enumeration's values.
_SPOT = ("SPOT", 4)
# The names of the pools, as TF_CONFIG and as CLUSTER_SPEC have them.
_POOLS = (("chief", "workerpool0"), ("worker", "workerpool1"))


@dataclasses.dataclass(frozen=True)
class Offer:
    """What a job on Spot machines gets.

    Attributes:
        after_seconds: Until they are there; infinite where there are none.
        taken_away: Whether they are taken away now, from the seconds that the job has had them.
    """

    after_seconds: float = 0.0
    taken_away: Callable[[float], bool] = lambda seconds: False


Market = Callable[[int], Offer]
"""What the Spot job of a number, from 1 on, is offered."""


def plenty(number: int) -> Offer:
    """The market where there is always a Spot machine for everybody."""
    return Offer()


class EmulatedJobs:
    """The custom jobs of one emulated run."""

    def __init__(
        self,
        launch: FreshProcesses,
        logs: Path,
        environment: Mapping[str, str],
        market: Market = plenty,
    ) -> None:
        """Prepares for jobs.

        Args:
            launch: How a worker's container is started.
            logs: Folder for a log of every worker.
            environment: That of every worker, beside those.
            market: Where Spot machines come from.
        """
        self._launch, self._logs, self._environment = launch, logs, environment
        self._market = market
        self._jobs: list[dict[str, Any]] = []
        self._cancelled: set[int] = set()

    def create(self, job: dict[str, Any]) -> dict[str, Any]:
        """Starts a job's workers; returns the job."""
        self._jobs.append(job)
        number = len(self._jobs)
        name = f"customJobs/{number}"
        job |= {"name": name, "state": "JOB_STATE_PENDING", "createTime": _now()}
        threading.Thread(target=self._run, args=(job, number), daemon=True).start()
        return job

    def get(self, number: int) -> dict[str, Any]:
        """The job of this number, from 1 on."""
        return self._jobs[number - 1]

    def listed(self, query: str) -> list[dict[str, Any]]:
        """The jobs that a filter describes.

        Raises:
            NotImplementedError: The filter asks for something else than one label.
        """
        clause = _LABEL.fullmatch(query)
        if clause is None:
            raise NotImplementedError(f"the filter of a list of custom jobs is {query!r}")
        return [j for j in self._jobs if j.get("labels", {}).get(clause["key"]) == clause["value"]]

    def cancel(self, number: int) -> None:
        """Ends the job of this number."""
        self._cancelled.add(number)

    def _run(self, job: dict[str, Any], number: int) -> None:
        on_spot = job["jobSpec"].get("scheduling", {}).get("strategy") in _SPOT
        offer = self._market(number) if on_spot else Offer()
        since = time.monotonic()
        while time.monotonic() - since < offer.after_seconds:
            if number in self._cancelled:
                job |= {"state": "JOB_STATE_CANCELLED", "endTime": _now()}
                return
            time.sleep(_LOOK_SECONDS)
        workers = self._started(job, number)
        job |= {"state": "JOB_STATE_RUNNING", "startTime": _now()}
        since, ended = time.monotonic(), ""
        while not ended and any(process.poll() is None for _, process in workers):
            if number in self._cancelled:
                ended = "JOB_STATE_CANCELLED"
            elif offer.taken_away(time.monotonic() - since):
                ended = "JOB_STATE_FAILED"
                job["error"] = {"code": 8, "message": "STOCKOUT: the Spot VMs were preempted."}
            time.sleep(_LOOK_SECONDS)
        for _, process in workers:
            if ended:
                process.kill()
            process.wait()
        failed = [
            f"{log.stem} ended with status {process.returncode}: {_end_of(log)}"
            for log, process in workers
            if process.returncode
        ]
        if failed and not ended:
            ended = "JOB_STATE_FAILED"
            job["error"] = {"code": 3, "message": failed[0]}
        job |= {"endTime": _now(), "state": ended or "JOB_STATE_SUCCEEDED"}

    def _started(self, job: Mapping[str, Any], number: int) -> list[tuple[Path, Any]]:
        """The log and the process of every worker."""
        pools = job["jobSpec"]["workerPoolSpecs"]
        workers = [
            (names, index, pool["containerSpec"])
            for names, pool in zip(_POOLS, pools, strict=False)
            for index in range(int(pool["replicaCount"]))
        ]
        places = [f"127.0.0.1:{port}" for port in _free_ports(len(workers))]

        def told(which: int, names: tuple[str, str], index: int) -> str:
            cluster: dict[str, list[str]] = {}
            for (of, _, _), place in zip(workers, places, strict=True):
                cluster.setdefault(of[which], []).append(place)
            return json.dumps({"cluster": cluster, "task": {"type": names[which], "index": index}})

        started = []
        for names, index, container in workers:
            log = self._logs / f"custom-job-{number}-{names[0]}-{index}.log"
            argv = [*container["command"], *container.get("args", ())]
            environment = {
                **self._environment,
                "TF_CONFIG": told(0, names, index),
                "CLUSTER_SPEC": told(1, names, index),
            }
            started.append((log, self._launch.started(argv, log, environment)))
        return started


@contextlib.contextmanager
def serve(jobs: EmulatedJobs) -> Iterator[str]:
    """Serves `jobs` until the context ends; gives the server's address."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            """Says nothing."""

        def do_POST(self) -> None:
            """Creates a job, or cancels one."""
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            path = self.path.partition("?")[0]
            if path.endswith(":cancel"):
                jobs.cancel(_number(path.removesuffix(":cancel")))
                self._answer({})
            else:
                self._answer(self._named(jobs.create(json.loads(body))))

        def do_GET(self) -> None:
            """Tells of a job, or of those that a filter describes."""
            path, _, query = self.path.partition("?")
            if path.endswith("/customJobs"):
                [wanted] = urllib.parse.parse_qs(query)["filter"]
                self._answer({"customJobs": [self._named(job) for job in jobs.listed(wanted)]})
            else:
                self._answer(self._named(jobs.get(_number(path))))

        def _named(self, job: Mapping[str, Any]) -> dict[str, Any]:
            parent = self.path.partition("/customJobs")[0].removeprefix("/v1/")
            return {**job, "name": f"{parent}/{job['name']}"}

        def _answer(self, tree: Mapping[str, Any]) -> None:
            body = json.dumps(tree).encode()
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


def _number(path: str) -> int:
    return int(path.rpartition("/")[2])


def _now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).isoformat().replace("+00:00", "Z")


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _end_of(log: Path) -> str:
    return log.read_text(errors="replace")[-_LAST_BYTES:]
