"""The folder of the Keras example: pictures, and `data.csv` with `image_path` and `caption`."""

from __future__ import annotations

import posixpath

from components.caption_example_gen.sources.form import Form, Found, Look, counted
from components.caption_example_gen.sources.image_table import ImageTableSource

TABLE = "data.csv"
"""Name of the table."""
IMAGE_COLUMN = "image_path"
"""Its column with the names of pictures."""


class KerasFolder(Form):
    """Tables of this name, at any depth."""

    kind = "keras-folder"
    shown = f"the Keras example's folder ({TABLE})"
    settles = frozenset({"table", "repeats"})

    def recognise(self, look: Look) -> Found | None:
        """See `Form.recognise`."""
        found = tuple(path for path in look.ending(TABLE) if posixpath.basename(path) == TABLE)
        return Found(found, counted(len(found), TABLE)) if found else None

    def open(self, look: Look, found: Found) -> ImageTableSource:
        """See `Form.open`."""
        return ImageTableSource.open(look, found.files, self.kind, usual=IMAGE_COLUMN)
