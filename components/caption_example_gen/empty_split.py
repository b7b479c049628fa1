"""Fills a split that no picture's hash falls into with one picture of the other split.

With a dozen pictures an empty split is likely. By then the shards are written; those that hold the
picture are rewritten, as if its hash had fallen into the other split.
"""

from __future__ import annotations

import logging
import os
import uuid
from collections.abc import Mapping

import tensorflow as tf

from components.caption_example_gen.rows import CheckSettings, shard_index
from components.caption_example_gen.sources import place_of
from components.tfrecords import read_shard, shard_name, write_shard
from storage import filesystem, row_index

logger = logging.getLogger(__name__)


def fill_empty_split(
    empty: str,
    other: str,
    split_uris: Mapping[str, str],
    settings: CheckSettings,
    examples_uri: str,
    first_of: Mapping[str, str],
) -> tuple[int, frozenset[str]]:
    """Moves the picture whose hash is nearest to the empty split into it, with all its captions.

    Its near duplicates move with it, and the hash of the first of them counts; unless nothing
    would be left, because all pictures are near duplicates.

    Args:
        empty: The empty split, `train` or `eval`.
        other: The other split.
        split_uris: Folder of each split, with all shards.
        settings: The settings they were written with.
        examples_uri: The artifact's folder, for unfinished files.
        first_of: For every picture that has near duplicates, the first picture of its group.

    Returns:
        The number of examples moved, and their pictures; none if all examples are of one picture,
        which stay where they are.
    """
    paths, empty_paths = (
        [
            os.path.join(split_uris[split], shard_name("examples", index, count))
            for index in range(count)
        ]
        for split, count in (
            (other, settings.num_shards[other]),
            (empty, settings.num_shards[empty]),
        )
    )
    pictures = {_text(record, "image/id") for path in paths for record in read_shard(path)}
    if len(pictures) < 2:
        return 0, frozenset()
    firsts = {picture: first_of.get(picture, picture) for picture in pictures}
    if len(set(firsts.values())) < 2:
        logger.warning(
            "All %d pictures are near duplicates of one another: the model is trained on a "
            "variant of what is held out.",
            len(pictures),
        )
        firsts = {picture: picture for picture in pictures}
    nearest = (min if empty == "eval" else max)(
        firsts.values(), key=lambda picture: (place_of(picture, settings.seed), picture)
    )
    going = frozenset(picture for picture, first in firsts.items() if first == nearest)
    temporary_folder = os.path.join(examples_uri, f".moving-{uuid.uuid4().hex}")
    tf.io.gfile.makedirs(temporary_folder)
    moved: list[tuple[str, bytes]] = []
    for path in paths:
        kept: list[bytes] = []
        before = len(moved)
        for record in read_shard(path):
            if _text(record, "image/id") in going:
                moved.append((_text(record, "id"), record))
            else:
                kept.append(record)
        if len(moved) > before:
            write_shard(path, kept, temporary_folder)
    for index, path in enumerate(empty_paths):
        of_shard = (
            record for name, record in sorted(moved) if shard_index(name, len(empty_paths)) == index
        )
        write_shard(path, of_shard, temporary_folder)
    tf.io.gfile.rmtree(temporary_folder)
    _move_rows(going, empty, other, settings, os.path.join(examples_uri, row_index.FOLDER_NAME))
    return len(moved), going


def _move_rows(
    going: frozenset[str], empty: str, other: str, settings: CheckSettings, rows_uri: str
) -> None:
    """Makes the index of the rows match the new splits."""
    lines: dict[str, list[bytes]] = {}
    for split, count in settings.num_shards.items():
        lines |= {row_index.file_name(split, index): [] for index in range(count)}
    for row in row_index.read_rows(rows_uri):
        split = empty if row.picture in going else other
        index = shard_index(row.id, settings.num_shards[split])
        lines[row_index.file_name(split, index)].append(row.line())
    for name, of_shard in lines.items():
        filesystem.write_bytes(filesystem.join(rows_uri, name), b"".join(of_shard))


def _text(record: bytes, name: str) -> str:
    feature = tf.train.Example.FromString(record).features.feature[name]
    value: bytes = feature.bytes_list.value[0]
    return value.decode()
