"""Which pictures former runs have encoded, and where: so that they need not be encoded again.

The latents stay in what those runs made. The index is one file for each run, beside the runs and no
part of what they make, so that what comes out is the same with and without it. It may be damaged or
removed, and so may what it points to: every record is held against its digest before it is used.
Places are relative to the folder that the index lies in: it may be moved or copied with the runs.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from storage import filesystem
from storage.hashing import sha256_hex

_SUFFIX = ".json"
# What is older is hardly ever still there, and hardly has what newer ones have not.
_KEPT = 4
_KEY_HEX_DIGITS, _DIGEST_BYTES = 16, 16

logger = logging.getLogger(__name__)


class IndexedRecord(NamedTuple):
    """A record of latents.

    Attributes:
        id: Its example.
        picture: What `picture_key` says.
        digest: What `record_digest` says.
    """

    id: str
    picture: str
    digest: str


@dataclasses.dataclass(frozen=True)
class IndexedShard:
    """A file of latents.

    Attributes:
        path: Where it is.
        numerics: Of the encoders that made it; see `Encoders.numerics`.
        records: In their order.
    """

    path: str
    numerics: str
    records: tuple[IndexedRecord, ...]


class Wanted(NamedTuple):
    """A record that has a use.

    Attributes:
        place: Its place in its file.
        record: It.
        uses: Shards that it is of use for, each with the id of the example.
    """

    place: int
    record: IndexedRecord
    uses: list[tuple[str, str]]


def picture_key(sha256: str, position: tuple[float, float]) -> str:
    """Stands for what of a picture is encoded.

    Args:
        sha256: Of the picture's file, in hexadecimal digits.
        position: Of the part that is kept (see `storage.images.resize_cover`).
    """
    return _digest(f"{sha256} {position}".encode())


def record_digest(record: bytes) -> str:
    """Stands for a serialized record."""
    return _digest(record)


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=_DIGEST_BYTES).hexdigest()


class LatentsIndex:
    """The index of what runs with the same root have encoded in one way."""

    def __init__(self, folder: str, facts: Mapping[str, object]) -> None:
        """Reads and writes nothing yet.

        Args:
            folder: Where it lies, directly below the folder that all runs write to.
            facts: All that decides what a picture is encoded to: what was encoded in another way is
                not found.
        """
        self._all, self._root = folder, filesystem.parent(folder)
        key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
        self._folder = filesystem.join(folder, key[:_KEY_HEX_DIGITS])

    def read(self) -> Iterator[list[IndexedShard]]:
        """What former runs have encoded, those whose latents are still there, the newest first."""
        gone = 0
        for path in _files(self._folder):
            try:
                header, body = filesystem.read_bytes(path).split(b"\n", 1)
                told = json.loads(header)
                latents = filesystem.join(self._root, *told["latents"].split("/"))
                if told["sha256"] != sha256_hex([body]):
                    raise ValueError("its contents are not those that were written")
            except (OSError, ValueError, KeyError, AttributeError) as error:
                logger.warning(
                    "What a former run has encoded cannot be told from %s, which is damaged: %s.",
                    path,
                    error,
                )
                continue
            if not filesystem.is_folder(latents):
                gone += 1
                continue
            yield [
                IndexedShard(
                    filesystem.join(latents, *shard["path"].split("/")),
                    shard["numerics"],
                    tuple(IndexedRecord(*record) for record in shard["records"]),
                )
                for shard in json.loads(body)
            ]
        if gone:
            logger.info(
                "The latents of %s were removed: nothing can be taken over from there.",
                "a former run" if gone == 1 else f"{gone} former runs",
            )

    def write(self, latents: str, shards: Iterable[IndexedShard]) -> None:
        """Adds what a run has encoded, and forgets what is not there any more.

        Args:
            latents: Folder of the latents, below that of all runs; elsewhere nothing is added.
            shards: Its files.
        """
        self._forget()
        start = f"{self._root.rstrip('/')}/"
        if not latents.startswith(start):
            return
        inside = f"{latents.rstrip('/')}/"
        body = json.dumps(
            [
                {
                    "path": shard.path.removeprefix(inside),
                    "numerics": shard.numerics,
                    "records": shard.records,
                }
                for shard in shards
            ]
        ).encode()
        header = {"latents": latents.removeprefix(start), "sha256": sha256_hex([body])}
        filesystem.make_folder(self._folder)
        # By their names, the newest is the last.
        name = f"{time.time_ns():020d}-{uuid.uuid4().hex[:8]}{_SUFFIX}"
        filesystem.write_atomically(
            filesystem.join(self._folder, name), json.dumps(header).encode() + b"\n" + body
        )
        for path in _files(self._folder)[_KEPT:]:
            with contextlib.suppress(OSError):
                filesystem.remove_file(path)

    def _forget(self) -> None:
        """Removes what points to latents that are gone, also of those encoded in other ways."""
        with contextlib.suppress(OSError):
            for name in filesystem.list_folder(self._all):
                for path in _files(filesystem.join(self._all, name)):
                    if not self._is_there(path):
                        filesystem.remove_file(path)

    def _is_there(self, path: str) -> bool:
        header = next(filesystem.read_chunks(path), b"").split(b"\n", 1)[0]
        try:
            latents = json.loads(header)["latents"].split("/")
        except (ValueError, KeyError, TypeError, AttributeError):
            return False
        return filesystem.is_folder(filesystem.join(self._root, *latents))


def find_uses(
    former: Iterable[Sequence[IndexedShard]], examples: Mapping[str, Iterable[tuple[str, str]]]
) -> list[tuple[IndexedShard, list[Wanted]]]:
    """Finds for examples what was encoded of them before.

    Args:
        former: What runs have encoded, the newest first; read only as far as there is need.
        examples: By the shard that they are in: ids, each with the `picture_key`.

    Returns:
        Files with the records in them that have a use, in their order: for an example its own
        record, or else one of the same picture.
    """
    missing = {
        example: (shard, picture) for shard, rows in examples.items() for example, picture in rows
    }
    found: list[tuple[IndexedShard, list[Wanted]]] = []
    former = iter(former)
    while missing and (shards := next(former, None)) is not None:
        uses: dict[tuple[int, int], list[tuple[str, str]]] = {}
        by_picture: dict[str, tuple[int, int]] = {}
        for number, shard in enumerate(shards):
            for place, record in enumerate(shard.records):
                by_picture.setdefault(record.picture, (number, place))
                if missing.get(record.id, ("", ""))[1] == record.picture:
                    uses[number, place] = [(missing.pop(record.id)[0], record.id)]
        for example, (target, picture) in list(missing.items()):
            if (place_of := by_picture.get(picture)) is not None:
                uses.setdefault(place_of, []).append((target, example))
                del missing[example]
        by_shard: dict[int, list[Wanted]] = {}
        for (number, place), used in sorted(uses.items()):
            record = shards[number].records[place]
            by_shard.setdefault(number, []).append(Wanted(place, record, used))
        found += [(shards[number], wanted) for number, wanted in by_shard.items()]
    return found


def _files(folder: str) -> list[str]:
    """The files of an index, the newest first."""
    try:
        names = filesystem.list_folder(folder)
    except OSError:
        return []
    return [filesystem.join(folder, n) for n in sorted(names, reverse=True) if n.endswith(_SUFFIX)]
