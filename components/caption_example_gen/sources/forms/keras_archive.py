"""The archive of the Keras example: a tar file with pictures and a `data.csv`."""

from __future__ import annotations

import contextlib
import io
import posixpath
from collections.abc import Iterator

from components.caption_example_gen.sources import columns
from components.caption_example_gen.sources.base import (
    DatasetError,
    DatasetSpec,
    Files,
    Row,
    Source,
    Unit,
    is_picture,
    shown_path,
)
from components.caption_example_gen.sources.forms.keras_folder import IMAGE_COLUMN, TABLE
from components.caption_example_gen.sources.image_table import UNNAMED, Table, find_table
from components.caption_example_gen.sources.table_files import Record, read_records
from components.caption_example_gen.sources.tars import Member, members_of


class KerasArchiveSource(Source):
    """Archives with pictures and a `data.csv`. A unit is an archive, with its table in memory."""

    kind = "keras-archive"

    def __init__(
        self, files: Files, paths: tuple[str, ...], left_out: tuple[str, ...], table: Table
    ) -> None:
        """Use `open`."""
        super().__init__(files, paths, left_out, table.image_column, table.caption_column)
        self._table = table

    @classmethod
    def open(
        cls, files: Files, tars: tuple[str, ...], left_out: tuple[str, ...], spec: DatasetSpec
    ) -> KerasArchiveSource:
        """Finds the columns by the first archive.

        Args:
            files: The dataset's files.
            tars: Its archives to read.
            left_out: The archives of other splits.
            spec: The user's request.

        Raises:
            DatasetError: The archive cannot be read, or a column cannot be found.
        """
        with contextlib.closing(members_of(files, tars[0])) as members:
            path, content = next(
                (member.path, member.content()) for member in members if is_table(member)
            )
        records = _table_records(files, tars[0], path, content)
        table = find_table(
            [(f"{tars[0]}/{path}", records)], spec, shown=files.shown, usual=IMAGE_COLUMN
        )
        return cls(files, tars, left_out, table)

    def units(self) -> Iterator[Unit]:
        """See `Source.units`; reads nothing."""
        return (Unit(path, 0, 0, None) for path in self.paths)

    def _read(self, unit: Unit, *, peek: bool) -> Iterator[Row]:
        """Reads the archive twice, because the table may come last."""
        del peek  # Reading it in parts would take longer than fetching it.
        named: dict[str, list[Record]] = {}
        for record, path, problem in self._records(unit.file):
            if path:
                named.setdefault(path, []).append(record)
            elif not problem:
                yield self._embedded(record, unit.file)
            else:
                yield self._table.row(record, unit.file, None, problem)
        with contextlib.closing(members_of(self.files, unit.file)) as members:
            for member in members:
                if not is_picture(member.path):
                    continue
                if member.path not in named:
                    origin = shown_path(f"{unit.file}/{member.path}")
                    yield Row(origin, 0, None, UNNAMED, (None,))
                    continue
                image, problem = (
                    (None, f"{shown_path(member.path)!r} is a link to another file")
                    if member.is_link
                    else (member.content() or None, "")
                )
                for record in named[member.path]:
                    yield self._table.row(record, unit.file, image, problem, member.path)

    def _embedded(self, record: Record, file: str) -> Row:
        try:
            image = columns.decoded(self._table.value(record)) or None
            return self._table.row(record, file, image, "")
        except ValueError as error:
            return self._table.row(record, file, None, str(error))

    def _records(self, tar: str) -> Iterator[tuple[Record, str, str]]:
        """All records of an archive's table, each with its picture's path or a problem."""
        pictures: set[str] = set()
        tables: dict[str, bytes] = {}
        with contextlib.closing(members_of(self.files, tar)) as members:
            for member in members:
                if is_table(member):
                    tables[member.path] = member.content()
                elif is_picture(member.path):
                    pictures.add(member.path)
        if len(tables) != 1:
            raise DatasetError(
                f"{tar} in dataset {self.files.shown!r} must have one {TABLE}, but has "
                f"{', '.join(tables) or 'none'}"
            )
        [(path, content)] = tables.items()
        folder = posixpath.dirname(path)
        records = list(_table_records(self.files, tar, path, content))
        names = columns.Pictures(pictures)
        prefix = self._table.prefix(records, path, names)
        for record in records:
            try:
                yield record, self._table.picture(record, folder, names, prefix), ""
            except ValueError as error:
                yield record, "", str(error)


def is_table(member: Member) -> bool:
    """Whether a file of an archive is the example's table."""
    return posixpath.basename(member.path) == TABLE and not member.is_link


def _table_records(files: Files, tar: str, path: str, content: bytes) -> Iterator[Record]:
    return read_records(io.BytesIO(content), f"{tar}/{path}", files.shown)
