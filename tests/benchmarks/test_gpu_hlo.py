"""What is read out of HLO, against counts by hand."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import tensorflow as tf

from benchmarks.gpu.carried.modules import named
from benchmarks.gpu.hlo import (
    Module,
    aliases,
    constant_bytes,
    count_flops,
    read_module,
    slim,
)

# 3 x 3 over 8 x 8 with a border of zeros: along a side, 8 * 3 pairs less those at both ends.
ALONG_8 = 8 * 3 - 2
# With steps of 2 from the second entry of the border on, as KerasCV's: less one at an end.
ALONG_8_BY_2 = 4 * 3 - 1


def serialized_of(function: Callable[..., object], *arguments: tf.Tensor) -> bytes:
    compiled = tf.function(function, autograph=False, jit_compile=True)
    serialized: bytes = compiled.experimental_get_compiler_ir(*arguments)(stage="hlo_serialized")
    return serialized


def module_of(function: Callable[..., object], *arguments: tf.Tensor) -> Module:
    return read_module(serialized_of(function, *arguments))


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

    serialized = serialized_of(square, tf.ones((4, 4)))
    module = read_module(serialized)
    slim(module)
    small = module.SerializeToString()
    assert len(small) < len(serialized)
    assert count_flops(module) == count_flops(read_module(serialized)) == 2 * 4**3
    [entry] = [c for c in module.computations if c.id == module.entry_computation_id]
    [dot] = [i for i in entry.instructions if i.opcode == "dot"]
    assert "down_blocks.0/product" in dot.metadata.op_name
    assert not dot.metadata.source_file


def test_instructions_are_named_again_without_protobuf() -> None:
    def many(x: tf.Tensor) -> tf.Tensor:
        # More than 127 bytes, and more than one computation.
        return tf.reduce_sum(tf.sin(x) * tf.constant(list(range(200)), tf.float32))

    stored = read_module(serialized_of(many, tf.ones((200,))))
    slim(stored)
    module = read_module(named(stored.SerializeToString()))
    assert len(module.computations) > 1
    instructions = [i for c in module.computations for i in c.instructions]
    assert [i.name for i in instructions] == [f"i{n}" for n in range(len(instructions))]
    for instruction in instructions:
        instruction.ClearField("name")
    assert module == stored


@pytest.mark.parametrize("broken", [b"\x0a\x05abc", b"\x0b\x00", b"\x80"])
def test_bytes_that_are_no_module_are_refused(broken: bytes) -> None:
    with pytest.raises(ValueError, match="not a serialized module"):
        named(broken)
