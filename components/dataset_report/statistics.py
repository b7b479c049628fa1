"""TFDV's statistics of captioned pictures, as the page shows them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import tensorflow_data_validation as tfdv
from markupsafe import Markup
from tensorflow_metadata.proto.v0 import statistics_pb2
from tfx import types
from tfx.components.statistics_gen import stats_artifact_utils
from tfx.types import artifact_utils

from components.dataset_report.charts import Bin, Mark, histogram
from trainer.text.tokenizer import MAX_LENGTH

TOKENS = "caption/num_tokens"
BEFORE, NOW = "before", "now"
"""Names of the panels of one split at two times."""

_WORDS = "caption/words"
_FORMAT = "image/format"
_IMAGE_ID = "image/id"
_TOP_WORDS = 20
# A mark further away would squeeze the chart into a corner.
_MARK_REACH = 2.0


@dataclasses.dataclass(frozen=True)
class Measure:
    """A number that every row has.

    Attributes:
        feature: The feature with the number.
        title: Title of the measure.
        unit: Unit of the number; may be empty.
        note: How to read it.
        mark: A limit to show.
    """

    feature: str
    title: str
    unit: str
    note: str
    mark: Mark | None = None


CAPTION_LENGTH = Measure(
    TOKENS,
    "Caption length",
    "tokens",
    f"Start and end of text count. The text encoder reads {MAX_LENGTH} tokens; the rest is cut "
    "off.",
    Mark(MAX_LENGTH, f"limit {MAX_LENGTH}"),
)
PICTURE_MEASURES = (
    Measure("image/width", "Width", "pixels", "As decoded and turned upright."),
    Measure("image/height", "Height", "pixels", "As decoded and turned upright."),
    Measure(
        "image/aspect_ratio",
        "Aspect ratio",
        "",
        "Width divided by height. Pictures are cropped to a square: the further from 1, the more "
        "is lost.",
    ),
    Measure("image/brightness", "Brightness", "", "Mean luma: 0 is black, 1 is white."),
)
PICTURE_MEASURES_IN_BUCKETS = tuple(
    dataclasses.replace(measure, note="Width divided by height.")
    if measure.feature == "image/aspect_ratio"
    else measure
    for measure in PICTURE_MEASURES
)
"""The same measures if pictures keep their shape."""


@dataclasses.dataclass(frozen=True)
class Panel:
    """One measure in one split, or at one time."""

    split: str
    chart: Markup
    min: float
    median: float
    mean: float
    max: float


@dataclasses.dataclass(frozen=True)
class Count:
    """How often a value occurs, and its fraction of all values."""

    value: str
    count: int
    fraction: float


@dataclasses.dataclass(frozen=True)
class Change:
    """The fraction of all values that one value had before, and has now."""

    value: str
    before: float
    now: float


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """The words of one split's captions."""

    split: str
    distinct: int
    total: int
    top: list[Count]


@dataclasses.dataclass(frozen=True)
class Pictures:
    """How many rows share a picture in one split.

    Attributes:
        split: Name of the split.
        rows: Number of rows.
        distinct: Number of different pictures.
        repeated: Number of pictures with several captions.
        repeated_at_least: Whether there may be more of these: TFDV only lists the most frequent.
        most: Number of captions of the picture that has the most.
    """

    split: str
    rows: int
    distinct: int
    repeated: int
    repeated_at_least: bool
    most: int


class Statistics:
    """The statistics of every split."""

    def __init__(self, statistics: types.Artifact) -> None:
        """Reads an `ExampleStatistics` artifact."""
        self._views: dict[str, tfdv.DatasetView] = {}
        for split in artifact_utils.decode_split_names(statistics.split_names):
            view = stats_artifact_utils.load_statistics(statistics, split).get_default_slice()
            if view is not None:
                self._views[split] = view

    @property
    def rows(self) -> Mapping[str, int]:
        """How many rows each split has."""
        return {split: view.proto().num_examples for split, view in self._views.items()}

    def maximum(self, split: str, feature: str) -> float | None:
        """The largest value of a feature, or `None` if the split lacks the feature."""
        view = self._feature(split, feature)
        numbers = view.numeric_statistics() if view else None
        return None if numbers is None else numbers.max

    def panels(self, measure: Measure) -> list[Panel]:
        """Draws a measure for every split that has it, on the same axis."""
        found = {}
        for split in self._views:
            numbers = self._numbers(split, measure.feature)
            if numbers is not None:
                found[split] = numbers
        return _draw(found, measure)

    def panels_beside(self, before: Statistics, measure: Measure, split: str) -> list[Panel]:
        """Draws a measure of a split before and now, both on the same axis."""
        both = {BEFORE: before, NOW: self}
        found = {name: one._numbers(split, measure.feature) for name, one in both.items()}
        return _draw({name: n for name, n in found.items() if n is not None}, measure)

    def shares_beside(self, before: Statistics, feature: str, split: str) -> list[Change]:
        """The values of a feature whose shares changed most."""
        return largest_changes(*(one._counts(split, feature) for one in (before, self)))

    def formats(self) -> dict[str, list[Count]]:
        """The file formats of the pictures in each split."""
        found = {}
        for split in self._views:
            view = self._feature(split, _FORMAT)
            strings = view.string_statistics() if view else None
            if strings is not None:
                found[split] = _counts(
                    [(top.value, top.frequency) for top in strings.top_values],
                    strings.common_stats.tot_num_values,
                )
        return found

    def vocabularies(self) -> list[Vocabulary]:
        """The most frequent words in each split, and how many there are."""
        found = []
        for split in self._views:
            view = self._feature(split, _WORDS)
            strings = view.string_statistics() if view else None
            if strings is not None:
                total = strings.common_stats.tot_num_values
                ranks = strings.rank_histogram.buckets[:_TOP_WORDS]
                top = _counts([(rank.label, rank.sample_count) for rank in ranks], total)
                found.append(Vocabulary(split, strings.unique, total, top))
        return found

    def pictures(self) -> list[Pictures]:
        """How many rows share a picture in each split."""
        found = []
        for split in self._views:
            view = self._feature(split, _IMAGE_ID)
            strings = view.string_statistics() if view else None
            if strings is not None:
                counts = [round(rank.sample_count) for rank in strings.rank_histogram.buckets]
                found.append(
                    Pictures(
                        split,
                        strings.common_stats.num_non_missing,
                        strings.unique,
                        sum(count > 1 for count in counts),
                        len(counts) < strings.unique and counts[-1:] > [1],
                        max(counts, default=0),
                    )
                )
        return found

    def missing(self, feature: str) -> dict[str, int | None]:
        """How many rows of each split lack a feature; `None` if its statistics lack it."""
        found: dict[str, int | None] = {}
        for split in self._views:
            view = self._feature(split, feature)
            common = view.common_statistics() if view else None
            found[split] = None if common is None else common.num_missing
        return found

    def _numbers(self, split: str, feature: str) -> statistics_pb2.NumericStatistics | None:
        view = self._feature(split, feature)
        return view.numeric_statistics() if view else None

    def _counts(self, split: str, feature: str) -> dict[str, float]:
        view = self._feature(split, feature)
        strings = view.string_statistics() if view else None
        ranks = strings.rank_histogram.buckets if strings is not None else ()
        return {rank.label: rank.sample_count for rank in ranks}

    def _feature(self, split: str, feature: str) -> tfdv.FeatureView | None:
        view = self._views.get(split)
        return None if view is None else view.get_feature(tfdv.FeaturePath([feature]))


def largest_changes(before: Mapping[str, float], now: Mapping[str, float]) -> list[Change]:
    """The values whose shares changed most, from their counts before and now."""
    totals = [sum(counts.values()) or 1.0 for counts in (before, now)]
    changes = [
        Change(value, before.get(value, 0.0) / totals[0], now.get(value, 0.0) / totals[1])
        for value in before.keys() | now.keys()
    ]
    changes.sort(key=lambda change: (-abs(change.now - change.before), change.value))
    return changes[:_TOP_WORDS]


def _draw(found: Mapping[str, statistics_pb2.NumericStatistics], measure: Measure) -> list[Panel]:
    """One panel for each, all on the same axis."""
    if not found:
        return []
    low = min(numbers.min for numbers in found.values())
    high = max(numbers.max for numbers in found.values())
    if measure.mark and high < measure.mark.value <= _MARK_REACH * high:
        high = measure.mark.value
    return [
        Panel(
            name,
            histogram(_bins(numbers), low, high, f"{measure.title}, {name}", measure.mark),
            numbers.min,
            numbers.median,
            numbers.mean,
            numbers.max,
        )
        for name, numbers in found.items()
    ]


def _bins(numbers: statistics_pb2.NumericStatistics) -> list[Bin]:
    return [
        Bin(bucket.low_value, bucket.high_value, bucket.sample_count)
        for bins in numbers.histograms
        if bins.type == bins.STANDARD
        for bucket in bins.buckets
    ]


def _counts(pairs: Sequence[tuple[str, float]], total: int) -> list[Count]:
    return [Count(value, round(count), count / total if total else 0.0) for value, count in pairs]
