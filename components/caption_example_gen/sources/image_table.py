"""Picture files with a table beside them that names them and has their captions.

Two conventions: the hub's image folder (`metadata.jsonl` or `metadata.csv` with `file_name`), and
the folder of the Keras example (`data.csv` with `image_path` and `caption`).
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import posixpath
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, BinaryIO, cast

from components.caption_example_gen.sources import columns
from components.caption_example_gen.sources.base import (
    DatasetError,
    DatasetSpec,
    Files,
    Row,
    Source,
    Unit,
    is_picture,
)
from components.caption_example_gen.sources.files import read_whole
from storage.errors import one_line

KERAS_TABLE = "data.csv"
"""Name of the table of the Keras example."""
HUB_TABLES = ("metadata.jsonl", "metadata.csv")
"""Names of the tables of the hub's image folders."""
UNNAMED = "no record of a table names this picture"
"""What is wrong with a picture that has no record."""

_UNIT_ROWS = 256
# Records that are looked at to find the columns.
_LOOK_AT = 256
_BUFFER_BYTES = 1 << 20
_BOM = b"\xef\xbb\xbf"
_KERAS_IMAGE, _HUB_IMAGE = "image_path", "file_name"


@dataclasses.dataclass(frozen=True)
class Record:
    """One record of a table.

    Attributes:
        offset: The byte of the file that it starts at.
        number: Its number in the file, from 0.
        values: By column.
        problem: Why the record cannot be read, for people; "" where it can.
        raw: The bytes of a record that cannot be read.
    """

    offset: int
    number: int
    values: Mapping[str, Any]
    problem: str = ""
    raw: bytes = b""


@dataclasses.dataclass(frozen=True)
class Table:
    """How to read the tables of a dataset.

    Attributes:
        image_column: Names the pictures.
        caption_column: Holds the captions.
    """

    image_column: str
    caption_column: str

    def name(self, record: Record) -> str:
        """The picture's name as a record has it; "" where it has none."""
        name = record.values.get(self.image_column)
        return name if isinstance(name, str) else ""

    def picture(
        self,
        record: Record,
        folder: str,
        existing: Container[str],
        prefix: columns.Prefix | None,
    ) -> str:
        """The path of a record's picture; see `columns.picture_path`.

        Raises:
            ValueError: The record names none, or one that must not or cannot be read.
        """
        if record.problem:
            raise ValueError(record.problem)
        name = self.name(record)
        if not name.strip():
            raise ValueError(f"the record names no picture in {self.image_column!r}")
        return columns.picture_path(name, folder, existing, prefix)

    def prefix(
        self, records: Iterable[Record], folder: str, existing: Container[str]
    ) -> columns.Prefix | None:
        """What the names of the Keras example's table have in front; see `columns.find_prefix`."""
        return columns.find_prefix(map(self.name, islice(records, _LOOK_AT)), folder, existing)

    def captions(self, record: Record) -> tuple[bytes | None, ...]:
        """A record's captions; of one that cannot be read all that it has.

        Raises:
            ValueError: It has something else in their place.
        """
        if record.problem:
            return (record.raw,)
        return columns.captions_of(record.values.get(self.caption_column))

    def row(self, record: Record, file: str, image: bytes | None, problem: str) -> Row:
        """A record as a row."""
        try:
            captions = self.captions(record)
        except ValueError as error:
            # Shown as the caption, so that the reader of the rejects sees what was there.
            value = record.values.get(self.caption_column)
            return Row(file, record.number, None, str(error), (json.dumps(value).encode(),))
        return Row(file, record.number, image, problem, captions)


def find_table(
    tables: Iterable[tuple[str, Iterable[Record]]], spec: DatasetSpec, *, shown: str, keras: bool
) -> Table:
    """Finds the columns by the first records of the first table that has any.

    Args:
        tables: Names and records.
        spec: Names the columns, or leaves them to be found.
        shown: Name of the dataset.
        keras: Whether they are of the Keras example.

    Raises:
        DatasetError: There is no record, or a column cannot be found.
    """
    names, problem = [], ""
    for name, records in tables:
        names.append(name)
        text: dict[str, bool] = {}
        for record in islice(records, _LOOK_AT):
            if record.problem and not problem:
                problem = f"; the first one of {name}: {record.problem}"
            for column, value in record.values.items():
                text[column] = text.get(column, False) or columns.is_text(value)
        if text:
            there = f"the columns of {name} are {', '.join(text)}"
            image = _image_column(text, spec.image_column, keras=keras, shown=shown, there=there)
            if spec.caption_column and spec.caption_column not in text:
                raise columns.missing("caption", spec.caption_column, shown=shown, there=there)
            caption = spec.caption_column or columns.choose(
                "caption",
                [
                    column
                    for column, fits in text.items()
                    if fits and not _names_file(column, image)
                ],
                shown=shown,
                there=there,
            )
            return Table(image, caption)
    raise DatasetError(
        f"dataset {shown!r} has no record that can be read in {', '.join(names)}{problem}"
    )


def _image_column(
    text: Mapping[str, bool], named: str, *, keras: bool, shown: str, there: str
) -> str:
    if named:
        # The hub shows the column `file_name` as `image`, and `x_file_name` as `x`.
        aliases = (named, _HUB_IMAGE if named == "image" else f"{named}_{_HUB_IMAGE}")
        for name in aliases:
            if name in text:
                return name
        raise columns.missing("image", named, shown=shown, there=there)
    usual = _KERAS_IMAGE if keras else _HUB_IMAGE
    if usual in text:
        return usual
    candidates = [name for name in text if not keras and _names_file(name, usual)]
    if not candidates:
        raise columns.missing("image", usual, shown=shown, there=there)
    return columns.choose("image", candidates, shown=shown, there=there)


def _names_file(column: str, image: str) -> bool:
    return column == image or column.endswith(f"_{_HUB_IMAGE}")


class ImageTableSource(Source):
    """A folder with pictures and tables. A unit is a stretch of a table, or a nameless picture."""

    def __init__(
        self,
        files: Files,
        tables: tuple[str, ...],
        pictures: tuple[str, ...],
        left_out: tuple[str, ...],
        table: Table,
        kind: str,
        prefixes: Mapping[str, columns.Prefix | None],
    ) -> None:
        """Use `open`."""
        super().__init__(
            files,
            tuple(sorted((*tables, *pictures))),
            left_out,
            table.image_column,
            table.caption_column,
        )
        self.kind = kind
        self._table = table
        self._prefixes = prefixes
        self._other_splits = frozenset(left_out)

    @classmethod
    def open(
        cls,
        files: Files,
        tables: tuple[str, ...],
        pictures: tuple[str, ...],
        left_out: tuple[str, ...],
        spec: DatasetSpec,
    ) -> ImageTableSource:
        """Finds the columns.

        Args:
            files: Where the dataset lies.
            tables: Its tables to read, one at least, all of one convention.
            pictures: Its pictures to read.
            left_out: Files of other splits; records that name one of them are not read.
            spec: What the user asked for.

        Raises:
            DatasetError: A table cannot be read, or a column cannot be found.
        """
        keras = is_keras_table(tables[0])
        table = find_table(
            ((path, _read_table(files, path)) for path in tables),
            spec,
            shown=files.shown,
            keras=keras,
        )
        prefixes = {
            path: table.prefix(_read_table(files, path), posixpath.dirname(path), files.sizes())
            for path in tables
            if keras
        }
        kind = "keras-folder" if keras else "image-folder"
        return cls(files, tables, pictures, left_out, table, kind, prefixes)

    def units(self) -> Iterator[Unit]:
        """See `Source.units`; reads every table."""
        unnamed = dict.fromkeys(path for path in self.paths if is_picture(path))
        units = 0
        for path in self.paths:
            if is_picture(path):
                continue
            self._check_header(path)
            start = first_row = num_rows = 0
            for record, picture, _ in self._records(path, 0, 0):
                unnamed.pop(picture, None)
                if num_rows == 0:
                    start, first_row = record.offset, record.number
                num_rows += 1
                if num_rows == _UNIT_ROWS:
                    yield Unit(path, start, first_row, num_rows)
                    units, num_rows = units + 1, 0
            if num_rows:
                yield Unit(path, start, first_row, num_rows)
                units += 1
        for path in unnamed:
            yield Unit(path, 0, 0, 1)
        if not units and not unnamed:
            raise DatasetError(f"dataset {self.files.shown!r} has no rows: its tables are empty")

    def read(self, unit: Unit, *, peek: bool = False) -> Iterator[Row]:
        """See `Source.read`."""
        if is_picture(unit.file):
            yield Row(shown_path(unit.file), 0, None, UNNAMED, (None,))
            return
        records = self._records(unit.file, unit.start, unit.first_row)
        for record, path, problem in islice(records, unit.num_rows):
            image = None
            if path:
                try:
                    image = read_whole(self.files, path, peek=peek) or None
                except FileNotFoundError:
                    problem = f"no file {path!r}"
            yield self._table.row(record, unit.file, image, problem)

    def _records(self, file: str, start: int, number: int) -> Iterator[tuple[Record, str, str]]:
        """Records of the split from some byte on; of each its picture's path or a problem."""
        folder = posixpath.dirname(file)
        existing = self.files.sizes()
        for record in _read_table(self.files, file, start, number):
            try:
                path = self._table.picture(record, folder, existing, self._prefixes.get(file))
                problem = ""
            except ValueError as error:
                path, problem = "", str(error)
            if path not in self._other_splits:
                yield record, path, problem

    def _check_header(self, file: str) -> None:
        if not file.endswith(".csv"):
            return
        with _buffered(self.files.open(file)) as f:
            header = csv_header(f, file, self.files.shown)
        there = f"the columns of {file} are {', '.join(header)}"
        wanted: tuple[tuple[columns.Role, str], ...] = (
            ("image", self.image_column),
            ("caption", self.caption_column),
        )
        for role, column in wanted:
            if column not in header:
                raise columns.missing(role, column, shown=self.files.shown, there=there)


def is_table(path: str) -> bool:
    """Whether a file is called like a table of either convention."""
    return posixpath.basename(path) in (*HUB_TABLES, KERAS_TABLE)


def is_keras_table(path: str) -> bool:
    """Whether a file is called like the Keras example's table."""
    return posixpath.basename(path) == KERAS_TABLE


def shown_path(path: str) -> str:
    """A path that can be written as UTF-8."""
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def read_records(
    f: BinaryIO, file: str, shown: str, start: int = 0, number: int = 0
) -> Iterator[Record]:
    """Reads a table, one record at a time.

    Args:
        f: The table, at its start.
        file: Its name; `.csv` or `.jsonl`.
        shown: Name of the dataset.
        start: The byte to start at: the start of a record, or 0.
        number: That record's number.

    Yields:
        Its records; text in them is decoded with `surrogateescape`.

    Raises:
        DatasetError: The table cannot be read, or has no header.
    """
    try:
        if file.endswith(".csv"):
            yield from _csv_records(f, file, shown, start, number)
        else:
            f.seek(start)
            yield from _json_records(_Lines(f, start), number)
    except OSError as error:
        raise DatasetError(
            f"{file} in dataset {shown!r} cannot be read: {one_line(error)}"
        ) from error


def csv_header(f: BinaryIO, file: str, shown: str) -> list[str]:
    """Reads the names of a CSV file's columns, and leaves it behind them.

    Raises:
        DatasetError: It has none.
    """
    return _csv_header(_Lines(f, 0), file, shown)


def _csv_header(lines: _Lines, file: str, shown: str) -> list[str]:
    try:
        for header in csv.reader(lines, strict=True):
            _check_no_nul(header)
            if header:
                return [name.strip() for name in header]
        reason = "it is empty"
    except csv.Error as error:
        reason = one_line(error)
    raise DatasetError(f"{file} in dataset {shown!r} has no line with the columns: {reason}")


def _check_no_nul(fields: Sequence[str]) -> None:
    """Raises a `csv.Error` as Python 3.10's reader does, that of the old stack; newer ones do not.

    No caption and no file name has one; binary data or UTF-16 in the place of a table does.
    """
    if any("\0" in field for field in fields):
        raise csv.Error("line contains NUL")


def _csv_records(f: BinaryIO, file: str, shown: str, start: int, number: int) -> Iterator[Record]:
    lines = _Lines(f, 0)
    header = _csv_header(lines, file, shown)
    if start:
        f.seek(start)
        lines = _Lines(f, start)
    # Without `strict`, a quote out of place would silently join records.
    reader = csv.reader(lines, strict=True)
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
            values = json.loads(line)
            problem = "" if isinstance(values, dict) else "the record is no JSON object"
        except (ValueError, RecursionError) as error:
            values, problem = None, f"the record is no JSON: {one_line(error)}"
        if problem:
            yield Record(offset, number, {}, problem, b"".join(lines.raw).rstrip(b"\r\n"))
        else:
            yield Record(offset, number, values)
        number += 1


class _Lines(Iterator[str]):
    """Decoded lines of a file; knows where it is, and the bytes since `raw` was cleared."""

    def __init__(self, f: BinaryIO, offset: int) -> None:
        self._f = f
        self.offset = offset
        self.raw: list[bytes] = []

    def __next__(self) -> str:
        line = self._f.readline()
        if not line:
            raise StopIteration
        text = line.removeprefix(_BOM) if self.offset == 0 else line
        self.offset += len(line)
        self.raw.append(line)
        return text.decode("utf-8", "surrogateescape")


def _read_table(files: Files, path: str, start: int = 0, number: int = 0) -> Iterator[Record]:
    with _buffered(files.open(path)) as f:
        yield from read_records(f, path, files.shown, start, number)


def _buffered(f: BinaryIO) -> BinaryIO:
    # The files of object stores read a block of megabytes for every line.
    return f if isinstance(f, io.BufferedReader) else io.BufferedReader(cast(Any, f), _BUFFER_BYTES)
