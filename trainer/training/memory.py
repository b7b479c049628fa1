"""How much memory training needs, estimated before it starts."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Collection, Sequence

import keras
import tensorflow as tf
from tensorflow.python.client import device_lib

from storage.machine import gigabytes, memory_bytes, resident_bytes
from storage.user_errors import UserError
from trainer.training.optimizer import moment_values
from trainer.training_config import ResolvedTrainingConfig

_FLOAT32 = 4
# Their output shares the memory of their input, or is too small to count.
_ALIASES = frozenset(
    {"Identity", "IdentityN", "Reshape", "Squeeze", "ExpandDims", "StopGradient"}
    | {"PreventGradient", "ReadVariableOp"}
)
_FREE = frozenset({"Const", "Placeholder", "VarHandleOp", "Shape", "NoOp"})

logger = logging.getLogger(__name__)


class InsufficientMemoryError(UserError):
    """Training cannot fit into the device's memory; the message says what would help."""


@dataclasses.dataclass(frozen=True)
class MemoryEstimate:
    """Bytes that training takes on one device.

    Attributes:
        weights: Weights of all networks in memory, float32.
        gradients: Gradients of the trained variables; twice that if they are accumulated.
        optimizer: State of the optimizer: two moments for AdamW, about one for Lion and Adafactor.
        averages: The moving average of the trained variables.
        activations: Kept for, or made in, the backward pass; see `activation_bytes`.
        program: Everything else that the process holds; zero on a GPU.
    """

    weights: int
    gradients: int
    optimizer: int
    averages: int
    activations: int
    program: int

    @property
    def total(self) -> int:
        """Their sum."""
        return sum(dataclasses.astuple(self))

    def __str__(self) -> str:
        parts = ", ".join(
            f"{field.name} {gigabytes(getattr(self, field.name))}"
            for field in dataclasses.fields(self)
        )
        return f"{gigabytes(self.total)} ({parts})"


def estimate_memory(
    models: Sequence[keras.Model],
    trained: Sequence[tf.Variable],
    config: ResolvedTrainingConfig,
    *,
    activations: int,
    program: int,
) -> MemoryEstimate:
    """The memory that training takes on one device.

    Args:
        models: All networks that are in memory.
        trained: The variables that are trained; adapters are not part of the models.
        config: Hyperparameters.
        activations: From `activation_bytes`; zero before the step is traced.
        program: From `program_bytes`, on a CPU.
    """
    own = {id(v.value) for model in models for v in model.weights}
    parameters = sum(model.count_params() for model in models)
    parameters += sum(v.shape.num_elements() for v in trained if id(v) not in own)
    size = _FLOAT32 * sum(v.shape.num_elements() for v in trained)
    return MemoryEstimate(
        weights=_FLOAT32 * parameters,
        gradients=size * (2 if config.accumulation_steps > 1 else 1),
        optimizer=_FLOAT32 * sum(moment_values(config.optimizer, v.shape) for v in trained),
        averages=size,
        activations=activations,
        program=program,
    )


def activation_bytes(gradients: Sequence[tf.Tensor]) -> int:
    """Peak memory while a traced step computes its gradients, without the gradients themselves.

    Walks the operations of the graph in the order they were made, as if each ran right after the
    one before: outputs are allocated, inputs are freed after their last use. The executor does not
    keep this order, fuses some operations and computes others in place; a library may need scratch
    space. For a comparison with the real peak of the process, on CPU in float32 with the U-Net of
    `sd-v1-4`, see tests/trainer/test_memory.py.

    Args:
        gradients: Gradients from one `tf.Graph` with a known batch size.
    """
    graph = gradients[0].graph

    def root(tensor: tf.Tensor) -> tf.Tensor:
        """The tensor whose memory this one shares."""
        while tensor.op.type in _ALIASES:
            tensor = tensor.op.inputs[tensor.value_index if tensor.op.type == "IdentityN" else 0]
        return tensor

    needed = _ancestors(gradients)
    kept_out = {root(g).ref() for g in gradients}
    operations = [op for op in graph.get_operations() if op in needed]
    last_use: dict[object, int] = {}
    for position, op in enumerate(operations):
        if op.type not in _ALIASES:
            for tensor in op.inputs:
                last_use[root(tensor).ref()] = position
    live = peak = 0
    leaving: dict[int, list[int]] = {}
    for position, op in enumerate(operations):
        if op.type not in _ALIASES and op.type not in _FREE:
            for tensor in op.outputs:
                if tensor.ref() in kept_out or tensor.ref() not in last_use:
                    continue
                size = _tensor_bytes(tensor)
                live += size
                leaving.setdefault(last_use[tensor.ref()], []).append(size)
        peak = max(peak, live)
        live -= sum(leaving.pop(position, ()))
    return peak


def _ancestors(tensors: Sequence[tf.Tensor]) -> Collection[tf.Operation]:
    found: set[tf.Operation] = set()
    waiting = [t.op for t in tensors]
    while waiting:
        op = waiting.pop()
        if op not in found:
            found.add(op)
            waiting += [t.op for t in op.inputs]
    return found


def _tensor_bytes(tensor: tf.Tensor) -> int:
    elements = tensor.shape.num_elements()
    # Tensors of unknown size are numbers that describe shapes.
    return 0 if elements is None or tensor.dtype == tf.resource else elements * tensor.dtype.size


def program_bytes(models: Sequence[keras.Model]) -> int:
    """Main memory that this process holds now, apart from the weights of the models."""
    return max(0, resident_bytes() - _FLOAT32 * sum(model.count_params() for model in models))


def device_memory() -> tuple[str, int]:
    """The device that training runs on, in words, and its memory in bytes.

    With several GPUs, the one with the least memory; without a GPU, the main memory that this
    process may use.
    """
    gpus = [d.memory_limit for d in device_lib.list_local_devices() if d.device_type == "GPU"]
    if gpus:
        return "the GPU", min(gpus)
    return "this machine", memory_bytes()


def check_fits(
    estimate: MemoryEstimate, available: int, device: str, config: ResolvedTrainingConfig
) -> str | None:
    """If training cannot fit: the problem and what would help, in one line; else `None`.

    Args:
        estimate: Estimate of the memory that training takes.
        available: Available bytes.
        device: The device, in words.
        config: Hyperparameters; only changes that they allow are advised.
    """
    if estimate.total <= available:
        return None
    advice = []
    if config.batch_size > config.accumulation_steps:
        advice.append(
            f"a training.batch_size below {config.batch_size}, or a training.accumulation_steps "
            f"above {config.accumulation_steps}"
        )
    if not config.gradient_checkpointing:
        advice.append("training.gradient_checkpointing = true")
    # For adapters, the optimizer's memory is small.
    if config.optimizer == "adamw" and not config.lora_rank:
        advice.append("training.optimizer = adafactor or lion (half of the optimizer's memory)")
    if not config.lora_rank:
        advice.append("training.lora_rank = 4 (adapters instead of all weights)")
    if config.precision == "float32":
        advice.append("training.precision = bfloat16 (activations only)")
    advice.append("a smaller model.image_size")
    return (
        f"training needs about {estimate}, and {device} has {gigabytes(available)}. What helps: "
        f"{'; '.join(advice)}. training.memory_check = warn tries it anyway"
    )


class MemoryGuard:
    """Compares the memory that training takes with the memory of this device."""

    def __init__(self, networks: Sequence[keras.Model], config: ResolvedTrainingConfig) -> None:
        """Reads the memory of the device.

        Args:
            networks: All networks that are held in memory.
            config: Hyperparameters.
        """
        self._networks = networks
        self._config = config
        self._device, self._bytes = device_memory()
        on_gpu = bool(tf.config.list_logical_devices("GPU"))
        self._program = 0 if on_gpu else program_bytes(networks)

    @property
    def available(self) -> str:
        """The memory of the device, in words."""
        return f"{gigabytes(self._bytes)} on {self._device}"

    def __call__(self, trained: Sequence[tf.Variable], *, activations: int) -> MemoryEstimate:
        """Estimates the memory, and reports a problem.

        Args:
            trained: The variables whose gradients are computed.
            activations: Bytes; 0 if they are not known yet.

        Raises:
            InsufficientMemoryError: Training cannot fit, and the settings refuse such runs.
        """
        estimate = estimate_memory(
            self._networks, trained, self._config, activations=activations, program=self._program
        )
        problem = check_fits(estimate, self._bytes, self._device, self._config)
        if problem and self._config.memory_check == "refuse":
            raise InsufficientMemoryError(problem)
        if problem and activations:
            logger.warning("%s", problem)
        return estimate


def peak_gpu_bytes() -> int | None:
    """Peak memory in use on any GPU so far; `None` without a GPU."""
    peaks = [
        tf.config.experimental.get_memory_info(f"GPU:{index}")["peak"]
        for index in range(len(tf.config.list_logical_devices("GPU")))
    ]
    return max(peaks, default=None)
