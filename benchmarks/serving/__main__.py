"""Pictures from the SavedModels beside KerasCV's and a published notebook's: `make bench-serving`.

All three have the same networks with the same weights, and draw the same prompt in the same number
of steps. Every measurement is a process of its own. The ways follow one another and the whole
round is repeated, so that a machine whose speed varies treats them alike; the table has each
way's best round. At full width it needs 12 GB of memory, and leaves 8 GB in runs/.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.processes import ROOT, TENSORFLOW_ENVIRONMENT, measured

_OURS, _KERAS_CV, _NOTEBOOK = "ours", "keras_cv text_to_image", "notebook's export"
_WAYS = {_OURS: "ours", _KERAS_CV: "keras_cv_loop", _NOTEBOOK: "notebook"}
_SIZES = {"tiny": 128, "sd-v1-4": 128}


def main() -> None:
    """The command line; see its help."""
    parser = argparse.ArgumentParser(prog="make bench-serving", description=__doc__)
    parser.add_argument("--presets", nargs="+", choices=_SIZES, default=list(_SIZES))
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--models", default=str(ROOT / "runs" / "bench_serving"))
    parser.add_argument("--out", default=str(ROOT / "docs" / "serving_speed.md"))
    arguments = parser.parse_args()
    tables = {}
    for preset in arguments.presets:
        folder = Path(arguments.models, preset)
        if not (folder / "done").exists():
            _run("models", preset, folder, 0)
        tables[preset] = _measure(preset, folder, arguments.rounds)
    page = _page(tables, arguments.rounds)
    Path(arguments.out).write_text(page, encoding="utf-8")
    print(page)


def _measure(preset: str, folder: Path, rounds: int) -> dict[str, dict[str, Any]]:
    best: dict[str, dict[str, Any]] = {}
    pictures = 5 if preset == "tiny" else 1
    for _ in range(rounds):
        for name, module in _WAYS.items():
            result = _run(module, preset, folder, pictures)
            print(f"{preset}, {name}: {result}", flush=True)
            if name not in best or result["one_seconds"] < best[name]["one_seconds"]:
                best[name] = result
    return best


def _run(module: str, preset: str, folder: Path, pictures: int) -> dict[str, Any]:
    flags = (preset, str(_SIZES[preset]), str(folder), str(pictures))
    return measured(f"benchmarks.serving.{module}", *flags, environment=TENSORFLOW_ENVIRONMENT)


def _page(tables: Mapping[str, Mapping[str, Mapping[str, Any]]], rounds: int) -> str:
    lines = [
        "# Drawing a picture: speed and memory",
        "",
        "`make bench-serving` wrote this page: 20 steps, guidance 7.5, float32, on the same two "
        f"cores; the best of {rounds} rounds, in",
        "each of which the ways ran one after the other. The networks and their weights are the "
        "same: the shipped ones of `tiny`,",
        "random ones of `sd-v1-4`. KerasCV's generator runs without XLA, which makes it slower "
        "on a CPU. The notebook's export",
        "(keras-sd-serving's way: three SavedModels, tokens in, two calls of the diffusion model "
        "a step) is rebuilt here.",
        "Ours is loaded and called as the client of a folder does it, which gives an operation of "
        "a small model one thread;",
        "the others have TensorFlow's own choice. Times are from text to pixels; "
        "`benchmarks/serving/` has all three.",
    ]
    for preset, best in tables.items():
        ours = best[_OURS]["one_seconds"]
        size = _SIZES[preset]
        lines += [
            "",
            f"## {preset}, {size} x {size}",
            "",
            "| way | one picture, s | ours is faster by | four at once, s | four / one | "
            "loading, s | first picture, s | peak memory, MB |",
            "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
            *(
                f"| {name} | {r['one_seconds']:.2f} | {r['one_seconds'] / ours:.2f} | "
                f"{r['four_seconds']:.2f} | {r['four_seconds'] / r['one_seconds']:.1f} | "
                f"{r['load_seconds']:.1f} | {r['first_seconds']:.1f} | {r['peak_mb']:,.0f} |"
                for name, r in best.items()
            ),
        ]
    lines += [
        "",
        "Loading is from a process that has imported its libraries to models that can be called; "
        "KerasCV's is building the",
        "networks and reading their weights.",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
