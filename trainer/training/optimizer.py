"""What updates the weights, and their average: AdamW in few operations, others of Keras."""

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
"""Updates the variable of a number by its gradient."""

_Variable: TypeAlias = tf.Variable | keras.Variable

_BETA_1 = 0.9
_BETA_2 = 0.999
_EPSILON = 1e-8
# Far from where float32 ends, and far enough below 1 to be reached seldom.
_SMALLEST_SCALE = 1e-6


class AveragedOptimizer(abc.ABC):
    """An optimizer with decoupled weight decay and an exponential moving average of the weights.

    At full width it is memory that an update waits for, so the average is kept divided by a factor
    of its own: then one pass over it is enough.

    Attributes:
        trained: The variables, float32.
    """

    def __init__(
        self, variables: Sequence[_Variable], *, weight_decay: float, ema_decay: float
    ) -> None:
        """Creates the state; under `tf.distribute`, call it in the strategy's scope.

        Args:
            variables: What is trained, float32.
            weight_decay: Decoupled: a step takes this fraction, times the learning rate, off.
            ema_decay: Upper limit of the average's decay.
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
        """All that the next update depends on, besides the variables and their averages."""

    @abc.abstractmethod
    def _prepared(self, learning_rate: tf.Tensor, step: tf.Tensor) -> _Update:
        """What makes the update of a number, from 1; see `apply`."""

    @property
    def averages(self) -> list[tf.Tensor]:
        """The averages, float32."""
        scale = tf.convert_to_tensor(self._scale)
        return [tf.convert_to_tensor(scaled) * scale for scaled in self._scaled]

    @property
    def state(self) -> dict[str, list[tf.Variable]]:
        """All that the next update depends on, besides the variables themselves."""
        return {**self._moments, "averages": [*self._scaled, self._scale]}

    def apply(
        self, gradients: Sequence[tf.Tensor], learning_rate: tf.Tensor, step: tf.Tensor
    ) -> None:
        """Updates variables, moments and averages.

        Under `tf.distribute`, every replica calls this with the same gradients.

        Args:
            gradients: One for each variable, in their order.
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
        """Lets the scale decay; returns what a variable's value is multiplied by to be added.

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

    On TensorFlow's fused Adam kernel: Keras' optimizer spells every update out, some forty
    operations for each of the hundreds of variables, which takes longer to trace, and at small
    widths to run, than the network itself.
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
        # The paper adds epsilon to the root of the corrected second moment; the kernel adds what it
        # is given to that of the moment itself, and corrects both.
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
    """One of Keras', on one device."""

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
        # The number of the step and the learning rate, which are given with every update.
        others = len(self._keras.variables)
        # By the names of TensorFlow's variables, Adafactor could not call its own.
        self._keras.build(self._given)
        moments = map(_tensorflows, self._keras.variables[others:])
        # For a vector, Adafactor has whole numbers in the place of rows and columns.
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
    """The optimizer of a name; see `AveragedOptimizer` for the other arguments.

    All but AdamW are for one device alone.

    Of Lion (Chen et al. 2023, "Symbolic Discovery of Optimization Algorithms") and Adafactor
    (Shazeer and Stern 2018, whose updates are relative to the weights' size) Keras' own settings.
    """
    if name == "adamw":
        return AveragedAdamW(variables, weight_decay=weight_decay, ema_decay=ema_decay)
    optimizer = keras.optimizers.Lion() if name == "lion" else keras.optimizers.Adafactor()
    return _AveragedKeras(optimizer, variables, weight_decay=weight_decay, ema_decay=ema_decay)


def moment_values(name: OptimizerName, shape: Sequence[int]) -> int:
    """How many values an optimizer keeps of a variable of a shape, without its average.

    Adafactor's idea is to keep a matrix's rows and columns alone. Keras keeps what they make of the
    whole matrix, too.
    """
    size = math.prod(shape)
    if name == "adamw":
        return 2 * size
    if name == "lion" or len(shape) < 2:
        return size
    return size + size // shape[-1] + size // shape[-2]


def _tensorflows(variable: _Variable) -> tf.Variable:
    return variable.value if isinstance(variable, keras.Variable) else variable
