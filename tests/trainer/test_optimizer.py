import numpy as np
import pytest
import tensorflow as tf

from trainer.training.optimizer import AveragedAdamW


@pytest.mark.parametrize(
    ("weight_decay", "ema_decay"), [(0.0, 0.2), (0.1, 0.2), (0.1, 0.0), (0.0, 0.999)]
)
def test_updates_by_hand(weight_decay: float, ema_decay: float) -> None:
    rng = np.random.default_rng(0)
    value = rng.standard_normal((3, 2))
    variable = tf.Variable(value, dtype=tf.float32)
    optimizer = AveragedAdamW([variable], weight_decay=weight_decay, ema_decay=ema_decay)
    first = second = np.zeros_like(value)
    average = value
    for step in range(1, 31):
        gradient = rng.standard_normal(value.shape)
        optimizer.apply([tf.constant(gradient, tf.float32)], tf.constant(0.01), tf.constant(step))
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient**2
        corrected = first / (1 - 0.9**step) / (np.sqrt(second / (1 - 0.999**step)) + 1e-8)
        value = value - 0.01 * (corrected + weight_decay * value)
        decay = min(ema_decay, (1 + step) / (10 + step))
        average = decay * average + (1 - decay) * value
        np.testing.assert_allclose(variable, value, atol=1e-5)
        np.testing.assert_allclose(optimizer.averages[0], average, atol=1e-5)


@pytest.mark.parametrize("size", [1.0, 1e-2, 1e-4, 1e-6, 1e-7, 1e-8])
def test_small_gradients_are_divided_as_published(size: float) -> None:
    """By the root of the corrected second moment plus 1e-8, which counts below 1e-6."""
    rng = np.random.default_rng(0)
    variable = tf.Variable(tf.zeros((4, 3)))
    optimizer = AveragedAdamW([variable], weight_decay=0.0, ema_decay=0.0)
    value = first = second = np.zeros((4, 3))
    for step in range(1, 61):
        gradient = size * (1.0 + 0.3 * rng.standard_normal(value.shape))
        optimizer.apply([tf.constant(gradient, tf.float32)], tf.constant(0.01), tf.constant(step))
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient**2
        root = np.sqrt(second / (1 - 0.999**step))
        value = value - 0.01 * first / (1 - 0.9**step) / (root + 1e-8)
        np.testing.assert_allclose(variable, value, rtol=5e-4)
