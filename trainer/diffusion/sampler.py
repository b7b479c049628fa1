"""Sampling: from noise and a context to a latent."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import tensorflow as tf

from trainer.diffusion.noise_schedule import NoiseSchedule, alphas_cumprod, sampling_timesteps

Predict = Callable[[tf.Tensor, tf.Tensor, tf.Tensor], tf.Tensor]
"""A diffusion model: from noisy latent, timesteps int32 [B] and context to its prediction."""


def sample(
    predict: Predict,
    schedule: NoiseSchedule,
    *,
    noise: tf.Tensor,
    context: tf.Tensor,
    unconditional_context: tf.Tensor,
    num_steps: tf.Tensor,
    guidance_scale: tf.Tensor,
    guided_together: bool = True,
) -> tf.Tensor:
    """Deterministic DDIM sampling (Song et al. 2021, equation 12 with sigma 0), as KerasCV does it.

    Classifier-free guidance (Ho and Salimans 2022, equation 6) needs two predictions a step.

    Args:
        predict: The diffusion model.
        schedule: What its predictions mean.
        noise: float32 [B, h, w, 4], standard normal.
        context: float32 [B, 77, D].
        unconditional_context: float32 [B, 77, D], of the empty or the negative prompt.
        num_steps: int32 [], at least 1.
        guidance_scale: float32 [].
        guided_together: Whether both are made in one call on a doubled batch, or in two.

    Returns:
        float32 [B, h, w, 4].
    """
    timesteps = sampling_timesteps(num_steps)
    alphas = tf.gather(tf.constant(alphas_cumprod()), timesteps)
    alphas_before = tf.concat([[1.0], alphas[:-1]], axis=0)
    batch = tf.shape(noise)[0]
    both_contexts = tf.concat([unconditional_context, context], axis=0)

    def both_predictions(latent: tf.Tensor, timestep: tf.Tensor) -> Sequence[tf.Tensor]:
        if guided_together:
            doubled = tf.concat([latent, latent], axis=0)
            repeated = tf.fill([2 * batch], timestep)
            return tf.split(predict(doubled, repeated, both_contexts), 2, axis=0)
        repeated = tf.fill([batch], timestep)
        return [predict(latent, repeated, each) for each in (unconditional_context, context)]

    def step(index: tf.Tensor, latent: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        unconditional, conditional = both_predictions(latent, timesteps[index])
        predicted = unconditional + guidance_scale * (conditional - unconditional)
        latent = schedule.step(latent, predicted, alphas[index], alphas_before[index])
        return index - 1, tf.ensure_shape(latent, noise.shape)

    _, latent = tf.while_loop(lambda index, _: index >= 0, step, (num_steps - 1, noise))
    return latent


def initial_noise(
    seed: tf.Tensor, batch_size: tf.Tensor, latent_shape: tuple[int, int, int]
) -> tf.Tensor:
    """Standard normal float32 [B, h, w, 4] that depends on `seed`, int32 [2], alone."""
    height, width, channels = latent_shape
    noise = tf.random.stateless_normal(tf.stack([batch_size, height, width, channels]), seed)
    return tf.ensure_shape(noise, (None, *latent_shape))


def to_pixels(image: tf.Tensor) -> tf.Tensor:
    """From float32 in [-1, 1] to uint8, values beyond the range clipped."""
    return tf.cast(tf.clip_by_value((image + 1.0) * 127.5, 0.0, 255.0), tf.uint8)
