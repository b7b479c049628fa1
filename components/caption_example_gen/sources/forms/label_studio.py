"""Label Studio's JSON: a list of tasks, with the texts in the annotations of each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from components.caption_example_gen.sources import columns
from components.caption_example_gen.sources.document_form import DocumentForm
from components.caption_example_gen.sources.image_table import HUB_IMAGE

_LOOK_AT = 64


class LabelStudio(DocumentForm):
    """Documents of tasks with a picture, at least one of which has a text in its annotations."""

    kind = "label-studio"
    shown = "Label Studio's JSON (of tasks, with text areas for the captions)"
    of = "Label Studio"
    settles = frozenset({"table", "repeats"})

    def is_one(self, document: Any) -> bool:
        """See `DocumentForm.is_one`."""
        if not (
            isinstance(document, list) and document and all(map(_is_task, document[:_LOOK_AT]))
        ):
            return False
        return any(_picture_of(task) and any(_written(task)) for task in document if _is_task(task))

    def records(self, document: Any) -> list[dict[str, Any]]:
        """A record for every task: its picture, its other data, and its texts by field."""
        records: list[dict[str, Any]] = []
        for task in filter(_is_task, document):
            picture = _picture_of(task)
            record = {
                name: value
                for name, value in task["data"].items()
                if not columns.looks_like_picture(value)
            }
            texts: dict[str, list[str]] = {}
            for field, text in _written(task):
                texts.setdefault(field, []).append(text)
            records.append({HUB_IMAGE: picture, **record, **texts})
        return records


def _is_task(task: object) -> bool:
    return (
        isinstance(task, dict)
        and isinstance(task.get("data"), dict)
        and isinstance(task.get("annotations"), list)
    )


def _picture_of(task: Mapping[str, Any]) -> str:
    """The first picture in the data of a task; "" if there is none."""
    values = task["data"].values()
    return next((v for v in values if isinstance(v, str) and columns.looks_like_picture(v)), "")


def _written(task: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The texts of a task, each with the name of its field; without cancelled annotations."""
    for annotation in task["annotations"]:
        if not isinstance(annotation, dict) or annotation.get("was_cancelled"):
            continue
        for result in annotation.get("result") or ():
            if isinstance(result, dict) and result.get("type") == "textarea":
                value = result.get("value")
                texts = value.get("text") if isinstance(value, dict) else None
                for text in texts if isinstance(texts, list) else [texts]:
                    if isinstance(text, str):
                        yield str(result.get("from_name") or "caption"), text
