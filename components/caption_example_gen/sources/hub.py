"""Datasets of the Hugging Face hub: their names and their files."""

from __future__ import annotations

import contextlib
import hashlib
import io
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from huggingface_hub import HfFileSystem, is_offline_mode
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from components.caption_example_gen.sources.base import (
    DatasetError,
    Files,
    is_hidden,
)
from components.caption_example_gen.sources.files import UNREAD_SUFFIXES, WHOLE_SUFFIXES
from storage.errors import one_line
from storage.hub import SCHEME, HubError, HubRepo, RepoKind, patiently
from storage.transfer import ByteProgress

DATASETS = f"{SCHEME}datasets/"

_DATASET = RepoKind(
    name="dataset",
    path="datasets/",
    along_with_the_list=(".gitattributes", "README.md"),
    gone={
        "lambdalabs/pokemon-blip-captions": (
            "it was removed from the hub in 2024: use lambdalabs/naruto-blip-captions or "
            "diffusers/pokemon-gpt4-captions, or give the folder of a copy"
        ),
    },
)
_DOWNLOADS_AT_ONCE = 8
_CHUNK_BYTES = 1 << 20
# Smaller files are cheaper to fetch whole than to read in parts.
_PEEK_BYTES = 1 << 20


class HubId(NamedTuple):
    """A dataset of the hub, as the user names it.

    Attributes:
        repo_id: `ORG/NAME`, or `NAME` alone for a few old ones.
        revision: Branch, tag or commit; `None` for the default branch.
    """

    repo_id: str
    revision: str | None


def parse_hub_id(dataset: str) -> HubId | None:
    """Parses the name of a dataset on the hub, without checking that it exists.

    Args:
        dataset: `NAME`, `ORG/NAME` or `hf://datasets/ORG/NAME`, perhaps with `@REVISION`.

    Returns:
        The dataset, or `None` if the name cannot be on the hub.

    Raises:
        DatasetError: The name starts with `hf://` but does not name a dataset, or lacks the
            revision after `@`.
    """
    explicit = dataset.startswith(SCHEME)
    repo_id, at, revision = dataset.removeprefix(DATASETS).partition("@")
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        if not explicit:
            return None
        raise DatasetError(
            f"{dataset!r} does not name a dataset on the hub: give hf://datasets/ORG/NAME or "
            "hf://datasets/ORG/NAME@REVISION; choose a folder in it with --dataset-config"
        ) from error
    if not explicit and repo_id.lower().endswith((*WHOLE_SUFFIXES, *UNREAD_SUFFIXES)):
        return None
    if at and not revision:
        raise DatasetError(
            f"dataset {dataset!r} ends with @: add a branch, tag or commit after it, or remove it"
        )
    return HubId(repo_id, revision or None)


class HubFiles(Files):
    """The files of a dataset of the hub at one commit.

    Attributes:
        repo_id: The dataset.
        commit: The commit, 40 hexadecimal digits.
    """

    def __init__(self, repo_id: str, commit: str) -> None:
        """Sets the name and commit; does not contact the hub yet."""
        super().__init__(f"{repo_id}@{commit[:8]}")
        self.repo_id = repo_id
        self.commit = commit
        self._repo = HubRepo(_DATASET, repo_id, commit)
        self._sizes: dict[str, int] | None = None

    @classmethod
    def resolve(cls, repo_id: str, revision: str | None = None) -> HubFiles:
        """Finds the commit that a revision currently stands for.

        In offline mode, this is the commit at the last contact with the hub.

        Args:
            repo_id: The dataset.
            revision: Branch, tag or commit; `None` for the default branch.

        Raises:
            DatasetError: The dataset or revision does not exist, access is denied, or the hub
                cannot be reached.
        """
        with _errors_told():
            return cls(repo_id, HubRepo.resolve(_DATASET, repo_id, revision).commit)

    def sizes(self) -> Mapping[str, int]:
        """See `Files.sizes`."""
        if self._sizes is None:
            with _errors_told():
                files = self._repo.files()
            self._sizes = {path: files[path] for path in sorted(files) if not is_hidden(path)}
        return self._sizes

    def open(self, path: str) -> BinaryIO:
        """Opens a file, fetched whole and checked against the hub's hash; see `Files.open`."""
        return _open(self._fetched(path), path, self.shown)

    def peek(self, path: str) -> BinaryIO:
        """Opens a file to read parts of it, remotely and unchecked; see `Files.peek`."""
        size = self._size(path)
        cached = self._repo.cached(path)
        if cached is not None:
            return _open(cached, path, self.shown)
        # HfFileSystem does not accept names without an organisation.
        if size <= _PEEK_BYTES or "/" not in self.repo_id or is_offline_mode():
            return self.open(path)
        return io.BufferedReader(_RemoteFile(self._repo, path, size), _CHUNK_BYTES)

    def fetch(self, paths: Iterable[str]) -> None:
        """Fetches and checks files, several at a time; see `Files.fetch`."""
        wanted = sorted(set(paths))
        missing = sum(self._size(path) for path in wanted if self._repo.cached(path) is None)
        with (
            ByteProgress(f"fetching {self.repo_id}", missing) as progress,
            ThreadPoolExecutor(_DOWNLOADS_AT_ONCE) as pool,
        ):
            pending = [pool.submit(self._fetched, path, progress) for path in wanted]
            try:
                for done in as_completed(pending):
                    done.result()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def fingerprint(self, paths: Iterable[str]) -> str:
        """SHA-256 (hex) of the dataset's name and commit, which identify every file in it."""
        return hashlib.sha256(f"{DATASETS}{self.repo_id}@{self.commit}".encode()).hexdigest()

    def _size(self, path: str) -> int:
        try:
            return self.sizes()[path]
        except KeyError:
            raise FileNotFoundError(f"there is no {path!r} in dataset {self.shown!r}") from None

    def _fetched(self, path: str, progress: ByteProgress | None = None) -> Path:
        """The file in the hub's cache, checked."""
        self._size(path)
        with _errors_told():
            return self._repo.fetch(path, progress)


class _RemoteFile(io.RawIOBase):
    """A file read by ranges from the hub, with errors that explain what happened."""

    def __init__(self, repo: HubRepo, path: str, size: int) -> None:
        super().__init__()
        self._repo = repo
        self._path = path
        self._remote: Any = None
        url = f"datasets/{repo.repo_id}@{repo.commit}/{path}"
        with self._errors_explained():
            self._remote = patiently(
                lambda: HfFileSystem().open(url, "rb", block_size=_CHUNK_BYTES, size=size)
            )

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        position: int = self._remote.seek(offset, whence)
        return position

    def tell(self) -> int:
        position: int = self._remote.tell()
        return position

    def readinto(self, buffer: Any) -> int:
        with self._errors_explained():
            content = self._remote.read(len(buffer))
        buffer[: len(content)] = content
        return len(content)

    def close(self) -> None:
        if not self.closed and self._remote is not None:
            self._remote.close()
        super().close()

    @contextlib.contextmanager
    def _errors_explained(self) -> Iterator[None]:
        with _errors_told(), self._repo.errors_explained(self._path):
            yield


@contextlib.contextmanager
def _errors_told() -> Iterator[None]:
    try:
        yield
    except HubError as error:
        raise DatasetError(str(error)) from error


def _open(local: Path, path: str, shown: str) -> BinaryIO:
    try:
        return local.open("rb")
    except OSError as error:
        raise DatasetError(
            f"{path} of dataset {shown!r} cannot be read from the hub's cache: {one_line(error)}"
        ) from error
