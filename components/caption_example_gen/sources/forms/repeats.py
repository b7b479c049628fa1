"""Folders called `10_name of subject`, as sd-scripts and the like read them.

The number is how often an epoch sees each picture of the folder; the rest is the caption of
pictures that have no other.
"""

from __future__ import annotations

from components.caption_example_gen.sources.form import Form, Found, Look, counted
from components.caption_example_gen.sources.picture_files import (
    CaptionFiles,
    PictureFilesSource,
    find_captions,
    repeats_folders,
)


class Repeats(Form):
    """Pictures in or below such folders, with or without caption files beside them."""

    kind = "repeats"
    shown = "folders with a number of repeats (10_name)"
    settles = frozenset({"caption-files"})

    def recognise(self, look: Look) -> Found | None:
        """See `Form.recognise`; reads nothing."""
        folders = repeats_folders(look)
        if not folders:
            return None
        shown = ", ".join(
            f"{name!r} ({counted(n, 'picture')})" for name, n in folders.most_common(3)
        )
        return Found(look.pictures, f"{counted(len(folders), 'folder')} with repeats: {shown}")

    def open(self, look: Look, found: Found) -> PictureFilesSource:
        """See `Form.open`."""
        beside = look.beside_pictures
        captions = find_captions(look, beside, look.spec) if beside else CaptionFiles()
        return PictureFilesSource(look, self.kind, captions, repeats=True)
