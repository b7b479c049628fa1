"""Output folders that have moved since their metadata was recorded.

ML Metadata stores absolute addresses only. But the outputs of a run are in its output folder,
beside the database, by a fixed rule: `artifacts/<step>/<output>/<id of the execution>`, or Vertex's
rule if Vertex is emulated. So the recorded folder follows from the records themselves, and
everything that was below it is looked for below the folder that the database is in now, whether
that was renamed, moved, copied or mounted elsewhere.

The lineage does this in its copy in memory. A run does it in the database itself, before it reads
anything.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import sqlite3
from collections.abc import Iterable

ARTIFACTS_NAME = "artifacts"
"""The folder beside the database with a folder for every step."""
EMULATED_NAME = "000000000000"
"""Its name if Vertex is emulated: Vertex uses the project number."""

# An imported artifact stays where it was, so its path has the id of another execution.
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
# An address or the start of one, by itself or quoted in other text.
_BEFORE, _AFTER = r"(?:(?<=file://)|(?<![\w./~%+@-]))", r"""(?=/|["']|$)"""


class Relocation:
    """Rewrites addresses from the recorded folders to the current one.

    Attributes:
        former: The recorded folders.
        here: The current folder.
    """

    def __init__(self, former: Iterable[str], here: str) -> None:
        """Changes nothing if `former` is empty."""
        self.former = tuple(sorted({*former} - {here}))
        self.here = here
        # Addresses below the current folder stay, even if it is inside a former one.
        names = sorted((here, *self.former), key=len, reverse=True)
        spelt = [re.escape(spelling) for name in names for spelling in {name, _in_json(name)}]
        self._pattern = re.compile(f"{_BEFORE}(?:{'|'.join(spelt)}){_AFTER}")

    def __bool__(self) -> bool:
        return bool(self.former)

    def apply(self, text: str) -> str:
        """Rewrites an address, or any text that contains addresses, such as JSON."""
        if not self.former:
            return text
        here = _in_json(self.here) if text.startswith(("{", "[")) else self.here
        return self._pattern.sub(lambda _: here, text)


def find_relocation(connection: sqlite3.Connection, here: str) -> Relocation:
    """Finds what must change in an ML Metadata database that is now in the folder `here`.

    Args:
        connection: Connection to the database.
        here: Absolute path of the folder that contains the database.

    Returns:
        The relocation. It is empty if nothing has moved, or if the database does not belong to an
        output folder.
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
    """Rewrites the addresses in a database to the folder `here`, in one transaction.

    Args:
        connection: Connection to the database, in autocommit mode.
        here: Absolute path of the folder that contains the database.

    Returns:
        The relocation that was applied.
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
