"""A small pack, run by JAX on its CPU, against what TensorFlow's kernels compute.

JAX is in an environment of its own, which `make bench-gpu-check` makes.
"""

from __future__ import annotations

import json
import os
import subprocess
from typing import Any

import pytest
import small_runs

from benchmarks.gpu import checks, pack, tracing
from benchmarks.gpu.rows import Row
from benchmarks.gpu.stored import read_facts, write_traced
from benchmarks.processes import ROOT

JAX_PYTHON = ROOT / ".venv-jax" / "bin" / "python"
STEPS = 50
ROWS = (
    Row("training", "tiny", 64, small_runs.BATCH, "float16", lora_rank=2),
    Row("drawing", "tiny", 64, 1, "float16"),
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not JAX_PYTHON.exists(), reason="make bench-gpu-check makes .venv-jax"),
]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What the pack's script left, by the names of checks and rows."""
    folder = tmp_path_factory.mktemp("pack")
    preset = small_runs.preset()
    made = checks.make_checks(folder / "checks", preset, "random", image_size=64, steps=STEPS)
    traced = {}
    for row in ROWS:
        write_traced(tracing.Tracer(row, preset)(row), folder / "rows", row.name)
        facts = read_facts(folder / "rows", row.name)
        assert facts is not None
        traced[row.name] = facts
    manifest = {"made": {"code": "1"}, **pack.finished(ROWS, traced, made, [preset])}
    manifest["jobs"] = [job for job in manifest["jobs"] if job["side"] != "diffusers"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    pack.copy_carried(folder, [])
    flags = ("--device", "cpu", "--seconds", "3000", "--row-seconds", "900")
    subprocess.run(
        ["sh", str(folder / "run.sh"), *flags, "--out", str(folder / "results.json")],
        env={**os.environ, "PYTHON": str(JAX_PYTHON)},
        check=True,
    )
    left = json.loads((folder / "results.json").read_text())
    return {entry["name"]: entry for entry in [*left["rows"], *left["checks"]]}


@pytest.mark.parametrize(
    ("precision", "first", "later"),
    # Where sums are rounded to 16 bits in another order, paths part; the loss is the same for long.
    [("float32", 1e-5, 1e-3), ("bfloat16", 1e-2, 5e-2), ("float16", 2e-3, 2e-2)],
)
def test_steps_have_tensorflows_losses(
    results: dict[str, dict[str, Any]], precision: str, first: float, later: float
) -> None:
    check = results[f"step_{precision}"]
    assert check["state"] == "done", check["why"]
    assert len(check["deviations"]) == STEPS
    assert check["deviations"][0] < first
    assert max(check["deviations"]) < later
    assert check["expected_fall"] > 0.05
    assert check["fall"] == pytest.approx(check["expected_fall"], abs=later)


@pytest.mark.parametrize(
    ("precision", "latent", "pixels"),
    [("float32", 1e-4, 0.1), ("bfloat16", 5e-2, 2.0), ("float16", 1e-2, 1.0)],
)
def test_a_drawing_has_tensorflows_pixels(
    results: dict[str, dict[str, Any]], precision: str, latent: float, pixels: float
) -> None:
    check = results[f"drawing_{precision}"]
    assert check["state"] == "done", check["why"]
    assert check["latent_deviation"] < latent
    assert check["mean_pixel_deviation"] < pixels


def test_rows_are_measured_with_values_made_by_shape(results: dict[str, dict[str, Any]]) -> None:
    for row in ROWS:
        measured = results[row.name]
        assert measured["state"] == "done", measured["why"]
        assert measured["finite"]
        assert measured["pictures_per_second"] == pytest.approx(
            row.batch_size / measured["seconds"]
        )
        assert measured["peak_share"] is None
        assert measured["planned_bytes"] > measured["estimate_bytes"] // 10
        assert measured["compile_seconds"] > 0
        shares = [operation["share"] for operation in measured["operations"]]
        assert len(shares) == 5
        assert 0 < sum(shares) <= 1
        assert shares == sorted(shares, reverse=True)
    of_step = results[ROWS[0].name]["operations"]
    assert any("diffusion_model" in o["operation"] for o in of_step)
