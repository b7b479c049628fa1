"""AdamW and the average of the weights, in few operations."""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf

from trainer.distribution import assign_here

_BETA_1 = 0.9
_BETA_2 = 0.999
_EPSILON = 1e-8


class AveragedAdamW:
    """AdamW (Loshchilov and Hutter 2019, algorithm 2) with an exponential moving average.

    On TensorFlow's fused Adam kernel: Keras' optimizer spells every update out, some forty
    operations for each of the hundreds of variables, which takes longer to trace, and at small
    widths to run, than the network itself.
    """

    def __init__(
        self, variables: Sequence[tf.Variable], *, weight_decay: float, ema_decay: float
    ) -> None:
        """Creates the state; under `tf.distribute`, call it in the strategy's scope.

        Args:
            variables: What is trained, float32.
            weight_decay: Decoupled: a step takes this fraction, times the learning rate, off.
            ema_decay: Upper limit of the average's decay.
        """
        self._variables = list(variables)
        self._weight_decay = weight_decay
        self._ema_decay = ema_decay
        self.first_moments = [tf.Variable(tf.zeros(v.shape), trainable=False) for v in variables]
        self.second_moments = [tf.Variable(tf.zeros(v.shape), trainable=False) for v in variables]
        self.averages = [tf.Variable(tf.convert_to_tensor(v), trainable=False) for v in variables]

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
        done = tf.cast(step, tf.float32)
        beta_1_power, beta_2_power = tf.pow(_BETA_1, done), tf.pow(_BETA_2, done)
        kept = 1.0 - learning_rate * self._weight_decay
        # The usual warm-up: early averages would otherwise remember the initial weights.
        forgotten = 1.0 - tf.minimum(self._ema_decay, (1.0 + done) / (10.0 + done))
        for variable, first, second, average, gradient in zip(
            self._variables,
            self.first_moments,
            self.second_moments,
            self.averages,
            gradients,
            strict=True,
        ):
            if self._weight_decay:
                assign_here(variable, variable * kept)
            tf.raw_ops.ResourceApplyAdam(
                var=variable.handle,
                m=first.handle,
                v=second.handle,
                beta1_power=beta_1_power,
                beta2_power=beta_2_power,
                lr=learning_rate,
                beta1=_BETA_1,
                beta2=_BETA_2,
                epsilon=_EPSILON,
                grad=gradient,
            )
            tf.raw_ops.ResourceApplyGradientDescent(
                var=average.handle, alpha=forgotten, delta=average - variable
            )
