"""Modules of the pack in the form that XLA reads. Imports only the standard library.

They are stored without names of instructions, which would be a quarter of the pack.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

# Numbers of fields in `xla/service/hlo.proto`.
_COMPUTATIONS, _INSTRUCTIONS, _NAME = 3, 2, 1
_VARINT, _64_BITS, _BYTES, _32_BITS = 0, 1, 2, 5


def named(module: bytes) -> bytes:
    """A serialized `HloModuleProto` with a name for each instruction.

    Raises:
        ValueError: It is not a serialized module.
    """
    numbers = itertools.count()
    parts = []
    for number, whole, content in _fields(module):
        parts.append(_computation(content, numbers) if number == _COMPUTATIONS else whole)
    return b"".join(parts)


def _computation(computation: bytes, numbers: Iterator[int]) -> bytes:
    parts = []
    for number, whole, content in _fields(computation):
        if number == _INSTRUCTIONS:
            name = _field(_NAME, b"i%d" % next(numbers))
            whole = _field(_INSTRUCTIONS, name + content)
        parts.append(whole)
    return _field(_COMPUTATIONS, b"".join(parts))


def _fields(message: bytes) -> Iterator[tuple[int, bytes, bytes]]:
    """For each field its number, all of its bytes, and the bytes of its content."""
    position = 0
    while position < len(message):
        begin = position
        key, position = _varint(message, position)
        number, kind = key >> 3, key & 7
        if kind == _VARINT:
            content, position = position, _varint(message, position)[1]
        elif kind == _BYTES:
            size, content = _varint(message, position)
            position = content + size
        elif kind in (_32_BITS, _64_BITS):
            content, position = position, position + (4 if kind == _32_BITS else 8)
        else:
            raise ValueError(f"not a serialized module: it has a field of kind {kind}")
        if position > len(message):
            raise ValueError("not a serialized module: it ends within a field")
        yield number, message[begin:position], message[content:position]


def _varint(message: bytes, position: int) -> tuple[int, int]:
    """The number at a position, and the position after it."""
    value = shift = 0
    while position < len(message):
        byte = message[position]
        position += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, position
        shift += 7
    raise ValueError("not a serialized module: it ends within a number")


def _field(number: int, content: bytes) -> bytes:
    key, size = bytes([number << 3 | _BYTES]), len(content)
    encoded = bytearray()
    while size > 127:
        encoded.append(size & 127 | 128)
        size >>= 7
    encoded.append(size)
    return key + encoded + content
