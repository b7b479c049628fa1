"""Gradient checkpointing changes memory and nothing else."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from small_runs import batch_of, tuner

from trainer.training.memory import activation_bytes


def computed(**overrides: Any) -> tuple[float, list[np.ndarray], int]:
    """Loss, gradients and estimated bytes of the activations."""
    subject = tuner(**overrides)
    compute = tf.function(lambda batch: subject._loss_and_gradients(batch, 0), autograph=False)
    loss, gradients = compute({k: v for k, v in batch_of(0).items() if k != "id"})
    return float(loss), [g.numpy() for g in gradients], activation_bytes(subject._traced_gradients)


@pytest.mark.parametrize(
    "options",
    [
        {"train_text_encoder": True},
        pytest.param({}, marks=pytest.mark.slow),
        pytest.param({"lora_rank": 2}, marks=pytest.mark.slow),
        pytest.param({"lora_rank": 2, "precision": "bfloat16"}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_loss_and_gradients_are_the_same_in_less_memory(options: Mapping[str, Any]) -> None:
    loss, gradients, size = computed(**options)
    other_loss, other_gradients, other_size = computed(gradient_checkpointing=True, **options)
    # In 16 bits, what is fused otherwise is rounded otherwise.
    exact = options.get("precision", "float32") == "float32"
    assert other_loss == pytest.approx(loss, rel=1e-6 if exact else 2**-8)
    assert len(gradients) == len(other_gradients)
    scale = max(np.abs(g).max() for g in gradients)
    for gradient, other in zip(gradients, other_gradients, strict=True):
        if exact:
            np.testing.assert_allclose(other, gradient, rtol=1e-4, atol=1e-6 * scale)
        else:
            np.testing.assert_allclose(other, gradient, atol=0.05 * scale)
    # Of each adapter, the half that starts at zero is the only one with a gradient.
    assert sum(np.abs(g).max() > 0 for g in gradients) >= len(gradients) / 2
    assert other_size < 0.6 * size
