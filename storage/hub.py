"""The Hugging Face hub's models and datasets, through the hub's own library.

The library handles downloads and their resumption, the cache, offline mode, the token and most
retries. This module adds retries for calls that the library makes only once, a check of every file
against the hash from the hub, progress, and one-line errors that say what to do.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import logging
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from urllib.parse import quote, unquote, urlsplit

import httpx2
from huggingface_hub import (
    HfApi,
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

from storage.errors import one_line
from storage.transfer import ByteProgress, sha256_of
from storage.user_errors import UserError

SCHEME = "hf://"

_ADDRESS = re.compile(
    r"hf://(?P<repo_id>[^/@]+/[^/@]+)"
    r"(?:@(?P<revision>refs/(?:pr|convert)/[^/]+|[^/]+))?"
    r"(?:/(?P<folder>.*))?"
)
_PASSING_STATUS = frozenset({408, 429, 500, 502, 503, 504})
_WAITS_S = (1.0, 2.0, 4.0, 4.0)
# The hub counts requests over five minutes; a longer requested wait means a longer outage.
_LONGEST_WAIT_S = 310.0
_GIVE_TOKEN = "set HF_TOKEN (or log in with `hf auth login`)"

logger = logging.getLogger(__name__)
_Result = TypeVar("_Result")


class HubError(UserError, ValueError):
    """The hub does not provide what was requested; the message is one line."""


class _NoAnswerError(Exception):
    """Hides from the library that the hub does not answer; the cause is the original error."""


# What the library raises: its own errors, a cache that cannot be written, names that are not valid.
_ERRORS = (
    OSError,
    httpx2.HTTPError,
    CachedRepoTreeNotFoundError,
    RevisionResolutionError,
    HFValidationError,
    UnicodeEncodeError,
    _NoAnswerError,
)


@dataclasses.dataclass(frozen=True)
class RepoKind:
    """A kind of repository on the hub.

    Attributes:
        name: The library's name for it.
        path: The part before the name of a repository in the address of its page.
        along_with_the_list: Names of small files, one of which nearly every repository has: when
            the library fetches some files, it keeps the list of all files.
        part_is_enough: Whether, in offline mode and without that list, the files in the cache
            count as all files.
        gone: Repositories that are no longer on the hub, and what to use instead.
    """

    name: str
    path: str
    along_with_the_list: tuple[str, ...]
    part_is_enough: bool = False
    gone: Mapping[str, str] = dataclasses.field(default_factory=dict)


MODEL = RepoKind(
    name="model",
    path="",
    along_with_the_list=(".gitattributes", "README.md", "model_index.json"),
    part_is_enough=True,
)


class HubAddress(NamedTuple):
    """A folder of a model on the hub.

    Attributes:
        repo_id: `ORG/NAME`.
        revision: Branch, tag or commit; `None` for the default branch.
        folder: Folder in it; "" for the whole model.
    """

    repo_id: str
    revision: str | None
    folder: str

    def __str__(self) -> str:
        revision = "" if self.revision is None else f"@{quote(self.revision, safe='')}"
        return f"{SCHEME}{self.repo_id}{revision}" + (f"/{self.folder}" if self.folder else "")


def parse_address(address: str) -> HubAddress:
    """Parses `hf://ORG/NAME[@REVISION][/FOLDER]`; does not check whether the model exists.

    Raises:
        HubError: The address does not have this form.
    """
    match = _ADDRESS.fullmatch(address)
    try:
        if match is None or match["repo_id"].startswith(("datasets/", "spaces/")):
            raise HFValidationError
        validate_repo_id(match["repo_id"])
    except HFValidationError:
        raise HubError(
            f"{address!r} is not the address of a model on the hub: give hf://ORG/NAME, followed "
            "by @REVISION or /FOLDER if needed"
        ) from None
    revision = match["revision"]
    return HubAddress(
        match["repo_id"],
        None if revision is None else unquote(revision),
        (match["folder"] or "").strip("/"),
    )


class HubRepo:
    """The files of a repository at one commit.

    Attributes:
        kind: Its kind.
        repo_id: `ORG/NAME`, or only `NAME` for a few old repositories.
        commit: 40 hexadecimal digits.
    """

    def __init__(self, kind: RepoKind, repo_id: str, commit: str) -> None:
        """Names the files; does not contact the hub yet."""
        self.kind = kind
        self.repo_id = repo_id
        self.commit = commit
        self._listed: Mapping[str, int] | None = None
        self._checked: set[tuple[str, int, int]] = set()

    @classmethod
    def resolve(cls, kind: RepoKind, repo_id: str, revision: str | None = None) -> HubRepo:
        """Finds the commit of a revision: the current one, or in offline mode the last known one.

        A commit stands for itself, without a request to the hub.

        Args:
            kind: The kind of repository.
            repo_id: Its name.
            revision: Branch, tag or commit; `None` for the default branch.

        Raises:
            HubError: There is no such repository or revision, it may not be read, or the hub
                cannot be reached.
        """
        try:
            found = _Api().resolve_revision(repo_id, repo_type=kind.name, revision=revision)
        except _ERRORS as error:
            raise _explained(error, kind, repo_id, revision) from error
        return cls(kind, repo_id, str(found.resolved))

    def files(self) -> Mapping[str, int]:
        """Path and size in bytes of every file of the commit.

        The list is kept in the hub's cache, so that in offline mode a partly cached repository does
        not look smaller than it is.

        Raises:
            HubError: The list is not available.
        """
        if self._listed is None:
            with self.errors_explained():
                self._listed = self._list()
        return self._listed

    def cached(self, path: str) -> Path | None:
        """A file in the hub's cache, unchecked; `None` if it is not there."""
        local = try_to_load_from_cache(
            self.repo_id, path, revision=self.commit, repo_type=self.kind.name
        )
        return Path(local) if isinstance(local, str) else None

    def fetch(self, path: str, progress: ByteProgress | None = None) -> Path:
        """Returns a checked file in the hub's cache; fetches it if it is not there.

        Args:
            path: One of `files()`.
            progress: Counts the bytes that arrive; `None` for a separate progress of this file.

        Raises:
            HubError: The file is not available, or arrived damaged twice.
        """
        for _ in range(2):
            with self.errors_explained(path):
                try:
                    local = self._in_cache(path, progress)
                except OSError as error:
                    # The library's error for a file that is longer or shorter than announced.
                    if type(error) is not OSError or error.errno is not None:
                        raise
                    problem = one_line(error)
                    continue
            stat = local.stat()
            version = (path, stat.st_ino, stat.st_mtime_ns)
            if version in self._checked:
                return local
            with self.errors_explained(path):
                problem = self._problem(path, local, stat.st_size)
            if not problem:
                self._checked.add(version)
                return local
            if is_offline_mode():
                raise HubError(
                    f"{path} of {self._shown()} is damaged in the hub's cache: {problem}; "
                    "HF_HUB_OFFLINE forbids fetching it again: unset it"
                )
            logger.warning(
                "%s of %s is damaged and is fetched again: %s", path, self._shown(), problem
            )
            _remove(local)
        raise HubError(
            f"{path} of {self._shown()} arrived damaged twice: {problem}; it was not kept: "
            f"try again later, or tell the {self.kind.name}'s owner"
        )

    @contextlib.contextmanager
    def errors_explained(self, path: str = "") -> Iterator[None]:
        """Turns errors from the library about a file or the repository into a `HubError`."""
        try:
            yield
        except _ERRORS as error:
            raise _explained(error, self.kind, self.repo_id, self.commit, path) from error

    def _shown(self) -> str:
        return f"{self.kind.name} {f'{self.repo_id}@{self.commit[:8]}'!r}"

    def _list(self) -> Mapping[str, int]:
        with contextlib.suppress(CachedRepoTreeNotFoundError):
            return self._cached_tree()
        folder = patiently(
            lambda: snapshot_download(
                self.repo_id,
                repo_type=self.kind.name,
                revision=self.commit,
                allow_patterns=list(self.kind.along_with_the_list),
                tqdm_class=_NoBar,
            )
        )
        if is_offline_mode() and self.kind.part_is_enough:
            return {
                path.relative_to(folder).as_posix(): path.stat().st_size
                for path in sorted(Path(folder).rglob("*"))
                if path.is_file()
            }
        return self._cached_tree()

    def _cached_tree(self) -> Mapping[str, int]:
        # The library does not return the hashes of large files that it keeps there.
        tree = get_cached_repo_tree(self.repo_id, repo_type=self.kind.name, revision=self.commit)
        return {file.path: file.size for file in tree}

    def _in_cache(self, path: str, progress: ByteProgress | None) -> Path:
        local = self.cached(path)
        if local is not None:
            return local
        with contextlib.ExitStack() as stack:
            if progress is None:
                what = f"fetching {self.repo_id}/{path}"
                progress = stack.enter_context(ByteProgress(what, self.files()[path]))
            part: Any = _part_of(progress)
            return Path(
                patiently(
                    lambda: hf_hub_download(
                        self.repo_id,
                        path,
                        repo_type=self.kind.name,
                        revision=self.commit,
                        tqdm_class=part,
                    )
                )
            )

    def _problem(self, path: str, local: Path, size: int) -> str:
        """How a file in the cache differs from the hub's file; "" if it does not."""
        listed = self.files()[path]
        if size != listed:
            return f"it has {size} bytes instead of {listed}"
        etag = self._etag(path, local)
        actual = _hash_like(etag, local, size)
        if actual in ("", etag):
            return ""
        return f"its hash is {actual} instead of {etag}"

    def _etag(self, path: str, local: Path) -> str:
        """The hub's hash of a file in the cache; "" if it cannot be known."""
        if local.is_symlink():
            # The library stores a file under its ETag as name, and links to it.
            return Path(os.readlink(local)).name
        if is_offline_mode():
            return ""
        url = hf_hub_url(self.repo_id, path, repo_type=self.kind.name, revision=self.commit)
        return get_hf_file_metadata(url, retry_on_errors=True).etag or ""


def patiently(call: Callable[[], _Result]) -> _Result:
    """Makes a call, and repeats it while the failure may be temporary.

    The library retries most requests itself, but not the first request for a repository, nor a
    download that gets an error 5xx or whose connection is reset.
    """
    for wait_s in _WAITS_S:
        try:
            return call()
        except (HfHubHTTPError, httpx2.TransportError) as error:
            asked_s = _asked_wait_s(error)
            pause_s = wait_s if asked_s is None else asked_s
            if not _may_pass(error) or pause_s > _LONGEST_WAIT_S:
                raise
            logger.warning("%s; trying again in %g s", _shortly(error), pause_s)
        time.sleep(pause_s)
    return call()


class _Api(HfApi):
    """The library's client, which also retries the request for a repository.

    If the hub does not answer, the library falls back to the last commit that it saw, and a branch
    that has moved would go unnoticed. Only offline mode may do that.
    """

    def repo_info(self, repo_id: str, *args: Any, **kwargs: Any) -> Any:
        kwargs.setdefault("timeout", constants.HF_HUB_ETAG_TIMEOUT)
        try:
            return patiently(lambda: super(_Api, self).repo_info(repo_id, *args, **kwargs))
        except (HfHubHTTPError, httpx2.TransportError) as error:
            if isinstance(error, HfHubHTTPError) and error.response.status_code < 500:
                raise
            raise _NoAnswerError from error


class _NoBar(tqdm):
    """No progress bar: listing a repository takes only a moment."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "disable": True})


def _may_pass(error: Exception) -> bool:
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code in _PASSING_STATUS
    return isinstance(
        error, (httpx2.TimeoutException, httpx2.NetworkError, httpx2.RemoteProtocolError)
    )


def _asked_wait_s(error: Exception) -> float | None:
    """How long the hub asks to wait; `None` if it does not."""
    if not isinstance(error, HfHubHTTPError):
        return None
    limit = parse_ratelimit_headers(error.response.headers)
    if error.response.status_code == 429 and limit is not None and limit.remaining == 0:
        return limit.reset_in_seconds + 1.0
    asked = error.response.headers.get("Retry-After", "")
    return float(asked) if re.fullmatch(r"\d+", asked) else None


def _explained(
    error: Exception, kind: RepoKind, repo_id: str, revision: str | None, path: str = ""
) -> HubError:
    """Turns an error of the library into one line that says what is wrong and what to do.

    The library's own messages are not repeated: they are long, and contain addresses that may be
    signed.
    """
    cause: BaseException = error
    wrappers = (LocalEntryNotFoundError, RevisionResolutionError, _NoAnswerError)
    while isinstance(cause, wrappers) and cause.__cause__ is not None:
        cause = cause.__cause__
    what = f"{kind.name} {repo_id!r}" + (f" at revision {revision!r}" if revision else "")
    part = f"{path!r} of {what}" if path else what
    return HubError(_explanation(cause, kind, repo_id, revision, part))


def _explanation(
    cause: BaseException, kind: RepoKind, repo_id: str, revision: str | None, part: str
) -> str:
    missing = (CachedRepoTreeNotFoundError, LocalEntryNotFoundError, RevisionResolutionError)
    if isinstance(cause, OfflineModeIsEnabled) or (
        is_offline_mode() and isinstance(cause, missing)
    ):
        return (
            f"{part} is not in the hub's cache ({constants.HF_HUB_CACHE}), and HF_HUB_OFFLINE "
            f"forbids fetching it: unset it, or fetch the whole {kind.name} once while the hub can "
            "be reached"
        )
    if isinstance(cause, RevisionNotFoundError):
        return (
            f"{kind.name} {repo_id!r} has no revision "
            f"{revision or constants.DEFAULT_REVISION!r}: {_revisions(kind, repo_id)}"
        )
    if isinstance(cause, RemoteEntryNotFoundError):
        return f"{part} is listed, but is not on the hub: tell the {kind.name}'s owner"
    if isinstance(cause, HfHubHTTPError):
        return _explained_status(cause, kind, repo_id, part)
    if isinstance(cause, (httpx2.LocalProtocolError, UnicodeEncodeError)):
        return (
            f"{part} cannot be requested: the token in HF_TOKEN contains characters that are not "
            "allowed in a token; copy it again"
        )
    if isinstance(cause, httpx2.TransportError):
        return (
            f"{part} cannot be fetched, the hub at {_endpoint()} cannot be reached "
            f"({_shortly(cause)}): check the connection (and HF_ENDPOINT), set HF_HUB_OFFLINE=1 to "
            "use what is in the cache, or give a folder with the files"
        )
    if isinstance(cause, HFValidationError):
        return f"{repo_id!r} is not a valid name on the hub: {one_line(cause)}"
    return f"{part} cannot be put into the hub's cache: {one_line(cause)}"


def _explained_status(error: HfHubHTTPError, kind: RepoKind, repo_id: str, part: str) -> str:
    status = error.response.status_code
    page = f"{_endpoint()}/{kind.path}{repo_id}"
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
    gone = f"; {kind.gone[repo_id]}" if repo_id in kind.gone else ""
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
            f"{part} may not be read with the token in HF_TOKEN: give the token permission to read "
            f"it, or ask its owner{gone}"
            if has_token
            else f"{part} may not be read without a token: {_GIVE_TOKEN}{gone}"
        )
    if status == 429:
        mend = "wait a few minutes" if has_token else f"wait a few minutes, or {_GIVE_TOKEN}"
        return f"{part} cannot be fetched, the hub asks for fewer requests (429): {mend}"
    later = "try again later" if status >= 500 else "see the page " + page
    return f"{part} cannot be fetched: {_shortly(error)}; {later}"


def _revisions(kind: RepoKind, repo_id: str) -> str:
    """The revisions to choose from, in words."""
    try:
        refs = patiently(lambda: HfApi().list_repo_refs(repo_id, repo_type=kind.name))
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
    """The hub's address, without a password that it may contain."""
    parts = urlsplit(constants.ENDPOINT)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def _hash_like(etag: str, local: Path, size: int) -> str:
    """A file's hash of the same kind as an ETag; "" if the hub does not use this kind."""
    if re.fullmatch(r"[0-9a-f]{64}", etag):
        return sha256_of(local)
    if not re.fullmatch(r"[0-9a-f]{40}", etag):
        return ""
    digest = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    # Files in git itself are small.
    digest.update(local.read_bytes())
    return digest.hexdigest()


def _remove(local: Path) -> None:
    """Removes a file from the cache: the link in the snapshot, and its target."""
    links = [local]
    while links[-1].is_symlink():
        links.append(links[-1].parent / os.readlink(links[-1]))
    for link in links:
        link.unlink(missing_ok=True)


def _part_of(progress: ByteProgress) -> type:
    """A class that the library uses as a progress bar of one file, and that updates `progress`."""

    class Part:
        def __init__(self, *_args: Any, **_kwargs: Any) -> None:
            pass

        def __enter__(self) -> Part:
            return self

        def __exit__(self, *_error: object) -> None:
            pass

        def update(self, n: float | None = 1) -> None:
            progress.update(int(n or 0))

        def update_transfer(self, n: float | None = 1) -> None:
            pass

        def set_postfix_str(self, *_args: Any, **_kwargs: Any) -> None:
            pass

        def set_transfer_postfix_str(self, *_args: Any, **_kwargs: Any) -> None:
            pass

        def close(self) -> None:
            pass

    return Part
