"""Commands as they are printed: pasted into the shell that they were read in, they work.

In the checkout they are short. Elsewhere `python -m` finds no module of this project, so that such
a command goes to the checkout first, and names files by their full path.
"""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[1]


def module_command(module: str, *arguments: str | os.PathLike[str]) -> str:
    """`python -m MODULE ARGUMENTS`.

    Args:
        module: Of this project.
        *arguments: Unquoted; those that are files or folders as `Path`, relative to where the
            command is printed.
    """
    if _in_checkout():
        return _joined(_shown(Path(sys.executable)), "-m", module, *map(_shown, arguments))
    there = (os.path.abspath(a) if isinstance(a, os.PathLike) else a for a in arguments)
    return f"(cd {shlex.quote(str(CHECKOUT))} && {_joined(sys.executable, '-m', module, *there)})"


def script_command(script: str, *arguments: str) -> str:
    """`python SCRIPT ARGUMENTS`, of a script in the checkout; arguments are as they were given."""
    return _joined(_shown(Path(sys.executable)), _shown(CHECKOUT / script), *arguments)


def program_command(program: str, *arguments: str | os.PathLike[str]) -> str:
    """`PROGRAM ARGUMENTS`, of a program that is installed beside this Python."""
    return _joined(_shown(Path(sys.executable).with_name(program)), *map(_shown, arguments))


def place(address: str) -> str | Path:
    """An address as an argument of these: a path, unless it is a URL."""
    return address if "://" in address else Path(address)


def shown_path(path: str | os.PathLike[str]) -> str:
    """`path` relative to the current folder where it lies in it; a URL as it is."""
    if "://" in str(path):
        return str(path)
    absolute = os.path.abspath(path)
    relative = os.path.relpath(absolute)
    return absolute if relative.startswith("..") else relative


def _in_checkout() -> bool:
    return Path.cwd() == CHECKOUT


def _shown(argument: str | os.PathLike[str]) -> str:
    return shown_path(argument) if isinstance(argument, os.PathLike) else argument


def _joined(*words: str) -> str:
    return shlex.join(words)
