"""AdamW and the average of the weights, in few operations."""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf

from trainer.training.distribution import assign_here

_BETA_1 = 0.9
_BETA_2 = 0.999
_EPSILON = 1e-8
# Far from where float32 ends, and far enough below 1 to be reached seldom.
_SMALLEST_SCALE = 1e-6


class AveragedAdamW:
    """AdamW (Loshchilov and Hutter 2019, algorithm 2) with an exponential moving average.

    On TensorFlow's fused Adam kernel: Keras' optimizer spells every update out, some forty
    operations for each of the hundreds of variables, which takes longer to trace, and at small
    widths to run, than the network itself. At full width it is memory that an update waits for, so
    the average is kept divided by a factor of its own: then one pass over it is enough.
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
        self._scaled = [tf.Variable(tf.convert_to_tensor(v), trainable=False) for v in variables]
        self._scale = tf.Variable(1.0, trainable=False)

    @property
    def averages(self) -> list[tf.Tensor]:
        """The averages, float32."""
        scale = tf.convert_to_tensor(self._scale)
        return [tf.convert_to_tensor(scaled) * scale for scaled in self._scaled]

    @property
    def state(self) -> dict[str, list[tf.Variable]]:
        """All that the next update depends on, besides the variables themselves."""
        return {
            "first_moments": self.first_moments,
            "second_moments": self.second_moments,
            "averages": [*self._scaled, self._scale],
        }

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
        # The paper adds epsilon to the root of the corrected second moment; the kernel adds what it
        # is given to that of the moment itself, and corrects both.
        epsilon = _EPSILON * tf.sqrt(1.0 - beta_2_power)
        kept = 1.0 - learning_rate * self._weight_decay
        # The usual warm-up: early averages would otherwise remember the initial weights.
        decay = tf.minimum(self._ema_decay, (1.0 + done) / (10.0 + done))
        share = self._next_scale(decay) if self._ema_decay else None
        for variable, first, second, scaled, gradient in zip(
            self._variables,
            self.first_moments,
            self.second_moments,
            self._scaled,
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
                epsilon=epsilon,
                grad=gradient,
            )
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
