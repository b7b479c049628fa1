"""The hub's image folders: pictures, and `metadata.jsonl` or `metadata.csv` with `file_name`."""

from __future__ import annotations

import posixpath

from components.caption_example_gen.sources.form import Form, Found, Look, counted
from components.caption_example_gen.sources.image_table import ImageTableSource

TABLES = ("metadata.jsonl", "metadata.csv")
"""Names of the tables."""


class ImageFolder(Form):
    """Tables of these names, at any depth."""

    kind = "image-folder"
    shown = f"image folders ({' or '.join(TABLES)})"
    settles = frozenset({"table", "repeats"})

    def recognise(self, look: Look) -> Found | None:
        """See `Form.recognise`."""
        found = tuple(p for p in look.ending(*TABLES) if posixpath.basename(p) in TABLES)
        return Found(found, counted(len(found), found[0].rpartition("/")[2])) if found else None

    def open(self, look: Look, found: Found) -> ImageTableSource:
        """See `Form.open`."""
        return ImageTableSource.open(look, found.files, self.kind)
