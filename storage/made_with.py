"""What a model is made with: the code's commit, and the versions of what computes."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
from pathlib import Path

_PACKAGES = ("tensorflow", "keras", "keras-cv", "tfx", "numpy", "safetensors")


def versions() -> dict[str, str]:
    """Python's version, and those of the packages that matter, as they are here."""
    packages = {name: importlib.metadata.version(name) for name in _PACKAGES}
    return {"python": platform.python_version(), **packages}


def git_commit() -> str | None:
    """The commit this code is at; `None` where it does not lie in a git checkout."""
    return _git("rev-parse", "HEAD").stdout.strip() or None


def git_changed() -> bool | None:
    """Whether files of that commit were changed since; `None` where there is none."""
    return {0: False, 1: True}.get(_git("diff", "--quiet", "HEAD").returncode)


def _git(*words: str) -> subprocess.CompletedProcess[str]:
    command = ["git", *words]
    try:
        return subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        # What a shell says of a program that is not there.
        return subprocess.CompletedProcess(command, 127, stdout="", stderr="")
