"""Which held-out pictures choose a model during its training; the others judge it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping

import tensorflow as tf

from components.caption_example_gen.groups_file import GROUPS_NAME, read_groups
from storage.row_index import IndexedRow


def chooses(picture: str) -> bool:
    """Whether a held-out picture belongs to the half that chooses.

    This depends only on the picture: if the dataset grows, or with another fraction or seed, a
    held-out picture stays in its half.

    Args:
        picture: SHA-256 (hex) of its file; for near duplicates, the smallest in their group.
    """
    return hashlib.sha256(f"half/{picture}".encode()).digest()[0] % 2 == 0


def choosing(rows: Iterable[IndexedRow], first_of: Mapping[str, str]) -> Iterator[str]:
    """Ids of the held-out examples that choose.

    Args:
        rows: All held-out rows.
        first_of: For every picture with near duplicates, the first picture of its group. A group
            stays in one half: otherwise the choice would know what the model is judged on.
    """
    for row in rows:
        if chooses(first_of.get(row.picture, row.picture)):
            yield row.id


def first_of_groups(examples_uri: str) -> dict[str, str]:
    """For every picture with near duplicates, the first picture of its group; may be empty."""
    path = os.path.join(examples_uri, GROUPS_NAME)
    if not tf.io.gfile.exists(path):
        return {}
    return {p.picture: members[0].picture for members in read_groups(path) for p in members}
