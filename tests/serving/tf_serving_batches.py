"""What TensorFlow Serving's `BatchingSession` does of requests that come at the same moment.

After `tensorflow_serving/batching/batching_session.cc`: requests of one signature are laid one
behind another along dimension 0 of every input, filled up to an allowed size with the first row of
the last one, and what comes out is divided again. An input without that dimension, or with another
size of it than the others, is refused. Requests whose shapes differ elsewhere all fail.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from concurrent import futures
from pathlib import Path
from typing import Any

import tensorflow as tf
from google.protobuf import (
    descriptor_pb2,
    descriptor_pool,
    message_factory,
    text_format,
    wrappers_pb2,
)

PARAMETERS_NAME = "batching_params.pbtxt"

_Tensors = Mapping[str, tf.Tensor]
_WRAPPED = {
    "max_batch_size": (1, "Int64Value"),
    "batch_timeout_micros": (2, "Int64Value"),
    "max_enqueued_batches": (3, "Int64Value"),
    "num_batch_threads": (4, "Int64Value"),
    "thread_pool_name": (5, "StringValue"),
    "enable_large_batch_splitting": (8, "BoolValue"),
    "max_execution_batch_size": (9, "Int64Value"),
}


def parsed_parameters(text: str) -> Any:
    """`BatchingParameters` of session_bundle_config.proto, which no package brings.

    Raises:
        google.protobuf.text_format.ParseError: As TensorFlow Serving would.
    """
    kinds = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(
        name="batching_parameters.proto",
        package="tests",
        syntax="proto3",
        dependency=[wrappers_pb2.DESCRIPTOR.name],
    )
    message = file.message_type.add(name="BatchingParameters")
    for name, (number, wrapper) in _WRAPPED.items():
        message.field.add(
            name=name,
            number=number,
            type=kinds.TYPE_MESSAGE,
            label=kinds.LABEL_OPTIONAL,
            type_name=f".google.protobuf.{wrapper}",
        )
    message.field.add(
        name="allowed_batch_sizes",
        number=6,
        type=kinds.TYPE_INT64,
        label=kinds.LABEL_REPEATED,
    )
    message.field.add(
        name="pad_variable_length_inputs",
        number=7,
        type=kinds.TYPE_BOOL,
        label=kinds.LABEL_OPTIONAL,
    )
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(wrappers_pb2.DESCRIPTOR.serialized_pb)
    pool.Add(file)
    descriptor = pool.FindMessageTypeByName("tests.BatchingParameters")
    return text_format.Parse(text, _made(descriptor))


def _made(descriptor: Any) -> Any:
    # Of the protobufs of both stacks.
    if hasattr(message_factory, "GetMessageClass"):
        return message_factory.GetMessageClass(descriptor)()
    return message_factory.MessageFactory().GetPrototype(descriptor)()


def check_rows(inputs: _Tensors) -> int:
    """How many rows a request has."""
    sizes = set()
    for tensor in inputs.values():
        if tensor.shape.rank == 0:
            raise ValueError("Batching Run() input tensors must have at least one dimension")
        sizes.add(int(tensor.shape[0]))
    if len(sizes) != 1:
        raise ValueError("Batching Run() input tensors must have equal 0th-dimension size")
    return sizes.pop()


class _Task:
    def __init__(self, inputs: _Tensors) -> None:
        self.inputs = inputs
        self.rows = check_rows(inputs)
        self.since = time.monotonic()
        self.outputs: futures.Future[_Tensors] = futures.Future()


class Batches:
    """The queues of one version of a model; the threads are those of all models."""

    def __init__(self, parameters: Any, pool: futures.ThreadPoolExecutor, sizes: list[int]) -> None:
        self._most = parameters.max_batch_size.value
        self._largest_request = self._most
        if parameters.enable_large_batch_splitting.value:
            self._most = parameters.max_execution_batch_size.value
        self._wait = parameters.batch_timeout_micros.value / 1e6
        self._allowed = list(parameters.allowed_batch_sizes) or list(range(1, self._most + 1))
        assert self._allowed[-1] == self._most
        self._pool, self._sizes = pool, sizes
        self._lock = threading.Condition()
        self._queues: dict[str, list[_Task]] = {}

    @classmethod
    def of(cls, folder: Path, pool: futures.ThreadPoolExecutor, sizes: list[int]) -> Batches | None:
        """Those of a SavedModel that has parameters of its own; no other is drawn in batches."""
        path = folder / PARAMETERS_NAME
        return cls(parsed_parameters(path.read_text()), pool, sizes) if path.exists() else None

    def run(
        self, signature: str, function: Callable[..., _Tensors], inputs: _Tensors
    ) -> dict[str, tf.Tensor]:
        rows = check_rows(inputs)
        if rows > self._largest_request:
            raise ValueError(f"Task size {rows} is larger than maximum input batch size")
        tasks = [
            _Task({name: value[start : start + self._most] for name, value in inputs.items()})
            for start in range(0, rows, self._most)
        ]
        with self._lock:
            self._queues.setdefault(signature, []).extend(tasks)
            self._lock.notify_all()
        # One for each task: the last of a batch's threads find nothing left to do.
        for _ in tasks:
            self._pool.submit(self._process, signature, function)
        parts = [task.outputs.result() for task in tasks]
        return {name: tf.concat([part[name] for part in parts], axis=0) for name in parts[0]}

    def _process(self, signature: str, function: Callable[..., _Tensors]) -> None:
        batch = self._taken(self._queues[signature])
        if not batch:
            return
        rows = [task.rows for task in batch]
        try:
            outputs = self._computed(function, batch, rows)
        except Exception as error:
            for task in batch:
                task.outputs.set_exception(error)
            return
        for place, task in enumerate(batch):
            task.outputs.set_result({name: parts[place] for name, parts in outputs.items()})

    def _taken(self, queue: list[_Task]) -> list[_Task]:
        with self._lock:
            while queue and sum(task.rows for task in queue) < self._most:
                left = queue[0].since + self._wait - time.monotonic()
                if left <= 0:
                    break
                self._lock.wait(left)
            batch: list[_Task] = []
            while queue and sum(task.rows for task in batch) + queue[0].rows <= self._most:
                batch.append(queue.pop(0))
            return batch

    def _computed(
        self, function: Callable[..., _Tensors], batch: list[_Task], rows: list[int]
    ) -> dict[str, list[tf.Tensor]]:
        count = sum(rows)
        filling = next(size for size in self._allowed if size >= count) - count
        merged = {}
        for name, first in batch[0].inputs.items():
            parts = [task.inputs[name] for task in batch]
            if any(part.shape[1:] != first.shape[1:] for part in parts):
                raise tf.errors.FailedPreconditionError(
                    None,
                    None,
                    f"Tensors with name '{name}' from different tasks have different shapes and "
                    "padding is turned off.",
                )
            merged[name] = tf.concat([*parts, *[parts[-1][:1]] * filling], axis=0)
        self._sizes.append(count)
        found = function(**merged)
        assert all(value.shape[0] == count + filling for value in found.values())
        return {
            name: tf.split(value, [*rows, *[filling][: bool(filling)]])
            for name, value in found.items()
        }
