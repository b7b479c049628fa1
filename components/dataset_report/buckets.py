"""Which pictures go into which bucket, and how much of them is cropped."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterable, Iterator, Mapping

import tensorflow as tf

from trainer.data.buckets import Bucket, BucketLimits, cropped

_SQUARE = Bucket(1, 1)
ALL = "all"


@dataclasses.dataclass(frozen=True)
class BucketRow:
    """A bucket, or all of them, and its pictures.

    Attributes:
        name: Width and height in pixels, or `ALL`.
        counts: Number of rows in each split.
        cropped: Fraction of a picture's area that is cropped, on average.
        most_cropped: Largest fraction cropped from one picture.
        cropped_to_square: Average fraction if pictures were cropped to squares.
    """

    name: str
    counts: Mapping[str, int]
    cropped: float
    most_cropped: float
    cropped_to_square: float


@dataclasses.dataclass
class _Sums:
    counts: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    cropped: float = 0.0
    most_cropped: float = 0.0
    cropped_to_square: float = 0.0

    def row(self, name: str) -> BucketRow:
        rows = self.counts.total()
        return BucketRow(
            name,
            dict(self.counts),
            self.cropped / rows,
            self.most_cropped,
            self.cropped_to_square / rows,
        )


def bucket_rows(splits: Mapping[str, Iterable[bytes]], limits: BucketLimits) -> Iterator[BucketRow]:
    """Counts the rows of each bucket, from the tallest to the widest, and finally of all.

    Args:
        splits: Serialized examples by split; all are read.
        limits: Limits of the buckets.
    """
    sums: dict[Bucket | None, _Sums] = collections.defaultdict(_Sums)
    for split, records in splits.items():
        for record in records:
            features = tf.train.Example.FromString(record).features.feature
            width, height = (
                features[f"image/{side}"].int64_list.value[0] for side in ("width", "height")
            )
            bucket = limits.bucket_of(width, height)
            here, to_square = cropped(width, height, bucket), cropped(width, height, _SQUARE)
            for key in (bucket, None):
                of_key = sums[key]
                of_key.counts[split] += 1
                of_key.cropped += here
                of_key.most_cropped = max(of_key.most_cropped, here)
                of_key.cropped_to_square += to_square
    for bucket in limits.buckets:
        if bucket in sums:
            yield sums[bucket].row(bucket.name)
    if sums:
        yield sums[None].row(ALL)
