"""The rows in which two versions of a dataset differ."""

from __future__ import annotations

import collections
import dataclasses
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from pipeline.lineage import files
from pipeline.lineage.model import Artifact, LineageError
from storage import row_index

ADDED, REMOVED, CAPTION, PICTURE = "added", "removed", "caption", "picture"
SET_ASIDE, NOT_SET_ASIDE = "set aside", "no longer set aside"

_REJECTS_TYPE, _EXAMPLES_TYPE = "RejectedRows", "Examples"
_REJECTS_NAME = "rejects.jsonl"
_WORDS = {
    ADDED: "added",
    REMOVED: "removed",
    CAPTION: "with another caption",
    PICTURE: "with another picture",
    SET_ASIDE: "set aside",
    NOT_SET_ASIDE: "no longer set aside",
}


@dataclasses.dataclass(frozen=True)
class RowChange:
    """A row that differs.

    Attributes:
        kind: What happened to it; one of the constants above.
        before: Its caption in the earlier version, or where the row was.
        now: The same in this version; `another picture` if the picture changed.
    """

    kind: str
    before: str | None
    now: str | None


@dataclasses.dataclass(frozen=True)
class RowChanges:
    """What differs between two versions of a dataset.

    Attributes:
        rows_before: Number of rows in the earlier version.
        changes: The rows that differ, by kind.
    """

    rows_before: int
    changes: tuple[RowChange, ...]

    def number(self, kind: str) -> int:
        """How many rows differ in this way, one of the constants above."""
        return sum(change.kind == kind for change in self.changes)

    @property
    def summary(self) -> str:
        """A summary such as `2 rows added, 1 with another caption`."""
        numbers = collections.Counter(change.kind for change in self.changes)
        told = [f"{numbers[kind]:,} {words}" for kind, words in _WORDS.items() if numbers[kind]]
        if not told:
            return "no row changed: files were renamed, or something that is not read differs"
        first = "row" if told[0].startswith("1 ") else "rows"
        return ", ".join([told[0].replace(" ", f" {first} ", 1), *told[1:]])


def row_changes(
    before: Iterable[Artifact], now: Iterable[Artifact], roots: Sequence[str]
) -> RowChanges:
    """Compares the outputs of two ingestions of a dataset.

    Args:
        before: The earlier outputs: the examples, and the rows that were set aside.
        now: The current outputs.
        roots: Folders whose files may be read.

    Raises:
        LineageError: The files no longer exist, or have no row index.
    """
    old, new = dict(_by_type(before)), dict(_by_type(now))
    for version in (old, new):
        if _EXAMPLES_TYPE not in version:
            raise LineageError("the step has no examples as output")
    folders = [_index(version[_EXAMPLES_TYPE], roots) for version in (old, new)]
    ids = [{row.id for row in row_index.read_rows(folder)} for folder in folders]
    gone, come = (
        [row for row in row_index.read_rows(folder) if row.id not in others]
        for folder, others in zip(folders, reversed(ids), strict=True)
    )
    was, is_now = (_rejects(version.get(_REJECTS_TYPE), roots) for version in (old, new))
    changes = (
        *_paired(gone, come),
        *(RowChange(SET_ASIDE, None, told) for row, told in is_now.items() if row not in was),
        *(RowChange(NOT_SET_ASIDE, told, None) for row, told in was.items() if row not in is_now),
    )
    return RowChanges(len(ids[0]), changes)


def _by_type(artifacts: Iterable[Artifact]) -> Iterator[tuple[str, Artifact]]:
    for artifact in artifacts:
        yield artifact.type.rpartition(".")[2], artifact


def _index(examples: Artifact, roots: Sequence[str]) -> str:
    folder = files.folder_of(examples, roots) / row_index.FOLDER_NAME
    if not folder.is_dir():
        raise LineageError(f"artifact {examples.id} has no row index")
    return str(folder)


def _rejects(artifact: Artifact | None, roots: Sequence[str]) -> dict[tuple[Any, ...], str]:
    """The rows that were set aside, in words, by a key that does not depend on other rows."""
    if artifact is None:
        return {}
    path = Path(files.folder_of(artifact, roots), _REJECTS_NAME)
    rows = map(json.loads, path.read_bytes().splitlines() if path.is_file() else ())
    return {
        (row["origin"], row["reason"], row["caption"], row["detail"]): (
            f"{row['origin']} row {row['row']}: {row['reason']}"
        )
        for row in rows
    }


def _paired(
    gone: list[row_index.IndexedRow], come: list[row_index.IndexedRow]
) -> Iterator[RowChange]:
    """Pairs removed with added rows that share the picture, then those that share the caption."""
    changes = []
    for kind, same in ((CAPTION, "picture"), (PICTURE, "caption")):
        waiting = collections.defaultdict(list)
        for row in gone:
            waiting[getattr(row, same)].append(row)
        left = []
        for row in come:
            if former := waiting[getattr(row, same)]:
                now = row.caption if kind == CAPTION else "another picture"
                changes.append(RowChange(kind, former.pop(0).caption, now))
            else:
                left.append(row)
        gone, come = [row for rows in waiting.values() for row in rows], left
    yield from (RowChange(ADDED, None, row.caption) for row in come)
    yield from (RowChange(REMOVED, row.caption, None) for row in gone)
    yield from changes
