"""The common source of Parquet and Arrow files: rows in batches, pictures inside or beside them."""

from __future__ import annotations

import abc
import dataclasses
import itertools
import posixpath
from collections import Counter
from collections.abc import Iterator
from functools import cached_property
from itertools import islice
from typing import BinaryIO

import pyarrow as pa

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
from components.caption_example_gen.sources.form import Found, Look
from components.caption_example_gen.sources.splits import (
    ALL,
    Selection,
    is_split,
    no_such_records,
    records_remark,
    split_said,
    wanted_splits,
)
from components.caption_example_gen.sources.urls import called_like_urls, url_error
from storage.errors import one_line

# Columns in which img2dataset reports on a row.
_STATUS, _MESSAGE, _SUCCESS = "status", "error_message", "success"
# Rows whose picture names are inspected to find what all names are relative to.
_LOOK_AT = 256


class ColumnarSource(Source):
    """Columnar files at any depth, and pictures that their rows name."""

    def __init__(
        self,
        files: Files,
        tables: tuple[str, ...],
        left_out: tuple[str, ...],
        spec: DatasetSpec,
        schema: pa.Schema,
    ) -> None:
        """Finds the columns.

        Args:
            files: The dataset's files.
            tables: Its columnar files, at least one.
            left_out: The files of other splits.
            spec: The user's request.
            schema: Schema of the first file.

        Raises:
            DatasetError: A column cannot be found.
        """
        try:
            image, caption = columns.find_columns(schema, spec, file=tables[0], shown=files.shown)
        except DatasetError as error:
            texts = [field.name for field in schema if pa.types.is_string(field.type)]
            urls = called_like_urls(texts)
            raise url_error(files.shown, tables[0], urls, texts) or error from None
        pictures = (path for path in files.sizes() if is_picture(path))
        super().__init__(files, tuple(sorted((*tables, *pictures))), left_out, image, caption)
        self._tables = tables
        self._split_column = ""
        # The splits that are read, if the rows of the files name theirs.
        self._splits: frozenset[str] | None = None
        self._prefixes: dict[str, columns.Prefix | None] = {}
        self._schemas: dict[str, pa.Schema] = {}

    @classmethod
    def open(cls, look: Look, found: Found) -> ColumnarSource:
        """Opens the config and split that the user asked for; see `Form.open`.

        If all files are of one split, a column in them may divide it.
        """
        if look.are_of_one_split(found.files):
            source = cls._of(look, look.select(found.files, split=ALL))
            source._split_by_column(look.spec)
            if source._splits is not None:
                return source
        return cls._of(look, look.select(found.files))

    @classmethod
    def _of(cls, look: Look, chosen: Selection) -> ColumnarSource:
        with look.files.peek(chosen.files[0]) as f:
            schema = cls._schema_of(look.files, chosen.files[0], f)
        return cls(look.files, chosen.files, chosen.left_out, look.spec, schema)

    def _split_by_column(self, spec: DatasetSpec) -> None:
        """Chooses rows by the split that they name, if the first rows name any."""
        wanted = wanted_splits(spec.split)
        file = self._tables[0]
        column = columns.split_column(self._schema(file, peek=True), self.caption_column)
        unit = next(self._all_units(), None) if column and wanted is not None else None
        if unit is None:
            return
        self._split_column = column
        first = islice(self._said(unit, peek=True), _LOOK_AT)
        if any(isinstance(value, str) and is_split(value) for value in first):
            self._splits = wanted
            self.remark = records_remark(column, wanted or ())

    def units(self) -> Iterator[Unit]:
        """See `Source.units`; if rows name their split, reads that column of all rows."""
        if self._splits is None:
            yield from self._all_units()
            return
        there: Counter[str] = Counter()
        for unit in self._all_units():
            counts = Counter(map(split_said, self._said(unit, peek=True)))
            there += counts
            if wanted := sum(counts[split] for split in self._splits):
                yield dataclasses.replace(unit, num_rows=wanted)
        if self._splits.isdisjoint(there):
            raise no_such_records(self.files.shown, self._split_column, there)

    def _is_wanted(self, said: object) -> bool:
        return self._splits is None or split_said(said) in self._splits

    @abc.abstractmethod
    def _all_units(self) -> Iterator[Unit]:
        """The same, whatever split the rows name."""

    def _said(self, unit: Unit, *, peek: bool) -> Iterator[object]:
        """The split that each row of a unit names; `None` if the file has no such column."""
        if self._schema(unit.file, peek=peek).get_field_index(self._split_column) < 0:
            yield from itertools.repeat(None, unit.num_rows or 0)
            return
        for batch in self._batches(unit, [self._split_column], peek=peek):
            yield from batch.column(0).to_pylist()

    @abc.abstractmethod
    def _batches(self, unit: Unit, names: list[str], *, peek: bool) -> Iterator[pa.RecordBatch]:
        """The rows of a unit, with some columns, a few rows at a time."""

    @staticmethod
    @abc.abstractmethod
    def _schema_of(files: Files, file: str, f: BinaryIO) -> pa.Schema:
        """The columns of an open file."""

    def _schema(self, file: str, *, peek: bool) -> pa.Schema:
        if file not in self._schemas:
            with self.files.peek(file) if peek else self.files.open(file) as f:
                self._schemas[file] = self._schema_of(self.files, file, f)
        return self._schemas[file]

    def _check(self, schema: pa.Schema, file: str) -> None:
        columns.check_columns(
            schema, self.image_column, self.caption_column, file=file, shown=self.files.shown
        )

    def _read(self, unit: Unit, *, peek: bool) -> Iterator[Row]:
        schema = self._schema(unit.file, peek=peek)
        image, caption = self.image_column, self.caption_column
        top = columns.top_column(schema, caption) if caption else ""
        said = [name for name in (_STATUS, _MESSAGE) if schema.get_field_index(name) >= 0]
        split = self._split_column if self._splits is not None else ""
        split = split if schema.get_field_index(split) >= 0 else ""
        # One column may be both.
        names = list(dict.fromkeys(filter(None, [image, top, split, *said])))
        number = unit.first_row
        for batch in self._batches(unit, names, peek=peek):
            pictures = batch.column(names.index(image))
            images, paths = columns.image_values(pictures)
            numbers = columns.number_of(pictures)
            captions = (
                columns.caption_values(batch.column(names.index(top)), caption[len(top) + 1 :])
                if top
                else ((None,) for _ in range(batch.num_rows))
            )
            status = [batch.column(names.index(name)).to_pylist() for name in said]
            splits = batch.column(names.index(split)).to_pylist() if split else None
            for row, (content, name, texts) in enumerate(zip(images, paths, captions, strict=True)):
                if self._is_wanted(splits[row] if splits else None):
                    yield self._row(
                        unit.file,
                        number,
                        content.as_py() or None,
                        (name.as_py() or b"").decode("utf-8", "surrogateescape"),
                        texts,
                        tuple(values[row] for values in status),
                        numbers[row],
                        peek,
                    )
                number += 1

    def _row(
        self,
        file: str,
        number: int,
        content: bytes | None,
        name: str,
        texts: tuple[bytes | None, ...],
        status: tuple[object, ...],
        pictures: int,
        peek: bool,
    ) -> Row:
        path, problem = name, ""
        if pictures > 1:
            problem = f"the row has {pictures} pictures in {self.image_column!r}, and not one"
        elif content is None and status and status[0] not in (None, _SUCCESS):
            problem = f"img2dataset says: {': '.join(str(each) for each in status if each)}"
        elif content is None and name:
            content, problem, path = self._named(file, name, peek)
        return Row(file, number, content, problem, texts, path)

    def _named(self, file: str, name: str, peek: bool) -> tuple[bytes | None, str, str]:
        """The picture that a text stands for, or the problem with it, and its path."""
        try:
            if columns.is_encoded(name):
                return columns.decoded(name) or None, "", ""
            path = columns.picture_path(name, *self._base(file, name))
            return self.files.read(path, peek=peek) or None, "", path
        except FileNotFoundError:
            return None, f"no file {name!r}", ""
        except DatasetError:
            raise
        except ValueError as error:
            return None, str(error), ""

    @cached_property
    def _pictures(self) -> columns.Pictures:
        return columns.Pictures(self.files.sizes())

    def _base(self, file: str, name: str) -> tuple[str, columns.Pictures, columns.Prefix | None]:
        """What a name is relative to: the dataset, as on the hub, or the folder of the file."""
        folder = posixpath.dirname(file)
        beside = posixpath.normpath(posixpath.join(folder, name))
        if self._pictures.find(posixpath.normpath(name)) or not self._pictures.find(beside):
            return "", self._pictures, self._prefix(file, name)
        return folder, self._pictures, None

    def _prefix(self, file: str, name: str) -> columns.Prefix | None:
        """What the names in a file are relative to; searched at the first name without a file."""
        if self._pictures.find(posixpath.normpath(name)):
            return None
        if file not in self._prefixes:
            unit = next((unit for unit in self._all_units() if unit.file == file), None)
            batches = self._batches(unit, [self.image_column], peek=True) if unit else iter(())
            values = (
                value for batch in batches for value in columns.image_values(batch.column(0))[1]
            )
            names = (value.as_py() for value in islice(values, _LOOK_AT))
            texts = [each.decode("utf-8", "surrogateescape") for each in names if each]
            self._prefixes[file] = columns.find_prefix(texts, file, self._pictures)
        return self._prefixes[file]


def unreadable(
    files: Files, file: str, error: Exception, rows_read: int | None = None
) -> DatasetError:
    """The error for a file that is damaged."""
    how_far = "" if rows_read is None else f" after {rows_read} rows"
    return DatasetError(
        f"{file} in dataset {files.shown!r} cannot be read{how_far}: {one_line(error)}"
    )
