"""The list of what somebody asked to withdraw from a dataset.

A line names a picture and says why: `KIND:VALUE # REASON`. Empty lines, and lines that start with
`#`, are ignored.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import re
from collections.abc import Iterable, Mapping

from storage import filesystem
from storage.errors import one_line
from storage.plain_text import plain
from storage.user_errors import UserError

KINDS = PICTURE, ROW, CAPTION = "sha256", "row", "caption"
"""What a line can name: the SHA-256 of a picture file, the id of a row, or a caption."""

WITHDRAWN_NAME = "withdrawn.json"
"""Name of the file beside the rejected rows with what was withdrawn: a `Withdrawn`."""

WITHDRAWN_ROWS = "withdrawn_rows"
"""Custom property of a dataset's examples: how many rows a list has withdrawn."""

_COMMENT, _REASON = "#", re.compile(r"(?:.*\s)?#(?=\s)")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_FORM = "write sha256:HASH # REASON, row:ID # REASON or caption:TEXT # REASON"


class WithdrawnError(UserError, ValueError):
    """A list cannot be used; the message is one line."""


@dataclasses.dataclass(frozen=True)
class Entry:
    """A line of the list.

    Attributes:
        kind: One of `KINDS`.
        value: What it names; a caption is in the form of `plain`, stripped of white space.
        reason: Why, for people.
        line: Line number, from 1.
    """

    kind: str
    value: str
    reason: str
    line: int

    @property
    def shown(self) -> str:
        """The entry as it was written, without the reason."""
        return f"{self.kind}:{self.value}"


@dataclasses.dataclass(frozen=True)
class WithdrawnList:
    """All lines of a list.

    Attributes:
        entries: In the order of the file.
    """

    entries: tuple[Entry, ...]

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of the entries and reasons; order and comments do not matter."""
        return _digest(self.entries)

    def find(self, picture: str, row: str, captions: Iterable[str]) -> int | None:
        """The index of the first entry that names a row; `None` if none does.

        Args:
            picture: SHA-256 (hex) of the picture file.
            row: The row's id.
            captions: The row's caption, in every form that it had.
        """
        named = [(PICTURE, picture), (ROW, row), *((CAPTION, c.strip()) for c in captions)]
        return min((self._by_name[name] for name in named if name in self._by_name), default=None)

    @functools.cached_property
    def _by_name(self) -> Mapping[tuple[str, str], int]:
        return {(entry.kind, entry.value): i for i, entry in enumerate(self.entries)}


@dataclasses.dataclass(frozen=True)
class WithdrawnRow:
    """A row that was withdrawn.

    Attributes:
        id: SHA-256 (hex) of picture and caption.
        picture: SHA-256 (hex) of the picture's file.
        caption: The caption.
        origin: The file of the dataset that contains it.
        row: Its number in that file.
        entry: Number of the entry that withdrew it, from 0.
        near: SHA-256 (hex) of the listed picture that its picture is nearly the same as; "" if the
            row itself is listed.
    """

    id: str
    picture: str
    caption: str
    origin: str
    row: int
    entry: int
    near: str


@dataclasses.dataclass(frozen=True)
class Withdrawn:
    """What a list withdrew from a dataset.

    Attributes:
        entries: The entries of the list.
        rows: The rows that it set aside.
    """

    entries: tuple[Entry, ...]
    rows: tuple[WithdrawnRow, ...]

    @property
    def unmatched(self) -> tuple[Entry, ...]:
        """The entries that do not name a usable row."""
        found = {row.entry for row in self.rows}
        return tuple(entry for i, entry in enumerate(self.entries) if i not in found)

    @property
    def digest(self) -> str:
        """Digest of the list."""
        return _digest(self.entries)

    def write(self, folder: str) -> None:
        """Writes this object into a folder."""
        said = json.dumps(dataclasses.asdict(self), indent=1, ensure_ascii=False)
        filesystem.write_bytes(filesystem.join(folder, WITHDRAWN_NAME), said.encode())

    @classmethod
    def read(cls, folder: str) -> Withdrawn:
        """Reads what `write` wrote; raises an OSError if there is no file."""
        said = json.loads(filesystem.read_bytes(filesystem.join(folder, WITHDRAWN_NAME)))
        return cls(
            tuple(Entry(**entry) for entry in said["entries"]),
            tuple(WithdrawnRow(**row) for row in said["rows"]),
        )


@dataclasses.dataclass(frozen=True)
class KnowingRelease:
    """A release that was trained on something that was withdrawn later.

    Attributes:
        version: Its version.
        how: How it came to know it, in words.
        entries: What it knows, as in `Entry.shown`.
    """

    version: str
    how: str
    entries: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class KnownBy:
    """Which releases know what is on a list.

    Attributes:
        releases: The releases that know it.
        untold: Versions of the releases for which this is no longer known.
        problem: Why releases could not be looked up; "" if they were.
    """

    releases: tuple[KnowingRelease, ...] = ()
    untold: tuple[str, ...] = ()
    problem: str = ""

    def to_json(self) -> str:
        """As JSON; equal objects give equal text."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True)

    @classmethod
    def of_json(cls, text: str) -> KnownBy:
        """Reads what `to_json` wrote."""
        said = json.loads(text)
        releases = (
            KnowingRelease(release["version"], release["how"], tuple(release["entries"]))
            for release in said["releases"]
        )
        return cls(tuple(releases), tuple(said["untold"]), said["problem"])


def read_list(path: str) -> WithdrawnList:
    """Reads a list.

    Args:
        path: The file, local or remote, in UTF-8.

    Raises:
        WithdrawnError: There is no such file, or a line is wrong; the message says which.
    """
    try:
        text = filesystem.read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise WithdrawnError(f"{path} is not UTF-8 text: {error}; encode it as UTF-8") from None
    except OSError as error:
        raise WithdrawnError(f"{path} cannot be read: {one_line(error)}") from None
    entries: dict[tuple[str, str], Entry] = {}
    # A caption may contain a form feed or a line separator, where `splitlines` would split.
    for number, line in enumerate(text.split("\n"), start=1):
        stripped = line.strip()
        if not stripped or stripped.startswith(_COMMENT):
            continue
        try:
            entry = _entry(stripped, number)
        except ValueError as error:
            raise WithdrawnError(f"{path}, line {number}: {error}") from None
        former = entries.setdefault((entry.kind, entry.value), entry)
        if former is not entry:
            raise WithdrawnError(
                f"{path}, line {number}: {_short(entry.shown)} is also in line {former.line}: "
                "remove one of them"
            )
    return WithdrawnList(tuple(entries.values()))


def _entry(line: str, number: int) -> Entry:
    kind, colon, rest = line.partition(":")
    if not colon or kind not in KINDS:
        raise ValueError(f"{_short(line)!r} has no known kind: {_FORM}")
    # The last `#`: a caption may contain the character.
    if (found := _REASON.match(rest)) is None:
        raise ValueError(f"{_short(line)!r} has no reason: {_FORM}")
    value, reason = rest[: found.end() - 1].strip(), rest[found.end() :].strip()
    if kind == CAPTION:
        value = plain(value).strip()
        if not value:
            raise ValueError(f"{_short(line)!r} has no caption: {_FORM}")
    else:
        value = value.lower()
        if not _DIGEST.fullmatch(value):
            raise ValueError(
                f"{_short(value)!r} is not a SHA-256, which has 64 digits from 0 to 9 and a to f: "
                f"{_FORM}"
            )
    return Entry(kind, value, reason, number)


def _digest(entries: Iterable[Entry]) -> str:
    said = sorted((entry.kind, entry.value, entry.reason) for entry in entries)
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()


def _short(text: str, most: int = 80) -> str:
    return text if len(text) <= most else f"{text[:most]} ..."
