"""TFX's Tuner with the settings of a run as parameters of their own."""

from components.diffusion_tuner.component import DiffusionTuner

__all__ = ["DiffusionTuner"]
