"""DiffusionDB's parts: pictures, and a JSON document with prompts under `p` by picture name."""

from __future__ import annotations

from typing import Any

from components.caption_example_gen.sources.base import is_picture
from components.caption_example_gen.sources.document_form import DocumentForm
from components.caption_example_gen.sources.image_table import HUB_IMAGE

# Prompt, seed, guidance, steps, sampler.
_KEYS = frozenset({"p", "se", "c", "st", "sa"})


class DiffusionDb(DocumentForm):
    """Documents such as `part-000001.json`."""

    kind = "diffusion-db"
    shown = "DiffusionDB's parts (part-000001.json)"
    of = "DiffusionDB"
    settles = frozenset({"table"})

    def is_one(self, document: Any) -> bool:
        """See `DocumentForm.is_one`."""
        return (
            isinstance(document, dict)
            and bool(document)
            and all(isinstance(v, dict) and v.keys() >= _KEYS for v in document.values())
            and all(map(is_picture, document))
        )

    def records(self, document: Any) -> list[dict[str, Any]]:
        """See `DocumentForm.records`."""
        return [{HUB_IMAGE: name, "prompt": values["p"]} for name, values in document.items()]
