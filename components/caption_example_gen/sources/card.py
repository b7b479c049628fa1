"""Reads the YAML head of a dataset's card, README.md."""

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
        shown: Name of the dataset in messages.

    Returns:
        The value; `None` if there is no such field.

    Raises:
        DatasetError: The head is not valid YAML.
    """
    head = _HEAD.match(card or "")
    if head is None:
        return None
    try:
        fields = yaml.safe_load(head.group(1))
    except yaml.YAMLError as error:
        raise DatasetError(
            f"the head of README.md of dataset {shown!r} is not valid YAML: {one_line(error)}; "
            "fix or remove it"
        ) from error
    return fields.get(name) if isinstance(fields, dict) else None


def asked_texts(card: str | None, name: str, shown: str) -> tuple[str, ...]:
    """The list of texts in a field of a card; empty if there is no such field.

    Raises:
        DatasetError: The field is not a list of texts, or the head is not valid YAML.
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
