"""Pictures without captions, for which the user gives a caption or uses names."""

from __future__ import annotations

import posixpath
from collections import Counter

from components.caption_example_gen.sources.base import is_picture, repeats_of
from components.caption_example_gen.sources.card import CARD_NAME
from components.caption_example_gen.sources.form import Form, Found, Look, counted, no_captions
from components.caption_example_gen.sources.picture_files import CaptionFiles, PictureFilesSource

_SPREADSHEETS = frozenset({".xlsx", ".xls", ".ods"})
# Suffixes of other files that the error names.
_SHOWN = 4


class Pictures(Form):
    """Pictures, and nothing that any other form recognises."""

    kind = "pictures"
    shown = "pictures only (with --caption or --captions-from)"
    is_last = True

    def recognise(self, look: Look) -> Found | None:
        """See `Form.recognise`; reads nothing."""
        count = len(look.pictures)
        return Found(look.pictures, counted(count, "picture")) if count else None

    def open(self, look: Look, found: Found) -> PictureFilesSource:
        """See `Form.open`; if the user gave no captions, the error offers ways to get them."""
        if not look.spec.captions_given:
            own_name = posixpath.basename(look.files.shown.rstrip("/"))
            # The folder's own name is ignored, or renaming it would change the dataset.
            hint = " (its own name is ignored: give the folder that contains it)"
            is_named = repeats_of(own_name) is not None
            raise no_captions(look, f"it has {found.why}{_rest(look)}{hint if is_named else ''}")
        return PictureFilesSource(look, self.kind, CaptionFiles())


def _rest(look: Look) -> str:
    """The other files, in which the user may expect the captions."""
    suffixes = Counter(
        posixpath.splitext(path)[1].lower() or posixpath.basename(path)
        for path in look.paths
        if not is_picture(path) and path != CARD_NAME
    )
    if not suffixes:
        return ""
    shown = ", ".join(f"{count:,} {suffix}" for suffix, count in suffixes.most_common(_SHOWN))
    advice = " (save spreadsheets as CSV)" if not _SPREADSHEETS.isdisjoint(suffixes) else ""
    return f", and {shown} without captions in a supported form{advice}"
