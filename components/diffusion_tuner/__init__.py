"""TFX's Tuner with the settings of a run as separate parameters."""

from components.diffusion_tuner.component import DiffusionTuner

__all__ = ["DiffusionTuner"]
