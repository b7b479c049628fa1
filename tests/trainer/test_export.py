"""Sampling against KerasCV's own generator, and the exported SavedModels against the networks."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras_cv.src.models.stable_diffusion.stable_diffusion import StableDiffusion

from trainer.export import (
    DecoderModule,
    DiffusionModelModule,
    ServingModules,
    TextEncoderModule,
    export_models,
)
from trainer.models import build_decoder, build_diffusion_model, build_text_encoder
from trainer.presets import Preset
from trainer.sampler import sample, to_pixels
from trainer.tokenizer import tokenize
from trainer.weights import load_base_weights

PROMPTS = ["a drawing of a round blue creature", "a red one"]


@pytest.fixture(scope="module")
def preset(small_preset: Preset) -> Preset:
    # KerasCV's generator knows timestep embeddings of width 320 alone.
    return dataclasses.replace(
        small_preset,
        diffusion_model=dataclasses.replace(small_preset.diffusion_model, timestep_width=320),
    )


@pytest.fixture(scope="module")
def networks(preset: Preset) -> dict[str, keras.Model]:
    models = {
        "text_encoder": build_text_encoder(preset),
        "diffusion_model": build_diffusion_model(preset, 128),
        "decoder": build_decoder(preset, 128),
    }
    for name, model in models.items():
        load_base_weights(model, name, preset, "random")
    return models


@pytest.fixture(scope="module")
def modules(preset: Preset, networks: dict[str, keras.Model]) -> ServingModules:
    return ServingModules(
        TextEncoderModule(networks["text_encoder"], preset),
        DiffusionModelModule(networks["diffusion_model"], preset, 128),
        DecoderModule(networks["decoder"], preset, 128),
    )


@pytest.fixture(scope="module")
def exported(modules: ServingModules, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    export_models(str(folder), modules)
    return folder


class _CapturedLatent(Exception):
    pass


@pytest.mark.parametrize("num_steps", [1, 7, 25, 30])
def test_sampling_is_keras_cvs(
    preset: Preset, networks: dict[str, keras.Model], modules, num_steps: int
) -> None:
    class Decoder:
        def predict_on_batch(self, latent):
            raise _CapturedLatent(np.asarray(latent))

    theirs = StableDiffusion(128, 128, jit_compile=False)
    theirs._text_encoder = networks["text_encoder"]
    theirs._diffusion_model = networks["diffusion_model"]
    theirs._decoder = Decoder()
    noise = np.random.default_rng(0).standard_normal((2, 16, 16, 4)).astype(np.float32)
    contexts = modules.text_encoder.text(PROMPTS, ["", ""])
    with pytest.raises(_CapturedLatent) as captured:
        theirs.generate_image(
            contexts["context"],
            batch_size=2,
            num_steps=num_steps,
            unconditional_guidance_scale=5.0,
            diffusion_noise=noise,
        )
    [expected] = captured.value.args
    actual = sample(
        modules.diffusion_model.predict,
        noise=tf.constant(noise),
        num_steps=tf.constant(num_steps),
        guidance_scale=tf.constant(5.0),
        **contexts,
    )
    error = np.abs(actual - expected).max() / np.abs(expected).max()
    assert error < 1e-3


def test_pixels_by_hand() -> None:
    image = tf.constant([-2.0, -1.0, 0.0, 0.999, 1.0, 2.0])
    np.testing.assert_array_equal(to_pixels(image), [0, 0, 127, 254, 255, 255])


def test_saved_models_compute_what_the_networks_do(
    preset: Preset, networks: dict[str, keras.Model], exported: Path
) -> None:
    text = tf.saved_model.load(str(exported / "text_encoder")).signatures
    diffusion = tf.saved_model.load(str(exported / "diffusion_model")).signatures
    decoder = tf.saved_model.load(str(exported / "decoder")).signatures

    tokens = tf.constant(tokenize(PROMPTS))
    positions = tf.broadcast_to(tf.range(77)[None], tokens.shape)
    expected = networks["text_encoder"]([tokens, positions])
    context = text["serving_default"](tokens=tokens)["context"]
    np.testing.assert_allclose(context, expected, atol=1e-5)
    both = text["text"](
        prompt=tf.constant(PROMPTS), negative_prompt=tf.constant([PROMPTS[1], PROMPTS[0]])
    )
    np.testing.assert_allclose(both["context"], expected, atol=1e-5)
    np.testing.assert_allclose(both["unconditional_context"], expected[::-1], atol=1e-5)

    noise = np.random.default_rng(1).standard_normal((2, 16, 16, 4)).astype(np.float32)
    epsilon = diffusion["predict_epsilon"](
        latent=tf.constant(noise), timesteps=tf.constant([3, 700]), context=context
    )["epsilon"]
    from trainer.noise_schedule import timestep_embedding

    expected = networks["diffusion_model"](
        [tf.constant(noise), timestep_embedding(tf.constant([3, 700]), 320), context]
    )
    np.testing.assert_allclose(epsilon, expected, atol=1e-4)

    def draw(seed: int, scale: float = 3.0, steps: int = 3) -> np.ndarray:
        latent = diffusion["serving_default"](
            context=both["context"],
            unconditional_context=both["unconditional_context"],
            num_steps=tf.constant(steps),
            guidance_scale=tf.constant(scale),
            seed=tf.constant([seed, 0]),
        )["latent"]
        return latent.numpy()

    np.testing.assert_array_equal(draw(0), draw(0))
    assert not np.allclose(draw(0), draw(1))
    assert not np.allclose(draw(0), draw(0, scale=1.0))
    assert not np.allclose(draw(0), draw(0, steps=4))

    latent = tf.constant(draw(0))
    images = decoder["serving_default"](latent=latent)["generated_images"]
    assert images.dtype == tf.uint8
    assert images.shape == (2, 128, 128, 3)
    np.testing.assert_array_equal(images, to_pixels(networks["decoder"](latent)))
    encoded = decoder["png"](latent=latent)["image"]
    np.testing.assert_array_equal(tf.io.decode_png(encoded[1]), images[1])


def test_every_weight_is_stored_once(networks: dict[str, keras.Model], exported: Path) -> None:
    for name, model in networks.items():
        stored = sum(
            path.stat().st_size for path in (exported / name / "variables").glob("*.data*")
        )
        assert stored < 1.5 * 4 * model.count_params() + 100_000


def test_saved_models_load_where_there_is_only_tensorflow(exported: Path) -> None:
    script = (
        "import sys, tensorflow as tf\n"
        "names = ('text_encoder', 'diffusion_model', 'decoder')\n"
        f"models = [tf.saved_model.load('{exported}/' + name) for name in names]\n"
        "c = models[0].signatures['text'](prompt=tf.constant(['a']),\n"
        "                                negative_prompt=tf.constant(['']))\n"
        "z = models[1].signatures['serving_default'](**c, num_steps=tf.constant(2),\n"
        "    guidance_scale=tf.constant(2.0), seed=tf.constant([0, 0]))\n"
        "x = models[2].signatures['serving_default'](**z)['generated_images']\n"
        "assert x.shape == (1, 128, 128, 3), x.shape\n"
        "assert not {'keras_cv', 'trainer', 'tfx'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd="/", timeout=300)
