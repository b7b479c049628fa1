"""How near a picture is to the nearest training picture.

Plain distances do not distinguish copies from other pictures: a picture with little content is near
to every other. The distance to the nearest picture is therefore taken relative to the distances to
the next ones (Carlini et al. 2023, "Extracting Training Data from Diffusion Models", equation 1).

If a CLIP is given, pictures are compared by its embeddings: it recognises a picture in a cropped or
recoloured copy. Otherwise they are compared by the image encoder's latents, scaled down.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol

import numpy as np
import tensorflow as tf

from components.measures.clip import Clip
from trainer.presets import LATENT_SCALE

# Maximum side of the scaled-down latents: details of this size make a picture the same, and a shift
# by one pixel does not make it a different one.
_GRID = 16
_NEIGHBOURS = 50
_AT_A_TIME = 256


@dataclasses.dataclass(frozen=True)
class Nearest:
    """The training picture that is nearest to a picture.

    Attributes:
        nearness: Its distance divided by the mean distance of the next 50, or of all others if
            there are fewer: near 1 if the picture is as far from it as from others, near 0 for a
            copy. NaN if there is no other.
        distance: Root mean squared difference of the features of both pictures.
        record: Its record from LatentGen.
        mirrored: Whether its mirror image is the nearest.
    """

    nearness: float
    distance: float
    record: bytes
    mirrored: bool


def features_of(means: np.ndarray) -> np.ndarray:
    """Scales down the image encoder's means, to compare pictures by them.

    Args:
        means: float [N, h, w, 4].

    Returns:
        float32 [N, D], the means of even areas, with at most 16 areas along a side.
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


def _each(
    arrays: Sequence[np.ndarray],
    function: Callable[[np.ndarray], np.ndarray],
    most: int = _AT_A_TIME,
) -> np.ndarray:
    """Applies a function to arrays, those of one shape together; the results keep the order."""
    places: dict[tuple[int, ...], list[int]] = {}
    for place, array in enumerate(arrays):
        places.setdefault(array.shape, []).append(place)
    parts = [some[i : i + most] for some in places.values() for i in range(0, len(some), most)]
    found = np.concatenate([function(np.stack([arrays[i] for i in part])) for part in parts])
    order = np.argsort([place for part in parts for place in part])
    result: np.ndarray = found[order]
    return result


class Features(Protocol):
    """The features by which pictures are compared.

    Attributes:
        name: `clip` or `latents`.
    """

    name: str

    def of(self, means: Sequence[np.ndarray], pictures: Sequence[np.ndarray]) -> np.ndarray:
        """Features of N drawn pictures.

        Args:
            means: float [h, w, 4] each, the image encoder's means for them.
            pictures: uint8 [H, W, 3] each, the pictures.

        Returns:
            float64 [N, D].
        """

    def of_means(self, means: Sequence[np.ndarray]) -> np.ndarray:
        """Features, float64 [N, D], of N pictures, from the image encoder's means, [h, w, 4]."""

    def of_records(self, records: Sequence[bytes]) -> Iterator[np.ndarray]:
        """Features, float64 [N, D], of records from LatentGen; then, if any, of mirror images."""


class LatentFeatures:
    """The means of even areas of latents; see `features_of`."""

    name = "latents"

    def __init__(self, latent_shape: Sequence[int], flip: bool) -> None:
        """Only stores its arguments.

        Args:
            latent_shape: Height, width and channels of the latents if a record does not say.
            flip: Whether records also have the latents of mirror images, which were trained on.
        """
        self._shape, self._flip = tuple(latent_shape), flip

    def of(self, means: Sequence[np.ndarray], pictures: Sequence[np.ndarray]) -> np.ndarray:
        """See `Features`."""
        return self.of_means(means)

    def of_means(self, means: Sequence[np.ndarray]) -> np.ndarray:
        """See `Features`."""
        # In float32, the small differences of large squares would be wrong for copies.
        return _each(means, self._of_one_shape).astype(np.float64)

    def _of_one_shape(self, means: np.ndarray) -> np.ndarray:
        if means.shape[1:] == self._shape:
            return features_of(means)
        # Uses the areas of the square, so that pictures of all shapes can be compared.
        areas = [-(-side // -(-side // _GRID)) for side in self._shape[:2]]
        small = tf.image.resize(means.astype(np.float32), areas, "area").numpy()
        return small.reshape(len(small), -1)

    def of_records(self, records: Sequence[bytes]) -> Iterator[np.ndarray]:
        """See `Features`."""
        for name in ("latent/mean", *(["latent/mirror_mean"] if self._flip else [])):
            yield self.of_means(_means(records, name, self._shape))


class ClipFeatures:
    """CLIP embeddings of decoded pictures, all of length 1."""

    name = "clip"

    def __init__(
        self,
        clip: Clip,
        decode: Callable[[tf.Tensor], tf.Tensor],
        latent_shape: Sequence[int],
        flip: bool,
        batch_size: int,
    ) -> None:
        """Computes nothing yet.

        Args:
            clip: A loaded CLIP.
            decode: From latents float32 [B, h, w, 4] to pictures uint8 [B, H, W, 3].
            latent_shape: Height, width and channels of the latents if a record does not say.
            flip: Whether mirror images were also trained on.
            batch_size: Number of pictures to decode at once.
        """
        self._clip, self._decode = clip, decode
        self._shape, self._flip, self._batch_size = latent_shape, flip, batch_size

    def of(self, means: Sequence[np.ndarray], pictures: Sequence[np.ndarray]) -> np.ndarray:
        """See `Features`."""
        return _each(pictures, self._embedded, self._batch_size)

    def of_means(self, means: Sequence[np.ndarray]) -> np.ndarray:
        """See `Features`."""
        return _each(means, lambda some: self._embedded(self._decoded(some)), self._batch_size)

    def of_records(self, records: Sequence[bytes]) -> Iterator[np.ndarray]:
        """See `Features`."""

        def embedded(means: np.ndarray) -> np.ndarray:
            """Both sides, [N, sides, D]."""
            part = self._decoded(means)
            sides = [part, *([part[:, :, ::-1]] if self._flip else [])]
            return np.stack([self._embedded(side) for side in sides], axis=1)

        means = _means(records, "latent/mean", self._shape)
        yield from np.moveaxis(_each(means, embedded, self._batch_size), 1, 0)

    def _decoded(self, means: np.ndarray) -> np.ndarray:
        pictures: np.ndarray = self._decode(tf.constant(LATENT_SCALE * means, tf.float32)).numpy()
        return pictures

    def _embedded(self, pictures: np.ndarray) -> np.ndarray:
        embeddings = self._clip.image_embeddings(pictures).astype(np.float64)
        lengths: np.ndarray = np.linalg.norm(embeddings, axis=1, keepdims=True)
        return embeddings / lengths


def nearest(wanted: np.ndarray, training: Iterable[bytes], features: Features) -> list[Nearest]:
    """Finds the nearest training picture for each picture.

    Every training picture is read once, a few hundred at a time: memory only grows by 32 bytes for
    each of them.

    Args:
        wanted: float64 [N, D], features of the pictures.
        training: Records from LatentGen; if several have the same picture, the first counts.
        features: Computes the features of training pictures.

    Returns:
        One result for each picture; empty if there are no training pictures.
    """
    squares = np.sum(wanted**2, axis=1)[:, None]
    rows = np.arange(len(wanted))
    distances = np.full((len(wanted), 0), np.inf)
    found: list[tuple[float, bytes, bool]] = [(math.inf, b"", False)] * len(wanted)
    different = _different(training)
    while records := list(itertools.islice(different, _AT_A_TIME)):
        sides = [
            np.maximum(squares + np.sum(x**2, axis=1)[None] - 2.0 * (wanted @ x.T), 0.0)
            for x in features.of_records(records)
        ]
        both = np.stack(sides)
        apart = np.sqrt(np.min(both, axis=0) / wanted.shape[1])
        for row, column in zip(rows, np.argmin(apart, axis=1), strict=True):
            if apart[row, column] < found[row][0]:
                mirrored = bool(np.argmin(both[:, row, column]))
                found[row] = (float(apart[row, column]), records[column], mirrored)
        # Only the nearest have to be kept.
        distances = np.concatenate([distances, apart], axis=1)
        if distances.shape[1] > _NEIGHBOURS + 1:
            distances = np.partition(distances, _NEIGHBOURS, axis=1)[:, : _NEIGHBOURS + 1]
    if not distances.shape[1]:
        return []
    distances = np.sort(distances, axis=1)
    return [Nearest(_relative(distances[row]), *one) for row, one in zip(rows, found, strict=True)]


def nearest_hundredth(nearness: Sequence[float]) -> float:
    """The value below which at most one of a hundred values lies; NaN if there are none."""
    return sorted(nearness)[len(nearness) // 100] if len(nearness) else math.nan


def _relative(distances: np.ndarray) -> float:
    """The first of ascending distances, as a fraction of the mean of the others."""
    others = float(np.mean(distances[1:])) if len(distances) > 1 else 0.0
    return float(distances[0]) / others if others else math.nan


def _different(records: Iterable[bytes]) -> Iterator[bytes]:
    """The first record of each picture."""
    seen: set[bytes] = set()
    for record in records:
        features = tf.train.Example.FromString(record).features.feature
        picture = hashlib.sha256(features["latent/mean"].bytes_list.value[0]).digest()
        if picture not in seen:
            seen.add(picture)
            yield record


def _means(records: Sequence[bytes], name: str, latent_shape: Sequence[int]) -> list[np.ndarray]:
    """The latents in one feature of the records, float16 [h, w, 4] each."""
    # Imports Keras.
    from trainer.data.latents import latent_sides

    means = []
    for record in records:
        features = tf.train.Example.FromString(record).features.feature
        values = np.frombuffer(features[name].bytes_list.value[0], "<f2")
        height, width = latent_sides(features) or latent_shape[:2]
        means.append(values.reshape(height, width, -1))
    return means
