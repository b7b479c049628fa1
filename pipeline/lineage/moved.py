"""Output folders that lie elsewhere than when their metadata was recorded.

ML Metadata has room for absolute addresses alone. But what a run left lies in its output folder by
a rule, `artifacts/<step>/<output>/<id of the execution>`, beside the database; where Vertex is
emulated, by Vertex's. So the folder that was recorded is known from the records themselves, and
whatever was below it is looked for below the folder that the database is in now: renamed, moved,
copied, or mounted elsewhere.

The lineage does this in its copy in memory; a run in the database itself, before it reads anything.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import sqlite3
from collections.abc import Iterable

ARTIFACTS_NAME = "artifacts"
"""The folder beside the database in which every step has one."""
EMULATED_NAME = "000000000000"
"""The same where Vertex is emulated, which puts the project's number there."""

# What was imported lies where it always did, and has another execution's number.
_LAYOUTS = {
    ARTIFACTS_NAME: r"(?P<folder>/.*)/artifacts/[^/]+/[^/]+/(?P<execution>[0-9]+)",
    EMULATED_NAME: rf"(?P<folder>/.*)/{EMULATED_NAME}/[^/]+/[^/]+_[0-9]+/[^/]+",
}
_OUTPUT_EVENTS = (1, 4)  # DECLARED_OUTPUT, OUTPUT
_COLUMNS = (
    ("Artifact", "uri"),
    ("ArtifactProperty", "string_value"),
    ("ExecutionProperty", "string_value"),
)
# An address as a whole or the beginning of one, by itself or quoted in some other text.
_BEFORE, _AFTER = r"(?:(?<=file://)|(?<![\w./~%+@-]))", r"""(?=/|["']|$)"""


class Relocation:
    """From the folders that addresses were recorded below to the one that they are below now.

    Attributes:
        former: The folders that were recorded.
        here: The folder now.
    """

    def __init__(self, former: Iterable[str], here: str) -> None:
        """Moves nothing where `former` is empty."""
        self.former = tuple(sorted({*former} - {here}))
        self.here = here
        # What is below the folder already stays, even if that lies in a former one.
        names = sorted((here, *self.former), key=len, reverse=True)
        spelt = [re.escape(spelling) for name in names for spelling in {name, _in_json(name)}]
        self._pattern = re.compile(f"{_BEFORE}(?:{'|'.join(spelt)}){_AFTER}")

    def __bool__(self) -> bool:
        return bool(self.former)

    def apply(self, text: str) -> str:
        """An address, or any text with addresses in it such as JSON, as it is true here."""
        if not self.former:
            return text
        here = _in_json(self.here) if text.startswith(("{", "[")) else self.here
        return self._pattern.sub(lambda _: here, text)


def find_relocation(connection: sqlite3.Connection, here: str) -> Relocation:
    """What has to change in a database of ML Metadata for it to be true in the folder `here`.

    Args:
        connection: To the database.
        here: The folder that the database lies in, absolute.

    Returns:
        What moves nothing where all is as it was recorded, or the database is no output folder's.
    """
    former = set()
    for name, layout in _LAYOUTS.items():
        inside = os.path.join(here, name, "")
        if not os.path.isdir(inside):
            continue
        rows = connection.execute(
            "SELECT a.uri, e.execution_id FROM Artifact a JOIN Event e ON e.artifact_id = a.id "
            f"WHERE e.type IN {_OUTPUT_EVENTS} AND a.uri LIKE '/%' AND substr(a.uri, 1, ?) != ?",
            (len(inside), inside),
        )
        for uri, execution in rows:
            found = re.fullmatch(layout, uri)
            if found and found.groupdict().get("execution") in (None, str(execution)):
                former.add(found["folder"])
    return Relocation(former, here)


def relocate(connection: sqlite3.Connection, here: str) -> Relocation:
    """Makes a database true in the folder `here` that it lies in, in one transaction.

    Args:
        connection: To the database, in autocommit mode.
        here: That folder, absolute.

    Returns:
        What was changed.
    """
    relocation = find_relocation(connection, here)
    if not relocation:
        return relocation
    connection.execute("BEGIN IMMEDIATE")
    with contextlib.ExitStack() as stack:
        stack.callback(connection.execute, "ROLLBACK")
        for table, column in _COLUMNS:
            rows = connection.execute(
                f"SELECT rowid, {column} FROM {table} WHERE {column} LIKE '%/%'"
            ).fetchall()
            changed = [(now, row) for row, text in rows if (now := relocation.apply(text)) != text]
            connection.executemany(f"UPDATE {table} SET {column} = ? WHERE rowid = ?", changed)
        connection.execute("COMMIT")
        stack.pop_all()
    return relocation


def _in_json(path: str) -> str:
    return json.dumps(path)[1:-1]
