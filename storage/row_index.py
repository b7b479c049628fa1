"""The row index of a dataset, beside the examples that were made from the rows: one JSON line each.

Ingestion writes it; it is read to find the rows in which two versions of a dataset differ. It
contains only content, so that the same rows from other files make the same index.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator

from storage import filesystem
from storage.hashing import sha256_hex

FOLDER_NAME = "rows"
"""Name of the index folder, in the folder of the examples."""


@dataclasses.dataclass(frozen=True)
class IndexedRow:
    """A picture and one of its captions.

    Attributes:
        id: SHA-256 (hex) of picture and caption.
        picture: SHA-256 (hex) of the picture's file.
        caption: The caption.
    """

    id: str
    picture: str
    caption: str

    def line(self) -> bytes:
        """The row as JSON, in UTF-8, with a line break."""
        return (json.dumps(dataclasses.asdict(self), ensure_ascii=False) + "\n").encode()


def file_name(split: str, shard: int) -> str:
    """Name of the index file for one shard of the examples."""
    return f"{split}-{shard:05d}.jsonl"


def read_rows(folder: str, split: str | None = None) -> Iterator[IndexedRow]:
    """Reads the index in a folder, file by file; raises an OSError if there is none.

    Args:
        folder: Folder of the index.
        split: Only rows of this split; `None` for all.
    """
    for name in filesystem.files_below(folder):
        if split is None or name.startswith(f"{split}-"):
            yield from _read_file(filesystem.join(folder, name))


def read_shard_rows(folder: str, split: str, shard: int) -> Iterator[IndexedRow]:
    """Reads the index of one shard; yields nothing if there is none."""
    path = filesystem.join(folder, file_name(split, shard))
    if filesystem.is_file(path):
        yield from _read_file(path)


def digest(folder: str) -> str:
    """Digest of which rows of an index are in which split, independent of the files."""
    rows = [
        f"{name.rpartition('-')[0]} {row.id}\n"
        for name in filesystem.files_below(folder)
        for row in _read_file(filesystem.join(folder, name))
    ]
    return sha256_hex(row.encode() for row in sorted(rows))


def _read_file(path: str) -> Iterator[IndexedRow]:
    for line in filesystem.read_bytes(path).splitlines():
        yield IndexedRow(**json.loads(line))
