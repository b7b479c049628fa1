"""What each sampler does in each step, computed before the first one.

A step of every sampler here is a sum of the same five terms, so that one loop over one trace of the
network works for all; see `SamplingPlan`. The factors are those of diffusers' schedulers, whose
values are in the tests. Everything is computed in float64 and rounded once.

Karras et al. 2022 measure noise by sigma, the ratio of noise to signal. A latent as the network
sees it contains both, with variance 1: `alpha * clean + alpha * sigma * noise`, where `alpha` is
`1 / sqrt(sigma**2 + 1)` and `alpha**2` is the `alpha_bar` of `noise_schedule`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from trainer.diffusion.noise_schedule import (
    alphas_cumprod,
    even_timesteps,
    sampling_timesteps,
    trailing_timesteps,
)

_KARRAS_RHO = 7.0
# A number of steps that falls short of a whole number by less than this does so only because of
# rounding: up to 1000, the error of a float32 is 3e-5.
_WHOLE = 1e-4
# Without any signal left, the ratio of noise to signal would be infinite: diffusers' schedulers use
# the smallest float16 number instead of zero.
_LEAST_ALPHA_BAR = 2.0**-24


class SamplingPlan(NamedTuple):
    """The steps of a sampler, the one with the most noise first; float32 [n] except for the scale.

    If rows have their own plans (`plans_of_rows`), all have one more dimension in front.

    The next latent is `of_latent * latent + of_clean * clean + of_clean_before * clean_before +
    of_noise * predicted_noise + of_fresh_noise * fresh_noise`, where `clean` and `predicted_noise`
    are what the network finds in the latent, `clean_before` is what it found in the step before,
    and `fresh_noise` is standard normal.

    Attributes:
        initial_scale: float32 []; the first latent is standard normal noise times this.
        timesteps: The timesteps given to the network; need not be whole.
        alpha_bar: For the latent that the step begins with.
        of_latent: A factor, like the ones below.
        of_clean: See above.
        of_clean_before: 0 in the first step.
        of_noise: See above.
        of_fresh_noise: 0 throughout for deterministic samplers, and in the last step for all.
    """

    initial_scale: tf.Tensor
    timesteps: tf.Tensor
    alpha_bar: tf.Tensor
    of_latent: tf.Tensor
    of_clean: tf.Tensor
    of_clean_before: tf.Tensor
    of_noise: tf.Tensor
    of_fresh_noise: tf.Tensor


def ddim_plan(num_steps: tf.Tensor, zero_terminal_snr: bool = False) -> SamplingPlan:
    """DDIM (Song et al. 2021, equation 12 with sigma 0) at KerasCV's timesteps.

    Args:
        num_steps: int32 [], at least 1.
        zero_terminal_snr: Whether the last timestep is pure noise; then the timesteps are
            `trailing_timesteps`, as for the other samplers.
    """
    timesteps = (trailing_timesteps if zero_terminal_snr else sampling_timesteps)(num_steps)
    alphas = tf.gather(tf.constant(alphas_cumprod(zero_terminal_snr)), timesteps)
    alphas_after = tf.concat([[1.0], alphas[:-1]], axis=0)
    zeros = tf.zeros_like(alphas)
    return SamplingPlan(
        initial_scale=tf.constant(1.0),
        timesteps=tf.cast(timesteps, tf.float32)[::-1],
        alpha_bar=alphas[::-1],
        of_latent=zeros,
        of_clean=tf.sqrt(alphas_after)[::-1],
        of_clean_before=zeros,
        of_noise=tf.sqrt(1.0 - alphas_after)[::-1],
        of_fresh_noise=zeros,
    )


def dpmpp_2m_plan(num_steps: tf.Tensor, zero_terminal_snr: bool = False) -> SamplingPlan:
    """DPM-Solver++(2M) (Lu et al. 2022, algorithm 2) at the sigmas of Karras et al. 2022.

    As in diffusers' `DPMSolverMultistepScheduler` with `use_karras_sigmas`: the midpoint rule, the
    first and the last step of first order, and rounded timesteps.

    With zero terminal SNR it uses evenly spaced timesteps instead: the range of sigmas between no
    signal and some is so wide that Karras' sigmas would spend most steps there.

    Args:
        num_steps: int32 [], at least 1.
        zero_terminal_snr: As for `ddim_plan`.
    """
    table = sigmas_of(alphas_cumprod(zero_terminal_snr))
    if zero_terminal_snr:
        timesteps = tf.cast(trailing_timesteps(num_steps)[::-1], tf.float64)
        sigmas = interpolated(table, timesteps)
    else:
        sigmas = karras_sigmas(table[0], table[-1], num_steps)
        timesteps = tf.round(timesteps_of(sigmas, table))
    after = tf.concat([sigmas[1:], tf.zeros([1], tf.float64)], axis=0)
    alphas, alphas_after = _alphas(sigmas), _alphas(after)
    # From an exponential integrator whose last step in -log(sigma) is infinite.
    of_first_order = alphas_after * (1.0 - after / sigmas)
    steps = tf.math.log(sigmas[:-1] / sigmas[1:])
    middle = 0.5 * of_first_order[1:-1] * steps[1:] / steps[:-1]
    zero = tf.zeros([1], tf.float64)
    of_change = tf.concat([zero, middle, zero], axis=0)[:num_steps]
    return _rounded(
        initial_scale=tf.ones([], tf.float64),
        timesteps=timesteps,
        alpha_bar=alphas**2,
        of_latent=(after * alphas_after) / (sigmas * alphas),
        of_clean=of_first_order + of_change,
        of_clean_before=-of_change,
        of_noise=tf.zeros_like(sigmas),
        of_fresh_noise=tf.zeros_like(sigmas),
    )


def euler_a_plan(num_steps: tf.Tensor, zero_terminal_snr: bool = False) -> SamplingPlan:
    """Euler's ancestral sampling (Karras et al. 2022, in the form of Crowson's k-diffusion).

    As in diffusers' `EulerAncestralDiscreteScheduler`, at evenly spaced timesteps, which need not
    be whole.

    Args:
        num_steps: int32 [], at least 1; a single step begins at the least noise, not the most.
        zero_terminal_snr: As for `ddim_plan`; then a single step begins at the most noise.
    """
    table = sigmas_of(alphas_cumprod(zero_terminal_snr))
    spaced = trailing_timesteps if zero_terminal_snr else even_timesteps
    timesteps = tf.cast(spaced(num_steps), tf.float64)[::-1]
    sigmas = interpolated(table, timesteps)
    after = tf.concat([sigmas[1:], tf.zeros([1], tf.float64)], axis=0)
    alphas, alphas_after = _alphas(sigmas), _alphas(after)
    down, up = ancestral_sigmas(sigmas, after)
    return _rounded(
        initial_scale=sigmas[0] * alphas[0],
        timesteps=timesteps,
        alpha_bar=alphas**2,
        of_latent=tf.zeros_like(sigmas),
        of_clean=alphas_after,
        of_clean_before=tf.zeros_like(sigmas),
        of_noise=alphas_after * down,
        of_fresh_noise=alphas_after * up,
    )


SAMPLERS: Mapping[str, Callable[[tf.Tensor, bool], SamplingPlan]] = MappingProxyType(
    {"ddim": ddim_plan, "dpmpp_2m": dpmpp_2m_plan, "euler_a": euler_a_plan}
)
DEFAULT_SAMPLER = "ddim"
NEED_FRESH_NOISE = frozenset({"euler_a"})


def first_step(num_steps: tf.Tensor, strength: tf.Tensor) -> tf.Tensor:
    """The step with which drawing from a picture begins: int32 [], `num_steps` if there is none.

    For rows, all three are [B].

    As in diffusers' pipelines, only the last `strength * num_steps` steps, rounded down, are made.

    Args:
        num_steps: int32 [], at least 1.
        strength: float32 [], from 0 to 1.
    """
    asked = tf.cast(strength, tf.float64) * tf.cast(num_steps, tf.float64)
    # 0.29 of 100 steps must be 29, whichever way a float32 rounds.
    return num_steps - tf.cast(tf.floor(asked + _WHOLE), tf.int32)


def is_sampler(name: tf.Tensor) -> tf.Tensor:
    """Whether a text, string [...], names one of `SAMPLERS`: bool [...]."""
    return tf.reduce_any(tf.equal(name[..., None], tf.constant(list(SAMPLERS))), axis=-1)


def sampling_plan(
    sampler: str | tf.Tensor, num_steps: tf.Tensor, zero_terminal_snr: bool = False
) -> SamplingPlan:
    """The plan of one of `SAMPLERS`.

    Args:
        sampler: Its name; if it is a string [], one trace works for all.
        num_steps: int32 [], at least 1.
        zero_terminal_snr: Whether the last timestep is pure noise.
    """
    if isinstance(sampler, str):
        return SAMPLERS[sampler](num_steps, zero_terminal_snr)
    named = tf.equal(sampler, tf.constant(list(SAMPLERS)))
    plan: SamplingPlan = tf.switch_case(
        tf.argmax(tf.cast(named, tf.int32), output_type=tf.int32),
        [functools.partial(plan_of, num_steps, zero_terminal_snr) for plan_of in SAMPLERS.values()],
    )
    return plan


def plans_of_rows(
    sampler: str | tf.Tensor, num_steps: tf.Tensor, zero_terminal_snr: bool = False
) -> SamplingPlan:
    """A plan for each row: float32 [B, n] except for the scale; n is the most steps of any row.

    Values beyond the steps of a row are 0.

    Args:
        sampler: The name of one of `SAMPLERS` for all rows, or a string [B] with one for each.
        num_steps: int32 [B], each at least 1.
        zero_terminal_snr: Whether the last timestep is pure noise.
    """
    most = tf.reduce_max(num_steps)

    def plan_of(row: tuple[tf.Tensor, tf.Tensor]) -> SamplingPlan:
        name, steps = row
        plan = sampling_plan(
            sampler if isinstance(sampler, str) else name, steps, zero_terminal_snr
        )

        def filled(values: tf.Tensor) -> tf.Tensor:
            return tf.ensure_shape(tf.pad(values, [[0, most - steps]]), [None])

        return SamplingPlan(plan.initial_scale, *map(filled, plan[1:]))

    names = tf.broadcast_to(tf.convert_to_tensor(sampler), tf.shape(num_steps))
    specs = [
        tf.TensorSpec(shape, tf.float32)
        for shape in ([], *[[None]] * (len(SamplingPlan._fields) - 1))
    ]
    plans: SamplingPlan = tf.map_fn(
        plan_of, (names, num_steps), fn_output_signature=SamplingPlan(*specs)
    )
    return plans


def sigmas_of(alpha_bar: np.ndarray) -> np.ndarray:
    """Ratios of noise to signal, float64 [T], from cumulative products of alpha, float32 [T]."""
    exact = np.maximum(alpha_bar.astype(np.float64), _LEAST_ALPHA_BAR)
    return np.sqrt((1.0 - exact) / exact)


def karras_sigmas(lowest: float, highest: float, num_steps: tf.Tensor) -> tf.Tensor:
    """From the highest to the lowest, evenly spaced in their 7th roots: float64 [num_steps].

    Karras et al. 2022, equation 5; only the highest if there is one step.
    """
    last = tf.cast(tf.maximum(num_steps - 1, 1), tf.float64)
    ramp = tf.cast(tf.range(num_steps), tf.float64) / last
    low, high = lowest ** (1 / _KARRAS_RHO), highest ** (1 / _KARRAS_RHO)
    return (high + ramp * (low - high)) ** _KARRAS_RHO


def timesteps_of(sigmas: tf.Tensor, table: np.ndarray) -> tf.Tensor:
    """The timesteps of sigmas, interpolated between logarithms of sigmas: float64 [n].

    Args:
        sigmas: float64 [n].
        table: Sigmas of the timesteps, float64 [T], ascending; sigmas beyond it map to its ends.
    """
    logs, wanted = tf.constant(np.log(table)), tf.math.log(sigmas)
    below = tf.clip_by_value(tf.searchsorted(logs, wanted, side="right") - 1, 0, len(table) - 2)
    low, high = tf.gather(logs, below), tf.gather(logs, below + 1)
    fraction = tf.clip_by_value((wanted - low) / (high - low), 0.0, 1.0)
    return tf.cast(below, tf.float64) + fraction


def interpolated(table: np.ndarray, timesteps: tf.Tensor) -> tf.Tensor:
    """Interpolates in a table, float64 [T], at positions float64 [n] from 0 to T - 1."""
    below = tf.clip_by_value(tf.cast(tf.floor(timesteps), tf.int32), 0, len(table) - 2)
    fraction = timesteps - tf.cast(below, tf.float64)
    values = tf.constant(table)
    low, high = tf.gather(values, below), tf.gather(values, below + 1)
    return low + fraction * (high - low)


def ancestral_sigmas(sigmas: tf.Tensor, after: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """The sigmas that an ancestral step goes down to, and the fresh noise that leads to `after`.

    The posterior of Ho et al. 2020 in terms of sigmas: the squares of both add up to the square of
    `after`.

    Args:
        sigmas: float64 [n], before the step.
        after: float64 [n], less than `sigmas`.
    """
    return after**2 / sigmas, after * tf.sqrt(1.0 - (after / sigmas) ** 2)


def _alphas(sigmas: tf.Tensor) -> tf.Tensor:
    return 1.0 / tf.sqrt(sigmas**2 + 1.0)


def _rounded(**fields: tf.Tensor) -> SamplingPlan:
    return SamplingPlan(**{name: tf.cast(value, tf.float32) for name, value in fields.items()})
