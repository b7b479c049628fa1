"""Reads files in a folder, or one archive, on any file system that fsspec opens."""

from __future__ import annotations

import collections
import contextlib
import copy
import functools
import hashlib
import io
import logging
import os
import posixpath
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Any, BinaryIO, TypeVar, cast

from fsspec.implementations.local import LocalFileSystem

from components.caption_example_gen.sources.base import (
    DatasetError,
    Files,
    is_hidden,
    is_picture,
)
from components.caption_example_gen.sources.listing import Listed, Listing, Paths
from storage.addresses import SecretInAddressError
from storage.errors import one_line
from storage.file_systems import open_address

TAR_SUFFIXES = (
    ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz", ".tbz2", ".tar.xz", ".txz",
)  # fmt: skip
"""Suffixes of tar files, in lower case."""
ZIP_SUFFIX = ".zip"
"""Suffix of zip files, in lower case."""
WHOLE_SUFFIXES = (*TAR_SUFFIXES, ZIP_SUFFIX, ".parquet", ".arrow")
"""Suffixes of files that are a dataset by themselves, in lower case."""
UNREAD_SUFFIXES = (".7z", ".rar", ".zst", ".tzst", ".lz4")
"""Suffixes of unsupported archives, in lower case."""

_CHUNK_BYTES = 1 << 20
_HASH_THREADS = 4
# Files fetched from an object store at the same time; each is a picture or smaller.
_READ_AHEAD = 16
# Files that a thread hashes in one go: handing over a small file takes as long as hashing it.
_HASH_BATCH = 64
# Names of content checksums in the listings of object stores, best first: an etag may change when
# only the metadata does.
_CHECKSUMS = ("md5Hash", "crc32c", "content_md5", "ETag", "etag")
_T = TypeVar("_T")
_GIVE = "give a folder, a tar or a zip file"
_BUCKET_SCHEMES = ("gs://", "gcs://")
# They log every error that they raise, with a traceback, and what credentials they did not find.
_LOUD = ("aiohttp", "asyncio", "gcsfs", "google.auth")


class FsspecFiles(Files):
    """The files under a folder, or one file that is a dataset by itself."""

    def __init__(self, dataset: str) -> None:
        """Finds the file system; reads nothing before `sizes`.

        Args:
            dataset: Path or URL of the folder or file.

        Raises:
            DatasetError: The file system cannot be opened.
        """
        super().__init__(dataset)
        self._fs, self._root = _open_file_system(dataset)
        self._local = isinstance(self._fs, LocalFileSystem)
        self._listing: Listing | None = None
        self._is_elsewhere = False

    def sizes(self) -> Listing:
        """See `Files.sizes`; listed once."""
        if self._listing is None:
            try:
                with _quiet():
                    found = Listing(self._list())
            except DatasetError:
                raise
            # File systems of object stores raise errors of their own types.
            except Exception as error:
                raise DatasetError(
                    f"dataset {self.shown!r} cannot be listed: {one_line(error)}"
                ) from error
            self._listing = found
        return self._listing

    def elsewhere(self) -> FsspecFiles:
        """See `Files.elsewhere`."""
        # If a file is a dataset by itself, the listing finds its folder.
        self.sizes()
        files = copy.copy(self)
        files._listing, files._is_elsewhere = None, True
        return files

    def __getstate__(self) -> tuple[str, str]:
        # Without the file system itself, which may contain credentials.
        return self.shown, self._root

    def __setstate__(self, state: tuple[str, str]) -> None:
        self.__init__(state[0])  # type: ignore[misc]
        self._root, self._is_elsewhere = state[1], True

    def open(self, path: str) -> BinaryIO:
        """See `Files.open`."""
        if not self._is_elsewhere and path not in self.sizes():
            raise FileNotFoundError(f"no file {path!r}")
        full = posixpath.join(self._root, path)
        try:
            if self._local:
                return open(full, "rb")
            # One request instead of two or three; a picture is always read whole.
            if is_picture(path):
                return io.BytesIO(self._fs.cat_file(full))
            return cast(BinaryIO, self._fs.open(full, "rb"))
        except FileNotFoundError:
            raise
        except Exception as error:
            raise DatasetError(
                f"{path} in dataset {self.shown!r} cannot be read: {one_line(error)}"
            ) from error

    def read(self, path: str, *, peek: bool = False) -> bytes:
        """See `Files.read`."""
        content = self._read_small(path) if self._local else None
        return super().read(path, peek=peek) if content is None else content

    def _read_small(self, path: str) -> bytes | None:
        """Reads a whole local file; `None` if it is large.

        A file object would make three more system calls, and there are many small files.
        """
        try:
            descriptor = os.open(posixpath.join(self._root, path), os.O_RDONLY)
            try:
                size = os.fstat(descriptor).st_size
                content = os.read(descriptor, size + 1) if size < _CHUNK_BYTES else b""
            finally:
                os.close(descriptor)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise DatasetError(
                f"{path} in dataset {self.shown!r} cannot be read: {one_line(error)}"
            ) from error
        # Otherwise the file has grown, or the system returned only a part of it.
        return content if len(content) == size else None

    def ahead(self, paths: Iterable[str], *, peek: bool = False) -> Iterator[Callable[[], bytes]]:
        """See `Files.ahead`; fetches several files at once from object stores, which are slow."""
        if self._local:
            yield from super().ahead(paths, peek=peek)
            return
        with ThreadPoolExecutor(_READ_AHEAD) as pool:
            try:
                read = functools.partial(self.read, peek=peek)
                for content in _in_turn(pool, read, paths, _READ_AHEAD):
                    yield content.result
            # A caller that stops early does not wait for the rest.
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def fingerprint(self, paths: Iterable[str]) -> str:
        """See `Files.fingerprint`.

        Returns:
            SHA-256 (hex) over the relative names, sizes and contents of the files; if the listing
            has checksums, over these instead of the contents. Neither modification times nor the
            location of the folder matter.

        Raises:
            DatasetError: A file cannot be read.
        """
        ordered = paths if isinstance(paths, Paths) else sorted(paths)
        size = max(1, min(_HASH_BATCH, len(ordered) // _HASH_THREADS))
        left = iter(ordered)
        batches = iter(lambda: list(islice(left, size)), [])
        digest = hashlib.sha256()
        for lines in self._hashed_alone(batches):
            digest.update(lines)
        with ThreadPoolExecutor(_HASH_THREADS) as pool:
            for future in _in_turn(pool, self._hashes, batches, 2 * _HASH_THREADS):
                digest.update(future.result())
        return digest.hexdigest()

    def _hashed_alone(self, batches: Iterator[list[str]]) -> Iterator[bytes]:
        """Hashes batches until most of the time is spent waiting, or a batch has a large file.

        For small files that the system has cached, threads take twice as long, due to Python's
        global lock.
        """
        since, computed_since = time.monotonic(), time.thread_time()
        for batch in batches:
            yield self._hashes(batch)
            seconds, computed = time.monotonic() - since, time.thread_time() - computed_since
            if seconds > 2 * computed or any(self.sizes()[p] >= _CHUNK_BYTES for p in batch):
                return

    def _hashes(self, paths: Iterable[str]) -> bytes:
        return b"".join(map(self._hash, paths))

    def _hash(self, path: str) -> bytes:
        name = path.encode("utf-8", "surrogateescape")
        if not self._local and (checksum := self.sizes().checksum(path)):
            return name + f"\0{self.sizes()[path]}\0{checksum}\n".encode()
        whole = self._read_small(path) if self._local else None
        if whole is not None:
            return name + f"\0{len(whole)}\0sha256:{hashlib.sha256(whole).hexdigest()}\n".encode()
        size, content = 0, hashlib.sha256()
        try:
            with self.open(path) as f:
                while chunk := f.read(_CHUNK_BYTES):
                    size += len(chunk)
                    content.update(chunk)
        except OSError as error:
            raise DatasetError(
                f"{path} in dataset {self.shown!r} cannot be read: {one_line(error)}"
            ) from error
        return name + f"\0{size}\0sha256:{content.hexdigest()}\n".encode()

    def _list(self) -> Iterator[Listed]:
        given = f"dataset {self.shown!r}"
        if not self._local:
            self._check_reachable(given)
        if self._fs.isfile(self._root):
            self._root, name = posixpath.split(self._root)
            if name.lower().endswith(UNREAD_SUFFIXES):
                raise DatasetError(
                    f"{given} is an archive of an unsupported kind: unpack it, and give the folder"
                )
            if not name.lower().endswith(WHOLE_SUFFIXES):
                raise DatasetError(
                    f"{given} is a file, but not one of {', '.join(WHOLE_SUFFIXES)}: give the "
                    "folder that contains it"
                )
            found = self._fs.info(posixpath.join(self._root, name))
            yield Listed(name, int(found["size"]), self._checksum(found))
        elif not self._fs.isdir(self._root):
            raise DatasetError(f"{given} does not exist: {_GIVE}")
        elif self._local:
            yield from _walk(self._root, given)
        else:
            root = self._root.rstrip("/") + "/"
            for full, found in self._fs.find(self._root, detail=True).items():
                path = full[len(root) :]
                if path and not path.endswith("/") and not is_hidden(path):
                    yield Listed(path, int(found["size"]), self._checksum(found))

    def _check_reachable(self, given: str) -> None:
        """Tells a place that cannot be reached, or a missing bucket, from a missing folder."""
        in_bucket = self.shown.startswith(_BUCKET_SCHEMES)
        bucket = self._root.partition("/")[0]
        try:
            if _exists(self._fs, self._root) or not in_bucket:
                return
            has_bucket = _exists(self._fs, bucket)
        # `isfile` and `isdir` of fsspec take every error for a no.
        except Exception as error:
            way = (
                "the connection, and log in with `gcloud auth application-default login`"
                if in_bucket
                else "the connection and the credentials"
            )
            raise DatasetError(
                f"{given} cannot be reached ({one_line(error)}): check {way}"
            ) from error
        if not has_bucket:
            raise DatasetError(f"{given}: there is no bucket gs://{bucket}: give one that exists")

    def _checksum(self, found: Mapping[str, Any]) -> str:
        known = (name for name in _CHECKSUMS if found.get(name) and not self._local)
        return next((f"{name}:{found[name]}" for name in known), "")


def _in_turn(
    pool: ThreadPoolExecutor, work: Callable[[_T], bytes], items: Iterable[_T], at_once: int
) -> Iterator[Future[bytes]]:
    """Works on a few items at the same time; yields their results in order."""
    pending: collections.deque[Future[bytes]] = collections.deque()
    for item in items:
        pending.append(pool.submit(work, item))
        if len(pending) == at_once:
            yield pending.popleft()
    while pending:
        yield pending.popleft()


def _exists(file_system: Any, path: str) -> bool:
    try:
        file_system.info(path)
    except FileNotFoundError:
        return False
    return True


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Within this, libraries of object stores log nothing: their errors are raised, too."""
    loggers = [logging.getLogger(name) for name in _LOUD]
    before = [each.level for each in loggers]
    for each in loggers:
        each.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        for each, level in zip(loggers, before, strict=True):
            each.setLevel(level)


def _walk(root: str, given: str) -> Iterator[Listed]:
    """Paths and sizes of the files under a local folder; links are followed."""
    # Each folder with those above it, so that a link to one of them does not recurse forever.
    folders: list[tuple[str, frozenset[tuple[int, int]]]] = [("", frozenset())]
    while folders:
        folder, above = folders.pop()
        found = os.stat(os.path.join(root, folder))
        within = above | {(found.st_dev, found.st_ino)}
        with os.scandir(os.path.join(root, folder)) as entries:
            for entry in entries:
                path = posixpath.join(folder, entry.name)
                if is_hidden(entry.name):
                    continue
                try:
                    found = entry.stat()
                except OSError as error:
                    # A row that names the picture will report it.
                    if is_picture(path):
                        continue
                    raise DatasetError(
                        f"{path} in {given} is a broken link: {one_line(error)}"
                    ) from error
                if stat.S_ISREG(found.st_mode):
                    yield Listed(path, found.st_size)
                elif stat.S_ISDIR(found.st_mode) and (found.st_dev, found.st_ino) not in within:
                    folders.append((path, within))


def _open_file_system(dataset: str) -> tuple[Any, str]:
    if "://" not in dataset:
        return LocalFileSystem(), os.path.abspath(os.path.expanduser(dataset))
    try:
        with _quiet():
            return open_address(dataset)
    except SecretInAddressError as error:
        raise DatasetError(str(error)) from None
    except ImportError as error:
        raise DatasetError(
            f"dataset {dataset!r} cannot be opened without another package: {one_line(error)}"
        ) from error
    except ValueError as error:
        raise DatasetError(
            f"dataset {dataset!r} is not a path or URL that can be opened: {one_line(error)}; "
            f"{_GIVE}"
        ) from error
