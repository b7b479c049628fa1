"""The output of img2dataset: tar shards, folders or Parquet, with a `.parquet` of every fetch."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from components.caption_example_gen.sources import columns
from components.caption_example_gen.sources.base import Files, Row, Source, Unit
from components.caption_example_gen.sources.columnar import unreadable
from components.caption_example_gen.sources.files import TAR_SUFFIXES
from components.caption_example_gen.sources.form import Form, Found, Look, counted
from components.caption_example_gen.sources.forms.caption_files import CaptionFiles
from components.caption_example_gen.sources.forms.parquet import PARQUET_SUFFIX, Parquet
from components.caption_example_gen.sources.forms.pictures import Pictures
from components.caption_example_gen.sources.forms.tar import Tar

_NAME = re.compile(r"\d{4,}\.parquet")
_STATS = "_stats.json"
_STATUS, _SUCCESS, _MESSAGE, _CAPTION = "status", "success", "error_message", "caption"


class Img2Dataset(Form):
    """`00000.parquet` with `00000.tar`, a folder `00000`, or `00000_stats.json` beside it."""

    kind = "img2dataset"
    shown = "the output of img2dataset (00000.tar or 00000/, 00000.parquet, 00000_stats.json)"
    settles = frozenset({"parquet", "tar", "caption-files", "table", "repeats"})

    def recognise(self, look: Look) -> Found | None:
        """See `Form.recognise`; reads nothing."""
        sizes = look.files.sizes()
        found = []
        for path in look.ending(PARQUET_SUFFIX):
            stem = posixpath.splitext(path)[0]
            beside = (f"{stem}{_STATS}", *(stem + suffix for suffix in TAR_SUFFIXES))
            is_named = _NAME.fullmatch(posixpath.basename(path))
            if is_named and (stem in look.picture_folders or any(each in sizes for each in beside)):
                found.append(path)
        return Found(tuple(found), counted(len(found), "shard")) if found else None

    def open(self, look: Look, found: Found) -> Source | Files:
        """See `Form.open`."""
        for form in (Tar(), CaptionFiles(), Pictures()):
            inner = form.recognise(look)
            if inner is None:
                continue
            source = form.open(look, inner)
            if isinstance(source, Files):
                return source
            chosen = look.select(found.files).files
            return Img2DatasetSource(source, tuple(sorted(chosen)))
        return Parquet().open(look, found)


class Img2DatasetSource(Source):
    """Pictures that were fetched, and the rows of pictures that failed.

    A unit is a unit of the pictures' own source, or a Parquet file with the failed rows.
    """

    kind = Img2Dataset.kind

    def __init__(self, pictures: Source, tables: tuple[str, ...]) -> None:
        """Combines both.

        Args:
            pictures: The source of the fetched pictures.
            tables: The Parquet files that report every fetch.
        """
        super().__init__(
            pictures.files,
            tuple(sorted({*pictures.paths, *tables})),
            pictures.left_out,
            pictures.image_column,
            pictures.caption_column,
        )
        self._fetched = pictures
        self._fetch_tables = frozenset(tables)

    @property
    def image_bytes(self) -> int:
        """See `Source.image_bytes`."""
        return self._fetched.image_bytes

    def units(self) -> Iterator[Unit]:
        """See `Source.units`."""
        yield from self._fetched.units()
        for path in sorted(self._fetch_tables):
            yield Unit(path, 0, 0, None)

    def _read(self, unit: Unit, *, peek: bool) -> Iterator[Row]:
        if unit.file not in self._fetch_tables:
            yield from self._fetched.read(unit, peek=peek)
            return
        with self.files.peek(unit.file) if peek else self.files.open(unit.file) as f:
            try:
                yield from self._failed(pq.ParquetFile(f), unit.file)
            except (pa.ArrowException, OSError) as error:
                raise unreadable(self.files, unit.file, error) from error

    def _failed(self, table: pq.ParquetFile, file: str) -> Iterator[Row]:
        names = [n for n in (_STATUS, _MESSAGE, _CAPTION) if n in table.schema_arrow.names]
        if _STATUS not in names:
            return
        number = 0
        for batch in table.iter_batches(columns=names):
            for row in batch.to_pylist():
                status = row[_STATUS]
                if status != _SUCCESS:
                    said = ": ".join(str(each) for each in (status, row.get(_MESSAGE)) if each)
                    caption = row.get(_CAPTION)
                    text = columns.text_bytes(caption) if isinstance(caption, str) else None
                    yield Row(file, number, None, f"img2dataset says: {said}", (text,))
                number += 1
