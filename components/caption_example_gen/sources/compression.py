"""Compressed files, recognised by their first bytes: gzip, bzip2 and xz."""

from __future__ import annotations

import bz2
import gzip
import lzma
from typing import IO, BinaryIO, cast

_GZIP, _BZIP2, _XZ = b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0"


def unpacked(f: IO[bytes]) -> IO[bytes] | None:
    """The content of a compressed file as a stream; `None` if not compressed, rewound to start."""
    magic = f.read(len(_XZ))
    f.seek(0)
    if magic.startswith(_GZIP):
        return cast(IO[bytes], gzip.GzipFile(fileobj=cast(BinaryIO, f)))
    if magic.startswith(_BZIP2):
        return cast(IO[bytes], bz2.BZ2File(f))
    if magic.startswith(_XZ):
        return cast(IO[bytes], lzma.LZMAFile(f))
    return None
