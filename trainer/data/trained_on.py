"""Which pictures a model was trained on, stored next to it: if held out later, they judge nothing.

The split depends on the content of each picture, so a growing dataset moves none of them. But
another seed or fraction does, as does a near duplicate that decides for its group, or a picture
that was held out only because there was no other. A model also knows the pictures that its
ancestors were trained on.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
from collections.abc import Iterable, Iterator

import numpy as np
import tensorflow as tf

from storage import filesystem

_NAME = "trained_on.npz"
"""The file next to the SavedModels."""


@dataclasses.dataclass(frozen=True)
class TrainedOn:
    """What a model was trained on: two marks per record, one of the example, one of its picture.

    Attributes:
        own: Marks of the records in its own training, uint64 [N], sorted.
        before: Marks of the models that it was started from.
    """

    own: np.ndarray
    before: np.ndarray

    @property
    def all(self) -> np.ndarray:
        """All marks, uint64 [N], sorted."""
        return np.union1d(self.own, self.before)

    def write(self, folder: str) -> None:
        """Writes the marks next to the SavedModels in `folder`."""
        content = io.BytesIO()
        np.savez(content, own=self.own, before=self.before)
        filesystem.write_bytes(filesystem.join(folder, _NAME), content.getvalue())

    @classmethod
    def find(cls, folder: str) -> TrainedOn | None:
        """Reads what `write` wrote; `None` for models of earlier versions."""
        path = filesystem.join(folder, _NAME)
        if not filesystem.is_file(path):
            return None
        with np.load(io.BytesIO(filesystem.read_bytes(path))) as arrays:
            return cls(arrays["own"], arrays["before"])


def marks_of(records: Iterable[bytes]) -> np.ndarray:
    """The marks of latents records, uint64 [N], sorted, each once."""
    found: set[int] = set()
    for record in records:
        found.update(_marks(record))
    return np.array(sorted(found), np.uint64)


def unseen(records: Iterable[bytes], trained_on: np.ndarray) -> Iterator[bytes]:
    """The records of pictures that a model was not trained on, whatever their captions.

    Args:
        records: Records of LatentGen.
        trained_on: Marks of the model.
    """
    known = frozenset(map(int, trained_on))
    for record in records:
        if known.isdisjoint(_marks(record)):
            yield record


def trained_on_among(records: Iterable[bytes], trained_on: np.ndarray) -> frozenset[str]:
    """Ids of the records that `unseen` leaves out."""
    known = frozenset(map(int, trained_on))
    return frozenset(
        tf.train.Example.FromString(record).features.feature["id"].bytes_list.value[0].decode()
        for record in records
        if not known.isdisjoint(_marks(record))
    )


def _marks(record: bytes) -> tuple[int, int]:
    """Marks of the example, whatever encoded it, and of the picture, whatever its caption."""
    features = tf.train.Example.FromString(record).features.feature
    example, picture = (
        hashlib.sha256(features[name].bytes_list.value[0]).digest()[:8]
        for name in ("id", "latent/mean")
    )
    return int.from_bytes(example, "big"), int.from_bytes(picture, "big")
