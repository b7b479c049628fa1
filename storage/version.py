"""The version of this project, in one line for people."""

from __future__ import annotations

import importlib.metadata
import platform

from storage.made_with import git_changed, git_commit

VERSION = "0.1.0"
"""Version of this project; setup.py reads it from here."""

_PACKAGES = ("tfx", "tensorflow", "keras")


def version_text() -> str:
    """Version, commit and packages, such as `0.1.0, commit 1a2b3c4, tfx 1.21.0, ...`."""
    commit = git_commit()
    changed = " with changes" if git_changed() else ""
    packages = [f"{name} {version}" for name in _PACKAGES if (version := _installed(name))]
    return ", ".join(
        [
            VERSION,
            f"commit {commit[:10]}{changed}" if commit else "no git checkout",
            *packages,
            f"python {platform.python_version()}",
        ]
    )


def _installed(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
