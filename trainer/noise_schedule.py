"""The one noise schedule that training, evaluation and export read.

Stable Diffusion's "scaled linear" schedule (Rombach et al. 2022): the square roots of beta are
evenly spaced from 0.00085 to 0.012 over 1000 timesteps.
"""

from __future__ import annotations

import numpy as np
import tensorflow as tf

NUM_TIMESTEPS = 1000
LATENT_SCALE = 0.18215
"""Factor that brings Stable Diffusion's latents to about unit variance."""

_BETA_START = 0.00085
_BETA_END = 0.012
_MAX_PERIOD = 10_000.0


def alphas_cumprod() -> np.ndarray:
    """Cumulative products of alpha, float32 [1000] (Ho et al. 2020, equation 4)."""
    betas = np.linspace(_BETA_START**0.5, _BETA_END**0.5, NUM_TIMESTEPS, dtype=np.float64) ** 2
    return np.cumprod(1.0 - betas).astype(np.float32)


def add_noise(latent: tf.Tensor, epsilon: tf.Tensor, timesteps: tf.Tensor) -> tf.Tensor:
    """Diffuses latents forward (Ho et al. 2020, equation 4).

    Args:
        latent: float32 [B, h, w, 4], scaled by `LATENT_SCALE`.
        epsilon: float32 [B, h, w, 4], standard normal.
        timesteps: int [B], from 0 to 999.

    Returns:
        float32 [B, h, w, 4].
    """
    alpha_bar = tf.gather(tf.constant(alphas_cumprod()), timesteps)[:, None, None, None]
    return tf.sqrt(alpha_bar) * latent + tf.sqrt(1.0 - alpha_bar) * epsilon


def timestep_embedding(timesteps: tf.Tensor, width: int) -> tf.Tensor:
    """Sinusoidal embedding: cosines, then sines (Vaswani et al. 2017, section 3.5).

    Args:
        timesteps: int [B].
        width: Even width of the embedding.

    Returns:
        float32 [B, width].
    """
    half = width // 2
    frequencies = np.exp(-np.log(_MAX_PERIOD) * np.arange(half, dtype=np.float64) / half)
    angles = tf.cast(timesteps, tf.float32)[:, None] * tf.constant(frequencies, tf.float32)[None]
    return tf.concat([tf.cos(angles), tf.sin(angles)], axis=-1)


def sampling_timesteps(num_steps: tf.Tensor) -> tf.Tensor:
    """The timesteps that sampling visits, in ascending order: int32 [num_steps].

    KerasCV's rule: `round(i * 999 / (num_steps - 1))`, and 0 alone where there is one step.
    """
    last = tf.cast(tf.maximum(num_steps - 1, 1), tf.float64)
    positions = tf.cast(tf.range(num_steps), tf.float64) * ((NUM_TIMESTEPS - 1) / last)
    return tf.cast(tf.round(positions), tf.int32)
