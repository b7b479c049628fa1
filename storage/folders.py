"""Folders on this machine, in a bucket, or in a model of the Hugging Face hub.

Nothing here imports TensorFlow, so that a wrong setting is reported at once.
"""

from __future__ import annotations

import abc
import contextlib
import functools
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from storage import hub
from storage.addresses import SecretInAddressError, check_address
from storage.errors import one_line
from storage.file_systems import open_address
from storage.filesystem import files_below
from storage.hashing import sha256_hex
from storage.transfer import chunks, sha256_of
from storage.user_errors import UserError

HASHES_NAME = "SHA256SUMS"


class FolderError(UserError, ValueError):
    """A folder, or a file in it, is not available or is damaged; the message is one line."""


class Folder(abc.ABC):
    """A folder, wherever it is.

    Attributes:
        address: Its address, as a user would give it, including the commit.
    """

    def __init__(self, address: str) -> None:
        self.address = address

    def __reduce__(self) -> tuple[Callable[[str], Folder], tuple[str]]:
        # Another process opens it again instead of taking over connections.
        return open_folder, (self.address,)

    @abc.abstractmethod
    def exists(self, name: str) -> bool:
        """Whether there is a file `name`, which may be a path inside the folder."""

    @abc.abstractmethod
    def names(self) -> list[str]:
        """All files below it, as relative paths; empty if its server has no listing (http)."""

    @abc.abstractmethod
    def local(self, name: str) -> contextlib.AbstractContextManager[Path]:
        """The whole file on this machine; a copy is removed when the context ends."""

    @abc.abstractmethod
    def sha256(self, name: str) -> str:
        """The file's SHA-256 (hex)."""

    def read_start(self, name: str, size: int) -> bytes:
        """The file's first `size` bytes; fewer if the file is shorter."""
        with self.local(name) as path, path.open("rb") as f:
            return f.read(size)

    def shown(self, name: str) -> str:
        """The full name of a file, for messages."""
        return f"{self.address.rstrip('/')}/{name}"

    def read_json(self, name: str) -> dict[str, Any]:
        """Reads a small JSON file; raises a `FolderError` if it does not contain an object."""
        try:
            with self.local(name) as path:
                content = json.loads(path.read_text(encoding="utf-8"))
        except (UnicodeDecodeError, json.JSONDecodeError) as error:
            raise FolderError(
                f"{self.shown(name)} is damaged, it is not JSON ({error}): fetch it again"
            ) from None
        if not isinstance(content, dict):
            raise FolderError(
                f"{self.shown(name)} is damaged, it is not a JSON object: fetch it again"
            )
        return content

    def listed_hashes(self) -> dict[str, str]:
        """The folder's own `SHA256SUMS`, as file name to hash; empty if it has none."""
        if not self.exists(HASHES_NAME):
            return {}
        with self.local(HASHES_NAME) as path:
            lines = [line.split(maxsplit=1) for line in path.read_text().splitlines()]
        # `sha256sum` marks a file read as binary with a star.
        return {
            words[1].strip().removeprefix("*").removeprefix("./"): words[0]
            for words in lines
            if len(words) == 2
        }


class LocalFolder(Folder):
    """A folder on this machine."""

    def exists(self, name: str) -> bool:
        """See `Folder`."""
        return os.path.isfile(os.path.join(self.address, name))

    def names(self) -> list[str]:
        """See `Folder`."""
        return files_below(self.address)

    @contextlib.contextmanager
    def local(self, name: str) -> Iterator[Path]:
        """See `Folder`."""
        yield Path(self.address, name)

    def sha256(self, name: str) -> str:
        """See `Folder`; reads each version of the file once."""
        return sha256_of(os.path.join(self.address, name))


class RemoteFolder(Folder):
    """A folder in a bucket, or in any other file system that fsspec opens."""

    def __init__(self, address: str) -> None:
        super().__init__(address)
        try:
            self._files, self._root = open_address(address)
        except (ImportError, ValueError) as error:
            raise FolderError(f"{address!r} cannot be opened: {one_line(error)}") from None

    def exists(self, name: str) -> bool:
        """See `Folder`."""
        with self._errors_told(name):
            return bool(self._files.isfile(self._path(name)))

    def names(self) -> list[str]:
        """See `Folder`."""
        if self.address.startswith(("http://", "https://")):
            return []
        root = f"{self._root.rstrip('/')}/"
        with self._errors_told(""):
            return sorted(path.removeprefix(root) for path in self._files.find(root))

    @contextlib.contextmanager
    def local(self, name: str) -> Iterator[Path]:
        """See `Folder`."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, os.path.basename(name))
            with self._errors_told(name), path.open("wb") as copy:
                for chunk in self._chunks(name):
                    copy.write(chunk)
            yield path

    def read_start(self, name: str, size: int) -> bytes:
        """See `Folder`; reads only these bytes."""
        with self._errors_told(name):
            return bytes(self._files.read_block(self._path(name), 0, size))

    def sha256(self, name: str) -> str:
        """See `Folder`; reads each version of the file once."""
        with self._errors_told(name):
            return _remote_sha256(self, name, self._files.ukey(self._path(name)))

    def _path(self, name: str) -> str:
        return f"{self._root.rstrip('/')}/{name}"

    def _chunks(self, name: str) -> Iterator[bytes]:
        size = self._files.size(self._path(name)) or 0
        with self._files.open(self._path(name), "rb") as f:
            yield from chunks(f, f"reading {self.shown(name)}", size)

    @contextlib.contextmanager
    def _errors_told(self, name: str) -> Iterator[None]:
        try:
            yield
        # The libraries behind fsspec raise their own exceptions.
        except Exception as error:
            detail = one_line(error)[:300]
            raise FolderError(
                f"{self.shown(name)} cannot be read ({type(error).__name__}: {detail}): check the "
                "address and your permission to read it"
            ) from error

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RemoteFolder) and other.address == self.address

    def __hash__(self) -> int:
        return hash(self.address)


class HubFolder(Folder):
    """A model of the hub, or a folder in it, at one commit."""

    def __init__(self, address: str) -> None:
        try:
            parsed = hub.parse_address(address)
            self._model = hub.HubRepo.resolve(hub.MODEL, parsed.repo_id, parsed.revision)
        except hub.HubError as error:
            raise FolderError(str(error)) from error
        super().__init__(str(parsed._replace(revision=self._model.commit)))
        self._folder = f"{parsed.folder}/" if parsed.folder else ""

    def exists(self, name: str) -> bool:
        """See `Folder`."""
        with self._errors_told():
            return f"{self._folder}{name}" in self._model.files()

    def names(self) -> list[str]:
        """See `Folder`."""
        with self._errors_told():
            paths = sorted(self._model.files())
        return [p.removeprefix(self._folder) for p in paths if p.startswith(self._folder)]

    @contextlib.contextmanager
    def local(self, name: str) -> Iterator[Path]:
        """See `Folder`; the hub's cache keeps the file."""
        with self._errors_told():
            path = self._model.fetch(f"{self._folder}{name}")
        yield path

    def sha256(self, name: str) -> str:
        """See `Folder`; fetches the file and checks it against the hub's own hash."""
        with self.local(name) as path:
            return sha256_of(path)

    @contextlib.contextmanager
    def _errors_told(self) -> Iterator[None]:
        try:
            yield
        except hub.HubError as error:
            raise FolderError(str(error)) from error


def open_folder(address: str) -> Folder:
    """Opens the folder at an address: `hf://ORG/NAME[@REVISION][/FOLDER]`, `gs://...` or a path.

    Raises:
        FolderError: The address is not valid, contains a secret, or is unknown to the hub.
    """
    try:
        check_address(address)
    except SecretInAddressError as error:
        raise FolderError(str(error)) from None
    if address.startswith(hub.SCHEME):
        return HubFolder(address)
    if "://" in address:
        return RemoteFolder(address)
    return LocalFolder(address)


@functools.lru_cache(maxsize=256)
def _remote_sha256(folder: RemoteFolder, name: str, version: str) -> str:
    return sha256_hex(folder._chunks(name))
