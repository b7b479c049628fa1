"""Speed of a GPU with TensorFlow itself, and with diffusers for comparison: `make bench-gpu`.

The rows are the same as in `make bench-gpu-pack`, whose computations tell how many operations a row
needs: a pack is made first, in runs/. Every measurement runs in its own process, one after another.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu.carried.run import command_of, head, jobs_of, run_all, run_job
from benchmarks.gpu.pack import write_pack
from benchmarks.gpu.page import page_of
from benchmarks.processes import ROOT, TENSORFLOW_ENVIRONMENT
from storage.user_errors import UserError
from trainer.presets import preset_names

_SIDE = ("-m", "benchmarks.gpu.tensorflow_side")


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="make bench-gpu", description=__doc__)
    parser.add_argument("--device", choices=("gpu", "cpu"), default="gpu")
    parser.add_argument("--preset", choices=preset_names(), default="sd-v1-4")
    parser.add_argument("--rows", nargs="*", default=[], help="names or patterns of rows")
    parser.add_argument("--torch-python", help="Python that has diffusers; without it, only ours")
    parser.add_argument("--seconds", type=float, default=6 * 3600.0, help="for all rows together")
    parser.add_argument("--row-seconds", type=float, default=900.0, help="for one row")
    parser.add_argument("--look", action="store_true", help="only check whether there is a GPU")
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "bench_gpu")
    parser.add_argument("--out", type=Path, help="docs/gpu_speed.md; for a CPU, in the folder")
    arguments = parser.parse_args(argv)
    machine = _run(_SIDE, arguments.row_seconds, arguments.device)
    if machine.pop("state") != "done":
        print(f"TensorFlow does not start: {machine['why']}", file=sys.stderr)
        return 1
    if machine["platform"] != arguments.device:
        print(
            "TensorFlow sees no GPU here: run make bench-gpu on a machine with a GPU, carry the "
            "folder of make bench-gpu-pack to one, or try --device cpu --preset tiny",
            file=sys.stderr,
        )
        return 1
    if arguments.look:
        return 0
    folder = arguments.folder.absolute()
    out = arguments.out or (ROOT / "docs" if arguments.device == "gpu" else folder) / "gpu_speed.md"
    # Not resolved: the Python of an environment is a link.
    torch_python = arguments.torch_python and Path(arguments.torch_python).absolute()
    pack = folder / "pack"
    try:
        # The checks are only for XLA, by JAX.
        write_pack(pack, arguments.preset, arguments.rows, with_checks=False)
    except UserError as error:
        print(error, file=sys.stderr)
        return 1
    manifest = json.loads((pack / "manifest.json").read_text(encoding="utf-8"))
    results = head("tensorflow", machine, manifest["made"])

    def run(job: Mapping[str, Any], seconds: float) -> dict[str, Any]:
        if job["side"] == "diffusers":
            command = command_of(job, manifest, pack, arguments.device)
            return run_job([str(torch_python), *command], seconds, folder=ROOT)
        return _ours(job, folder, seconds, arguments.device)

    sides = ("ours", "diffusers") if torch_python else ("ours",)
    jobs = [job for job in jobs_of(manifest, arguments.rows) if job["side"] in sides]
    run_all(
        jobs,
        run,
        results,
        folder / "results.json",
        seconds=arguments.seconds,
        row_seconds=arguments.row_seconds,
    )
    out.write_text(page_of(results), encoding="utf-8")
    print(out)
    return 0


def _ours(job: Mapping[str, Any], folder: Path, seconds: float, device: str) -> dict[str, Any]:
    flags = ["--row", json.dumps(job)]
    if job["kind"] == "drawing":
        models = folder / "models" / f"{job['preset']}_{job['image_size']}_{job['precision']}"
        flags += ["--models", str(models)]
        if not (models / "decoder").exists():
            exported = _run([*_SIDE, *flags, "--export"], seconds, "cpu")
            if exported["state"] != "done":
                return exported
    return _run([*_SIDE, *flags], seconds, device)


def _run(command: Sequence[str], seconds: float, device: str) -> dict[str, Any]:
    environment = dict(TENSORFLOW_ENVIRONMENT)
    if device == "cpu":
        environment["CUDA_VISIBLE_DEVICES"] = ""
    return run_job([sys.executable, *command], seconds, environment, ROOT)


if __name__ == "__main__":
    sys.exit(main())
