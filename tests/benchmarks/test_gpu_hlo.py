"""What is read out of HLO, against counts by hand."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import tensorflow as tf

from benchmarks.gpu.hlo import (
    Module,
    aliases,
    constant_bytes,
    count_flops,
    read_module,
    slimmed,
)

# 3 x 3 over 8 x 8 with a border of zeros: along a side, 8 * 3 pairs less those at both ends.
ALONG_8 = 8 * 3 - 2
# With steps of 2 from the second entry of the border on, as KerasCV's: less one at an end.
ALONG_8_BY_2 = 4 * 3 - 1


def module_of(function: Callable[..., object], *arguments: tf.Tensor) -> Module:
    compiled = tf.function(function, autograph=False, jit_compile=True)
    return read_module(compiled.experimental_get_compiler_ir(*arguments)(stage="hlo_serialized"))


def test_products_of_matrices() -> None:
    module = module_of(lambda a, b: tf.matmul(a, b), tf.ones((7, 3, 4)), tf.ones((7, 4, 5)))
    assert count_flops(module) == 7 * 2 * 3 * 4 * 5


@pytest.mark.parametrize(("stride", "along"), [(1, ALONG_8), (2, ALONG_8_BY_2)])
def test_a_convolution_and_its_gradients_are_three_times_as_much_work(
    stride: int, along: int
) -> None:
    def gradients(images: tf.Tensor, kernel: tf.Tensor) -> list[tf.Tensor]:
        padded = [[0, 0], [1, 1], [1, 1], [0, 0]]
        result = tf.nn.conv2d(images, kernel, stride, padded)
        return [result, *tf.gradients(tf.reduce_sum(result * result), [images, kernel])]

    module = module_of(gradients, tf.ones((2, 8, 8, 5)), tf.ones((3, 3, 5, 6)))
    assert count_flops(module) == 3 * 2 * 2 * along**2 * 5 * 6


def test_loops_count_as_often_as_they_run_and_branches_once() -> None:
    def looped(a: tf.Tensor, more: tf.Tensor) -> tf.Tensor:
        _, a = tf.while_loop(
            lambda i, _: i < 25, lambda i, a: (i + 1, tf.matmul(a, a)), (tf.constant(0), a)
        )
        return tf.cond(more, lambda: tf.matmul(tf.matmul(a, a), a), lambda: a)

    module = module_of(looped, tf.ones((4, 4)), tf.constant(True))
    assert count_flops(module, loop_trips=25) == (25 + 2) * 2 * 4**3
    assert count_flops(module) == (1 + 2) * 2 * 4**3


def test_variables_are_parameters_that_results_take_the_place_of() -> None:
    kept = tf.Variable(tf.ones((500,)))
    changed = tf.Variable(tf.ones((500,)))

    def step(x: tf.Tensor) -> tf.Tensor:
        changed.assign_add(kept * x)
        return tf.reduce_sum(x)

    module = module_of(step, tf.ones((500,)))
    [(result, parameter)] = aliases(module).items()
    assert (result, len(module.host_program_shape.parameters)) == (1, 3)
    assert parameter in (1, 2)
    assert constant_bytes(module) < 500


def test_a_slim_module_has_the_same_work_and_says_of_which_operations() -> None:
    def square(x: tf.Tensor) -> tf.Tensor:
        with tf.name_scope("down_blocks.0"):
            return tf.matmul(x, x, name="product")

    module = module_of(square, tf.ones((4, 4)))
    slim = slimmed(module)
    assert len(slim.SerializeToString()) < len(module.SerializeToString())
    assert count_flops(slim) == count_flops(module) == 2 * 4**3
    [entry] = [c for c in slim.computations if c.id == slim.entry_computation_id]
    [dot] = [i for i in entry.instructions if i.opcode == "dot"]
    assert "down_blocks.0/product" in dot.metadata.op_name
    assert not dot.metadata.source_file
