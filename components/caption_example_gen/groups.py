"""Groups of near duplicates: what becomes of their pictures, and the file that names them.

Where the pictures' sketches lie is told by the workers that judged the rows; one worker finds the
groups. The sketches go through a file of its own, so that memory does not grow with their bytes.
"""

from __future__ import annotations

import base64
import dataclasses
import io
import itertools
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import tensorflow as tf

from components.caption_example_gen.near_duplicates import group
from components.caption_example_gen.rows import KEEP_ONE, CheckSettings, Sketched, Stretch
from components.caption_example_gen.sources import split_of
from trainer.data.images import SKETCH_SIDE, decode_image

GROUPS_NAME = "near_duplicates.json"
"""The file, in the folder of the examples."""

# On the dataset's page.
_SHOWN_GROUPS = 24
_SHOWN_PICTURES = 8
_THUMBNAIL_SIZE = 128
_JPEG_QUALITY = 80

_COPIED = 4096


@dataclasses.dataclass(frozen=True)
class GroupedPicture:
    """A picture that has near duplicates.

    Attributes:
        picture: SHA-256 (hex) of its file.
        file: The file of a row that has it.
        row: The number of that row.
        width: In pixels.
        height: In pixels.
        split: Where it went; "" where another one was kept in its place.
        thumbnail: A JPEG in base64; "" of pictures that are not shown.
    """

    picture: str
    file: str
    row: int
    width: int
    height: int
    split: str
    thumbnail: str = ""


@dataclasses.dataclass(frozen=True)
class Verdicts:
    """What becomes of the pictures that have near duplicates.

    Attributes:
        elsewhere: The split of every picture whose own hash would have it in another.
        dropped: Where the one is that is kept in place of a picture, for people.
        paths: The spill files in which any of these two kinds are.
        shown: Pictures that the dataset's page shows.
    """

    elsewhere: Mapping[str, str]
    dropped: Mapping[str, str]
    paths: frozenset[str]
    shown: frozenset[str]


def judge_groups(
    stretches: Iterable[Stretch], settings: CheckSettings
) -> tuple[list[list[GroupedPicture]], Verdicts]:
    """Finds the groups of near duplicates, and says what becomes of their pictures.

    Args:
        stretches: Where all pictures' sketches are.
        settings: What they were judged with.

    Returns:
        All groups, in the order of their first pictures, and the verdicts. A group's first picture
        is the one with the smallest hash, and decides its split.
    """
    found: dict[str, Sketched] = {}
    paths: dict[str, list[str]] = {}
    with tempfile.TemporaryDirectory() as folder:
        with open(os.path.join(folder, "sketches"), "wb") as f:
            for stretch in stretches:
                for sketched in stretch.read_sketches():
                    before = found.get(sketched.picture)
                    if before is None:
                        f.write(sketched.sketch)
                    light = dataclasses.replace(sketched, sketch=b"")
                    # The same whichever worker comes first, and in place: the file has its order.
                    first = min((s for s in (before, light) if s), key=lambda s: (s.file, s.row))
                    found[sketched.picture] = first
                    paths.setdefault(sketched.picture, []).append(stretch.path)
        order = np.argsort(np.array(list(found), dtype="U64"))
        pictures = [list(found.values())[i] for i in order]
        aspects = np.array([s.width / s.height for s in pictures])
        groups = [
            [pictures[i] for i in positions]
            for positions in group(_sorted_sketches(folder, order), aspects)
        ]
    return _verdicts(groups, paths, settings)


def _sorted_sketches(folder: str, order: np.ndarray) -> np.ndarray:
    """Sketches in the order of their pictures' hashes, uint8 [N, 32, 32, 3], mapped from a file."""
    shape = (len(order), SKETCH_SIDE, SKETCH_SIDE, 3)
    if not len(order):
        return np.zeros(shape, np.uint8)
    come = np.memmap(os.path.join(folder, "sketches"), np.uint8, "r", shape=shape)
    ordered = np.memmap(os.path.join(folder, "sorted"), np.uint8, "w+", shape=shape)
    for start in range(0, len(order), _COPIED):
        ordered[start : start + _COPIED] = come[order[start : start + _COPIED]]
    return ordered


def _verdicts(
    groups: Sequence[Sequence[Sketched]], paths: Mapping[str, list[str]], settings: CheckSettings
) -> tuple[list[list[GroupedPicture]], Verdicts]:
    judged: list[list[GroupedPicture]] = []
    elsewhere: dict[str, str] = {}
    dropped: dict[str, str] = {}
    for members in groups:
        split = split_of(members[0].picture, settings.eval_fraction, settings.seed)
        kept = members
        if settings.near_duplicates == KEEP_ONE:
            # The first of those with the most pixels.
            kept = [max(members, key=lambda s: s.width * s.height)]
            best = kept[0]
            for s in members:
                if s is not best:
                    dropped[s.picture] = (
                        f"nearly the same picture as {best.file} row {best.row}, which has "
                        f"{best.width} x {best.height} pixels and is kept"
                    )
        for s in kept:
            if split_of(s.picture, settings.eval_fraction, settings.seed) != split:
                elsewhere[s.picture] = split
        judged.append(
            [
                GroupedPicture(
                    s.picture,
                    s.file,
                    s.row,
                    s.width,
                    s.height,
                    "" if s.picture in dropped else split,
                )
                for s in members
            ]
        )
    return judged, Verdicts(
        elsewhere=elsewhere,
        dropped=dropped,
        paths=frozenset(
            itertools.chain.from_iterable(paths[picture] for picture in (*elsewhere, *dropped))
        ),
        shown=frozenset(
            p.picture for members in judged[:_SHOWN_GROUPS] for p in members[:_SHOWN_PICTURES]
        ),
    )


def thumbnail(example: bytes) -> str:
    """The picture of a serialized example made small, as a JPEG in base64."""
    feature = tf.train.Example.FromString(example).features.feature["image/encoded"]
    image = decode_image(feature.bytes_list.value[0])
    image.thumbnail((_THUMBNAIL_SIZE, _THUMBNAIL_SIZE))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=_JPEG_QUALITY)
    return base64.b64encode(buffer.getvalue()).decode()


def write_groups(groups: Iterable[Sequence[GroupedPicture]], path: str) -> None:
    """Writes groups as JSON, one in a line."""
    lines = (json.dumps([dataclasses.asdict(picture) for picture in members]) for members in groups)
    with tf.io.gfile.GFile(path, "w") as f:
        # With nothing written, there would be no file.
        f.write("".join(f"{line}\n" for line in lines))


def read_groups(path: str) -> Iterator[list[GroupedPicture]]:
    """Reads what `write_groups` wrote."""
    with tf.io.gfile.GFile(path, "r") as f:
        for line in f:
            yield [GroupedPicture(**picture) for picture in json.loads(line)]
