"""From the configuration to all that the Trainer is told."""

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
    """What `trainer.run_fn` is told.

    Args:
        config: All settings.
        base_model: What training starts from.
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
        # What is as ever is not told, so that a run is what it was before there was a choice.
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
