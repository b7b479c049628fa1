"""Finds the columns with the pictures and the captions, and reads their values."""

from __future__ import annotations

import ast
import base64
import binascii
import dataclasses
import json
import posixpath
import re
import shlex
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal
from urllib.parse import unquote

import pyarrow as pa

from components.caption_example_gen.sources.base import (
    CAPTION_NUMBER,
    PICTURE_SUFFIXES,
    DatasetError,
    DatasetSpec,
    folded,
    is_hidden,
    is_picture,
    names_picture,
)
from storage.addresses import redacted

Role = Literal["image", "caption"]

_PREFERRED: Mapping[Role, tuple[str, ...]] = {
    "image": ("image",),
    "caption": ("text", "caption", "captions", "prompt", "description", "sentences", "raw"),
}
_ALLOWED: Mapping[Role, str] = {
    "image": "structs with binary `bytes`, plain binary, or paths or base64 as text",
    "caption": "text, or lists of text",
}
PATH_COLUMNS = (
    "file_name", "image_path", "image_file", "image_name", "image", "img_path", "img_name", "img",
    "filename", "file_path", "filepath", "path", "file", "picture", "photo", "images",
)  # fmt: skip
"""Usual names of columns with the names of pictures, in lower case, best first."""
ID_COLUMNS = ("id", "image_id", "img_id", "key", "uid", "uuid")
"""Usual names of columns that may name pictures without their suffix, in lower case."""
SPLIT = "split"
"""Name of a column with the split of a record, in lower case."""
NO_CAPTIONS = frozenset({*PATH_COLUMNS, *ID_COLUMNS, "hash", "md5", "sha256", "phash", SPLIT})
"""Columns of text that are not captions, in lower case, unless the user names them."""
# Who answers in a conversation about a picture, and the keys of speaker and text.
_ANSWERERS = frozenset({"gpt", "assistant", "model", "bot"})
_TALKS = (("from", "value"), ("role", "content"))
_SAID = frozenset(said for _, said in _TALKS)
_BASE64_STARTS = ("/9j/", "iVBORw0KGgo", "UklGR", "R0lGOD", "Qk", "SUkq", "TU0A")
_BASE64 = re.compile(r"[A-Za-z0-9+/\s]+={0,2}\s*")
# The start of paths of another machine.
_FILE = "file://"
_DATA_URI = "data:image/"
_BASE64_LEAST = 64
# The metadata key under which the hub's `datasets` library stores features in a Parquet schema.
_FEATURES_KEY = b"huggingface"
# What pandas writes for missing values after a conversion to text.
_NOTHING = frozenset({"nan", "NaN", "NULL", "null", "None", "<NA>", "#N/A"})
# What Label Studio puts before the name of a picture that was uploaded, or served to it.
_UPLOADED = re.compile(r"^(/?data/upload/(?:\d+/)?)[0-9a-f]{8}-(?=[^/]+$)")
_SERVED = re.compile(r"^/?data/local-files/\?d=")


def choose(role: Role, candidates: Sequence[str], *, shown: str, there: str) -> str:
    """Finds the column if the user named none.

    Args:
        role: What the column holds.
        candidates: The columns that could be it.
        shown: Name of the dataset.
        there: The existing columns, for the error: "the columns of x are a, b".

    Returns:
        The only candidate; if there are several, the one with the usual name on the hub.

    Raises:
        DatasetError: There is no candidate, or there are several and none has a usual name.
    """
    if not candidates:
        raise DatasetError(f"dataset {shown!r} has no {role} column: {there}")
    if len(candidates) == 1:
        return candidates[0]
    usual = usually(role, candidates)
    if usual:
        return usual
    raise several(role, candidates, shown=shown)


def usually(role: Role, candidates: Sequence[str]) -> str:
    """The column with the usual name in the hub's datasets; "" if none has one."""
    callings: list[Callable[[str], str]] = [str.lower]
    # Columns inside the same one may have such a name: `sentences.raw` beside its tokens.
    if len({name.partition(".")[0] for name in candidates}) == 1:
        callings.append(_inner_name)
    for preferred in _PREFERRED[role]:
        for called in callings:
            for name in candidates:
                if called(name) == preferred:
                    return name
    return ""


def is_called_caption(name: str) -> bool:
    """Whether a column has a usual name of captions."""
    return name.lower() in _PREFERRED["caption"]


def _inner_name(name: str) -> str:
    return name.rpartition(".")[2].lower()


def several(role: Role, candidates: Sequence[str], *, shown: str) -> DatasetError:
    """The error for several candidates, of which the user must choose one."""
    return DatasetError(
        f"dataset {shown!r} has several columns that could be the {role} column: "
        f"{', '.join(candidates)}; choose one with --{role}-column"
    )


def unlikely(candidates: Sequence[str], *, shown: str, there: str) -> DatasetError:
    """The error for columns of text of which none looks like captions, but one may be meant."""
    flags = " or ".join(f"--caption-column {shlex.quote(name)}" for name in candidates)
    return DatasetError(
        f"dataset {shown!r} has no caption column: {there}, and in "
        f"{', '.join(candidates)} there are only names, ids, numbers or dates; {flags} uses it "
        "anyway"
    )


def missing(role: Role, name: str, *, shown: str, there: str) -> DatasetError:
    """The error for a column that the user named and that does not exist."""
    return DatasetError(
        f"dataset {shown!r} has no {role} column {name!r}: {there}; set --{role}-column to the "
        "right one"
    )


def find_columns(schema: pa.Schema, spec: DatasetSpec, *, file: str, shown: str) -> tuple[str, str]:
    """Finds the two columns of a Parquet file.

    Args:
        schema: Schema of the file.
        spec: Names the columns, or leaves them to be found: by the features that the hub's library
            writes into the schema, else by their types.
        file: Name of the file.
        shown: Name of the dataset.

    Returns:
        Names of the image column and of the caption column.

    Raises:
        DatasetError: A column cannot be found or has the wrong type.
    """
    features = _features(schema)
    there = _there(schema, file)
    image = spec.image_column or choose(
        "image",
        [name for name, feature in features.items() if _is_image_feature(feature)]
        or [field.name for field in schema if _is_picture_type(field.type)]
        or _best_path_column([field.name for field in schema if _is_text_type(field.type)]),
        shown=shown,
        there=there,
    )
    caption = spec.caption_column
    if not caption:
        candidates = (
            [name for name, feature in features.items() if _is_text_feature(feature)]
            # Binary may hold text, but it looks like pictures, so the user must name it.
            or [f.name for f in schema if _is_caption_type(f.type) and not _is_binary(f.type)]
            or [name for f in schema for name in _nested_texts(f) if f.name != image]
        )
        candidates = [name for name in candidates if name != image]
        likely = [name for name in candidates if name.lower() not in NO_CAPTIONS]
        if not (likely or spec.captions_given):
            # A column of that name may hold captions, if no value is the word for a split.
            likely = [name for name in candidates if name.lower() == SPLIT]
            if candidates and not likely:
                raise unlikely(candidates, shown=shown, there=there)
        if likely or not spec.captions_given:
            caption = choose("caption", likely, shown=shown, there=there)
    check_columns(schema, image, caption, file=file, shown=shown)
    return image, caption


def check_columns(schema: pa.Schema, image: str, caption: str, *, file: str, shown: str) -> None:
    """Checks that a Parquet file has the two columns.

    Raises:
        DatasetError: A column is missing or has the wrong type; the message lists the columns.
    """
    there = _there(schema, file)
    wanted: tuple[tuple[Role, str, Any], ...] = (
        ("image", image, _is_image_type),
        ("caption", caption, _is_caption_type),
    )
    for role, name, fits in wanted:
        # Captions that the user gave have no column.
        if not name:
            continue
        kind = _type_at(schema, name)
        if kind is None:
            raise missing(role, name, shown=shown, there=there)
        if not fits(kind):
            raise DatasetError(
                f"the {role} column {name!r} of dataset {shown!r} must hold {_ALLOWED[role]}: "
                f"{there}"
            )


def split_column(schema: pa.Schema, caption: str) -> str:
    """The column of text that may name the split of a row; "" if there is none."""
    found = (
        field.name
        for field in schema
        if field.name.lower() == SPLIT and field.name != caption and _is_word_type(field.type)
    )
    return next(found, "")


def top_column(schema: pa.Schema, name: str) -> str:
    """The top-level column of a schema that contains a name such as `sentences.raw`."""
    return name if schema.get_field_index(name) >= 0 else name.partition(".")[0]


def image_values(column: pa.Array) -> tuple[pa.Array, pa.Array]:
    """The bytes of a picture column, and its paths or other texts for pictures, both binary."""
    if _is_list(column.type):
        column = _only_values(column)
    nothing = pa.nulls(len(column), pa.binary())
    if not pa.types.is_struct(column.type):
        return (column, nothing) if _is_binary(column.type) else (nothing, _as_binary(column))
    # Unlike `field`, `flatten` makes the children of a missing struct missing.
    children = dict(zip((field.name for field in column.type), column.flatten(), strict=True))
    path = children.get("path")
    return children["bytes"], _as_binary(path) if path is not None else nothing


def _only_values(column: pa.Array) -> pa.Array:
    """The value of each list that has exactly one; missing for other lists."""
    values, places, start = column.flatten(), [], 0
    for row in column:
        length = 0 if row.values is None else len(row.values)
        places.append(start if length == 1 else None)
        start += length
    return values.take(pa.array(places, pa.int64()))


def number_of(column: pa.Array) -> list[int]:
    """The number of pictures in each row of a picture column."""
    if not _is_list(column.type):
        return [1] * len(column)
    return [0 if row.values is None else len(row.values) for row in column]


def caption_values(column: pa.Array, inner: str = "") -> Iterable[tuple[bytes | None, ...]]:
    """The captions of a caption column, one or more for each row.

    Args:
        column: Text, lists of text, or a column that contains `inner`.
        inner: The rest of a name such as `sentences.raw`.
    """
    if inner:
        return (_nested_captions(value, inner) for value in column)
    if not _is_list(column.type):
        return ((caption,) for caption in _as_binary(column).to_pylist())
    return (
        (None,) if row.values is None else tuple(_as_binary(row.values).to_pylist()) or (None,)
        for row in column
    )


def _nested_captions(value: pa.Scalar, inner: str) -> tuple[bytes | None, ...]:
    try:
        return captions_of(value_at({"": _as_mappings(value.as_py())}, f".{inner}"))
    # The row has bytes that are not text in place of its caption.
    except UnicodeDecodeError as error:
        return (error.object,)


def _as_mappings(value: Any) -> Any:
    """A mapping for a value of Arrow's map type, which is a list of pairs."""
    if isinstance(value, list) and value and all(isinstance(each, tuple) for each in value):
        return dict(value)
    return value


def value_at(values: Mapping[str, Any], name: str) -> Any:
    """The value that a record has under a name such as `text`, `caption.en` or `sentences.raw`.

    Args:
        values: The record.
        name: A key, or keys joined by dots. Each key is looked up in the mapping, or in every
            mapping of the list, under the key before it; in a conversation, in the answers.

    Returns:
        The value; `None` if there is none.
    """
    if name in values:
        return values[name]
    first, dot, rest = name.partition(".")
    value = values.get(first)
    if not dot:
        return None
    if isinstance(value, Mapping):
        return value_at(value, rest)
    if isinstance(value, list):
        answers = answers_in(value)
        if answers is not None and rest in _SAID:
            return answers
        found = [value_at(each, rest) for each in value if isinstance(each, Mapping)]
        return [inner for each in found for inner in (each if isinstance(each, list) else [each])]
    return None


def nested_names(name: str, value: object) -> Iterable[str]:
    """The names of texts inside a value of a record, one level down: `caption.en`."""
    is_talk = answers_in(value) is not None
    inner = value if isinstance(value, list) else [value]
    keys = dict.fromkeys(
        key
        for each in inner
        if isinstance(each, Mapping)
        for key, found in each.items()
        if is_text(found) and (not is_talk or key in _SAID)
    )
    return (f"{name}.{key}" for key in keys)


def json_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Makes a JSON object; by default, the last of two values of a key would win silently.

    Raises:
        ValueError: A key occurs twice.
    """
    values = dict(pairs)
    if len(values) < len(pairs):
        [(key, _)] = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"the key {key!r} is there twice")
    return values


def says_something(key: str, value: object) -> bool:
    """Whether a JSON value that belongs to one picture can be its caption."""
    if not is_text(value) or key.lower() in NO_CAPTIONS:
        return False
    if not isinstance(value, str):
        return True
    is_name = is_url(value) or looks_like_picture(value)
    return not (is_name or value.strip().isdigit() or not value.strip())


def captions_of(value: object) -> tuple[bytes | None, ...]:
    """The captions in a value of a JSON document.

    Args:
        value: Text, a list of text, a conversation, of which the answers count, or `None`.

    Returns:
        One or more captions, each with its bytes as they are in the document.

    Raises:
        ValueError: The value is something else.
    """
    captions: list[bytes | None] = []
    found: list[Any] = value if isinstance(value, list) else [value]
    if isinstance(value, str) and value.startswith("["):
        found = _list_in(value) or found
    for each in answers_in(value) or found:
        if each is not None and not isinstance(each, str):
            raise ValueError(f"the caption is no text: {json.dumps(value)[:80]}")
        captions.append(None if each is None or each in _NOTHING else text_bytes(each))
    return tuple(captions) or (None,)


def _list_in(text: str) -> list[str]:
    """The captions in a list that JSON or Python wrote as text; empty for any other text."""
    for parse in (json.loads, ast.literal_eval):
        try:
            values = parse(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        if isinstance(values, list) and all(isinstance(value, str) for value in values):
            return values
    return []


def answers_in(value: object) -> list[str] | None:
    """The answers in a conversation about a picture, as in LLaVA; `None` for other values."""
    if not isinstance(value, list) or not all(isinstance(each, Mapping) for each in value):
        return None
    for who, said in _TALKS:
        texts = [_text_said(each.get(said)) for each in value]
        if all(isinstance(each.get(who), str) for each in value) and None not in texts:
            pairs = zip(value, texts, strict=True)
            return [text for each, text in pairs if text and each[who].lower() in _ANSWERERS]
    return None


def _text_said(value: object) -> str | None:
    """The text of a turn in a conversation, which may have parts; `None` for other values."""
    if not isinstance(value, list):
        return value if isinstance(value, str) else None
    if not all(isinstance(part, Mapping) for part in value):
        return None
    return "\n".join(part["text"] for part in value if isinstance(part.get("text"), str))


def text_bytes(text: str) -> bytes:
    """The original bytes of a text that was decoded with `surrogateescape`."""
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        # An unpaired surrogate, written as a JSON escape: the row is rejected as not UTF-8.
        return text.encode("utf-8", "surrogatepass")


def looks_like_picture(value: object) -> bool:
    """Whether a value of a table is the name of a picture, or a picture in base64."""
    if isinstance(value, list):
        return len(value) == 1 and looks_like_picture(value[0])
    if isinstance(value, Mapping):
        return any(looks_like_picture(value.get(key)) for key in ("path", "bytes", *PATH_COLUMNS))
    if not isinstance(value, str) or "\n" in value.strip() or is_url(value):
        return False
    return names_picture(value.strip()) or is_encoded(value)


def is_url(value: object) -> bool:
    """Whether a value of a table is the URL of a picture."""
    return isinstance(value, str) and value.lstrip().lower().startswith(("http://", "https://"))


def is_encoded(text: str) -> bool:
    """Whether a text is a picture in base64, with or without the head of a data URI."""
    if text.startswith(_DATA_URI):
        return True
    return (
        len(text) >= _BASE64_LEAST
        and text.startswith(_BASE64_STARTS)
        and _BASE64.fullmatch(text) is not None
    )


def decoded(text: str) -> bytes:
    """The picture in a text for which `is_encoded` is true.

    Raises:
        ValueError: The text is not valid base64.
    """
    if text.startswith(_DATA_URI):
        head, _, text = text.partition(",")
        if not head.endswith(";base64"):
            raise ValueError("the data URI is not in base64")
    try:
        return base64.b64decode("".join(text.split()) + "=" * (-len("".join(text.split())) % 4))
    except binascii.Error as error:
        raise ValueError(f"the picture is no base64: {error}") from error


def is_number(value: object) -> bool:
    """Whether a value of a JSON document is a number that may be the name of a picture."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_text(value: object) -> bool:
    """Whether a value of a JSON document can be one or several captions."""
    if isinstance(value, list):
        is_list = bool(value) and all(isinstance(each, str) for each in value)
        return is_list or bool(answers_in(value))
    return isinstance(value, str)


@dataclasses.dataclass(frozen=True)
class Prefix:
    """Leading folders in all names of a table that the dataset does not have.

    Attributes:
        lead: The leading folders.
        base: The folder that the rest of a name is relative to.
    """

    lead: tuple[str, ...]
    base: str


class Pictures:
    """The pictures that a table may name."""

    def __init__(self, paths: Collection[str]) -> None:
        """Stores the paths of the dataset's files."""
        self._paths = paths
        self._folded: dict[str, str] | None = None

    def __contains__(self, path: object) -> bool:
        return path in self._paths

    def __iter__(self) -> Iterator[str]:
        return iter(self._paths)

    def find(self, path: str) -> str:
        """The file that a path stands for; "" if there is none.

        The path may lack the suffix, or be escaped as in a URL.
        """
        candidates = [path]
        if "%" in path:
            candidates.append(unquote(path, errors="surrogateescape"))
        if "#" in path:
            candidates.append(CAPTION_NUMBER.sub("", path))
        for candidate in candidates:
            if candidate in self._paths:
                return candidate
        if not is_picture(path):
            for suffix in (*PICTURE_SUFFIXES, *map(str.upper, PICTURE_SUFFIXES)):
                if path + suffix in self._paths:
                    return path + suffix
        return ""

    def alike(self, path: str) -> str:
        """The only picture whose path differs just in case or encoding of accents; or "".

        Tables have precomposed accents, the file names of macOS do not.
        """
        if self._folded is None:
            self._folded = {}
            for there in filter(is_picture, self._paths):
                key = folded(there)
                self._folded[key] = "" if key in self._folded else there
        return self._folded.get(folded(path), "")


def find_prefix(names: Iterable[str], table: str, pictures: Pictures) -> Prefix | None:
    """Finds out what the names of a table are relative to, if this is unambiguous.

    Args:
        names: Some of the names.
        table: Path of the table.
        pictures: The files of the dataset.

    Returns:
        The prefix with which most names become names of files; or `None` if a name is already the
        name of a file, if no prefix fits, or if several fit equally many names. Among equals, the
        prefix wins whose folder the table is named after, as `captions_train2017.json` is named
        after `train2017`.
    """
    folder = posixpath.dirname(table)
    wanted: dict[str, list[tuple[str, ...]]] = {}
    for name in names:
        for written in _writings(name):
            given = CAPTION_NUMBER.sub("", written)
            if pictures.find(posixpath.normpath(posixpath.join(folder, given))):
                return None
            parts = tuple(given.strip("/").split("/"))
            wanted.setdefault(folded(parts[-1]), []).append(parts)
    fits: Counter[Prefix] = Counter()
    for path in pictures:
        *above, last = path.split("/")
        last = folded(last)
        stem = posixpath.splitext(last)[0]
        for parts in {p for n in {last, stem} for p in wanted.get(n, ())}:
            common = 1
            while common < min(len(parts), len(above) + 1) and parts[-common - 1] == above[-common]:
                common += 1
            lead = parts[: len(parts) - common]
            fits[Prefix(lead, "/".join(above[: len(above) + 1 - common]))] += 1
    most = max(fits.values(), default=0)
    best = [prefix for prefix, count in fits.items() if count == most]
    if len(best) > 1:
        called = posixpath.basename(table)
        best = [p for p in best if p.base and posixpath.basename(p.base) in called]
    return best[0] if len(best) == 1 else None


def picture_path(name: str, folder: str, pictures: Pictures, prefix: Prefix | None = None) -> str:
    """Finds the file that a row names as its picture.

    Args:
        name: The name in the row.
        folder: The folder that it is relative to.
        pictures: The files of the dataset.
        prefix: The prefix to replace if there is no such file.

    Returns:
        The file's path.

    Raises:
        ValueError: The path leads out of the dataset or into a hidden folder, it lacks the suffix
            of a picture (the fingerprint does not cover such files), or there is no such file.
    """
    if "://" in name.removeprefix(_FILE):
        shown = redacted(name)
        raise ValueError(f"{shown!r} is a URL: the pictures must lie in the dataset's folder")
    places = _places(name, folder, prefix)
    path = next(places)
    found = pictures.find(path)
    if not found:
        paths = [path, *places]
        found = next(filter(None, map(pictures.find, paths[1:])), "")
        found = found or next(filter(None, map(pictures.alike, paths)), "")
        path = paths[-1]
    if path.startswith("/") or is_hidden(path):
        raise ValueError(f"the path {name!r} leads out of the dataset's folder or is hidden")
    if not is_picture(found or path) and posixpath.splitext(path)[1]:
        raise ValueError(f"{name!r} is not called like a picture")
    if not found:
        raise ValueError(f"no file {name!r}")
    return found


def _places(name: str, folder: str, prefix: Prefix | None) -> Iterator[str]:
    """Paths where the file that a row names may be, starting with the path as written."""
    for given in _writings(name):
        yield posixpath.normpath(posixpath.join(folder, given))
        parts = given.strip("/").split("/")
        if prefix is not None and tuple(parts[: len(prefix.lead)]) == prefix.lead:
            below = posixpath.join(prefix.base, *parts[len(prefix.lead) :])
            yield posixpath.normpath(below)


def _writings(name: str) -> Iterator[str]:
    """Paths that a name may stand for, relative to some folder."""
    yield _normal(name)
    uploaded = _SERVED.sub("", _UPLOADED.sub(r"\1", name))
    if uploaded != name:
        yield _normal(uploaded)


def _normal(name: str) -> str:
    return posixpath.normpath(name.removeprefix(_FILE).replace("\\", "/"))


def _there(schema: pa.Schema, file: str) -> str:
    columns = ", ".join(f"{field.name} ({_shown_type(field.type)})" for field in schema)
    return f"the columns of {file} are {columns or 'none'}"


def _shown_type(kind: pa.DataType) -> str:
    if pa.types.is_struct(kind):
        return "struct of " + ", ".join(field.name for field in kind)
    return str(kind)


def _features(schema: pa.Schema) -> Mapping[str, Any]:
    """The hub's description of the existing columns; empty if there is none."""
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


def _type_at(schema: pa.Schema, name: str) -> pa.DataType | None:
    """The type of a column, or of the value inside it for a name such as `sentences.raw`."""
    top = top_column(schema, name)
    position = schema.get_field_index(top)
    if position < 0:
        return None
    kind = schema.field(position).type
    for part in filter(None, name[len(top) :].split(".")):
        while _is_list(kind):
            kind = kind.value_type
        if pa.types.is_map(kind):
            kind = kind.item_type
        elif pa.types.is_struct(kind) and kind.get_field_index(part) >= 0:
            kind = kind[kind.get_field_index(part)].type
        else:
            return None
    return kind


def _nested_texts(field: pa.Field) -> list[str]:
    kind = field.type.value_type if _is_list(field.type) else field.type
    if not pa.types.is_struct(kind):
        return []
    names = {inner.name for inner in kind}
    for who, said in _TALKS if _is_list(field.type) else ():
        if {who, said} <= names:
            return [f"{field.name}.{said}"]
    return [f"{field.name}.{inner.name}" for inner in kind if _is_text_type(inner.type)]


def _best_path_column(names: Sequence[str]) -> list[str]:
    lower = {name.lower(): name for name in reversed(names)}
    return [lower[name] for name in PATH_COLUMNS if name in lower][:1]


def _is_text_type(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _is_word_type(kind: pa.DataType) -> bool:
    return _is_text_type(kind.value_type if pa.types.is_dictionary(kind) else kind)


def _is_image_type(kind: pa.DataType) -> bool:
    return _is_picture_type(kind) or _is_text_type(kind)


def _is_picture_type(kind: pa.DataType) -> bool:
    # A list with one picture counts as that picture.
    if _is_list(kind):
        return pa.types.is_struct(kind.value_type) and _is_picture_type(kind.value_type)
    if not pa.types.is_struct(kind):
        return _is_binary(kind)
    position = kind.get_field_index("bytes")
    return position >= 0 and _is_binary(kind[position].type)


def _is_caption_type(kind: pa.DataType) -> bool:
    if _is_list(kind) or pa.types.is_dictionary(kind):
        kind = kind.value_type
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or _is_binary(kind)


def _as_binary(column: pa.Array) -> pa.Array:
    """The bytes of a text column, which may not be UTF-8; reading them as text would fail."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    # Unlike a cast, a view does not import pandas, which takes a fifth of a second.
    if pa.types.is_string(column.type):
        return column.view(pa.binary())
    if pa.types.is_large_string(column.type):
        return column.view(pa.large_binary())
    return column if _is_binary(column.type) else column.cast(pa.binary())
