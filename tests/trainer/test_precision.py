"""What computes in 16 bits and what does not, and the loss scale of float16."""

import contextlib
from collections.abc import Callable

import keras
import numpy as np
import pytest
import small_runs
import tensorflow as tf
from small_runs import batch_of, state, tuner

from trainer.data.latents import batch_spec
from trainer.networks.seam import layers_within
from trainer.training import precision
from trainer.training.fine_tuner import FineTuner
from trainer.training.precision import LossScale, computing_in

_PRODUCTS = {
    "BatchMatMulV2",
    "Conv2D",
    "Conv2DBackpropFilter",
    "Conv2DBackpropInput",
    "Einsum",
    "MatMul",
}


@pytest.fixture(scope="module", params=["bfloat16", "float16"])
def subject(request: pytest.FixtureRequest) -> tuple[FineTuner, list[tf.Tensor]]:
    subject = tuner(precision=request.param)
    return subject, subject.trace(batch_spec(small_runs.preset(), 64, False, small_runs.BATCH))


@pytest.mark.parametrize(
    ("setting", "flags", "expected"),
    [
        ("auto", {"avx2", "avx512_bf16"}, "bfloat16"),
        ("auto", {"avx2", "amx_bf16"}, "bfloat16"),
        ("auto", {"avx2", "avx512f"}, "float32"),
        ("float32", {"amx_bf16"}, "float32"),
        ("bfloat16", {"avx2"}, "bfloat16"),
    ],
)
def test_auto_is_what_the_processor_computes_fastest(
    setting: str, flags: set[str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "cpu_flags", lambda: frozenset(flags))
    assert tuner(precision=setting).config.precision == expected


def test_products_are_16_bit_and_loss_noise_and_what_is_kept_are_not(subject) -> None:
    subject, gradients = subject
    operations = gradients[0].graph.get_operations()
    products = [op for op in operations if op.type in _PRODUCTS]
    assert len(products) > 50
    assert {op.outputs[0].dtype.name for op in products} == {subject.config.precision}
    noise = [op for op in operations if op.type == "StatelessRandomNormalV2"]
    assert noise
    assert {op.outputs[0].dtype for op in noise} == {tf.float32}
    assert {g.dtype for g in gradients} == {tf.float32}
    losses = [op for op in operations if op.type == "Square" and len(op.outputs[0].shape) == 4]
    assert tf.float32 in {op.outputs[0].dtype for op in losses}
    assert {value.dtype for value in state(subject)} == {np.dtype("float32")}


def test_outside_of_the_step_networks_are_float32(subject) -> None:
    subject, _ = subject
    model = subject.diffusion_model
    assert keras.config.dtype_policy().name == "float32"
    for layer in layers_within(model):
        assert layer.compute_dtype == layer.variable_dtype == "float32"
    inputs = [tf.ones((1, *x.shape[1:])) for x in model.inputs]
    assert model(inputs).dtype == tf.float32


def test_loss_is_float32s_but_for_rounding(subject) -> None:
    subject, _ = subject
    batch, step = batch_of(0), tf.constant(1, tf.int64)
    exact = subject.loss(batch, step)
    with computing_in(subject.config.precision, [subject.diffusion_model]):
        rounded = subject.loss(batch, step)
    assert exact.dtype == rounded.dtype == tf.float32
    assert 0 < abs(float(rounded - exact)) < 0.02 * float(exact)


def test_policies_come_back_after_an_error() -> None:
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    with contextlib.suppress(RuntimeError), computing_in("float16", [model]):
        assert model(tf.ones((1, 3))).dtype == tf.float16
        raise RuntimeError
    assert model(tf.ones((1, 3))).dtype == tf.float32
    assert keras.config.dtype_policy().name == "float32"


def test_an_overflow_makes_no_update_and_halves_the_scale() -> None:
    subject = tuner(plain=True, precision="float16", weight_decay=0.0, warmup_steps=0)
    scale = subject.loss_scale
    assert float(scale.scale) == 2.0**15
    scale.scale.assign(2.0**120)
    before = state(subject)
    subject.train_step(batch_of(0))
    for old, new in zip(before[:-1], state(subject)[:-1], strict=True):
        np.testing.assert_array_equal(old, new)
    assert float(scale.scale) == 2.0**119
    assert (int(subject.step), int(scale.skipped)) == (1, 1)
    # A loss is counted all the same, and the run goes on.
    subject._check_finite({}, None)

    scale.scale.assign(2.0**10)
    scale.updates_at_scale.assign(1999)
    with tf.GradientTape() as tape:
        exact_loss = subject.loss(batch_of(1), tf.constant(1, tf.int64))
    exact_norm = tf.linalg.global_norm(tape.gradient(exact_loss, subject.variables))
    loss, norm, _ = subject.train_step(batch_of(1))
    assert loss.dtype == tf.float32
    # What is divided by the scale is what it would be without.
    assert float(loss) == pytest.approx(float(exact_loss), rel=0.01)
    assert float(norm) == pytest.approx(float(exact_norm), rel=0.03)
    assert float(scale.scale) == 2.0**11
    assert (int(subject.step), int(scale.updates_at_scale), int(scale.skipped)) == (2, 0, 1)
    # AdamW's first update is as large as the learning rate, whatever number the step has.
    moved = max(
        np.abs(new - old).max()
        for old, new in zip(before[: len(subject.variables)], state(subject), strict=False)
    )
    assert moved == pytest.approx(1e-2, rel=0.01)


@pytest.fixture
def update() -> tuple[LossScale, Callable[[bool], bool]]:
    scale = LossScale()
    compiled = tf.function(lambda finite: scale.update(finite), autograph=False)
    return scale, lambda finite: bool(compiled(tf.constant(finite)))


def test_the_scale_doubles_after_2000_updates_in_a_row(update) -> None:
    scale, note = update
    assert not any(note(True) for _ in range(1999))
    assert (float(scale.scale), int(scale.updates_at_scale)) == (2.0**15, 1999)
    note(False)
    assert (float(scale.scale), int(scale.updates_at_scale)) == (2.0**14, 0)
    for _ in range(1999):
        note(True)
    assert float(scale.scale) == 2.0**14
    note(True)
    assert (float(scale.scale), int(scale.updates_at_scale)) == (2.0**15, 0)
    assert int(scale.skipped) == 1


def test_the_scale_has_an_end_above_and_below(update) -> None:
    scale, note = update
    scale.scale.assign(2.0**24)
    scale.updates_at_scale.assign(1999)
    assert not note(True)
    assert float(scale.scale) == 2.0**24
    scale.scale.assign(2.0)
    assert not note(False)
    assert float(scale.scale) == 1.0
    # Nothing is left to be halved: it is not the scale that is at fault.
    assert note(False)
    assert float(scale.scale) == 1.0
