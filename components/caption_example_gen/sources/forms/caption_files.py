"""A caption file beside each picture, as sd-scripts, OneTrainer, SimpleTuner, ai-toolkit write."""

from __future__ import annotations

from components.caption_example_gen.sources.form import (
    CAPTION_SUFFIXES,
    Form,
    Found,
    Look,
    counted,
)
from components.caption_example_gen.sources.picture_files import (
    PictureFilesSource,
    find_captions,
)


class CaptionFiles(Form):
    """`1.jpg` with `1.txt`, `1.caption`, `1.prompt` or `1.json`; or with `1.jpg.txt` and so on."""

    kind = "caption-files"
    shown = f"caption files beside pictures (*{', *'.join(CAPTION_SUFFIXES)})"

    def recognise(self, look: Look) -> Found | None:
        """See `Form.recognise`; reads nothing."""
        found = tuple(sorted(look.beside_pictures))
        if not found:
            return None
        return Found(found, f"{counted(len(found), 'file')} beside pictures (such as {found[0]})")

    def open(self, look: Look, found: Found) -> PictureFilesSource:
        """See `Form.open`."""
        captions = find_captions(look, found.files, look.spec)
        return PictureFilesSource(look, self.kind, captions)
