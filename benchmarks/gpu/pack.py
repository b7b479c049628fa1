"""A folder with our computations, to run on a machine with a GPU but without TensorFlow.

`make bench-gpu-pack`. Rows with the same networks are traced in one process; at full size a row
takes one to two minutes of one core, and a process takes 8 GB of memory. An existing folder is
completed: rows made by the same code stay, so that stopping loses only the row being made. The
README.md in the folder says how to run it; `make bench-gpu-read` makes docs/gpu_speed.md from the
results.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu.rows import Row, chosen_rows
from benchmarks.gpu.stored import read_facts
from benchmarks.processes import ROOT, TENSORFLOW_ENVIRONMENT, measured
from components.code_version import code_version
from storage.user_errors import UserError
from trainer.presets import Preset, get_preset, preset_names

MOST_BYTES = 60_000_000
"""The largest size of a pack, which has to be carried."""

_CARRIED = Path(__file__).with_name("carried")
_MANIFEST = "manifest.json"
_ROW_FOLDERS = ("rows", "checks")
# Per process: not all memory of a graph is freed, which at full size is more than a gigabyte.
_MOST_ROWS = 4


def write_pack(
    folder: Path,
    preset: str,
    patterns: Sequence[str] = (),
    wheels: Sequence[Path] = (),
    *,
    with_checks: bool = True,
) -> int:
    """Writes a pack, or completes one.

    Args:
        folder: Folder to write to.
        preset: Preset of the rows.
        patterns: Names of rows; all rows if empty.
        wheels: Packages for the PyTorch side to carry along.
        with_checks: Whether to include the steps and drawing of the small model.

    Returns:
        Its size in bytes.

    Raises:
        UserError: A pattern matches no row, a wheel is not a wheel file, or the pack is too large
            to carry.
    """
    chosen = chosen_rows(preset, patterns)
    # Adds the rows whose operations are those that the model needs.
    rows = list(dict.fromkeys([*chosen, *(row.without_recomputing for row in chosen)]))
    for wheel in wheels:
        if wheel.suffix != ".whl" or not wheel.is_file():
            raise UserError(f"--wheels {wheel} is not a wheel: give files that end in .whl")
    code = code_version("benchmarks.gpu.tracing", "benchmarks.gpu.checks")
    folder.mkdir(parents=True, exist_ok=True)
    manifest = _manifest_there(folder, code)
    _write(folder, manifest)
    copy_carried(folder, wheels)
    if with_checks and not manifest["checks"]:
        print("checks: tracing, and computing on this CPU", flush=True)
        manifest["checks"] = _made("checks", str(folder / "checks"))
        _write(folder, manifest)
    missing = [row for row in rows if read_facts(folder / "rows", row.name) is None]
    for together in traced_together(missing):
        settings = [dataclasses.asdict(row) for row in together]
        _made("tracing", json.dumps(settings), str(folder / "rows"))
    _finish(folder, manifest, rows)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    if size > MOST_BYTES:
        raise UserError(
            f"the pack in {folder} has {size / 1e6:.0f} MB, but only {MOST_BYTES / 1e6:.0f} are "
            "allowed: choose fewer rows with --rows, or no --wheels, in a new folder"
        )
    return size


def traced_together(rows: Sequence[Row]) -> Iterator[list[Row]]:
    """The rows of each process, all from one group."""
    for group in dict.fromkeys(row.group for row in rows):
        of_group = [row for row in rows if row.group == group]
        for first in range(0, len(of_group), _MOST_ROWS):
            yield of_group[first : first + _MOST_ROWS]


def jobs_of(rows: Sequence[Row], checks: Sequence[str]) -> list[dict[str, Any]]:
    """The jobs of a runner, in order: each row, followed by diffusers' compiled.

    After the first row, diffusers' without `torch.compile` follows at once; for all others it comes
    at the end. The checks come between the first rows.
    """
    jobs: list[dict[str, Any]] = []
    for row in rows:
        jobs.append({"side": "ours", "name": row.name})
        jobs.append({"side": "diffusers", "name": row.name, "compiled": True})
    eager: list[dict[str, Any]] = [
        {"side": "diffusers", "name": row.name, "compiled": False} for row in rows
    ]
    jobs = [*jobs[:2], *eager[:1], *jobs[2:], *eager[1:]]
    for position, name in enumerate(checks):
        jobs.insert(3 + 3 * position, {"side": "check", "name": name})
    return jobs


def diffusers_networks(preset: Preset) -> dict[str, Any]:
    """Dimensions of a preset's diffusion model and autoencoder, for diffusers' classes."""
    unet, autoencoder = preset.diffusion_model, preset.decoder
    down = ["CrossAttnDownBlock2D" if x else "DownBlock2D" for x in unet.cross_attention]
    up = ["CrossAttnUpBlock2D" if x else "UpBlock2D" for x in reversed(unet.cross_attention)]
    levels = len(autoencoder.widths)
    return {
        "unet": {
            "block_out_channels": unet.widths,
            "down_block_types": down,
            "up_block_types": up,
            "layers_per_block": unet.num_blocks,
            "cross_attention_dim": preset.text_encoder.width,
            # In diffusers this name means the number of heads.
            "attention_head_dim": unet.num_heads,
            "norm_num_groups": unet.norm_groups,
            "use_linear_projection": unet.linear_projections,
        },
        "vae": {
            "block_out_channels": autoencoder.widths,
            "down_block_types": ["DownEncoderBlock2D"] * levels,
            "up_block_types": ["UpDecoderBlock2D"] * levels,
            "layers_per_block": preset.image_encoder.num_blocks,
            "norm_num_groups": autoencoder.norm_groups,
        },
    }


def finished(
    rows: Sequence[Row],
    traced: Mapping[str, Mapping[str, Any]],
    checks: Sequence[dict[str, Any]],
    presets: Sequence[Preset],
) -> dict[str, Any]:
    """The part of a manifest that a runner reads: rows with settings, checks, jobs and networks.

    Args:
        rows: Most telling first; for each row that recomputes, also the row that does not.
        traced: Results of `read_facts`, by the names of rows.
        checks: From `checks.make_checks`.
        presets: The presets of the rows.
    """
    return {
        # Operations that are repeated to save memory are not work that the model needs.
        "rows": [
            {**row.settings(), **traced[row.name], "flops": _model_flops(row, traced)}
            for row in rows
        ],
        "checks": list(checks),
        "jobs": jobs_of(rows, [check["name"] for check in checks]),
        "networks": {preset.name: diffusers_networks(preset) for preset in presets},
    }


def _model_flops(row: Row, traced: Mapping[str, Mapping[str, Any]]) -> int:
    flops: int = traced[row.without_recomputing.name]["flops"]
    return flops


def _manifest_there(folder: Path, code: str) -> dict[str, Any]:
    """The manifest in the folder, if this code began it; else an empty one.

    Raises:
        UserError: The folder contains something else.
    """
    path = folder / _MANIFEST
    empty = {"made": {"code": code}, "checks": []}
    if not any(folder.iterdir()):
        return empty
    try:
        manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        made_by = manifest["made"]["code"]
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(
            f"{folder} is neither empty nor a pack (it has no valid {_MANIFEST}): give another "
            "folder, or a new one"
        ) from None
    if made_by == code:
        return manifest
    for name in _ROW_FOLDERS:
        shutil.rmtree(folder / name, ignore_errors=True)
    return empty


def copy_carried(folder: Path, wheels: Sequence[Path]) -> None:
    """Copies the code that runs a pack into it."""
    for path in sorted(_CARRIED.iterdir()):
        if path.is_file():
            target = folder / _CARRIED.name if path.suffix == ".py" else folder
            target.mkdir(exist_ok=True)
            shutil.copy(path, target / path.name)
    if wheels:
        (folder / "wheels").mkdir(exist_ok=True)
    for wheel in wheels:
        shutil.copy(wheel, folder / "wheels" / wheel.name)


def _made(module: str, *flags: str) -> Any:
    environment = {**TENSORFLOW_ENVIRONMENT, "CUDA_VISIBLE_DEVICES": ""}
    return measured(f"benchmarks.gpu.{module}", *flags, environment=environment)


def _finish(folder: Path, manifest: dict[str, Any], rows: Sequence[Row]) -> None:
    presets = [get_preset(name) for name in dict.fromkeys(row.preset for row in rows)]
    kept = {name for row in rows for name in (f"{row.name}.hlo.xz", f"{row.name}.json.xz")}
    for path in (folder / "rows").iterdir():
        # From an earlier choice of rows.
        if path.name not in kept:
            path.unlink()
    traced = {row.name: _facts(folder, row) for row in rows}
    _write(folder, {**manifest, **finished(rows, traced, manifest["checks"], presets)})


def _facts(folder: Path, row: Row) -> dict[str, int]:
    facts = read_facts(folder / "rows", row.name)
    assert facts is not None, f"{row.name} was not traced"
    return facts


def _write(folder: Path, manifest: dict[str, Any]) -> None:
    partial = folder / f"{_MANIFEST}.partial"
    partial.write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    partial.replace(folder / _MANIFEST)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="make bench-gpu-pack", description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "gpu_pack")
    parser.add_argument("--preset", choices=preset_names(), default="sd-v1-4")
    parser.add_argument("--rows", nargs="*", default=[], help="names or patterns of rows")
    parser.add_argument("--wheels", nargs="*", type=Path, default=[], help="wheels to carry along")
    arguments = parser.parse_args(argv)
    try:
        size = write_pack(arguments.out, arguments.preset, arguments.rows, arguments.wheels)
    except UserError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{arguments.out} has {size / 1e6:.1f} MB: {arguments.out}/README.md says how to run it")
    return 0


if __name__ == "__main__":
    sys.exit(main())
