"""What a dataset says of itself in the YAML head of its card, README.md."""

from __future__ import annotations

import re
from typing import Any

import yaml

from components.caption_example_gen.sources.base import DatasetError
from storage.errors import one_line

CARD_NAME = "README.md"

_HEAD = re.compile(r"\A\ufeff?\s*---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(?:\r?\n|\Z)", re.DOTALL)


def card_field(card: str | None, name: str, shown: str) -> Any:
    """A field of a card's head.

    Args:
        card: The card's text, if there is one.
        name: The field's name.
        shown: How messages name the dataset.

    Returns:
        `None` where there is no such field.

    Raises:
        DatasetError: The head is no YAML.
    """
    head = _HEAD.match(card or "")
    if head is None:
        return None
    try:
        fields = yaml.safe_load(head.group(1))
    except yaml.YAMLError as error:
        raise DatasetError(
            f"the head of README.md of dataset {shown!r} is no valid YAML: {one_line(error)}; mend "
            "or remove it"
        ) from error
    return fields.get(name) if isinstance(fields, dict) else None


def asked_texts(card: str | None, name: str, shown: str) -> tuple[str, ...]:
    """What a card's field asks for, a list of texts; empty where it asks for nothing.

    Raises:
        DatasetError: It is another thing, or the head is no YAML.
    """
    texts = card_field(card, name, shown)
    if texts is None:
        return ()
    if isinstance(texts, list) and all(isinstance(text, str) and text.strip() for text in texts):
        return tuple(texts)
    raise DatasetError(
        f"`{name}` in README.md of dataset {shown!r} must be a list of texts, not "
        f"{str(texts)[:80]!r}"
    )
