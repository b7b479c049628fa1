"""The metadata of kohya's sd-scripts: a JSON document with caption and tags by picture path."""

from __future__ import annotations

from typing import Any

from components.caption_example_gen.sources.document_form import DocumentForm
from components.caption_example_gen.sources.image_table import HUB_IMAGE

_CAPTIONS = ("caption", "tags")


class SdScripts(DocumentForm):
    """Documents such as `meta_cap.json`; paths may be of another machine or lack the suffix."""

    kind = "sd-scripts"
    shown = "the metadata of sd-scripts (meta_*.json)"
    of = "sd-scripts"
    settles = frozenset({"table", "repeats"})

    def is_one(self, document: Any) -> bool:
        """See `DocumentForm.is_one`."""
        return (
            isinstance(document, dict)
            and bool(document)
            and all(isinstance(value, dict) for value in document.values())
            and any(name in value for value in document.values() for name in _CAPTIONS)
        )

    def records(self, document: Any) -> list[dict[str, Any]]:
        """See `DocumentForm.records`."""
        return [{HUB_IMAGE: path, **values} for path, values in document.items()]
