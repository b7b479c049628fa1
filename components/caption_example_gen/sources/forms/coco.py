"""COCO's captions: a JSON document of images, and of annotations with their captions."""

from __future__ import annotations

from typing import Any

from components.caption_example_gen.sources.document_form import DocumentForm
from components.caption_example_gen.sources.image_table import HUB_IMAGE

_CAPTION = "caption"
# Other fields of an image that a user may select by.
_KEPT = ("split",)


class Coco(DocumentForm):
    """Documents such as `captions_train2017.json`, with folders such as `train2017`."""

    kind = "coco"
    shown = "COCO's captions (captions_*.json)"
    of = "COCO's captions"
    settles = frozenset({"table", "repeats"})

    def is_one(self, document: Any) -> bool:
        """See `DocumentForm.is_one`."""
        if not isinstance(document, dict):
            return False
        images, annotations = document.get("images"), document.get("annotations")
        return (
            isinstance(images, list)
            and isinstance(annotations, list)
            and any(isinstance(each, dict) and _CAPTION in each for each in annotations)
        )

    def records(self, document: Any) -> list[dict[str, Any]]:
        """A record for every image with all its captions, and for captions without an image."""
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
