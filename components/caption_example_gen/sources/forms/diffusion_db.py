"""DiffusionDB's parts: pictures, and a JSON document of their names with prompts under `p`."""

from __future__ import annotations

import posixpath
from typing import Any

from components.caption_example_gen.sources.base import is_picture
from components.caption_example_gen.sources.form import Form, Found, Look, counted
from components.caption_example_gen.sources.image_table import HUB_IMAGE, ImageTableSource

# Prompt, seed, guidance, steps, sampler.
_KEYS = frozenset({"p", "se", "c", "st", "sa"})


class DiffusionDb(Form):
    """Documents such as `part-000001.json`."""

    kind = "diffusion-db"
    shown = "DiffusionDB's parts (part-000001.json)"
    settles = frozenset({"table"})

    def recognise(self, look: Look) -> Found | None:
        """See `Form.recognise`; reads every JSON document that may be one."""
        found = tuple(path for path, document in look.documents() if _is_part(document))
        if not found:
            return None
        names = ", ".join(map(posixpath.basename, found[:3]))
        return Found(found, f"{counted(len(found), 'document')} of DiffusionDB ({names})")

    def open(self, look: Look, found: Found) -> ImageTableSource:
        """See `Form.open`."""
        return ImageTableSource.open(look, found.files, self.kind, interpret=_records, by_name=True)


def _is_part(document: Any) -> bool:
    return (
        isinstance(document, dict)
        and bool(document)
        and all(isinstance(v, dict) and v.keys() >= _KEYS for v in document.values())
        and all(map(is_picture, document))
    )


def _records(document: Any) -> list[dict[str, Any]] | None:
    if not _is_part(document):
        return None
    return [{HUB_IMAGE: name, "prompt": values["p"]} for name, values in document.items()]
