"""Layers in their form for drawing: the same arithmetic in fewer, larger operations.

Keras multiplies a sequence with a matrix example by example and normalizes groups by broadcasting
five dimensions, and KerasCV's attention is made of layers. That costs a small network, whose
operations take microseconds, a third of its time. The networks are built and trained as usual; only
exported models are traced like this.

They may compute in 16 bits. Then operations that add up many numbers, normalization and softmax,
stay in float32. So do the layers at both ends of a network: they are small, and their rounding
would go straight into the picture.

Maps may have any height and width here, which are not known when they are traced. Each block reads
them once: a sequence is [B * T, C] from the beginning of its transformer to the end.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterator, Mapping, Sequence

import keras
import tensorflow as tf

from trainer.networks.blocks import AttentionBlock, SpatialTransformer
from trainer.networks.matrix_products import conv2d_forward, is_matrix_product
from trainer.networks.seam import (
    CrossAttention,
    LayerClass,
    compute_as,
    compute_in,
    computing_as,
    layers_within,
)
from trainer.training_config import ComputeDtype

_ENDS = re.compile(
    r"time_embedding\.linear_\d|post_quant_conv|(decoder\.)?conv_(in|norm_out|act|out)"
)

# With fewer channels, a convolution of few positions is too short to gain from a matrix product.
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
        positions = range(1, len(inputs.shape) - 1)
        # As in Keras: half precision has too few digits or too small a range for the sums.
        x = tf.cast(inputs, tf.float32)

        def mean_of_groups(x: tf.Tensor) -> tf.Tensor:
            """From [B, h, w, C] to [B, 1, 1, C]."""
            of_channels = tf.reduce_mean(x, axis=list(positions))
            of_channels = tf.reshape(of_channels, (-1, groups, channels // groups))
            mean = tf.reduce_mean(of_channels, axis=2, keepdims=True)
            spread = tf.tile(mean, (1, 1, channels // groups))
            return tf.reshape(spread, (-1, *(1 for _ in positions), channels))

        centred = x - mean_of_groups(x)
        variance = mean_of_groups(tf.square(centred))
        scale = tf.math.rsqrt(variance + self.epsilon) * tf.cast(self.gamma, tf.float32)
        normalized = centred * scale + tf.cast(self.beta, tf.float32)
        return tf.cast(normalized, inputs.dtype)


class _FlatSpatialTransformer(SpatialTransformer):
    def call(self, inputs: Sequence[tf.Tensor]) -> tf.Tensor:
        maps, context = inputs
        shape, block = tf.shape(maps), self.transformer_block
        x = tf.reshape(self.proj1(self.norm(maps)), (-1, maps.shape[-1]))
        context = tf.reshape(context, (-1, context.shape[-1]))
        normal = block.norm1(x)
        x = attention(block.attn1, normal, normal, shape[0]) + x
        x = attention(block.attn2, block.norm2(x), context, shape[0]) + x
        x = block.dense(block.geglu(block.norm3(x))) + x
        return self.proj2(tf.ensure_shape(tf.reshape(x, shape), maps.shape)) + maps


class _OneOperationUpSampling2D(keras.layers.UpSampling2D):
    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        if self.interpolation != "nearest" or self.data_format != "channels_last":
            return super().call(inputs)
        size = tf.shape(inputs)[1:3] * tf.constant(self.size)
        return tf.raw_ops.ResizeNearestNeighbor(images=inputs, size=size)


class _FewPositionsConv2D(keras.layers.Conv2D):
    def convolution_op(self, inputs: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
        return conv2d_forward(inputs, tf.convert_to_tensor(kernel), self.strides[0])


class _Float32SoftmaxAttentionBlock(AttentionBlock):
    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        x, shape = self.norm(inputs), tf.shape(inputs)
        flat = (shape[0], -1, inputs.shape[-1])
        query, key, value = (tf.reshape(to(x), flat) for to in (self.q, self.k, self.v))
        scores = tf.matmul(query * inputs.shape[-1] ** -0.5, key, transpose_b=True)
        attended = tf.reshape(tf.matmul(_softmax(scores), value), shape)
        return self.proj_out(tf.ensure_shape(attended, inputs.shape)) + inputs


_FORMS = {
    keras.layers.Dense: _OneProductDense,
    keras.layers.GroupNormalization: _FlatGroupNormalization,
    keras.layers.UpSampling2D: _OneOperationUpSampling2D,
    SpatialTransformer: _FlatSpatialTransformer,
}
_FORMS_IN_16_BITS = {**_FORMS, AttentionBlock: _Float32SoftmaxAttentionBlock}


def attention(
    layer: CrossAttention, inputs: tf.Tensor, context: tf.Tensor, batch_size: tf.Tensor
) -> tf.Tensor:
    """The output of an attention layer.

    Args:
        layer: The layer whose weights are used.
        inputs: [B * T, C], the positions of one example after another.
        context: [B * S, D], which they attend to.
        batch_size: B, int32 [].

    Returns:
        [B * T, C].
    """

    def heads(x: tf.Tensor) -> tf.Tensor:
        """From [B * T, C] to [B, heads, T, head size]."""
        shape = (batch_size, -1, layer.num_heads, layer.head_size)
        return tf.transpose(tf.reshape(x, shape), (0, 2, 1, 3))

    query, key = heads(layer.to_q(inputs) * layer.scale), heads(layer.to_k(context))
    weights = _softmax(tf.matmul(query, key, transpose_b=True))
    attended = tf.transpose(tf.matmul(weights, heads(layer.to_v(context))), (0, 2, 1, 3))
    return layer.out_proj(tf.reshape(attended, (-1, layer.num_heads * layer.head_size)))


@contextlib.contextmanager
def inference_layers(
    model: keras.Model, for_cpu: bool = False, compute: ComputeDtype = "float32"
) -> Iterator[None]:
    """Within this, the model is traced with these forms of its layers, with the same variables.

    Args:
        model: The model; it is not changed permanently.
        compute: The type that it computes in, except for what has to stay float32.
        for_cpu: Whether it will only run on a CPU, where convolutions of few positions and many
            channels are faster as matrix products. The number of positions at the size that the
            model was built for decides for all sizes.
    """
    few = _of_few_positions(model) if for_cpu else []
    with computing_as([model], *_arithmetic(compute)):
        for layer in few:
            compute_as(layer, _FewPositionsConv2D)
        if compute != "float32":
            for layer in _ends(model):
                compute_in(layer, "float32")
        yield


def _arithmetic(
    compute: ComputeDtype,
) -> tuple[Mapping[LayerClass, LayerClass], keras.DTypePolicy | None]:
    if compute == "float32":
        return _FORMS, None
    return _FORMS_IN_16_BITS, keras.DTypePolicy(f"mixed_{compute}")


def _softmax(scores: tf.Tensor) -> tf.Tensor:
    return tf.cast(tf.nn.softmax(tf.cast(scores, tf.float32)), scores.dtype)


def _ends(model: keras.Model) -> list[keras.layers.Layer]:
    return [
        part
        for layer in model.layers
        if isinstance(layer, keras.layers.Rescaling) or _ENDS.fullmatch(layer.name)
        for part in layers_within(layer)
    ]


def _of_few_positions(model: keras.Model) -> list[keras.layers.Conv2D]:
    """Convolutions with at most as many positions as channels.

    With more, oneDNN is as fast, and the patches would take k * k times the memory of the map.
    """
    return [
        part
        for layer in model.layers
        for part in layers_within(layer)
        if type(part) is keras.layers.Conv2D
        and is_matrix_product(part)
        and math.prod(layer.output.shape[1:3]) <= part.kernel.shape[2]
    ]


def has_form_for_cpu(model: keras.Model) -> bool:
    """Whether tracing the model again for a CPU is worth the memory.

    The tiny preset gains nothing, and would take half a second and 160 MB more to load.
    """
    return any(
        type(layer) is keras.layers.Conv2D and layer.kernel.shape[2] >= _MANY_CHANNELS
        for layer in layers_within(model)
    )
