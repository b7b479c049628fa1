"""Reading and writing files of a serving directory, wherever it is.

Local files are reached without TensorFlow, whose import takes long enough to keep a user waiting
for an error message; every other file system is reached through it. All functions raise OSError.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any


def join(folder: str, *names: str) -> str:
    """The path of an entry of a folder; slashes for remote ones."""
    if _is_remote(folder):
        return "/".join((folder.rstrip("/"), *names))
    return os.path.join(folder, *names)


def parent(path: str) -> str:
    """The folder that a path lies in; the current one for a bare name."""
    if _is_remote(path):
        return path.rpartition("/")[0]
    return os.path.dirname(path) or os.curdir


def is_folder(path: str) -> bool:
    """Whether there is a folder (in object stores: anything below the path)."""
    if _is_remote(path):
        with _gfile(path) as gfile:
            return bool(gfile.isdir(path))
    return os.path.isdir(path)


def is_file(path: str) -> bool:
    """Whether there is a file."""
    if _is_remote(path):
        with _gfile(path) as gfile:
            return bool(gfile.exists(path) and not gfile.isdir(path))
    return os.path.isfile(path)


def list_folder(path: str) -> list[str]:
    """The names of a folder's entries."""
    if _is_remote(path):
        with _gfile(path) as gfile:
            return [name.rstrip("/") for name in gfile.listdir(path)]
    return os.listdir(path)


def read_bytes(path: str) -> bytes:
    """The contents of a file."""
    if _is_remote(path):
        with _gfile(path) as gfile, gfile.GFile(path, "rb") as f:
            return bytes(f.read())
    with open(path, "rb") as f:
        return f.read()


def write_bytes(path: str, contents: bytes) -> None:
    """Writes or replaces a file."""
    if _is_remote(path):
        with _gfile(path) as gfile, gfile.GFile(path, "wb") as f:
            f.write(contents)
        return
    with open(path, "wb") as f:
        f.write(contents)


def _is_remote(path: str) -> bool:
    return "://" in path


@contextlib.contextmanager
def _gfile(path: str) -> Iterator[Any]:
    import tensorflow as tf

    try:
        yield tf.io.gfile
    except tf.errors.OpError as error:
        raise OSError(f"{path}: {error.message}") from error
