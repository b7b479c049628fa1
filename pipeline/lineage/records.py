"""Reads records of examples without TensorFlow.

A record is a `tf.train.Example`, framed as in TensorFlow's record files: the length, its checksum,
the record, its checksum. Protocol buffers write a map as repeated entries of key and value.
"""

from __future__ import annotations

import gzip
import io
import struct
from collections.abc import Iterator
from typing import Any, BinaryIO, cast

from google.protobuf import descriptor_pb2, message_factory
from google.protobuf.message import DecodeError

from storage import filesystem

DAMAGED = (OSError, EOFError, ValueError, KeyError, IndexError, DecodeError)
"""The exceptions from reading a file that is half removed or damaged."""

_LENGTH = struct.Struct("<QI")
_CHECKSUM_BYTES = 4
_FIELD = descriptor_pb2.FieldDescriptorProto
_PACKAGE = "pipeline.lineage.records"


def read_records(path: str) -> Iterator[dict[str, Any]]:
    """Yields the features of every example in a gzip file, by name; raises one of `DAMAGED`."""
    with gzip.open(io.BytesIO(filesystem.read_bytes(path))) as opened:
        file = cast(BinaryIO, opened)
        while head := file.read(_LENGTH.size):
            if len(head) < _LENGTH.size:
                raise EOFError
            length, _ = _LENGTH.unpack(head)
            example = _EXAMPLE.FromString(file.read(length))
            if len(file.read(_CHECKSUM_BYTES)) < _CHECKSUM_BYTES:
                raise EOFError
            yield {entry.key: entry.value for entry in example.features.feature}


def _example() -> Any:
    """The class of `tf.train.Example`."""
    file = descriptor_pb2.FileDescriptorProto(
        name=f"{_PACKAGE}.proto", package=_PACKAGE, syntax="proto3"
    )
    messages: dict[str, tuple[tuple[str, int, int, str], ...]] = {
        "BytesList": (("value", _FIELD.TYPE_BYTES, _FIELD.LABEL_REPEATED, ""),),
        "FloatList": (("value", _FIELD.TYPE_FLOAT, _FIELD.LABEL_REPEATED, ""),),
        "Int64List": (("value", _FIELD.TYPE_INT64, _FIELD.LABEL_REPEATED, ""),),
        "Feature": (
            ("bytes_list", _FIELD.TYPE_MESSAGE, _FIELD.LABEL_OPTIONAL, "BytesList"),
            ("float_list", _FIELD.TYPE_MESSAGE, _FIELD.LABEL_OPTIONAL, "FloatList"),
            ("int64_list", _FIELD.TYPE_MESSAGE, _FIELD.LABEL_OPTIONAL, "Int64List"),
        ),
        "Entry": (
            ("key", _FIELD.TYPE_STRING, _FIELD.LABEL_OPTIONAL, ""),
            ("value", _FIELD.TYPE_MESSAGE, _FIELD.LABEL_OPTIONAL, "Feature"),
        ),
        "Features": (("feature", _FIELD.TYPE_MESSAGE, _FIELD.LABEL_REPEATED, "Entry"),),
        "Example": (("features", _FIELD.TYPE_MESSAGE, _FIELD.LABEL_OPTIONAL, "Features"),),
    }
    for name, fields in messages.items():
        message = file.message_type.add(name=name)
        for number, (field, kind, label, of_type) in enumerate(fields, start=1):
            made = message.field.add(name=field, number=number, type=kind, label=label)
            if of_type:
                made.type_name = f".{_PACKAGE}.{of_type}"
    return message_factory.GetMessages([file])[f"{_PACKAGE}.Example"]


_EXAMPLE = _example()
