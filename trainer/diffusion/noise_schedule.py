"""The noise schedule of training, evaluation and export.

Stable Diffusion's "scaled linear" schedule (Rombach et al. 2022): the square roots of beta are
evenly spaced from 0.00085 to 0.012 over 1000 timesteps. This leaves a little of the signal at the
last timestep; with zero terminal SNR it is removed, and the last timestep is pure noise (Lin et al.
2024, "Common Diffusion Noise Schedules and Sample Steps are Flawed").
"""

from __future__ import annotations

import dataclasses
from typing import get_args

import numpy as np
import tensorflow as tf

from trainer.presets import (
    BETA_END,
    BETA_START,
    NUM_TIMESTEPS,
    Prediction,
    Preset,
    check_zero_terminal_snr,
)
from trainer.presets import LATENT_SCALE as LATENT_SCALE

_MAX_PERIOD = 10_000.0


def alphas_cumprod(zero_terminal_snr: bool = False) -> np.ndarray:
    """Cumulative products of alpha, float32 [1000] (Ho et al. 2020, equation 4).

    Args:
        zero_terminal_snr: Whether their roots are shifted and scaled so that the last is 0 and the
            first is unchanged (Lin et al. 2024, algorithm 1).
    """
    betas = np.linspace(BETA_START**0.5, BETA_END**0.5, NUM_TIMESTEPS, dtype=np.float64) ** 2
    products = np.cumprod(1.0 - betas)
    if zero_terminal_snr:
        roots = np.sqrt(products)
        products = ((roots - roots[-1]) * (roots[0] / (roots[0] - roots[-1]))) ** 2
    return products.astype(np.float32)


@dataclasses.dataclass(frozen=True)
class NoiseSchedule:
    """How noise is added, and removed with the prediction of a diffusion model.

    Training, sampling, scoring and the reports all use this; only it knows what is predicted.

    Attributes:
        prediction: What the model predicts, from a preset.
        zero_terminal_snr: Whether the last timestep is pure noise; see `alphas_cumprod`.
    """

    prediction: Prediction
    zero_terminal_snr: bool = False

    def __post_init__(self) -> None:
        """Raises a `ValueError` for impossible values."""
        if self.prediction not in get_args(Prediction):
            raise ValueError(f"there is no arithmetic for models that predict {self.prediction!r}")
        check_zero_terminal_snr(self.prediction, self.zero_terminal_snr)

    @classmethod
    def of(cls, preset: Preset) -> NoiseSchedule:
        """The schedule of the diffusion model of a preset."""
        return cls(preset.prediction, preset.zero_terminal_snr)

    def alpha_bar(self, timesteps: tf.Tensor) -> tf.Tensor:
        """`alphas_cumprod` at timesteps, int [B], shaped to broadcast to latents: [B, 1, 1, 1]."""
        alphas = tf.constant(alphas_cumprod(self.zero_terminal_snr))
        return tf.gather(alphas, timesteps)[:, None, None, None]

    def add_noise(self, latent: tf.Tensor, noise: tf.Tensor, timesteps: tf.Tensor) -> tf.Tensor:
        """Diffuses latents forward (Ho et al. 2020, equation 4).

        Args:
            latent: float32 [B, h, w, 4], scaled by `LATENT_SCALE`.
            noise: float32 [B, h, w, 4], standard normal.
            timesteps: int [B], from 0 to 999.

        Returns:
            float32 [B, h, w, 4].
        """
        alpha_bar = self.alpha_bar(timesteps)
        return tf.sqrt(alpha_bar) * latent + tf.sqrt(1.0 - alpha_bar) * noise

    def target(self, latent: tf.Tensor, noise: tf.Tensor, timesteps: tf.Tensor) -> tf.Tensor:
        """What the model should predict for `add_noise` with the same arguments.

        The velocity is defined by Salimans and Ho 2022, appendix D.
        """
        if self.prediction == "epsilon":
            return noise
        alpha_bar = self.alpha_bar(timesteps)
        return tf.sqrt(alpha_bar) * noise - tf.sqrt(1.0 - alpha_bar) * latent

    def min_snr_weights(self, timesteps: tf.Tensor, gamma: float) -> tf.Tensor:
        """Weights of the loss (Hang et al. 2023, section 3.4).

        For epsilon `min(SNR, gamma) / SNR`; for the velocity `min(SNR, gamma) / (SNR + 1)`, which
        is 0 if there is no signal.

        Args:
            timesteps: int [B], from 0 to 999.
            gamma: Signal-to-noise ratio above which timesteps count for less; the paper uses 5.

        Returns:
            float32 [B].
        """
        alpha_bar = alphas_cumprod(self.zero_terminal_snr).astype(np.float64)
        ratio = alpha_bar / (1.0 - alpha_bar)
        weights = np.minimum(ratio, gamma) / (
            ratio if self.prediction == "epsilon" else ratio + 1.0
        )
        return tf.gather(tf.constant(weights, tf.float32), timesteps)

    def clean_latent(
        self, noisy: tf.Tensor, predicted: tf.Tensor, alpha_bar: tf.Tensor
    ) -> tf.Tensor:
        """The latent under the noise, according to a prediction (Song et al. 2021, equation 9).

        Args:
            noisy: float32 [B, h, w, 4].
            predicted: float32 [B, h, w, 4], the prediction of the model.
            alpha_bar: float32 [] or [B, 1, 1, 1], for the noisy latent.

        Returns:
            float32 [B, h, w, 4].
        """
        if self.prediction == "epsilon":
            return (noisy - tf.sqrt(1.0 - alpha_bar) * predicted) / tf.sqrt(alpha_bar)
        return tf.sqrt(alpha_bar) * noisy - tf.sqrt(1.0 - alpha_bar) * predicted

    def predicted_noise(
        self, noisy: tf.Tensor, predicted: tf.Tensor, alpha_bar: tf.Tensor
    ) -> tf.Tensor:
        """The noise in the latent, according to a prediction; arguments as for `clean_latent`."""
        if self.prediction == "epsilon":
            return predicted
        return tf.sqrt(1.0 - alpha_bar) * noisy + tf.sqrt(alpha_bar) * predicted


def timestep_embedding(timesteps: tf.Tensor, width: int) -> tf.Tensor:
    """Sinusoidal embedding: cosines, then sines (Vaswani et al. 2017, section 3.5).

    Args:
        timesteps: int or float [B].
        width: Even width of the embedding.

    Returns:
        float32 [B, width].
    """
    half = width // 2
    frequencies = np.exp(-np.log(_MAX_PERIOD) * np.arange(half, dtype=np.float64) / half)
    angles = tf.cast(timesteps, tf.float32)[:, None] * tf.constant(frequencies, tf.float32)[None]
    return tf.concat([tf.cos(angles), tf.sin(angles)], axis=-1)


def even_timesteps(num_steps: tf.Tensor) -> tf.Tensor:
    """From 0 to the last timestep in even steps, which need not be whole: float64 [num_steps].

    Only 0 if there is one step.
    """
    last = tf.cast(tf.maximum(num_steps - 1, 1), tf.float64)
    return tf.cast(tf.range(num_steps), tf.float64) * ((NUM_TIMESTEPS - 1) / last)


def sampling_timesteps(num_steps: tf.Tensor) -> tf.Tensor:
    """The timesteps that sampling visits, in ascending order: int32 [num_steps].

    KerasCV's rule: `round(i * 999 / (num_steps - 1))`, and only 0 if there is one step.
    """
    return tf.cast(tf.round(even_timesteps(num_steps)), tf.int32)


def trailing_timesteps(num_steps: tf.Tensor) -> tf.Tensor:
    """Evenly spaced whole timesteps that end with the last one: int32 [num_steps], ascending.

    Drawing from pure noise has to begin at the timestep that is pure noise (Lin et al. 2024,
    table 2, "trailing").
    """
    every = tf.constant(NUM_TIMESTEPS, tf.float64)
    # Computed like `numpy.arange` in diffusers: only then are halves rounded the same way.
    spacing = every - (every - every / tf.cast(num_steps, tf.float64))
    descending = every - tf.cast(tf.range(num_steps), tf.float64) * spacing
    return tf.cast(tf.round(descending), tf.int32)[::-1] - 1
