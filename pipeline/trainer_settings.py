"""Turns the configuration into the settings of the Trainer."""

from __future__ import annotations

from components.code_version import code_version
from pipeline.config import RunConfig, trained_preset
from pipeline.config.subject import subject_prompts
from pipeline.config.words import word_settings
from trainer.presets import get_preset
from trainer.training_config import TrainerSettings
from trainer.weights.base_model import BaseModel


def trainer_settings(
    config: RunConfig, base_model: BaseModel, checkpoint_dir: str
) -> TrainerSettings:
    """The settings that `trainer.run_fn` gets.

    Args:
        config: All settings.
        base_model: The base weights.
        checkpoint_dir: Folder for the checkpoints of all runs.
    """
    trained = trained_preset(config, base_model)
    usual = get_preset(trained.name)
    return TrainerSettings(
        preset=base_model.preset.name,
        image_size=base_model.image_size,
        base_weights=base_model.base_weights,
        base_weights_hash=base_model.hash(),
        training=config.training,
        validation=config.validation,
        checkpoint_dir=checkpoint_dir,
        export_weights=config.model.export_weights,
        compute=config.model.compute,
        image_to_image=config.serving.image_to_image,
        # Usual values are left out, so that such a run stays the same as before there was a choice.
        prediction=None if trained.prediction == usual.prediction else trained.prediction,
        zero_terminal_snr=(
            None
            if trained.zero_terminal_snr == usual.zero_terminal_snr
            else trained.zero_terminal_snr
        ),
        prior_weight=None if config.prior.caption is None else config.prior.weight,
        prompts_from_caption=config.validation.prompts is not None
        and config.validation.prompts == subject_prompts(config),
        word=word_settings(config.word),
        code_version=code_version("trainer.run_fn", "components.diffusion_trainer.executor"),
    )
