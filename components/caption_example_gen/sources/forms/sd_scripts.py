"""The metadata of kohya's sd-scripts: a JSON document of pictures' paths with caption and tags."""

from __future__ import annotations

import posixpath
from typing import Any

from components.caption_example_gen.sources.form import Form, Found, Look, counted
from components.caption_example_gen.sources.image_table import (
    HUB_IMAGE,
    ImageTableSource,
    asked_for,
)

_CAPTIONS = ("caption", "tags")


class SdScripts(Form):
    """Documents such as `meta_cap.json`; a path may be another machine's, or lack the suffix."""

    kind = "sd-scripts"
    shown = "the metadata of sd-scripts (meta_*.json)"
    settles = frozenset({"table", "repeats"})

    def recognise(self, look: Look) -> Found | None:
        """See `Form.recognise`; reads every JSON document that may be one."""
        found = tuple(path for path, document in look.documents() if _is_metadata(document))
        if not found:
            return None
        names = ", ".join(map(posixpath.basename, found[:3]))
        return Found(found, f"{counted(len(found), 'document')} of sd-scripts ({names})")

    def open(self, look: Look, found: Found) -> ImageTableSource:
        """See `Form.open`."""
        tables = asked_for(look, found.files, _records)
        return ImageTableSource.open(look, tables, self.kind, interpret=_records, by_name=True)


def _is_metadata(document: Any) -> bool:
    return (
        isinstance(document, dict)
        and bool(document)
        and all(isinstance(value, dict) for value in document.values())
        and any(name in value for value in document.values() for name in _CAPTIONS)
    )


def _records(document: Any) -> list[dict[str, Any]] | None:
    if not _is_metadata(document):
        return None
    return [{HUB_IMAGE: path, **values} for path, values in document.items()]
