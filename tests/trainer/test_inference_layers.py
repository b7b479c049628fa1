"""The layers that are exported against those that are trained."""

from __future__ import annotations

import dataclasses

import keras
import numpy as np
import pytest
import small_runs
import tensorflow as tf

from trainer.networks import build_decoder, build_diffusion_model, build_text_encoder
from trainer.networks.inference_layers import attention, has_form_for_cpu, inference_layers
from trainer.networks.seam import CrossAttention, layers_within, mapped_call
from trainer.presets import get_preset

SIZE = 64
WIDE = dataclasses.replace(
    small_runs.preset(),
    diffusion_model=dataclasses.replace(
        small_runs.preset().diffusion_model, widths=(256, 256), cross_attention=(True, False)
    ),
)
"""Its larger map has 8 x 8 positions, of 4 and then of 256 channels."""


@pytest.fixture(scope="module")
def wide() -> keras.Model:
    return build_diffusion_model(WIDE, SIZE)


def test_maps_are_made_larger_by_repeating() -> None:
    x = np.random.default_rng(5).normal(size=(2, 3, 5, 4)).astype(np.float32)
    layer = keras.layers.UpSampling2D(2)
    with inference_layers(keras.Sequential([layer])):
        np.testing.assert_array_equal(layer(x), x.repeat(2, axis=1).repeat(2, axis=2))


def layers_of(model: keras.Model) -> list[keras.layers.Layer]:
    return layers_within(model)


def random_like(model: keras.Model) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [w + rng.normal(0, 0.1, w.shape).astype(w.dtype) for w in model.get_weights()]


@pytest.mark.parametrize("network", ["text_encoder", "diffusion_model", "decoder"])
def test_a_network_computes_the_same_with_them(network: str) -> None:
    preset = small_runs.preset()
    rng = np.random.default_rng(1)
    text = preset.text_encoder
    if network == "text_encoder":
        model = build_text_encoder(preset)
        inputs = rng.integers(0, 49408, (2, text.max_length), np.int32)
    elif network == "decoder":
        model = build_decoder(preset, SIZE)
        inputs = rng.normal(size=(2, *preset.latent_shape(SIZE))).astype(np.float32)
    else:
        model = build_diffusion_model(preset, SIZE)
        shapes = [tensor.shape[1:] for tensor in model.inputs]
        inputs = [rng.normal(size=(2, *shape)).astype(np.float32) for shape in shapes]
    model.set_weights(random_like(model))
    before = [type(layer) for layer in layers_of(model)]
    expected = model(inputs, training=False).numpy()
    with inference_layers(model):
        assert [type(layer) for layer in layers_of(model)] != before
        found = tf.function(lambda: model(inputs, training=False))().numpy()
    assert [type(layer) for layer in layers_of(model)] == before
    assert np.linalg.norm(found - expected) < 1e-5 * np.linalg.norm(expected)


def test_group_normalization_by_hand() -> None:
    rng = np.random.default_rng(2)
    # Far from zero, where a variance from squares' means would have no digits left.
    x = (1000 + rng.normal(size=(2, 3, 5, 6))).astype(np.float32)
    layer = keras.layers.GroupNormalization(groups=3, epsilon=1e-3)
    layer.build(x.shape)
    gamma, beta = rng.normal(size=(2, 6)).astype(np.float32)
    layer.set_weights([gamma, beta])
    with inference_layers(keras.Sequential([layer])):
        found = layer(x).numpy()
    groups = x.astype(np.float64).reshape(2, 15, 3, 2)
    centred = groups - groups.mean((1, 3), keepdims=True)
    normal = centred / np.sqrt((centred**2).mean((1, 3), keepdims=True) + 1e-3)
    np.testing.assert_allclose(found, normal.reshape(x.shape) * gamma + beta, atol=2e-3)


def test_half_precision_is_normalized_in_float32() -> None:
    layer = keras.layers.GroupNormalization(groups=1, dtype="float16")
    x = np.linspace(0, 60000, 64, dtype=np.float16).reshape(1, 4, 4, 4)
    layer.build(x.shape)
    with inference_layers(keras.Sequential([layer])):
        found = layer(x)
    assert found.dtype == tf.float16
    assert np.isfinite(found.numpy()).all()
    np.testing.assert_allclose(found.numpy().std(), 1.0, atol=1e-2)


def test_attention_by_hand() -> None:
    rng = np.random.default_rng(3)
    x = rng.normal(size=(2, 4, 6)).astype(np.float32)
    context = rng.normal(size=(2, 5, 3)).astype(np.float32)
    layer = CrossAttention(num_heads=2, head_size=3)
    layer(x, context)
    query, key, value, out, bias = layer.get_weights()
    found = attention(layer, x.reshape(8, 6), context.reshape(10, 3), tf.constant(2))
    heads = []
    for head in range(2):
        part = slice(3 * head, 3 * head + 3)
        scores = (x @ query)[..., part] @ np.swapaxes((context @ key)[..., part], 1, 2) / 3**0.5
        weights = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
        heads.append(weights @ (context @ value)[..., part])
    expected = np.concatenate(heads, -1) @ out + bias
    np.testing.assert_allclose(tf.reshape(found, x.shape), expected, atol=1e-5)


def test_on_a_cpu_convolutions_of_few_positions_are_matrix_products(wide: keras.Model) -> None:
    model = wide
    model.set_weights(random_like(model))
    rng = np.random.default_rng(4)
    # Heights and widths are open, as where it is exported.
    _, *others = ([None, *tensor.shape[1:]] for tensor in model.inputs)
    specs = [tf.TensorSpec(shape) for shape in ([None, None, None, 4], *others)]

    def traced(for_cpu: bool) -> tf.types.experimental.ConcreteFunction:
        with inference_layers(model, for_cpu):
            function = tf.function(lambda *x: model([*x], training=False), autograph=False)
            return function.get_concrete_function(*specs)

    def channels(function: tf.types.experimental.ConcreteFunction) -> list[int]:
        operations = function.graph.get_operations()
        return [op.inputs[0].shape[-1] for op in operations if op.type == "Conv2D"]

    on_cpu, on_gpu = traced(True), traced(False)
    assert channels(on_cpu) == [4]
    assert len(channels(on_gpu)) == sum(type(x) is keras.layers.Conv2D for x in layers_of(model))
    # Another size has other positions, and the same form of each layer.
    for side in ((8, 8), (24, 4)):
        shapes = ([2, *side, 4], *([2, *shape[1:]] for shape in others))
        inputs = [tf.constant(rng.normal(size=shape), tf.float32) for shape in shapes]
        expected = mapped_call(model, inputs, lambda layer: layer).numpy()
        for function in (on_cpu, on_gpu):
            found = function(*inputs)
            assert found.shape == (2, *side, 4)
            assert np.linalg.norm(found - expected) < 1e-5 * np.linalg.norm(expected)


def test_only_a_wide_network_has_a_form_for_cpus(wide: keras.Model) -> None:
    assert has_form_for_cpu(wide)
    tiny = get_preset("tiny").diffusion_model
    as_wide_as_tiny = dataclasses.replace(
        WIDE,
        diffusion_model=dataclasses.replace(
            WIDE.diffusion_model, widths=tiny.widths, cross_attention=tiny.cross_attention
        ),
    )
    assert not has_form_for_cpu(build_diffusion_model(as_wide_as_tiny, SIZE))
