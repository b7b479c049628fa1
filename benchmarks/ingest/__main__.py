"""Ingest speed and memory, beside a plain loop: `make bench-ingest`.

Every measurement is a process of its own. For each size the ways follow one another and the whole
round is repeated, so that a machine whose speed varies treats them alike; the table has each way's
best round and its ratio to the loop's best.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.ingest.pictures import write_dataset
from benchmarks.processes import ROOT, measured

_LOOP = "loop, pictures decoded"


def main() -> None:
    """The command line; see its help."""
    parser = argparse.ArgumentParser(prog="make bench-ingest", description=__doc__)
    parser.add_argument("--loop-python", required=True, help="Python that has `datasets`")
    parser.add_argument("--sizes", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--out", default=str(ROOT / "docs" / "ingest_speed.md"))
    arguments = parser.parse_args()
    ways = {
        _LOOP: (arguments.loop_python, "datasets_loop", "--pictures", "decoded"),
        "loop, bytes as they are": (arguments.loop_python, "datasets_loop", "--pictures", "bytes"),
        "CaptionExampleGen, 1 worker": (sys.executable, "ours", "--workers", "1"),
        "CaptionExampleGen, 2 workers": (sys.executable, "ours", "--workers", "2"),
    }
    lines = []
    for size in arguments.sizes:
        with tempfile.TemporaryDirectory() as folder:
            dataset = str(Path(folder, "pictures"))
            megabytes = write_dataset(dataset, size) / 1e6
            best: dict[str, dict[str, Any]] = {}
            for _ in range(arguments.rounds):
                for name, way in ways.items():
                    result = _measure(way, dataset, size)
                    print(f"{size:,} pictures, {name}: {result}", flush=True)
                    if name not in best or result["seconds"] < best[name]["seconds"]:
                        best[name] = result
            shutil.rmtree(dataset)
        for name, result in best.items():
            rate = size / result["seconds"]
            ratio = best[_LOOP]["seconds"] / result["seconds"]
            lines.append(
                f"| {size:,} ({megabytes:,.0f} MB) | {name} | {rate:,.0f} | {ratio:.2f} | "
                f"{result['peak_mb']:,.0f} |"
            )
    Path(arguments.out).write_text(_page(lines, arguments.rounds), encoding="utf-8")
    print("\n".join(lines))


def _measure(way: Sequence[str], dataset: str, size: int) -> dict[str, Any]:
    python, module, *flags = way
    result = measured(f"benchmarks.ingest.{module}", dataset, *flags, python=python)
    if result["pictures"] != size:
        raise RuntimeError(f"{module} wrote {result['pictures']} of {size} pictures")
    return result


def _page(lines: Sequence[str], rounds: int) -> str:
    return "\n".join(
        [
            "# Ingest: speed and memory",
            "",
            "`make bench-ingest` wrote this page: generated 256 px JPEGs in Parquet files, read, "
            "checked and",
            f"written as TFRecords; the best of {rounds} rounds, in each of which the ways ran one "
            "after the other on",
            "the same two cores. The time is that of the work, without imports of the process that "
            "is measured, but with",
            "the start of the processes that two workers have at their side; memory is the sum of "
            "all their peaks, with",
            "TensorFlow (and for CaptionExampleGen TFX and Beam) in it.",
            "",
            "The loop is a plain one: `datasets` streams the rows, `tf.io.TFRecordWriter` writes "
            "them, uncompressed, in one",
            "thread. It decodes each picture or does not look at it at all, and that is its whole "
            "check; CaptionExampleGen",
            "decodes, judges, hashes, counts tokens, splits, finds exact duplicates and sorts.",
            "",
            "| pictures | way | pictures/s | times the loop | peak memory, MB |",
            "| --- | --- | ---: | ---: | ---: |",
            *lines,
            "",
        ]
    )


if __name__ == "__main__":
    main()
