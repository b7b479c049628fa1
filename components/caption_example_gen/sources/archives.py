"""Reads the files in zip and tar archives as if these were folders, and tables in gzip."""

from __future__ import annotations

import contextlib
import io
import lzma
import posixpath
import shutil
import sys
import tarfile
import tempfile
import threading
import zipfile
import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import IO, Any, BinaryIO, NamedTuple, cast

from components.caption_example_gen.sources import compression
from components.caption_example_gen.sources.base import DatasetError, Files, is_hidden
from components.caption_example_gen.sources.files import ZIP_SUFFIX
from components.caption_example_gen.sources.table_files import (
    CSV_SUFFIXES,
    DOCUMENT_SUFFIX,
    LINES_SUFFIXES,
)
from storage.errors import one_line

# Larger files in an archive are unpacked to disk before they are read.
_IN_MEMORY_BYTES = 64 << 20
_COPY_BYTES = 1 << 20
_GZIP_SUFFIX = ".gz"
_TABLES = tuple(
    suffix + _GZIP_SUFFIX for suffix in (*CSV_SUFFIXES, *LINES_SUFFIXES, DOCUMENT_SUFFIX)
)
# Flag of a zip entry: its name is UTF-8, not the MS-DOS code page that Python assumes.
_NAME_IS_UTF8 = 0x800


class _Entry(NamedTuple):
    """The location of a file in an archive: in a tar, its first byte."""

    archive: str
    where: zipfile.ZipInfo | int
    size: int


class ArchiveFiles(Files):
    """The files of a dataset, with some archives shown as folders of the same name.

    Their files may be read in any order: every process that reads a compressed tar unpacks it into
    a temporary file. The same holds for a table in gzip, which is shown without that suffix.
    """

    def __init__(self, files: Files, archives: Iterable[str]) -> None:
        """Reads nothing yet.

        Args:
            files: The files of the dataset.
            archives: The archives among them to open.
        """
        super().__init__(files.shown)
        self._files = files
        self._archives = tuple(archives)
        self._entries: dict[str, _Entry] | None = None
        self._sizes: dict[str, int] = {}
        self._opened: dict[str, zipfile.ZipFile | IO[bytes]] = {}
        # By the name without its last suffix: a copy, to be opened by the copy's name.
        self._tables: dict[str, IO[bytes]] = {}
        # Threads that hash a dataset share the positions of its files.
        self._lock = threading.Lock()

    def sizes(self) -> Mapping[str, int]:
        """See `Files.sizes`."""
        if self._entries is None:
            entries: dict[str, _Entry] = {}
            for archive in self._archives:
                if archive.lower().endswith(_TABLES):
                    entries[archive[: -len(_GZIP_SUFFIX)]] = self._table(archive)
                    continue
                with self._checked(archive):
                    for name, found in self._list(archive):
                        path = posixpath.normpath(posixpath.join(archive, name.lstrip("/")))
                        # A link has the content of its target.
                        entry = (
                            entries.get(posixpath.normpath(f"{archive}/{found}"))
                            if isinstance(found, str)
                            else found
                        )
                        # Skips paths that lead out of the archive or into hidden folders.
                        if entry and path.startswith(f"{archive}/") and not is_hidden(path):
                            entries[path] = entry
            sizes = {path: entry.size for path, entry in entries.items()}
            opened = frozenset(self._archives)
            sizes |= {p: size for p, size in self._files.sizes().items() if p not in opened}
            self._sizes = dict(sorted(sizes.items()))
            self._entries = entries
        return self._sizes

    def open(self, path: str) -> BinaryIO:
        """See `Files.open`."""
        self.sizes()
        entry = (self._entries or {}).get(path)
        if entry is None:
            return self._files.open(path)
        with self._checked(entry.archive, path), self._lock:
            if path in self._tables:
                return open(self._tables[path].name, "rb")
            return self._unpacked(entry)

    def peek(self, path: str) -> BinaryIO:
        """See `Files.peek`."""
        self.sizes()
        return self.open(path) if path in (self._entries or {}) else self._files.peek(path)

    def fetch(self, paths: Iterable[str]) -> None:
        """See `Files.fetch`."""
        self._files.fetch(self._outer(paths))

    def fingerprint(self, paths: Iterable[str]) -> str:
        """See `Files.fingerprint`; an archive counts as a whole."""
        return self._files.fingerprint(self._outer(paths))

    def _outer(self, paths: Iterable[str]) -> list[str]:
        self.sizes()
        entries = self._entries or {}
        return sorted({entries[path].archive if path in entries else path for path in paths})

    def _list(self, archive: str) -> Iterator[tuple[str, _Entry | str]]:
        """The files of an archive by name, each with its location or the target of the link."""
        opened = self._open(archive)
        if isinstance(opened, zipfile.ZipFile):
            for info in opened.infolist():
                if not info.is_dir():
                    yield _zip_name(info), _Entry(archive, info, info.file_size)
            return
        # The list of members is not part of its documented interface.
        tar: Any = tarfile.open(  # noqa: SIM115
            fileobj=opened, mode="r:", encoding="utf-8", errors="surrogateescape"
        )
        while (member := tar.next()) is not None:
            if member.isreg() and not member.issparse():
                yield member.name, _Entry(archive, member.offset_data, member.size)
            elif member.islnk():
                yield member.name, member.linkname.lstrip("/")
            elif member.issym():
                folder = posixpath.dirname(member.name.lstrip("/"))
                yield member.name, posixpath.join(folder, member.linkname)
            # Otherwise tarfile keeps all members in memory.
            tar.members.clear()

    def _table(self, archive: str) -> _Entry:
        with self._checked(archive), self._files.open(archive) as f:
            # The copy is deleted with this object.
            copy = tempfile.NamedTemporaryFile()  # noqa: SIM115
            shutil.copyfileobj(compression.unpacked(f) or f, copy, _COPY_BYTES)
            copy.flush()
        self._tables[archive[: -len(_GZIP_SUFFIX)]] = cast(IO[bytes], copy)
        return _Entry(archive, 0, copy.tell())

    def _open(self, archive: str) -> zipfile.ZipFile | IO[bytes]:
        if archive not in self._opened:
            # Stays open as long as the dataset is, until the process ends.
            f = self._files.open(archive)
            is_zip = archive.lower().endswith(ZIP_SUFFIX)
            self._opened[archive] = zipfile.ZipFile(f) if is_zip else _plain_tar(f)
        return self._opened[archive]

    def _unpacked(self, entry: _Entry) -> BinaryIO:
        archive = self._open(entry.archive)
        if isinstance(entry.where, int):
            f = cast(IO[bytes], archive)
            f.seek(entry.where)
            return _copied(f, entry.size)
        with cast(zipfile.ZipFile, archive).open(entry.where) as packed:
            return _copied(packed, entry.size)

    @contextlib.contextmanager
    def _checked(self, archive: str, path: str = "") -> Iterator[None]:
        try:
            yield
        except (
            zipfile.BadZipFile,
            tarfile.TarError,
            zlib.error,
            lzma.LZMAError,
            EOFError,
            OSError,
            # Raised for an encrypted zip or a compression method that Python lacks.
            RuntimeError,
        ) as error:
            if isinstance(error, DatasetError):
                raise
            raise DatasetError(
                f"{path or archive} in dataset {self.shown!r} cannot be read: {one_line(error)}"
            ) from error


def archives_of(paths: Collection[str]) -> tuple[str, ...]:
    """The zip files of a dataset, and tables in gzip without an unpacked copy beside them."""
    return tuple(
        path
        for path in paths
        if (lower := path.lower()).endswith(ZIP_SUFFIX)
        or (lower.endswith(_TABLES) and path[: -len(_GZIP_SUFFIX)] not in paths)
    )


def _zip_name(info: zipfile.ZipInfo) -> str:
    """The name of an entry; many programs write UTF-8 without setting the flag."""
    name = info.filename
    if not info.flag_bits & _NAME_IS_UTF8:
        with contextlib.suppress(UnicodeError):
            name = name.encode("cp437").decode("utf-8")
    return name.replace("\\", "/")


def _plain_tar(f: BinaryIO) -> IO[bytes]:
    stream = compression.unpacked(f)
    if stream is None:
        return f
    with f, stream as packed:
        return _on_disk(packed)


def _copied(f: IO[bytes], size: int) -> BinaryIO:
    """The next `size` bytes as a file of their own."""
    if size > _IN_MEMORY_BYTES:
        return _on_disk(f, size)
    content = f.read(size)
    if len(content) < size:
        raise EOFError("it is cut off")
    return io.BytesIO(content)


def _on_disk(f: IO[bytes], size: int | None = None) -> BinaryIO:
    """A temporary copy that is deleted when it is closed."""
    copy = tempfile.TemporaryFile()  # noqa: SIM115
    try:
        left = sys.maxsize if size is None else size
        while chunk := f.read(min(left, _COPY_BYTES)):
            copy.write(chunk)
            left -= len(chunk)
    except BaseException:
        copy.close()
        raise
    copy.seek(0)
    return cast(BinaryIO, copy)
