"""The files of artifacts, as far as they may be shown.

Addresses come from the store, where anyone may have written anything. A file is shown only if, with
all links followed, it is in the folder of its artifact, and that folder is in one of the pipeline's
folders.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from pipeline.lineage.model import Artifact, LineageError
from storage import filesystem
from storage.errors import one_line

PICTURES = (".png", ".jpg", ".jpeg", ".gif", ".webp")

_MAX_FILES = 200
_MAX_LOOKED_AT = 5000


@dataclasses.dataclass(frozen=True)
class File:
    """A file of an artifact.

    Attributes:
        name: Its path below the artifact's folder.
        path: Where it is.
        size: Its size in bytes.
    """

    name: str
    path: Path
    size: int


@dataclasses.dataclass(frozen=True)
class Folder:
    """The files of an artifact.

    Attributes:
        files: The first files, by name.
        more: How many more there are.
        refusal: Why the files cannot be shown; "" if they can.
    """

    files: tuple[File, ...]
    more: int = 0
    refusal: str = ""


def list_files(artifact: Artifact, roots: Sequence[str]) -> Folder:
    """Lists the files of an artifact that is in one of the folders `roots`."""
    try:
        base = folder_of(artifact, roots)
    except LineageError as error:
        return Folder((), refusal=str(error))
    found = list(_walk(base))
    return Folder(tuple(found[:_MAX_FILES]), max(0, len(found) - _MAX_FILES))


def find_file(artifact: Artifact, name: str, roots: Sequence[str]) -> File:
    """Finds one file of an artifact.

    Raises:
        LineageError: The file does not exist or may not be shown.
    """
    base = folder_of(artifact, roots)
    try:
        path = (base / name).resolve()
        inside = path == base or (base.is_dir() and path.is_relative_to(base))
        if inside and path.is_file():
            return File(name, path, path.stat().st_size)
    except (OSError, ValueError, RuntimeError):
        pass
    raise LineageError(f"artifact {artifact.id} has no file {name!r}, or it may not be shown")


def folder_of(artifact: Artifact, roots: Sequence[str]) -> Path:
    """The folder (or the only file) of an artifact that is in one of the folders `roots`.

    Raises:
        LineageError: It does not exist, or is not in these folders.
    """
    uri = artifact.uri.removeprefix("file://")
    if not uri:
        raise LineageError("it has no files")
    if "://" in uri:
        raise LineageError("its files are not on this machine")
    try:
        base = Path(os.path.abspath(uri)).resolve()
        exists = base.exists()
    except (OSError, ValueError, RuntimeError):
        raise LineageError("its address is not a valid path") from None
    if not is_inside(str(base), roots):
        raise LineageError(
            "its files are outside the pipeline's folders; allow another one with "
            "`serve --files FOLDER`"
        )
    if not exists:
        raise LineageError(
            f"its files were {artifact.shown_state}" if artifact.removed else "its files are gone"
        )
    return base


def place_of(artifact: Artifact, roots: Sequence[str]) -> str:
    """As `folder_of`, but artifact and root may also be in a bucket.

    Raises:
        LineageError: It does not exist, or is not in these folders.
    """
    uri = artifact.uri
    if not filesystem.is_remote(uri):
        return str(folder_of(artifact, roots))
    check_remote(uri, roots)
    try:
        there = filesystem.is_folder(uri)
    except OSError as error:
        raise LineageError(f"its files cannot be read: {one_line(error)}") from None
    if not there:
        raise LineageError(
            f"its files were {artifact.shown_state}" if artifact.removed else "its files are gone"
        )
    return uri


def is_inside(path: str, roots: Sequence[str]) -> bool:
    """Whether a local path, with all links followed, is in one of the folders."""
    base = Path(os.path.abspath(path)).resolve()
    return any(base.is_relative_to(Path(root).resolve()) for root in roots)


def check_remote(uri: str, roots: Sequence[str]) -> None:
    """Raises a `LineageError` if a remote address is not in any of the folders."""
    inside = any(
        filesystem.is_remote(root) and uri.startswith(f"{root.rstrip('/')}/") for root in roots
    )
    if not inside or ".." in uri.split("/"):
        raise LineageError(
            "its files are not on this machine; to read them, allow their folder with "
            "`--files gs://BUCKET/FOLDER`"
        )


def _walk(base: Path) -> Iterator[File]:
    if base.is_file():
        yield File(base.name, base, base.stat().st_size)
        return
    looked_at = 0
    for parent, folders, names in os.walk(base):
        folders.sort()
        for name in sorted(names):
            looked_at += 1
            if looked_at > _MAX_LOOKED_AT:
                return
            path = Path(parent, name)
            try:
                real = path.resolve()
                if real.is_relative_to(base) and real.is_file():
                    relative = path.relative_to(base).as_posix()
                    yield File(relative, real, real.stat().st_size)
            except (OSError, RuntimeError):
                continue
