"""From the configuration to all that the Trainer is told."""

from __future__ import annotations

from components.code_version import code_version
from pipeline.config import RunConfig
from trainer.presets import get_preset
from trainer.training_config import TrainerSettings
from trainer.weights.base_model import BaseModel


def trainer_settings(config: RunConfig, checkpoint_dir: str) -> TrainerSettings:
    """What `trainer.run_fn` is told.

    Args:
        config: All settings, with the base weights resolved.
        checkpoint_dir: Folder for the checkpoints of all runs.
    """
    model = config.model
    base_model = BaseModel.locate(get_preset(model.preset), model.image_size, model.base_weights)
    return TrainerSettings(
        preset=model.preset,
        image_size=model.image_size,
        base_weights=model.base_weights,
        base_weights_hash=base_model.hash(),
        training=config.training,
        validation=config.validation,
        checkpoint_dir=checkpoint_dir,
        export_weights=model.export_weights,
        code_version=code_version("trainer.run_fn", "components.diffusion_trainer.executor"),
    )
