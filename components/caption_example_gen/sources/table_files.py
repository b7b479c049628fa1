"""Reads tables of records: CSV and the like, JSON lines, and JSON documents.

Lines are read as streams, and reading can start in the middle. A document or a table in UTF-16 is
held in memory as a whole.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, BinaryIO, cast

from components.caption_example_gen.sources import columns, encodings
from components.caption_example_gen.sources.base import (
    DatasetError,
    Files,
    is_picture,
    names_picture,
)
from storage.errors import one_line

CSV_SUFFIXES = (".csv", ".tsv", ".psv")
"""Suffixes of tables of fields, in lower case."""
LINES_SUFFIXES = (".jsonl", ".ndjson")
"""Suffixes of files of JSON lines, in lower case."""
DOCUMENT_SUFFIX = ".json"
"""Suffix of JSON documents, in lower case; some contain JSON lines."""

GLANCE = "surrogateescape"
"""How to decode bytes of another encoding if only the form of a table matters."""

Interpret = Callable[[Any], "list[dict[str, Any]] | None"]
"""Finds the records in a JSON document; `None` if it is not of the form."""

_BUFFER_BYTES = 1 << 20
_FIRST_BYTES = 64
_FIELD_CHARACTERS = 64 << 20
# Records of a list that are inspected to distinguish it from others.
_LOOK_AT = 16
_PANDAS_SPLIT = frozenset({"columns", "index", "data"})
_DELIMITERS = ",;\t|"
_EXCEL = re.compile(r'"?sep=.?"?', re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class Record:
    """One record of a table.

    Attributes:
        offset: Where it starts: a byte of the file, or the position in the list of a document.
        number: Its number in the file, from 0.
        values: Values by column.
        problem: Why the record cannot be read, for users; "" if it can.
        raw: The bytes of a record that cannot be read.
    """

    offset: int
    number: int
    values: Mapping[str, Any]
    problem: str = ""
    raw: bytes = b""


class TableFiles:
    """The tables of a dataset, read one record at a time."""

    def __init__(
        self, files: Files, interpret: Interpret | None = None, *, is_glance: bool = False
    ) -> None:
        """Reads nothing yet.

        Args:
            files: The dataset's files.
            interpret: Finds the records in a JSON document; `None` for a list of them.
            is_glance: Whether only the form of a table matters, whatever its encoding.
        """
        self.files = files
        self._interpret = interpret or records_in
        self._errors = GLANCE if is_glance else "strict"
        # The last document: the units of one file follow one another.
        self._document: tuple[str, list[dict[str, Any]] | None] = ("", None)

    def records(self, path: str, start: int = 0, number: int = 0) -> Iterator[Record]:
        """The records of a table.

        Args:
            path: The table.
            start: The `offset` of the first record to read, or 0.
            number: The number of that record.

        Yields:
            Records.

        Raises:
            DatasetError: The table cannot be read, is neither UTF-8 nor UTF-16, has no header, or
                has no records.
        """
        if path.lower().endswith(DOCUMENT_SUFFIX) or self._is_list(path):
            document = self._read_document(path)
            if document is not None:
                for index in range(start, len(document)):
                    yield Record(index, number + index - start, document[index])
                return
        with _buffered(self.files.open(path)) as f:
            yield from read_records(f, path, self.files.shown, start, number, errors=self._errors)

    def header(self, path: str) -> list[str] | None:
        """The columns that a table names before its records; `None` if it has no header."""
        if not is_csv(path):
            return None
        with _buffered(self.files.open(path)) as f:
            return csv_header(f, path, self.files.shown)

    def _is_list(self, path: str) -> bool:
        """Whether a file with the suffix of JSON lines contains a JSON list instead."""
        if not path.lower().endswith(LINES_SUFFIXES):
            return False
        with self.files.peek(path) as f:
            return encodings.utf8(f.read(_FIRST_BYTES)).lstrip().startswith(b"[")

    def _read_document(self, path: str) -> list[dict[str, Any]] | None:
        """The records of a document; `None` if it contains JSON lines."""
        if self._document[0] != path:
            with self.files.open(path) as f:
                content = f.read()
            document = parse_document(content, path, self.files.shown, self._errors)
            found = None if document is None else self._interpret(document)
            if document is not None and found is None:
                raise DatasetError(
                    f"{path} in dataset {self.files.shown!r} is JSON without records that name "
                    "pictures"
                )
            self._document = (path, found)
        return self._document[1]


def is_csv(path: str) -> bool:
    """Whether a file has the suffix of a table of fields, such as Flickr8k's `captions.txt`."""
    return path.lower().endswith((*CSV_SUFFIXES, ".txt"))


def parse_document(content: bytes, path: str, shown: str, errors: str = "strict") -> Any:
    """Parses a JSON document.

    Args:
        content: The file's bytes.
        path: The file's path.
        shown: Name of the dataset.
        errors: `GLANCE` if its encoding does not matter.

    Returns:
        Its content; `None` if it is not one document, but a line of JSON for each record.

    Raises:
        DatasetError: It is not valid JSON, or its encoding is neither UTF-8 nor UTF-16.
    """
    where = f"{path} in dataset {shown!r}"
    try:
        text = encodings.decoded(content, errors)
    except UnicodeDecodeError as error:
        raise DatasetError(f"{where} {encodings.complaint_about(content, path)}") from error
    try:
        return json.loads(text, object_pairs_hook=columns.json_object)
    except (ValueError, RecursionError) as error:
        first = text.lstrip().split("\n", 1)[0]
        try:
            if isinstance(json.loads(first), dict):
                return None
        except (ValueError, RecursionError):
            pass
        raise DatasetError(f"{where} is not valid JSON: {one_line(error)}") from error


def records_in(document: Any) -> list[dict[str, Any]] | None:
    """The records in a list, in a list of a mapping, in names with captions, or by columns.

    If a mapping has several lists, the only one with pictures and captions counts.
    """
    if isinstance(document, dict):
        lists = [value for value in document.values() if _are_records(value)]
        if len(lists) > 1:
            lists = [value for value in lists if any(map(_is_captioned, value[:_LOOK_AT]))]
        if len(lists) == 1:
            return cast(list[dict[str, Any]], lists[0])
        if document and all(isinstance(value, str | dict | list) for value in document.values()):
            if not (all(map(is_picture, document)) or _are_texts(document.values())):
                return _by_columns(document)
            return [
                {"file_name": name, **(value if isinstance(value, dict) else {"text": value})}
                for name, value in document.items()
            ]
        return None
    if _are_rows(document):
        return [{f"column_{i + 1}": v for i, v in enumerate(values)} for values in document]
    return document if _are_records(document) else None


def _by_columns(document: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    """The records of a table that is stored by column, as pandas and others do."""
    names: Sequence[str] = list(document)
    if document.keys() == _PANDAS_SPLIT and _are_rows(document["data"]):
        names, rows = document["columns"], document["data"]
        return [dict(zip(names, row, strict=False)) for row in rows]
    values = list(document.values())
    if len(values) < 2:
        return None
    # Mappings from row number to value.
    if all(isinstance(each, dict) and each.keys() == values[0].keys() for each in values):
        return [{name: document[name][row] for name in names} for row in values[0]]
    if all(isinstance(each, list) and len(each) == len(values[0]) for each in values):
        return [dict(zip(names, row, strict=True)) for row in zip(*values, strict=True)]
    return None


def lists_in(document: Any) -> dict[str, list[dict[str, Any]]]:
    """The lists of records of a mapping, by name."""
    if not isinstance(document, dict):
        return {}
    return {str(name): value for name, value in document.items() if _are_records(value)}


def _are_texts(values: Iterable[object]) -> bool:
    return all(isinstance(value, str) for value in values)


def _are_rows(value: object) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(row, list) and len(row) == len(value[0]) for row in value)
        and len(value[0]) > 1
    )


def _is_captioned(record: Mapping[str, Any]) -> bool:
    """Whether a record has a picture, and a column with a usual name of captions."""
    return any(map(columns.looks_like_picture, record.values())) and any(
        map(columns.is_called_caption, record)
    )


def _are_records(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(x, dict) for x in value)


def read_records(
    f: BinaryIO,
    file: str,
    shown: str,
    start: int = 0,
    number: int = 0,
    *,
    errors: str = "strict",
) -> Iterator[Record]:
    """Reads a table of lines, one record at a time.

    Args:
        f: The table, at its start.
        file: Its name, which distinguishes fields from JSON.
        shown: Name of the dataset.
        start: The byte to start at: the start of a record, or 0.
        number: The number of that record.
        errors: `GLANCE` if its encoding does not matter.

    Yields:
        Records.

    Raises:
        DatasetError: The table cannot be read, is neither UTF-8 nor UTF-16, or has no header.
    """
    try:
        table = _Table(_as_utf8(f, file, shown), file, shown, errors)
        if is_csv(file):
            yield from _csv_records(table, start, number)
        else:
            yield from _json_records(table.lines(start), number)
    except OSError as error:
        raise DatasetError(
            f"{file} in dataset {shown!r} cannot be read: {one_line(error)}"
        ) from error


def csv_header(f: BinaryIO, file: str, shown: str) -> list[str]:
    """Reads the names of a CSV file's columns, and leaves the position after them.

    Raises:
        DatasetError: The file has no columns.
    """
    table = _Table(_as_utf8(f, file, shown), file, shown, "strict")
    return _csv_header(table, table.lines(0)).names


def _as_utf8(f: BinaryIO, file: str, shown: str) -> BinaryIO:
    """The same file, transcoded to UTF-8 if it is in UTF-16."""
    encoding = encodings.utf16_of(f.read(2))
    f.seek(0)
    if not encoding:
        return f
    try:
        return io.BytesIO(f.read().decode(encoding).encode())
    except UnicodeError as error:
        raise DatasetError(
            f"{file} in dataset {shown!r} is not valid UTF-16: {one_line(error)}; save it as UTF-8"
        ) from error


@dataclasses.dataclass(frozen=True)
class _Header:
    """The columns of a CSV file, its delimiter, and where its records start."""

    names: list[str]
    delimiter: str
    end: int


def _csv_header(table: _Table, lines: _Lines) -> _Header:
    before = 0
    try:
        for line in lines:
            start, before = before, lines.offset
            # A first line that Excel adds may name the delimiter.
            if not line.strip() or _EXCEL.fullmatch(line.strip()):
                continue
            delimiter = _delimiter(line, table.file)
            fields = next(csv.reader([line], strict=True, **_dialect(delimiter)))
            _check_no_nul(fields)
            names = _told_apart([name.strip() for name in fields])
            if len(names) > 1 and any(map(_is_value, fields)):
                # This line is the first record, not a header.
                names = [f"column_{index + 1}" for index in range(len(names))]
                return _Header(names, delimiter, start)
            return _Header(names, delimiter, lines.offset)
        reason = "it is empty"
    except csv.Error as error:
        reason = one_line(error)
    raise DatasetError(f"{table.where} has no header with the columns: {reason}")


def _is_value(field: str) -> bool:
    """Whether a field of a table's first line is a value and not the name of a column."""
    name = field.strip()
    return names_picture(name) or "://" in name or columns.is_encoded(name)


def _told_apart(names: Sequence[str]) -> list[str]:
    """The names of columns, with the column number appended to those that occur twice."""
    counts = Counter(names)
    return [
        name if counts[name] == 1 else f"{name} (column {index + 1})".lstrip()
        for index, name in enumerate(names)
    ]


def _delimiter(header: str, file: str) -> str:
    # Some files with this suffix have commas.
    if file.lower().endswith(".tsv") and "\t" in header:
        return "\t"
    # Without a header, captions may contain any delimiter, but the name of a picture none.
    named = [
        each for each in _DELIMITERS if any(names_picture(n.strip()) for n in header.split(each))
    ]
    # If the number of fields is equal, commas win.
    return max(named or _DELIMITERS, key=header.count)


def _dialect(delimiter: str) -> Mapping[str, Any]:
    # This limit holds for all readers, and has room for a picture in base64.
    csv.field_size_limit(_FIELD_CHARACTERS)
    return {"delimiter": delimiter, "skipinitialspace": delimiter in ";|"}


def _check_no_nul(fields: Sequence[str]) -> None:
    """Raises a `csv.Error` as in Python 3.10, of the old stack; newer versions do not.

    Captions and file names never contain NUL, but binary data or UTF-16 in place of a table does.
    """
    if any("\0" in field for field in fields):
        raise csv.Error("line contains NUL")


def _csv_records(table: _Table, start: int, number: int) -> Iterator[Record]:
    found = _csv_header(table, table.lines(0))
    header = found.names
    lines = table.lines(start or found.end)
    # Without `strict`, a quote out of place would silently join records.
    reader = csv.reader(lines, strict=True, **_dialect(found.delimiter))
    while True:
        lines.raw.clear()
        offset = lines.offset
        try:
            fields = next(reader, None)
            _check_no_nul(fields or [])
        except csv.Error as error:
            problem = f"the record is no CSV: {one_line(error)}"
            yield Record(offset, number, {}, problem, b"".join(lines.raw).rstrip(b"\r\n"))
            number += 1
            continue
        if fields is None:
            return
        if not fields:
            continue
        if any(fields[len(header) :]):
            problem = (
                f"the record has {len(fields)} fields, the columns are {len(header)}: a field "
                "with a comma needs quotes"
            )
            yield Record(offset, number, {}, problem, b"".join(lines.raw).rstrip(b"\r\n"))
        else:
            yield Record(offset, number, dict(zip(header, fields, strict=False)))
        number += 1


def _json_records(lines: _Lines, number: int) -> Iterator[Record]:
    while True:
        lines.raw.clear()
        offset = lines.offset
        line = next(lines, None)
        if line is None:
            return
        if not line.strip():
            continue
        try:
            values = json.loads(line, object_pairs_hook=columns.json_object)
            problem = "" if isinstance(values, dict) else "the record is no JSON object"
        except (ValueError, RecursionError) as error:
            values, problem = None, f"the record is no JSON: {one_line(error)}"
        if problem:
            yield Record(offset, number, {}, problem, b"".join(lines.raw).rstrip(b"\r\n"))
        else:
            yield Record(offset, number, values)
        number += 1


@dataclasses.dataclass(frozen=True)
class _Table:
    """An open table, not in UTF-16, and how bytes that are not UTF-8 are handled."""

    f: BinaryIO
    file: str
    shown: str
    errors: str

    @property
    def where(self) -> str:
        return f"{self.file} in dataset {self.shown!r}"

    def lines(self, offset: int) -> _Lines:
        """The lines from a byte on."""
        self.f.seek(offset)
        return _Lines(self, offset)

    def not_utf8(self, byte: int, value: bytes) -> DatasetError:
        """The error for a byte that is not UTF-8; reads everything before it."""
        self.f.seek(0)
        line, left = 1, byte
        while left and (chunk := self.f.read(min(left, _BUFFER_BYTES))):
            line += chunk.count(b"\n")
            left -= len(chunk)
        return DatasetError(f"{self.where} {encodings.complaint(self.file, byte, line, value)}")


class _Lines(Iterator[str]):
    """Decoded lines of a file; keeps its position, and the bytes since `raw` was cleared."""

    def __init__(self, table: _Table, offset: int) -> None:
        self._table = table
        self._f = table.f
        self.offset = offset
        self.raw: list[bytes] = []

    def __next__(self) -> str:
        line = self._f.readline()
        if not line:
            raise StopIteration
        text = line.removeprefix(encodings.UTF8_BOM) if self.offset == 0 else line
        self.offset += len(line)
        self.raw.append(line)
        try:
            return text.decode("utf-8", self._table.errors)
        except UnicodeDecodeError as error:
            byte = self.offset - len(text) + error.start
            raise self._table.not_utf8(byte, text[error.start : error.start + 1]) from error


def _buffered(f: BinaryIO) -> BinaryIO:
    # Unbuffered, files of object stores read a block of megabytes for every line.
    return f if isinstance(f, io.BufferedReader) else io.BufferedReader(cast(Any, f), _BUFFER_BYTES)
