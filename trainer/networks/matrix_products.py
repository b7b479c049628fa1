"""Convolutions as matrix products, which are fast on a CPU.

The convolutions of oneDNN, and even more those of Eigen, are slow if a map has few positions and
many channels, like most maps of a U-Net: up to six times as slow as the same arithmetic in a matrix
product, and up to eight times in the backward pass (`make bench-serving` and `make bench-train`
measure the whole). The networks are built as usual; their convolutions compute like this only while
a training step, or a model exported for a CPU, is traced.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import keras
import numpy as np
import tensorflow as tf

from trainer.networks.seam import computing_as


class _MatrixProductConv2D(keras.layers.Conv2D):
    def convolution_op(self, inputs: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
        if not is_matrix_product(self):
            return super().convolution_op(inputs, kernel)
        return conv2d(inputs, tf.convert_to_tensor(kernel), stride=self.strides[0])


@contextlib.contextmanager
def convolutions_as_matrix_products(
    models: Sequence[keras.Model], for_gpu: bool | None = None
) -> Iterator[None]:
    """Within this, the models' convolutions are traced as matrix products.

    For a GPU this does nothing: its libraries have kernels for every size.

    Args:
        models: The models; they are not changed permanently.
        for_gpu: Whether the trace will run on a GPU; by default, whether there is one here.
    """
    if for_gpu or (for_gpu is None and tf.config.list_logical_devices("GPU")):
        yield
        return
    with computing_as(models, {keras.layers.Conv2D: _MatrixProductConv2D}):
        yield


def is_matrix_product(layer: keras.layers.Conv2D) -> bool:
    """Whether `conv2d` computes the same as a layer, as for all of KerasCV's convolutions."""
    square = len({*layer.kernel_size}) == len({*layer.strides}) == 1
    channels_last = layer.data_format == "channels_last"
    alone = layer.groups == 1 and set(layer.dilation_rate) == {1}
    return layer.padding == "valid" and square and alone and channels_last


def conv2d(images: tf.Tensor, kernel: tf.Tensor, stride: int = 1) -> tf.Tensor:
    """The result of `tf.nn.conv2d` without padding, with a gradient that needs little memory.

    Args:
        images: [B, H, W, C], of known height and width.
        kernel: [k, k, C, D], of the same dtype.
        stride: Stride in both directions.

    Returns:
        [B, (H - k) // stride + 1, (W - k) // stride + 1, D].
    """
    height, width, channels = images.shape[1:]
    size, _, _, filters = kernel.shape
    pointwise = _is_pointwise(size, stride)

    def summed(patches: tf.Tensor, batch: tf.Tensor) -> tf.Tensor:
        """Adds up the values of patches at the same position: [B * H * W, C]."""
        positions = _positions(height, width, size, stride)
        targets = tf.range(batch)[:, None] * (height * width) + positions
        return tf.math.unsorted_segment_sum(
            tf.reshape(patches, (-1, channels)), tf.reshape(targets, (-1,)), batch * height * width
        )

    @tf.custom_gradient
    def convolve(images: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
        def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            upstream = tf.reshape(upstream, (-1, filters))
            # The patches are made again: keeping them would take k * k times the memory of the
            # images. And only when they are needed: without the dependency, they would be the same
            # operation as in the forward pass, or run at once.
            with tf.control_dependencies([upstream]):
                images_again = tf.identity(images)
            patches = _patches(images_again, size, stride)
            of_kernel = tf.matmul(patches, upstream, transpose_a=True)
            matrix = tf.reshape(kernel, (-1, filters))
            of_patches = tf.matmul(upstream, matrix, transpose_b=True)
            of_images = of_patches if pointwise else summed(of_patches, tf.shape(images)[0])
            return tf.reshape(of_images, tf.shape(images)), tf.reshape(of_kernel, kernel.shape)

        return conv2d_forward(images, kernel, stride), gradient

    result: tf.Tensor = convolve(images, kernel)
    return result


def conv2d_forward(images: tf.Tensor, kernel: tf.Tensor, stride: int = 1) -> tf.Tensor:
    """`conv2d` without its custom gradient, which would be saved with an exported model.

    Height and width need not be known when this is traced.
    """
    size, _, _, filters = kernel.shape
    matrix = tf.reshape(kernel, (-1, filters))
    product = tf.matmul(_patches(images, size, stride), matrix)
    rows, columns = ((side - size) // stride + 1 for side in _sides(images))
    return tf.reshape(product, (-1, rows, columns, filters))


def _sides(images: tf.Tensor) -> Sequence[int] | Sequence[tf.Tensor]:
    """Height and width: int32 [] if they are not known yet."""
    known: Sequence[int] = images.shape[1:3]
    return tf.unstack(tf.shape(images)[1:3]) if None in known else known


def _patches(images: tf.Tensor, size: int, stride: int) -> tf.Tensor:
    """[B * rows * columns, size * size * C]."""
    (height, width), channels = _sides(images), images.shape[-1]
    if _is_pointwise(size, stride):
        return tf.reshape(images, (-1, channels))
    flat = tf.reshape(images, (-1, height * width, channels))
    gathered = tf.gather(flat, _positions(height, width, size, stride), axis=1)
    return tf.reshape(gathered, (-1, size * size * channels))


def _is_pointwise(size: int, stride: int) -> bool:
    """Whether a patch is a single position, so that there is nothing to gather or add up."""
    return size == stride == 1


def _positions(
    height: int | tf.Tensor, width: int | tf.Tensor, size: int, stride: int
) -> np.ndarray | tf.Tensor:
    """Indices in a flattened map of every position of every patch, int32."""
    if not isinstance(height, int):
        rows, columns = ((side - size) // stride + 1 for side in (height, width))
        corners = tf.range(rows)[:, None] * stride * width + tf.range(columns) * stride
        within = tf.range(size)[:, None] * width + tf.range(size)
        return tf.reshape(corners[..., None, None] + within, (-1,))
    index = np.arange(height * width, dtype=np.int32).reshape(height, width)
    windows = np.lib.stride_tricks.sliding_window_view(index, (size, size))
    return windows[::stride, ::stride].reshape(-1)
