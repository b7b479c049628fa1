"""COCO's captions: a JSON document of images, and of annotations that have captions for them."""

from __future__ import annotations

import posixpath
from typing import Any

from components.caption_example_gen.sources.form import Form, Found, Look, counted
from components.caption_example_gen.sources.image_table import (
    HUB_IMAGE,
    ImageTableSource,
    asked_for,
)

_CAPTION = "caption"
# What else of an image may be asked for.
_KEPT = ("split",)


class Coco(Form):
    """Documents such as `captions_train2017.json`, and folders such as `train2017`."""

    kind = "coco"
    shown = "COCO's captions (captions_*.json)"
    settles = frozenset({"table", "repeats"})

    def recognise(self, look: Look) -> Found | None:
        """See `Form.recognise`; reads every JSON document that may be one."""
        found = tuple(path for path, document in look.documents() if _has_captions(document))
        if not found:
            return None
        names = ", ".join(map(posixpath.basename, found[:3]))
        return Found(found, f"{counted(len(found), 'document')} of COCO's captions ({names})")

    def open(self, look: Look, found: Found) -> ImageTableSource:
        """See `Form.open`."""
        tables = asked_for(look, found.files, _records)
        return ImageTableSource.open(look, tables, self.kind, interpret=_records, by_name=True)


def _has_captions(document: Any) -> bool:
    if not isinstance(document, dict):
        return False
    images, annotations = document.get("images"), document.get("annotations")
    return (
        isinstance(images, list)
        and isinstance(annotations, list)
        and any(isinstance(each, dict) and _CAPTION in each for each in annotations)
    )


def _records(document: Any) -> list[dict[str, Any]] | None:
    """A record for every image, with all of its captions; one for every caption without image."""
    if not _has_captions(document):
        return None
    captions: dict[Any, list[Any]] = {}
    for annotation in document["annotations"]:
        if isinstance(annotation, dict):
            captions.setdefault(annotation.get("image_id"), []).append(annotation.get(_CAPTION))
    records: list[dict[str, Any]] = []
    for image in document["images"]:
        if isinstance(image, dict):
            found = captions.pop(image.get("id"), [])
            record = {HUB_IMAGE: image.get(HUB_IMAGE), _CAPTION: found}
            records.append(record | {key: image[key] for key in _KEPT if key in image})
    records += [{HUB_IMAGE: None, _CAPTION: left} for left in captions.values()]
    return records
