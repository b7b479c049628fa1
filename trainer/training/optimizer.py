"""Optimizers that also average the weights: AdamW in few operations, others from Keras."""

from __future__ import annotations

import abc
import math
from collections.abc import Callable, Sequence
from typing import TypeAlias

import keras
import tensorflow as tf

from trainer.training.distribution import assign_here
from trainer.training_config import OptimizerName

_Update = Callable[[int, tf.Tensor], None]
"""Updates the variable with an index, given its gradient."""

_Variable: TypeAlias = tf.Variable | keras.Variable

_BETA_1 = 0.9
_BETA_2 = 0.999
_EPSILON = 1e-8
# Far from the limits of float32, and far enough below 1 to be reached seldom.
_SMALLEST_SCALE = 1e-6


class AveragedOptimizer(abc.ABC):
    """An optimizer with decoupled weight decay and an exponential moving average of the weights.

    At full width an update is bound by memory, so the average is stored divided by a scale factor:
    then one pass over it is enough.

    Attributes:
        trained: The variables, float32.
    """

    def __init__(
        self, variables: Sequence[_Variable], *, weight_decay: float, ema_decay: float
    ) -> None:
        """Creates the state; under `tf.distribute`, call it in the strategy's scope.

        Args:
            variables: The trained variables, float32.
            weight_decay: Decoupled: a step removes this fraction, times the learning rate.
            ema_decay: Upper limit of the decay of the average.
        """
        self._given = list(variables)
        self.trained = [_tensorflows(variable) for variable in variables]
        self._weight_decay = weight_decay
        self._ema_decay = ema_decay
        self._moments = self._create_moments()
        self._scaled = [tf.Variable(tf.convert_to_tensor(v), trainable=False) for v in self.trained]
        self._scale = tf.Variable(1.0, trainable=False)

    @abc.abstractmethod
    def _create_moments(self) -> dict[str, list[tf.Variable]]:
        """Everything that the next update depends on, apart from variables and averages."""

    @abc.abstractmethod
    def _prepared(self, learning_rate: tf.Tensor, step: tf.Tensor) -> _Update:
        """The function that makes update number `step`, from 1; see `apply`."""

    @property
    def averages(self) -> list[tf.Tensor]:
        """The averages, float32."""
        scale = tf.convert_to_tensor(self._scale)
        return [tf.convert_to_tensor(scaled) * scale for scaled in self._scaled]

    @property
    def state(self) -> dict[str, list[tf.Variable]]:
        """Everything that the next update depends on, apart from the variables themselves."""
        return {**self._moments, "averages": [*self._scaled, self._scale]}

    def apply(
        self, gradients: Sequence[tf.Tensor], learning_rate: tf.Tensor, step: tf.Tensor
    ) -> None:
        """Updates variables, moments and averages.

        Under `tf.distribute`, every replica calls this with the same gradients.

        Args:
            gradients: One for each variable, in the same order.
            learning_rate: float32 [].
            step: int [], the number of this update, from 1.
        """
        update = self._prepared(learning_rate, step)
        done = tf.cast(step, tf.float32)
        kept = 1.0 - learning_rate * self._weight_decay
        # The usual warm-up: early averages would otherwise remember the initial weights.
        decay = tf.minimum(self._ema_decay, (1.0 + done) / (10.0 + done))
        share = self._next_scale(decay) if self._ema_decay else None
        for index, (variable, scaled, gradient) in enumerate(
            zip(self.trained, self._scaled, gradients, strict=True)
        ):
            if self._weight_decay:
                assign_here(variable, variable * kept)
            update(index, gradient)
            if share is None:
                assign_here(scaled, tf.identity(variable))
            else:
                tf.raw_ops.ResourceApplyGradientDescent(
                    var=scaled.handle, alpha=-share, delta=variable
                )

    def _next_scale(self, decay: tf.Tensor) -> tf.Tensor:
        """Decays the scale; returns the factor with which the value of a variable is added.

        With average = scale * scaled, `decay * average + (1 - decay) * value` is the new scale
        `decay * scale` times `scaled + (1 - decay) / (decay * scale) * value`.
        """
        scale = decay * tf.identity(self._scale)

        def rescaled() -> tf.Tensor:
            for scaled in self._scaled:
                assign_here(scaled, tf.identity(scaled) * scale)
            return tf.ones(())

        scale = tf.cond(scale < _SMALLEST_SCALE, rescaled, lambda: scale)
        assign_here(self._scale, scale)
        return (1.0 - decay) / scale


class AveragedAdamW(AveragedOptimizer):
    """AdamW (Loshchilov and Hutter 2019, algorithm 2).

    Uses TensorFlow's fused Adam kernel. Keras' optimizer writes every update out in some forty
    operations for each of hundreds of variables, which takes longer to trace, and at small widths
    to run, than the network itself.
    """

    def _create_moments(self) -> dict[str, list[tf.Variable]]:
        self.first_moments, self.second_moments = (
            [tf.Variable(tf.zeros(v.shape), trainable=False) for v in self.trained]
            for _ in range(2)
        )
        return {"first_moments": self.first_moments, "second_moments": self.second_moments}

    def _prepared(self, learning_rate: tf.Tensor, step: tf.Tensor) -> _Update:
        done = tf.cast(step, tf.float32)
        beta_1_power, beta_2_power = tf.pow(_BETA_1, done), tf.pow(_BETA_2, done)
        # The paper adds epsilon to the root of the corrected second moment; the kernel adds its
        # epsilon to the root of the uncorrected moment, and corrects both.
        epsilon = _EPSILON * tf.sqrt(1.0 - beta_2_power)

        def update(index: int, gradient: tf.Tensor) -> None:
            tf.raw_ops.ResourceApplyAdam(
                var=self.trained[index].handle,
                m=self.first_moments[index].handle,
                v=self.second_moments[index].handle,
                beta1_power=beta_1_power,
                beta2_power=beta_2_power,
                lr=learning_rate,
                beta1=_BETA_1,
                beta2=_BETA_2,
                epsilon=epsilon,
                grad=gradient,
            )

        return update


class _AveragedKeras(AveragedOptimizer):
    """An optimizer from Keras, on one device."""

    def __init__(
        self,
        optimizer: keras.optimizers.Optimizer,
        variables: Sequence[_Variable],
        *,
        weight_decay: float,
        ema_decay: float,
    ) -> None:
        self._keras = optimizer
        super().__init__(variables, weight_decay=weight_decay, ema_decay=ema_decay)

    def _create_moments(self) -> dict[str, list[tf.Variable]]:
        # The step number and the learning rate, which are given with every update.
        others = len(self._keras.variables)
        # Adafactor cannot name its own variables after TensorFlow's variables.
        self._keras.build(self._given)
        moments = map(_tensorflows, self._keras.variables[others:])
        # For a vector, Adafactor has integers instead of rows and columns.
        return {"moments": [moment for moment in moments if moment.dtype == tf.float32]}

    def _prepared(self, learning_rate: tf.Tensor, step: tf.Tensor) -> _Update:
        assign_here(_tensorflows(self._keras.iterations), tf.cast(step, tf.int64) - 1)

        def update(index: int, gradient: tf.Tensor) -> None:
            self._keras.update_step(gradient, self.trained[index], learning_rate)

        return update


def averaged_optimizer(
    name: OptimizerName,
    variables: Sequence[_Variable],
    *,
    weight_decay: float,
    ema_decay: float,
) -> AveragedOptimizer:
    """The optimizer called `name`; see `AveragedOptimizer` for the other arguments.

    All but AdamW support only one device.

    Lion (Chen et al. 2023, "Symbolic Discovery of Optimization Algorithms") and Adafactor (Shazeer
    and Stern 2018, whose updates are relative to the size of the weights) use Keras' defaults.
    """
    if name == "adamw":
        return AveragedAdamW(variables, weight_decay=weight_decay, ema_decay=ema_decay)
    optimizer = keras.optimizers.Lion() if name == "lion" else keras.optimizers.Adafactor()
    return _AveragedKeras(optimizer, variables, weight_decay=weight_decay, ema_decay=ema_decay)


def moment_values(name: OptimizerName, shape: Sequence[int]) -> int:
    """Number of values that an optimizer keeps for a variable of a shape, without its average.

    Adafactor's idea is to keep only the rows and columns of a matrix. Keras also keeps the whole
    matrix that is computed from them.
    """
    size = math.prod(shape)
    if name == "adamw":
        return 2 * size
    if name == "lion" or len(shape) < 2:
        return size
    return size + size // shape[-1] + size // shape[-2]


def _tensorflows(variable: _Variable) -> tf.Variable:
    return variable.value if isinstance(variable, keras.Variable) else variable
