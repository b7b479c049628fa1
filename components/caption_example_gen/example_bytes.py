"""tf.Examples without TensorFlow, which takes many seconds to import."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence

# Numbers of the fields of Feature: which of the three lists it has.
_BYTES_LIST, _FLOAT_LIST, _INT64_LIST = 1, 2, 3
_LENGTH_DELIMITED = 2
# From here on, a number takes more than one byte.
_TWO_BYTES = 0x80


def example_bytes(features: Mapping[str, Sequence[bytes] | float | int]) -> bytes:
    """Serializes a tf.Example, in half the time that its own class takes.

    Args:
        features: By name: values of a bytes_list, or the one value of a float_list or an
            int64_list, by its Python type; integers are not negative.

    Returns:
        What `tf.train.Example.SerializeToString(deterministic=True)` gives: by name, in order.
    """
    entries = (
        _field(1, _field(1, name.encode()) + _field(2, _feature(features[name])))
        for name in sorted(features)
    )
    return _field(1, b"".join(entries))


def _feature(value: Sequence[bytes] | float | int) -> bytes:
    if isinstance(value, int):
        return _field(_INT64_LIST, _field(1, _varint(value)))
    if isinstance(value, float):
        return _field(_FLOAT_LIST, _field(1, struct.pack("<f", value)))
    return _field(_BYTES_LIST, b"".join(map(_entry, value)))


def _entry(value: bytes) -> bytes:
    # Most are words, and there are many of them.
    return _SHORT_ENTRY[len(value)] + value if len(value) < _TWO_BYTES else _field(1, value)


def _field(number: int, content: bytes) -> bytes:
    return bytes((number << 3 | _LENGTH_DELIMITED,)) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    if value < _TWO_BYTES:
        return bytes((value,))
    groups = bytearray()
    while value >= _TWO_BYTES:
        groups.append(value & 0x7F | 0x80)
        value >>= 7
    groups.append(value)
    return bytes(groups)


_SHORT_ENTRY = tuple(_field(1, bytes(length))[:2] for length in range(_TWO_BYTES))
