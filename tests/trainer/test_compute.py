"""Drawing in 16 bits: what computes in them and what does not, and how far pictures are off."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from trainer.export import fastest_compute
from trainer.export.saved_models import DecoderModule, DiffusionModelModule, serving_modules
from trainer.presets import Preset, get_preset
from trainer.training_config import ComputeDtype
from trainer.weights.base_model import BaseModel

LARGEST_FLOAT16 = 65504
PRODUCTS = ("Conv2D", "MatMul", "BatchMatMulV2")
SIZE = 64


@pytest.fixture(scope="module")
def base_model(small_preset: Preset) -> BaseModel:
    return BaseModel.locate(small_preset, SIZE, "random")


@pytest.fixture(scope="module")
def diffusion_model(base_model: BaseModel) -> keras.Model:
    return base_model.build("diffusion_model")


@pytest.fixture(scope="module")
def decoder(base_model: BaseModel) -> keras.Model:
    return base_model.build("decoder")


def operations(function: tf.types.experimental.PolymorphicFunction) -> list[tf.Operation]:
    return function.get_concrete_function().graph.get_operations()


def types_of(found: list[tf.Operation], *names: str) -> list[str]:
    return [op.outputs[0].dtype.name for op in found if op.type in names]


@pytest.mark.parametrize(("compute", "tolerance"), [("bfloat16", 3e-2), ("float16", 4e-3)])
def test_products_are_16_bit_and_ends_and_sums_are_not(
    small_preset: Preset, diffusion_model: keras.Model, compute: ComputeDtype, tolerance: float
) -> None:
    arguments = diffusion_model, small_preset, SIZE
    half = DiffusionModelModule(*arguments, "float32", compute)
    found = operations(half.predict_on_gpu)
    products = types_of(found, *PRODUCTS)
    # The first and the last convolution, and the two layers of the timestep.
    assert products.count("float32") == 4
    assert products.count(compute) == len(products) - 4 > 20
    assert set(types_of(found, "Softmax", "Rsqrt", "Mean")) == {"float32"}
    assert {v.dtype.name for v in half._variables} == {"float32"}
    # Layers are as they were.
    assert {layer.compute_dtype for layer in diffusion_model.layers} == {"float32"}

    text = small_preset.text_encoder
    inputs = [
        tf.random.stateless_normal([2, 8, 8, 4], [0, 0]),
        tf.constant([7, 800]),
        tf.random.stateless_normal([2, text.max_length, text.width], [0, 1]),
    ]
    expected = DiffusionModelModule(*arguments).predict(*inputs).numpy()
    actual = half.predict(*inputs).numpy()
    assert actual.dtype == np.float32
    error = np.abs(actual - expected).max() / np.abs(expected).max()
    assert 0 < error < tolerance


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_weights_stored_as_computed_are_read_as_they_are(
    small_preset: Preset, diffusion_model: keras.Model, dtype: ComputeDtype
) -> None:
    module = DiffusionModelModule(diffusion_model, small_preset, SIZE, dtype, dtype)
    assert {v.dtype.name for v in module._variables} == {dtype}
    cast = [
        op.outputs[0].shape
        for op in operations(module.predict_on_gpu)
        if op.type == "Cast" and op.inputs[0].op.type == "ReadVariableOp"
    ]
    # Kernels of the ends alone; biases and factors are vectors.
    assert sum(len(shape) > 1 for shape in cast) == 4


def test_a_decoder_loses_nothing_to_overflow(decoder: keras.Model) -> None:
    """Published ones have residual sums beyond float16, which normalizations bring back."""
    first = decoder.get_layer("decoder.conv_in")
    before = first.get_weights()
    first.set_weights([before[0] * 1e6, before[1]])
    inside = keras.Model(decoder.input, first.output)
    latent = tf.random.stateless_normal([1, 8, 8, 4], [0, 0])
    try:
        assert np.abs(inside(latent)).max() > 2 * LARGEST_FLOAT16
        whole, bfloat16, float16 = (
            DecoderModule(decoder, "float32", compute)
            for compute in ("float32", "bfloat16", "float16")
        )
        expected = whole.pixels(latent).numpy().astype(int)
        assert expected.std() > 1
        np.testing.assert_array_equal(float16.pixels(latent), expected)
        assert np.abs(bfloat16.pixels(latent).numpy() - expected).mean() < 2
    finally:
        first.set_weights(before)
    assert set(types_of(operations(float16.pixels), *PRODUCTS)) == {"float32"}
    found = types_of(operations(bfloat16.pixels), *PRODUCTS)
    assert found.count("float32") == 3
    assert found.count("bfloat16") == len(found) - 3 > 10
    assert set(types_of(operations(bfloat16.pixels), "Softmax", "Rsqrt")) == {"float32"}


@pytest.mark.parametrize(
    ("seconds", "chosen"),
    [
        ({"float32": 1.0}, "float32"),
        ({"float32": 1.0, "bfloat16": 8.0}, "float32"),
        ({"float32": 1.0, "bfloat16": 0.95}, "float32"),
        ({"float32": 1.0, "bfloat16": 0.5}, "bfloat16"),
        ({"float32": 1.0, "float16": 0.5, "bfloat16": 0.48}, "float16"),
        ({"float32": 1.0, "float16": 0.95, "bfloat16": 0.5}, "bfloat16"),
    ],
)
def test_the_most_precise_is_taken_that_none_beats(
    seconds: dict[ComputeDtype, float], chosen: str
) -> None:
    assert fastest_compute.choice(seconds) == chosen


def test_only_what_the_device_knows_is_tried(
    small_preset: Preset, diffusion_model: keras.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = frozenset({"avx2"}), frozenset({"avx2", "avx512_bf16", "amx_bf16"})
    assert fastest_compute.candidates(False, old) == ()
    assert fastest_compute.candidates(False, new) == ("bfloat16",)
    assert fastest_compute.candidates(True, old) == ("float16", "bfloat16")
    monkeypatch.setattr(fastest_compute, "cpu_flags", lambda: old)
    arguments = diffusion_model, small_preset, SIZE, "float32"
    assert fastest_compute.fastest_compute(*arguments) == "float32"


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_pictures_differ_by_less_than_two_of_255(dtype: ComputeDtype) -> None:
    preset = get_preset("tiny")
    base_model = BaseModel.locate(preset, 128, "default")
    networks = [base_model.build(n) for n in ("text_encoder", "diffusion_model", "decoder")]
    prompts = tf.constant([f"a {c} {t}" for c in ("red", "blue") for t in ("apple", "fish", "car")])

    def pictures(dtype: ComputeDtype) -> np.ndarray:
        modules = serving_modules(*networks, preset, 128, dtype, dtype)
        contexts = modules.text_encoder.text(prompts, tf.fill(prompts.shape, ""))
        scale, seed = tf.constant(preset.sampling.guidance_scale), tf.constant([1, 2])
        latent = modules.diffusion_model.serve(
            **contexts, num_steps=25, guidance_scale=scale, seed=seed
        )
        return modules.decoder.pixels(latent["latent"]).numpy().astype(int)

    assert np.abs(pictures(dtype) - pictures("float32")).mean() < 2
