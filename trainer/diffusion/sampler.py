"""Sampling: from noise, or from a picture with noise over it, and a context to a latent."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import tensorflow as tf

from trainer.diffusion.noise_schedule import NoiseSchedule
from trainer.diffusion.samplers import (
    DEFAULT_SAMPLER,
    NEED_FRESH_NOISE,
    first_step,
    sampling_plan,
)

Predict = Callable[[tf.Tensor, tf.Tensor, tf.Tensor], tf.Tensor]
"""A diffusion model: from noisy latent, timesteps float32 [B] and context to its prediction."""


@dataclasses.dataclass(frozen=True)
class Original:
    """A picture to begin with.

    Attributes:
        latent: float32 [B, h, w, 4], scaled by `LATENT_SCALE`.
        strength: float32 [], from 0, which leaves it as it is, to 1, which begins with noise alone.
        drawn: bool [B, h, w, 1], where it is drawn anew; everywhere else it is kept.
    """

    latent: tf.Tensor
    strength: tf.Tensor
    drawn: tf.Tensor


def sample(
    predict: Predict,
    schedule: NoiseSchedule,
    *,
    noise: tf.Tensor,
    context: tf.Tensor,
    unconditional_context: tf.Tensor,
    num_steps: tf.Tensor,
    guidance_scale: tf.Tensor,
    sampler: str | tf.Tensor = DEFAULT_SAMPLER,
    fresh_noise: Callable[[tf.Tensor], tf.Tensor] | None = None,
    guided_together: bool = True,
    original: Original | None = None,
) -> tf.Tensor:
    """Takes the noise away, step by step.

    Classifier-free guidance (Ho and Salimans 2022, equation 6) needs two predictions a step.

    From a picture, the last steps alone are made (Meng et al. 2022, SDEdit), and after each of them
    what is to be kept is put back with as much noise as the next step begins with (Lugmayr et al.
    2022, equation 8, with one noise for all steps): as diffusers' `StableDiffusionImg2ImgPipeline`
    and, for a network of four channels, `StableDiffusionInpaintPipeline` have it. Where all steps
    are made, the first begins with noise alone, as of the second of these.

    Args:
        predict: The diffusion model.
        schedule: What its predictions mean.
        noise: float32 [B, h, w, 4], standard normal.
        context: float32 [B, 77, D].
        unconditional_context: float32 [B, 77, D], of the empty or the negative prompt.
        num_steps: int32 [], at least 1.
        guidance_scale: float32 [].
        sampler: One of `samplers.SAMPLERS`, or a string [] that is one.
        fresh_noise: Standard normal noise, float32 [B, h, w, 4], for the step of a number, int32
            []; may only be left out for a name of a sampler that needs none.
        guided_together: Whether both are made in one call on a doubled batch, or in two.
        original: The picture; `None` to draw from noise alone.

    Returns:
        float32 [B, h, w, 4].

    Raises:
        ValueError: The sampler needs fresh noise, or may do so.
    """
    if fresh_noise is None and (not isinstance(sampler, str) or sampler in NEED_FRESH_NOISE):
        raise ValueError(f"the sampler {sampler} needs fresh noise")
    plan = sampling_plan(sampler, num_steps)
    batch = tf.shape(noise)[0]
    both_contexts = tf.concat([unconditional_context, context], axis=0)

    def both_predictions(latent: tf.Tensor, timestep: tf.Tensor) -> Sequence[tf.Tensor]:
        if guided_together:
            doubled = tf.concat([latent, latent], axis=0)
            repeated = tf.fill([2 * batch], timestep)
            return tf.split(predict(doubled, repeated, both_contexts), 2, axis=0)
        repeated = tf.fill([batch], timestep)
        return [predict(latent, repeated, each) for each in (unconditional_context, context)]

    first, initial = tf.constant(0), plan.initial_scale * noise
    if original is not None:
        # After the last step there is no noise.
        alpha_bars = tf.concat([plan.alpha_bar, [1.0]], axis=0)

        def noised(index: tf.Tensor) -> tf.Tensor:
            """The picture with as much noise as a step begins with."""
            alpha_bar = alpha_bars[index]
            return tf.sqrt(alpha_bar) * original.latent + tf.sqrt(1.0 - alpha_bar) * noise

        first = first_step(num_steps, original.strength)
        initial = tf.where(first == 0, initial, noised(first))

    def step(
        index: tf.Tensor, latent: tf.Tensor, clean_before: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        unconditional, conditional = both_predictions(latent, plan.timesteps[index])
        predicted = unconditional + guidance_scale * (conditional - unconditional)
        alpha_bar = plan.alpha_bar[index]
        clean = schedule.clean_latent(latent, predicted, alpha_bar)
        if original is not None:
            # Where there is no step before, a step is of first order.
            clean_before = tf.where(index == first, clean, clean_before)
        after = (
            plan.of_latent[index] * latent
            + plan.of_clean[index] * clean
            + plan.of_clean_before[index] * clean_before
            + plan.of_noise[index] * schedule.predicted_noise(latent, predicted, alpha_bar)
        )
        if fresh_noise is not None:
            after += plan.of_fresh_noise[index] * fresh_noise(index)
        if original is not None:
            after = tf.where(original.drawn, after, noised(index + 1))
        return index + 1, tf.ensure_shape(after, noise.shape), tf.ensure_shape(clean, noise.shape)

    _, latent, _ = tf.while_loop(
        lambda index, *_: index < num_steps,
        step,
        (first, initial, tf.zeros_like(noise)),
    )
    return latent


def initial_noise(
    seed: tf.Tensor,
    batch_size: tf.Tensor,
    latent_shape: tuple[int | tf.Tensor, int | tf.Tensor, int],
) -> tf.Tensor:
    """Standard normal float32 [B, h, w, 4] that depends on `seed`, int32 [2], and its shape alone.

    Args:
        seed: int32 [2].
        batch_size: int32 [].
        latent_shape: Height, width and channels; the first two may be int32 [].
    """
    return tf.random.stateless_normal(tf.stack([batch_size, *latent_shape]), seed)


def step_noise(seed: tf.Tensor, index: tf.Tensor, shape: tf.Tensor) -> tf.Tensor:
    """Standard normal float32 of a shape, int32 [4], for the step of a number, int32 [].

    Depends on `seed`, int32 [2], and the number alone, and is independent of `initial_noise`.
    """
    return tf.random.stateless_normal(shape, tf.random.experimental.stateless_fold_in(seed, index))


def to_image(pixels: tf.Tensor) -> tf.Tensor:
    """From uint8 to float32 in [-1, 1], as the autoencoder takes it."""
    return tf.cast(pixels, tf.float32) / 127.5 - 1.0


def to_pixels(image: tf.Tensor) -> tf.Tensor:
    """From float32 in [-1, 1] to uint8, values beyond the range clipped."""
    return tf.cast(tf.clip_by_value((image + 1.0) * 127.5, 0.0, 255.0), tf.uint8)
