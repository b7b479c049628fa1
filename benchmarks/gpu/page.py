"""Writes docs/gpu_speed.md from the JSON of a run on a card: `make bench-gpu-read FILE=...`.

Without a file, writes the page of a project that no card has run.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu.carried.cards import Card, card_of
from benchmarks.processes import ROOT
from storage.user_errors import UserError

FORMAT = 1

Result = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Aim:
    """A target for our rows.

    Attributes:
        text: The aim, in words.
        device: Pattern of the cards that it is for.
        rows: Pattern of the names of the rows that it is about; the best of them counts.
        measure: The value of a row that is compared with the limit.
        limit: The value to reach.
        at_least: Whether the limit is the least or the most.
        unit: Unit of both values.
    """

    text: str
    device: str
    rows: str
    measure: str
    limit: float
    at_least: bool
    unit: str


_FULL = r"_training_full_512px_batch\d+_bfloat16(_checkpointing)?$"
_DRAWN = r"_drawing_512px_batch1_"
AIMS = (
    Aim("full training", "A100", _FULL, "pictures_per_second", 36, True, "pictures/s"),
    Aim("full training", "H100", _FULL, "pictures_per_second", 60, True, "pictures/s"),
    Aim(
        "a step of adapters of rank 16, batch 1",
        "H100",
        r"_training_rank16_512px_batch1_bfloat16$",
        "seconds",
        0.18,
        False,
        "s",
    ),
    Aim("25 steps of one picture", "A100", _DRAWN, "seconds", 0.53, False, "s"),
    Aim("25 steps of one picture", "H100", _DRAWN, "seconds", 0.35, False, "s"),
    Aim("memory of full training", "", _FULL, "peak_bytes", 20e9, False, "GB"),
    Aim(
        "memory of adapters with checkpointing",
        "",
        r"_training_rank16_512px_batch\d+_bfloat16_checkpointing$",
        "peak_bytes",
        7e9,
        False,
        "GB",
    ),
)
"""Aims for 512 px; the page says where they come from."""

_INTRODUCTION = (
    "Training steps take cached latents and contexts, and include everything from the batch to the "
    "updated weights: also AdamW,",
    "clipping and the moving average. Drawing is 25 steps with guidance and the decoder, from "
    "contexts to pixels.",
    "Share of peak: the operations that the model needs (matrix products and convolutions of the "
    "graph, a multiplication and an",
    "addition as two, without what checkpointing computes again), compared with the data sheet's "
    "figure for dense matrices: in 16 bits,",
    "or TF32 for float32, as XLA and, here, PyTorch multiply it. Drawing in 16 bits has weights "
    "and arithmetic in 16 bits,",
    "on our side (`model.compute`, `model.export_weights`) except what has to stay float32.",
    "diffusers' side has the same networks in PyTorch: fused AdamW, channels last, autocast, and "
    "also a moving average.",
)
_HOW = (
    "## How it is measured",
    "",
    "<!-- not run here: a GPU -->",
    "```sh",
    "make bench-gpu                          # on a machine with a GPU and this project's "
    "environment: by TensorFlow itself",
    "make bench-gpu-pack OUT=gpu_pack        # on any machine: a folder to carry to one that has a "
    "GPU, JAX and PyTorch",
    "sh gpu_pack/run.sh                      # there: takes at most ten minutes, leaves "
    "results.json",
    "make bench-gpu-read FILE=results.json   # here: writes this page",
    "```",
    "",
    "The folder holds what TensorFlow has XLA compile for a GPU, as files without weights; JAX "
    "hands them to the same compiler.",
    "It also holds steps and drawing of `tiny` with the results of TensorFlow's own kernels on a "
    "CPU, which the card's results are compared with.",
    "`make bench-gpu ARGS=\"--device cpu --preset tiny --rows '*_64px_batch1_float32'\"` and "
    "`sh gpu_pack/run.sh --device cpu --rows step_float32`",
    "try both in small. All sixty rows took 72 minutes of one core, in processes of at most 8.0 "
    "GB, and 47 MB on disk. `ARGS=\"--rows '*_512px_batch4_*'\"` takes only those rows.",
    "The same command continues a pack that was stopped, after the last finished row.",
    "",
)


def page_without_results() -> str:
    """The page while no card has run it."""
    return "\n".join(
        [
            "# Training and drawing on a GPU",
            "",
            "**No card has run this so far**, so the page has no numbers of one, not even "
            "estimates. The commands below write this page on, or from, a machine with a GPU.",
            "Tests ran both on a CPU and in small: `make bench-gpu`, and the script of the pack by "
            "JAX, compared with TensorFlow (`make bench-gpu-check`).",
            "",
            *_INTRODUCTION,
            "",
            *_HOW,
            *_aims([], ""),
        ]
    )


def page_of(results: Mapping[str, Any]) -> str:
    """The page with the results of a run."""
    machine, rows = results["machine"], results["rows"]
    device = str(machine["device"])
    software = ", ".join(f"{name} {version}" for name, version in machine["software"].items())
    peak = _peak(card_of(device))
    by = {
        "pack": "the pack's computations, which JAX handed to XLA",
        "tensorflow": "TensorFlow itself",
    }[results["by"]]
    on_card = machine["platform"] != "cpu"
    done = [row for row in rows if row["state"] == "done"]
    lines = ["# Training and drawing on a GPU", ""]
    if not on_card:
        lines += ["**No card has run this**: a CPU did, to try the commands.", ""]
    lines += [
        f"Measured on {device} ({software}; {results['began']}) by {by}. {peak}",
        "",
        *_INTRODUCTION,
        "",
        *_table(done),
        *_not_done([*rows, *results["checks"]]),
        *_beside(done),
        *_aims(done, device),
        *_operations(done),
        *_checks(results["checks"]),
        *_HOW,
    ]
    return "\n".join(lines)


def _peak(card: Card | None) -> str:
    if card is None:
        return (
            "It is not in the table of cards (benchmarks/gpu/carried/cards.py), so there is no "
            "share of peak."
        )
    in_bfloat16 = "" if card.bfloat16 else "; without units for bfloat16, no share of peak for that"
    return (
        f"Its peak is {card.float16:g} TFLOP/s in 16 bits and {card.float32:g} in float32 "
        f"({card.source}){in_bfloat16}."
    )


def _label(row: Result) -> str:
    if row["side"] == "diffusers":
        return "diffusers, compiled" if row["compiled"] else "diffusers"
    return "ours"


def _gigabytes(size: float | None) -> str:
    return "" if not size else f"{size / 1e9:.1f}"


def _table(rows: Sequence[Result]) -> list[str]:
    if not rows:
        return []
    return [
        "## Rows",
        "",
        "| row | by | pictures/s | s | share of peak | peak memory, GB | XLA planned | "
        "our estimate | to compile, s |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
        *(
            f"| {row['name']} | {_label(row)} | {row['pictures_per_second']:.2f} | "
            f"{row['seconds']:.4g} | {_percent(row['peak_share'])} | "
            f"{_gigabytes(row['peak_bytes'])} | {_gigabytes(row.get('planned_bytes'))} | "
            f"{_gigabytes(row['estimate_bytes']) if row['side'] == 'ours' else ''} | "
            f"{row['compile_seconds']:.0f} |"
            for row in sorted(rows, key=lambda row: row["name"])
        ),
        "",
        *(
            f"{row['name']}: its results were not finite, so its speed says nothing."
            for row in rows
            if row.get("finite") is False
        ),
    ]


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f} %"


def _not_done(entries: Sequence[Result]) -> list[str]:
    left = [entry for entry in entries if entry["state"] != "done"]
    if not left:
        return []
    return [
        "Not measured:",
        "",
        "| row | by | why |",
        "| --- | --- | --- |",
        *(
            f"| {entry['name']} | {_label(entry)} | {entry['state']}: "
            f"{entry['why'].replace('|', '/')} |"
            for entry in left
        ),
        "",
    ]


def _beside(rows: Sequence[Result]) -> list[str]:
    """Ours against diffusers with `torch.compile`, if both were measured."""
    ours = {row["name"]: row for row in rows if row["side"] == "ours"}
    pairs = [
        (ours[row["name"]], row)
        for row in rows
        if row["side"] == "diffusers" and row["compiled"] and row["name"] in ours
    ]
    if not pairs:
        return []
    return [
        "Against diffusers with `torch.compile`; ours should not be slower:",
        "",
        "| row | diffusers' time / ours | |",
        "| --- | ---: | --- |",
        *(
            f"| {mine['name']} | {theirs['seconds'] / mine['seconds']:.2f} | "
            f"{'met' if theirs['seconds'] >= mine['seconds'] else '**missed**'} |"
            for mine, theirs in pairs
        ),
        "",
    ]


def _aims(rows: Sequence[Result], device: str) -> list[str]:
    return [
        "## Aims",
        "",
        "512 px, bfloat16, `sd-v1-4`. MosaicML reports 36 pictures per second for Stable Diffusion "
        "2 on an A100, SimpleTuner",
        "0.18 s for a step of adapters on an H100.",
        "",
        "| aim | card | should be | is | |",
        "| --- | --- | ---: | ---: | --- |",
        *(_aim_line(aim, rows, device) for aim in AIMS),
        "",
    ]


def _aim_line(aim: Aim, rows: Sequence[Result], device: str) -> str:
    scale = 1e-9 if aim.unit == "GB" else 1.0
    bound = f"{'at least' if aim.at_least else 'at most'} {aim.limit * scale:g} {aim.unit}"
    best: Callable[..., float] = max if aim.at_least else min
    values = [
        row[aim.measure]
        for row in rows
        if row["side"] == "ours" and row["preset"] == "sd-v1-4" and re.search(aim.rows, row["name"])
    ]
    is_value, verdict = "", "not measured"
    if device and not re.search(aim.device, device):
        verdict = "for another card"
    elif values:
        value = best(values)
        met = value >= aim.limit if aim.at_least else value <= aim.limit
        is_value = f"{value * scale:.3g} {aim.unit}"
        verdict = "met" if met else "**missed**"
    return f"| {aim.text} | {aim.device or 'any'} | {bound} | {is_value} | {verdict} |"


def _operations(rows: Sequence[Result]) -> list[str]:
    profiled = [row for row in rows if row.get("operations")]
    if not profiled:
        return []
    lines = [
        "## Where the time goes",
        "",
        "The five most expensive operations, similar layers taken together (without their "
        "numbers), by the time of their kernels. A kernel of",
        "several fused operations counts for the last of them.",
        "",
    ]
    for row in profiled:
        lines += [
            f"### {row['name']}",
            "",
            "| operation | share | ms | kernels |",
            "| --- | ---: | ---: | ---: |",
            *(
                f"| `{o['operation']}` | {_percent(o['share'])} | {1e3 * o['seconds']:.2f} | "
                f"{o['kernels']:.0f} |"
                for o in row["operations"]
            ),
            "",
        ]
    return lines


def _checks(checks: Sequence[Result]) -> list[str]:
    done = [check for check in checks if check["state"] == "done"]
    if not done:
        return []
    steps = [check for check in done if check["kind"] == "training"]
    drawings = [check for check in done if check["kind"] == "drawing"]
    lines = ["## Against a CPU", ""]
    if steps:
        lines += [
            "The loss of each step of `tiny`, with the same inputs, against TensorFlow's kernels "
            "on a CPU; and how far it falls, from the mean",
            "of the first ten steps to the mean of the last ten.",
            "",
            "| precision | off at step 1 | at step 10 | at the last | at most | falls by | on the "
            "CPU |",
            "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
            *(
                f"| {check['precision']} | "
                + " | ".join(
                    f"{off:.1e}"
                    for d in [check["deviations"]]
                    for off in (d[0], d[min(9, len(d) - 1)], d[-1], max(d))
                )
                + f" | {_percent(check['fall'])} | {_percent(check['expected_fall'])} |"
                for check in steps
            ),
            "",
        ]
    if drawings:
        lines += [
            "A picture of `tiny`: latents off by the norm of the difference over the norm, pixels "
            "by levels of 255.",
            "",
            "| precision | latent | pixels, mean | at most |",
            "| --- | ---: | ---: | ---: |",
            *(
                f"| {check['precision']} | {check['latent_deviation']:.1e} | "
                f"{check['mean_pixel_deviation']:.3f} | {check['largest_pixel_deviation']:.0f} |"
                for check in drawings
            ),
            "",
        ]
    return lines


def read_results(path: Path) -> dict[str, Any]:
    """The results of a run.

    Raises:
        UserError: The file does not hold results.
    """
    try:
        results: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if results["format"] != FORMAT:
            raise KeyError("format")
        for key in ("machine", "rows", "checks", "by", "began"):
            results[key]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} is not a result of a pack's run.sh or of make bench-gpu ({error!r}): give "
            "their results.json, from this version of the project"
        ) from None
    return results


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="make bench-gpu-read", description=__doc__)
    parser.add_argument("--file", type=Path, help="results.json; by default, no results")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "gpu_speed.md")
    arguments = parser.parse_args(argv)
    try:
        page = page_of(read_results(arguments.file)) if arguments.file else page_without_results()
    except UserError as error:
        print(error, file=sys.stderr)
        return 1
    arguments.out.write_text(page, encoding="utf-8")
    print(arguments.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
