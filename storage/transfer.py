"""Large files: their hashes, and progress while they are read or fetched."""

from __future__ import annotations

import functools
import logging
import os
import sys
import threading
from collections.abc import Iterator
from types import TracebackType
from typing import BinaryIO

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from storage.hashing import sha256_hex

_PLAIN_LINES = 10
# Anything under about a second needs no progress.
_SHORT_BYTES = 256 << 20
_CHUNK_BYTES = 1 << 22

logger = logging.getLogger(__name__)


class ByteProgress:
    """Shows the progress of a transfer: a bar in a terminal, plain lines elsewhere.

    Use as a context manager. Several threads may update it.
    """

    def __init__(self, what: str, total: int) -> None:
        """Shows nothing yet.

        Args:
            what: What is being done, such as "reading decoder.h5".
            total: Total number of bytes.
        """
        self._what = what
        self._total = total
        self._done = 0
        self._next_line = total // _PLAIN_LINES
        self._lock = threading.Lock()
        self._bar: Progress | None = None
        self._quiet = total < _SHORT_BYTES

    def __enter__(self) -> ByteProgress:
        # The current stream: a runner may have replaced sys.stdout.
        console = Console(file=sys.stdout)
        if not self._quiet and console.is_terminal:
            self._bar = Progress(
                TextColumn("  {task.description}"),
                BarColumn(),
                DownloadColumn(),
                TimeRemainingColumn(),
                console=console,
            )
            self._task = self._bar.add_task(self._what, total=self._total)
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._bar:
            self._bar.stop()

    def update(self, count: int) -> None:
        """Counts `count` more bytes."""
        with self._lock:
            self._done += count
            if self._bar:
                self._bar.update(self._task, completed=self._done)
            elif not self._quiet and self._done >= self._next_line:
                logger.info("%s: %.1f of %.1f GB", self._what, self._done / 1e9, self._total / 1e9)
                self._next_line = self._done + self._total // _PLAIN_LINES


def sha256_of(path: str | os.PathLike[str]) -> str:
    """SHA-256 (hex) of a local file; computed once per process for each version of it."""
    stat = os.stat(path)
    return _sha256(os.fspath(path), stat.st_size, stat.st_mtime_ns, stat.st_ino)


def chunks(file: BinaryIO, what: str, total: int) -> Iterator[bytes]:
    """Reads a file to its end, in pieces, with progress.

    Args:
        file: The file, open for reading.
        what: What is being done, such as "reading decoder.h5".
        total: Its size in bytes.
    """
    with ByteProgress(what, total) as progress:
        while chunk := file.read(_CHUNK_BYTES):
            yield chunk
            progress.update(len(chunk))


@functools.lru_cache(maxsize=256)
def _sha256(path: str, size: int, mtime_ns: int, inode: int) -> str:
    with open(path, "rb") as f:
        return sha256_hex(chunks(f, f"checking {os.path.basename(path)}", size))
