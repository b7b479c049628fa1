"""Counts that a Beam pipeline returns to the executor that ran it.

They are passed in a file. Unlike metrics, it is exact on every runner, even after retries.
"""

from __future__ import annotations

import collections
import json
from collections.abc import Iterable

import apache_beam as beam
import tensorflow as tf


class WriteCounts(beam.PTransform):
    """`write_counts` as the end of a Beam pipeline."""

    def __init__(self, path: str) -> None:
        """Writes to `path`, in a folder that exists."""
        super().__init__()
        self._path = path

    def expand(self, input_or_inputs: beam.PCollection) -> beam.PCollection:
        """Takes (str, int) pairs."""
        return (
            input_or_inputs
            | "Together" >> beam.GroupBy(_same_key)
            | "Write" >> beam.Map(lambda element, path: write_counts(element[1], path), self._path)
        )


def write_counts(counts: Iterable[tuple[str, int]], path: str) -> None:
    """Adds up pairs of a name and a number and writes the sums as one JSON file."""
    sums: collections.Counter[str] = collections.Counter()
    for name, number in counts:
        sums[name] += number
    with tf.io.gfile.GFile(path, "w") as f:
        f.write(json.dumps(sums))


def read_counts(path: str) -> dict[str, int]:
    """Reads what `write_counts` wrote."""
    with tf.io.gfile.GFile(path, "r") as f:
        counts: dict[str, int] = json.loads(f.read())
    return counts


def _same_key(_: object) -> int:
    return 0
