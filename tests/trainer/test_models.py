import keras
import numpy as np
import pytest
import tensorflow as tf
from keras_cv.src.models.stable_diffusion.decoder import Decoder
from keras_cv.src.models.stable_diffusion.diffusion_model import (
    DiffusionModel,
    DiffusionModelV2,
)
from keras_cv.src.models.stable_diffusion.image_encoder import ImageEncoder
from keras_cv.src.models.stable_diffusion.text_encoder import TextEncoder, TextEncoderV2

from trainer.networks import (
    build_decoder,
    build_diffusion_model,
    build_image_encoder,
    build_text_encoder,
)
from trainer.networks.seam import layers_within
from trainer.presets import Preset, get_preset
from trainer.weights.base_model import BaseModel


def shapes(model: keras.Model) -> list[tuple[int, ...]]:
    return [tuple(v.shape) for v in model.weights]


@pytest.fixture
def zeros_for_random_values(monkeypatch) -> None:
    """Half a minute that no test of shapes needs."""
    for kind in (keras.initializers.GlorotUniform, keras.initializers.RandomUniform):
        monkeypatch.setattr(kind, "__call__", lambda _, shape, dtype=None: tf.zeros(shape, dtype))


@pytest.mark.parametrize(
    ("names", "build", "build_keras_cv", "parameters"),
    [
        (
            ["sd-v1-4"],
            lambda preset: build_text_encoder(preset),
            lambda: TextEncoder(77, download_weights=False),
            123_060_480,
        ),
        pytest.param(
            ["sd-v2-1-base", "sd-v2-1"],
            lambda preset: build_text_encoder(preset),
            lambda: TextEncoderV2(77, download_weights=False),
            340_387_840,
            marks=pytest.mark.slow,
        ),
        (
            ["sd-v1-4", "sd-v2-1-base", "sd-v2-1"],
            lambda preset: build_image_encoder(preset),
            lambda: ImageEncoder(download_weights=False),
            34_163_664,
        ),
        (
            ["sd-v1-4", "sd-v2-1-base", "sd-v2-1"],
            lambda preset: build_decoder(preset, 128),
            lambda: Decoder(128, 128, download_weights=False),
            49_490_199,
        ),
        pytest.param(
            ["sd-v1-4"],
            lambda preset: build_diffusion_model(preset, 128),
            lambda: DiffusionModel(128, 128, 77, download_weights=False),
            859_520_964,
            marks=pytest.mark.slow,
        ),
        pytest.param(
            ["sd-v2-1-base", "sd-v2-1"],
            lambda preset: build_diffusion_model(preset, 128),
            lambda: DiffusionModelV2(128, 128, 77, download_weights=False),
            865_910_724,
            marks=pytest.mark.slow,
        ),
    ],
    ids=[
        "text_encoder",
        "text_encoder_v2",
        "image_encoder",
        "decoder",
        "diffusion_model",
        "diffusion_model_v2",
    ],
)
@pytest.mark.usefixtures("zeros_for_random_values")
def test_full_size_networks_are_keras_cvs(names, build, build_keras_cv, parameters) -> None:
    first, *others = map(get_preset, names)
    ours = build(first)
    count, ours_shapes = ours.count_params(), shapes(ours)
    for preset in (first, *others):
        assert parameters == preset.parameters[ours.name]
        # What the same numbers make need not be built again.
        assert getattr(preset, ours.name) == getattr(first, ours.name)
    del ours
    theirs = build_keras_cv()
    assert count == parameters == theirs.count_params()
    assert ours_shapes == shapes(theirs)


@pytest.mark.slow
@pytest.mark.parametrize("network", ["text_encoder", "diffusion_model"])
def test_networks_of_the_second_generation_compute_what_keras_cvs_do(network) -> None:
    """Which of the two activations, and how many heads, no shape tells."""
    preset, rng = get_preset("sd-v2-1-base"), np.random.default_rng(0)
    if network == "text_encoder":
        ours, theirs = build_text_encoder(preset), TextEncoderV2(77, download_weights=False)
        tokens = rng.integers(0, 49408, (1, 77))
        inputs, given = tokens, [tokens, np.arange(77)[None]]
    else:
        ours = build_diffusion_model(preset, 64)
        theirs = DiffusionModelV2(64, 64, 77, download_weights=False)
        sizes = (1, 8, 8, 4), (1, 320), (1, 77, 1024)
        inputs = [rng.standard_normal(size).astype(np.float32) for size in sizes]
        given = inputs
    for mine, other in zip(ours.weights, theirs.weights, strict=True):
        mine.assign(other.value)
    expected = np.asarray(theirs(given))
    error = np.linalg.norm(ours(inputs) - expected) / np.linalg.norm(expected)
    assert error < 1e-5


def test_decoder_computes_what_keras_cvs_does() -> None:
    """With the same weights: the order of the layers is theirs, not only the shapes."""
    ours, theirs = build_decoder(get_preset("sd-v1-4"), 64), Decoder(64, 64, download_weights=False)
    ours.set_weights(theirs.get_weights())
    latent = np.random.default_rng(0).standard_normal((1, 8, 8, 4)).astype(np.float32)
    np.testing.assert_allclose(ours(latent), theirs(latent), rtol=1e-4, atol=1e-4)


def test_image_encoder_computes_what_keras_cvs_does_before_it_cuts_and_scales() -> None:
    ours, theirs = build_image_encoder(get_preset("sd-v1-4")), ImageEncoder(download_weights=False)
    ours.set_weights(theirs.get_weights())
    image = np.random.default_rng(0).uniform(-1, 1, (1, 64, 64, 3)).astype(np.float32)
    np.testing.assert_allclose(ours(image)[..., :4] * 0.18215, theirs(image), rtol=1e-4, atol=1e-4)


def test_norm_groups_reach_every_normalization(small_preset: Preset) -> None:
    model = build_diffusion_model(small_preset, 64)
    groups = [
        layer.groups
        for layer in layers_within(model)
        if isinstance(layer, keras.layers.GroupNormalization)
    ]
    assert groups
    assert set(groups) == {small_preset.diffusion_model.norm_groups}


@pytest.mark.parametrize("image_size", [64, 128])
def test_small_networks_fit_together(small_preset: Preset, image_size: int) -> None:
    image = tf.zeros((2, image_size, image_size, 3))
    moments = build_image_encoder(small_preset)(image)
    assert moments.shape == (2, image_size // 8, image_size // 8, 8)
    tokens = tf.zeros((2, 77), tf.int32)
    context = build_text_encoder(small_preset)(tokens)
    assert context.shape == (2, 77, 8)
    epsilon = build_diffusion_model(small_preset, image_size)(
        [moments[..., :4], tf.zeros((2, 8)), context]
    )
    assert epsilon.shape == (2, image_size // 8, image_size // 8, 4)
    assert build_decoder(small_preset, image_size)(epsilon).shape == image.shape


@pytest.mark.parametrize(
    ("name", "size"), [("tiny", 100), ("tiny", 0), ("tiny", -64), ("sd-v1-4", 192)]
)
def test_impossible_image_size_names_what_is_allowed(name: str, size: int) -> None:
    preset = get_preset(name)
    with pytest.raises(ValueError, match=f"multiple of {preset.image_size_multiple}"):
        BaseModel.locate(preset, size, "random")


def test_unknown_preset_lists_those_there_are() -> None:
    with pytest.raises(ValueError, match="tiny, sd-v1-4, sd-v2-1-base, sd-v2-1"):
        get_preset("huge")
