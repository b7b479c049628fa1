"""Which pictures former runs have encoded, and where, so that they need not be encoded again.

The latents stay in the outputs of those runs. The index has one file per run. It lies beside the
runs and is not part of their outputs, which are therefore the same with and without it. The index
and the latents it points to may be damaged or removed: every record is compared with its digest
before it is used. Paths are relative to the folder that contains the index, so it can be moved or
copied together with the runs.
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
# The latents of older runs are rarely still there, and rarely add anything to the newer ones.
_KEPT = 4
_KEY_HEX_DIGITS, _DIGEST_BYTES = 16, 16

logger = logging.getLogger(__name__)


class IndexedRecord(NamedTuple):
    """A record of latents.

    Attributes:
        id: Id of its example.
        picture: Its `picture_key`.
        digest: Its `record_digest`.
    """

    id: str
    picture: str
    digest: str


@dataclasses.dataclass(frozen=True)
class IndexedShard:
    """A file of latents.

    Attributes:
        path: Path of the file.
        numerics: Numerics of the encoders that made it; see `Encoders.numerics`.
        records: Its records, in order.
    """

    path: str
    numerics: str
    records: tuple[IndexedRecord, ...]


class Wanted(NamedTuple):
    """A record that can be used.

    Attributes:
        place: Its position in its file.
        record: The record.
        uses: The shards that can use it, each with the id of the example.
    """

    place: int
    record: IndexedRecord
    uses: list[tuple[str, str]]


def picture_key(sha256: str, position: tuple[float, float]) -> str:
    """Identifies the part of a picture that is encoded.

    Args:
        sha256: SHA-256 (hex) of the picture's file.
        position: Position of the part that is kept (see `storage.images.resize_cover`).
    """
    return _digest(f"{sha256} {position}".encode())


def record_digest(record: bytes) -> str:
    """Identifies a serialized record."""
    return _digest(record)


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=_DIGEST_BYTES).hexdigest()


class LatentsIndex:
    """The index of what runs with the same root folder have encoded with the same settings."""

    def __init__(self, folder: str, facts: Mapping[str, object]) -> None:
        """Reads and writes nothing yet.

        Args:
            folder: Folder of the index, directly below the folder that all runs write to.
            facts: Everything that affects the encoding of a picture; latents made with other facts
                are not found.
        """
        self._all, self._root = folder, filesystem.parent(folder)
        key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
        self._folder = filesystem.join(folder, key[:_KEY_HEX_DIGITS])

    def read(self) -> Iterator[list[IndexedShard]]:
        """What former runs whose latents still exist have encoded, the newest first."""
        gone = 0
        for path in _files(self._folder):
            try:
                header, body = filesystem.read_bytes(path).split(b"\n", 1)
                told = json.loads(header)
                latents = filesystem.join(self._root, *told["latents"].split("/"))
                if told["sha256"] != sha256_hex([body]):
                    raise ValueError("its contents have changed since it was written")
            except (OSError, ValueError, KeyError, AttributeError) as error:
                logger.warning(
                    "The latents of a former run cannot be taken over from %s, which is damaged: "
                    "%s.",
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
                "The latents of %s were removed, so nothing can be taken over from there.",
                "a former run" if gone == 1 else f"{gone} former runs",
            )

    def write(self, latents: str, shards: Iterable[IndexedShard]) -> None:
        """Adds what a run has encoded, and removes entries whose latents are gone.

        Args:
            latents: Folder of the latents, below the folder of all runs; otherwise nothing is
                added.
            shards: The files of the latents.
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
        # Sorted by name, the newest file is last.
        name = f"{time.time_ns():020d}-{uuid.uuid4().hex[:8]}{_SUFFIX}"
        filesystem.write_atomically(
            filesystem.join(self._folder, name), json.dumps(header).encode() + b"\n" + body
        )
        for path in _files(self._folder)[_KEPT:]:
            with contextlib.suppress(OSError):
                filesystem.remove_file(path)

    def _forget(self) -> None:
        """Removes entries whose latents are gone, including latents made with other settings."""
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
    """Finds records that former runs have encoded for the given examples.

    Args:
        former: What runs have encoded, the newest first; read only as far as needed.
        examples: Ids, each with the `picture_key`, by the shard that contains them.

    Returns:
        Files with their usable records, in order: for each example its own record, or else a
        record of the same picture.
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
