"""Sampling: from noise, or a picture with added noise, and a context to a latent."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import tensorflow as tf

from trainer.diffusion.noise_schedule import NoiseSchedule
from trainer.diffusion.samplers import (
    DEFAULT_SAMPLER,
    NEED_FRESH_NOISE,
    first_step,
    plans_of_rows,
    sampling_plan,
)

Predict = Callable[[tf.Tensor, tf.Tensor, tf.Tensor], tf.Tensor]
"""A diffusion model: from noisy latent, timesteps float32 [B] and context to its prediction."""

PredictBoth = Callable[[tf.Tensor, tf.Tensor], Sequence[tf.Tensor]]
"""From noisy latent and timesteps float32 [B] to the unconditional and conditional predictions."""


@dataclasses.dataclass(frozen=True)
class Original:
    """A picture to start from.

    Attributes:
        latent: float32 [B, h, w, 4], scaled by `LATENT_SCALE`.
        strength: float32 [], from 0, which leaves it unchanged, to 1, which begins with pure noise;
            [B] if rows have their own numbers of steps.
        drawn: bool [B, h, w, 1], where it is redrawn; everywhere else it is kept.
    """

    latent: tf.Tensor
    strength: tf.Tensor
    drawn: tf.Tensor


def in_one_call(
    predict: Predict, context: tf.Tensor, unconditional_context: tf.Tensor
) -> PredictBoth:
    """Makes both predictions on a doubled batch, which fills a GPU better.

    Args:
        predict: The diffusion model.
        context: float32 [B, 77, D].
        unconditional_context: float32 [B, 77, D], for the empty or the negative prompt.
    """
    contexts = tf.concat([unconditional_context, context], axis=0)

    def predict_both(latent: tf.Tensor, timesteps: tf.Tensor) -> Sequence[tf.Tensor]:
        latents, times = (tf.concat([x, x], axis=0) for x in (latent, timesteps))
        return tf.split(predict(latents, times, contexts), 2, axis=0)

    return predict_both


def in_two_calls(
    predict: Predict, context: tf.Tensor, unconditional_context: tf.Tensor
) -> PredictBoth:
    """Makes the predictions of `in_one_call` side by side, which uses the cores of a CPU better."""

    def predict_both(latent: tf.Tensor, timesteps: tf.Tensor) -> Sequence[tf.Tensor]:
        return [predict(latent, timesteps, each) for each in (unconditional_context, context)]

    return predict_both


def sample(
    predict_both: PredictBoth,
    schedule: NoiseSchedule,
    *,
    noise: tf.Tensor,
    num_steps: tf.Tensor,
    guidance_scale: tf.Tensor,
    sampler: str | tf.Tensor = DEFAULT_SAMPLER,
    fresh_noise: Callable[[tf.Tensor], tf.Tensor] | None = None,
    original: Original | None = None,
) -> tf.Tensor:
    """Removes the noise, step by step.

    Classifier-free guidance (Ho and Salimans 2022, equation 6) needs two predictions per step.

    From a picture, only the last steps are made (Meng et al. 2022, SDEdit), and after each of them
    the part to keep is put back with as much noise as the next step begins with (Lugmayr et al.
    2022, equation 8, with one noise for all steps), as in diffusers'
    `StableDiffusionImg2ImgPipeline` and, for a network with four channels,
    `StableDiffusionInpaintPipeline`. If all steps are made, the first begins with pure noise, as in
    the second of these.

    Rows of a batch may have their own steps, guidance, samplers and pictures: all begin together,
    each takes its own steps, and does not change after the last one. A row does not depend on the
    others, except for how kernels round at another batch size.

    Args:
        predict_both: The diffusion model, on both contexts.
        schedule: Says what its predictions mean.
        noise: float32 [B, h, w, 4], standard normal.
        num_steps: int32 [], or [B] for rows with their own numbers; at least 1.
        guidance_scale: float32 [], or [B].
        sampler: One of `samplers.SAMPLERS`, or a string [] with one; if `num_steps` is per row,
            a string [B] is allowed too.
        fresh_noise: Returns standard normal noise, float32 [B, h, w, 4], for a step number, int32
            [], or one per row, int32 [B]; may only be omitted for the name of a sampler that needs
            none.
        original: The picture; `None` to draw from pure noise.

    Returns:
        float32 [B, h, w, 4].

    Raises:
        ValueError: The sampler needs, or may need, fresh noise.
    """
    if fresh_noise is None and (not isinstance(sampler, str) or sampler in NEED_FRESH_NOISE):
        raise ValueError(f"the sampler {sampler} needs fresh noise")
    of_rows = num_steps.shape.rank == 1
    plan_of = plans_of_rows if of_rows else sampling_plan
    plan = plan_of(sampler, num_steps, schedule.zero_terminal_snr)
    batch = tf.shape(noise)[0]
    guidance = _over_latents(guidance_scale)

    def at(values: tf.Tensor, index: tf.Tensor) -> tf.Tensor:
        """The value of a plan for a step; [B, 1, 1, 1] for rows, [] otherwise."""
        return _over_latents(tf.gather(values, index, batch_dims=1)) if of_rows else values[index]

    first, initial = tf.zeros_like(num_steps), _over_latents(plan.initial_scale) * noise
    if original is not None:
        # After the last step there is no noise.
        alpha_bars = tf.concat([plan.alpha_bar, tf.ones_like(plan.alpha_bar[..., :1])], axis=-1)

        def noised(index: tf.Tensor) -> tf.Tensor:
            """The picture with as much noise as a step begins with."""
            alpha_bar = at(alpha_bars, index)
            if of_rows:
                alpha_bar = tf.where(_over_latents(index < num_steps), alpha_bar, 1.0)
            return tf.sqrt(alpha_bar) * original.latent + tf.sqrt(1.0 - alpha_bar) * noise

        first = first_step(num_steps, original.strength)
        initial = tf.where(_over_latents(first == 0), initial, noised(first))

    def step(
        index: tf.Tensor, latent: tf.Tensor, clean_before: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        # A row that has made its steps repeats the last one, and the result is discarded.
        now = tf.minimum(index, num_steps - 1) if of_rows else index
        timestep = tf.gather(plan.timesteps, now, batch_dims=1) if of_rows else plan.timesteps[now]
        unconditional, conditional = predict_both(latent, tf.broadcast_to(timestep, [batch]))
        predicted = unconditional + guidance * (conditional - unconditional)
        alpha_bar = at(plan.alpha_bar, now)
        clean = schedule.clean_latent(latent, predicted, alpha_bar)
        if original is not None:
            # Without a step before it, a step is of first order.
            clean_before = tf.where(_over_latents(index == first), clean, clean_before)
        after = (
            at(plan.of_latent, now) * latent
            + at(plan.of_clean, now) * clean
            + at(plan.of_clean_before, now) * clean_before
            + at(plan.of_noise, now) * schedule.predicted_noise(latent, predicted, alpha_bar)
        )
        if fresh_noise is not None:
            after += at(plan.of_fresh_noise, now) * fresh_noise(now)
        if original is not None:
            after = tf.where(original.drawn, after, noised(now + 1))
        if of_rows:
            after = tf.where(_over_latents(index < num_steps), after, latent)
        return index + 1, tf.ensure_shape(after, noise.shape), tf.ensure_shape(clean, noise.shape)

    _, latent, _ = tf.while_loop(
        lambda index, *_: tf.reduce_any(index < num_steps),
        step,
        (first, initial, tf.zeros_like(noise)),
    )
    return latent


def _over_latents(values: tf.Tensor) -> tf.Tensor:
    """Values per row, [B], become [B, 1, 1, 1]; a value for all rows, [], stays the same."""
    return values[:, None, None, None] if values.shape.rank == 1 else values


def initial_noise(
    seed: tf.Tensor,
    batch_size: tf.Tensor,
    latent_shape: tuple[int | tf.Tensor, int | tf.Tensor, int],
) -> tf.Tensor:
    """Standard normal float32 [B, h, w, 4] that depends only on `seed`, int32 [2], and its shape.

    Args:
        seed: int32 [2].
        batch_size: int32 [].
        latent_shape: Height, width and channels; the first two may be int32 [].
    """
    return tf.random.stateless_normal(tf.stack([batch_size, *latent_shape]), seed)


def step_noise(seed: tf.Tensor, index: tf.Tensor, shape: tf.Tensor) -> tf.Tensor:
    """Standard normal float32 of a shape, int32 [4], for the step with an index, int32 [].

    Depends only on `seed`, int32 [2], and the index, and is independent of `initial_noise`.
    """
    return tf.random.stateless_normal(shape, tf.random.experimental.stateless_fold_in(seed, index))


def initial_noise_of_rows(
    seeds: tf.Tensor, latent_shape: tuple[int | tf.Tensor, int | tf.Tensor, int]
) -> tf.Tensor:
    """The result of `initial_noise` for each single seed, int32 [B, 2]: float32 [B, h, w, 4]."""
    shape = tf.stack(latent_shape)
    noise = tf.map_fn(
        lambda seed: tf.random.stateless_normal(shape, seed),
        seeds,
        fn_output_signature=tf.TensorSpec([None] * 3, tf.float32),
    )
    return tf.ensure_shape(noise, [None, None, None, latent_shape[-1]])


def step_noise_of_rows(seeds: tf.Tensor, index: tf.Tensor, shape: tf.Tensor) -> tf.Tensor:
    """The result of `step_noise` for each single row: float32 of a shape, int32 [4].

    Args:
        seeds: int32 [B, 2].
        index: int32 [B], the step of each row.
        shape: int32 [4], the shape of the batch.
    """

    def of_row(row: tuple[tf.Tensor, tf.Tensor]) -> tf.Tensor:
        return step_noise(*row, shape[1:])

    return tf.map_fn(
        of_row, (seeds, index), fn_output_signature=tf.TensorSpec([None] * 3, tf.float32)
    )


def to_image(pixels: tf.Tensor) -> tf.Tensor:
    """From uint8 to float32 in [-1, 1], the input of the autoencoder."""
    return tf.cast(pixels, tf.float32) / 127.5 - 1.0


def to_pixels(image: tf.Tensor) -> tf.Tensor:
    """From float32 in [-1, 1] to uint8; values outside the range are clipped."""
    return tf.cast(tf.clip_by_value((image + 1.0) * 127.5, 0.0, 255.0), tf.uint8)
