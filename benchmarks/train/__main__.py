"""Our training step at full size compared with others: `make bench-train`.

Every measurement runs in its own process. The ways run one after another and the whole round is
repeated, so that a machine with varying speed treats them alike; the table has the best round of
each way. Needs 22 GB of memory, and the machine to itself.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.processes import ROOT, TENSORFLOW_ENVIRONMENT, measured

_OURS = "ours"


def main() -> None:
    """The command line; see its help."""
    parser = argparse.ArgumentParser(prog="make bench-train", description=__doc__)
    parser.add_argument("--torch-python", required=True, help="Python that has diffusers")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--out", default=str(ROOT / "docs" / "training_speed.md"))
    arguments = parser.parse_args()
    ours = (sys.executable, "ours")
    ways: dict[str, Sequence[str]] = {
        _OURS: ours,
        "Keras example": (sys.executable, "keras_example"),
        "diffusers": (arguments.torch_python, "diffusers_loop"),
        "diffusers, fused AdamW": (arguments.torch_python, "diffusers_loop", "--fused"),
    }
    best: dict[str, dict[str, Any]] = {}
    for _ in range(arguments.rounds):
        for name, way in ways.items():
            result = _measure(way)
            print(f"{name}: {result}", flush=True)
            if name not in best or result["step_seconds"] < best[name]["step_seconds"]:
                best[name] = result
    # Only adapters leave memory for larger batches and pictures; the network is the same.
    adapters = (*ours, "--lora-rank", "4", "--gradient-checkpointing")
    cost = {
        f"{size} x {size}, batch {batch}": _measure(
            (*adapters, "--image-size", str(size), "--batch-size", str(batch))
        )
        for size, batch in ((256, 1), (256, 4), (512, 1))
    }
    page = _page(best, cost, arguments.rounds)
    Path(arguments.out).write_text(page, encoding="utf-8")
    print(page)


def _measure(way: Sequence[str]) -> dict[str, Any]:
    python, module, *flags = way
    return measured(
        f"benchmarks.train.{module}", *flags, python=python, environment=TENSORFLOW_ENVIRONMENT
    )


def _page(
    best: Mapping[str, Mapping[str, Any]], cost: Mapping[str, Mapping[str, Any]], rounds: int
) -> str:
    ours = best[_OURS]["step_seconds"]
    return "\n".join(
        [
            "# A training step at full size: speed and memory",
            "",
            "`make bench-train` wrote this page: the diffusion model of `sd-v1-4` (859,520,964 "
            "parameters), 256 x 256, batch 1,",
            f"float32, on the same two cores; the best of {rounds} rounds, in each of which the "
            "ways ran one after the other. A",
            "step is everything from the batch to the updated weights, including AdamW and "
            "clipping, and for ours also the moving",
            "average. Ours and diffusers' take cached latents and contexts; the Keras example runs "
            "both encoders in",
            "the step, as published, with KerasCV's own networks (on Keras 3: `benchmarks/train/` "
            "has all loops). diffusers'",
            "script uses PyTorch's default AdamW; the last line has the fused one instead.",
            "",
            "| way | s a step | ours is faster by | forward pass, s | step / forward | graph, s | "
            "first step after, s | peak memory, MB |",
            "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
            *(
                f"| {name} | {r['step_seconds']:.2f} | {r['step_seconds'] / ours:.2f} | "
                f"{r['forward_seconds']:.2f} | {r['step_seconds'] / r['forward_seconds']:.1f} | "
                f"{r['build_seconds']:.0f} | {r['first_step_seconds']:.0f} | {r['peak_mb']:,.0f} |"
                for name, r in best.items()
            ),
            "",
            "`graph` is the time to build the network, including random weights, and to trace the "
            "step.",
            "",
            "How the cost grows, with adapters of rank 4 and gradient checkpointing, which leave "
            "memory for it:",
            "",
            "| pictures | s a step | s a picture | peak memory, MB |",
            "| --- | ---: | ---: | ---: |",
            *(
                f"| {name} | {r['step_seconds']:.2f} | "
                f"{r['step_seconds'] / int(name.split()[-1]):.2f} | {r['peak_mb']:,.0f} |"
                for name, r in cost.items()
            ),
            "",
        ]
    )


if __name__ == "__main__":
    main()
