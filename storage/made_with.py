"""What a model is made with: the commit of the code, and the versions of the packages."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
from pathlib import Path

_PACKAGES = ("tensorflow", "keras", "keras-cv", "tfx", "numpy", "safetensors")


def versions() -> dict[str, str]:
    """The installed versions of Python and of the packages that matter."""
    packages = {name: importlib.metadata.version(name) for name in _PACKAGES}
    return {"python": platform.python_version(), **packages}


def git_commit() -> str | None:
    """The commit of this code; `None` outside a git checkout."""
    return _git("rev-parse", "HEAD").stdout.strip() or None


def git_changed() -> bool | None:
    """Whether files have changed since that commit; `None` if there is no commit."""
    return {0: False, 1: True}.get(_git("diff", "--quiet", "HEAD").returncode)


def _git(*words: str) -> subprocess.CompletedProcess[str]:
    command = ["git", *words]
    try:
        return subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        # A shell's exit status for a program that does not exist.
        return subprocess.CompletedProcess(command, 127, stdout="", stderr="")
