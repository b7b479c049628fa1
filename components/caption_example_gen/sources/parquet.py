"""Parquet files in the hub's schema, read by row group."""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

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

PARQUET_SUFFIX = ".parquet"

_CHUNK_BYTES = 1 << 20
# Rows held at a time; column chunks are read in buffers of _CHUNK_BYTES, so that memory does not
# grow with the size of a row group.
_BATCH_ROWS = 16


class ParquetSource(Source):
    """Parquet files at any depth, and pictures that their rows name. A unit is a row group."""

    kind = "parquet"

    @classmethod
    def open(
        cls, files: Files, parquet: tuple[str, ...], left_out: tuple[str, ...], spec: DatasetSpec
    ) -> ParquetSource:
        """Finds the columns by the first file.

        Args:
            files: Where the dataset lies.
            parquet: Its Parquet files to read, one at least.
            left_out: Those of other splits.
            spec: What the user asked for.

        Raises:
            DatasetError: The first file cannot be read, or a column cannot be found.
        """
        with files.peek(parquet[0]) as f:
            schema = _parquet(files, parquet[0], f).schema_arrow
        image, caption = columns.find_columns(schema, spec, file=parquet[0], shown=files.shown)
        pictures = (path for path in files.sizes() if is_picture(path))
        return cls(files, tuple(sorted((*parquet, *pictures))), left_out, image, caption)

    def units(self) -> Iterator[Unit]:
        """See `Source.units`; reads every file's footer."""
        num_rows = 0
        for file in self.paths:
            if is_picture(file):
                continue
            with self.files.peek(file) as f:
                parquet = _parquet(self.files, file, f)
            columns.check_columns(
                parquet.schema_arrow,
                self.image_column,
                self.caption_column,
                file=file,
                shown=self.files.shown,
            )
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

    def read(self, unit: Unit, *, peek: bool = False) -> Iterator[Row]:
        """See `Source.read`."""
        number = unit.first_row
        with self.files.peek(unit.file) if peek else self.files.open(unit.file) as f:
            batches = _parquet(self.files, unit.file, f).iter_batches(
                batch_size=_BATCH_ROWS,
                row_groups=[unit.start],
                columns=[self.image_column, self.caption_column],
                use_threads=False,
            )
            while True:
                try:
                    batch = next(batches, None)
                except (pa.ArrowException, OSError) as error:
                    raise _unreadable(self.files, unit.file, error, number) from error
                if batch is None:
                    return
                images, paths = columns.image_values(batch.column(self.image_column))
                captions = columns.caption_values(batch.column(self.caption_column))
                for image, path, texts in zip(images, paths, captions, strict=True):
                    content, problem = image.as_py() or None, ""
                    name = path.as_py()
                    if content is None and name:
                        content, problem = self._beside(name.decode("utf-8", "replace"), peek)
                    yield Row(unit.file, number, content, problem, texts)
                    number += 1

    def _beside(self, name: str, peek: bool) -> tuple[bytes | None, str]:
        try:
            path = columns.picture_path(name, "", self.files.sizes())
            return read_whole(self.files, path, peek=peek) or None, ""
        except FileNotFoundError:
            return None, f"no file {name!r}"
        except DatasetError:
            raise
        except ValueError as error:
            return None, str(error)


def _parquet(files: Files, file: str, f: BinaryIO) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(f, buffer_size=_CHUNK_BYTES)
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(files, file, error) from error


def _unreadable(
    files: Files, file: str, error: Exception, rows_read: int | None = None
) -> DatasetError:
    how_far = "" if rows_read is None else f" on after {rows_read} rows"
    return DatasetError(
        f"{file} in dataset {files.shown!r} cannot be read{how_far}: {one_line(error)}"
    )
