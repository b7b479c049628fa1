"""TFX's Trainer with the settings of a run as separate parameters."""

from components.diffusion_trainer.component import DiffusionTrainer

__all__ = ["DiffusionTrainer"]
