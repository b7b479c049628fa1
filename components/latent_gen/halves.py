"""Which of the held-out pictures choose a model during its training; the others judge it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping

import tensorflow as tf

from components.caption_example_gen.groups_file import GROUPS_NAME, read_groups
from storage.row_index import IndexedRow


def chooses(picture: str) -> bool:
    """Whether a held-out picture is of the half that chooses.

    It depends on the picture alone: in a dataset that has grown, or with another fraction or seed,
    a picture that is held out stays in its half.

    Args:
        picture: SHA-256 (hex) of its file; of near duplicates, the smallest of theirs.
    """
    return hashlib.sha256(f"half/{picture}".encode()).digest()[0] % 2 == 0


def choosing(rows: Iterable[IndexedRow], first_of: Mapping[str, str]) -> Iterator[str]:
    """Ids of the held-out examples that choose.

    Args:
        rows: All that are held out.
        first_of: The first picture of the group of every picture that has near duplicates: a group
            is in one half, or the choice would know what it is judged on.
    """
    for row in rows:
        if chooses(first_of.get(row.picture, row.picture)):
            yield row.id


def first_of_groups(examples_uri: str) -> dict[str, str]:
    """Of every picture that has near duplicates, the first of its group; none where none has."""
    path = os.path.join(examples_uri, GROUPS_NAME)
    if not tf.io.gfile.exists(path):
        return {}
    return {p.picture: members[0].picture for members in read_groups(path) for p in members}
