"""A dataset that changes every week, and what the lineage must say of it."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

REPO_ROOT = Path(__file__).resolve().parent.parent
OTHER_LANGUAGE = "una criatura dibujada con cuernos verdes y alas pequeñas, número {}"


@dataclasses.dataclass(frozen=True)
class Picture:
    """A row of the dataset."""

    content: bytes
    caption: str

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of the picture."""
        return hashlib.sha256(self.content).hexdigest()


class Dataset:
    """What a week makes of it, in a file that is replaced at once."""

    def __init__(self, path: Path) -> None:
        [shard, *_] = sorted((REPO_ROOT / "data" / "creatures" / "data").glob("*.parquet"))
        rows = pq.read_table(shard).to_pylist()
        self._unused = [Picture(row["image"]["bytes"], row["text"]) for row in rows]
        self._path = path
        self._random = random.Random(0)
        self.rows = self._take(40)

    def change(self, what: str) -> None:
        """Lets that happen to it, and writes it."""
        broken: list[Picture] = []
        if what == "grows":
            self.rows += self._take(8)
        elif what == "shrinks":
            for row in self._random.sample(self.rows, 6):
                self.rows.remove(row)
        elif what == "drifts":
            self.rows = [
                dataclasses.replace(row, caption=OTHER_LANGUAGE.format(row.digest[:6]))
                if i % 2
                else row
                for i, row in enumerate(self.rows)
            ]
        elif what == "breaks":
            broken = [Picture(b"no picture", f"broken {i}") for i in range(len(self.rows) // 4)]
        self._write(self.rows + broken, whole=what != "is torn")

    def _take(self, number: int) -> list[Picture]:
        taken, self._unused = self._unused[:number], self._unused[number:]
        return taken

    def _write(self, rows: list[Picture], whole: bool) -> None:
        images = [{"bytes": row.content, "path": None} for row in rows]
        table = pa.table({"image": images, "text": [row.caption for row in rows]})
        partial = self._path.parent.with_suffix(".new")
        pq.write_table(table, partial)
        if not whole:
            partial.write_bytes(partial.read_bytes()[:-100])
        os.replace(partial, self._path)


def check_changes(
    changes: Mapping[str, Any], before: tuple[Picture, ...], now: tuple[Picture, ...]
) -> None:
    """Rows that were added and removed; one with another caption is changed."""
    was, is_now = ({row.content: row.caption for row in rows} for rows in (before, now))
    expected = {
        "added": {is_now[p] for p in is_now.keys() - was.keys()},
        "removed": {was[p] for p in was.keys() - is_now.keys()},
        "changed": {is_now[p] for p in was.keys() & is_now.keys() if was[p] != is_now[p]},
    }
    found: dict[str, set[str]] = {kind: set() for kind in expected}
    for change in changes["changes"]:
        kind = change["kind"] if change["kind"] in found else "changed"
        found[kind].add(change["before"] if kind == "removed" else change["now"])
    assert found == expected
