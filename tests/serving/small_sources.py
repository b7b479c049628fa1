"""Three models of small text files, for tests that only move them about."""

from __future__ import annotations

from pathlib import Path

from serving.releases import SERVED_NETWORKS

FILES = ("saved_model.pb", "variables/variables.index", "variables/variables.data-00000-of-00001")


def write_source(folder: Path, content: str) -> str:
    """Writes a folder to publish; each file says whose it is."""
    for network in SERVED_NETWORKS:
        for name in FILES:
            path = folder / network / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{content} {network} {name}")
    return str(folder)
