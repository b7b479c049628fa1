"""Which columns hold the pictures and the captions, and what a caption may look like."""

from __future__ import annotations

import dataclasses
import json
import posixpath
from collections.abc import Container, Iterable, Mapping, Sequence
from typing import Any, Literal

import pyarrow as pa

from components.caption_example_gen.sources.base import (
    DatasetError,
    DatasetSpec,
    is_hidden,
    is_picture,
)
from storage.addresses import redacted

Role = Literal["image", "caption"]

_PREFERRED: Mapping[Role, tuple[str, ...]] = {"image": ("image",), "caption": ("text", "caption")}
_ALLOWED: Mapping[Role, str] = {
    "image": "a struct with binary `bytes`, or plain binary",
    "caption": "text, or lists of text",
}
# Where the hub's `datasets` library keeps its features in the schema of a Parquet file.
_FEATURES_KEY = b"huggingface"


def choose(role: Role, candidates: Sequence[str], *, shown: str, there: str) -> str:
    """Finds the column when the user named none.

    Args:
        role: What the column holds.
        candidates: The columns that could be it.
        shown: Name of the dataset.
        there: What columns there are, for the error: "the columns of x are a, b".

    Returns:
        The only candidate; of several the one called like the hub's datasets call it.

    Raises:
        DatasetError: There is none, or several and none of them has such a name.
    """
    if not candidates:
        raise DatasetError(f"dataset {shown!r} has no {role} column: {there}")
    if len(candidates) == 1:
        return candidates[0]
    for name in _PREFERRED[role]:
        if name in candidates:
            return name
    raise DatasetError(
        f"dataset {shown!r} has several columns that could be the {role} column: "
        f"{', '.join(candidates)}; name one of them with --{role}-column"
    )


def missing(role: Role, name: str, *, shown: str, there: str) -> DatasetError:
    """The error for a column that the user named and that is not there."""
    return DatasetError(
        f"dataset {shown!r} has no {role} column {name!r}: {there}; name the right one with "
        f"--{role}-column"
    )


def find_columns(schema: pa.Schema, spec: DatasetSpec, *, file: str, shown: str) -> tuple[str, str]:
    """Finds the two columns of a Parquet file.

    Args:
        schema: Of the file.
        spec: Names them, or leaves them to be found: by the features that the hub's library writes
            into the schema, else by their types.
        file: Name of the file.
        shown: Name of the dataset.

    Returns:
        Names of the image column and of the caption column.

    Raises:
        DatasetError: One of them cannot be found or has the wrong type.
    """
    features = _features(schema)
    there = _there(schema, file)
    image = spec.image_column or choose(
        "image",
        [name for name, feature in features.items() if _is_image_feature(feature)]
        or [field.name for field in schema if _is_image_type(field.type)],
        shown=shown,
        there=there,
    )
    caption = spec.caption_column or choose(
        "caption",
        [name for name, feature in features.items() if _is_text_feature(feature)]
        # Binary may hold text, but only the user can say so: it is what pictures look like.
        or [f.name for f in schema if _is_caption_type(f.type) and not _is_binary(f.type)],
        shown=shown,
        there=there,
    )
    check_columns(schema, image, caption, file=file, shown=shown)
    return image, caption


def check_columns(schema: pa.Schema, image: str, caption: str, *, file: str, shown: str) -> None:
    """Checks that a Parquet file has the two columns.

    Raises:
        DatasetError: One is missing or has the wrong type; the message lists what there is.
    """
    there = _there(schema, file)
    wanted: tuple[tuple[Role, str, Any], ...] = (
        ("image", image, _is_image_type),
        ("caption", caption, _is_caption_type),
    )
    for role, name, fits in wanted:
        position = schema.get_field_index(name)
        if position < 0:
            raise missing(role, name, shown=shown, there=there)
        if not fits(schema.field(position).type):
            raise DatasetError(
                f"the {role} column {name!r} of dataset {shown!r} must hold {_ALLOWED[role]}: "
                f"{there}"
            )


def image_values(column: pa.Array) -> tuple[pa.Array, pa.Array]:
    """A Parquet picture column's bytes and paths, both binary."""
    nothing = pa.nulls(len(column), pa.binary())
    if not pa.types.is_struct(column.type):
        return column, nothing
    # Unlike `field`, `flatten` makes the children of a missing struct missing.
    children = dict(zip((field.name for field in column.type), column.flatten(), strict=True))
    path = children.get("path")
    return children["bytes"], _as_binary(path) if path is not None else nothing


def caption_values(column: pa.Array) -> Iterable[tuple[bytes | None, ...]]:
    """A Parquet caption column's captions, one or more for a row."""
    if not _is_list(column.type):
        return ((caption,) for caption in _as_binary(column).to_pylist())
    return (
        (None,) if row.values is None else tuple(_as_binary(row.values).to_pylist()) or (None,)
        for row in column
    )


def captions_of(value: object) -> tuple[bytes | None, ...]:
    """The captions in a value of a JSON document.

    Args:
        value: Text, a list of text, or nothing.

    Returns:
        One or more, each in the bytes that the document has it in.

    Raises:
        ValueError: It is something else.
    """
    captions: list[bytes | None] = []
    for each in value if isinstance(value, list) else [value]:
        if each is not None and not isinstance(each, str):
            raise ValueError(f"the caption is no text: {json.dumps(value)[:80]}")
        captions.append(None if each is None else text_bytes(each))
    return tuple(captions) or (None,)


def text_bytes(text: str) -> bytes:
    """Bytes of a text that was decoded with `surrogateescape`, as they were."""
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        # A half of a pair, written as an escape of JSON: it is no UTF-8 text, and will be said so.
        return text.encode("utf-8", "surrogatepass")


def is_text(value: object) -> bool:
    """Whether a value of a JSON document can be a caption."""
    if isinstance(value, list):
        return bool(value) and all(isinstance(each, str) for each in value)
    return isinstance(value, str)


@dataclasses.dataclass(frozen=True)
class Prefix:
    """Folders that all names of a table have in front and that the dataset does not have.

    Attributes:
        lead: The folders.
        base: The folder that the rest of a name is relative to.
    """

    lead: tuple[str, ...]
    base: str


def find_prefix(names: Iterable[str], folder: str, existing: Container[str]) -> Prefix | None:
    """Finds what the names of a table have in front, if there is no doubt about it.

    Args:
        names: Some of them.
        folder: The folder that the table is in.
        existing: Paths of the files that there are.

    Returns:
        The only prefix without which any of them is the name of a file; or `None` where one is
        the name of a file as it stands, or none is, or there are several such prefixes.
    """
    prefixes: set[Prefix] = set()
    for name in names:
        given = _normal(name)
        if posixpath.normpath(posixpath.join(folder, given)) in existing:
            return None
        parts = given.strip("/").split("/")
        by_path: dict[str, Prefix] = {}
        for start in range(len(parts)):
            for base in (folder, ""):
                path = posixpath.join(base, *parts[start:])
                if path in existing:
                    by_path.setdefault(path, Prefix(tuple(parts[:start]), base))
        prefixes.update(by_path.values())
    return prefixes.pop() if len(prefixes) == 1 else None


def picture_path(
    name: str, folder: str, existing: Container[str], prefix: Prefix | None = None
) -> str:
    """Finds the file that a row names as its picture.

    Args:
        name: As the row has it.
        folder: The folder that it is relative to.
        existing: Paths of the files that there are.
        prefix: What to leave out where there is no such file.

    Returns:
        The file's path.

    Raises:
        ValueError: The path leads out of the dataset or into a hidden folder, it is not called
            like a picture (the fingerprint does not cover such files), or there is no such file.
    """
    if "://" in name:
        shown = redacted(name)
        raise ValueError(f"{shown!r} is a URL: the pictures must lie in the dataset's folder")
    given = _normal(name)
    path = posixpath.normpath(posixpath.join(folder, given))
    if prefix is not None and path not in existing:
        parts = given.strip("/").split("/")
        if tuple(parts[: len(prefix.lead)]) == prefix.lead:
            path = posixpath.normpath(posixpath.join(prefix.base, *parts[len(prefix.lead) :]))
    if path.startswith("/") or is_hidden(path):
        raise ValueError(f"the path {name!r} leads out of the dataset's folder or is hidden")
    if not is_picture(path):
        raise ValueError(f"{name!r} is not called like a picture")
    if path not in existing:
        raise ValueError(f"no file {name!r}")
    return path


def _normal(name: str) -> str:
    return posixpath.normpath(name.replace("\\", "/"))


def _there(schema: pa.Schema, file: str) -> str:
    columns = ", ".join(f"{field.name} ({_shown_type(field.type)})" for field in schema)
    return f"the columns of {file} are {columns or 'none'}"


def _shown_type(kind: pa.DataType) -> str:
    if pa.types.is_struct(kind):
        return "struct of " + ", ".join(field.name for field in kind)
    return str(kind)


def _features(schema: pa.Schema) -> Mapping[str, Any]:
    """The hub's description of the columns that are there; empty where it has none."""
    try:
        features = json.loads((schema.metadata or {})[_FEATURES_KEY])["info"]["features"]
        return {name: features[name] for name in schema.names if name in features}
    except (KeyError, TypeError, ValueError):
        return {}


def _is_image_feature(feature: Any) -> bool:
    return isinstance(feature, dict) and feature.get("_type") == "Image"


def _is_text_feature(feature: Any) -> bool:
    if isinstance(feature, list) and len(feature) == 1:
        feature = feature[0]
    elif isinstance(feature, dict) and feature.get("_type") in ("List", "LargeList", "Sequence"):
        feature = feature.get("feature")
    return (
        isinstance(feature, dict)
        and feature.get("_type") == "Value"
        and feature.get("dtype") in ("string", "large_string")
    )


def _is_binary(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _is_list(kind: pa.DataType) -> bool:
    return (
        pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    )


def _is_image_type(kind: pa.DataType) -> bool:
    if not pa.types.is_struct(kind):
        return _is_binary(kind)
    position = kind.get_field_index("bytes")
    return position >= 0 and _is_binary(kind[position].type)


def _is_caption_type(kind: pa.DataType) -> bool:
    if _is_list(kind) or pa.types.is_dictionary(kind):
        kind = kind.value_type
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or _is_binary(kind)


def _as_binary(column: pa.Array) -> pa.Array:
    """Text as its bytes, which may turn out not to be UTF-8; reading them as text would fail."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    # Unlike a cast, a view does not import pandas, which takes a fifth of a second.
    if pa.types.is_string(column.type):
        return column.view(pa.binary())
    if pa.types.is_large_string(column.type):
        return column.view(pa.large_binary())
    return column if _is_binary(column.type) else column.cast(pa.binary())
