"""Captions in a folder of their own, which mirrors the folder of the pictures."""

from __future__ import annotations

import dataclasses
import posixpath
from collections import Counter
from collections.abc import Sequence

from components.caption_example_gen.sources.form import TEXT_SUFFIXES, Form, Found, Look, counted
from components.caption_example_gen.sources.picture_files import (
    CaptionFiles,
    PictureFilesSource,
    are_numbers,
    is_mask,
    text_suffixes,
)

# Captions that are inspected to find the two folders.
_LOOK_AT = 64


class CaptionFolders(Form):
    """`images/a/1.jpg` with `captions/a/1.txt`."""

    kind = "caption-folders"
    shown = "a folder of captions that mirrors the pictures (images/1.jpg, captions/1.txt)"

    def recognise(self, look: Look) -> Found | None:
        """See `Form.recognise`; reads the first captions, which must not be numbers."""
        texts = look.ending(*TEXT_SUFFIXES)
        if not texts or not look.pictures or any(map(look.is_beside_picture, texts)):
            return None
        captions = _folders(look, texts)
        if captions is None:
            return None
        found = tuple(path for path in texts if captions.has_picture(path, look))
        if not found or are_numbers(look, found):
            return None
        anywhere = ", in any folder" if captions.is_anywhere else ""
        folder = captions.pictures or "the folder above"
        where = f"{captions.texts} for pictures in {folder}{anywhere}"
        return Found(found, f"{counted(len(found), 'caption file')} in {where}")

    def open(self, look: Look, found: Found) -> PictureFilesSource:
        """See `Form.open`."""
        captions = _folders(look, found.files) or CaptionFiles()
        suffixes = text_suffixes(look, found.files, look.spec)
        captions = dataclasses.replace(captions, suffixes=suffixes)
        return PictureFilesSource(look, self.kind, captions)


def _folders(look: Look, texts: Sequence[str]) -> CaptionFiles | None:
    """The two folders that fit most of the first captions."""
    by_stem: dict[str, list[str]] = {}
    for path in texts[:_LOOK_AT]:
        by_stem.setdefault(posixpath.splitext(posixpath.basename(path))[0], []).append(path)
    fits: Counter[CaptionFiles] = Counter()
    for picture in look.pictures:
        if is_mask(picture):
            continue
        stem = posixpath.splitext(posixpath.basename(picture))[0]
        for text in by_stem.get(stem, ()):
            pair = _pair(picture.split("/")[:-1], text.split("/")[:-1])
            if pair is not None:
                fits[pair] += 1
    if not fits:
        return None
    best, _ = fits.most_common(1)[0]
    return best


def _pair(pictures: list[str], texts: list[str]) -> CaptionFiles | None:
    """Two folders without their common end and, if anything is left, their common start."""
    while pictures and texts and pictures[-1] == texts[-1]:
        pictures, texts = pictures[:-1], texts[:-1]
    if not texts:
        return None
    common = len(posixpath.commonprefix([pictures, texts]))
    is_anywhere = 0 < common < min(len(pictures), len(texts))
    if is_anywhere:
        pictures, texts = pictures[common:], texts[common:]
    return CaptionFiles(texts=_joined(texts), pictures=_joined(pictures), is_anywhere=is_anywhere)


def _joined(folders: list[str]) -> str:
    return "".join(f"{folder}/" for folder in folders)
