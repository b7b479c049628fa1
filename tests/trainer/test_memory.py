"""The estimate against sums by hand, and against what processes really take."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import keras
import pytest
import small_runs
import tensorflow as tf

from trainer.training.memory import (
    MemoryEstimate,
    activation_bytes,
    check_fits,
    device_memory,
    estimate_memory,
    peak_gpu_bytes,
    program_bytes,
)

ESTIMATE = MemoryEstimate(
    weights=4_000_000_000,
    gradients=3_500_000_000,
    optimizer=7_000_000_000,
    averages=3_500_000_000,
    activations=2_000_000_000,
    program=400_000_000,
)


def dense_model() -> keras.Model:
    return keras.Sequential([keras.Input((3,)), keras.layers.Dense(5)])


def estimate(trained: list[tf.Variable], **overrides: Any) -> MemoryEstimate:
    models = [dense_model(), MODEL]
    return estimate_memory(
        models, trained, small_runs.config(**overrides), activations=7, program=11
    )


MODEL = dense_model()
OWN = [v.value for v in MODEL.weights]


@pytest.mark.parametrize(
    ("trained", "overrides", "expected"),
    [
        # Two models of 3 * 5 + 5 parameters, 4 bytes each.
        (OWN, {}, (160, 80, 160, 80, 7, 11)),
        (OWN, {"accumulation_steps": 2}, (160, 160, 160, 80, 7, 11)),
        # A moment of each, and Adafactor's rows and columns: 3 + 5 of the kernel.
        (OWN, {"optimizer": "lion"}, (160, 80, 80, 80, 7, 11)),
        (OWN, {"optimizer": "adafactor"}, (160, 80, 112, 80, 7, 11)),
        # Adapters are no model's weights.
        ([tf.Variable(tf.zeros((3, 2)))], {"lora_rank": 2}, (184, 24, 48, 24, 7, 11)),
    ],
)
def test_what_is_kept_by_hand(trained: list, overrides: dict, expected: tuple[int, ...]) -> None:
    assert estimate(trained, **overrides) == MemoryEstimate(*expected)
    assert estimate(trained, **overrides).total == sum(expected)


def test_activations_by_hand() -> None:
    weights = [tf.Variable(tf.ones((10, 20))), tf.Variable(tf.ones((20, 30)))]

    @tf.function(autograph=False)
    def gradients(x: tf.Tensor) -> list[tf.Tensor]:
        with tf.GradientTape() as tape:
            hidden = tf.square(x @ weights[0])
            loss = tf.reduce_sum(tf.square(hidden @ weights[1]))
        return tape.gradient(loss, weights)

    graph = gradients.get_concrete_function(tf.TensorSpec((8, 10)))
    # Where the second square's gradient is multiplied, there are: both inputs of the squares
    # (8 x 20, 8 x 30), the first one's output (8 x 20), that gradient's factors (8 x 30 twice)
    # and their product (8 x 30).
    expected = 4 * (8 * 20 + 8 * 30 + 8 * 20 + 3 * 8 * 30)
    found = activation_bytes(graph.outputs)
    # Scalars and shapes come to a few bytes.
    assert expected - 8 * 30 * 4 <= found <= expected + 200


@pytest.mark.slow
def test_activations_grow_with_the_batch() -> None:
    sizes = []
    for batch in (1, 2):
        subject = small_runs.tuner(batch_size=batch)
        spec = {
            name: tf.TensorSpec((batch, *x.shape[1:]), x.dtype)
            for name, x in small_runs.batch_of(0).items()
            if name != "id"
        }
        sizes.append(activation_bytes(subject.trace(spec)))
    assert sizes[1] / sizes[0] == pytest.approx(2.0, rel=0.1)


def test_what_fits_is_not_complained_about() -> None:
    config = small_runs.config()
    assert check_fits(ESTIMATE, ESTIMATE.total, "the GPU", config) is None
    assert check_fits(ESTIMATE, ESTIMATE.total - 1, "the GPU", config)


def test_what_does_not_fit_is_one_line_with_advice() -> None:
    problem = check_fits(ESTIMATE, 16_000_000_000, "the GPU", small_runs.config())
    assert problem is not None
    assert problem.startswith(
        "training needs about 20.4 GB (weights 4.0 GB, gradients 3.5 GB, optimizer 7.0 GB, "
        "averages 3.5 GB, activations 2.0 GB, program 0.4 GB), and the GPU has 16.0 GB. What "
        "helps: a training.batch_size below 4, or a training.accumulation_steps above 1; "
    )
    for advice in (
        "training.gradient_checkpointing = true",
        "training.lora_rank = 4",
        "training.optimizer = adafactor or lion",
        "training.precision = bfloat16",
        "a smaller model.image_size",
        "training.memory_check = warn tries it anyway",
    ):
        assert advice in problem
    assert "\n" not in problem


def test_what_is_done_already_is_not_advised() -> None:
    config = small_runs.config(
        batch_size=2,
        accumulation_steps=2,
        gradient_checkpointing=True,
        lora_rank=4,
        precision="float16",
    )
    problem = check_fits(ESTIMATE, 1, "this machine", config)
    assert problem is not None
    assert "this machine has 0.0 GB. What helps: a smaller model.image_size. training" in problem


def test_this_machine() -> None:
    device, size = device_memory()
    [total] = [
        int(line.split()[1]) * 1024
        for line in Path("/proc/meminfo").read_text().splitlines()
        if line.startswith("MemTotal")
    ]
    assert device == "this machine"
    assert 0 < size <= total
    assert peak_gpu_bytes() is None
    [held] = [
        int(line.split()[1]) * 1024
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith("VmRSS")
    ]
    assert program_bytes([MODEL]) == pytest.approx(held, rel=0.1)


def one_step(**order: Any) -> dict[str, Any]:
    program = Path(__file__).with_name("one_step.py")
    done = subprocess.run(
        [sys.executable, program, json.dumps(order)],
        env={**os.environ, "PYTHONPATH": str(program.parents[2])},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    measured = json.loads(done.stdout.splitlines()[-1])
    print(json.dumps(measured, indent=1))
    return measured


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "tolerance"),
    [
        ({}, 0.35),
        # The estimate takes operations one by one; where little is kept between them, what two
        # hold at the same time is much of it.
        ({"gradient_checkpointing": True}, 0.6),
        ({"accumulation_steps": 4}, 0.35),
        ({"lora_rank": 4}, 0.35),
    ],
    ids=str,
)
def test_estimate_is_near_the_real_peak(overrides: dict[str, Any], tolerance: float) -> None:
    measured = one_step(preset="tiny", image_size=128, batch_size=64, overrides=overrides)
    assert measured["peak"] == pytest.approx(measured["estimate"], rel=tolerance)


@pytest.mark.slow
@pytest.mark.timeout(1000)
@pytest.mark.parametrize(
    ("overrides", "limit", "trainable"),
    [({}, 22e9, 859_520_964), ({"lora_rank": 4}, 9e9, 797_184)],
    ids=["all weights", "lora"],
)
def test_a_step_at_full_size_fits(overrides: dict[str, Any], limit: float, trainable: int) -> None:
    measured = one_step(preset="sd-v1-4", image_size=256, batch_size=1, overrides=overrides)
    assert measured["trainable"] == trainable
    assert measured["peak"] < limit
    assert measured["peak"] == pytest.approx(measured["estimate"], rel=0.25)
