"""Whether files of this machine have been written to, without reading them."""

from __future__ import annotations

import os


def local_stamp(folder: str, *others: str) -> object:
    """What changes when a file in a local folder does; `None` where that cannot be told so.

    Args:
        folder: The folder.
        others: Files elsewhere that count, too.
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
    # The last one cannot be set back, by whatever copies files with their times.
    return status.st_size, status.st_ino, status.st_mtime_ns, status.st_ctime_ns
