"""Files in a folder, or one archive, on any file system that fsspec opens."""

from __future__ import annotations

import collections
import hashlib
import io
import os
import posixpath
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, BinaryIO, cast

from fsspec.implementations.local import LocalFileSystem

from components.caption_example_gen.sources.base import (
    DatasetError,
    Files,
    is_hidden,
    is_picture,
)
from storage.addresses import SecretInAddressError
from storage.errors import one_line
from storage.file_systems import open_address

TAR_SUFFIXES = (
    ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz", ".tbz2", ".tar.xz", ".txz",
)  # fmt: skip
"""How tar files are called, in lower case."""
ZIP_SUFFIX = ".zip"
"""How zip files are called, in lower case."""
WHOLE_SUFFIXES = (*TAR_SUFFIXES, ZIP_SUFFIX, ".parquet", ".arrow")
"""How files are called that are a dataset by themselves, in lower case."""
UNREAD_SUFFIXES = (".7z", ".rar", ".zst", ".tzst", ".lz4")
"""How archives are called that nothing here unpacks, in lower case."""

_CHUNK_BYTES = 1 << 20
_HASH_THREADS = 4
# Files of an object store that are on their way at the same time; each is a picture, or less.
_READ_AHEAD = 16
# Files that a thread hashes in one go: handing over a small one takes as long as hashing it.
_HASH_BATCH = 64
# What object stores call the checksum of a file's content in their listings, best first: an etag
# may change when only the metadata does.
_CHECKSUMS = ("md5Hash", "crc32c", "content_md5", "ETag", "etag")
_GIVE = "give a folder, a tar or a zip file, local or gs://"


class FsspecFiles(Files):
    """The files under a folder, or one file that is a dataset by itself."""

    def __init__(self, dataset: str) -> None:
        """Finds the file system; nothing is read before `sizes`.

        Args:
            dataset: Path or URL of the folder or file.

        Raises:
            DatasetError: Its file system cannot be opened.
        """
        super().__init__(dataset)
        self._fs, self._root = _open_file_system(dataset)
        self._local = isinstance(self._fs, LocalFileSystem)
        self._sizes: dict[str, int] | None = None
        self._checksums: dict[str, str] = {}

    def sizes(self) -> Mapping[str, int]:
        """See `Files.sizes`; listed once."""
        if self._sizes is None:
            try:
                found = dict(sorted(self._list()))
            except DatasetError:
                raise
            # File systems of object stores raise errors of their own making.
            except Exception as error:
                raise DatasetError(
                    f"dataset {self.shown!r} cannot be listed: {one_line(error)}"
                ) from error
            self._sizes = found
        return self._sizes

    def open(self, path: str) -> BinaryIO:
        """See `Files.open`."""
        if path not in self.sizes():
            raise FileNotFoundError(f"no file {path!r}")
        full = posixpath.join(self._root, path)
        try:
            if self._local:
                return open(full, "rb")
            # One request in place of two or three; a picture is always read whole.
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
        size = self.sizes().get(path)
        if not self._local or size is None or size > _CHUNK_BYTES:
            return super().read(path, peek=peek)
        # A file object would ask the system four times more, and of small files there are many.
        try:
            descriptor = os.open(posixpath.join(self._root, path), os.O_RDONLY)
            try:
                content = os.read(descriptor, size + 1)
            finally:
                os.close(descriptor)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise DatasetError(
                f"{path} in dataset {self.shown!r} cannot be read: {one_line(error)}"
            ) from error
        # It has grown, or the system gives it out in parts.
        return content if len(content) == size else super().read(path, peek=peek)

    def ahead(self, paths: Iterable[str], *, peek: bool = False) -> Iterator[Callable[[], bytes]]:
        """See `Files.ahead`; object stores, which take long to answer, are asked for several."""
        if self._local:
            yield from super().ahead(paths, peek=peek)
            return
        pending: collections.deque[Future[bytes]] = collections.deque()
        with ThreadPoolExecutor(_READ_AHEAD) as pool:
            try:
                for path in paths:
                    pending.append(pool.submit(self.read, path, peek=peek))
                    if len(pending) == _READ_AHEAD:
                        yield pending.popleft().result
                while pending:
                    yield pending.popleft().result
            # Whoever has seen enough does not wait for the rest.
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def fingerprint(self, paths: Iterable[str]) -> str:
        """See `Files.fingerprint`.

        Returns:
            SHA-256 (hex) over the relative names, sizes and contents of the files, in place of the
            contents their checksums where the listing has them. Neither the time of a change nor
            the place of the folder matters.

        Raises:
            DatasetError: A file cannot be read.
        """
        ordered = sorted(paths)
        size = max(1, min(_HASH_BATCH, len(ordered) // _HASH_THREADS))
        batches = (ordered[start : start + size] for start in range(0, len(ordered), size))
        self.sizes()
        digest = hashlib.sha256()
        with ThreadPoolExecutor(_HASH_THREADS) as pool:
            for lines in pool.map(lambda batch: b"".join(map(self._hash, batch)), batches):
                digest.update(lines)
        return digest.hexdigest()

    def _hash(self, path: str) -> bytes:
        name = path.encode("utf-8", "surrogateescape")
        if path in self._checksums:
            return name + f"\0{self.sizes()[path]}\0{self._checksums[path]}\n".encode()
        if self.sizes().get(path, _CHUNK_BYTES) < _CHUNK_BYTES:
            whole = self.read(path)
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

    def _list(self) -> Iterator[tuple[str, int]]:
        given = f"dataset {self.shown!r}"
        if self._fs.isfile(self._root):
            self._root, name = posixpath.split(self._root)
            if name.lower().endswith(UNREAD_SUFFIXES):
                raise DatasetError(
                    f"{given} is an archive that is not unpacked here: unpack it, and give the "
                    "folder"
                )
            if not name.lower().endswith(WHOLE_SUFFIXES):
                raise DatasetError(
                    f"{given} is a file and none of {', '.join(WHOLE_SUFFIXES)}: give the folder "
                    "that it lies in"
                )
            found = self._fs.info(posixpath.join(self._root, name))
            self._note_checksum(name, found)
            yield name, int(found["size"])
        elif not self._fs.isdir(self._root):
            raise DatasetError(f"{given} does not exist: {_GIVE}")
        elif self._local:
            yield from _walk(self._root, given)
        else:
            root = self._root.rstrip("/") + "/"
            for full, found in self._fs.find(self._root, detail=True).items():
                path = full[len(root) :]
                if path and not path.endswith("/") and not is_hidden(path):
                    self._note_checksum(path, found)
                    yield path, int(found["size"])

    def _note_checksum(self, path: str, found: Mapping[str, Any]) -> None:
        for name in _CHECKSUMS:
            if not self._local and found.get(name):
                self._checksums[path] = f"{name}:{found[name]}"
                return


def _walk(root: str, given: str) -> Iterator[tuple[str, int]]:
    """Paths and sizes of the files under a local folder; links are followed."""
    # Each folder with those that it lies in, so that a link to one of them does not go on forever.
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
                    # A row that names the picture will say so.
                    if is_picture(path):
                        continue
                    raise DatasetError(
                        f"{path} in {given} is a link that leads nowhere: {one_line(error)}"
                    ) from error
                if stat.S_ISREG(found.st_mode):
                    yield path, found.st_size
                elif stat.S_ISDIR(found.st_mode) and (found.st_dev, found.st_ino) not in within:
                    folders.append((path, within))


def _open_file_system(dataset: str) -> tuple[Any, str]:
    if "://" not in dataset:
        return LocalFileSystem(), os.path.abspath(os.path.expanduser(dataset))
    try:
        return open_address(dataset)
    except SecretInAddressError as error:
        raise DatasetError(str(error)) from None
    except ImportError as error:
        raise DatasetError(
            f"dataset {dataset!r} needs another package to be opened: {one_line(error)}"
        ) from error
    except ValueError as error:
        raise DatasetError(
            f"dataset {dataset!r} is no path or URL that can be opened: {one_line(error)}; {_GIVE}"
        ) from error
