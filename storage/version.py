"""What this is: version, commit and the packages that decide what it computes."""

from __future__ import annotations

import functools
import importlib.metadata
import platform
import subprocess

from storage.commands import CHECKOUT

VERSION = "0.1.0"
"""Of this project; setup.py has it from here."""

_PACKAGES = ("tfx", "tensorflow", "keras")


@functools.cache
def git_commit() -> str | None:
    """The commit this code is at; `None` where it does not lie in a git checkout."""
    return _git("rev-parse", "HEAD") or None


def version_text() -> str:
    """A line for people, such as `0.1.0, commit 1a2b3c4, TFX 1.21.0, TensorFlow 2.21.0, ...`."""
    commit = git_commit()
    changed = " with changes" if commit and _git("status", "--porcelain", "-uno") else ""
    packages = [f"{name} {version}" for name in _PACKAGES if (version := _installed(name))]
    return ", ".join(
        [
            VERSION,
            f"commit {commit[:10]}{changed}" if commit else "no git checkout",
            *packages,
            f"python {platform.python_version()}",
        ]
    )


def _git(*words: str) -> str:
    try:
        found = subprocess.run(
            ["git", *words], cwd=CHECKOUT, capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        return ""
    return found.stdout.strip()


def _installed(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
