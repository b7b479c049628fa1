"""Records of latents of former runs, put aside for the shards that can use them.

Each file is read once, from front to back. The work therefore grows only with the number of
records, wherever a changed caption has moved them.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import json
import logging
import uuid
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import apache_beam as beam
import tensorflow as tf

from components.latent_gen.index import IndexedRecord, IndexedShard, Wanted, record_digest
from components.tfrecords import read_shard
from storage import filesystem

DAMAGED = "damaged"
"""The counter of records that cannot be used."""

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class FormerShard:
    """A file of latents of a former run.

    Attributes:
        path: Path of the file.
        numerics: Numerics of the encoders that made it.
        wanted: File that lists its usable records.
    """

    path: str
    numerics: str
    wanted: str

    @classmethod
    def of(cls, shard: IndexedShard, wanted: Sequence[Wanted], wanted_path: str) -> FormerShard:
        """Writes `wanted` to `wanted_path`, so that Beam only passes paths around."""
        filesystem.write_bytes(wanted_path, json.dumps(wanted).encode())
        return cls(shard.path, shard.numerics, wanted_path)


class Piece(NamedTuple):
    """The position of a record in a file, and its use.

    Attributes:
        example: Id of the example that can use it.
        picture: The `picture_key` of its picture.
        offset: Its first byte.
        length: Its length in bytes.
    """

    example: str
    picture: str
    offset: int
    length: int


@dataclasses.dataclass(frozen=True)
class Pieces:
    """Records that one shard can use.

    Attributes:
        path: The file that contains them.
        numerics: Numerics of the encoders that made them.
        pieces: The records.
    """

    path: str
    numerics: str
    pieces: tuple[Piece, ...]


class PutAside(beam.DoFn):
    """`FormerShard` -> (shard, `Pieces` for it).

    A side output, tagged `DAMAGED`, counts the records that are gone or differ from what was
    written.
    """

    def __init__(self, folder: str) -> None:
        """Puts the records into files of an existing folder."""
        self._folder = folder

    def process(self, former: FormerShard) -> Iterator[Any]:
        """Reads one file."""
        wanted = {
            place: Wanted(place, IndexedRecord(*record), uses)
            for place, record, uses in json.loads(filesystem.read_bytes(former.wanted))
        }
        # A new name for every attempt: if a bundle is retried, only one file is referred to.
        path = filesystem.join(self._folder, f"pieces-{uuid.uuid4().hex}")
        pieces: dict[str, list[Piece]] = collections.defaultdict(list)
        found = offset = 0
        with tf.io.gfile.GFile(path, "wb") as f:
            for place, record in _records(former.path):
                each = wanted.get(place)
                if each is None or record_digest(record) != each.record.digest:
                    continue
                found += 1
                f.write(record)
                for target, example in each.uses:
                    piece = Piece(example, each.record.picture, offset, len(record))
                    pieces[target].append(piece)
                offset += len(record)
        if found < len(wanted):
            yield beam.pvalue.TaggedOutput(DAMAGED, (DAMAGED, len(wanted) - found))
        for target, of_target in pieces.items():
            yield target, Pieces(path, former.numerics, tuple(of_target))


def _records(path: str) -> Iterator[tuple[int, bytes]]:
    """The records of a file with their positions, as far as the file can be read."""
    try:
        yield from enumerate(read_shard(path))
    except tf.errors.OpError as error:
        logger.debug("%s cannot be read to its end: %s", path, error)


class FormerRecords:
    """Reads the records that were put aside for a shard."""

    def __init__(self, found: Iterable[Pieces]) -> None:
        """Opens no file yet."""
        self._pieces = {
            piece.example: (each.path, piece) for each in found for piece in each.pieces
        }
        self._files: dict[str, Any] = {}
        self._closing = contextlib.ExitStack()

    def read(self, example: str, picture: str) -> tf.train.Example | None:
        """The record of an example, or another record of the same picture, if there is one.

        Args:
            example: Id of the example.
            picture: The `picture_key` of the current picture.
        """
        path, piece = self._pieces.get(example, ("", None))
        if piece is None or piece.picture != picture:
            return None
        if path not in self._files:
            self._files[path] = self._closing.enter_context(tf.io.gfile.GFile(path, "rb"))
        self._files[path].seek(piece.offset)
        return tf.train.Example.FromString(self._files[path].read(piece.length))

    def close(self) -> None:
        """Closes the files."""
        self._closing.close()
