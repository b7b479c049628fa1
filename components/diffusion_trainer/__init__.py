"""TFX's Trainer with the settings of a run as parameters of their own."""

from components.diffusion_trainer.component import DiffusionTrainer

__all__ = ["DiffusionTrainer"]
