from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from keras_cv.src.models.stable_diffusion.constants import _ALPHAS_CUMPROD
from keras_cv.src.models.stable_diffusion.noise_scheduler import NoiseScheduler
from keras_cv.src.models.stable_diffusion.stable_diffusion import StableDiffusionBase

from trainer.diffusion.noise_schedule import (
    NoiseSchedule,
    alphas_cumprod,
    sampling_timesteps,
    timestep_embedding,
)

REFERENCE = Path(__file__).resolve().parents[1] / "data" / "schedulers" / "reference.npz"
SCHEDULE = NoiseSchedule("epsilon")
SCHEDULES = (
    SCHEDULE,
    NoiseSchedule("v_prediction"),
    NoiseSchedule("v_prediction", zero_terminal_snr=True),
)


def test_schedule_is_stable_diffusions_own_table() -> None:
    assert alphas_cumprod().shape == (1000,)
    np.testing.assert_allclose(alphas_cumprod(), _ALPHAS_CUMPROD, atol=1e-6)


def test_schedule_is_not_keras_cvs_default() -> None:
    default = np.asarray(NoiseScheduler().alphas_cumprod)
    assert np.abs(alphas_cumprod() - default).max() > 0.2


def test_add_noise_by_hand() -> None:
    rng = np.random.default_rng(0)
    latent, noise = rng.standard_normal((2, 3, 4, 4, 4)).astype(np.float32)
    timesteps = np.array([0, 500, 999], np.int32)
    alpha = np.array(_ALPHAS_CUMPROD)[timesteps].reshape(3, 1, 1, 1)
    expected = np.sqrt(alpha) * latent + np.sqrt(1 - alpha) * noise
    np.testing.assert_allclose(SCHEDULE.add_noise(latent, noise, timesteps), expected, atol=1e-5)


def test_zero_terminal_snr_is_diffusers() -> None:
    plain, rescaled = alphas_cumprod(), alphas_cumprod(zero_terminal_snr=True)
    expected = np.load(REFERENCE)["zero_terminal_snr/alphas_cumprod"]
    np.testing.assert_allclose(rescaled, expected, rtol=1e-3, atol=1e-6)
    assert (rescaled[0], rescaled[-1]) == (plain[0], 0.0)
    assert 0.0 < rescaled[-2] < 1e-6 < plain[-2]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_target_as_prediction_gives_the_latent_and_the_noise_back(schedule) -> None:
    rng = np.random.default_rng(1)
    latent, noise = rng.standard_normal((2, 2, 4, 4, 4)).astype(np.float32)
    # Of noise alone, whoever predicts the noise could not tell the latent.
    timesteps = np.array([300, 999 if schedule.zero_terminal_snr else 700], np.int32)
    noisy = schedule.add_noise(latent, noise, timesteps)
    target = schedule.target(latent, noise, timesteps)
    alpha_bar = schedule.alpha_bar(timesteps)
    np.testing.assert_allclose(schedule.clean_latent(noisy, target, alpha_bar), latent, atol=1e-5)
    np.testing.assert_allclose(schedule.predicted_noise(noisy, target, alpha_bar), noise, atol=1e-5)


def test_velocity_by_hand() -> None:
    """An eighth of the circle from the picture to the noise, and at its end minus the picture."""
    latent, noise = np.full((2, 1, 1, 4), 3.0, np.float32), np.full((2, 1, 1, 4), 1.0, np.float32)
    schedule = NoiseSchedule("v_prediction", zero_terminal_snr=True)
    alphas = alphas_cumprod(zero_terminal_snr=True)
    middle = int(np.argmin(np.abs(alphas - 0.5)))
    target = schedule.target(latent, noise, np.array([middle, 999], np.int32))
    np.testing.assert_allclose(target[0], (1.0 - 3.0) / np.sqrt(2.0), atol=0.01)
    np.testing.assert_array_equal(target[1], -latent[1])


def test_zero_terminal_snr_needs_the_velocity() -> None:
    with pytest.raises(ValueError, match="impossible with epsilon prediction"):
        NoiseSchedule("epsilon", zero_terminal_snr=True)


def test_what_has_no_arithmetic_cannot_be_predicted() -> None:
    with pytest.raises(ValueError, match="no arithmetic for models that predict 'sample'"):
        NoiseSchedule("sample")  # type: ignore[arg-type]


@pytest.mark.parametrize("width", [64, 320])
def test_timestep_embedding_by_hand(width: int) -> None:
    timesteps = np.array([0, 1, 37, 999])
    half = width // 2
    angles = timesteps[:, None] * np.exp(-np.log(10_000) * np.arange(half) / half)[None]
    expected = np.concatenate([np.cos(angles), np.sin(angles)], axis=1)
    np.testing.assert_allclose(timestep_embedding(timesteps, width), expected, atol=1e-4)


def test_timestep_embeddings_of_a_batch_are_keras_cvs_one_by_one() -> None:
    timesteps = np.array([0, 1, 2, 500, 998, 999])
    base = StableDiffusionBase(64, 64)
    expected = [base._get_timestep_embedding(int(t), batch_size=1)[0] for t in timesteps]
    np.testing.assert_allclose(timestep_embedding(timesteps, 320), expected, atol=1e-4)


@pytest.mark.parametrize("gamma", [0.1, 5.0, 1e6])
def test_min_snr_weights_by_hand(gamma: float) -> None:
    alpha = np.array(_ALPHAS_CUMPROD, np.float64)
    ratio = alpha / (1 - alpha)
    expected = [min(r, gamma) / r for r in ratio]
    actual = SCHEDULE.min_snr_weights(tf.range(1000), gamma)
    assert actual.dtype == tf.float32
    np.testing.assert_allclose(actual, expected, rtol=1e-4)
    # More noise than gamma allows signal: nothing is taken off.
    np.testing.assert_array_equal(np.asarray(actual)[ratio < gamma * 0.99], 1.0)
    of_velocity = NoiseSchedule("v_prediction").min_snr_weights(tf.range(1000), gamma)
    expected = [min(r, gamma) / (r + 1.0) for r in ratio]
    np.testing.assert_allclose(of_velocity, expected, rtol=1e-4)
    rescaled = NoiseSchedule("v_prediction", zero_terminal_snr=True)
    assert float(rescaled.min_snr_weights(tf.constant([999]), gamma)[0]) == 0.0


@pytest.mark.parametrize("num_steps", [*range(1, 101), 250, 1000])
def test_sampling_timesteps_are_keras_cvs_for_every_number_of_steps(num_steps: int) -> None:
    ratio = 999 / (num_steps - 1) if num_steps > 1 else 1000
    expected = (np.arange(num_steps) * ratio).round().astype(np.int64)
    actual = sampling_timesteps(tf.constant(num_steps)).numpy()
    np.testing.assert_array_equal(actual, expected)
    assert len(actual) == num_steps
    assert actual.max() <= 999
