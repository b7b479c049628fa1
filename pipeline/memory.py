"""How much memory training takes at least, before anything is built."""

from __future__ import annotations

from pipeline.config import RunConfig
from pipeline.disk import COPIES, trained_parameters
from serving.releases import SERVED_NETWORKS
from trainer.presets import get_preset

_FLOAT32 = 4


def fixed_bytes(config: RunConfig) -> int:
    """Bytes for weights, gradients, optimizer and averages, without activations.

    Args:
        config: All settings, resolved.
    """
    preset, training = get_preset(config.model.preset), config.training
    weights = sum(preset.parameters[network] for network in SERVED_NETWORKS)
    gradients = 2 if training.accumulation_steps > 1 else 1
    # The weights are among what a checkpoint holds.
    copies = COPIES[training.optimizer] - 1 + gradients
    return _FLOAT32 * (weights + copies * trained_parameters(config))
