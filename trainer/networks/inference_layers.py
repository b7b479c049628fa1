"""Layers in the form in which they are drawn with: the same arithmetic in fewer, larger operations.

Keras multiplies a sequence with a matrix example by example and normalizes groups by broadcasting
five dimensions, and KerasCV's attention is made of layers. That costs a small network, whose
operations take microseconds, a third of its time. The networks are built and trained as they are;
only what is exported is traced like this.
"""

from __future__ import annotations

import contextlib
import math

import keras
import tensorflow as tf

from trainer.networks.matrix_products import conv2d_forward, is_matrix_product, output_sides
from trainer.networks.seam import CrossAttention, computing_as, layers_within

# Below, a convolution of few positions is too short to gain from being a matrix product.
_MANY_CHANNELS = 512


class _OneProductDense(keras.layers.Dense):
    def call(self, inputs: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        if len(inputs.shape) == 2 or None in inputs.shape[1:]:
            return super().call(inputs, training=training)
        flat = super().call(tf.reshape(inputs, (-1, inputs.shape[-1])), training=training)
        return tf.reshape(flat, (-1, *inputs.shape[1:-1], flat.shape[-1]))


class _FlatGroupNormalization(keras.layers.GroupNormalization):
    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        channels, groups = inputs.shape[-1], self.groups
        positions = math.prod(inputs.shape[1:-1])
        # As in Keras: half precision has too few digits, or too small a range, for the sums.
        x = tf.cast(tf.reshape(inputs, (-1, positions, channels)), tf.float32)

        def mean_of_groups(x: tf.Tensor) -> tf.Tensor:
            """From [B, positions, C] to [B, 1, C]."""
            of_channels = tf.reshape(tf.reduce_mean(x, axis=1), (-1, groups, channels // groups))
            mean = tf.reduce_mean(of_channels, axis=2, keepdims=True)
            return tf.reshape(tf.tile(mean, (1, 1, channels // groups)), (-1, 1, channels))

        centred = x - mean_of_groups(x)
        variance = mean_of_groups(tf.square(centred))
        scale = tf.math.rsqrt(variance + self.epsilon) * tf.cast(self.gamma, tf.float32)
        normalized = centred * scale + tf.cast(self.beta, tf.float32)
        return tf.reshape(tf.cast(normalized, inputs.dtype), (-1, *inputs.shape[1:]))


class _PlainCrossAttention(CrossAttention):
    def call(self, inputs: tf.Tensor, context: tf.Tensor | None = None) -> tf.Tensor:
        def heads(x: tf.Tensor) -> tf.Tensor:
            """From [B, T, C] to [B, heads, T, head size]."""
            shape = (-1, x.shape[1], self.num_heads, self.head_size)
            return tf.transpose(tf.reshape(x, shape), (0, 2, 1, 3))

        context = inputs if context is None else context
        query, key = heads(self.to_q(inputs) * self.scale), heads(self.to_k(context))
        weights = tf.nn.softmax(tf.matmul(query, key, transpose_b=True))
        attended = tf.transpose(tf.matmul(weights, heads(self.to_v(context))), (0, 2, 1, 3))
        width = self.num_heads * self.head_size
        return self.out_proj(tf.reshape(attended, (-1, inputs.shape[1], width)))


class _FewPositionsConv2D(keras.layers.Conv2D):
    def convolution_op(self, inputs: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
        if not is_matrix_product(self):
            return super().convolution_op(inputs, kernel)
        kernel = tf.convert_to_tensor(kernel)
        rows, columns = output_sides(inputs, kernel, self.strides[0])
        # Beyond, oneDNN is as fast, and the patches would take k * k times the map's memory.
        if rows * columns > inputs.shape[-1]:
            return super().convolution_op(inputs, kernel)
        return conv2d_forward(inputs, kernel, self.strides[0])


_FORMS = {
    keras.layers.Dense: _OneProductDense,
    keras.layers.GroupNormalization: _FlatGroupNormalization,
    CrossAttention: _PlainCrossAttention,
}


def inference_layers(
    model: keras.Model, for_cpu: bool = False
) -> contextlib.AbstractContextManager[None]:
    """Within this, the model is traced with these forms of its layers, with the same variables.

    Args:
        model: Is left as it is.
        for_cpu: Whether it will only run on a CPU, where convolutions of few positions and many
            channels are faster as matrix products.
    """
    forms = _FORMS | {keras.layers.Conv2D: _FewPositionsConv2D} if for_cpu else _FORMS
    return computing_as([model], forms)


def has_form_for_cpu(model: keras.Model) -> bool:
    """Whether it is worth its memory to trace the model once more, for a CPU.

    That of the tiny preset gains nothing, and would take half a second and 160 MB more to load.
    """
    return any(
        type(layer) is keras.layers.Conv2D and layer.kernel.shape[2] >= _MANY_CHANNELS
        for layer in layers_within(model)
    )
