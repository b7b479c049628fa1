"""Runs a pack on this machine's GPU: one process per row, most telling first; see README.md.

Leaves one JSON file, which is rewritten after every row. A row that fails, does not fit or has no
time left is recorded as such. Imports only the standard library.
"""

from __future__ import annotations

import argparse
import datetime
import fnmatch
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

FORMAT = 1
# With less time left, starting JAX is not worth it.
_LEAST_SECONDS = 20.0


def run_job(
    command: Sequence[str],
    seconds: float,
    environment: Mapping[str, str] | None = None,
    folder: Path | None = None,
) -> dict[str, Any]:
    """Runs a program that prints a line of JSON at its end.

    Args:
        command: Command line of the program.
        seconds: Seconds after which it is killed.
        environment: Variables in addition to those of this process.
        folder: Folder to run it in; by default this process's.

    Returns:
        What it printed, with `state`: `done` unless it says otherwise; or `failed` or `out of
        time`, and `why`.
    """
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **(environment or {})},
        cwd=folder,
        # To kill it together with what it starts, such as compilers.
        start_new_session=True,
    ) as process:
        try:
            stdout, stderr = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            return {"state": "out of time", "why": f"it was ended after {seconds:.0f} s"}
        finally:
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGKILL)
    if process.returncode:
        lines = [line for line in stderr.splitlines() if line.strip()]
        why = lines[-1][:300] if lines else f"it ended with status {process.returncode}"
        return {"state": "failed", "why": why}
    try:
        facts: dict[str, Any] = json.loads(stdout.splitlines()[-1])
    except (IndexError, ValueError):
        return {"state": "failed", "why": "it printed no result"}
    return {"state": "done", **facts}


def write_results(results: Mapping[str, Any], path: Path) -> None:
    """Writes the file, whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(results, indent=1), encoding="utf-8")
    partial.replace(path)


def jobs_of(manifest: Mapping[str, Any], patterns: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The jobs to run, in the order of the manifest, each with its row or check."""
    named = {entry["name"]: entry for entry in [*manifest["rows"], *manifest["checks"]]}
    for job in manifest["jobs"]:
        chosen = any(fnmatch.fnmatchcase(job["name"], pattern) for pattern in patterns)
        if chosen or not patterns:
            yield {**named[job["name"]], **job}


def command_of(
    job: Mapping[str, Any], manifest: Mapping[str, Any], pack: Path, device: str
) -> list[str]:
    """The command line of a job, without the interpreter."""
    settings = json.dumps(job)
    if job["side"] == "diffusers":
        networks = json.dumps(manifest["networks"][job["preset"]])
        flags = ["--row", settings, "--networks", networks]
        return ["-m", f"{__package__}.torch_side", "--device", device, *flags]
    flags = ["--check" if job["side"] == "check" else "--row", settings, "--pack", str(pack)]
    return ["-m", f"{__package__}.jax_side", "--device", device, *flags]


def run_all(
    jobs: Sequence[Mapping[str, Any]],
    run: Callable[[Mapping[str, Any], float], dict[str, Any]],
    results: dict[str, Any],
    path: Path,
    *,
    seconds: float,
    row_seconds: float,
) -> None:
    """Runs jobs one after another, and writes the results before the first and after each.

    Args:
        jobs: From `jobs_of`.
        run: Runs a job within a number of seconds; returns its results as `run_job` does.
        results: The results to complete.
        path: File to write them to.
        seconds: Seconds for all jobs together.
        row_seconds: Seconds for one job.
    """
    began = time.monotonic()
    # Replaces the results of an earlier run.
    write_results(results, path)
    for job in jobs:
        left = seconds - (time.monotonic() - began)
        if left < _LEAST_SECONDS:
            facts = {"state": "out of time", "why": "no time was left to begin it"}
        else:
            facts = run(job, min(left, row_seconds))
        print(f"{job['side']} {job['name']}: {facts['state']}", flush=True)
        results["checks" if job["side"] == "check" else "rows"].append({**job, **facts})
        write_results(results, path)


def head(by: str, machine: Mapping[str, Any], made: Mapping[str, Any]) -> dict[str, Any]:
    """The head of the results, still without results.

    Args:
        by: `pack`, or `tensorflow`.
        machine: The device and the software.
        made: The code that made the computations.
    """
    now = datetime.datetime.now(datetime.timezone.utc)
    return {
        "format": FORMAT,
        "began": now.isoformat(timespec="seconds"),
        "by": by,
        "machine": machine,
        "made": made,
        "rows": [],
        "checks": [],
    }


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--seconds", type=float, default=570.0, help="for all rows together")
    parser.add_argument("--row-seconds", type=float, default=150.0, help="for one row")
    parser.add_argument("--rows", nargs="*", default=[], help="names or patterns; all by default")
    parser.add_argument("--device", choices=("gpu", "cpu"), default="gpu")
    parser.add_argument("--out", type=Path, default=Path("results.json"))
    parser.add_argument("--pack", type=Path, default=Path(__file__).resolve().parents[1])
    arguments = parser.parse_args(argv)
    began = time.monotonic()
    pack, device = arguments.pack, arguments.device
    manifest = json.loads((pack / "manifest.json").read_text(encoding="utf-8"))
    if "jobs" not in manifest:
        print(f"{pack} is not complete: run make bench-gpu-pack again", file=sys.stderr)
        return 1
    probe = [sys.executable, "-m", f"{__package__}.jax_side", "--device", device]
    machine = run_job(probe, arguments.row_seconds)
    if machine.pop("state") != "done":
        print(
            f"JAX finds no {device} here ({machine['why']}): install JAX for CUDA, or try "
            "--device cpu --rows step_float32",
            file=sys.stderr,
        )
        return 1
    with tempfile.TemporaryDirectory() as site:
        for wheel in sorted((pack / "wheels").glob("*.whl")):
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(site)
        path = os.pathsep.join(filter(None, (os.environ.get("PYTHONPATH"), site)))

        def run(job: Mapping[str, Any], seconds: float) -> dict[str, Any]:
            # Carried wheels are only for the side that needs them.
            environment = {"PYTHONPATH": path} if job["side"] == "diffusers" else None
            command = [sys.executable, *command_of(job, manifest, pack, device)]
            return run_job(command, seconds, environment)

        run_all(
            list(jobs_of(manifest, arguments.rows)),
            run,
            head("pack", machine, manifest["made"]),
            arguments.out,
            seconds=arguments.seconds - (time.monotonic() - began),
            row_seconds=arguments.row_seconds,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
