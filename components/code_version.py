"""A hash of the code that a step runs, for the cache keys of components.

Neither TFX's local cache nor Vertex's sees code, so every component takes the hash of its own
code as an exec property. The modules to hash are read from the source: the modules of this project
that a module imports, at its top or inside a function, and the ones that those import in turn.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.util
from collections.abc import Iterator
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[1]
# Templates, tables and weights that lie beside a module.
_DATA_SUFFIXES = (".yaml", ".html", ".safetensors")
_HEX_DIGITS = 16

# A step runs these, but they do not affect its output.
_WITHOUT_EFFECT = frozenset(
    {
        "components.code_version",  # computes this hash
        "storage.addresses",  # refuses some addresses and shortens them for display
        "storage.greetings",  # keeps the console quiet
        "storage.hub",  # its downloads are checked against their hashes
        "storage.transfer",  # reads and hashes whole files, and shows progress
        "trainer.training.progress",  # shows progress
    }
)


def code_version(*names: str) -> str:
    """Hashes the source of modules and of all modules of this project that they import.

    Args:
        *names: Dotted names of modules; for a step, its executor's.

    Returns:
        16 hexadecimal digits of the SHA-256 over the names and bytes of the modules, and of the
        `.yaml`, `.html` and `.safetensors` files beside them. Neither the order of `names` nor the
        folder that contains the code matters.

    Raises:
        ModuleNotFoundError: There is no such module in this project.
    """
    digest = hashlib.sha256()
    for name, path in sorted(_files(_sources(*names)).items()):
        content = path.read_bytes()
        digest.update(f"{name}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()[:_HEX_DIGITS]


def imported_modules(*names: str) -> set[str]:
    """The modules of this project that affect the output of `names`, including `names` themselves.

    Raises:
        ModuleNotFoundError: There is no such module in this project.
    """
    return set(_sources(*names))


def _sources(*names: str) -> dict[str, Path]:
    """The file of each of `imported_modules`."""
    found: dict[str, Path] = {}
    left = list(names)
    while left:
        name = left.pop()
        if name in found or name in _WITHOUT_EFFECT:
            continue
        path = _source(name)
        if path is None:
            raise ModuleNotFoundError(f"there is no source code of {name!r} to hash", name=name)
        found[name] = path
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        left += _packages(package)
        for wanted in _import_statements(path.read_bytes(), package):
            if _source(wanted):
                left += _packages(wanted)
    return found


def _files(sources: dict[str, Path]) -> dict[str, Path]:
    """The files to hash, by a name that does not depend on where the project is."""
    beside = {
        path
        for folder in {path.parent for path in sources.values()}
        for path in folder.iterdir()
        if path.suffix in _DATA_SUFFIXES
    }
    return sources | {path.relative_to(_ROOT).as_posix(): path for path in beside}


@functools.cache
def _import_statements(source: bytes, package: str) -> tuple[str, ...]:
    """Everything a module may import: modules, and names in them that may be modules."""
    wanted: list[str] = []
    for node in _run_nodes(ast.parse(source)):
        if isinstance(node, ast.Import):
            wanted += [alias.name for alias in node.names]
        else:
            module = "." * node.level + (node.module or "")
            module = importlib.util.resolve_name(module, package)
            wanted += [module, *(f"{module}.{alias.name}" for alias in node.names)]
    return tuple(wanted)


def _packages(name: str) -> Iterator[str]:
    """The module and its parent packages, which are imported with it."""
    while name:
        yield name
        name = name.rpartition(".")[0]


def _run_nodes(tree: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    """All import statements except those for type checkers."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        elif isinstance(node, ast.If) and _name(node.test) == "TYPE_CHECKING":
            for other in node.orelse:
                yield from _run_nodes(other)
        else:
            yield from _run_nodes(node)


def _name(test: ast.expr) -> str:
    """The name in a test such as `TYPE_CHECKING` or `typing.TYPE_CHECKING`."""
    return test.id if isinstance(test, ast.Name) else getattr(test, "attr", "")


def _source(name: str) -> Path | None:
    """The file of a module of this project."""
    path = _ROOT.joinpath(*name.split("."))
    for candidate in (path / "__init__.py", path.with_suffix(".py")):
        if candidate.is_file():
            return candidate
    return None
