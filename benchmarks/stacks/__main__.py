"""The current stack compared with the old one, on one machine in one go: `make bench-stacks`.

Every measurement runs in its own process. The stacks take turns and the whole round is repeated, so
that a machine with varying speed treats them alike; the table has the best round of each stack. A
full-size training step needs 22 GB of memory, and the machine to itself.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from benchmarks.ingest.pictures import write_dataset
from benchmarks.processes import ROOT, TENSORFLOW_ENVIRONMENT, measured

_CURRENT, _OLD = "TFX 1.21", "TFX 1.16"
_HEADING = "## Speed\n"
_PICTURES = 10_000


def main() -> None:
    """The command line; see its help."""
    parser = argparse.ArgumentParser(prog="make bench-stacks", description=__doc__)
    parser.add_argument("--old-python", required=True, help="Python of an old stack's environment")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--page", default=str(ROOT / "docs" / "stacks.md"))
    arguments = parser.parse_args()
    pythons = {_CURRENT: sys.executable, _OLD: arguments.old_python}
    with tempfile.TemporaryDirectory() as folder:
        dataset = str(Path(folder, "pictures"))
        write_dataset(dataset, _PICTURES)
        work: dict[str, Callable[[str], float]] = {
            "default run, s": lambda python: _run(python, folder),
            f"ingest of {_PICTURES:,} pictures, s": lambda python: _ingest(python, dataset),
            "training step of `sd-v1-4`, s": _step,
            "picture of `tiny`, s": lambda python: _picture(python, folder),
        }
        best: dict[str, dict[str, float]] = {}
        for name, measure in work.items():
            for _ in range(arguments.rounds):
                for stack, python in pythons.items():
                    seconds = measure(python)
                    print(f"{name}, {stack}: {seconds:.3f}", flush=True)
                    times = best.setdefault(name, {})
                    times[stack] = min(seconds, times.get(stack, seconds))
    table = _table(best, arguments.rounds)
    page = Path(arguments.page)
    before, _, rest = page.read_text(encoding="utf-8").partition(_HEADING)
    after = rest[rest.find("\n## ") + 1 :] if "\n## " in rest else ""
    page.write_text(f"{before}{_HEADING}\n{table}\n{after}", encoding="utf-8")
    print(table)


def _run(python: str, folder: str) -> float:
    """The whole default run in a new output folder, including all imports."""
    with tempfile.TemporaryDirectory(dir=folder) as output:
        since = time.monotonic()
        command = [python, "runner_local.py", "--output", output]
        subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        return time.monotonic() - since


def _ingest(python: str, dataset: str) -> float:
    flags = (dataset, "--workers", "1")
    return float(measured("benchmarks.ingest.ours", *flags, python=python)["seconds"])


def _step(python: str) -> float:
    environment = TENSORFLOW_ENVIRONMENT
    result = measured("benchmarks.train.ours", python=python, environment=environment)
    return float(result["step_seconds"])


def _picture(python: str, folder: str) -> float:
    """One picture from models that the same stack exported."""
    models = Path(folder, f"models-{Path(python).parts[-3]}")

    def call(module: str, pictures: int) -> Mapping[str, float]:
        flags = ("tiny", "128", str(models), str(pictures))
        environment = TENSORFLOW_ENVIRONMENT
        return measured(
            f"benchmarks.serving.{module}", *flags, python=python, environment=environment
        )

    if not (models / "done").exists():
        call("models", 0)
    return call("ours", 20)["one_seconds"]


def _table(best: Mapping[str, Mapping[str, float]], rounds: int) -> str:
    return "\n".join(
        [
            "Measured by `make bench-stacks`, both on the same two cores in one go; the best of "
            f"{rounds} rounds, in each of which the stacks took turns.",
            "",
            f"| | {_CURRENT} | {_OLD} | current / old |",
            "| --- | ---: | ---: | ---: |",
            *(
                f"| {name} | {t[_CURRENT]:.3g} | {t[_OLD]:.3g} | {t[_CURRENT] / t[_OLD]:.2f} |"
                for name, t in best.items()
            ),
            "",
        ]
    )


if __name__ == "__main__":
    main()
