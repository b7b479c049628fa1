"""Where a store is, as the user gives it: a file, a run's output folder, or a URL."""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
from collections.abc import Hashable, Iterator
from pathlib import Path
from typing import Protocol

from pipeline.lineage import database
from pipeline.lineage.model import LineageError
from pipeline.lineage.store import Store
from storage.addresses import SecretInAddressError, check_address

# The default output folder of a run, and the default port of the lineage pages.
DEFAULT_STORE = os.path.join("runs", "default")
DEFAULT_PORT = 8081

DATABASE_NAME = "metadata.sqlite"
_LOCK_NAME = ".lock"
# struct flock of 64-bit Linux: type, whence, start, length, process.
_FLOCK = "hhqqi4x"


class Location(Protocol):
    """A store that can be opened any number of times."""

    text: str
    roots: list[str]

    def open(self) -> contextlib.AbstractContextManager[Store]:
        """Reads the store as it is now.

        Raises:
            LineageError: It cannot be read.
        """

    def stamp(self) -> Hashable:
        """A value that changes when the store does."""


class SqliteLocation:
    """A SQLite file.

    Attributes:
        text: The path, as it was given.
        roots: The folder that contains the file (the output folder of a local run). Its files may
            be shown.
    """

    def __init__(self, path: str, text: str) -> None:
        """Names the file `path`, which does not need to exist."""
        self.text = text
        self.roots = [os.path.dirname(os.path.abspath(path))]
        self._path = path

    @contextlib.contextmanager
    def open(self) -> Iterator[Store]:
        """See `Location`."""
        with database.open_sqlite(self._path) as tables:
            yield Store(tables, abandoned=_nobody_holds(Path(self.roots[0])))

    def stamp(self) -> Hashable:
        """See `Location`."""
        try:
            status = os.stat(self._path)
        except OSError:
            return None
        return status.st_mtime_ns, status.st_size, status.st_ino


class MySqlLocation:
    """A MySQL database."""

    def __init__(self, address: str) -> None:
        """Names the database; see `database.open_mysql`."""
        self.text = address
        self.roots: list[str] = []

    @contextlib.contextmanager
    def open(self) -> Iterator[Store]:
        """See `Location`."""
        with database.open_mysql(self.text) as tables:
            yield Store(tables)

    def stamp(self) -> Hashable:
        """See `Location`."""
        with database.open_mysql(self.text) as tables:
            return tuple(
                tables.rows(f"SELECT count(*), max(last_update_time_since_epoch) FROM {table}")[0]
                for table in ("Execution", "Artifact")
            )


def locate(text: str) -> Location:
    """Finds out what kind of store `text` names, without opening it.

    Args:
        text: A SQLite file, an output folder with `metadata.sqlite` in it,
            `mysql://USER@HOST/DATABASE?password_env=NAME` or
            `vertex://PROJECT/LOCATION[/STORE]`.

    Raises:
        LineageError: It is something else, or contains a secret.
    """
    try:
        check_address(text)
    except SecretInAddressError as error:
        raise LineageError(str(error)) from None
    scheme, separator, _ = text.partition("://")
    if not separator:
        if not text:
            raise LineageError("the store's name is empty: give a file or a folder")
        path = os.path.join(text, DATABASE_NAME) if os.path.isdir(text) else text
        return SqliteLocation(path, text)
    if scheme == "mysql":
        return MySqlLocation(text)
    if scheme == "vertex":
        from pipeline.lineage.vertex import VertexLocation

        return VertexLocation(text)
    raise LineageError(
        f"a store cannot be at {scheme}://: give a SQLite file, a run's output folder, mysql:// "
        "or vertex://"
    )


def lock_holder(output: Path) -> int | None:
    """The process that works in an output folder; does not take the lock.

    Raises:
        OSError: There is no lock file.
    """
    with Path(output, _LOCK_NAME).open("rb") as file:
        question = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        kind, *_, process = struct.unpack(_FLOCK, fcntl.fcntl(file, fcntl.F_GETLK, question))
    return None if kind == fcntl.F_UNLCK else int(process)


def _nobody_holds(output: Path) -> bool:
    """Whether a run's lock file exists and no process holds it."""
    try:
        return lock_holder(output) is None
    except OSError:
        return False
