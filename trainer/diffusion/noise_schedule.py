"""The one noise schedule that training, evaluation and export read.

Stable Diffusion's "scaled linear" schedule (Rombach et al. 2022): the square roots of beta are
evenly spaced from 0.00085 to 0.012 over 1000 timesteps.
"""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from trainer.presets import BETA_END, BETA_START, NUM_TIMESTEPS
from trainer.presets import LATENT_SCALE as LATENT_SCALE

_MAX_PERIOD = 10_000.0


def alphas_cumprod() -> np.ndarray:
    """Cumulative products of alpha, float32 [1000] (Ho et al. 2020, equation 4)."""
    betas = np.linspace(BETA_START**0.5, BETA_END**0.5, NUM_TIMESTEPS, dtype=np.float64) ** 2
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


def min_snr_weights(timesteps: tf.Tensor, gamma: float) -> tf.Tensor:
    """Weights of the loss of epsilon (Hang et al. 2023, section 3.4): `min(SNR, gamma) / SNR`.

    Args:
        timesteps: int [B], from 0 to 999.
        gamma: Signal-to-noise ratio above which timesteps count for less; the paper's is 5.

    Returns:
        float32 [B].
    """
    alpha_bar = alphas_cumprod().astype(np.float64)
    ratio = alpha_bar / (1.0 - alpha_bar)
    weights = np.minimum(ratio, gamma) / ratio
    return tf.gather(tf.constant(weights, tf.float32), timesteps)


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
