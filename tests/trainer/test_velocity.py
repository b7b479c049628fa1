"""Models that predict the velocity, with noise alone at the last timestep, as they are exported."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import small_runs
import tensorflow as tf

from pipeline.config import ConfigError, load_config, resolve_base_weights, trained_preset
from pipeline.trainer_settings import trainer_settings
from trainer.diffusion.noise_schedule import NoiseSchedule, timestep_embedding
from trainer.diffusion.sampler import Original, in_one_call, initial_noise, sample, step_noise
from trainer.diffusion.samplers import SAMPLERS
from trainer.export.saved_models import DiffusionModelModule
from trainer.presets import get_preset
from trainer.training_config import TrainerSettings, ValidationConfig

SCHEDULES = (NoiseSchedule("v_prediction"), NoiseSchedule("v_prediction", zero_terminal_snr=True))
SEED = tf.constant([3, -4])
# A mask in pixels of an 8 x 8 latent's picture: its left half.
MASK = np.zeros((2, 64, 64), np.uint8)
MASK[:, :, :32] = 255


@pytest.mark.parametrize("schedule", SCHEDULES, ids=["plain", "zero_terminal_snr"])
def test_every_way_to_draw_is_by_what_is_predicted(schedule: NoiseSchedule) -> None:
    """From noise, for rows of their own, from pictures, and within a mask; by every sampler."""
    model = small_runs.plain_network()
    preset = small_runs.preset().trained_as(schedule.prediction, schedule.zero_terminal_snr)
    module = DiffusionModelModule(model, preset, 64, image_to_image=True)
    rng = np.random.default_rng(0)
    context, unconditional = (tf.constant(rng.standard_normal((2, 77, 8)), tf.float32),) * 2
    original = tf.constant(rng.standard_normal((2, 8, 8, 4)), tf.float32)
    noise = initial_noise(SEED, tf.constant(2), (8, 8, 4))
    guided = (context, unconditional, tf.constant(4), tf.constant(1.0))

    def expected(sampler: str, by: NoiseSchedule, **picture: Any) -> np.ndarray:
        return sample(
            in_one_call(
                lambda latent, timesteps, context: model(
                    [latent, timestep_embedding(timesteps, 8), context]
                ),
                context,
                unconditional,
            ),
            by,
            noise=noise,
            num_steps=guided[2],
            guidance_scale=guided[3],
            sampler=sampler,
            fresh_noise=lambda index: step_noise(SEED, index, tf.shape(noise)),
            **picture,
        ).numpy()

    for sampler in SAMPLERS:
        drawn = module.sampled(*guided, SEED, tf.constant(sampler))["latent"].numpy()
        np.testing.assert_allclose(drawn, expected(sampler, schedule), atol=1e-4)
        assert np.abs(drawn - expected(sampler, NoiseSchedule("epsilon"))).max() > 0.1
        half = Original(original, tf.constant(0.5), tf.constant(MASK[:, ::8, ::8, None] > 0))
        inpainted = module.inpaint(
            *guided, SEED, tf.constant(sampler), original, tf.constant(0.5), tf.constant(MASK)
        )["latent"].numpy()
        np.testing.assert_allclose(inpainted, expected(sampler, schedule, original=half), atol=1e-4)
        np.testing.assert_allclose(inpainted[:, :, 4:], original[:, :, 4:], atol=1e-6)
    signature = module.serve_prediction(noise, tf.constant([999, 5]), context)
    assert set(signature) == {"v_prediction"}
    assert module.prediction_signature == "predict_v_prediction"


def settings_of(text: str, tmp_path) -> TrainerSettings:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    config, base_model = resolve_base_weights(load_config(str(path)))
    prompts = dataclasses.replace(config.validation, prompts=("a",))
    return trainer_settings(dataclasses.replace(config, validation=prompts), base_model, "/x")


def test_what_is_predicted_is_asked_for_by_settings(tmp_path) -> None:
    usual = settings_of("model: {preset: tiny}", tmp_path)
    tree = usual.to_json()
    # What it was before there was a choice, in the cache, too.
    assert not {"prediction", "zero_terminal_snr"} & tree.keys()
    assert "optimizer" not in tree["training"]
    assert "optimizer" not in usual.training.deciding
    same = settings_of("model: {prediction: epsilon, zero_terminal_snr: false}", tmp_path)
    assert same.to_json() == tree
    asked = settings_of(
        "{model: {prediction: v_prediction, zero_terminal_snr: true}, training: {optimizer: lion}}",
        tmp_path,
    )
    assert asked.to_json() == {
        **tree,
        "prediction": "v_prediction",
        "zero_terminal_snr": True,
        "training": {**tree["training"], "optimizer": "lion"},
    }
    assert asked.training.deciding["optimizer"] == "lion"
    again = TrainerSettings.from_json(asked.to_json(), asked.training.run_parameters)
    assert again == asked
    trained = again.trained_preset(get_preset("tiny"))
    assert NoiseSchedule.of(trained) == SCHEDULES[1]
    # Base weights that predict the velocity are trained further as the preset does.
    other = get_preset("tiny").trained_as("v_prediction")
    assert NoiseSchedule.of(usual.trained_preset(other)) == NoiseSchedule("epsilon")
    assert isinstance(again.validation, ValidationConfig)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{zero_terminal_snr: true}", "model.zero_terminal_snr = true is impossible"),
        (
            "{prediction: epsilon, zero_terminal_snr: true}",
            "model.prediction = epsilon with model.zero_terminal_snr = true is impossible",
        ),
    ],
)
def test_noise_alone_cannot_be_told_from_itself(text: str, said: str, tmp_path) -> None:
    with pytest.raises(ConfigError) as error:
        settings_of(f"model: {text}", tmp_path)
    assert said in str(error.value)
    assert "set model.prediction to v_prediction" in str(error.value)
    assert "\n" not in str(error.value)


def test_what_base_weights_predict_is_trained_further() -> None:
    """As their scheduler says, where the settings say nothing else."""
    config = load_config()
    base_model = resolve_base_weights(config)[1]
    of_velocity = dataclasses.replace(
        base_model, preset=base_model.preset.trained_as("v_prediction", True)
    )
    assert NoiseSchedule.of(trained_preset(config, of_velocity)) == SCHEDULES[1]
    settings = trainer_settings(config, of_velocity, "/x")
    assert (settings.prediction, settings.zero_terminal_snr) == ("v_prediction", True)
