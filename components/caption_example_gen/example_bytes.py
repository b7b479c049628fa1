"""tf.Examples without TensorFlow, which takes many seconds to import."""

from __future__ import annotations

import functools
import struct
from collections.abc import Mapping, Sequence

# Field numbers of Example, of the entries of its map, of Feature (one of three lists), and of each
# list.
_FEATURES, _FEATURE = 1, 1
_KEY, _VALUE = 1, 2
_BYTES_LIST, _FLOAT_LIST, _INT64_LIST = 1, 2, 3
_LIST = 1
_LENGTH_DELIMITED = 2
# Numbers from here on take more than one byte.
_TWO_BYTES = 0x80


def example_bytes(features: Mapping[str, Sequence[bytes] | float | int]) -> bytes:
    """Serializes a tf.Example in half the time that `tf.train.Example` takes.

    Args:
        features: By name: the values of a bytes_list, or the single value of a float_list or
            int64_list, chosen by its Python type; integers must not be negative.

    Returns:
        The bytes of `tf.train.Example.SerializeToString(deterministic=True)`, which sorts the
        features by name.
    """
    # Each message is preceded by its length, so they are built from the inside out. They are joined
    # only once, because copying a picture is what takes time.
    pieces: list[bytes] = []
    size = 0
    for name in sorted(features):
        kind, values = _values(features[name])
        list_head = _head(kind, len(values))
        key_and_head = _key(name) + _head(_VALUE, len(list_head) + len(values))
        entry = len(key_and_head) + len(list_head) + len(values)
        entry_head = _head(_FEATURE, entry)
        pieces += (entry_head, key_and_head, list_head, values)
        size += len(entry_head) + entry
    return b"".join((_head(_FEATURES, size), *pieces))


def _values(value: Sequence[bytes] | float | int) -> tuple[int, bytes]:
    """The field number of the list in Feature, and the list."""
    if isinstance(value, int):
        packed = _varint(value)
        return _INT64_LIST, _head(_LIST, len(packed)) + packed
    if isinstance(value, float):
        return _FLOAT_LIST, _head(_LIST, 4) + struct.pack("<f", value)
    return _BYTES_LIST, b"".join(
        [part for each in value for part in (_head(_LIST, len(each)), each)]
    )


# Names and most sizes repeat.
@functools.lru_cache(maxsize=1 << 8)
def _key(name: str) -> bytes:
    encoded = name.encode()
    return _head(_KEY, len(encoded)) + encoded


@functools.lru_cache(maxsize=1 << 14)
def _head(number: int, size: int) -> bytes:
    """The tag and length that precede `size` bytes of field `number`."""
    return bytes((number << 3 | _LENGTH_DELIMITED,)) + _varint(size)


def _varint(value: int) -> bytes:
    if value < _TWO_BYTES:
        return bytes((value,))
    groups = bytearray()
    while value >= _TWO_BYTES:
        groups.append(value & 0x7F | 0x80)
        value >>= 7
    groups.append(value)
    return bytes(groups)
