"""Models of the Hugging Face hub, through the hub's own library.

Downloads, their resumption, the cache, offline mode, the token and most retries are the library's.
Added here: retries of the calls that it makes only once, a check of every file against the hash
that the hub gives for it, progress, and errors of one line that say what to do.
"""

from __future__ import annotations

import contextlib
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
    get_token,
    hf_hub_download,
    is_offline_mode,
    snapshot_download,
    try_to_load_from_cache,
)
from huggingface_hub.errors import (
    CachedRepoTreeNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    RevisionResolutionError,
)
from huggingface_hub.utils import tqdm, validate_repo_id

from trainer.transfer import ByteProgress, sha256_of

SCHEME = "hf://"

_ADDRESS = re.compile(
    r"hf://(?P<repo_id>[^/@]+/[^/@]+)"
    r"(?:@(?P<revision>refs/(?:pr|convert)/[^/]+|[^/]+))?"
    r"(?:/(?P<folder>.*))?"
)
_COMMIT = re.compile(r"[0-9a-f]{40}")
# The library keeps a repository's list of files when it fetches some; nearly all have one of these.
_ALONG_WITH_THE_LIST = [".gitattributes", "README.md", "model_index.json"]
_PASSING_STATUS = frozenset({408, 429, 500, 502, 503, 504})
_WAITS_S = (1.0, 2.0, 4.0, 4.0)
_LONGEST_WAIT_S = 310.0
_GIVE_TOKEN = "set HF_TOKEN (or log in with `hf auth login`)"

# What the library raises: its own errors, and where the cache cannot be written or a name is none.
_ERRORS = (
    OSError,
    httpx2.HTTPError,
    CachedRepoTreeNotFoundError,
    RevisionResolutionError,
    HFValidationError,
    UnicodeEncodeError,
)

logger = logging.getLogger(__name__)
_Result = TypeVar("_Result")


class HubError(ValueError):
    """The hub does not give what was asked for; the message is one line."""


class HubAddress(NamedTuple):
    """A folder of a model on the hub.

    Attributes:
        repo_id: `ORG/NAME`.
        revision: Branch, tag or commit; `None` for the default branch.
        folder: Folder in it, "" for the whole.
    """

    repo_id: str
    revision: str | None
    folder: str

    def __str__(self) -> str:
        revision = "" if self.revision is None else f"@{quote(self.revision, safe='')}"
        return f"{SCHEME}{self.repo_id}{revision}" + (f"/{self.folder}" if self.folder else "")


def parse_address(address: str) -> HubAddress:
    """Reads `hf://ORG/NAME[@REVISION][/FOLDER]`; asks nobody whether there is such a model.

    Raises:
        HubError: It is none.
    """
    match = _ADDRESS.fullmatch(address)
    try:
        if match is None or match["repo_id"].startswith(("datasets/", "spaces/")):
            raise HFValidationError
        validate_repo_id(match["repo_id"])
    except HFValidationError:
        raise HubError(
            f"{address!r} names no model of the hub: give hf://ORG/NAME, with @REVISION or a "
            "/FOLDER in it after that, if need be"
        ) from None
    revision = match["revision"]
    return HubAddress(
        match["repo_id"],
        None if revision is None else unquote(revision),
        (match["folder"] or "").strip("/"),
    )


class HubFile(NamedTuple):
    """A file as the hub lists it.

    Attributes:
        size: Bytes; `None` where offline mode leaves that open.
        sha256: Its hash; `None` where the hub keeps the file in git itself.
    """

    size: int | None
    sha256: str | None


class HubModel:
    """The files of a model at one commit.

    Attributes:
        repo_id: `ORG/NAME`.
        commit: 40 hexadecimal digits.
    """

    def __init__(self, repo_id: str, revision: str | None) -> None:
        """Finds the commit that a revision stands for now; in offline mode, when it last did.

        Raises:
            HubError: There is no such model or revision, it may not be read, or the hub cannot
                be reached.
        """
        self.repo_id = repo_id
        self.commit = revision or ""
        self._listed: Mapping[str, HubFile] | None = None
        if not _COMMIT.fullmatch(self.commit):
            with self._errors_explained(revision=revision):
                self.commit = str(
                    _Api().resolve_revision(repo_id, revision=revision, repo_type="model").resolved
                )

    def files(self) -> Mapping[str, HubFile]:
        """Every file of the commit by its path; in offline mode those that are in the cache."""
        if self._listed is None:
            with self._errors_explained():
                self._listed = self._list()
        return self._listed

    def fetch(self, path: str) -> Path:
        """A file in the hub's cache, fetched where it is not there, and checked.

        Raises:
            HubError: It cannot be had, or arrived damaged twice.
        """
        for _ in range(2):
            with self._errors_explained(path):
                local = Path(_patiently(lambda: self._download(path)))
            problem = self._problem(path, local)
            if not problem:
                return local
            logger.warning("%s of %r is damaged: %s", path, self.repo_id, problem)
            if is_offline_mode():
                break
            _remove(local)
        raise HubError(
            f"{path!r} of model {self.repo_id!r} is damaged: {problem}; "
            + (
                "HF_HUB_OFFLINE forbids to fetch it again: unset that"
                if is_offline_mode()
                else "it was fetched twice, and nothing of it was kept: try again later"
            )
        )

    def _list(self) -> Mapping[str, HubFile]:
        try:
            tree = self._cached_tree()
        except CachedRepoTreeNotFoundError:
            folder = _patiently(
                lambda: snapshot_download(
                    self.repo_id,
                    revision=self.commit,
                    allow_patterns=_ALONG_WITH_THE_LIST,
                    tqdm_class=_NoBar,
                )
            )
            if is_offline_mode():
                return _in_snapshot(Path(folder))
            tree = self._cached_tree()
        return tree

    def _cached_tree(self) -> Mapping[str, HubFile]:
        return {
            file.path: HubFile(file.size, file.lfs.sha256 if file.lfs else None)
            for file in get_cached_repo_tree(self.repo_id, revision=self.commit)
        }

    def _download(self, path: str) -> str:
        cached = try_to_load_from_cache(self.repo_id, path, revision=self.commit)
        if isinstance(cached, str):
            return cached
        size = (self.files()[path].size or 0) if path in self.files() else 0
        with ByteProgress(f"fetching {self.repo_id}/{path}", size) as progress:
            kind: Any = _part_of(progress)
            local: str = hf_hub_download(self.repo_id, path, revision=self.commit, tqdm_class=kind)
        return local

    def _problem(self, path: str, local: Path) -> str:
        """How a file in the cache differs from what the hub says of it; "" where it does not."""
        listed = self.files().get(path, HubFile(None, None))
        size = local.stat().st_size
        if listed.size is not None and size != listed.size:
            return f"it has {size} bytes in place of {listed.size}"
        if listed.sha256 is not None and (actual := sha256_of(local)) != listed.sha256:
            return f"its SHA-256 is {actual} in place of {listed.sha256}"
        return ""

    @contextlib.contextmanager
    def _errors_explained(self, path: str = "", revision: str | None = None) -> Iterator[None]:
        try:
            yield
        except _ERRORS as error:
            raise HubError(_explanation(error, self.repo_id, revision, path)) from error


class _Api(HfApi):
    """The library's client, whose question for a model is retried.

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
            revision = kwargs.get("revision")
            raise HubError(_explanation(error, repo_id, revision, "")) from error


class _NoBar(tqdm):
    """No progress bar: listing a model's files is a matter of a moment."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "disable": True})


def _patiently(call: Callable[[], _Result]) -> _Result:
    """Makes a call, again and again while what it fails of may pass.

    The library retries most requests itself, but not the first one for a model, nor a download
    that is answered by an error 5xx or whose connection is reset.
    """
    for wait_s in _WAITS_S:
        try:
            return call()
        except (HfHubHTTPError, httpx2.TransportError) as error:
            pause_s = _asked_wait_s(error) or wait_s
            if not _may_pass(error) or pause_s > _LONGEST_WAIT_S:
                raise
            logger.warning("%s; trying again in %g s", _shortly(error), pause_s)
        time.sleep(pause_s)
    return call()


def _may_pass(error: Exception) -> bool:
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code in _PASSING_STATUS
    return isinstance(
        error, (httpx2.TimeoutException, httpx2.NetworkError, httpx2.RemoteProtocolError)
    )


def _asked_wait_s(error: Exception) -> float:
    """How long the hub asks to wait; 0 where it does not."""
    if not isinstance(error, HfHubHTTPError):
        return 0.0
    asked = error.response.headers.get("Retry-After", "")
    return float(asked) if re.fullmatch(r"\d+", asked) else 0.0


def _explanation(error: Exception, repo_id: str, revision: str | None, path: str) -> str:
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
    what = f"model {repo_id!r}" + (f" at revision {revision!r}" if revision else "")
    part = f"{path!r} of {what}" if path else what
    if isinstance(cause, HubError):
        return str(cause)
    missing = (CachedRepoTreeNotFoundError, LocalEntryNotFoundError, RevisionResolutionError)
    if isinstance(cause, OfflineModeIsEnabled) or (
        is_offline_mode() and isinstance(cause, missing)
    ):
        return (
            f"{part} is not in the hub's cache ({constants.HF_HUB_CACHE}), and HF_HUB_OFFLINE "
            "forbids to fetch it: unset that, or fetch it once where the hub can be reached"
        )
    if isinstance(cause, RevisionNotFoundError):
        wanted = revision or constants.DEFAULT_REVISION
        return f"model {repo_id!r} has no revision {wanted!r}: give a branch, tag or commit after @"
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
            f"({_shortly(cause)}): check the connection (and HF_ENDPOINT), set HF_HUB_OFFLINE=1 to "
            "use what is in the cache, or give a folder that holds the files"
        )
    return f"{part} cannot be brought into the hub's cache: {_one_line(cause)}"


def _explained_status(error: HfHubHTTPError, repo_id: str, part: str) -> str:
    status = error.response.status_code
    has_token = get_token() is not None
    if isinstance(error, GatedRepoError):
        account = "" if has_token else f", and {_GIVE_TOKEN} to a token of that account"
        return f"{part} is gated: accept its terms on {_endpoint()}/{repo_id}{account}"
    if status == 401 and "credentials" in (error.server_message or "").lower():
        return f"{part} cannot be read: the hub does not accept the token in HF_TOKEN; renew it"
    if isinstance(error, RepositoryNotFoundError) or status in (401, 403, 404):
        token = (
            "that the token in HF_TOKEN may read it"
            if has_token
            else f"if it is private, {_GIVE_TOKEN} to a token that may read it"
        )
        return f"{part} is not on the hub, or may not be read: check the name, and {token}"
    if status == 429:
        mend = "wait a few minutes" if has_token else f"wait a few minutes, or {_GIVE_TOKEN}"
        return f"{part} cannot be fetched, the hub asks for fewer requests (429): {mend}"
    return f"{part} cannot be fetched: {_shortly(error)}; try again later"


def _shortly(error: BaseException) -> str:
    if isinstance(error, HfHubHTTPError):
        return f"the hub answered {error.response.status_code}"
    return f"{type(error).__name__}: {_one_line(error)}"


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _endpoint() -> str:
    """The hub's address, without a password that may stand in it."""
    parts = urlsplit(constants.ENDPOINT)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def _in_snapshot(folder: Path) -> Mapping[str, HubFile]:
    """The files of a commit that are in the cache, where the library kept no list of all."""
    return {
        path.relative_to(folder).as_posix(): HubFile(None, None)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def _remove(local: Path) -> None:
    """Takes a file out of the cache: what a snapshot links to, and the link."""
    links = [local]
    while links[-1].is_symlink():
        links.append(links[-1].parent / os.readlink(links[-1]))
    for link in links:
        link.unlink(missing_ok=True)


def _part_of(progress: ByteProgress) -> type:
    """A class that the library takes for a progress bar of one file, and that moves `progress`."""

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
