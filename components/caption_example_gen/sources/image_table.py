"""The common source of forms with picture files, and tables that name them and have captions."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import posixpath
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import NamedTuple

from components.caption_example_gen.sources import columns
from components.caption_example_gen.sources.base import (
    DatasetError,
    DatasetSpec,
    Row,
    Source,
    Unit,
    is_picture,
    shown_path,
)
from components.caption_example_gen.sources.form import Look, card_of
from components.caption_example_gen.sources.splits import (
    is_split,
    names_configs,
    no_such_records,
    records_remark,
    says_split,
    split_said,
    wanted_splits,
)
from components.caption_example_gen.sources.table_files import Interpret, Record, TableFiles
from components.caption_example_gen.sources.urls import url_error

UNNAMED = "no record of a table names this picture"
"""The problem of a picture that has no record."""

_UNIT_ROWS = 256
# Records that are inspected to find the columns.
_LOOK_AT = 256
# Dates, times and Boolean values.
_NO_WORDS = re.compile(r"\d{4}-\d\d-\d\d[T ][\d:.+-]+Z?|true|false", re.IGNORECASE)
_NAMES_TEXT = re.compile(r"[^\n]+\.(?:txt|caption|json)", re.IGNORECASE)
HUB_IMAGE = "file_name"
"""The hub's name of the column with the names of pictures."""


@dataclasses.dataclass(frozen=True)
class Table:
    """How to read the tables of a dataset.

    Attributes:
        image_column: Column that names the pictures.
        caption_column: Column with the captions.
        other_pictures: Other columns that name pictures, such as masks, which are not read.
        split_column: Column with the split of a record; "" if there is none.
    """

    image_column: str
    caption_column: str
    other_pictures: tuple[str, ...] = ()
    split_column: str = ""

    def value(self, record: Record) -> str:
        """The name or base64 that a record has for its picture; "" if it has neither."""
        value = columns.value_at(record.values, self.image_column)
        if columns.is_number(value):
            return str(value)
        # Conversations have a list, as they may be about several pictures.
        if isinstance(value, list) and len(value) == 1:
            value = value[0]
        if isinstance(value, Mapping):
            inner = (value.get(key) for key in ("bytes", "path", *columns.PATH_COLUMNS))
            value = next((each for each in inner if each and isinstance(each, str)), "")
        return value if isinstance(value, str) else ""

    def picture(
        self,
        record: Record,
        folder: str,
        pictures: columns.Pictures,
        prefix: columns.Prefix | None,
    ) -> str:
        """The path of a record's picture, or "" if the picture is in the record.

        See `columns.picture_path`.

        Raises:
            ValueError: The record names no picture, or one that must not or cannot be read.
        """
        if record.problem:
            raise ValueError(record.problem)
        value = self.value(record)
        if not value.strip():
            there = columns.value_at(record.values, self.image_column)
            number = "several pictures" if isinstance(there, list) and there else "no picture"
            raise ValueError(f"the record names {number} in {self.image_column!r}")
        if columns.is_encoded(value):
            return ""
        return columns.picture_path(value.strip(), folder, pictures, prefix)

    def others(
        self,
        record: Record,
        folder: str,
        pictures: columns.Pictures,
        prefix: columns.Prefix | None,
    ) -> Iterator[str]:
        """The paths of the pictures that a record names in other columns."""
        for column in self.other_pictures:
            other = dataclasses.replace(self, image_column=column)
            with contextlib.suppress(ValueError):
                yield other.picture(record, folder, pictures, prefix)

    def split(self, record: Record) -> str:
        """The split that a record names; `train` if it names none."""
        return split_said(record.values.get(self.split_column))

    def prefix(
        self, records: Iterable[Record], table: str, pictures: columns.Pictures
    ) -> columns.Prefix | None:
        """The prefix that the picture names of a table are relative to; see `find_prefix`."""
        values = map(self.value, islice(records, _LOOK_AT))
        names = (value.strip() for value in values if not columns.is_encoded(value))
        return columns.find_prefix(filter(None, names), table, pictures)

    def captions(self, record: Record) -> tuple[bytes | None, ...]:
        """The captions of a record; if it cannot be read, its raw bytes.

        Raises:
            ValueError: The column has something other than captions.
        """
        if record.problem:
            return (record.raw,)
        if not self.caption_column:
            return (None,)
        return columns.captions_of(columns.value_at(record.values, self.caption_column))

    def row(
        self, record: Record, file: str, image: bytes | None, problem: str, path: str = ""
    ) -> Row:
        """A record as a row."""
        try:
            captions = self.captions(record)
        except ValueError as error:
            # Shows the value as the caption, so that readers of the rejects see it.
            value = columns.value_at(record.values, self.caption_column)
            return Row(file, record.number, None, str(error), (json.dumps(value).encode(),))
        return Row(file, record.number, image, problem, captions, path)


@dataclasses.dataclass
class _Column:
    """Counts over the first values of a column.

    Attributes:
        values: Number of values.
        texts: How many could be captions.
        pictures: How many could name pictures, or contain them.
        urls: How many are URLs.
        numbers: How many are numbers, dates, Booleans or names of text files, as text.
        files: How many are names of text files.
        splits: How many are words for splits.
        nested: Names of texts inside the values.
    """

    values: int = 0
    texts: int = 0
    pictures: int = 0
    urls: int = 0
    numbers: int = 0
    files: int = 0
    splits: int = 0
    nested: dict[str, None] = dataclasses.field(default_factory=dict)

    def add(self, name: str, value: object) -> None:
        if value is None or value == "":
            return
        self.values += 1
        self.texts += columns.is_text(value)
        self.pictures += columns.looks_like_picture(value)
        self.urls += columns.is_url(value)
        self.numbers += isinstance(value, str) and _has_no_words(value)
        self.files += isinstance(value, str) and _NAMES_TEXT.fullmatch(value.strip()) is not None
        self.splits += isinstance(value, str) and is_split(value)
        self.nested.update(dict.fromkeys(columns.nested_names(name, value)))

    @property
    def has_pictures(self) -> bool:
        return 2 * self.pictures > self.values

    @property
    def has_urls(self) -> bool:
        return 2 * self.urls > self.values

    @property
    def has_numbers(self) -> bool:
        return self.values > 0 and self.numbers == self.values


def _has_no_words(text: str) -> bool:
    text = text.strip()
    is_other = _NO_WORDS.fullmatch(text) or _NAMES_TEXT.fullmatch(text)
    return is_other is not None or not any(map(str.isalpha, text))


def _seen(records: Iterable[Record]) -> tuple[dict[str, _Column], str]:
    """The columns of the first records, and the problem of the first that cannot be read."""
    seen: dict[str, _Column] = {}
    problem = ""
    for record in islice(records, _LOOK_AT):
        problem = problem or record.problem
        for name, value in record.values.items():
            seen.setdefault(name, _Column()).add(name, value)
    return seen, problem


def picture_column(records: Iterable[Record]) -> str:
    """The column of a table that names or contains pictures; if several do, the usual one.

    Args:
        records: The records, of which the first are read.

    Returns:
        The name of the column; "" if there is none.
    """
    return next(iter(_picture_columns(_seen(records)[0])), "")


def stem_column(records: Sequence[Record], pictures: Iterable[str], asked: str) -> str:
    """The column of a table that names pictures without their suffix; "" if there is none.

    Args:
        records: The first records.
        pictures: The pictures of the dataset.
        asked: The column that the user named, if any.
    """
    usual = (asked.lower(),) if asked else (*columns.PATH_COLUMNS, *columns.ID_COLUMNS)
    order = {name: rank for rank, name in enumerate(usual)}
    names: dict[str, str] = {}
    there = {name: None for record in records for name in record.values if name.lower() in order}
    for column in sorted(there, key=lambda name: order[name.lower()]):
        for record in records:
            value = record.values.get(column)
            if isinstance(value, str) or columns.is_number(value):
                names.setdefault(posixpath.basename(str(value).strip()), column)
    if not names:
        return ""
    stems = (posixpath.splitext(posixpath.basename(picture))[0] for picture in pictures)
    return next((names[stem] for stem in stems if stem in names), "")


def has_captions(records: Iterable[Record], image: str) -> bool:
    """Whether a table has a column that could be captions, besides the one with the pictures."""
    return any(
        (column.texts and not column.has_numbers and name.lower() not in columns.NO_CAPTIONS)
        or column.nested
        for name, column in _seen(records)[0].items()
        if not (name == image or column.has_pictures or column.has_urls)
    )


def url_column(records: Iterable[Record]) -> bool:
    """Whether a table has a column of URLs and none of pictures."""
    seen = _seen(records)[0]
    return not _picture_columns(seen) and any(column.has_urls for column in seen.values())


def _picture_columns(seen: Mapping[str, _Column]) -> list[str]:
    """The columns with pictures, the usual ones first."""
    order = {name: rank for rank, name in enumerate(columns.PATH_COLUMNS)}
    found = [name for name, column in seen.items() if column.has_pictures]
    return sorted(found, key=lambda name: order.get(name.lower(), len(order)))


def asked_for(
    look: Look, tables: Sequence[str], interpret: Interpret | None = None
) -> Sequence[str]:
    """The tables that have the columns that the user named; all, if none has.

    Args:
        look: The dataset.
        tables: Its tables.
        interpret: See `TableFiles`.
    """
    asked = [name for name in (look.spec.image_column, look.spec.caption_column) if name]
    if len(tables) == 1 or not asked:
        return tables
    reader = TableFiles(look.files, interpret, is_glance=True)

    def has_columns(path: str) -> bool:
        first = islice(reader.records(path), _LOOK_AT)
        there = {name for record in first for name in record.values}
        return all(n in there or n.partition(".")[0] in there for n in asked)

    return tuple(filter(has_columns, tables)) or tables


def find_table(
    tables: Iterable[tuple[str, Iterable[Record]]],
    spec: DatasetSpec,
    *,
    shown: str,
    usual: str = HUB_IMAGE,
) -> Table:
    """Finds the columns by the first records of the first table that has any.

    Args:
        tables: Names and records.
        spec: Names the columns, or leaves them to be found.
        shown: Name of the dataset.
        usual: Conventional name of the column with the names of pictures.

    Raises:
        DatasetError: There is no record, or a column cannot be found.
    """
    names, problem = [], ""
    for name, records in tables:
        names.append(name)
        seen, found = _seen(records)
        problem = problem or (found and f"; the first one of {name}: {found}")
        if seen:
            there = f"the columns of {name} are {', '.join(seen)}"
            nested = [inner for column in seen.values() for inner in column.nested]
            image = _image_column(seen, nested, spec.image_column, usual, shown, there)
            if not image:
                error = url_error(shown, name, [n for n in seen if seen[n].has_urls], list(seen))
                raise error or columns.missing(
                    "image", spec.image_column or usual, shown=shown, there=there
                )
            caption = _caption_column(seen, nested, spec, image, shown, there)
            others = tuple(name for name in _picture_columns(seen) if name not in (image, caption))
            split = next((n for n in seen if n.lower() == columns.SPLIT and seen[n].splits), "")
            return Table(image, caption, others, "" if split == caption else split)
    raise DatasetError(
        f"dataset {shown!r} has no record that can be read in {', '.join(names)}{problem}"
    )


def _caption_column(
    seen: Mapping[str, _Column],
    nested: Sequence[str],
    spec: DatasetSpec,
    image: str,
    shown: str,
    there: str,
) -> str:
    if spec.caption_column:
        if spec.caption_column not in (*seen, *nested):
            raise columns.missing("caption", spec.caption_column, shown=shown, there=there)
        return spec.caption_column
    texts = [
        name
        for name, column in seen.items()
        if column.texts and not (_names_file(name, image) or column.has_pictures or column.has_urls)
    ]
    wordy = [name for name in texts if not seen[name].has_numbers]
    candidates = [name for name in wordy if name.lower() not in columns.NO_CAPTIONS]
    # All captions may be numbers, such as "7" for a digit.
    candidates = candidates or [
        name for name in texts if columns.is_called_caption(name) and not seen[name].files
    ]
    inner = [name for name in nested if name.partition(".")[0] != image]
    if not (candidates or inner):
        if spec.captions_given:
            return ""
        if texts:
            raise columns.unlikely(texts, shown=shown, there=there)
    return columns.choose("caption", candidates or inner, shown=shown, there=there)


def _image_column(
    seen: Mapping[str, _Column],
    nested: Sequence[str],
    named: str,
    usual: str,
    shown: str,
    there: str,
) -> str:
    if named:
        # The hub shows the column `file_name` as `image`, and `x_file_name` as `x`.
        aliases = (named, HUB_IMAGE if named == "image" else f"{named}_{HUB_IMAGE}")
        return next((name for name in aliases if name in seen or name in nested), "")
    by_convention = [name for name in seen if _names_file(name, usual)]
    if usual in seen or len(by_convention) == 1:
        return usual if usual in seen else by_convention[0]
    by_value = _picture_columns(seen)
    if by_value and by_value[0].lower() not in columns.PATH_COLUMNS:
        # For example the input and the output of an edit.
        return columns.choose("image", by_value, shown=shown, there=there)
    # Names without the suffix do not look like pictures.
    by_name = [name for name in columns.PATH_COLUMNS if name in seen and seen[name].texts]
    return next(iter((*by_value, *(n for n in by_name if not seen[n].has_urls))), "")


def _names_file(column: str, image: str) -> bool:
    return column == image or column.endswith(f"_{HUB_IMAGE}")


class ImageTableSource(Source):
    """A folder with pictures and tables. A unit is a part of a table, or an unnamed picture."""

    def __init__(
        self,
        tables: TableFiles,
        chosen: _Chosen,
        table: Table,
        kind: str,
        *,
        by_name: bool,
        splits: frozenset[str] | None = None,
    ) -> None:
        """Use `open`."""
        super().__init__(
            tables.files,
            tuple(sorted((*chosen.tables, *chosen.pictures))),
            chosen.left_out,
            table.image_column,
            table.caption_column,
        )
        self.kind = kind
        self._tables = tables
        self._chosen = tuple(sorted(chosen.tables))
        self._expected = chosen.expected
        self._table = table
        self._pictures = columns.Pictures(tables.files.sizes())
        self._prefixes: dict[str, columns.Prefix | None] = {}
        self._other_splits = frozenset(chosen.left_out)
        self._other_tables = tuple(path for path in chosen.left_out if not is_picture(path))
        self._by_name = by_name
        # The splits that are read, if the records of the tables name theirs.
        self._splits = splits
        if splits is not None:
            self.remark = records_remark(table.split_column, splits)

    @classmethod
    def open(
        cls,
        look: Look,
        tables: Sequence[str],
        kind: str,
        *,
        usual: str = HUB_IMAGE,
        interpret: Interpret | None = None,
        by_name: bool = False,
        inside: bool = False,
    ) -> ImageTableSource:
        """Finds the columns.

        Args:
            look: The dataset.
            tables: Its tables, at least one, all of one convention.
            kind: Name of the form.
            usual: Conventional name of the column with the names of pictures.
            interpret: See `TableFiles`.
            by_name: Whether the names of the tables give their split, as in `train.jsonl`; else
                the folders do.
            inside: Whether the tables contain the splits, and `interpret` chooses.

        Raises:
            DatasetError: A table cannot be read, or a column cannot be found.
        """
        select = _select_by_name if by_name else _select_by_folder
        # Inside a table the pictures of other splits are unknown, so no picture is expected.
        pictures = tuple(look.pictures)
        within = _Chosen(tuple(tables), pictures, (), ())
        reader = TableFiles(look.files, interpret)

        def found(paths: Sequence[str]) -> Table:
            return find_table(
                ((path, reader.records(path)) for path in paths),
                look.spec,
                shown=look.files.shown,
                usual=usual,
            )

        if not pictures:
            _check_embedded(look, found(tables), ((path, reader.records(path)) for path in tables))
        if inside:
            return cls(reader, within, found(tables), kind, by_name=by_name)
        if not _says_split(look, tables):
            table = found(tables)
            if table.split_column:
                chosen = within._replace(expected=pictures)
                splits = wanted_splits(look.spec.split)
                return cls(reader, chosen, table, kind, by_name=by_name, splits=splits)
        chosen = select(look, tables)
        return cls(reader, chosen, found(chosen.tables), kind, by_name=by_name)

    def units(self) -> Iterator[Unit]:
        """See `Source.units`; reads every table."""
        unnamed = dict.fromkeys(self._expected)
        units = 0
        others: Counter[str] = Counter()
        for path in self._chosen:
            self._check_header(path)
            folder = posixpath.dirname(path)
            start = first_row = num_rows = 0
            for record, picture, _ in self._all_records(path, 0, 0):
                unnamed.pop(picture, None)
                if self._table.other_pictures:
                    prefix = self._prefix(path)
                    for other in self._table.others(record, folder, self._pictures, prefix):
                        unnamed.pop(other, None)
                if not self._is_wanted(record):
                    others[self._table.split(record)] += 1
                    continue
                if num_rows == 0:
                    start, first_row = record.offset, record.number
                num_rows += 1
                if num_rows == _UNIT_ROWS:
                    yield Unit(path, start, first_row, num_rows)
                    units, num_rows = units + 1, 0
            if num_rows:
                yield Unit(path, start, first_row, num_rows)
                units += 1
        if others and not units:
            raise no_such_records(self.files.shown, self._table.split_column, others)
        # A picture that a table of another split names does not belong to this one.
        for path in self._other_tables:
            for _, picture, _ in self._records(path, 0, 0):
                unnamed.pop(picture, None)
        for path in unnamed:
            yield Unit(path, 0, 0, 1)
        if not units and not unnamed:
            raise DatasetError(f"dataset {self.files.shown!r} has no rows: its tables are empty")

    def _read(self, unit: Unit, *, peek: bool) -> Iterator[Row]:
        if is_picture(unit.file):
            yield Row(shown_path(unit.file), 0, None, UNNAMED, (None,), unit.file)
            return
        found = self._records(unit.file, unit.start, unit.first_row)
        # Two iterators: one reads the pictures ahead, the other yields the rows.
        records, ahead = itertools.tee(islice(found, unit.num_rows))
        contents = self.files.ahead((path for _, path, _ in ahead if path), peek=peek)
        for record, path, problem in records:
            image = None
            try:
                if path:
                    image = next(contents)() or None
                elif not problem:
                    image = columns.decoded(self._table.value(record)) or None
            except FileNotFoundError:
                problem = f"no file {path!r}"
            except DatasetError:
                raise
            except ValueError as error:
                problem = str(error)
            yield self._table.row(record, unit.file, image, problem, path)

    def _is_wanted(self, record: Record) -> bool:
        """Whether a record names a wanted split; a broken record names none and is wanted."""
        return (
            self._splits is None
            or bool(record.problem)
            or self._table.split(record) in self._splits
        )

    def _records(self, file: str, start: int, number: int) -> Iterator[tuple[Record, str, str]]:
        """Records of the split from a byte on, each with its picture's path or a problem."""
        found = self._all_records(file, start, number)
        return found if self._splits is None else (r for r in found if self._is_wanted(r[0]))

    def _all_records(self, file: str, start: int, number: int) -> Iterator[tuple[Record, str, str]]:
        """The same, whatever split the records name."""
        folder, prefix = posixpath.dirname(file), self._prefix(file)
        for record in self._tables.records(file, start, number):
            try:
                path = self._table.picture(record, folder, self._pictures, prefix)
                problem = ""
            except ValueError as error:
                path, problem = "", str(error)
            if path not in self._other_splits:
                yield record, path, problem

    def _prefix(self, file: str) -> columns.Prefix | None:
        if file not in self._prefixes:
            self._prefixes[file] = self._table.prefix(
                self._tables.records(file), file, self._pictures
            )
        return self._prefixes[file]

    def _check_header(self, file: str) -> None:
        header = self._tables.header(file)
        if header is None:
            # Other tables have columns in every record.
            first = islice(self._tables.records(file), _LOOK_AT)
            header = list(dict.fromkeys(name for record in first for name in record.values))
            if not (header and self._by_name and len(self._chosen) > 1):
                return
        there = f"the columns of {file} are {', '.join(header)}"
        wanted: tuple[tuple[columns.Role, str], ...] = (
            ("image", self.image_column),
            ("caption", self.caption_column),
        )
        for role, column in wanted:
            if not column or column in header or column.partition(".")[0] in header:
                continue
            if self._by_name and len(self._chosen) > 1:
                raise DatasetError(
                    f"the tables of dataset {self.files.shown!r} differ: {file} has no "
                    f"column {column!r}, {there}; --{role}-column {column} reads only tables that "
                    "have it"
                )
            raise columns.missing(role, column, shown=self.files.shown, there=there)


def _check_embedded(
    look: Look, table: Table, tables: Iterable[tuple[str, Iterable[Record]]]
) -> None:
    """Raises a `DatasetError` if tables without picture files do not contain the pictures."""
    for path, records in tables:
        values = [value for r in islice(records, _LOOK_AT) if (value := table.value(r).strip())]
        if any(map(columns.is_encoded, values)):
            return
        if values:
            packed = look.unread_archives
            advice = (
                f"unpack {packed[0]}, an archive of an unsupported kind"
                if packed
                else "give the folder that contains the pictures, too"
            )
            urls = [table.image_column] if columns.is_url(values[0]) else []
            error = url_error(look.files.shown, path, urls, [table.caption_column])
            raise error or DatasetError(
                f"dataset {look.files.shown!r} has no pictures, only their names, such as "
                f"{values[0]!r} in {path}: {advice}"
            )


def _says_split(look: Look, tables: Sequence[str]) -> bool:
    """Whether whole tables belong to splits, so that their records do not name any."""
    if look.spec.config or names_configs(card_of(look.files), look.files.shown):
        return True
    return len(tables) > 1 and any(map(says_split, tables))


class _Chosen(NamedTuple):
    """The files of a split.

    Attributes:
        tables: Its tables.
        pictures: The pictures that the tables may name.
        left_out: Files of other splits.
        expected: The pictures that the tables should name.
    """

    tables: tuple[str, ...]
    pictures: tuple[str, ...]
    left_out: tuple[str, ...]
    expected: tuple[str, ...]


def _select_by_folder(look: Look, tables: Sequence[str]) -> _Chosen:
    """The tables and pictures of the split, and the rest, by the names of folders only."""
    pictures = tuple(look.pictures)
    selection = look.select([*tables, *pictures], by_folder_only=True)
    chosen = frozenset(selection.files)
    # A card may name only the tables.
    chosen_pictures = tuple(p for p in pictures if p in chosen) or pictures
    # A table belongs to every split that has a picture in its folder or below.
    folders = {
        above
        for folder in {posixpath.dirname(picture) for picture in chosen_pictures}
        for above in (folder, *_folders_above(folder))
    }
    chosen_tables = tuple(
        path for path in tables if path in chosen or posixpath.dirname(path) in folders
    ) or tuple(tables)
    read = {*chosen_tables, *chosen_pictures}
    left_out = tuple(path for path in selection.left_out if path not in read)
    return _Chosen(chosen_tables, chosen_pictures, left_out, tuple(sorted(chosen_pictures)))


def _select_by_name(look: Look, tables: Sequence[str]) -> _Chosen:
    """The same for tables that are named after their split; if none is, by the folders."""
    selection = look.select(tables)
    if not look.pictures:
        return _Chosen(selection.files, (), selection.left_out, ())
    try:
        by_folder = _select_by_folder(look, tables)
    # The folders do not have the requested split: the tables decide.
    except DatasetError:
        pictures = tuple(look.pictures)
        return _Chosen(selection.files, pictures, selection.left_out, pictures)
    if not selection.left_out:
        return by_folder
    pictures = tuple(look.pictures)
    return _Chosen(selection.files, pictures, selection.left_out, by_folder.expected)


def _folders_above(path: str) -> Iterator[str]:
    while path:
        path = posixpath.dirname(path)
        yield path
