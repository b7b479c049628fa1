"""The file that names the groups of near duplicates, beside the examples."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator, Sequence

import tensorflow as tf

GROUPS_NAME = "near_duplicates.json"
"""Name of the file, in the folder of the examples."""


@dataclasses.dataclass(frozen=True)
class GroupedPicture:
    """A picture that has near duplicates.

    Attributes:
        picture: SHA-256 (hex) of its file.
        file: The file of a row that has it.
        row: The number of that row.
        width: In pixels.
        height: In pixels.
        split: Its split; "" if another picture was kept instead.
        thumbnail: A JPEG in base64; "" for pictures that are not shown.
    """

    picture: str
    file: str
    row: int
    width: int
    height: int
    split: str
    thumbnail: str = ""


def write_groups(groups: Iterable[Sequence[GroupedPicture]], path: str) -> None:
    """Writes groups as JSON, one per line."""
    lines = (json.dumps([dataclasses.asdict(picture) for picture in members]) for members in groups)
    with tf.io.gfile.GFile(path, "w") as f:
        # Without a write there would be no file.
        f.write("".join(f"{line}\n" for line in lines))


def read_groups(path: str) -> Iterator[list[GroupedPicture]]:
    """Reads what `write_groups` wrote."""
    with tf.io.gfile.GFile(path, "r") as f:
        for line in f:
            yield [GroupedPicture(**picture) for picture in json.loads(line)]
