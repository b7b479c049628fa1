"""Files and folders, local or remote.

Local files are accessed without TensorFlow, whose import takes long enough to keep a user waiting
for an error message; all other file systems are accessed through it. All functions raise OSError.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import shutil
import stat
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from storage.greetings import no_greetings
from storage.hashing import sha256_hex
from storage.user_errors import FileError

PARTIAL_PREFIX = ".partial-"
"""Prefix of the names of files that are not completely written."""

_CHUNK_BYTES = 1 << 20
_DIGEST_HEX_DIGITS = 16


def join(folder: str, *names: str) -> str:
    """The path of an entry of a folder, with slashes if it is remote."""
    if is_remote(folder):
        return "/".join((folder.rstrip("/"), *names))
    return os.path.join(folder, *names)


def parent(path: str) -> str:
    """The folder that contains a path; the current folder for a bare name."""
    if is_remote(path):
        return path.rpartition("/")[0]
    return os.path.dirname(path) or os.curdir


def is_folder(path: str) -> bool:
    """Whether there is a folder (in object stores: anything below the path)."""
    if is_remote(path):
        with _gfile(path) as gfile:
            return bool(gfile.isdir(path))
    return os.path.isdir(path)


def is_file(path: str) -> bool:
    """Whether there is a file."""
    if is_remote(path):
        with _gfile(path) as gfile:
            return bool(gfile.exists(path) and not gfile.isdir(path))
    return os.path.isfile(path)


def list_folder(path: str) -> list[str]:
    """The names of a folder's entries."""
    if is_remote(path):
        with _gfile(path) as gfile:
            return [name.rstrip("/") for name in gfile.listdir(path)]
    return os.listdir(path)


def read_bytes(path: str) -> bytes:
    """The contents of a file."""
    if is_remote(path):
        with _gfile(path) as gfile, gfile.GFile(path, "rb") as f:
            return bytes(f.read())
    with open(path, "rb") as f:
        return f.read()


def write_bytes(path: str, contents: bytes) -> None:
    """Writes or replaces a file."""
    if is_remote(path):
        if path.startswith("ram://"):
            # TensorFlow's memory file system would append.
            with contextlib.suppress(OSError):
                remove_file(path)
        with _gfile(path) as gfile, gfile.GFile(path, "wb") as f:
            f.write(contents)
        return
    with open(path, "wb") as f:
        f.write(contents)


def write_atomically(path: str, contents: bytes) -> None:
    """Writes or replaces a file so that readers never see a part of it."""
    if is_remote(path):
        # Object stores show a file only when all of it is written.
        write_bytes(path, contents)
        return
    partial = os.path.join(os.path.dirname(path), f"{PARTIAL_PREFIX}{uuid.uuid4().hex}")
    write_bytes(partial, contents)
    os.replace(partial, path)


def make_folder(path: str) -> None:
    """Makes a folder and its parents if they are missing."""
    if is_remote(path):
        with _gfile(path) as gfile:
            gfile.makedirs(path)
        return
    os.makedirs(path, exist_ok=True)


def files_below(folder: str) -> list[str]:
    """All files below a folder, as sorted paths relative to it, with slashes."""
    if is_remote(folder):
        with _gfile(folder) as gfile:
            walked = [(parent, names) for parent, _, names in gfile.walk(folder)]
    else:
        walked = [(parent, names) for parent, _, names in os.walk(folder)]
    start = len(folder.rstrip("/")) + 1
    return sorted(
        f"{parent}/{name}"[start:].lstrip("/").replace("//", "/")
        for parent, names in walked
        for name in names
    )


def copy(source: str, target: str) -> None:
    """Copies a file; makes the target's folder if it is missing."""
    make_folder(parent(target))
    if is_remote(source) or is_remote(target):
        with _gfile(target) as gfile:
            gfile.copy(source, target, overwrite=True)
        return
    shutil.copyfile(source, target)


def move_folder(source: str, target: str) -> None:
    """Moves a folder to a path that does not exist yet.

    In object stores, which only know files, `saved_model.pb` comes last: TensorFlow Serving treats
    a folder as a model as soon as it contains this file.
    """
    if not is_remote(source):
        make_folder(parent(target))
        os.rename(source, target)
        return
    names = files_below(source)
    with _gfile(source) as gfile:
        for name in sorted(names, key=lambda name: (name.endswith("saved_model.pb"), name)):
            gfile.makedirs(parent(join(target, name)))
            gfile.rename(join(source, name), join(target, name))
        # In an object store a folder disappears with its last file.
        if gfile.isdir(source):
            gfile.rmtree(source)


def remove_file(path: str) -> None:
    """Removes a file."""
    if is_remote(path):
        with _gfile(path) as gfile:
            gfile.remove(path)
        return
    os.remove(path)


def remove_folder(path: str) -> None:
    """Removes a folder and everything in it."""
    if is_remote(path):
        with _gfile(path) as gfile:
            gfile.rmtree(path)
        return
    shutil.rmtree(path)


def read_chunks(path: str) -> Iterator[bytes]:
    """Yields the contents of a file, a megabyte at a time."""
    with contextlib.ExitStack() as stack:
        if is_remote(path):
            file = stack.enter_context(stack.enter_context(_gfile(path)).GFile(path, "rb"))
        else:
            file = stack.enter_context(open(path, "rb"))
        while chunk := file.read(_CHUNK_BYTES):
            yield chunk


def sha256(path: str, counted: Callable[[int], None] = lambda size: None) -> str:
    """The SHA-256 of a file, in hexadecimal digits.

    Args:
        path: Local or remote path.
        counted: Called with the number of bytes of each piece that was read.
    """

    def pieces() -> Iterator[bytes]:
        for chunk in read_chunks(path):
            yield chunk
            counted(len(chunk))

    return sha256_hex(pieces())


@contextlib.contextmanager
def usual_mode(path: str | os.PathLike[str]) -> Iterator[None]:
    """Within this context, a library writes a new local file; it gets the mode that `open` gives.

    safetensors makes files that only their owner may read, which another user's server cannot.
    """
    with open(path, "wb"):
        mode = os.stat(path).st_mode
    yield
    os.chmod(path, stat.S_IMODE(mode))


def size(path: str) -> int:
    """The size of a file in bytes."""
    if is_remote(path):
        with _gfile(path) as gfile:
            return int(gfile.stat(path).length)
    return os.path.getsize(path)


@functools.cache
def content_digest(folder: str) -> str:
    """Digest of a folder's contents: the one rule for what counts as the same data.

    Computed once per process, so use it only for folders that no longer change, such as artifacts.

    Args:
        folder: Local or remote path.

    Returns:
        16 hexadecimal digits of the SHA-256 over all files' relative paths and SHA-256.

    Raises:
        FileNotFoundError: There is no such folder.
    """
    if not is_folder(folder):
        raise FileNotFoundError(f"there is no folder {folder}")
    names = files_below(folder)
    digest = hashlib.sha256()
    # Hashing releases Python's lock, and object stores answer many requests at once.
    with ThreadPoolExecutor() as pool:
        hashes = pool.map(sha256, (join(folder, name) for name in names))
        for name, each in zip(names, hashes, strict=True):
            digest.update(f"{name}\0{each}\0".encode())
    return digest.hexdigest()[:_DIGEST_HEX_DIGITS]


def modification_time(path: str) -> int:
    """When a file was last written, in nanoseconds by the clock of its storage."""
    if is_remote(path):
        with _gfile(path) as gfile:
            return int(gfile.stat(path).mtime_nsec)
    return os.stat(path).st_mtime_ns


def is_remote(path: str) -> bool:
    """Whether a path must be accessed through TensorFlow."""
    return "://" in path


@contextlib.contextmanager
def _gfile(path: str) -> Iterator[Any]:
    with no_greetings():
        import tensorflow as tf

    try:
        yield tf.io.gfile
    except tf.errors.OpError as error:
        raise FileError(f"{path}: {error.message}") from error
