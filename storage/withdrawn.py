"""What somebody asked to be taken out of a dataset: the file that lists it.

A line names a picture and says why: `KIND:VALUE # REASON`. Empty lines, and those that begin with
`#`, are passed over.
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
"""What a line can name: the SHA-256 of a picture's file, a row's id, or a caption."""

WITHDRAWN_NAME = "withdrawn.json"
"""Beside the rejected rows, the file that says what was taken out: a `Withdrawn`."""

WITHDRAWN_ROWS = "withdrawn_rows"
"""Custom property of a dataset's examples: how many rows a list has taken out."""

_COMMENT, _REASON = "#", re.compile(r"(?:.*\s)?#(?=\s)")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_FORM = "write sha256:HASH # REASON, row:ID # REASON or caption:TEXT # REASON"


class WithdrawnError(UserError, ValueError):
    """A list that cannot be used; the message is one line."""


@dataclasses.dataclass(frozen=True)
class Entry:
    """A line of the list.

    Attributes:
        kind: One of `KINDS`.
        value: What it names; a caption as `plain` has it, without white space around it.
        reason: Why, for people.
        line: Its number, from 1.
    """

    kind: str
    value: str
    reason: str
    line: int

    @property
    def shown(self) -> str:
        """As it was written, without the reason."""
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
        """SHA-256 (hex) of what is listed and why; neither order nor comments matter."""
        return _digest(self.entries)

    def find(self, picture: str, row: str, captions: Iterable[str]) -> int | None:
        """The first entry that names a row; `None` where none does.

        Args:
            picture: SHA-256 (hex) of the picture's file.
            row: The row's id.
            captions: Its caption, in every form that it had.
        """
        named = [(PICTURE, picture), (ROW, row), *((CAPTION, c.strip()) for c in captions)]
        return min((self._by_name[name] for name in named if name in self._by_name), default=None)

    @functools.cached_property
    def _by_name(self) -> Mapping[tuple[str, str], int]:
        return {(entry.kind, entry.value): i for i, entry in enumerate(self.entries)}


@dataclasses.dataclass(frozen=True)
class WithdrawnRow:
    """A row that was taken out.

    Attributes:
        id: SHA-256 (hex) of picture and caption.
        picture: SHA-256 (hex) of the picture's file.
        caption: The caption.
        origin: The dataset's file that it stands in.
        row: Its number there.
        entry: The number of the entry by which, from 0.
        near: SHA-256 (hex) of the listed picture that its own is nearly the same as; "" where it is
            that.
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
    """What a list took out of a dataset.

    Attributes:
        entries: The list.
        rows: The rows that are set aside by it.
    """

    entries: tuple[Entry, ...]
    rows: tuple[WithdrawnRow, ...]

    @property
    def unmatched(self) -> tuple[Entry, ...]:
        """The entries that name no row that could be used."""
        found = {row.entry for row in self.rows}
        return tuple(entry for i, entry in enumerate(self.entries) if i not in found)

    @property
    def digest(self) -> str:
        """That of the list."""
        return _digest(self.entries)

    def write(self, folder: str) -> None:
        """Writes it into a folder."""
        said = json.dumps(dataclasses.asdict(self), indent=1, ensure_ascii=False)
        filesystem.write_bytes(filesystem.join(folder, WITHDRAWN_NAME), said.encode())

    @classmethod
    def read(cls, folder: str) -> Withdrawn:
        """Reads what `write` wrote; raises an OSError where there is none."""
        said = json.loads(filesystem.read_bytes(filesystem.join(folder, WITHDRAWN_NAME)))
        return cls(
            tuple(Entry(**entry) for entry in said["entries"]),
            tuple(WithdrawnRow(**row) for row in said["rows"]),
        )


@dataclasses.dataclass(frozen=True)
class KnowingRelease:
    """A release that knows something that was withdrawn later.

    Attributes:
        version: Its version.
        how: How it came to know it, in words.
        entries: What it knows, as `Entry.shown` has it.
    """

    version: str
    how: str
    entries: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class KnownBy:
    """Which releases know what a list has.

    Attributes:
        releases: Those that do.
        untold: Versions of those of which nobody can tell any more.
        problem: Why none could be looked up; "" where they were.
    """

    releases: tuple[KnowingRelease, ...] = ()
    untold: tuple[str, ...] = ()
    problem: str = ""

    def to_json(self) -> str:
        """As JSON, the same for the same."""
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
        path: Its file, local or remote, UTF-8.

    Raises:
        WithdrawnError: There is none, or a line of it is wrong; says which.
    """
    try:
        text = filesystem.read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise WithdrawnError(f"{path} is no UTF-8 text: {error}; encode it as UTF-8") from None
    except OSError as error:
        raise WithdrawnError(f"{path} cannot be read: {one_line(error)}") from None
    entries: dict[tuple[str, str], Entry] = {}
    # A caption may have a form feed or a line separator in it, at which `splitlines` would cut.
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
                f"{path}, line {number}: {_short(entry.shown)} stands in line {former.line}, too: "
                "leave one of them out"
            )
    return WithdrawnList(tuple(entries.values()))


def _entry(line: str, number: int) -> Entry:
    kind, colon, rest = line.partition(":")
    if not colon or kind not in KINDS:
        raise ValueError(f"{_short(line)!r} names nothing that is known: {_FORM}")
    # The last one: a caption may have the sign in it.
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
                f"{_short(value)!r} is no SHA-256, which has 64 digits from 0 to 9 and a to f: "
                f"{_FORM}"
            )
    return Entry(kind, value, reason, number)


def _digest(entries: Iterable[Entry]) -> str:
    said = sorted((entry.kind, entry.value, entry.reason) for entry in entries)
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()


def _short(text: str, most: int = 80) -> str:
    return text if len(text) <= most else f"{text[:most]} ..."
