"""Models of small text files, for tests that only move them about."""

from __future__ import annotations

from pathlib import Path

from serving.releases import IMAGE_ENCODER, SERVED_NETWORKS

FILES = ("saved_model.pb", "variables/variables.index", "variables/variables.data-00000-of-00001")


def write_source(folder: Path, content: str, *, image_to_image: bool = False) -> str:
    """Writes a folder to publish; each file says whose it is."""
    for network in (*SERVED_NETWORKS, *([IMAGE_ENCODER] if image_to_image else [])):
        for name in FILES:
            path = folder / network / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{content} {network} {name}")
    return str(folder)
