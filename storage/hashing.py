"""The hash that files are known by."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable


def sha256_hex(pieces: Iterable[bytes]) -> str:
    """The SHA-256 of what the pieces are together, in hexadecimal digits."""
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
    return digest.hexdigest()
