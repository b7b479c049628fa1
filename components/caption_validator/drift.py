"""Measures the distance of a dataset from a former one, by TFDV's drift comparators.

TFDV's histogram of a number has bars of equal width from the least value to the greatest, so one
caption that is longer than all before moves every bar, and TFDV's comparator would report drift.
So both histograms are put into the same bars first, the wider ones of the two. If a bar crosses
the edge of a wider one, its values may be on either side: they are counted on the side where the
two datasets differ less.

Two small datasets differ by chance alone. The average of this difference is added to the allowed
distance.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import tensorflow_data_validation as tfdv
from tensorflow_metadata.proto.v0 import anomalies_pb2, schema_pb2, statistics_pb2
from tfx import types
from tfx.components.statistics_gen import stats_artifact_utils
from tfx.dsl.io import fileio
from tfx.types import artifact_utils

from storage import row_index
from storage.withdrawn import WITHDRAWN_ROWS

DRIFT_NAME = "drift.json"
"""The file beside the anomalies with the distances from the former dataset."""
COMPARED_SPLIT = "train"
"""The split that is compared: the held-out split is a small sample of the same."""
OUTCOME = "row/outcome"
"""Name of a pseudo-feature that every row has, even if it was set aside: its outcome."""

# Names of its values, for users.
KEPT, SET_ASIDE = "kept", "set aside"

# Splits captions into words as CaptionExampleGen does.
_WORD = re.compile(r"\w+")
_NEW_WORDS = 200
_L_INFTY, _JSD = "infinity_norm", "jensen_shannon_divergence"
_COMPARATOR_REASONS = (
    anomalies_pb2.AnomalyInfo.COMPARATOR_L_INFTY_HIGH,
    anomalies_pb2.AnomalyInfo.COMPARATOR_JENSEN_SHANNON_DIVERGENCE_HIGH,
)
_STANDARD = statistics_pb2.Histogram.STANDARD
# TFDV's interpolation leaves small counts in bars that no value falls into.
_TRACE = 0.5
_ROUNDING = 1e-6

_FEATURES: Mapping[str, tuple[str, Sequence[str]]] = {
    "caption_length": (_JSD, ("caption/num_tokens",)),
    "words": (_JSD, ("caption/words",)),
    "size": (_JSD, ("image/width", "image/height", "image/aspect_ratio")),
    "brightness": (_JSD, ("image/brightness",)),
    "format": (_L_INFTY, ("image/format",)),
    "rejected": (_L_INFTY, (OUTCOME,)),
}
MEASURES = tuple(_FEATURES)
"""The measures that can be compared."""


@dataclasses.dataclass(frozen=True)
class Measurement:
    """The distance of one feature from the former dataset.

    Attributes:
        feature: Name of the feature.
        comparator: TFDV's name of the measure, `jensen_shannon_divergence` or `infinity_norm`.
        value: Distance that TFDV's comparator measured, from 0 to 1.
        allowed: Distance that does not count as drift: the setting, plus the effect of chance on
            so few rows.
    """

    feature: str
    comparator: str
    value: float
    allowed: float

    @property
    def drifted(self) -> bool:
        """Whether the distance is greater than allowed."""
        return self.value > self.allowed


@dataclasses.dataclass(frozen=True)
class Rows:
    """How the rows of two datasets differ, both splits together.

    Attributes:
        pictures_kept: Number of pictures in both datasets.
        pictures_added: Number of pictures that the former dataset lacks.
        pictures_removed: Number of pictures that only the former dataset has.
        recaptioned: Number of pictures in both that have other captions.
        new_words: Words that no former caption has, with their counts, the most frequent first.
        num_new_words: Number of such words; the list may be shorter.
    """

    pictures_kept: int
    pictures_added: int
    pictures_removed: int
    recaptioned: int
    new_words: tuple[tuple[str, int], ...]
    num_new_words: int


@dataclasses.dataclass(frozen=True)
class Drift:
    """The distance of a dataset from the one that the starting model was trained on.

    Attributes:
        measurements: Measurements of every feature that both have.
        rows: How their rows differ; `None` if the former rows no longer exist.
        outcomes: How many rows were `KEPT` and `SET_ASIDE`, now and before; `None` if unknown.
    """

    measurements: tuple[Measurement, ...]
    rows: Rows | None
    outcomes: tuple[Mapping[str, int], Mapping[str, int]] | None

    @property
    def drifted(self) -> tuple[Measurement, ...]:
        """The measurements that are greater than allowed."""
        return tuple(m for m in self.measurements if m.drifted)

    def write(self, folder: str) -> None:
        """Writes `drift.json` into an existing folder."""
        with fileio.open(os.path.join(folder, DRIFT_NAME), "w") as f:
            f.write(json.dumps(dataclasses.asdict(self), ensure_ascii=False, indent=1) + "\n")

    @classmethod
    def read(cls, folder: str) -> Drift | None:
        """Reads what `write` wrote; `None` if nothing was compared."""
        path = os.path.join(folder, DRIFT_NAME)
        if not fileio.exists(path):
            return None
        with fileio.open(path, "r") as f:
            found = json.load(f)
        rows, outcomes = found["rows"], found["outcomes"]
        if rows is not None:
            rows["new_words"] = tuple((word, count) for word, count in rows["new_words"])
        return cls(
            tuple(Measurement(**m) for m in found["measurements"]),
            None if rows is None else Rows(**rows),
            None if outcomes is None else (outcomes[0], outcomes[1]),
        )


def compare(
    now: types.Artifact,
    before: types.Artifact,
    schema: schema_pb2.Schema,
    thresholds: Mapping[str, float],
    outcomes: tuple[Mapping[str, int], Mapping[str, int]] | None,
) -> tuple[tuple[Measurement, ...], anomalies_pb2.Anomalies]:
    """Compares statistics.

    Args:
        now: `ExampleStatistics` of the dataset.
        before: `ExampleStatistics` of the former dataset.
        schema: If it has a drift comparator for a feature, the feature is compared by that one,
            even if no measure names it.
        thresholds: For each of `MEASURES` to compare, the allowed distance.
        outcomes: How many rows were `KEPT` and `SET_ASIDE`, now and before; `None` if unknown.

    Returns:
        The measurements, and TFDV's anomalies of the features that have drifted.
    """
    new, old = (_training_part(artifact) for artifact in (now, before))
    if new is None or old is None:
        return (), anomalies_pb2.Anomalies()
    if outcomes is not None:
        for part, counts in zip((new, old), outcomes, strict=True):
            _add_outcomes(part, counts)
    both = {name: (_feature(new, name), _feature(old, name)) for name in _names(new, old)}
    wanted = schema_pb2.Schema()
    theirs = {f.name: f for f in schema.feature if f.HasField("drift_comparator")}
    for measure, (comparator, names) in _FEATURES.items():
        for name in names:
            if measure in thresholds and name in both and name not in theirs:
                allowed = thresholds[measure] + _by_chance(comparator, *both[name])
                feature = wanted.feature.add(name=name)
                getattr(feature.drift_comparator, comparator).threshold = allowed
    for name in sorted(both.keys() & theirs.keys()):
        wanted.feature.add(name=name).drift_comparator.CopyFrom(theirs[name].drift_comparator)
    for feature in wanted.feature:
        feature.type = _TYPES[both[feature.name][0].type]
        _put_into_same_bars(*both[feature.name])
    return _measured(_only(new, wanted), _only(old, wanted), wanted)


def compare_rows(now: str, before: str) -> Rows | None:
    """Compares the rows of two indices, in their folders; `None` if one does not exist."""
    folders = (now, before)
    if not all(map(fileio.isdir, folders)):
        return None
    new, old = (_captions(row_index.read_rows(folder)) for folder in folders)
    known = {word for captions in old.values() for c in captions for word in _words(c)}
    words = collections.Counter(
        word
        for captions in new.values()
        for caption in captions
        for word in _words(caption)
        if word not in known
    )
    ranked = sorted(words.items(), key=lambda item: (-item[1], item[0]))
    kept = new.keys() & old.keys()
    return Rows(
        pictures_kept=len(kept),
        pictures_added=len(new) - len(kept),
        pictures_removed=len(old) - len(kept),
        recaptioned=sum(new[picture] != old[picture] for picture in kept),
        new_words=tuple(ranked[:_NEW_WORDS]),
        num_new_words=len(ranked),
    )


def outcomes_of(examples: types.Artifact) -> dict[str, int]:
    """How many rows CaptionExampleGen kept and set aside, not counting withdrawn ones."""
    splits = artifact_utils.decode_split_names(examples.split_names)
    kept = sum(examples.get_int_custom_property(f"num_{split}") for split in splits)
    aside = examples.get_int_custom_property("rejected_total")
    if examples.has_custom_property(WITHDRAWN_ROWS):
        # Withdrawals on request say nothing about the quality of the data.
        aside -= examples.get_int_custom_property(WITHDRAWN_ROWS)
    return {KEPT: kept, SET_ASIDE: aside}


_TYPES = {
    statistics_pb2.FeatureNameStatistics.INT: schema_pb2.INT,
    statistics_pb2.FeatureNameStatistics.FLOAT: schema_pb2.FLOAT,
    statistics_pb2.FeatureNameStatistics.STRING: schema_pb2.BYTES,
    statistics_pb2.FeatureNameStatistics.BYTES: schema_pb2.BYTES,
}


def _captions(rows: Iterable[row_index.IndexedRow]) -> dict[bytes, set[str]]:
    """The captions of every picture."""
    found: dict[bytes, set[str]] = collections.defaultdict(set)
    for row in rows:
        found[bytes.fromhex(row.picture)].add(row.caption)
    return found


def _words(caption: str) -> list[str]:
    return _WORD.findall(caption.lower())


def _training_part(statistics: types.Artifact) -> statistics_pb2.DatasetFeatureStatistics | None:
    """A copy of the statistics of the training split; `None` if there are none."""
    if COMPARED_SPLIT not in artifact_utils.decode_split_names(statistics.split_names):
        return None
    view = stats_artifact_utils.load_statistics(statistics, COMPARED_SPLIT).get_default_slice()
    if view is None:
        return None
    part = statistics_pb2.DatasetFeatureStatistics()
    part.CopyFrom(view.proto())
    return part


def _add_outcomes(part: statistics_pb2.DatasetFeatureStatistics, counts: Mapping[str, int]) -> None:
    feature = part.features.add(type=statistics_pb2.FeatureNameStatistics.STRING)
    feature.path.step.append(OUTCOME)
    total = sum(counts.values())
    common = feature.string_stats.common_stats
    common.num_non_missing = common.tot_num_values = total
    common.min_num_values = common.max_num_values = 1
    feature.string_stats.unique = len(counts)
    for rank, (value, count) in enumerate(counts.items()):
        feature.string_stats.rank_histogram.buckets.add(
            low_rank=rank, high_rank=rank, label=value, sample_count=count
        )


def _names(*parts: statistics_pb2.DatasetFeatureStatistics) -> set[str]:
    """Features for which all parts have statistics of the same kind."""
    kinds = [
        {f.path.step[0]: f.WhichOneof("stats") for f in part.features if len(f.path.step) == 1}
        for part in parts
    ]
    return {name for name, kind in kinds[0].items() if all(k.get(name) == kind for k in kinds)}


def _feature(
    part: statistics_pb2.DatasetFeatureStatistics, name: str
) -> statistics_pb2.FeatureNameStatistics:
    return next(f for f in part.features if list(f.path.step) == [name])


def _only(
    part: statistics_pb2.DatasetFeatureStatistics, schema: schema_pb2.Schema
) -> statistics_pb2.DatasetFeatureStatisticsList:
    """Statistics of only the features of a schema."""
    wanted = {feature.name for feature in schema.feature}
    found = statistics_pb2.DatasetFeatureStatisticsList()
    kept = found.datasets.add(name=part.name, num_examples=part.num_examples)
    kept.features.extend(f for f in part.features if ".".join(f.path.step) in wanted)
    return found


def _measured(
    new: statistics_pb2.DatasetFeatureStatisticsList,
    old: statistics_pb2.DatasetFeatureStatisticsList,
    schema: schema_pb2.Schema,
) -> tuple[tuple[Measurement, ...], anomalies_pb2.Anomalies]:
    found = tfdv.validate_statistics(new, schema, previous_statistics=old)
    names = {
        anomalies_pb2.DriftSkewInfo.Measurement.L_INFTY: _L_INFTY,
        anomalies_pb2.DriftSkewInfo.Measurement.JENSEN_SHANNON_DIVERGENCE: _JSD,
    }
    values = {
        ".".join(info.path.step): [
            Measurement(".".join(info.path.step), names[m.type], m.value, m.threshold)
            for m in info.drift_measurements
            if m.type in names
        ]
        for info in found.drift_skew_info
    }
    measurements = tuple(m for feature in schema.feature for m in values.get(feature.name, []))
    drifted = anomalies_pb2.Anomalies(drift_skew_info=found.drift_skew_info)
    for key, info in found.anomaly_info.items():
        reasons = [reason for reason in info.reason if reason.type in _COMPARATOR_REASONS]
        if reasons:
            drifted.anomaly_info[key].CopyFrom(_info(list(info.path.step), reasons))
    return measurements, drifted


def merge(anomalies: anomalies_pb2.Anomalies, drifted: anomalies_pb2.Anomalies) -> None:
    """Adds drift anomalies to schema anomalies; a feature may have both."""
    anomalies.drift_skew_info.extend(drifted.drift_skew_info)
    for key, info in drifted.anomaly_info.items():
        reasons = [*anomalies.anomaly_info[key].reason, *info.reason]
        anomalies.anomaly_info[key].CopyFrom(_info(list(info.path.step), reasons))


def _info(
    path: Sequence[str], reasons: Sequence[anomalies_pb2.AnomalyInfo.Reason]
) -> anomalies_pb2.AnomalyInfo:
    """An anomaly with these reasons, worded as in TFDV."""
    info = anomalies_pb2.AnomalyInfo(
        severity=anomalies_pb2.AnomalyInfo.ERROR,
        short_description=reasons[0].short_description if len(reasons) == 1 else "Multiple errors",
        description=" ".join(reason.description.strip() for reason in reasons),
        reason=reasons,
    )
    info.path.step.extend(path)
    return info


def _by_chance(
    comparator: str,
    new: statistics_pb2.FeatureNameStatistics,
    old: statistics_pb2.FeatureNameStatistics,
) -> float:
    """Average distance between two samples of one distribution, as large as these.

    It is less if most rows are in both.
    """
    shares = [_shares(feature) for feature in (new, old)]
    sizes = [size for _, size in shares]
    if not all(sizes):
        return 0.0
    spread = sum(1 / size for size in sizes)
    if comparator == _L_INFTY:
        pooled = collections.Counter[str]()
        for counts, _ in shares:
            pooled.update(counts)
        total = sum(pooled.values())
        variance = max(c / total * (1 - c / total) for c in pooled.values())
        return math.sqrt(variance * spread)
    # To second order, the divergence of samples is chi-squared with this many degrees of freedom.
    degrees = max(len(counts) for counts, _ in shares) - 1
    return degrees * spread / (8 * math.log(2))


def _shares(feature: statistics_pb2.FeatureNameStatistics) -> tuple[dict[str, float], float]:
    """The counts of a feature's values, or of its bars, and their sum."""
    if feature.HasField("string_stats"):
        ranks = feature.string_stats.rank_histogram.buckets
        counts = {rank.label: rank.sample_count for rank in ranks}
    else:
        bars = _histogram(feature).buckets
        counts = {str(i): b.sample_count for i, b in enumerate(bars) if b.sample_count >= _TRACE}
    return counts, sum(counts.values())


def _histogram(feature: statistics_pb2.FeatureNameStatistics) -> statistics_pb2.Histogram:
    found: Any = next(
        (h for h in feature.num_stats.histograms if h.type == _STANDARD),
        statistics_pb2.Histogram(),
    )
    return found


def _put_into_same_bars(*features: statistics_pb2.FeatureNameStatistics) -> None:
    """Gives both features the wider bars of the two, plus one more at either end."""
    if not all(f.HasField("num_stats") for f in features):
        return
    histograms = [_histogram(feature) for feature in features]
    if not all(h.buckets for h in histograms):
        return
    wider, other = sorted(histograms, key=_width, reverse=True)
    total = sum(bucket.sample_count for bucket in wider.buckets)
    edges = [wider.buckets[0].low_value, *(bucket.high_value for bucket in wider.buckets)]
    shares = [0.0, *(bucket.sample_count / total for bucket in wider.buckets), 0.0]
    placed = _place(other, edges, shares)
    margin = _width(wider) or 1.0
    edges = [edges[0] - margin, *edges, edges[-1] + margin]
    for histogram, found in ((wider, shares), (other, placed)):
        del histogram.buckets[:]
        for low, high, share in zip(edges[:-1], edges[1:], found, strict=True):
            histogram.buckets.add(low_value=low, high_value=high, sample_count=share)


def _width(histogram: statistics_pb2.Histogram) -> float:
    return max(float(b.high_value - b.low_value) for b in histogram.buckets)


def _place(
    histogram: statistics_pb2.Histogram, edges: Sequence[float], shares: Sequence[float]
) -> list[float]:
    """The share of a histogram in each bar, including below the first edge and above the last.

    A bar that crosses edges fills what is missing from the `shares` of the bars, from the left; the
    remainder goes to the bar with the largest share.
    """
    total = sum(bucket.sample_count for bucket in histogram.buckets)
    # TFDV computes edges by addition, so the greatest value may differ slightly from the last edge.
    margin = _ROUNDING * max(map(abs, edges))
    placed = [0.0] * len(shares)
    for number, bucket in enumerate(histogram.buckets):
        low, high = bucket.low_value, bucket.high_value
        # A value on an edge is in the bar above it, but the greatest value is in the last bar.
        is_last = number == len(histogram.buckets) - 1
        is_value = high - low <= margin
        first = sum(edge <= (low - margin if is_value else low + margin) for edge in edges)
        last = sum(
            edge < (high + margin if is_value or is_last else high - margin) for edge in edges
        )
        share = bucket.sample_count / total
        bars = range(first, max(first, last) + 1)
        for bar in bars:
            taken = min(share, max(0.0, shares[bar] - placed[bar]))
            placed[bar] += taken
            share -= taken
        placed[max(bars, key=lambda bar: shares[bar])] += share
    return placed
