"""Aspect-ratio buckets: the sizes that pictures are brought to, so that they keep their shape.

A square crop of a portrait shows only a part of it. With buckets, every picture is scaled and
cropped to whichever of several sizes has the nearest shape, and the pictures of a step all have one
size (NovelAI 2022, "NovelAI Improvements on Stable Diffusion"). The bucket of a picture does not
depend on the other pictures.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction

import numpy as np

from trainer.presets import Preset

_OF_PHASES = 1


class ImpossibleLimitError(ValueError):
    """A limit that no bucket can meet; the message says what is allowed.

    Attributes:
        name: The field of `BucketLimits` that is wrong.
    """

    def __init__(self, name: str, message: str) -> None:
        super().__init__(message)
        self.name = name


@dataclasses.dataclass(frozen=True)
class Bucket:
    """A size that pictures are brought to, in pixels."""

    width: int
    height: int

    @property
    def name(self) -> str:
        """The usual notation: width first."""
        return f"{self.width} x {self.height}"

    @property
    def size(self) -> tuple[int, int]:
        """Height and width, in the order of array dimensions."""
        return self.height, self.width

    @property
    def aspect(self) -> Fraction:
        """Width divided by height."""
        return Fraction(self.width, self.height)


@dataclasses.dataclass(frozen=True)
class BucketCounts(Bucket):
    """A bucket and its contents.

    Attributes:
        counts: Number of records in each split.
        views: Number of training records that an epoch sees.
    """

    counts: Mapping[str, int]
    views: int


@dataclasses.dataclass(frozen=True)
class BucketLimits:
    """The limits that define the buckets, in pixels.

    Attributes:
        step: Sides are multiples of this.
        max_pixels: The most pixels that a picture may have.
        min_side: The shortest side.
        max_side: The longest side.
    """

    step: int
    max_pixels: int
    min_side: int
    max_side: int

    @classmethod
    def of(
        cls,
        preset: Preset,
        image_size: int,
        *,
        step: int | None = None,
        max_pixels: int | None = None,
        min_side: int | None = None,
        max_side: int | None = None,
    ) -> BucketLimits:
        """Limits that suit the networks.

        Args:
            preset: Its `size_multiple` is the smallest possible step.
            image_size: Side of a square picture.
            step: `None`: the smallest.
            max_pixels: `None`: the pixels of the square.
            min_side: `None`: half of the side of the square, in whole steps.
            max_side: `None`: twice the side of the square.

        Raises:
            ImpossibleLimitError: One of them is impossible, or leaves no bucket.
        """
        multiple = preset.size_multiple
        step = multiple if step is None else step
        if step < 1 or step % multiple:
            raise ImpossibleLimitError(
                "step", f"preset {preset.name!r} requires sides that are multiples of {multiple}"
            )
        half = max(step, image_size // 2 // step * step)
        limits = cls(
            step,
            image_size**2 if max_pixels is None else max_pixels,
            half if min_side is None else min_side,
            max(half, 2 * image_size // step * step) if max_side is None else max_side,
        )
        for name in ("min_side", "max_side"):
            if (side := getattr(limits, name)) < step or side % step:
                raise ImpossibleLimitError(name, f"it must be a positive multiple of {step}")
        if limits.max_side < limits.min_side:
            raise ImpossibleLimitError(
                "max_side", f"it must be at least the shortest side, {limits.min_side}"
            )
        if limits.max_pixels < limits.min_side**2:
            raise ImpossibleLimitError(
                "max_pixels",
                f"a square of the shortest side, {limits.min_side}, has {limits.min_side**2:,} "
                "pixels: it must be at least as many",
            )
        return limits

    @functools.cached_property
    def buckets(self) -> tuple[Bucket, ...]:
        """All buckets, from the tallest to the widest.

        Each side, in steps, is paired with the longest other side that the limits allow.
        """
        found = set()
        for side in range(self.min_side, self.max_side + 1, self.step):
            other = min(self.max_side, self.max_pixels // side // self.step * self.step)
            if other >= self.min_side:
                found |= {Bucket(side, other), Bucket(other, side)}
        return tuple(sorted(found, key=lambda bucket: (bucket.aspect, bucket.width)))

    def bucket_of(self, width: int, height: int) -> Bucket:
        """The bucket of a picture: the one that crops the least.

        Of several that are equally near, the one with the most pixels; of these, the taller.
        """

        def distance(bucket: Bucket) -> tuple[Fraction, int, int]:
            # Exact, unlike logarithms: a tie must be a tie on every machine.
            return _times(width, height, bucket), -bucket.width * bucket.height, bucket.width

        return min(self.buckets, key=distance)


def cropped(width: int, height: int, bucket: Bucket) -> float:
    """The fraction of a picture's area that is cropped when it is brought to a bucket."""
    return 1.0 - float(1 / _times(width, height, bucket))


def _times(width: int, height: int, bucket: Bucket) -> Fraction:
    """The factor between two aspect ratios, at least 1."""
    ratio = Fraction(width, height) / bucket.aspect
    return max(ratio, 1 / ratio)


def bucket_order(views: Sequence[int], batch_size: int, seed: int) -> Iterator[int]:
    """The bucket of the batch at each step, endlessly.

    Every epoch has as many batches of a bucket as its pictures fill; the rest of a bucket is
    carried into its next epoch. The count starts at a random place in the first epoch, so that a
    bucket with few pictures is neither always left out of a short training nor always in it. The
    batches of an epoch are shuffled.

    Args:
        views: Number of pictures of each bucket that an epoch sees.
        batch_size: Pictures per batch.
        seed: Decides the order.

    Yields:
        The index of a bucket in `views`.
    """
    numbers = np.asarray(views, np.int64)
    begun = np.random.default_rng([seed, _OF_PHASES, 0]).integers(batch_size, size=len(numbers))
    done = np.zeros_like(numbers)
    for epoch in itertools.count(1):
        due = (epoch * numbers + begun) // batch_size
        batches = np.repeat(np.arange(len(numbers)), due - done)
        yield from np.random.default_rng([seed, 0, epoch]).permutation(batches).tolist()
        done = due
