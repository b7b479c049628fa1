"""Detects whether local files have changed, without reading them."""

from __future__ import annotations

import os


def local_stamp(folder: str, *others: str) -> object:
    """A value that changes when a file in a local folder does; `None` if there cannot be one.

    Args:
        folder: The folder.
        others: Files elsewhere that also count.
    """
    if not os.path.isdir(folder):
        return None
    found = []
    for path in others:
        try:
            found.append(("", path, *_facts(path)))
        except OSError:
            return None
    for parent, folders, names in os.walk(folder):
        if any(os.path.islink(os.path.join(parent, name)) for name in folders):
            return None
        for name in names:
            try:
                found.append((parent, name, *_facts(os.path.join(parent, name))))
            except OSError:
                return None
    return tuple(sorted(found))


def _facts(path: str) -> tuple[int, ...]:
    status = os.stat(path)
    # The ctime cannot be set back, even by programs that copy files with their times.
    return status.st_size, status.st_ino, status.st_mtime_ns, status.st_ctime_ns
