"""Lists the files of a dataset, even hundreds of thousands, in little memory."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import (
    Callable,
    Collection,
    ItemsView,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from itertools import chain, islice
from typing import Any, NamedTuple, overload

HELD = 1 << 15
"""Up to this many names are held in memory, which is fastest; otherwise none are."""

_CACHE_KB = 4096
_PAGE_ROWS = 2048


class Listed(NamedTuple):
    """A file in a listing.

    Attributes:
        path: Relative to the dataset.
        size: In bytes.
        checksum: The file system's checksum of its content, with its name; "" for none.
    """

    path: str
    size: int
    checksum: str = ""


class Listing(Mapping[str, int]):
    """Paths and sizes of files, sorted by path.

    A long listing is kept in a temporary SQLite database, with a few megabytes in memory and the
    rest in a private file. Threads may share it, processes may not.
    """

    def __init__(self, files: Iterable[Listed]) -> None:
        """Adds the files, which may be in any order."""
        left = iter(files)
        first = list(islice(left, HELD))
        self._held = {each.path: each for each in sorted(first)} if len(first) < HELD else None
        if self._held is None:
            self._store(chain(first, left))

    def _store(self, files: Iterable[Listed]) -> None:
        self._database = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        self._lock = threading.Lock()
        self._database.executescript(
            f"PRAGMA cache_size = -{_CACHE_KB}; PRAGMA journal_mode = OFF;"
            "PRAGMA synchronous = OFF;"
            "CREATE TABLE files (path BLOB PRIMARY KEY, size, checksum) WITHOUT ROWID; BEGIN"
        )
        self._database.executemany(
            "INSERT OR REPLACE INTO files VALUES (?, ?, ?)",
            ((_key(path), size, checksum) for path, size, checksum in files),
        )
        self._database.execute("COMMIT")
        [(self._length,)] = self._asked("SELECT count(*) FROM files")

    def __getitem__(self, path: str) -> int:
        if self._held is not None:
            return self._held[path].size
        for (size,) in self._asked("SELECT size FROM files WHERE path = ?", _key(path)):
            return int(size)
        raise KeyError(path)

    def __contains__(self, path: object) -> bool:
        if self._held is not None:
            return path in self._held
        if not isinstance(path, str):
            return False
        return bool(self._asked("SELECT 1 FROM files WHERE path = ?", _key(path)))

    def __len__(self) -> int:
        return self._length if self._held is None else len(self._held)

    def __iter__(self) -> Iterator[str]:
        if self._held is not None:
            yield from self._held
            return
        for page in self._pages("path"):
            for (key,) in page:
                yield key.decode("utf-8", "surrogatepass")

    def items(self) -> ItemsView[str, int]:
        """See `Mapping.items`; does not look up the files one by one."""
        return _Items(self)

    def checksum(self, path: str) -> str:
        """The file system's checksum of a file's content; "" for none."""
        if self._held is not None:
            return self._held[path].checksum if path in self._held else ""
        found = self._asked("SELECT checksum FROM files WHERE path = ?", _key(path))
        return str(found[0][0]) if found else ""

    def _in_order(self) -> Iterator[tuple[str, int]]:
        if self._held is not None:
            yield from ((path, each.size) for path, each in self._held.items())
            return
        for page in self._pages("path, size"):
            for key, size in page:
                yield key.decode("utf-8", "surrogatepass"), size

    def _pages(self, columns: str) -> Iterator[list[Any]]:
        """The listing page by page, so that other threads can query in between."""
        question = f"SELECT {columns} FROM files WHERE path > ? ORDER BY path LIMIT ?"
        last = b""
        while page := self._asked(question, last, _PAGE_ROWS):
            yield page
            last = page[-1][0]

    def _asked(self, question: str, *values: object) -> list[Any]:
        with self._lock:
            return self._database.execute(question, values).fetchall()


class _Items(ItemsView[str, int]):
    """The items of a listing."""

    def __iter__(self) -> Iterator[tuple[str, int]]:
        listing: Listing = self._mapping  # type: ignore[attr-defined]
        return listing._in_order()


def _key(path: str) -> bytes:
    """A path as bytes that sort like its characters, even if some are not valid in UTF-8."""
    return path.encode("utf-8", "surrogatepass")


class Paths(Sequence[str]):
    """The files of a dataset that a condition holds for, filtered anew at every use."""

    def __init__(self, files: Collection[str], holds: Callable[[str], bool]) -> None:
        """Does not iterate over the files yet.

        Args:
            files: All files, in order.
            holds: The condition.
        """
        self._files = files
        self._holds = holds
        self._length: int | None = None

    def __iter__(self) -> Iterator[str]:
        return filter(self._holds, self._files)

    def __contains__(self, path: object) -> bool:
        return isinstance(path, str) and self._holds(path) and path in self._files

    def __bool__(self) -> bool:
        return next(iter(self), None) is not None

    def __len__(self) -> int:
        if self._length is None:
            self._length = sum(1 for _ in self)
        return self._length

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[str]: ...
    def __getitem__(self, index: int | slice) -> str | Sequence[str]:
        places = range(len(self))[index]
        if isinstance(places, range):
            # Callers only take slices in the order of the files.
            return tuple(islice(self, places.start, places.stop, places.step))
        return next(islice(self, places, None))
