import keras
import numpy as np
import pytest
import small_runs
import tensorflow as tf

from trainer.networks.inference_layers import inference_layers
from trainer.networks.matrix_products import conv2d, convolutions_as_matrix_products
from trainer.weights.base_model import BaseModel


def by_hand(images: np.ndarray, kernel: np.ndarray, stride: int) -> np.ndarray:
    size = kernel.shape[0]
    rows, columns = ((side - size) // stride + 1 for side in images.shape[1:3])
    result = np.zeros((len(images), rows, columns, kernel.shape[3]))
    for row in range(rows):
        for column in range(columns):
            top, left = row * stride, column * stride
            patch = images[:, top : top + size, left : left + size]
            result[:, row, column] = np.einsum("bijc,ijcd->bd", patch, kernel)
    return result


@pytest.mark.parametrize(
    ("batch", "height", "width", "size", "stride"),
    [
        (2, 5, 7, 3, 1),
        (1, 4, 4, 3, 1),
        (3, 7, 5, 3, 2),
        # As many patches' positions as the map has.
        (2, 6, 6, 3, 2),
        (2, 3, 4, 1, 1),
        (2, 5, 5, 1, 2),
    ],
)
def test_values_and_gradients_are_the_convolutions(batch, height, width, size, stride) -> None:
    rng = np.random.default_rng(0)
    images = rng.standard_normal((batch, height, width, 6))
    kernel = rng.standard_normal((size, size, 6, 4))
    expected = by_hand(images, kernel, stride)
    upstream = rng.standard_normal(expected.shape)

    @tf.function(autograph=False)
    def results(convolution, images, kernel):
        with tf.GradientTape() as tape:
            tape.watch((images, kernel))
            output = convolution(images, kernel)
            target = tf.reduce_sum(output * upstream)
        return output, *tape.gradient(target, (images, kernel))

    given = tf.constant(images), tf.constant(kernel)
    ours = results(lambda x, k: conv2d(x, k, stride), *given)
    theirs = results(lambda x, k: tf.nn.conv2d(x, k, stride, "VALID"), *given)
    np.testing.assert_allclose(ours[0], expected, atol=1e-12)
    for our, their in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(our, their, atol=1e-12)


@pytest.mark.parametrize(
    "settings",
    [{"padding": "same"}, {"dilation_rate": 2}, {"groups": 2}, {"strides": (1, 2)}],
    ids=lambda settings: next(iter(settings)),
)
def test_what_is_no_matrix_product_is_computed_as_it_was(settings: dict[str, object]) -> None:
    # Few positions and many channels, or the form for drawing leaves them alone anyway.
    images = tf.random.stateless_normal((1, 8, 8, 256), seed=(0, 1))
    model = keras.Sequential([keras.Input((8, 8, 256)), keras.layers.Conv2D(2, 3, **settings)])
    expected = model(images)
    with convolutions_as_matrix_products([model]):
        np.testing.assert_array_equal(model(images), expected)
    with inference_layers(model, for_cpu=True):
        np.testing.assert_array_equal(model(images), expected)


@pytest.mark.parametrize("dtype", [tf.bfloat16, tf.float16])
def test_half_precision_stays_half(dtype: tf.DType) -> None:
    rng = np.random.default_rng(0)
    images = tf.constant(rng.standard_normal((2, 4, 4, 8)), dtype)
    kernel = tf.constant(rng.standard_normal((3, 3, 8, 8)), dtype)
    with tf.GradientTape() as tape:
        tape.watch((images, kernel))
        output = conv2d(images, kernel)
    gradients = tape.gradient(output, (images, kernel))
    assert {x.dtype for x in (output, *gradients)} == {dtype}
    expected = by_hand(np.float64(images), np.float64(kernel), 1)
    np.testing.assert_allclose(np.float64(output), expected, rtol=0.1, atol=0.3)


def test_a_network_has_the_same_gradients_and_its_own_layers_again() -> None:
    preset = small_runs.preset()
    model = BaseModel.locate(preset, 64, "random").build("diffusion_model")
    batch = small_runs.batch_of(0)
    inputs = [batch["latent/mean"], tf.ones((small_runs.BATCH, 8)), batch["context"]]
    variables = [v.value for v in model.trainable_variables]

    def traced(manager) -> tf.types.experimental.ConcreteFunction:
        @tf.function(autograph=False)
        def gradients():
            with manager(), tf.GradientTape() as tape:
                loss = tf.reduce_mean(model(inputs, training=True) ** 2)
            return tape.gradient(loss, variables)

        return gradients.get_concrete_function()

    def convolutions(function) -> int:
        return sum("Conv2D" in op.type for op in function.graph.get_operations())

    ours = traced(lambda: convolutions_as_matrix_products([model]))
    plain = traced(lambda: convolutions_as_matrix_products([]))
    assert convolutions(ours) == 0 < convolutions(plain)
    for our, their in zip(ours(), plain(), strict=True):
        np.testing.assert_allclose(our, their, atol=1e-5 * float(tf.reduce_max(abs(their)) + 1e-3))
    kinds = {type(layer) for layer in model._flatten_layers() if "Conv2D" in type(layer).__name__}
    assert keras.layers.Conv2D in kinds
    assert not any("Matrix" in kind.__name__ for kind in kinds)
