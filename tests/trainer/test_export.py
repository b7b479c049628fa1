"""Sampling against KerasCV's own generator, and the exported SavedModels against the networks."""

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras_cv.src.models.stable_diffusion.stable_diffusion import StableDiffusion

from storage.user_errors import UserError
from trainer.diffusion.noise_schedule import NoiseSchedule, timestep_embedding
from trainer.diffusion.sampler import (
    in_one_call,
    in_two_calls,
    initial_noise,
    sample,
    step_noise,
    to_pixels,
)
from trainer.diffusion.samplers import DEFAULT_SAMPLER, SAMPLERS
from trainer.export.drawing_memory import DrawingMemory
from trainer.export.saved_models import (
    DiffusionModelModule,
    ServingModules,
    export_models,
    serving_modules,
)
from trainer.networks import build_network
from trainer.presets import Preset
from trainer.text.tokenizer import tokenize
from trainer.weights.base_model import BaseModel

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
    base_model = BaseModel.locate(preset, 128, "random")
    return {n: base_model.build(n) for n in ("text_encoder", "diffusion_model", "decoder")}


@pytest.fixture(scope="module")
def modules(preset: Preset, networks: dict[str, keras.Model]) -> ServingModules:
    return serving_modules(**networks, preset=preset, image_size=128)


@pytest.fixture(scope="module")
def exported(modules: ServingModules, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    export_models(str(folder), modules)
    return folder


class _CapturedLatent(Exception):
    pass


@pytest.fixture(scope="module")
def loaded(exported: Path) -> dict[str, Any]:
    names = ("text_encoder", "diffusion_model", "decoder")
    return {name: tf.saved_model.load(str(exported / name)) for name in names}


@pytest.mark.parametrize("num_steps", [1, 7, 25, 30])
def test_sampling_is_keras_cvs(
    networks: dict[str, keras.Model], loaded: dict[str, Any], num_steps: int
) -> None:
    class Decoder:
        def predict_on_batch(self, latent):
            raise _CapturedLatent(np.asarray(latent))

    theirs = StableDiffusion(128, 128, jit_compile=False)
    theirs._text_encoder = networks["text_encoder"]
    theirs._diffusion_model = networks["diffusion_model"]
    theirs._decoder = Decoder()
    noise = np.random.default_rng(0).standard_normal((2, 16, 16, 4)).astype(np.float32)
    contexts = loaded["text_encoder"].signatures["text"](
        prompt=tf.constant(PROMPTS), negative_prompt=tf.constant(["", ""])
    )
    with pytest.raises(_CapturedLatent) as captured:
        theirs.generate_image(
            contexts["context"],
            batch_size=2,
            num_steps=num_steps,
            unconditional_guidance_scale=5.0,
            diffusion_noise=noise,
        )
    [expected] = captured.value.args
    actual = loaded["diffusion_model"].signatures["from_noise"](
        noise=tf.constant(noise),
        num_steps=tf.constant(num_steps),
        guidance_scale=tf.constant(5.0),
        **contexts,
    )["latent"]
    error = np.abs(actual - expected).max() / np.abs(expected).max()
    assert error < 1e-3


def test_two_predictions_apart_are_those_together(loaded: dict[str, Any]) -> None:
    predict = loaded["diffusion_model"].signatures["predict_epsilon"]
    noise = tf.constant(np.random.default_rng(0).standard_normal((2, 16, 16, 4)), tf.float32)
    contexts = loaded["text_encoder"].signatures["text"](
        prompt=tf.constant(PROMPTS), negative_prompt=tf.constant(["", "blurred"])
    )
    together, apart = (
        sample(
            both(
                lambda latent, timesteps, context: predict(
                    latent=latent, timesteps=tf.cast(timesteps, tf.int32), context=context
                )["epsilon"],
                **contexts,
            ),
            NoiseSchedule("epsilon"),
            noise=noise,
            num_steps=tf.constant(3),
            guidance_scale=tf.constant(5.0),
        )
        for both in (in_one_call, in_two_calls)
    )
    np.testing.assert_allclose(apart, together, rtol=1e-4, atol=1e-4)


def test_a_wide_network_is_exported_in_two_forms_and_drawn_with_that_of_the_device(
    preset: Preset, tmp_path: Path
) -> None:
    dimensions = dataclasses.replace(preset.diffusion_model, widths=(256,))
    wide = dataclasses.replace(preset, diffusion_model=dimensions)
    model = BaseModel.locate(wide, 64, "random").build("diffusion_model")
    module = DiffusionModelModule(model, wide, 64)
    tf.saved_model.save(
        module, str(tmp_path), signatures={"predict_epsilon": module.serve_prediction}
    )
    loaded = tf.saved_model.load(str(tmp_path))
    latent, context = (
        tf.random.stateless_normal(shape, [0, index])
        for index, shape in enumerate(([2, 8, 8, 4], [2, 77, 8]))
    )
    on_cpu, on_gpu = (
        predict(latent, tf.constant([3.0, 700.0]), context)
        for predict in (loaded.predict_on_cpu, loaded.predict_on_gpu)
    )
    np.testing.assert_allclose(on_cpu, on_gpu, rtol=1e-4, atol=1e-5)
    # They round differently, which shows which one was used.
    assert not np.array_equal(on_cpu, on_gpu)
    device = "gpu" if tf.config.list_physical_devices("GPU") else "cpu"
    signature = loaded.signatures["predict_epsilon"]
    used = signature(latent=latent, timesteps=tf.constant([3, 700]), context=context)["epsilon"]
    np.testing.assert_array_equal(used, on_cpu if device == "cpu" else on_gpu)


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
    expected = networks["text_encoder"](tokens)
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
    from_noise = diffusion["from_noise"](
        context=both["context"],
        unconditional_context=both["unconditional_context"],
        num_steps=tf.constant(3),
        guidance_scale=tf.constant(3.0),
        noise=initial_noise(tf.constant([0, 0]), 2, (16, 16, 4)),
    )["latent"]
    np.testing.assert_array_equal(from_noise, draw(0))

    latent = tf.constant(draw(0))
    images = decoder["serving_default"](latent=latent)["generated_images"]
    assert images.dtype == tf.uint8
    assert images.shape == (2, 128, 128, 3)
    expected = to_pixels(networks["decoder"](latent))
    # A graph may round otherwise than single operations do.
    np.testing.assert_allclose(tf.cast(images, tf.int32), tf.cast(expected, tf.int32), atol=1)
    encoded = decoder["png"](latent=latent)["image"]
    np.testing.assert_array_equal(tf.io.decode_png(encoded[1]), images[1])
    np.testing.assert_array_equal(decoder["png_bytes"](latent=latent)["image_bytes"], encoded)


def test_every_sampler_draws_with_one_trace_of_the_network(
    networks: dict[str, keras.Model], loaded: dict[str, Any]
) -> None:
    model = loaded["diffusion_model"]
    rng = np.random.default_rng(2)
    context, unconditional = rng.standard_normal((2, 2, 77, 8)).astype(np.float32)
    seed = tf.constant([5, -6])

    def draw(signature: str, pictures: int = 2, **inputs: Any) -> np.ndarray:
        latent = model.signatures[signature](
            context=tf.constant(context[:pictures]),
            unconditional_context=tf.constant(unconditional[:pictures]),
            num_steps=tf.constant(4),
            guidance_scale=tf.constant(3.0),
            **inputs,
        )["latent"]
        return latent.numpy()

    def predict(latent: tf.Tensor, timesteps: tf.Tensor, context: tf.Tensor) -> tf.Tensor:
        embedding = timestep_embedding(timesteps, 320)
        return networks["diffusion_model"]([latent, embedding, context])

    noise = initial_noise(seed, tf.constant(2), (16, 16, 4))
    for sampler in SAMPLERS:
        drawn = draw("sample", seed=seed, sampler=tf.constant(sampler))
        expected = sample(
            in_one_call(predict, tf.constant(context), tf.constant(unconditional)),
            NoiseSchedule("epsilon"),
            noise=noise,
            num_steps=tf.constant(4),
            guidance_scale=tf.constant(3.0),
            sampler=sampler,
            fresh_noise=lambda index: step_noise(seed, index, tf.constant([2, 16, 16, 4])),
        )
        # Every step doubles what single operations round differently.
        np.testing.assert_allclose(drawn, expected, atol=1e-3 * np.abs(expected).max())
        given = draw("sample_from_noise", noise=noise, seed=seed, sampler=tf.constant(sampler))
        np.testing.assert_array_equal(given, drawn)
        alone = draw("sample", 1, seed=seed, sampler=tf.constant(sampler))
        np.testing.assert_allclose(alone, drawn[:1], atol=1e-3 * np.abs(drawn).max())
        if sampler == DEFAULT_SAMPLER:
            np.testing.assert_array_equal(draw("serving_default", seed=seed), drawn)
    other = draw("sample", seed=seed, sampler=tf.constant("euler_a"))
    fresh = draw("sample_from_noise", noise=noise, seed=seed + 1, sampler=tf.constant("euler_a"))
    assert not np.allclose(other, fresh)


def test_another_size_is_drawn_as_by_networks_built_for_it(
    preset: Preset, networks: dict[str, keras.Model], loaded: dict[str, Any]
) -> None:
    signatures = loaded["diffusion_model"].signatures
    context, unconditional = np.random.default_rng(3).standard_normal((2, 2, 77, 8)).astype("f")
    request = {
        "context": tf.constant(context),
        "unconditional_context": tf.constant(unconditional),
        "num_steps": tf.constant(3),
        "guidance_scale": tf.constant(3.0),
        "seed": tf.constant([5, -6]),
        "sampler": tf.constant("euler_a"),
    }

    def draw(height: int, width: int) -> tf.Tensor:
        size = {"height": tf.constant(height), "width": tf.constant(width)}
        return signatures["sample_at_size"](**request, **size)["latent"]

    # 0 is the size of the training, with the former signature's values.
    own = signatures["sample"](**request)["latent"]
    for height, width in ((128, 128), (0, 0), (128, 0)):
        np.testing.assert_array_equal(draw(height, width), own)

    size = (64, 192)
    built = {
        network: build_network(network, preset, size) for network in ("diffusion_model", "decoder")
    }
    for network, model in built.items():
        model.set_weights(networks[network].get_weights())
    noise = initial_noise(request["seed"], tf.constant(2), (8, 24, 4))
    expected = sample(
        in_one_call(
            lambda latent, timesteps, context: built["diffusion_model"](
                [latent, timestep_embedding(timesteps, 320), context]
            ),
            request["context"],
            request["unconditional_context"],
        ),
        NoiseSchedule("epsilon"),
        noise=noise,
        num_steps=request["num_steps"],
        guidance_scale=request["guidance_scale"],
        fresh_noise=lambda index: step_noise(request["seed"], index, tf.constant([2, 8, 24, 4])),
        sampler="euler_a",
    )
    drawn = draw(*size)
    assert drawn.shape == (2, 8, 24, 4)
    np.testing.assert_allclose(drawn, expected, atol=1e-3 * np.abs(expected).max())
    given = signatures["sample_from_noise"](**request, noise=noise)["latent"]
    np.testing.assert_array_equal(given, drawn)
    images = loaded["decoder"].signatures["serving_default"](latent=drawn)["generated_images"]
    assert images.shape == (2, 64, 192, 3)
    expected = to_pixels(built["decoder"](drawn))
    np.testing.assert_allclose(tf.cast(images, tf.int32), tf.cast(expected, tf.int32), atol=1)


def test_sizes_are_told_and_others_refused(preset: Preset, loaded: dict[str, Any]) -> None:
    signatures = loaded["diffusion_model"].signatures

    def told(height: int, width: int) -> dict[str, Any]:
        found = signatures["size"](height=tf.constant(height), width=tf.constant(width))
        return {name: value.numpy().tolist() for name, value in found.items()}

    peak = [pytest.approx(max(DrawingMemory.of(preset).of_networks(16 * 40)), rel=1e-6)]
    # One level: every pixel of a latent is possible.
    expected = {"height": [128], "width": [320], "multiple": [8], "peak_memory": peak}
    assert told(0, 320) == expected
    assert told(128, 320) == expected

    context = tf.zeros([1, 77, 8])
    request = {
        "context": context,
        "unconditional_context": context,
        "num_steps": tf.constant(1),
        "guidance_scale": tf.constant(1.0),
        "seed": tf.constant([0, 0]),
        "sampler": tf.constant("ddim"),
    }
    for height, width, name in ((12, 64, "height"), (64, -8, "width")):
        size = {"height": tf.constant(height), "width": tf.constant(width)}
        message = f"(?s){name} must be a multiple of 8, 0 for 128, and is.*{min(height, width)}"
        with pytest.raises(tf.errors.InvalidArgumentError, match=message):
            signatures["sample_at_size"](**request, **size)
    with pytest.raises(tf.errors.InvalidArgumentError, match="noise must be multiples of 1; its"):
        signatures["sample_from_noise"](**request, noise=tf.zeros([1, 0, 8, 4]))


@pytest.mark.parametrize(
    ("num_steps", "guidance_scale", "sampler", "message"),
    [
        (0, 1.0, "ddim", "num_steps must be 1 to 1000, and is.*0"),
        (1001, 1.0, "ddim", "num_steps must be 1 to 1000, and is.*1001"),
        (2, float("nan"), "ddim", "guidance_scale must be finite, and is.*nan"),
        (2, 1.0, "DDIM", f"sampler must be one of {', '.join(SAMPLERS)}, and is.*DDIM"),
    ],
)
def test_impossible_requests_are_refused(
    loaded: dict[str, Any], num_steps: int, guidance_scale: float, sampler: str, message: str
) -> None:
    context = tf.zeros([1, 77, 8])
    request = {
        "context": context,
        "unconditional_context": context,
        "num_steps": tf.constant(num_steps),
        "guidance_scale": tf.constant(guidance_scale),
        "seed": tf.constant([0, 0]),
    }
    signatures = loaded["diffusion_model"].signatures
    with pytest.raises(tf.errors.InvalidArgumentError, match=f"(?s){message}"):
        signatures["sample"](**request, sampler=tf.constant(sampler))
    if sampler == "ddim":
        with pytest.raises(tf.errors.InvalidArgumentError, match=f"(?s){message}"):
            signatures["serving_default"](**request)


def test_float16_is_half_as_large_and_computes_in_float32(
    preset: Preset, networks: dict[str, keras.Model], exported: Path, tmp_path: Path
) -> None:
    def rounded(model: keras.Model) -> list[np.ndarray]:
        return [w.astype(np.float16).astype(np.float32) for w in model.get_weights()]

    export_models(
        str(tmp_path),
        serving_modules(**networks, preset=preset, image_size=128, weights_dtype="float16"),
    )
    for name, model in networks.items():
        stored = tf.train.load_checkpoint(str(tmp_path / name / "variables" / "variables"))
        types, shapes = stored.get_variable_to_dtype_map(), stored.get_variable_to_shape_map()
        weights = {key for key in types if key.startswith("_variables/")}
        assert {types[key] for key in weights} == {tf.float16}
        assert sum(np.prod(shapes[key]) for key in weights) == model.count_params()
        assert tf.float32 not in types.values()
    before = networks["diffusion_model"].get_weights()
    networks["diffusion_model"].set_weights(rounded(networks["diffusion_model"]))
    inputs = {
        "latent": tf.random.stateless_normal([1, 16, 16, 4], [0, 0]),
        "timesteps": tf.constant([7]),
        "context": tf.random.stateless_normal([1, 77, 8], [0, 1]),
    }
    expected, unrounded = (
        tf.saved_model.load(str(folder / "diffusion_model")).signatures["predict_epsilon"](**inputs)
        for folder in (tmp_path, exported)
    )
    embedding = timestep_embedding(inputs["timesteps"], 320)
    actual = networks["diffusion_model"]([inputs["latent"], embedding, inputs["context"]])
    networks["diffusion_model"].set_weights(before)
    np.testing.assert_allclose(actual, expected["epsilon"], atol=1e-5)
    assert not np.allclose(unrounded["epsilon"], expected["epsilon"], atol=1e-5)


def test_weights_too_large_for_float16_are_refused(
    preset: Preset, networks: dict[str, keras.Model]
) -> None:
    variable = networks["decoder"].weights[0]
    before = variable.numpy()
    variable.assign(np.full_like(before, 1e5))
    try:
        with pytest.raises(UserError, match=r"too large for float16.*export_weights to float32"):
            serving_modules(**networks, preset=preset, image_size=128, weights_dtype="float16")
    finally:
        variable.assign(before)


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
