"""How near a picture is to the training picture that is nearest to it.

Plain distances do not tell copies from other pictures: a picture with little in it is near to all.
So the distance to the nearest is taken relative to those of the next ones (Carlini et al. 2023,
"Extracting Training Data from Diffusion Models", equation 1).
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import tensorflow as tf

# Side, at most, of what pictures are compared as: what is as large as this makes a picture the
# same, and a shift by a pixel does not make it another.
_GRID = 16
_NEIGHBOURS = 50
_AT_A_TIME = 256


@dataclasses.dataclass(frozen=True)
class Nearest:
    """What is nearest to a picture.

    Attributes:
        nearness: Its distance divided by the mean of the distances of the next 50, or of as many as
            there are: near 1 where the picture is as far from it as from others, near 0 for a copy.
            NaN where there is no other.
        distance: Root of the mean squared difference of both pictures' `features_of`.
        record: Its record of LatentGen.
        mirrored: Whether that is its mirror image.
    """

    nearness: float
    distance: float
    record: bytes
    mirrored: bool


def features_of(means: np.ndarray) -> np.ndarray:
    """What pictures are compared as: the image encoder's means, made small.

    Args:
        means: float [N, h, w, 4].

    Returns:
        float32 [N, D], the means of even areas, so many that a side has 16 at most.
    """
    _, height, width, _ = means.shape
    small = means.astype(np.float32)
    for axis, side in ((1, height), (2, width)):
        step = -(-side // _GRID)
        starts = np.arange(0, side, step)
        counts = np.diff(np.append(starts, side)).astype(np.float32)
        shape = [1, 1, 1, 1]
        shape[axis] = len(starts)
        small = np.add.reduceat(small, starts, axis=axis) / counts.reshape(shape)
    return small.reshape(len(small), -1)


def nearest(
    pictures: np.ndarray, training: Iterable[bytes], latent_shape: Sequence[int], flip: bool
) -> list[Nearest]:
    """Looks for the training picture that is nearest to each picture.

    All training pictures are looked at once, a few hundred at a time: memory does not grow with
    their number but by 32 bytes each.

    Args:
        pictures: float [N, h, w, 4], the image encoder's means.
        training: Records of LatentGen; of several of the same picture, the first counts.
        latent_shape: Height, width and channels of the latents.
        flip: Whether the records have the mirror images' latents, which were trained on, too.

    Returns:
        One for each picture, where there is a training picture at all.
    """
    # In float32, what is left of large squares would be wrong of copies.
    wanted = features_of(pictures).astype(np.float64)
    squares = np.sum(wanted**2, axis=1)[:, None]
    rows = np.arange(len(wanted))
    distances = np.full((len(wanted), 0), np.inf)
    found: list[tuple[float, bytes, bool]] = [(math.inf, b"", False)] * len(wanted)
    different = _different(training)
    while records := list(itertools.islice(different, _AT_A_TIME)):
        sides = [
            np.maximum(squares + np.sum(x**2, axis=1)[None] - 2.0 * (wanted @ x.T), 0.0)
            for x in _features(records, latent_shape, flip)
        ]
        both = np.stack(sides)
        apart = np.sqrt(np.min(both, axis=0) / wanted.shape[1])
        for row, column in zip(rows, np.argmin(apart, axis=1), strict=True):
            if apart[row, column] < found[row][0]:
                mirrored = bool(np.argmin(both[:, row, column]))
                found[row] = (float(apart[row, column]), records[column], mirrored)
        # Those that are near are all that has to be kept.
        distances = np.concatenate([distances, apart], axis=1)
        if distances.shape[1] > _NEIGHBOURS + 1:
            distances = np.partition(distances, _NEIGHBOURS, axis=1)[:, : _NEIGHBOURS + 1]
    if not distances.shape[1]:
        return []
    distances = np.sort(distances, axis=1)
    return [Nearest(_relative(distances[row]), *one) for row, one in zip(rows, found, strict=True)]


def nearest_hundredth(nearness: Sequence[float]) -> float:
    """What at most one of a hundred values is smaller than; NaN of none."""
    return sorted(nearness)[len(nearness) // 100] if len(nearness) else math.nan


def _relative(distances: np.ndarray) -> float:
    """The first of ascending distances, as a fraction of the others' mean."""
    others = float(np.mean(distances[1:])) if len(distances) > 1 else 0.0
    return float(distances[0]) / others if others else math.nan


def _different(records: Iterable[bytes]) -> Iterator[bytes]:
    """Records of pictures that were not there before."""
    seen: set[bytes] = set()
    for record in records:
        features = tf.train.Example.FromString(record).features.feature
        picture = hashlib.sha256(features["latent/mean"].bytes_list.value[0]).digest()
        if picture not in seen:
            seen.add(picture)
            yield record


def _features(
    records: Sequence[bytes], latent_shape: Sequence[int], flip: bool
) -> Iterator[np.ndarray]:
    """Of the pictures of records, and of their mirror images, float64 [N, D]."""
    examples = [tf.train.Example.FromString(record).features.feature for record in records]
    for name in ("latent/mean", *(["latent/mirror_mean"] if flip else [])):
        means = [np.frombuffer(e[name].bytes_list.value[0], "<f2") for e in examples]
        yield features_of(np.stack(means).reshape(-1, *latent_shape)).astype(np.float64)
