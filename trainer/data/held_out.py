"""The held-out pictures: which of them choose a model during its training, and which judge it.

LatentGen divides them and writes the division next to the latents. If they choose anything, the
Trainer only uses the ones that choose, and LossScorer the others.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterable, Sequence

import tensorflow as tf

from trainer.data.latents import size_of

CHOOSING_NAME = "choosing.json"
"""The file next to the latents with the ids of the examples that choose."""

# More pictures would not make an interval noticeably narrower.
_MOST_PICTURES = 1000


@dataclasses.dataclass(frozen=True)
class Pictures:
    """Different pictures, with one example each.

    Attributes:
        count: Number of pictures.
        records: Their records from LatentGen, up to the wanted number, in an order that is random
            but depends only on the pictures.
    """

    count: int
    records: Sequence[bytes]


@dataclasses.dataclass(frozen=True)
class HeldOutPictures:
    """The held-out pictures, and both parts of them."""

    all: Pictures
    choosing: Pictures
    judging: Pictures


def write_choosing(uri: str, ids: Iterable[str]) -> None:
    """Writes which held-out examples choose, next to the latents in `uri`."""
    with tf.io.gfile.GFile(os.path.join(uri, CHOOSING_NAME), "w") as f:
        f.write(json.dumps(sorted(ids), indent=0))


def read_choosing(uri: str) -> frozenset[str]:
    """The ids that `write_choosing` wrote; none for latents of earlier versions."""
    path = os.path.join(uri, CHOOSING_NAME)
    if not tf.io.gfile.exists(path):
        return frozenset()
    with tf.io.gfile.GFile(path) as f:
        return frozenset(json.loads(f.read()))


def different_pictures(records: Iterable[bytes], most: int = _MOST_PICTURES) -> Pictures:
    """Finds the different pictures, as `held_out_pictures` does, but keeps `most` of them.

    Args:
        records: Latents of any split.
        most: Number of records to keep; memory holds at most twice as many.
    """
    pool = _Pool(most)
    for record in records:
        pool.add(*_picture(record), record)
    return pool.pictures()


def held_out_pictures(records: Iterable[bytes], choosing: frozenset[str]) -> HeldOutPictures:
    """Finds the different pictures; one with several captions is represented by the smallest id.

    Memory holds at most a few thousand records, however many there are.

    Args:
        records: The latents of the eval split.
        choosing: Ids of the examples that choose.
    """
    every, choose, judge = _Pool(), _Pool(), _Pool()
    for record in records:
        picture, example_id = _picture(record)
        for pool in (every, choose if example_id in choosing else judge):
            pool.add(picture, example_id, record)
    return HeldOutPictures(*(pool.pictures() for pool in (every, choose, judge)))


def _picture(record: bytes) -> tuple[bytes, str]:
    """Identifies the picture of a record, and the record."""
    features = tf.train.Example.FromString(record).features.feature
    # Equal pictures have equal latents, whatever their captions.
    picture = hashlib.sha256(features["latent/mean"].bytes_list.value[0]).digest()
    return picture, features["id"].bytes_list.value[0].decode()


def _each_size_first(records: Sequence[bytes]) -> list[bytes]:
    """Puts the first record of each size first, so that a small number covers every size."""
    firsts: dict[object, bytes] = {}
    for record in records:
        firsts.setdefault(size_of(record, 0), record)
    return sorted(records, key=lambda record: record not in firsts.values())


class _Pool:
    """A pool that keeps the pictures with the smallest hashes."""

    def __init__(self, most: int = _MOST_PICTURES) -> None:
        self._most = most
        self._seen: set[bytes] = set()
        self._kept: dict[bytes, tuple[str, bytes]] = {}

    def add(self, picture: bytes, example_id: str, record: bytes) -> None:
        self._seen.add(picture)
        if picture not in self._kept or example_id < self._kept[picture][0]:
            self._kept[picture] = example_id, record
        if len(self._kept) > 2 * self._most:
            self._kept = dict(self._smallest())

    def pictures(self) -> Pictures:
        return Pictures(
            len(self._seen), _each_size_first([record for _, (_, record) in self._smallest()])
        )

    def _smallest(self) -> list[tuple[bytes, tuple[str, bytes]]]:
        return sorted(self._kept.items())[: self._most]
