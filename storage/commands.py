"""Formats commands that work when they are pasted into the shell that printed them.

In the checkout they are short. Elsewhere `python -m` does not find this project's modules, so the
command changes to the checkout first and names files by their full path.
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
        module: A module of this project.
        *arguments: Unquoted arguments; files and folders as `Path`, relative to the current folder.
    """
    if _in_checkout():
        return _joined(_shown(Path(sys.executable)), "-m", module, *map(_shown, arguments))
    there = (os.path.abspath(a) if isinstance(a, os.PathLike) else a for a in arguments)
    return f"(cd {shlex.quote(str(CHECKOUT))} && {_joined(sys.executable, '-m', module, *there)})"


def script_command(script: str, *arguments: str) -> str:
    """`python SCRIPT ARGUMENTS`, for a script in the checkout; arguments stay as they are given."""
    return _joined(_shown(Path(sys.executable)), _shown(CHECKOUT / script), *arguments)


def program_command(program: str, *arguments: str | os.PathLike[str]) -> str:
    """`PROGRAM ARGUMENTS`, for a program that is installed beside this Python."""
    return _joined(_shown(Path(sys.executable).with_name(program)), *map(_shown, arguments))


def place(address: str) -> str | Path:
    """An address as an argument of these functions: a path, unless it is a URL."""
    return address if "://" in address else Path(address)


def shown_path(path: str | os.PathLike[str]) -> str:
    """`path` relative to the current folder if it is inside it; a URL as it is."""
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
