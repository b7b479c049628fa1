"""Shows values in messages, and says what a key may be."""

from __future__ import annotations

import difflib
import typing
from collections.abc import Iterable, Mapping
from typing import Annotated, Any

import annotated_types

from storage.addresses import redacted

_NOUNS: Mapping[Any, str] = {
    int: "a whole number",
    float: "a number",
    str: "text",
    bool: "true or false",
    type(None): "null to leave it open",
}


def shown(value: Any) -> str:
    """A value in at most 60 characters."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return str(value).lower()
    text = redacted(" ".join(repr(value).split()))
    return text if len(text) <= 60 else f"{text[:57]}..."


def listed(names: Iterable[str], given: Any) -> str:
    """All names, and which of them is close to what was given."""
    names = tuple(names)
    close = difflib.get_close_matches(str(given), names, n=1)
    return ", ".join(names) + (f" (did you mean {close[0]!r}?)" if close else "")


def allowed(hint: Any) -> str:
    """Describes what a field with this type hint takes, such as "a whole number of at least 1"."""
    if hint in _NOUNS:
        return _NOUNS[hint]
    if typing.get_origin(hint) is tuple:
        element = typing.get_args(hint)[0]
        of_texts = element is str or typing.get_args(element)[:1] == (str,)
        return f"a list of {'texts that are not empty' if of_texts else _each(element)}"
    if typing.get_origin(hint) is dict:
        key, value = typing.get_args(hint)
        return f"a mapping from {allowed(key)} to {allowed(value)}"
    if typing.get_origin(hint) is typing.Literal:
        return "one of " + ", ".join(typing.get_args(hint))
    if typing.get_origin(hint) is not Annotated:
        return ", or ".join(allowed(choice) for choice in typing.get_args(hint))
    base, *metadata = typing.get_args(hint)
    words, bounds = allowed(base), []
    for info in metadata:
        words = getattr(info, "description", None) or words
        for constraint in getattr(info, "metadata", ()):
            if isinstance(constraint, annotated_types.Ge):
                bounds.append(f"of at least {constraint.ge}")
            elif isinstance(constraint, annotated_types.Gt):
                bounds.append(f"above {constraint.gt}")
            elif isinstance(constraint, annotated_types.Le):
                bounds.append(f"at most {constraint.le}")
            elif isinstance(constraint, annotated_types.Lt):
                bounds.append(f"below {constraint.lt}")
            elif isinstance(constraint, annotated_types.MinLen) and base is str:
                words = "text that is not empty"
            elif isinstance(constraint, annotated_types.MaxLen):
                words += f", from 1 to {constraint.max_length} of them"
    return " ".join([words, " and ".join(bounds)]).strip()


def _each(hint: Any) -> str:
    """Describes the elements of a list, such as "numbers, each above 0"."""
    words = allowed(hint)
    kind, _, bounds = words.partition("number")
    return f"{kind.removeprefix('a ')}numbers{f', each{bounds}' if bounds else ''}"
