"""Tables of any name that name pictures or have them in base64: JSON lines, lists, CSV, TSV."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import islice
from typing import Any

from components.caption_example_gen.sources.base import DatasetError, names_picture
from components.caption_example_gen.sources.columns import ID_COLUMNS
from components.caption_example_gen.sources.form import Form, Found, Look, counted
from components.caption_example_gen.sources.forms.image_folder import TABLES as HUB_TABLES
from components.caption_example_gen.sources.forms.keras_folder import TABLE as KERAS_TABLE
from components.caption_example_gen.sources.image_table import (
    HUB_IMAGE,
    ImageTableSource,
    asked_for,
    has_captions,
    picture_column,
    stem_column,
)
from components.caption_example_gen.sources.splits import says_split
from components.caption_example_gen.sources.table_files import (
    CSV_SUFFIXES,
    DOCUMENT_SUFFIX,
    LINES_SUFFIXES,
    Record,
    TableFiles,
    lists_in,
    records_in,
)

# Names of text files with the captions of Flickr8k and the like, in current and first versions.
_TEXT_TABLES = ("captions.txt", "labels.txt", "metadata.txt", "data.txt", "results.txt")
_TOKENS, _LEMMAS = ".token.txt", ".lemma.token.txt"
_TEXT_SUFFIX = ".txt"
# Other text files are tables if they begin with the name of a picture and a delimiter.
_PAIR = re.compile(rb"[^\t,|;\r\n]+\.\w{3,4}\"?[ \t]*[\t,|;]")
_FIRST_BYTES = 1024
# No dataset has more of them: the others may be captions whose pictures are missing.
_MOST_TEXTS = 16
# No dataset has more tables: the others may be files beside pictures that are missing.
_MOST = 256
_LOOK_AT = 256


class Table(Form):
    """Tables with a column whose values are names of pictures, or pictures in base64."""

    kind = "table"
    shown = "tables that name pictures (*.jsonl, *.json, *.csv, *.tsv)"

    def recognise(self, look: Look) -> Found | None:
        """See `Form.recognise`; reads the first records of every table."""
        told = {
            path: says_something
            for path, records in tables_of(look)
            if (says_something := _names_pictures(look, path, records)) is not None
        }
        # If some tables have captions, others may have sizes or scores.
        found = tuple(sorted(path for path in told if told[path] or not any(told.values())))
        if not found:
            return None
        names = ", ".join(posixpath.basename(path) for path in found[:3])
        return Found(found, f"{counted(len(found), 'table')} that name pictures ({names})")

    def open(self, look: Look, found: Found) -> ImageTableSource:
        """See `Form.open`."""
        documents = dict(look.documents())
        interpret = partial(_records, look)
        files = asked_for(look, found.files, interpret)
        inside = any(_has_splits(documents.get(path)) for path in files)
        first = next((list(islice(r, _LOOK_AT)) for p, r in tables_of(look) if p == files[0]), [])
        by_stem = "" if picture_column(first) else _stem_column(look, first)
        return ImageTableSource.open(
            look,
            files,
            self.kind,
            usual=by_stem or HUB_IMAGE,
            interpret=interpret,
            by_name=True,
            inside=inside,
        )


def _has_splits(document: Any) -> bool:
    """Whether a document has a list of records for each of several splits."""
    lists = lists_in(document)
    return len(lists) > 1 and all(map(says_split, lists))


def _records(look: Look, document: Any) -> list[dict[str, Any]] | None:
    """The records of a document; if it has a list for each split, those of the requested one."""
    if not _has_splits(document):
        return records_in(document)
    lists = lists_in(document)
    chosen = look.select([f"{name}{DOCUMENT_SUFFIX}" for name in lists]).files
    return [record for name in chosen for record in lists[name.removesuffix(DOCUMENT_SUFFIX)]]


def _names_pictures(look: Look, path: str, records: Iterator[Record]) -> bool | None:
    """Whether a table that names pictures has captions; `None` if it does not name pictures."""
    first = list(islice(records, _LOOK_AT))
    if first and all(record.problem for record in first):
        where = f"{path} in dataset {look.files.shown!r}"
        look.problems.append(
            DatasetError(f"{where} has no record that can be read: {first[0].problem}")
        )
    column = picture_column(first) or _stem_column(look, first)
    return has_captions(first, column) if column else None


def _stem_column(look: Look, first: Sequence[Record]) -> str:
    column = stem_column(first, look.pictures, look.spec.image_column)
    # Tables of scores or notes also have the ids of pictures whose captions are elsewhere.
    if column.lower() in ID_COLUMNS and not look.spec.image_column:
        return "" if look.beside_pictures or not has_captions(first, column) else column
    return column


def tables_of(look: Look) -> Iterator[tuple[str, Iterator[Record]]]:
    """Every file that may be a table and has no conventional name, with its records."""
    reader = TableFiles(look.files, is_glance=True)
    lines = [
        *look.ending(*CSV_SUFFIXES, *LINES_SUFFIXES),
        *(p for p in look.ending(*_TEXT_TABLES) if posixpath.basename(p).lower() in _TEXT_TABLES),
        *(p for p in look.ending(_TOKENS) if not p.lower().endswith(_LEMMAS)),
    ]
    known = frozenset(lines)
    lines += [path for path in _texts(look) if path not in known]
    by_convention = frozenset({*HUB_TABLES, KERAS_TABLE})
    for path in [p for p in lines if posixpath.basename(p) not in by_convention][:_MOST]:
        yield path, _readable(look, reader.records(path))
    for path, document in look.documents():
        if document is None:
            # JSON lines under another suffix, or an unreadable file.
            yield path, _readable(look, reader.records(path))
        elif records := _records(look, document):
            yield path, (Record(i, i, values) for i, values in enumerate(records))


def _texts(look: Look) -> Iterator[str]:
    """Text files without a picture beside them that begin like a table of pictures."""
    alone = (p for p in look.ending(_TEXT_SUFFIX) if not look.is_beside_picture(p))
    for path in islice(alone, _MOST_TEXTS):
        with look.files.peek(path) as f:
            first = _PAIR.match(f.read(_FIRST_BYTES))
        if first and names_picture(first[0].decode("utf-8", "replace").rstrip("\t,|; ").strip('"')):
            yield path


def _readable(look: Look, records: Iterator[Record]) -> Iterator[Record]:
    """The records until the file turns out not to be a table."""
    try:
        yield from records
    except DatasetError as error:
        look.problems.append(error)
