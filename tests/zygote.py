"""Runs of the command line, each in a process forked from one that has imported TFX.

Many runs, and many kills, cost one import. As a program this is the process that is forked; its
argument is a JSON object of modules and what to import in their place, if not themselves.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

REPO_ROOT = Path(__file__).resolve().parent.parent


@dataclasses.dataclass
class Run:
    """One run of `runner_local.py` in a process of its own."""

    zygote: Zygote
    pid: int
    stdout: Path
    stderr: Path

    def wait(self) -> int:
        return self.zygote.ask(wait=self.pid)

    def kill(self, number: int = signal.SIGKILL) -> int:
        os.kill(self.pid, number)
        return self.wait()

    def wait_for(self, text: str, seconds: float = 30) -> None:
        deadline = time.monotonic() + seconds
        while text not in self.out():
            assert time.monotonic() < deadline, f"{text!r} not in {self.out()!r} {self.err()!r}"
            time.sleep(0.01)

    def out(self) -> str:
        return self.stdout.read_text() if self.stdout.exists() else ""

    def err(self) -> str:
        return self.stderr.read_text() if self.stderr.exists() else ""


class Zygote:
    def __init__(self, folder: Path, modules: Mapping[str, str | None], *path: Path) -> None:
        """Imports `modules`, or what stands for them, with the folders `path` on Python's path."""
        environment = dict(os.environ, TF_USE_LEGACY_KERAS="0", TF_CPP_MIN_LOG_LEVEL="3")
        environment["PYTHONPATH"] = os.pathsep.join(map(str, (REPO_ROOT, *path)))
        self._folder = folder
        self._runs = 0
        with open(folder / "zygote.log", "w") as log:
            self._process = subprocess.Popen(
                [sys.executable, __file__, json.dumps(modules)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=environment,
                cwd=folder,
            )
        assert self._read() == "ready"

    def _read(self) -> str:
        line = self._process.stdout.readline().strip()
        assert line, (self._folder / "zygote.log").read_text()[-2000:]
        return line

    def ask(self, **request: object) -> int:
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return int(self._read())

    def start(self, *argv: str) -> Run:
        self._runs += 1
        stdout, stderr = (self._folder / f"{self._runs}.{name}" for name in ("out", "err"))
        pid = self.ask(argv=list(argv), stdout=str(stdout), stderr=str(stderr))
        return Run(self, pid, stdout, stderr)

    def run(self, *argv: str) -> tuple[int, Run]:
        run = self.start(*argv)
        return run.wait(), run

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait(timeout=30)


def _serve(modules: Mapping[str, str | None]) -> None:
    for name, other in modules.items():
        sys.modules[name] = importlib.import_module(other or name)
    import runner_local

    print("ready", flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            print(os.waitstatus_to_exitcode(os.waitpid(request["wait"], 0)[1]), flush=True)
            continue
        pid = os.fork()
        if not pid:
            # A shell has what it starts in the background ignore this.
            signal.signal(signal.SIGINT, signal.default_int_handler)
            for fd, path in ((1, request["stdout"]), (2, request["stderr"])):
                os.dup2(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC), fd)
            status = runner_local.main(request["argv"])
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
        print(pid, flush=True)


if __name__ == "__main__":
    _serve(json.loads(sys.argv[1]))
