"""Tar files: WebDataset shards, the Keras example's archive, or a packed folder of any form."""

from __future__ import annotations

from components.caption_example_gen.sources.archives import ArchiveFiles
from components.caption_example_gen.sources.base import Files, Source
from components.caption_example_gen.sources.files import TAR_SUFFIXES
from components.caption_example_gen.sources.form import Form, Found, Look, counted
from components.caption_example_gen.sources.tars import open_tars


class Tar(Form):
    """Files that end in `.tar`, `.tar.gz` or `.tgz`."""

    kind = "tar"
    shown = f"tar files ({', '.join('*' + suffix for suffix in TAR_SUFFIXES)})"

    def recognise(self, look: Look) -> Found | None:
        """See `Form.recognise`."""
        found = look.ending(*TAR_SUFFIXES)
        return Found(found, counted(len(found), "tar file")) if found else None

    def open(self, look: Look, found: Found) -> Source | Files:
        """See `Form.open`; what they are is told by the first one."""
        chosen = look.select(found.files)
        source = open_tars(look.files, chosen.files, chosen.left_out, look.spec)
        return source or ArchiveFiles(look.files, chosen.files)
