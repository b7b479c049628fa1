"""The hash that identifies files."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable


def sha256_hex(pieces: Iterable[bytes]) -> str:
    """The SHA-256 of all pieces together, in hexadecimal digits."""
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
    return digest.hexdigest()
