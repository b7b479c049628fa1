"""tf.Examples without TensorFlow, which takes many seconds to import."""

from __future__ import annotations

import functools
import struct
from collections.abc import Mapping, Sequence

# Numbers of fields: of Example, of the entries of its map, of Feature (which of the three lists it
# has), and of each list.
_FEATURES, _FEATURE = 1, 1
_KEY, _VALUE = 1, 2
_BYTES_LIST, _FLOAT_LIST, _INT64_LIST = 1, 2, 3
_LIST = 1
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
    # Each message's length comes before it: from the inside out, and joined once, because copies of
    # a picture are what takes time.
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
    """The number of the list's field in Feature, and the list."""
    if isinstance(value, int):
        packed = _varint(value)
        return _INT64_LIST, _head(_LIST, len(packed)) + packed
    if isinstance(value, float):
        return _FLOAT_LIST, _head(_LIST, 4) + struct.pack("<f", value)
    return _BYTES_LIST, b"".join(
        [part for each in value for part in (_head(_LIST, len(each)), each)]
    )


# Names and most sizes are the same again and again.
@functools.lru_cache(maxsize=1 << 8)
def _key(name: str) -> bytes:
    encoded = name.encode()
    return _head(_KEY, len(encoded)) + encoded


@functools.lru_cache(maxsize=1 << 14)
def _head(number: int, size: int) -> bytes:
    """What comes before `size` bytes of the field of that number."""
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
