"""Reads from an HLO module the arithmetic of its operations, its constants and its aliases.

HLO is what XLA compiles (`xla/service/hlo.proto`); `experimental_get_compiler_ir` gives a
serialized module.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from tensorflow.compiler.xla import xla_data_pb2
from tensorflow.compiler.xla.service.hlo_pb2 import HloModuleProto as Module

_DTYPES = {
    "PRED": "bool",
    "S32": "int32",
    "S64": "int64",
    "U8": "uint8",
    "BF16": "bfloat16",
    "F16": "float16",
    "F32": "float32",
    "F64": "float64",
}


def read_module(serialized: bytes) -> Module:
    """A serialized `HloModuleProto`."""
    return Module.FromString(serialized)


def slim(module: Module) -> None:
    """Keeps only a module's computation, and the TensorFlow operation each instruction comes from.

    A profile shows these operations; otherwise lines of source code are most of a module. XLA needs
    names of instructions, which only repeat their numbers; `benchmarks.gpu.carried.modules.named`
    adds them again.
    """
    module.ClearField("stack_frame_index")
    for computation in module.computations:
        for instruction in computation.instructions:
            name = instruction.metadata.op_name
            instruction.ClearField("metadata")
            instruction.metadata.op_name = name
            instruction.ClearField("name")
            instruction.ClearField("frontend_attributes")
            instruction.ClearField("statistics_viz")


def aliases(module: Module) -> dict[int, int]:
    """For each result that takes the place of a parameter, that parameter; both by position."""
    return {
        entry.output_shape_index[0]: entry.parameter_number
        for entry in module.input_output_alias.entries
    }


def dtype_name(shape: Any) -> str:
    """NumPy's name, or the name in JAX's addition to NumPy, for the type of a `ShapeProto`.

    Raises:
        KeyError: Neither has such a type.
    """
    return _DTYPES[xla_data_pb2.PrimitiveType.Name(shape.element_type)]


def constant_bytes(module: Module) -> int:
    """Bytes of all constants as they are stored."""
    return sum(
        instruction.ByteSize()
        for computation in module.computations
        for instruction in computation.instructions
        if instruction.opcode == "constant"
    )


def count_flops(module: Module, loop_trips: int = 1) -> int:
    """Floating-point operations of the matrix products and convolutions in one run.

    A multiplication and an addition are two operations. Positions of a convolution in its padding,
    or between the entries of a dilated array, do not count. Of the branches of a conditional, the
    one with the most operations counts. All else (normalization, activations, the optimizer) is
    not counted, as in published model FLOPs.

    Args:
        module: A module with the shapes of a batch of known size.
        loop_trips: How often the body of a loop runs.

    Raises:
        ValueError: A convolution has batch groups, whose arithmetic differs.
    """
    computations = {computation.id: computation for computation in module.computations}
    known: dict[int, int] = {}

    def of_computation(identity: int) -> int:
        if identity not in known:
            instructions = {i.id: i for i in computations[identity].instructions}
            known[identity] = sum(of(i, instructions) for i in instructions.values())
        return known[identity]

    def of(instruction: Any, instructions: Mapping[int, Any]) -> int:
        if instruction.opcode == "dot":
            return _of_dot(instruction, instructions)
        if instruction.opcode == "convolution":
            return _of_convolution(instruction, instructions)
        called = [of_computation(identity) for identity in instruction.called_computation_ids]
        if instruction.opcode == "conditional":
            return max(called)
        return sum(called) * (loop_trips if instruction.opcode == "while" else 1)

    return of_computation(module.entry_computation_id)


def _of_dot(dot: Any, instructions: Mapping[int, Any]) -> int:
    left = instructions[dot.operand_ids[0]].shape.dimensions
    contracted = dot.dot_dimension_numbers.lhs_contracting_dimensions
    return 2 * math.prod(dot.shape.dimensions) * math.prod(left[axis] for axis in contracted)


def _of_convolution(convolution: Any, instructions: Mapping[int, Any]) -> int:
    if convolution.batch_group_count > 1:
        raise ValueError(f"{convolution.name} is a convolution with batch groups")
    images, kernel = (instructions[i].shape.dimensions for i in convolution.operand_ids)
    result = convolution.shape.dimensions
    axes = convolution.convolution_dimension_numbers
    positions = math.prod(
        _products_along(window, images[of_image], result[of_result])
        for window, of_image, of_result in zip(
            convolution.window.dimensions,
            axes.input_spatial_dimensions,
            axes.output_spatial_dimensions,
            strict=True,
        )
    )
    # For each output feature, one product for each input feature of its kernel.
    batch, features = result[axes.output_batch_dimension], result[axes.output_feature_dimension]
    return 2 * batch * features * kernel[axes.kernel_input_feature_dimension] * positions


def _products_along(window: Any, length: int, result: int) -> int:
    """Pairs of a kernel entry and a result entry that meet at an input entry."""
    between = max(1, window.base_dilation)
    last = (length - 1) * between
    return sum(
        0 <= place <= last and place % between == 0
        for entry in range(window.size)
        for position in range(result)
        for place in [
            position * window.stride + entry * max(1, window.window_dilation) - window.padding_low
        ]
    )
