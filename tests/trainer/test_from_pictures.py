"""Drawing from pictures: against what diffusers' pipelines made, and what it is worth at its ends.

`benchmarks/weights/from_pictures.py` made `tests/data/diffusers_tiny/from_pictures.npz`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import small_runs
import tensorflow as tf
from diffusers_preset import CHECKPOINT, IMAGE_SIZE, PRESET

from trainer.diffusion.noise_schedule import NoiseSchedule, alphas_cumprod
from trainer.diffusion.sampler import (
    Original,
    in_two_calls,
    initial_noise,
    sample,
    step_noise,
    to_image,
)
from trainer.diffusion.samplers import SAMPLERS, first_step, sampling_plan
from trainer.export.saved_models import DiffusionModelModule, ImageEncoderModule
from trainer.weights.base_model import BaseModel

SCHEDULE = NoiseSchedule("epsilon")


@pytest.fixture(scope="module")
def reference() -> dict[str, np.ndarray]:
    return dict(np.load(CHECKPOINT / "from_pictures.npz"))


@pytest.fixture(scope="module")
def theirs() -> BaseModel:
    return BaseModel.locate(PRESET, IMAGE_SIZE, str(CHECKPOINT))


def test_the_image_encoder_is_diffusers(
    reference: dict[str, np.ndarray], theirs: BaseModel
) -> None:
    module = ImageEncoderModule(theirs.build("image_encoder"))
    latent = module.serve(tf.constant(reference["picture"]))["latent"]
    np.testing.assert_allclose(latent, reference["latent"], atol=1e-6)
    files = tf.map_fn(tf.io.encode_png, tf.constant(reference["picture"]), tf.string)
    np.testing.assert_array_equal(module.png(files)["latent"], latent)
    with pytest.raises(tf.errors.InvalidArgumentError, match="must be multiples of 8; shape"):
        module.serve(tf.zeros([1, 64, 60, 3], tf.uint8))


def test_pictures_are_drawn_from_as_by_diffusers(
    reference: dict[str, np.ndarray], theirs: BaseModel
) -> None:
    module = DiffusionModelModule(theirs.build("diffusion_model"), theirs.preset, IMAGE_SIZE)
    noise, *fresh = map(tf.constant, reference["noise"])
    unconditional, context = (tf.constant(row[None]) for row in reference["contexts"])
    mask = tf.constant(reference["mask"][:, ::8, ::8, None] > 0)
    cases = [name for name in reference if "/" in name]
    assert len(cases) == 14
    for name in cases:
        pipeline, sampler, steps, strength = name.split("/")
        num_steps = tf.constant(int(steps))
        first = first_step(num_steps, tf.constant(float(strength)))
        drawn = sample(
            in_two_calls(module.predict_on_cpu, context, unconditional),
            SCHEDULE,
            noise=noise,
            num_steps=num_steps,
            guidance_scale=tf.constant(3.0),
            sampler=sampler,
            # They draw it for the steps that are made alone.
            fresh_noise=lambda index, first=first: tf.stack(fresh)[index - first],
            original=Original(
                tf.constant(reference["latent"]),
                tf.constant(float(strength)),
                mask if pipeline == "inpaint" else tf.ones_like(mask),
            ),
        )
        expected = reference[name]
        np.testing.assert_allclose(
            drawn, expected, rtol=0, atol=1e-4 * max(1.0, np.abs(expected).max()), err_msg=name
        )


def test_the_first_step_is_that_of_the_strength_however_it_is_rounded() -> None:
    numbers = [(25, 0.0, 25), (25, 0.039, 25), (25, 0.04, 24), (25, 0.999, 1), (25, 1.0, 0)]
    # As a float32, each of these is a little less or more than it says.
    numbers += [(steps, part / steps, steps - part) for steps in (7, 100, 999) for part in (1, 2)]
    numbers += [(100, 0.29, 71), (10, 0.7, 3), (1000, 0.001, 999), (1, 0.5, 1), (1, 1.0, 0)]
    for steps, strength, first in numbers:
        found = first_step(tf.constant(steps), tf.constant(strength, tf.float32))
        assert int(found) == first, (steps, strength)


def formula(latent: tf.Tensor, timesteps: tf.Tensor, context: tf.Tensor) -> tf.Tensor:
    return 0.7 * latent + 0.3 * tf.sin(2.0 * latent + timesteps[:, None, None, None] / 200.0)


def drawn_by_formula(
    sampler: str, strength: float, *, steps: int = 4, mask: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What is drawn of a latent; and that, and the noise over it."""
    noise, latent = (tf.random.stateless_normal([2, 4, 4, 4], [0, index]) for index in (0, 1))
    drawn = np.ones([2, 4, 4, 1], bool) if mask is None else mask
    context = tf.zeros([2, 1, 1])
    found = sample(
        in_two_calls(formula, context, context),
        SCHEDULE,
        noise=noise,
        num_steps=tf.constant(steps),
        guidance_scale=tf.constant(1.0),
        sampler=sampler,
        fresh_noise=lambda index: step_noise(tf.constant([1, 2]), index, tf.shape(noise)),
        original=Original(latent, tf.constant(strength), tf.constant(drawn)),
    )
    return found.numpy(), latent.numpy(), noise.numpy()


def test_a_step_of_ddim_by_hand() -> None:
    """Timestep 333 is the second to last of four; half of them are made."""
    drawn, latent, noise = drawn_by_formula("ddim", 0.5)
    high, low = alphas_cumprod()[[333, 0]]
    noisy = np.sqrt(high) * latent + np.sqrt(1 - high) * noise
    for timestep, alpha, after in ((333, high, low), (0, low, np.float32(1.0))):
        predicted = 0.7 * noisy + 0.3 * np.sin(2.0 * noisy + timestep / 200.0)
        clean = (noisy - np.sqrt(1 - alpha) * predicted) / np.sqrt(alpha)
        noisy = np.sqrt(after) * clean + np.sqrt(1 - after) * predicted
    np.testing.assert_allclose(drawn, noisy, atol=1e-4)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_what_is_not_drawn_is_kept_and_the_rest_sees_it(sampler: str) -> None:
    mask = np.zeros([2, 4, 4, 1], bool)
    mask[0, 1:3, 2] = mask[1, 0, 0] = True
    for strength in (0.5, 1.0):
        drawn, latent, _ = drawn_by_formula(sampler, strength, mask=mask)
        kept = np.broadcast_to(~mask, drawn.shape)
        np.testing.assert_array_equal(drawn[kept], latent[kept])
        # A network that sees a position alone draws it as if all were drawn.
        everything, _, _ = drawn_by_formula(sampler, strength)
        np.testing.assert_array_equal(drawn[~kept], everything[~kept])
        assert np.abs(drawn[~kept] - latent[~kept]).min() > 0
    nothing, latent, _ = drawn_by_formula(sampler, 0.0)
    np.testing.assert_array_equal(nothing, latent)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_what_a_step_begins_with_has_the_noise_that_the_network_is_told(sampler: str) -> None:
    plan = sampling_plan(sampler, tf.constant(10))
    asked: list[tuple[float, np.ndarray]] = []

    def predict(latent: tf.Tensor, timesteps: tf.Tensor, context: tf.Tensor) -> tf.Tensor:
        asked.append((float(timesteps[0]), latent.numpy()))
        return tf.zeros_like(latent)

    noise = tf.random.stateless_normal([1, 64, 64, 4], [3, 4])
    sample(
        in_two_calls(predict, tf.zeros([1, 1, 1]), tf.zeros([1, 1, 1])),
        SCHEDULE,
        noise=noise,
        num_steps=tf.constant(10),
        guidance_scale=tf.constant(1.0),
        sampler=sampler,
        fresh_noise=lambda index: tf.zeros_like(noise),
        original=Original(
            tf.ones_like(noise), tf.constant(0.35), tf.zeros_like(noise[..., :1], tf.bool)
        ),
    )
    # Nothing is drawn: every step is given the picture, with less and less noise over it.
    assert [timestep for timestep, _ in asked[::2]] == plan.timesteps[7:].numpy().tolist()
    for (_, given), alpha_bar in zip(asked[::2], plan.alpha_bar[7:].numpy(), strict=True):
        expected = np.sqrt(alpha_bar) + np.sqrt(1 - alpha_bar) * noise.numpy()
        np.testing.assert_allclose(given, expected, rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def model() -> DiffusionModelModule:
    return DiffusionModelModule(
        small_runs.plain_network(), small_runs.preset(), 64, image_to_image=True
    )


@pytest.fixture(scope="module")
def request_of() -> dict[str, Any]:
    """A picture's latent, and what else both signatures take."""
    context, unconditional = np.random.default_rng(3).standard_normal((2, 1, 77, 8)).astype("f")
    return {
        "context": tf.constant(context),
        "unconditional_context": tf.constant(unconditional),
        "num_steps": tf.constant(4),
        "guidance_scale": tf.constant(3.0),
        "seed": tf.constant([5, -6]),
        "latent": tf.random.stateless_normal([1, 8, 8, 4], [8, 9]),
    }


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_full_strength_is_drawing_from_text_and_none_gives_the_picture_back(
    model: DiffusionModelModule, request_of: dict[str, Any], sampler: str
) -> None:
    request = {**request_of, "sampler": tf.constant(sampler)}
    latent = request.pop("latent")
    from_text = model.sampled_from_noise(
        **request, noise=initial_noise(request["seed"], tf.constant(1), (8, 8, 4))
    )["latent"]

    def drawn(strength: float) -> np.ndarray:
        return model.from_image(**request, latent=latent, strength=tf.constant(strength))["latent"]

    np.testing.assert_array_equal(drawn(1.0), from_text)
    np.testing.assert_array_equal(drawn(0.2), latent)
    halfway = drawn(0.5)
    assert not np.allclose(halfway, latent)
    assert not np.allclose(halfway, from_text)

    # A mask of everything, of nothing, and of one pixel: its whole position is drawn.
    def inpainted(mask: np.ndarray, strength: float) -> np.ndarray:
        return model.inpaint(
            **request, latent=latent, strength=tf.constant(strength), mask=tf.constant(mask)
        )["latent"].numpy()

    mask = np.zeros([1, 64, 64], np.uint8)
    np.testing.assert_array_equal(inpainted(mask, 1.0), latent)
    np.testing.assert_array_equal(inpainted(mask + 7, 0.5), halfway)
    mask[0, 47, 8] = 1
    changed = (inpainted(mask, 1.0) != latent.numpy()).any(axis=-1)
    assert np.argwhere(changed).tolist() == [[0, 5, 1]]


def test_what_cannot_be_is_refused(model: DiffusionModelModule, request_of: dict[str, Any]) -> None:
    request = {**request_of, "sampler": tf.constant("ddim")}
    for strength in (-0.1, 1.1, float("nan")):
        with pytest.raises(tf.errors.InvalidArgumentError, match="strength must be 0 to 1, and is"):
            model.from_image(**request, strength=tf.constant(strength))
    with pytest.raises(tf.errors.InvalidArgumentError, match="mask must have the pixels of"):
        model.inpaint(**request, strength=tf.constant(0.5), mask=tf.zeros([1, 8, 8], tf.uint8))
    with pytest.raises(tf.errors.InvalidArgumentError, match="sampler must be one of ddim"):
        model.from_image(**{**request, "sampler": tf.constant("x")}, strength=tf.constant(0.5))


def test_pictures_become_what_the_encoder_was_trained_on() -> None:
    image = to_image(tf.constant([0, 51, 255], tf.uint8))
    np.testing.assert_allclose(image, [-1.0, -0.6, 1.0], rtol=1e-6)
