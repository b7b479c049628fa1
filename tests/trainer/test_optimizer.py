import types
from collections.abc import Iterable, Iterator

import keras
import numpy as np
import pytest
import small_runs
import tensorflow as tf

from storage.user_errors import UserError
from trainer.training.fine_tuner import FineTuner
from trainer.training.optimizer import AveragedAdamW, averaged_optimizer, moment_values


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


def lion(gradient: np.ndarray, value: np.ndarray, state: dict, step: int) -> np.ndarray:
    """Chen et al. 2023, algorithm 2."""
    moment = state.get("moment", np.zeros_like(value))
    state["moment"] = 0.99 * moment + 0.01 * gradient
    return np.sign(0.9 * moment + 0.1 * gradient)


def adafactor(gradient: np.ndarray, value: np.ndarray, state: dict, step: int) -> np.ndarray:
    """Shazeer and Stern 2018, algorithms 4 and 5: what the learning rate is multiplied by."""
    squares, kept = gradient**2 + 1e-30, 1 - step**-0.8
    if value.ndim == 1:
        state["v"] = kept * state.get("v", 0.0) + (1 - kept) * squares
        moment = state["v"]
    else:
        for name, axis in (("rows", -1), ("columns", -2)):
            state[name] = kept * state.get(name, 0.0) + (1 - kept) * squares.mean(axis)
        rows = state["rows"] / state["rows"].mean(-1, keepdims=True)
        moment = rows[..., None] * state["columns"][..., None, :]
    update = gradient / np.sqrt(moment)
    update /= max(1.0, np.sqrt((update**2).mean()))
    return max(1e-3, np.sqrt((value**2).mean())) * update


@pytest.mark.parametrize(("name", "update_of"), [("lion", lion), ("adafactor", adafactor)])
def test_optimizers_of_keras_by_hand(name: str, update_of) -> None:
    rng = np.random.default_rng(0)
    values = [rng.standard_normal(shape) for shape in ((3, 2), (5,), (2, 1, 4, 3))]
    averages, states = [v.copy() for v in values], [{} for _ in values]
    variables = [tf.Variable(value, dtype=tf.float32) for value in values]
    optimizer = averaged_optimizer(name, variables, weight_decay=0.1, ema_decay=0.5)
    apply = tf.function(optimizer.apply, autograph=False)
    for step in range(1, 9):
        gradients = [rng.standard_normal(value.shape) for value in values]
        apply([tf.constant(g, tf.float32) for g in gradients], tf.constant(0.01), tf.constant(step))
        decay = min(0.5, (1 + step) / (10 + step))
        for i, gradient in enumerate(gradients):
            value = values[i] * (1 - 0.01 * 0.1)
            values[i] = value - 0.01 * update_of(gradient, value, states[i], step)
            averages[i] = decay * averages[i] + (1 - decay) * values[i]
            np.testing.assert_allclose(variables[i], values[i], atol=1e-5)
            np.testing.assert_allclose(optimizer.averages[i], averages[i], atol=1e-5)


@pytest.mark.parametrize("name", ["adamw", "adafactor", "lion"])
def test_what_is_kept_is_what_is_counted(name: str) -> None:
    shapes = [(3, 3, 5, 7), (6, 4), (9,), ()]
    variables = [tf.Variable(tf.zeros(shape)) for shape in shapes]
    optimizer = averaged_optimizer(name, variables, weight_decay=0.0, ema_decay=0.9)
    kept = [v for key, some in optimizer.state.items() if key != "averages" for v in some]
    expected = sum(moment_values(name, shape) for shape in shapes)
    assert sum(v.shape.num_elements() for v in kept) == expected
    # With ema_decay, whatever the optimizer.
    assert len(optimizer.state["averages"]) == len(shapes) + 1


@pytest.mark.parametrize("name", ["adafactor", "lion"])
def test_a_killed_training_goes_on_to_the_last_bit(name: str, tmp_path) -> None:
    """As `test_fine_tuner` has it of AdamW."""
    whole = small_runs.tuner(plain=True, optimizer=name)
    whole.train(small_runs.batches_from, str(tmp_path / "whole"))
    first = small_runs.tuner(plain=True, optimizer=name)
    first.train(small_runs.batches_from, str(tmp_path / "parts"), until=4)
    second = small_runs.tuner(plain=True, optimizer=name)
    second.train(small_runs.batches_from, str(tmp_path / "parts"))
    assert second.steps_done == 6
    for a, b in zip(small_runs.state(whole), small_runs.state(second), strict=True):
        np.testing.assert_array_equal(a, b)


def test_keras_optimizers_are_for_one_device() -> None:
    two = types.SimpleNamespace(num_replicas_in_sync=2)
    with pytest.raises(UserError, match="lion supports only one device, and there are 2"):
        FineTuner(
            keras.Sequential(),
            small_runs.preset(),
            small_runs.config(optimizer="lion"),
            empty_caption=tf.zeros((77, 8)),
            strategy=two,
        )
