"""Groups of near duplicates, and the verdicts on their pictures.

The workers that check the rows report where the sketches of the pictures are; one worker finds the
groups. It keeps the sketches in a file, so that memory does not grow with their bytes.
"""

from __future__ import annotations

import base64
import dataclasses
import io
import itertools
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import tensorflow as tf

from components.caption_example_gen.groups_file import GroupedPicture
from components.caption_example_gen.rows import (
    IGNORE,
    KEEP_ONE,
    NOT_LISTED,
    CheckSettings,
    Sketched,
    Stretch,
)
from components.caption_example_gen.sources import split_of
from storage.images import SKETCH_SIDE, decode_image
from storage.near_duplicates import group, resembling

# Limits of the dataset's page.
_SHOWN_GROUPS = 24
_SHOWN_PICTURES = 8
_THUMBNAIL_SIZE = 128
_JPEG_QUALITY = 80

_HASH = "S64"
_COPIED = 4096
# Files of sketches.
_COME, _ORDERED = "sketches", "sorted"


@dataclasses.dataclass(frozen=True)
class Withdrawal:
    """Why a picture is taken out.

    Attributes:
        entry: The number of the entry that lists it, or the picture that it resembles.
        near: SHA-256 (hex) of the picture that it resembles; "" if it is listed itself.
    """

    entry: int
    near: str = ""


@dataclasses.dataclass(frozen=True)
class Verdicts:
    """The verdicts on pictures that have near duplicates or are withdrawn.

    Attributes:
        elsewhere: The split of every picture whose own hash falls into the other split.
        dropped: For every picture that is dropped, which one is kept instead, in words.
        withdrawn: Pictures that are taken out.
        paths: The spill files that hold pictures of any of these three kinds.
        shown: Pictures that the dataset's page shows.
    """

    elsewhere: Mapping[str, str]
    dropped: Mapping[str, str]
    withdrawn: Mapping[str, Withdrawal]
    paths: frozenset[str]
    shown: frozenset[str]


def judge_groups(
    stretches: Iterable[Stretch], settings: CheckSettings
) -> tuple[list[list[GroupedPicture]], Verdicts]:
    """Finds the groups of near duplicates, and judges their pictures.

    Withdrawn pictures are in no group: the others are judged as if those had never been there.

    Args:
        stretches: Locations of the sketches of all pictures.
        settings: The settings that the rows were checked with.

    Returns:
        All groups, in the order of their first pictures, and the verdicts. The first picture of a
        group is the one with the smallest hash, and decides the split of the group.
    """
    with tempfile.TemporaryDirectory() as folder:
        pictures = _Pictures.gathered(stretches, folder)
        out: dict[int, Withdrawal] = {}
        if settings.withdrawn is not None:
            out = _withdrawn(pictures, folder)
        left = np.delete(np.arange(len(pictures.first)), sorted(out))
        found: list[np.ndarray] = []
        if settings.near_duplicates != IGNORE:
            sketches = pictures.sketches(folder, left)
            found = [left[positions] for positions in group(sketches, pictures.aspects[left])]
    groups = [[pictures.at(i) for i in positions] for positions in found]
    paths = {
        pictures.at(i).picture: pictures.paths_of(i) for i in itertools.chain(*found, sorted(out))
    }
    withdrawn = {pictures.at(i).picture: withdrawal for i, withdrawal in out.items()}
    return _verdicts(groups, paths, settings, withdrawn)


def _withdrawn(pictures: _Pictures, folder: str) -> dict[int, Withdrawal]:
    """By position, the pictures that are listed or resemble a listed one."""
    listed = np.flatnonzero(pictures.entries != NOT_LISTED)
    out = {int(i): Withdrawal(int(pictures.entries[i])) for i in listed}
    if out:
        every = pictures.sketches(folder, np.arange(len(pictures.first)))
        for i, first in resembling(every, pictures.aspects, sorted(out)).items():
            out[i] = Withdrawal(out[first].entry, pictures.at(first).picture)
    return out


@dataclasses.dataclass(frozen=True)
class _Pictures:
    """All pictures, in the order of their hashes; each may have come from several spill files.

    Attributes:
        hashes: bytes of 64 characters [R], one for each picture of each stretch, as read.
        files: One for each hash.
        rows: int [R].
        sizes: int [R, 2], width and height.
        stretches: int [R], the number of the stretch.
        paths: The spill file of every stretch.
        order: int [R], the stable sort order of the hashes.
        starts: int [N + 1], where in this order each picture starts, and where the last one ends.
        first: int [N], for each picture, the index in [0, R) that represents it.
        entries: int [N], the entry that withdraws each picture; see `Sketched`.
    """

    hashes: np.ndarray
    files: Sequence[str]
    rows: np.ndarray
    sizes: np.ndarray
    stretches: np.ndarray
    paths: Sequence[str]
    order: np.ndarray
    starts: np.ndarray
    first: np.ndarray
    entries: np.ndarray

    @classmethod
    def gathered(cls, stretches: Iterable[Stretch], folder: str) -> _Pictures:
        """Reads stretches, and writes their sketches to a file."""
        hashes = [np.zeros(0, _HASH)]
        files: list[str] = []
        rows, sizes, numbers = [np.zeros(0, int)], [np.zeros((0, 2), int)], [np.zeros(0, int)]
        entries = [np.zeros(0, np.int32)]
        paths: list[str] = []
        with open(os.path.join(folder, _COME), "wb") as f:
            for stretch in stretches:
                read = stretch.read_sketches()
                f.write(read.sketches)
                hashes.append(np.frombuffer(read.pictures, _HASH))
                files += read.files
                rows.append(read.rows)
                sizes.append(read.sizes)
                entries.append(read.entries)
                numbers.append(np.full(len(read.files), len(paths)))
                paths.append(stretch.path)
        every, every_row = np.concatenate(hashes), np.concatenate(rows)
        order = np.argsort(every, kind="stable")
        ordered = every[order]
        is_new = np.ones(len(ordered), bool)
        is_new[1:] = ordered[1:] != ordered[:-1]
        starts = np.append(np.flatnonzero(is_new), len(ordered))
        first = order[starts[:-1]]
        for position in np.flatnonzero(np.diff(starts) > 1):
            same = order[starts[position] : starts[position + 1]]
            # The choice must not depend on which worker finishes first.
            first[position] = min(same, key=lambda i: (files[i], every_row[i]))
        listed = np.concatenate(entries)[order]
        return cls(
            every,
            files,
            every_row,
            np.concatenate(sizes),
            np.concatenate(numbers),
            paths,
            order,
            starts,
            first,
            # The list may name another row with the same picture.
            np.minimum.reduceat(listed, starts[:-1]) if len(listed) else listed,
        )

    @property
    def aspects(self) -> np.ndarray:
        """Aspect ratios (width / height) of the pictures, float [N]."""
        sizes = self.sizes[self.first]
        result: np.ndarray = sizes[:, 0] / sizes[:, 1]
        return result

    def sketches(self, folder: str, positions: np.ndarray) -> np.ndarray:
        """Sketches of some pictures, uint8 [P, 32, 32, 3], mapped from a file."""
        shape = (SKETCH_SIDE, SKETCH_SIDE, 3)
        if not len(positions):
            return np.zeros((0, *shape), np.uint8)
        come = np.memmap(
            os.path.join(folder, _COME), np.uint8, "r", shape=(len(self.order), *shape)
        )
        path = os.path.join(folder, _ORDERED)
        ordered = np.memmap(path, np.uint8, "w+", shape=(len(positions), *shape))
        for start in range(0, len(positions), _COPIED):
            some = slice(start, start + _COPIED)
            ordered[some] = come[self.first[positions[some]]]
        return ordered

    def at(self, position: int) -> Sketched:
        """A picture without its sketch."""
        i = self.first[position]
        width, height = self.sizes[i].tolist()
        picture = self.hashes[i].decode()
        return Sketched(picture, self.files[i], int(self.rows[i]), width, height)

    def paths_of(self, position: int) -> set[str]:
        """The spill files that a picture is in."""
        same = self.order[self.starts[position] : self.starts[position + 1]]
        return {self.paths[number] for number in self.stretches[same]}


def _verdicts(
    groups: Sequence[Sequence[Sketched]],
    paths: Mapping[str, Iterable[str]],
    settings: CheckSettings,
    withdrawn: Mapping[str, Withdrawal],
) -> tuple[list[list[GroupedPicture]], Verdicts]:
    judged: list[list[GroupedPicture]] = []
    elsewhere: dict[str, str] = {}
    dropped: dict[str, str] = {}
    for members in groups:
        split = split_of(members[0].picture, settings.eval_fraction, settings.seed)
        kept = members
        if settings.near_duplicates == KEEP_ONE:
            # Of equally large pictures, the first is kept.
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
        withdrawn=withdrawn,
        paths=frozenset(
            itertools.chain.from_iterable(
                paths[picture] for picture in (*elsewhere, *dropped, *withdrawn)
            )
        ),
        shown=frozenset(
            p.picture for members in judged[:_SHOWN_GROUPS] for p in members[:_SHOWN_PICTURES]
        ),
    )


def thumbnail(example: bytes) -> str:
    """A thumbnail of the picture of a serialized example, as a JPEG in base64."""
    feature = tf.train.Example.FromString(example).features.feature["image/encoded"]
    image = decode_image(feature.bytes_list.value[0])
    image.thumbnail((_THUMBNAIL_SIZE, _THUMBNAIL_SIZE))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=_JPEG_QUALITY)
    return base64.b64encode(buffer.getvalue()).decode()
