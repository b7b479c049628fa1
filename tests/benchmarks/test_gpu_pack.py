"""Rows, the pack's folder, its runner without a device, and the page."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import random
import subprocess
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_runs
import tensorflow as tf

import benchmarks.gpu.__main__ as command
from benchmarks.gpu import pack, page, tensorflow_side, tracing
from benchmarks.gpu.carried import run
from benchmarks.gpu.carried.cards import card_of, peak_share
from benchmarks.gpu.carried.comparing import compare_drawings, compare_losses
from benchmarks.gpu.carried.timing import seconds_a_call, speed
from benchmarks.gpu.hlo import read_module
from benchmarks.gpu.rows import LORA_RANK, Row, all_rows, chosen_rows
from benchmarks.gpu.stored import Traced, write_traced
from storage.user_errors import UserError
from trainer.presets import get_preset

ROW = Row("training", "tiny", 64, small_runs.BATCH, "float32")


def test_the_rows_are_those_that_were_asked_for() -> None:
    rows = all_rows("sd-v1-4")
    names = [row.name for row in rows]
    assert len(set(names)) == len(names) == 2 * 3 * 2 * 2 * 2 + 2 + 8 + 2
    assert names[0] == "sd-v1-4_training_full_512px_batch4_bfloat16"
    assert f"sd-v1-4_training_rank{LORA_RANK}_256px_batch8_float32_checkpointing" in names
    assert "sd-v1-4_drawing_256px_batch4_bfloat16" in names


def test_rows_are_chosen_by_patterns() -> None:
    chosen = chosen_rows("tiny", ["*_drawing_128px_batch1_*", "*rank*_float16"])
    assert [row.name for row in chosen] == [
        "tiny_drawing_128px_batch1_bfloat16",
        "tiny_drawing_128px_batch1_float32",
        "tiny_drawing_128px_batch1_float16",
        "tiny_training_rank16_128px_batch4_float16",
    ]
    with pytest.raises(UserError, match=r"'\*_1024px_\*' matches none of the 60 rows: .*_512px_"):
        chosen_rows("sd-v1-4", ["*_1024px_*"])


def test_a_process_traces_a_few_rows_on_the_same_networks() -> None:
    rows = all_rows("sd-v1-4")
    parts = list(pack.traced_together(rows))
    assert sorted(row.name for part in parts for row in part) == sorted(row.name for row in rows)
    assert parts[0][0] == rows[0]
    for part in parts:
        assert len(part) <= 4
        assert len({(row.kind, row.image_size, row.lora_rank) for row in part}) == 1
    # Training by size and rank, 12 each; drawing by size, 4 each; and float16 of the larger one.
    assert len(parts) == 4 * 3 + 2 * 1 + 3


def test_jobs_begin_with_what_is_most_telling() -> None:
    rows = all_rows("sd-v1-4")
    jobs = pack.jobs_of(rows, ["step_float32", "drawing_float32"])
    assert [(job["side"], job["name"]) for job in jobs[:4]] == [
        ("ours", rows[0].name),
        ("diffusers", rows[0].name),
        ("diffusers", rows[0].name),
        ("check", "step_float32"),
    ]
    assert [job["compiled"] for job in jobs[1:3]] == [True, False]
    assert len(jobs) == 3 * len(rows) + 2


def test_diffusers_dimensions_are_stable_diffusions() -> None:
    networks = pack.diffusers_networks(get_preset("sd-v1-4"))
    assert networks["unet"]["block_out_channels"] == (320, 640, 1280, 1280)
    assert networks["unet"]["down_block_types"] == [*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"]
    assert networks["unet"]["up_block_types"] == ["UpBlock2D", *["CrossAttnUpBlock2D"] * 3]
    assert networks["vae"]["layers_per_block"] == 2


def test_a_step_is_traced_for_a_gpu_with_its_weights_as_parameters() -> None:
    row = dataclasses.replace(ROW, lora_rank=2)
    traced = tracing.Tracer(row, small_runs.preset())(row)
    module = read_module(traced.hlo)
    opcodes = {i.opcode for c in module.computations for i in c.instructions}
    # As matrix products, patches would be gathered.
    assert "convolution" in opcodes
    assert not any("unsorted_segment" in i.metadata.op_name.lower()
                   for c in module.computations for i in c.instructions)  # fmt: skip
    features = [p for p in traced.parameters if "feature" in p]
    assert {p["feature"]: p["shape"] for p in features} == {
        "context": [4, 77, 8],
        "latent/mean": [4, 8, 8, 4],
        "latent/log_variance": [4, 8, 8, 4],
    }
    named = {p.get("fill", "normal" if "normal" in p else "feature") for p in traced.parameters}
    # Without its rate a step would change no weight.
    rate = float(np.float32(tracing.LEARNING_RATE))
    assert named == {"feature", "normal", 0.0, 1.0, rate}
    # Two transformers of eight projections: both matrices, their moments and average; and the step,
    # the average's scale, the window and the bad step.
    assert len(traced.aliases) == 2 * 8 * 2 * 4 + 4
    assert traced.results == ("loss", "gradient_norm", "stopped")
    assert traced.flops > 1e6
    assert traced.estimate_bytes > 4 * 5000


class Tracing:
    """In the place of the processes that trace: writes small files, and keeps count."""

    def __init__(self, megabytes: float = 0.0, most: int = 99) -> None:
        """After `most` rows of a process the user ends all."""
        self.calls: list[Any] = []
        self.bytes = int(1e6 * megabytes)
        self.most = most

    def __call__(self, module: str, *flags: str, environment: dict[str, str]) -> Any:
        assert environment["CUDA_VISIBLE_DEVICES"] == ""
        folder = Path(flags[-1])
        folder.mkdir(exist_ok=True)
        if module == "benchmarks.gpu.checks":
            self.calls.append("checks")
            (folder / "step_float32.hlo.xz").write_bytes(b"check")
            check = {"name": "step_float32", "kind": "training", "precision": "float32"}
            return [{**check, "preset": "tiny", "losses": [1.0] * 50}]
        assert module == "benchmarks.gpu.tracing"
        rows = [Row(**settings) for settings in json.loads(flags[0])]
        assert len({row.group for row in rows}) == 1
        self.calls.append([row.name for row in rows])
        for row in rows[: self.most]:
            flops = 10 if row.gradient_checkpointing else 7
            hlo = random.Random(0).randbytes(1 + self.bytes)
            write_traced(Traced(hlo, [], [], {}, flops, 3), folder, row.name)
        if len(rows) > self.most:
            raise KeyboardInterrupt
        return {"peak_bytes": 1}


FIRST = "tiny_training_full_128px_batch4_bfloat16"


def test_a_pack_is_completed_and_made_anew_by_other_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracing_of = Tracing()
    monkeypatch.setattr(pack, "measured", tracing_of)
    wheel = tmp_path / "diffusers-1-py3-none-any.whl"
    wheel.write_bytes(b"wheel")
    folder = tmp_path / "pack"
    size = pack.write_pack(folder, "tiny", [f"{FIRST}_checkpointing"], [wheel])
    # The row without checkpointing has the operations that the model needs.
    assert tracing_of.calls == ["checks", [f"{FIRST}_checkpointing", FIRST]]
    manifest = json.loads((folder / "manifest.json").read_text())
    assert [(row["name"], row["flops"]) for row in manifest["rows"]] == [
        (f"{FIRST}_checkpointing", 7),
        (FIRST, 7),
    ]
    names = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    assert names >= {
        "run.sh",
        "README.md",
        "manifest.json",
        "carried/run.py",
        "carried/jax_side.py",
        "carried/torch_side.py",
        "wheels/diffusers-1-py3-none-any.whl",
        f"rows/{FIRST}.hlo.xz",
        f"rows/{FIRST}.json.xz",
        "checks/step_float32.hlo.xz",
    }
    assert size == sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
    assert os.access(folder / "run.sh", os.X_OK)

    other = "tiny_drawing_64px_batch1_float32"
    pack.write_pack(folder, "tiny", [FIRST, other])
    assert tracing_of.calls[2:] == [[other]]
    assert not (folder / "rows" / f"{FIRST}_checkpointing.hlo.xz").exists()
    monkeypatch.setattr(pack, "code_version", lambda *names: "other")
    pack.write_pack(folder, "tiny", [other])
    assert tracing_of.calls[3:] == ["checks", [other]]


def test_a_pack_that_was_stopped_goes_on_after_the_last_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pack, "measured", Tracing(most=1))
    folder = tmp_path / "pack"
    with pytest.raises(KeyboardInterrupt):
        pack.write_pack(folder, "tiny", [f"{FIRST}*"])
    done = subprocess.run(["sh", str(folder / "run.sh")], capture_output=True, text=True)
    assert (done.returncode, done.stderr.splitlines()) == (
        1,
        [f"{folder} is not complete: run make bench-gpu-pack again"],
    )
    tracing_of = Tracing()
    monkeypatch.setattr(pack, "measured", tracing_of)
    # As of a row in the making.
    (folder / "rows" / "x.hlo.partial").write_bytes(b"half")
    pack.write_pack(folder, "tiny", [f"{FIRST}*"])
    assert tracing_of.calls == [[f"{FIRST}_checkpointing"]]
    names = [FIRST, f"{FIRST}_checkpointing"]
    assert {path.name for path in (folder / "rows").iterdir()} == {
        f"{name}.{suffix}.xz" for name in names for suffix in ("hlo", "json")
    }


@pytest.mark.parametrize("content", [None, "[]", "{}"])
def test_a_folder_with_something_else_is_left_alone(
    content: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "mine.txt").write_text("mine")
    if content:
        (tmp_path / "manifest.json").write_text(content)
    assert pack.main(["--out", str(tmp_path)]) == 1
    assert f"{tmp_path} is neither empty nor a pack" in capsys.readouterr().err
    assert (tmp_path / "rows" / "mine.txt").read_text() == "mine"
    assert not (tmp_path / "run.sh").exists()


def test_what_cannot_be_carried_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(pack, "measured", Tracing(megabytes=2))
    monkeypatch.setattr(pack, "MOST_BYTES", 1_000_000)
    folder = tmp_path / "pack"
    assert pack.main(["--out", str(folder), "--preset", "tiny", "--rows", FIRST]) == 1
    assert "has 2 MB, but only 1 are allowed: choose fewer rows" in capsys.readouterr().err
    assert pack.main(["--out", str(folder), "--wheels", str(tmp_path)]) == 1
    assert "is not a wheel: give files that end in .whl" in capsys.readouterr().err


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("print('noise'); print('{\"seconds\": 2}')", {"state": "done", "seconds": 2}),
        ("print('{\"state\": \"does not fit\", \"why\": \"8 GB\"}')",
         {"state": "does not fit", "why": "8 GB"}),
        ("raise ValueError('wrong')", {"state": "failed", "why": "ValueError: wrong"}),
        ("import os; os._exit(7)", {"state": "failed", "why": "it ended with status 7"}),
        ("", {"state": "failed", "why": "it printed no result"}),
        ("print('bye')", {"state": "failed", "why": "it printed no result"}),
    ],
    ids=["done", "does not fit", "failed", "killed", "nothing", "noise"],
)  # fmt: skip
def test_a_job_says_what_became_of_it(code: str, expected: dict[str, Any]) -> None:
    assert run.run_job(python(code), 60) == expected


def test_a_job_that_takes_too_long_is_ended_with_what_it_started(tmp_path: Path) -> None:
    alive = tmp_path / "alive"
    child = f"sleep 2; touch {alive}"
    code = f"import subprocess; subprocess.run(['sh', '-c', {child!r}])"
    since = time.monotonic()
    facts = run.run_job(python(code), 1.0)
    assert facts == {"state": "out of time", "why": "it was ended after 1 s"}
    time.sleep(max(0.0, 2.5 - (time.monotonic() - since)))
    assert not alive.exists()


def test_results_are_written_after_every_row_until_time_is_up(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    run.write_results(recorded(), path)
    written = []

    def measure(job: Any, seconds: float) -> dict[str, Any]:
        written.append((len(json.loads(path.read_text())["rows"]), seconds))
        return {"state": "done"}

    jobs = [{"side": "ours", "name": name} for name in "ab"]
    results = run.head("pack", {"device": "cpu"}, {"code": "1"})
    run.run_all(jobs, measure, results, path, seconds=100.0, row_seconds=30.0)
    assert written == [(0, 30.0), (1, 30.0)]
    run.run_all(
        [{"side": "check", "name": "c"}], measure, results, path, seconds=19.0, row_seconds=30.0
    )
    kept = json.loads(path.read_text())
    assert [row["state"] for row in kept["rows"]] == ["done", "done"]
    assert [(c["name"], c["state"]) for c in kept["checks"]] == [("c", "out of time")]


def test_where_jax_gives_no_gpu_the_runner_says_so_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracing_of = Tracing()
    monkeypatch.setattr(pack, "measured", tracing_of)
    folder = tmp_path / "pack"
    pack.write_pack(folder, "tiny", [FIRST])
    (tmp_path / "empty").mkdir()
    done = subprocess.run(
        ["sh", str(folder / "run.sh")],
        env={**os.environ, "PYTHON": sys.executable},
        cwd=tmp_path / "empty",
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    assert line.startswith("JAX finds no gpu here (")
    assert "No module named 'jax'" in line
    assert "--device cpu" in line


def test_seconds_are_those_of_a_call() -> None:
    clock = {"calls": 0, "waits": 0}

    def call() -> None:
        clock["calls"] += 1
        # Long against what the loop around it takes, and short for a test.
        sum(range(2_000_000))

    def wait() -> None:
        clock["waits"] += 1

    seconds = seconds_a_call(call, wait, window_seconds=0.2)
    assert 0.001 < seconds < 2
    assert clock["waits"] == 1 + 1 + 3
    assert clock["calls"] <= 1 + 3 * 50


@pytest.mark.parametrize(
    ("name", "half"),
    [
        ("NVIDIA A100-SXM4-40GB", 312.0),
        ("NVIDIA H100 80GB HBM3", 989.5),
        ("NVIDIA H100 PCIe", 756.5),
        ("NVIDIA H200", 989.5),
        ("NVIDIA A10", 125.0),
        ("Tesla T4", 65.0),
        ("NVIDIA GeForce RTX 4090", 165.2),
        ("Tesla V100S-PCIE-32GB", 130.0),
    ],
)
def test_cards_are_known_by_their_drivers_names(name: str, half: float) -> None:
    card = card_of(name)
    assert card is not None
    assert card.peak("float16") == half


@pytest.mark.parametrize(
    "name",
    ["NVIDIA A1000", "NVIDIA GB200", "NVIDIA GH200 480GB", "NVIDIA A100-SXM4-40GB MIG 3g.20gb",
     "NVIDIA GeForce RTX 4090 Laptop GPU"],
)  # fmt: skip
def test_what_is_no_known_card_has_no_peak(name: str) -> None:
    assert card_of(name) is None
    assert peak_share(name, 1.0, 1.0, "float32") is None


def test_a_card_without_bfloat16_has_no_peak_in_it() -> None:
    assert peak_share("Tesla T4", 65e12, 2.0, "float16") == 0.5
    assert peak_share("Tesla T4", 65e12, 2.0, "bfloat16") is None
    results = recorded()
    results["machine"]["device"] = "Tesla T4"
    assert (
        "Its peak is 65 TFLOP/s in 16 bits and 8.1 in float32 (NVIDIA T4 data sheet); without "
        "units for bfloat16, no share of peak for that." in page.page_of(results)
    )


def test_shares_of_peak_by_hand() -> None:
    row = {**ROW.settings(), "flops": 156e12, "batch_size": 4}
    # Half of an A100's TF32 peak, and a quarter of its peak in 16 bits.
    assert speed(row, "NVIDIA A100-SXM4-40GB", 2.0) == {
        "seconds": 2.0,
        "pictures_per_second": 2.0,
        "flops_per_second": 78e12,
        "peak_share": 0.5,
    }
    half = {**row, "precision": "bfloat16"}
    assert speed(half, "NVIDIA A100-SXM4-40GB", 2.0)["peak_share"] == 0.25
    drawing = {**row, "kind": "drawing", "precision": "float16"}
    assert speed(drawing, "NVIDIA A100-SXM4-40GB", 2.0)["peak_share"] == 0.25
    assert peak_share("cpu", 1.0, 1.0, "float32") is None


def test_losses_are_compared_step_by_step() -> None:
    expected = [1.0] * 10 + [0.5] * 10
    ours = [1.0] * 9 + [1.1] + [0.5] * 9 + [0.25]
    compared = compare_losses(ours, expected)
    assert compared["deviations"][9] == pytest.approx(0.1)
    assert compared["deviations"][19] == 0.5
    assert max(compared["deviations"][:9]) == 0.0
    assert compared["expected_fall"] == 0.5
    assert compared["fall"] == pytest.approx(1 - 0.475 / 1.01)


def test_drawings_are_compared_by_norm_and_by_levels() -> None:
    expected = {"latent": np.array([3.0, 4.0]), "pixels": np.array([250, 10, 7], np.uint8)}
    ours = {"latent": np.array([3.0, 4.5]), "pixels": np.array([253, 4, 7], np.uint8)}
    assert compare_drawings(ours, expected) == {
        "latent_deviation": 0.1,
        "mean_pixel_deviation": 3.0,
        "largest_pixel_deviation": 6.0,
    }


def recorded() -> dict[str, Any]:
    """Results as a card would leave them, with numbers that are none of any card."""
    full = Row("training", "sd-v1-4", 512, 4, "bfloat16").settings()
    drawn = Row("drawing", "sd-v1-4", 512, 1, "float32").settings()
    measured = {
        "state": "done",
        "estimate_bytes": 19_000_000_000,
        "peak_bytes": 21_000_000_000,
        "planned_bytes": 20_500_000_000,
        "compile_seconds": 61.0,
    }
    ours = {
        "side": "ours",
        **full,
        **measured,
        "seconds": 0.1,
        "pictures_per_second": 40.0,
        "peak_share": 0.4321,
        "finite": True,
        "operations": [
            {"operation": "block/MatMul", "share": 0.25, "seconds": 0.025, "kernels": 64.0}
        ],
    }
    theirs = {"side": "diffusers", "compiled": True, **full, **measured, "seconds": 0.09}
    theirs |= {"pictures_per_second": 44.4, "peak_share": 0.48}
    small = {"side": "ours", **drawn, "state": "does not fit", "why": "XLA planned | 99 GB"}
    check = {"side": "check", "name": "step_bfloat16", "kind": "training", "state": "done"}
    check |= {"precision": "bfloat16", "deviations": [0.001] * 49 + [0.02]}
    check |= {"fall": 0.4, "expected_fall": 0.41}
    machine = {"device": "NVIDIA A100-SXM4-40GB", "platform": "gpu"}
    head = run.head("pack", {**machine, "software": {"jax": "0.11.2"}}, {"code": "1"})
    return {**head, "rows": [ours, theirs, small], "checks": [check]}


def test_the_page_says_what_was_measured(tmp_path: Path) -> None:
    results, out = tmp_path / "results.json", tmp_path / "page.md"
    run.write_results(recorded(), results)
    assert page.main(["--file", str(results), "--out", str(out)]) == 0
    text = out.read_text()
    for line in (
        "| sd-v1-4_training_full_512px_batch4_bfloat16 | ours | 40.00 | 0.1 | 43.2 % | 21.0 | 20.5 "
        "| 19.0 | 61 |",
        "| sd-v1-4_training_full_512px_batch4_bfloat16 | diffusers, compiled | 44.40 | 0.09 | "
        "48.0 % | 21.0 | 20.5 |  | 61 |",
        "| sd-v1-4_drawing_512px_batch1_float32 | ours | does not fit: XLA planned / 99 GB |",
        "| sd-v1-4_training_full_512px_batch4_bfloat16 | 0.90 | **missed** |",
        "| full training | A100 | at least 36 pictures/s | 40 pictures/s | met |",
        "| full training | H100 | at least 60 pictures/s |  | for another card |",
        "| memory of full training | any | at most 20 GB | 21 GB | **missed** |",
        "| 25 steps of one picture | A100 | at most 0.53 s |  | not measured |",
        "| `block/MatMul` | 25.0 % | 25.00 | 64 |",
        "| bfloat16 | 1.0e-03 | 1.0e-03 | 2.0e-02 | 2.0e-02 | 40.0 % | 41.0 % |",
    ):
        assert line in text.splitlines()
    assert "No card has run this" not in text


def test_a_cpus_numbers_are_no_cards() -> None:
    results = recorded()
    results["machine"] = {"device": "cpu", "platform": "cpu", "software": {}}
    text = page.page_of(results)
    assert "**No card has run this**: a CPU did" in text
    assert "| full training | A100 | at least 36 pictures/s |  | for another card |" in text


def test_the_page_that_is_here_is_of_no_run_or_of_a_card() -> None:
    text = (Path(page.ROOT) / "docs" / "gpu_speed.md").read_text()
    assert text == page.page_without_results() or "\nMeasured on NVIDIA " in text


@pytest.mark.parametrize("content", ["", "[]", '{"format": 99}', '{"format": 1}'])
def test_another_file_is_refused(
    content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "results.json"
    path.write_text(content)
    assert page.main(["--file", str(path), "--out", str(tmp_path / "page.md")]) == 1
    assert f"{path} is not a result of a pack's run.sh" in capsys.readouterr().err
    assert not (tmp_path / "page.md").exists()


def without_gpu() -> Callable[..., dict[str, Any]]:
    machine = tensorflow_side.describe()
    assert machine["software"] == {"tensorflow": tf.__version__}
    return lambda *_: {"state": "done", **machine}


def test_without_a_gpu_the_command_ends_in_a_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "_run", without_gpu())
    assert command.main([]) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("TensorFlow sees no GPU here: ")
    assert "--device cpu --preset tiny" in line
    assert command.main(["--device", "cpu", "--look"]) == 0


def test_a_row_that_tensorflow_has_no_memory_for_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: Any) -> None:
        why = "Out of memory while trying to allocate 17179869184 bytes.\nBufferAssignment: ..."
        raise tf.errors.ResourceExhaustedError(None, None, why)

    monkeypatch.setattr(tensorflow_side, "training", full)
    monkeypatch.setattr(sys, "argv", ["side", "--row", json.dumps(ROW.settings())])
    tensorflow_side.main()
    assert json.loads(capsys.readouterr().out) == {
        "state": "does not fit",
        "why": "Out of memory while trying to allocate 17179869184 bytes.",
    }


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (RuntimeError("backend='inductor' raised:\nOutOfMemoryError: CUDA out of memory. Tried"),
         {"state": "does not fit", "why": "OutOfMemoryError: CUDA out of memory. Tried"}),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"),
         {"state": "does not fit",
          "why": "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"}),
        (ModuleNotFoundError("No module named 'diffusers'", name="diffusers"),
         {"state": "missing", "why": "there is no diffusers here"}),
        (ImportError("\nStableDiffusionPipeline requires the transformers library\n"),
         {"state": "missing", "why": "StableDiffusionPipeline requires the transformers library"}),
    ],
)  # fmt: skip
def test_pytorchs_side_says_what_it_lacks(
    error: Exception,
    expected: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    # PyTorch is in another environment.
    torch = types.ModuleType("torch")
    vars(torch).update(device=str, nn=types.SimpleNamespace(Module=object))
    monkeypatch.setitem(sys.modules, "torch", torch)
    path = Path(run.__file__).with_name("torch_side.py")
    spec = importlib.util.spec_from_file_location(f"{run.__package__}.torch_side", path)
    assert spec is not None
    assert spec.loader is not None
    side = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(side)

    def fails(*_: Any) -> None:
        raise error

    monkeypatch.setattr(side, "measure", fails)
    monkeypatch.setattr(sys, "argv", ["side", "--row", "{}", "--networks", "{}"])
    side.main()
    assert json.loads(capsys.readouterr().out) == expected


@pytest.mark.slow
def test_a_cpu_tries_the_command_in_small(tmp_path: Path) -> None:
    names = ["tiny_training_rank16_64px_batch1_float32", "tiny_drawing_64px_batch1_float32"]
    flags = ["--device", "cpu", "--preset", "tiny", "--folder", str(tmp_path), "--rows", *names]
    assert command.main(flags) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    assert [(row["name"], row["state"]) for row in results["rows"]] == [
        (name, "done") for name in names
    ]
    for row in results["rows"]:
        assert row["finite"]
        assert row["flops_per_second"] == pytest.approx(row["flops"] / row["seconds"])
        assert row["peak_share"] is None
    # Two predictions a step, as it is guided, each of which is a part of a training step.
    trained, drawn = (row["flops"] for row in results["rows"])
    assert drawn > 25 * 2 * trained / 4
    text = (tmp_path / "gpu_speed.md").read_text()
    assert "**No card has run this**: a CPU did" in text
    for name in names:
        assert f"| {name} | ours |" in text
