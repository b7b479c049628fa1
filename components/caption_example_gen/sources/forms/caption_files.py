"""A caption file beside each picture, as in sd-scripts, OneTrainer, SimpleTuner, ai-toolkit."""

from __future__ import annotations

from components.caption_example_gen.sources.base import shown_path
from components.caption_example_gen.sources.form import (
    CAPTION_SUFFIXES,
    Form,
    Found,
    Look,
    counted,
    no_captions,
)
from components.caption_example_gen.sources.picture_files import (
    PictureFilesSource,
    are_numbers,
    find_captions,
)


class CaptionFiles(Form):
    """`1.jpg` with `1.txt`, `1.caption`, `1.prompt` or `1.json`; or with `1.jpg.txt` and so on."""

    kind = "caption-files"
    shown = f"caption files beside pictures (*{', *'.join(CAPTION_SUFFIXES)})"

    def recognise(self, look: Look) -> Found | None:
        """See `Form.recognise`; reads nothing."""
        found = look.beside_pictures
        if not found:
            return None
        return Found(found, f"{counted(len(found), 'file')} beside pictures (such as {found[0]})")

    def open(self, look: Look, found: Found) -> PictureFilesSource:
        """See `Form.open`."""
        captions = find_captions(look, found.files, look.spec)
        if not captions.key and are_numbers(look, found.files):
            raise no_captions(
                look,
                f"the files beside them, such as {shown_path(found.files[0])}, have only numbers, "
                "like the labels of object detectors; --dataset-form pictures leaves them out",
            )
        return PictureFilesSource(look, self.kind, captions)
