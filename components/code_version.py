"""A hash of source code, for the cache keys of components.

Neither TFX's local cache nor Vertex's sees code, so every component takes the hash of its own
code as an exec property.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Iterator
from pathlib import Path

_SUFFIXES = (".py", ".yaml", ".html")
_HEX_DIGITS = 16


def code_version(*names: str) -> str:
    """Hashes the source of packages and modules.

    Args:
        *names: Dotted names; a package stands for all `.py`, `.yaml` and `.html` files in its
            folder and below, a module for its own file.

    Returns:
        16 hexadecimal digits of the SHA-256 over the files' relative names and bytes; the order
        of `names` and the folder that the code lies in do not matter.

    Raises:
        ModuleNotFoundError: There is no such package or module, or it has no source files.
    """
    digest = hashlib.sha256()
    for name in sorted(set(names)):
        for relative, path in _sources(name):
            content = path.read_bytes()
            digest.update(f"{name}\0{relative}\0{len(content)}\0".encode())
            digest.update(content)
    return digest.hexdigest()[:_HEX_DIGITS]


def _sources(name: str) -> Iterator[tuple[str, Path]]:
    spec = importlib.util.find_spec(name)
    if spec is None or (spec.origin is None and not spec.submodule_search_locations):
        raise ModuleNotFoundError(f"there is no source code of {name!r} to hash", name=name)
    if not spec.submodule_search_locations:
        yield "", Path(str(spec.origin))
        return
    files = {
        path.relative_to(folder).as_posix(): path
        for folder in spec.submodule_search_locations
        for path in Path(folder).rglob("*")
        if path.suffix in _SUFFIXES and path.is_file()
    }
    if not files:
        raise ModuleNotFoundError(f"package {name!r} has no source files to hash", name=name)
    yield from sorted(files.items())
