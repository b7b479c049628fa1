"""Arrow files, written by `datasets.save_to_disk` or bare, read by record batch."""

from __future__ import annotations

import contextlib
import os
import posixpath
from collections.abc import Iterator
from typing import Any, BinaryIO

import pyarrow as pa

from components.caption_example_gen.sources.base import DatasetError, Files, Unit
from components.caption_example_gen.sources.columnar import ColumnarSource, unreadable
from components.caption_example_gen.sources.form import Form, Found, Look, counted

_SUFFIXES = (".arrow", ".feather")
_FILE_MAGIC = b"ARROW1"
_STATE_NAME = "state.json"
# Rows in memory at a time; a record batch that the hub's library writes has 100 pictures.
_BATCH_ROWS = 16


class Arrow(Form):
    """Files that end in `.arrow`, in Arrow's stream or file format."""

    kind = "arrow"
    shown = "Arrow files, such as save_to_disk writes (*.arrow, *.feather)"

    def recognise(self, look: Look) -> Found | None:
        """See `Form.recognise`."""
        found = look.ending(*_SUFFIXES)
        if not found:
            return None
        saved = sum(1 for path in look.paths if posixpath.basename(path) == _STATE_NAME)
        by = f", saved by save_to_disk ({counted(saved, _STATE_NAME)})" if saved else ""
        return Found(found, counted(len(found), "Arrow file") + by)

    def open(self, look: Look, found: Found) -> ColumnarSource:
        """See `Form.open`."""
        return ArrowSource.open(look, found)


class ArrowSource(ColumnarSource):
    """Arrow files at any depth, and pictures that their rows name. A unit is a record batch."""

    kind = Arrow.kind

    def _all_units(self) -> Iterator[Unit]:
        """See `Source.units`; reads the batches of every file, or only their heads if local."""
        num_rows = 0
        for file in self._tables:
            first_row = 0
            with self.files.peek(file) as f:
                batches = _Batches(self.files, file, f)
                self._check(batches.schema, file)
                for start, batch in batches:
                    if batch.num_rows:
                        yield Unit(file, start, first_row, batch.num_rows)
                    first_row += batch.num_rows
            num_rows += first_row
        if num_rows == 0:
            raise DatasetError(
                f"dataset {self.files.shown!r} has no rows: its Arrow files are empty"
            )

    @staticmethod
    def _schema_of(files: Files, file: str, f: BinaryIO) -> pa.Schema:
        return _Batches(files, file, f).schema

    def _batches(self, unit: Unit, names: list[str], *, peek: bool) -> Iterator[pa.RecordBatch]:
        with self.files.peek(unit.file) if peek else self.files.open(unit.file) as f:
            batch = _Batches(self.files, unit.file, f).at(unit.start)
            places = [batch.schema.get_field_index(name) for name in names]
            for start in range(0, batch.num_rows, _BATCH_ROWS):
                part = batch.slice(start, _BATCH_ROWS)
                yield pa.RecordBatch.from_arrays([part.column(i) for i in places], names=names)


class _Batches:
    """The record batches of an Arrow file, each with a number that identifies it.

    In the file format, the number is its index; in the stream format, the byte that it starts at,
    or its index if columns have dictionaries, which are between the batches.
    """

    def __init__(self, files: Files, file: str, f: BinaryIO) -> None:
        """Reads the schema.

        Raises:
            DatasetError: It is not an Arrow file.
        """
        self._files, self._file = files, file
        with self._checked():
            self._input = _native(f)
            magic = self._input.read(len(_FILE_MAGIC))
            self._input.seek(0)
            self._indexed = pa.ipc.open_file(self._input) if magic == _FILE_MAGIC else None
            if self._indexed is not None:
                self.schema: pa.Schema = self._indexed.schema
                return
            self.schema = pa.ipc.read_schema(self._input)
            self._first = self._input.tell()
            self._has_dictionaries = any(map(_has_dictionary, self.schema.types))

    def __iter__(self) -> Iterator[tuple[int, pa.RecordBatch]]:
        if self._indexed is not None:
            for index in range(self._indexed.num_record_batches):
                yield index, self.at(index)
        elif self._has_dictionaries:
            yield from enumerate(self._in_order())
        else:
            start = self._first
            while (batch := self._in_stream(start)) is not None:
                yield start, batch
                start = self._input.tell()

    def at(self, start: int) -> pa.RecordBatch:
        """The batch of that number."""
        with self._checked():
            if self._indexed is not None:
                return self._indexed.get_batch(start)
            if self._has_dictionaries:
                return next(b for index, b in enumerate(self._in_order()) if index == start)
        batch = self._in_stream(start)
        if batch is None:
            raise unreadable(self._files, self._file, EOFError("the file has become shorter"))
        return batch

    def _in_order(self) -> Iterator[pa.RecordBatch]:
        with self._checked():
            self._input.seek(0)
            yield from pa.ipc.open_stream(self._input)

    def _in_stream(self, start: int) -> pa.RecordBatch | None:
        """The batch that starts at a byte; `None` at the end."""
        with self._checked():
            self._input.seek(start)
            try:
                message = pa.ipc.read_message(self._input)
            except EOFError:
                return None
            return pa.ipc.read_record_batch(message, self.schema)

    @contextlib.contextmanager
    def _checked(self) -> Iterator[None]:
        try:
            yield
        except (pa.ArrowException, OSError, EOFError) as error:
            raise unreadable(self._files, self._file, error) from error


def _native(f: BinaryIO) -> Any:
    """A file as Arrow reads it; a local one is memory-mapped, so that skipped parts stay unread."""
    name = getattr(f, "name", None)
    if isinstance(name, str) and not isinstance(f, pa.NativeFile) and os.path.isfile(name):
        return pa.memory_map(name)
    return pa.PythonFile(f, mode="r")


def _has_dictionary(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        return True
    if pa.types.is_struct(kind):
        return any(_has_dictionary(field.type) for field in kind)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return _has_dictionary(kind.value_type)
    return False
