"""Parquet files in the hub's schema, read by row group."""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from components.caption_example_gen.sources.base import DatasetError, Files, Unit
from components.caption_example_gen.sources.columnar import ColumnarSource, unreadable
from components.caption_example_gen.sources.form import Form, Found, Look, counted

PARQUET_SUFFIX = ".parquet"

_CHUNK_BYTES = 1 << 20
# Rows in memory at a time; column chunks are read in buffers of _CHUNK_BYTES, so that memory does
# not grow with the size of a row group.
_BATCH_ROWS = 16


class Parquet(Form):
    """Files that end in `.parquet`."""

    kind = "parquet"
    shown = f"Parquet files (*{PARQUET_SUFFIX})"
    settles = frozenset({"repeats"})

    def recognise(self, look: Look) -> Found | None:
        """See `Form.recognise`."""
        found = look.ending(PARQUET_SUFFIX)
        return Found(found, counted(len(found), "Parquet file")) if found else None

    def open(self, look: Look, found: Found) -> ColumnarSource:
        """See `Form.open`."""
        return ParquetSource.open(look, found)


class ParquetSource(ColumnarSource):
    """Parquet files at any depth, and pictures that their rows name. A unit is a row group."""

    kind = Parquet.kind

    def _all_units(self) -> Iterator[Unit]:
        """See `Source.units`; reads every file's footer."""
        num_rows = 0
        for file in self._tables:
            with self.files.peek(file) as f:
                parquet = _parquet(self.files, file, f)
            self._check(parquet.schema_arrow, file)
            first_row = 0
            for index in range(parquet.num_row_groups):
                rows = parquet.metadata.row_group(index).num_rows
                if rows:
                    yield Unit(file, index, first_row, rows)
                first_row += rows
            num_rows += first_row
        if num_rows == 0:
            raise DatasetError(
                f"dataset {self.files.shown!r} has no rows: its Parquet files are empty"
            )

    @staticmethod
    def _schema_of(files: Files, file: str, f: BinaryIO) -> pa.Schema:
        return _parquet(files, file, f).schema_arrow

    def _batches(self, unit: Unit, names: list[str], *, peek: bool) -> Iterator[pa.RecordBatch]:
        number = unit.first_row
        with self.files.peek(unit.file) if peek else self.files.open(unit.file) as f:
            batches = _parquet(self.files, unit.file, f).iter_batches(
                batch_size=_BATCH_ROWS, row_groups=[unit.start], columns=names, use_threads=False
            )
            while True:
                try:
                    batch = next(batches, None)
                except (pa.ArrowException, OSError) as error:
                    raise unreadable(self.files, unit.file, error, number) from error
                if batch is None:
                    return
                # Columns come in the order of the file, not of the request.
                yield pa.RecordBatch.from_arrays([batch.column(n) for n in names], names=names)
                number += batch.num_rows


def _parquet(files: Files, file: str, f: BinaryIO) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(f, buffer_size=_CHUNK_BYTES)
    except (pa.ArrowException, OSError) as error:
        raise unreadable(files, file, error) from error
