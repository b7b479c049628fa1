from collections.abc import Iterable, Iterator

import numpy as np
import pytest
import tensorflow as tf

from trainer.training.optimizer import AveragedAdamW


def updates(
    optimizer: AveragedAdamW,
    value: np.ndarray,
    gradients: Iterable[np.ndarray],
    weight_decay: float,
) -> Iterator[np.ndarray]:
    """Applies each gradient at a learning rate of 0.01; yields what should come out, float64."""
    first = second = np.zeros_like(value)
    for step, gradient in enumerate(gradients, 1):
        optimizer.apply([tf.constant(gradient, tf.float32)], tf.constant(0.01), tf.constant(step))
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient**2
        corrected = first / (1 - 0.9**step) / (np.sqrt(second / (1 - 0.999**step)) + 1e-8)
        value = value - 0.01 * (corrected + weight_decay * value)
        yield value


@pytest.mark.parametrize(
    ("weight_decay", "ema_decay"), [(0.0, 0.2), (0.1, 0.2), (0.1, 0.0), (0.0, 0.999)]
)
def test_updates_by_hand(weight_decay: float, ema_decay: float) -> None:
    rng = np.random.default_rng(0)
    average = rng.standard_normal((3, 2))
    variable = tf.Variable(average, dtype=tf.float32)
    optimizer = AveragedAdamW([variable], weight_decay=weight_decay, ema_decay=ema_decay)
    gradients = rng.standard_normal((30, 3, 2))
    for step, value in enumerate(updates(optimizer, average, gradients, weight_decay), 1):
        decay = min(ema_decay, (1 + step) / (10 + step))
        average = decay * average + (1 - decay) * value
        np.testing.assert_allclose(variable, value, atol=1e-5)
        np.testing.assert_allclose(optimizer.averages[0], average, atol=1e-5)


@pytest.mark.parametrize("size", [1.0, 1e-2, 1e-4, 1e-6, 1e-7, 1e-8])
def test_small_gradients_are_divided_as_published(size: float) -> None:
    """By the root of the corrected second moment plus 1e-8, which counts below 1e-6."""
    variable = tf.Variable(tf.zeros((4, 3)))
    optimizer = AveragedAdamW([variable], weight_decay=0.0, ema_decay=0.0)
    gradients = size * (1.0 + 0.3 * np.random.default_rng(0).standard_normal((60, 4, 3)))
    for value in updates(optimizer, np.zeros((4, 3)), gradients, 0.0):
        np.testing.assert_allclose(variable, value, rtol=5e-4)
