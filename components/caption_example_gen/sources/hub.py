"""Datasets of the Hugging Face hub, through the hub's own library.

Downloads, their resumption, the cache, offline mode, the token and most retries are the library's.
Added here: retries of the calls that it makes only once, a check of every file against the hash
that the hub gives for it, and errors that say what to do.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import os
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeVar
from urllib.parse import urlsplit

import httpx2
from huggingface_hub import (
    HfApi,
    HfFileSystem,
    constants,
    get_cached_repo_tree,
    get_hf_file_metadata,
    get_token,
    hf_hub_download,
    hf_hub_url,
    is_offline_mode,
    snapshot_download,
    try_to_load_from_cache,
)
from huggingface_hub.errors import (
    CachedRepoTreeNotFoundError,
    DisabledRepoError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    RevisionResolutionError,
)
from huggingface_hub.utils import parse_ratelimit_headers, tqdm, validate_repo_id

from components.caption_example_gen.sources.base import (
    DatasetError,
    Files,
    is_hidden,
    one_line,
)

SCHEME = "hf://"
DATASETS = f"{SCHEME}datasets/"

_DATASET = "dataset"
_CARD = "README.md"
# Nearly every repository has the first; the library warns where a pattern matches nothing.
_ALONG_WITH_THE_LIST = [".gitattributes", _CARD]
_ARCHIVE_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".zip", ".parquet")
_PASSING_STATUS = frozenset({408, 429, 500, 502, 503, 504})
_WAITS_S = (1.0, 2.0, 4.0, 4.0)
# The hub counts requests over five minutes; whoever asks for more patience is not coming back soon.
_LONGEST_WAIT_S = 310.0
_DOWNLOADS_AT_ONCE = 8
_CHUNK_BYTES = 1 << 20
# Smaller files cost less to fetch whole than to look at.
_PEEK_BYTES = 1 << 20
_GONE = {
    "lambdalabs/pokemon-blip-captions": (
        "it was taken off the hub in 2024: use lambdalabs/naruto-blip-captions or "
        "diffusers/pokemon-gpt4-captions, or give the folder of a copy of it"
    ),
}
_GIVE_TOKEN = "set HF_TOKEN (or log in with `hf auth login`)"

_log = logging.getLogger(__name__)
_Result = TypeVar("_Result")

# What the library raises, beside its own errors: writing the cache fails, or a name is no name.
_ERRORS = (
    OSError,
    httpx2.HTTPError,
    CachedRepoTreeNotFoundError,
    RevisionResolutionError,
    HFValidationError,
    UnicodeEncodeError,
)


class HubId(NamedTuple):
    """A dataset of the hub as a user names it.

    Attributes:
        repo_id: `ORG/NAME`, or `NAME` alone for a few old ones.
        revision: Branch, tag or commit; `None` for the default branch.
    """

    repo_id: str
    revision: str | None


def parse_hub_id(dataset: str) -> HubId | None:
    """Reads a dataset's name as one of the hub; asks nobody whether there is such a dataset.

    Args:
        dataset: `NAME`, `ORG/NAME` or `hf://datasets/ORG/NAME`, perhaps with `@REVISION`.

    Returns:
        What it names, or `None` where it cannot be meant for the hub.

    Raises:
        DatasetError: It starts with `hf://` and names no dataset, or lacks the revision after `@`.
    """
    explicit = dataset.startswith(SCHEME)
    repo_id, at, revision = dataset.removeprefix(DATASETS).partition("@")
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        if not explicit:
            return None
        raise DatasetError(
            f"{dataset!r} names no dataset of the hub: give hf://datasets/ORG/NAME, or "
            "hf://datasets/ORG/NAME@REVISION; a folder in it is chosen with --dataset-config"
        ) from error
    if not explicit and repo_id.lower().endswith(_ARCHIVE_SUFFIXES):
        return None
    if at and not revision:
        raise DatasetError(
            f"dataset {dataset!r} ends with @: give a branch, tag or commit after it, or drop it"
        )
    return HubId(repo_id, revision or None)


class HubFiles(Files):
    """The files of a dataset of the hub at one commit.

    Attributes:
        repo_id: The dataset.
        commit: The commit, 40 hexadecimal digits.
    """

    def __init__(self, repo_id: str, commit: str) -> None:
        """Names the files; asks the hub for nothing yet."""
        super().__init__(f"{repo_id}@{commit[:8]}")
        self.repo_id = repo_id
        self.commit = commit
        self._sizes: dict[str, int] | None = None
        self._checked: set[tuple[str, int, int]] = set()

    @classmethod
    def resolve(cls, repo_id: str, revision: str | None = None) -> HubFiles:
        """Finds the commit that a revision stands for now.

        In offline mode, the commit that it stood for when the hub was last asked.

        Args:
            repo_id: The dataset.
            revision: Branch, tag or commit; `None` for the default branch.

        Raises:
            DatasetError: There is no such dataset or revision, it may not be read, or the hub
                cannot be reached.
        """
        try:
            resolved = _Api().resolve_revision(repo_id, repo_type=_DATASET, revision=revision)
        except _ERRORS as error:
            raise _explained(error, repo_id, revision) from error
        return cls(repo_id, resolved.resolved)

    def sizes(self) -> Mapping[str, int]:
        """See `Files.sizes`.

        The list is kept in the hub's cache, so that a dataset of which only a part is there is an
        error in offline mode, and not a smaller dataset.
        """
        if self._sizes is None:
            with self._errors_explained():
                try:
                    tree = self._cached_tree()
                except CachedRepoTreeNotFoundError:
                    _patiently(
                        lambda: snapshot_download(
                            self.repo_id,
                            repo_type=_DATASET,
                            revision=self.commit,
                            allow_patterns=_ALONG_WITH_THE_LIST,
                            tqdm_class=_NoBar,
                        )
                    )
                    tree = self._cached_tree()
            self._sizes = {path: tree[path] for path in sorted(tree) if not is_hidden(path)}
        return self._sizes

    def open(self, path: str) -> BinaryIO:
        """Opens a file, fetched whole and checked against the hub's hash; see `Files.open`."""
        return _open(self._fetched(path), path, self.shown)

    def peek(self, path: str) -> BinaryIO:
        """Opens a file to look at parts of it: unchecked, and where it lies; see `Files.peek`."""
        size = self._size(path)
        cached = try_to_load_from_cache(
            self.repo_id, path, revision=self.commit, repo_type=_DATASET
        )
        if isinstance(cached, str):
            return _open(Path(cached), path, self.shown)
        # HfFileSystem knows no names without an organisation.
        if size <= _PEEK_BYTES or "/" not in self.repo_id or is_offline_mode():
            return self.open(path)
        return io.BufferedReader(_RemoteFile(self, path, size), _CHUNK_BYTES)

    def fetch(self, paths: Iterable[str]) -> None:
        """Fetches and checks files, several at a time; see `Files.fetch`."""
        wanted = sorted(set(paths))
        missing = sum(
            self._size(path)
            for path in wanted
            if not isinstance(
                try_to_load_from_cache(
                    self.repo_id, path, revision=self.commit, repo_type=_DATASET
                ),
                str,
            )
        )
        with (
            tqdm(
                desc=f"Fetching {self.repo_id}",
                total=missing,
                unit="B",
                unit_scale=True,
                disable=None if missing else True,
            ) as bar,
            ThreadPoolExecutor(_DOWNLOADS_AT_ONCE) as pool,
        ):
            part = _part_of(bar)
            pending = [pool.submit(self._fetched, path, part) for path in wanted]
            try:
                for done in as_completed(pending):
                    done.result()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def fingerprint(self, paths: Iterable[str]) -> str:
        """SHA-256 (hex) of the dataset's name and commit, which stand for every file in it."""
        return hashlib.sha256(f"{DATASETS}{self.repo_id}@{self.commit}".encode()).hexdigest()

    def _cached_tree(self) -> dict[str, int]:
        tree = get_cached_repo_tree(self.repo_id, repo_type=_DATASET, revision=self.commit)
        return {file.path: file.size for file in tree}

    def _size(self, path: str) -> int:
        try:
            return self.sizes()[path]
        except KeyError:
            raise FileNotFoundError(f"there is no {path!r} in dataset {self.shown!r}") from None

    def _fetched(self, path: str, bar: type | None = None) -> Path:
        """The file in the hub's cache, checked."""
        size = self._size(path)
        problem = ""
        for _ in range(2):
            with self._errors_explained(path):
                try:
                    local = Path(_patiently(lambda: self._download(path, bar)))
                except OSError as error:
                    # So the library says that a file is longer or shorter than the hub told it.
                    if type(error) is not OSError or error.errno is not None:
                        raise
                    problem = one_line(error)
                    continue
                stat = local.stat()
                version = (path, stat.st_ino, stat.st_mtime_ns)
                if version not in self._checked:
                    problem = self._problem(path, local, size)
                    if problem:
                        _log.warning(
                            "%s of dataset %s is damaged and is fetched anew: %s",
                            path,
                            self.shown,
                            problem,
                        )
                        _remove(local)
                        continue
                    self._checked.add(version)
                return local
        raise DatasetError(
            f"{path} of dataset {self.shown!r} arrived damaged twice: {problem}; nothing of it was "
            "kept: try again later, or tell the dataset's owner"
        )

    def _download(self, path: str, bar: type | None) -> str:
        kind: Any = bar
        local: str = hf_hub_download(
            self.repo_id, path, repo_type=_DATASET, revision=self.commit, tqdm_class=kind
        )
        return local

    def _problem(self, path: str, local: Path, size: int) -> str:
        """How a file in the cache differs from what the hub says of it; "" where it does not."""
        found = local.stat().st_size
        if found != size:
            return f"it has {found} bytes in place of {size}"
        etag = self._etag(path, local)
        actual = _hash_like(etag, local, size)
        if actual in ("", etag):
            return ""
        return f"its hash is {actual} in place of {etag}"

    def _etag(self, path: str, local: Path) -> str:
        """The hash that the hub gave for a file in the cache; "" where that cannot be known."""
        if local.is_symlink():
            # The library keeps a file under the name of its ETag, and links to it.
            return Path(os.readlink(local)).name
        if is_offline_mode():
            return ""
        url = hf_hub_url(self.repo_id, path, repo_type=_DATASET, revision=self.commit)
        return get_hf_file_metadata(url, retry_on_errors=True).etag or ""

    @contextlib.contextmanager
    def _errors_explained(self, path: str = "") -> Iterator[None]:
        try:
            yield
        except _ERRORS as error:
            raise _explained(error, self.repo_id, self.commit, path=path) from error


class _Api(HfApi):
    """The library's client, whose question for a dataset is retried.

    Where the hub does not answer, the library falls back to the commit that it last saw; then a
    branch that has moved would go unnoticed. Only offline mode may do that.
    """

    def repo_info(self, repo_id: str, *args: Any, **kwargs: Any) -> Any:
        kwargs.setdefault("timeout", constants.HF_HUB_ETAG_TIMEOUT)
        try:
            return _patiently(lambda: super(_Api, self).repo_info(repo_id, *args, **kwargs))
        except (HfHubHTTPError, httpx2.TransportError) as error:
            if isinstance(error, HfHubHTTPError) and error.response.status_code < 500:
                raise
            raise _explained(error, repo_id, kwargs.get("revision")) from error


class _NoBar(tqdm):
    """No progress bar: listing a dataset is a matter of a moment."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "disable": True})


class _RemoteFile(io.RawIOBase):
    """A file read by ranges from the hub, with errors that say what happened."""

    def __init__(self, files: HubFiles, path: str, size: int) -> None:
        super().__init__()
        self._files = files
        self._path = path
        self._remote: Any = None
        url = f"datasets/{files.repo_id}@{files.commit}/{path}"
        with files._errors_explained(path):
            self._remote = _patiently(
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
        with self._files._errors_explained(self._path):
            content = self._remote.read(len(buffer))
        buffer[: len(content)] = content
        return len(content)

    def close(self) -> None:
        if not self.closed and self._remote is not None:
            self._remote.close()
        super().close()


def _patiently(call: Callable[[], _Result]) -> _Result:
    """Makes a call, again and again while what it fails of may pass.

    The library retries most requests itself, but not the first one for a dataset, nor a download
    that is answered by an error 5xx or whose connection is reset.
    """
    for wait_s in _WAITS_S:
        try:
            return call()
        except (HfHubHTTPError, httpx2.TransportError) as error:
            asked_s = _asked_wait_s(error)
            pause_s = wait_s if asked_s is None else asked_s
            if not _may_pass(error) or pause_s > _LONGEST_WAIT_S:
                raise
            _log.warning("%s; trying again in %g s", _shortly(error), pause_s)
        time.sleep(pause_s)
    return call()


def _may_pass(error: Exception) -> bool:
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code in _PASSING_STATUS
    return isinstance(
        error, (httpx2.TimeoutException, httpx2.NetworkError, httpx2.RemoteProtocolError)
    )


def _asked_wait_s(error: Exception) -> float | None:
    """How long the hub asks to wait, if it does."""
    if not isinstance(error, HfHubHTTPError):
        return None
    limit = parse_ratelimit_headers(error.response.headers)
    if error.response.status_code == 429 and limit is not None and limit.remaining == 0:
        return limit.reset_in_seconds + 1.0
    asked = error.response.headers.get("Retry-After", "")
    return float(asked) if re.fullmatch(r"\d+", asked) else None


def _explained(
    error: Exception, repo_id: str, revision: str | None, *, path: str = ""
) -> DatasetError:
    """The library's error as one line that says what it is and what to do.

    The library's own messages are not repeated: they are long, and hold addresses that may be
    signed.
    """
    cause: BaseException = error
    while (
        isinstance(cause, (LocalEntryNotFoundError, RevisionResolutionError))
        and cause.__cause__ is not None
    ):
        cause = cause.__cause__
    what = f"dataset {repo_id!r}" + (f" at revision {revision!r}" if revision else "")
    part = f"{path!r} of {what}" if path else what
    return DatasetError(_explanation(cause, repo_id, revision, what, part))


def _explanation(
    cause: BaseException, repo_id: str, revision: str | None, what: str, part: str
) -> str:
    missing = (CachedRepoTreeNotFoundError, LocalEntryNotFoundError, RevisionResolutionError)
    if isinstance(cause, OfflineModeIsEnabled) or (
        is_offline_mode() and isinstance(cause, missing)
    ):
        return (
            f"{part} is not in the hub's cache ({constants.HF_HUB_CACHE}), and HF_HUB_OFFLINE "
            "forbids to fetch it: unset that, or fetch the whole dataset once where the hub can be "
            "reached"
        )
    if isinstance(cause, RevisionNotFoundError):
        return (
            f"dataset {repo_id!r} has no revision {revision or constants.DEFAULT_REVISION!r}: "
            f"{_revisions(repo_id)}"
        )
    if isinstance(cause, RemoteEntryNotFoundError):
        return f"{part} is listed, but is not on the hub: tell the dataset's owner"
    if isinstance(cause, HfHubHTTPError):
        return _explained_status(cause, repo_id, part)
    if isinstance(cause, (httpx2.LocalProtocolError, UnicodeEncodeError)):
        return (
            f"{part} cannot be asked for: the token in HF_TOKEN has characters that no token has; "
            "copy it again"
        )
    if isinstance(cause, httpx2.TransportError):
        return (
            f"{part} cannot be fetched, the hub at {_endpoint()} cannot be reached "
            f"({_shortly(cause)}): check the connection (and HF_ENDPOINT), or set HF_HUB_OFFLINE=1 "
            "to use what is in the cache"
        )
    if isinstance(cause, HFValidationError):
        return f"{repo_id!r} is no name that the hub knows: {one_line(cause)}"
    return f"{part} cannot be brought into the hub's cache: {one_line(cause)}"


def _explained_status(error: HfHubHTTPError, repo_id: str, part: str) -> str:
    status = error.response.status_code
    page = f"{_endpoint()}/datasets/{repo_id}"
    has_token = get_token() is not None
    if isinstance(error, GatedRepoError):
        token = (
            "with the account that the token in HF_TOKEN belongs to"
            if has_token
            else f"and {_GIVE_TOKEN} to a token of that account"
        )
        return f"{part} is gated: accept its terms on {page} {token}"
    if status == 401 and "credentials" in (error.server_message or "").lower():
        return f"{part} cannot be read: the hub does not accept the token in HF_TOKEN; renew it"
    gone = f"; {_GONE[repo_id]}" if repo_id in _GONE else ""
    if isinstance(error, DisabledRepoError) or status in (410, 451):
        return f"{part} has been disabled on the hub" + (gone or "; use another one, or a copy")
    if isinstance(error, RepositoryNotFoundError) or status in (401, 404):
        if has_token:
            return (
                f"{part} is not on the hub, or is private and the token in HF_TOKEN may not read "
                f"it: check the name and the token's rights" + gone
            )
        return (
            f"{part} is not on the hub, or is private: check the name; if it is private, "
            f"{_GIVE_TOKEN} to a token that may read it" + gone
        )
    if status == 403:
        return (
            f"{part} may not be read with the token in HF_TOKEN: give the token the right to read "
            f"it, or ask its owner{gone}"
            if has_token
            else f"{part} may not be read without a token: {_GIVE_TOKEN}{gone}"
        )
    if status == 429:
        mend = "wait a few minutes" if has_token else f"wait a few minutes, or {_GIVE_TOKEN}"
        return f"{part} cannot be fetched, the hub asks for fewer requests (429): {mend}"
    later = "try again later" if status >= 500 else "see the page " + page
    return f"{part} cannot be fetched: {_shortly(error)}; {later}"


def _revisions(repo_id: str) -> str:
    """What a user could have meant, in words."""
    try:
        refs = _patiently(lambda: HfApi().list_repo_refs(repo_id, repo_type=_DATASET))
    except _ERRORS:
        return "give a branch, tag or commit after @"
    names = [ref.name for ref in (*refs.branches, *refs.tags)]
    names += [ref.ref for ref in refs.converts]
    return f"give one of {', '.join(map(repr, names))}, or a commit, after @"


def _shortly(error: BaseException) -> str:
    if isinstance(error, HfHubHTTPError):
        return f"the hub answered {error.response.status_code}"
    return f"{type(error).__name__}: {one_line(error)}"


def _endpoint() -> str:
    """The hub's address, without a password that may stand in it."""
    parts = urlsplit(constants.ENDPOINT)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def _open(local: Path, path: str, shown: str) -> BinaryIO:
    try:
        return local.open("rb")
    except OSError as error:
        raise DatasetError(
            f"{path} of dataset {shown!r} cannot be read from the hub's cache: {one_line(error)}"
        ) from error


def _hash_like(etag: str, local: Path, size: int) -> str:
    """A file's hash of the kind that an ETag is; "" where it is none that the hub gives."""
    if re.fullmatch(r"[0-9a-f]{64}", etag):
        digest = hashlib.sha256()
    elif re.fullmatch(r"[0-9a-f]{40}", etag):
        digest = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    else:
        return ""
    with local.open("rb") as f:
        while chunk := f.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _remove(local: Path) -> None:
    """Takes a file out of the cache: what a snapshot links to, and the link."""
    links = [local]
    while links[-1].is_symlink():
        links.append(links[-1].parent / os.readlink(links[-1]))
    for link in links:
        link.unlink(missing_ok=True)


def _part_of(bar: tqdm) -> type:
    """A class that the library takes for a progress bar of one file, and that moves `bar`."""
    lock = threading.Lock()

    class Part:
        def __init__(self, *_args: Any, **_kwargs: Any) -> None:
            pass

        def __enter__(self) -> Part:
            return self

        def __exit__(self, *_error: object) -> None:
            pass

        def update(self, n: float | None = 1) -> None:
            with lock:
                bar.update(n or 0)

        def update_transfer(self, n: float | None = 1) -> None:
            pass

        def set_postfix_str(self, *_args: Any, **_kwargs: Any) -> None:
            pass

        def set_transfer_postfix_str(self, *_args: Any, **_kwargs: Any) -> None:
            pass

        def close(self) -> None:
            pass

    return Part
