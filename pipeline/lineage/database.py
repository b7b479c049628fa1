"""Reads ML Metadata's tables without ML Metadata's client.

When it connects, that client creates missing tables and migrates old ones, and it holds its locks
for as long as a question takes. Here, a SQLite file is opened read-only and copied to memory in one
go: a running pipeline waits at most for that copy (MLMD retries a busy database for about 19 s
before it gives up), and a question sees the store at one moment. A MySQL store is read in one
READ ONLY transaction, which InnoDB serves from a snapshot without locks.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sqlite3
import urllib.parse
from collections.abc import Iterable, Iterator
from typing import Any, Protocol

from pipeline.lineage.model import LineageError
from pipeline.lineage.moved import relocate
from storage.errors import one_line

SCHEMA_VERSION = 10

_BUSY_SECONDS = 5.0
_IDS_A_QUERY = 5000
_SQLITE_HEADER = b"SQLite format 3\0"
# Place of the byte that is 2 in write-ahead mode: https://www.sqlite.org/fileformat.html
_WRITE_VERSION = 18


class Database(Protocol):
    """ML Metadata's tables at one moment."""

    name: str

    def rows(self, query: str, *parameters: str | int) -> list[tuple[Any, ...]]:
        """Returns all rows of a SELECT with `?` for parameters."""


class SqliteDatabase:
    """Tables in a SQLite connection."""

    def __init__(self, connection: sqlite3.Connection, name: str) -> None:
        """Reads from `connection`; `name` is for error messages."""
        self.name = name
        self._connection = connection

    def rows(self, query: str, *parameters: str | int) -> list[tuple[Any, ...]]:
        """See `Database`.

        Raises:
            LineageError: The file is damaged.
        """
        with self.errors_told():
            return self._connection.execute(query, parameters).fetchall()

    @contextlib.contextmanager
    def errors_told(self) -> Iterator[None]:
        """Turns SQLite errors raised inside the `with` block into errors for the user."""
        try:
            yield
        except sqlite3.Error as error:
            raise LineageError(f"{self.name} is damaged: {one_line(error)}") from None


class MySqlDatabase:
    """Tables in a MySQL connection."""

    def __init__(self, connection: Any, name: str) -> None:
        """Reads from `connection`, a PyMySQL connection; `name` is for error messages."""
        self.name = name
        self._connection = connection

    def rows(self, query: str, *parameters: str | int) -> list[tuple[Any, ...]]:
        """See `Database`.

        Raises:
            LineageError: The server refuses or is gone.
        """
        import pymysql

        # Table names in ML Metadata's MySQL schema are written as in SQLite's.
        text = query.replace("%", "%%").replace("?", "%s") if parameters else query
        try:
            with self._connection.cursor() as cursor:
                cursor.execute(text, [_as_latin_1(p) for p in parameters] or None)
                return [tuple(map(_as_utf_8, row)) for row in cursor.fetchall()]
        except pymysql.Error as error:
            raise LineageError(f"{self.name} cannot be read: {one_line(error)}") from None


def rows_by_ids(
    database: Database, query: str, ids: Iterable[int], *parameters: str | int
) -> Iterator[tuple[Any, ...]]:
    """Yields the rows of a SELECT with `{ids}` in place of a list of ids, of any length."""
    remaining = sorted(set(ids))
    for start in range(0, len(remaining), _IDS_A_QUERY):
        some = ",".join(str(int(i)) for i in remaining[start : start + _IDS_A_QUERY])
        yield from database.rows(query.replace("{ids}", some), *parameters)


@contextlib.contextmanager
def open_sqlite(path: str) -> Iterator[SqliteDatabase]:
    """Copies a SQLite file to memory, with addresses rewritten to the folder it is in now.

    Raises:
        LineageError: The file does not exist, is not ML Metadata's, or is locked or damaged.
    """
    _check_file(path)
    with contextlib.closing(
        sqlite3.connect(":memory:", check_same_thread=False, isolation_level=None)
    ) as memory:
        _copy(path, memory)
        # One text that is not valid UTF-8 must not make the others unreadable.
        memory.text_factory = functools.partial(str, encoding="utf-8", errors="replace")
        database = SqliteDatabase(memory, path)
        _check_schema(database)
        with database.errors_told():
            relocate(memory, os.path.dirname(os.path.abspath(path)))
        memory.execute("PRAGMA query_only = ON")
        yield database


def _check_file(path: str) -> None:
    if os.path.isdir(path):
        raise LineageError(f"{path} is a folder: give the database file")
    try:
        with open(path, "rb") as file:
            header = file.read(len(_SQLITE_HEADER))
    except FileNotFoundError:
        raise LineageError(
            f"there is no metadata database {path}: run the pipeline first, or name another one "
            "with --store"
        ) from None
    except OSError as error:
        raise LineageError(f"{path} cannot be read: {error.strerror}") from None
    if not header:
        raise LineageError(f"{path} is empty: no run has written to it yet")
    if header != _SQLITE_HEADER:
        raise LineageError(f"{path} is not a SQLite database")


def _copy(path: str, memory: sqlite3.Connection) -> None:
    address = f"file:{urllib.parse.quote(os.path.abspath(path))}?mode=ro"
    if _is_at_rest(path):
        address += "&immutable=1"
    try:
        with contextlib.closing(
            sqlite3.connect(address, uri=True, timeout=_BUSY_SECONDS, isolation_level=None)
        ) as source:
            # Read something first: `backup` alone would wait for a busy file for ever.
            source.execute("BEGIN")
            source.execute("SELECT count(*) FROM sqlite_master").fetchone()
            source.backup(memory)
            source.execute("COMMIT")
    except sqlite3.Error as error:
        message = one_line(error)
        if "locked" in message or "busy" in message:
            raise LineageError(
                f"{path} is locked: another process has been writing to it for more than "
                f"{_BUSY_SECONDS:.0f} s; try again"
            ) from None
        if "readonly" in message or os.path.exists(f"{path}-journal"):
            raise LineageError(
                f"{path} was left in the middle of a write by a process that died: the next run "
                "of the pipeline repairs it"
            ) from None
        raise LineageError(f"{path} is damaged: {message}") from None


def _is_at_rest(path: str) -> bool:
    """Whether a file in write-ahead mode has no writer: even a reader would make files beside it.

    ML Metadata does not use this mode; somebody else may have switched it on.
    """
    with open(path, "rb") as file:
        write_ahead = file.read(_WRITE_VERSION + 1)[_WRITE_VERSION:] == b"\2"
    return write_ahead and not os.path.exists(f"{path}-wal")


@contextlib.contextmanager
def open_mysql(address: str) -> Iterator[MySqlDatabase]:
    """Connects to `mysql://USER@HOST[:PORT]/DATABASE[?password_env=NAME]`.

    Raises:
        LineageError: The address is wrong, or there is no such store.
    """
    parts = urllib.parse.urlsplit(address)
    name = f"mysql://{parts.hostname}{parts.path}"
    if not parts.hostname or not parts.path.strip("/") or parts.password:
        raise LineageError(
            "give a MySQL store as mysql://USER@HOST[:PORT]/DATABASE?password_env=NAME, where NAME "
            "is the environment variable that holds the password"
        )
    variable = dict(urllib.parse.parse_qsl(parts.query)).get("password_env")
    if variable is not None and variable not in os.environ:
        raise LineageError(f"the environment variable {variable} for {name} is not set")
    try:
        import pymysql
    except ImportError:
        raise LineageError(
            "a MySQL store needs PyMySQL: install this project's extra `mysql`"
        ) from None
    try:
        connection = pymysql.connect(
            host=parts.hostname,
            port=parts.port or 3306,
            user=urllib.parse.unquote(parts.username or "") or None,
            password=os.environ[variable] if variable else "",
            database=urllib.parse.unquote(parts.path.strip("/")),
            charset="latin1",
            connect_timeout=10,
        )
        # MySQL's latin1 has all 256 characters; Python calls that encoding latin-1.
        connection.encoding = "latin-1"
        with contextlib.closing(connection):
            with connection.cursor() as cursor:
                cursor.execute("SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ")
                cursor.execute("START TRANSACTION WITH CONSISTENT SNAPSHOT, READ ONLY")
            database = MySqlDatabase(connection, name)
            _check_schema(database)
            yield database
    except pymysql.Error as error:
        raise LineageError(f"{name} cannot be opened: {one_line(error)}") from None


def _as_latin_1(value: str | int) -> str | int:
    """A parameter as ML Metadata's client sends it: UTF-8 that it calls latin1."""
    return value.encode().decode("latin-1") if isinstance(value, str) else value


def _as_utf_8(value: Any) -> Any:
    return value.encode("latin-1").decode("utf-8", "replace") if isinstance(value, str) else value


def _check_schema(database: Database) -> None:
    try:
        versions = database.rows("SELECT schema_version FROM MLMDEnv")
    except LineageError as error:
        if "no such table" in str(error) or "doesn't exist" in str(error):
            raise LineageError(
                f"{database.name} does not contain ML Metadata (it has no table MLMDEnv)"
            ) from None
        raise
    version = versions[0][0] if len(versions) == 1 else None
    if version != SCHEMA_VERSION:
        raise LineageError(
            f"{database.name} has version {version} of ML Metadata's schema, but only version "
            f"{SCHEMA_VERSION} (ml-metadata 1.16 to 1.21) can be read"
        )
