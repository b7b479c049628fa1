"""Pictures from the SavedModels compared with other ways to draw: `make bench-serving`.

KerasCV's generator, a published notebook's export and diffusers in PyTorch, in float32 and
bfloat16, have the same networks, with the same weights if available, and draw the same prompt in
the same number of steps: the first two with `ddim`, their only sampler, diffusers with `dpmpp_2m`.
Every measurement runs in its own process. The ways run one after another and the whole round is
repeated, so that a machine with varying speed treats them alike; the table has the best round of
each way. At full width it needs 12 GB of memory, and leaves 10 GB in runs/.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.processes import ROOT, TENSORFLOW_ENVIRONMENT, measured


class _Way(NamedTuple):
    """A way to draw.

    Attributes:
        module: The module that draws this way.
        beside: Our way with the same sampler in the same type.
        flags: Flags of the module, besides those of all modules.
        in_torch: Whether it runs in the environment of PyTorch.
    """

    module: str
    beside: str
    flags: tuple[str, ...] = ()
    in_torch: bool = False


_DDIM, _DPM, _DPM_16 = "ours, ddim", "ours, dpmpp_2m", "ours, dpmpp_2m, bfloat16"
_WAYS = {
    _DDIM: _Way("ours", _DDIM, ("ours", "ddim")),
    "keras_cv text_to_image": _Way("keras_cv_loop", _DDIM),
    "notebook's export": _Way("notebook", _DDIM),
    _DPM: _Way("ours", _DPM, ("ours", "dpmpp_2m")),
    "diffusers, dpmpp_2m": _Way("diffusers_loop", _DPM, ("float32",), in_torch=True),
    _DPM_16: _Way("ours", _DPM_16, ("ours_bfloat16", "dpmpp_2m")),
    "diffusers, dpmpp_2m, bfloat16": _Way("diffusers_loop", _DPM_16, ("bfloat16",), in_torch=True),
}
_SIZES = {"tiny": 128, "sd-v1-4": 128}


def main() -> None:
    """The command line; see its help."""
    parser = argparse.ArgumentParser(prog="make bench-serving", description=__doc__)
    parser.add_argument("--presets", nargs="+", choices=_SIZES, default=list(_SIZES))
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument(
        "--torch-python", help="Python that has diffusers; without it, diffusers is left out"
    )
    parser.add_argument("--no-bfloat16", action="store_true", help="only float32")
    parser.add_argument("--models", default=str(ROOT / "runs" / "bench_serving"))
    parser.add_argument("--out", default=str(ROOT / "docs" / "serving_speed.md"))
    arguments = parser.parse_args()
    python = arguments.torch_python and str(Path(arguments.torch_python).absolute())
    ways = {
        name: way
        for name, way in _WAYS.items()
        if (python or not way.in_torch) and not (arguments.no_bfloat16 and way.beside == _DPM_16)
    }
    tables = {}
    for preset in arguments.presets:
        folder = Path(arguments.models, preset)
        if not (folder / "done").exists():
            _run(_Way("models", ""), preset, folder, 0)
        tables[preset] = _measure(ways, preset, folder, arguments.rounds, python)
    page = _page(tables, arguments.rounds)
    Path(arguments.out).write_text(page, encoding="utf-8")
    print(page)


def _measure(
    ways: Mapping[str, _Way], preset: str, folder: Path, rounds: int, python: str | None
) -> dict[str, dict[str, Any]]:
    best: dict[str, dict[str, Any]] = {}
    pictures = 5 if preset == "tiny" else 1
    for _ in range(rounds):
        for name, way in ways.items():
            result = _run(way, preset, folder, pictures, python)
            print(f"{preset}, {name}: {result}", flush=True)
            if name not in best or result["one_seconds"] < best[name]["one_seconds"]:
                best[name] = result
    return best


def _run(
    way: _Way, preset: str, folder: Path, pictures: int, python: str | None = None
) -> dict[str, Any]:
    flags = (preset, str(_SIZES[preset]), str(folder), str(pictures), *way.flags)
    return measured(
        f"benchmarks.serving.{way.module}",
        *flags,
        python=python if way.in_torch and python else sys.executable,
        environment=TENSORFLOW_ENVIRONMENT,
    )


def _page(tables: Mapping[str, Mapping[str, Mapping[str, Any]]], rounds: int) -> str:
    lines = [
        "# Drawing a picture: speed and memory",
        "",
        "`make bench-serving` wrote this page: 20 steps, guidance 7.5, float32 unless stated "
        f"otherwise, on the same two cores; the best of {rounds} rounds, in",
        "each of which the ways ran one after the other. The networks and their weights are the "
        "same: the shipped ones for `tiny`,",
        "random ones for `sd-v1-4`, and for diffusers different ones of the same shapes. KerasCV's "
        "generator runs without XLA, which is slower on a CPU. The notebook's export",
        "(as in keras-sd-serving: three SavedModels, tokens in, two calls of the diffusion model "
        "per step) is rebuilt here. Both have only `ddim`;",
        "diffusers draws with `dpmpp_2m`. Each is compared with ours with the same sampler, steps "
        "and type, so that the pictures are equally good.",
        "Ours is loaded and called like the client of a folder, which gives each operation of a "
        "small model one thread;",
        "the others keep TensorFlow's own choice. Times are from text to pixels; "
        "`benchmarks/serving/` has all of them.",
    ]
    for preset, best in tables.items():
        size = _SIZES[preset]
        lines += [
            "",
            f"## {preset}, {size} x {size}",
            "",
            "| way | one picture, s | ours is faster by | four at once, s | ours is faster by | "
            "four / one | loading, s | first picture, s | peak memory, MB |",
            "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
            *(_line(name, result, best[_WAYS[name].beside]) for name, result in best.items()),
        ]
    lines += [
        "",
        "Loading is the time from imported libraries to models that can be called; for KerasCV it "
        "is building the",
        "networks and reading their weights.",
        "",
    ]
    return "\n".join(lines)


def _line(name: str, result: Mapping[str, Any], ours: Mapping[str, Any]) -> str:
    one, four = result["one_seconds"], result["four_seconds"]
    return (
        f"| {name} | {one:.2f} | {one / ours['one_seconds']:.2f} | {four:.2f} | "
        f"{four / ours['four_seconds']:.2f} | {four / one:.1f} | {result['load_seconds']:.1f} | "
        f"{result['first_seconds']:.1f} | {result['peak_mb']:,.0f} |"
    )


if __name__ == "__main__":
    main()
