"""TFMA metrics of our own: means with intervals that take account of dependent rows.

TFMA's own intervals do not fit. Its jackknife changes the point values. Its bootstrap is random, so
the blessing would be random, too. Both treat the rows of one picture as independent, and neither
can have a threshold. TFMA computes the metrics of this module beside its others, per slice and on
any Beam runner. The interval is cluster-robust (Cameron and Miller 2015, section II, with groups of
pictures as the clusters): exact except for pictures that share a group, and in constant memory.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import apache_beam as beam
import numpy as np
from scipy import stats
from tensorflow_model_analysis.api.types import ValueWithTDistribution
from tensorflow_model_analysis.metrics import metric_types
from tensorflow_model_analysis.utils.math_util import calculate_confidence_interval

from components.loss_scorer.nearest import nearest_hundredth

GROUP = "group"

# Together, all looks of a verdict find a regression in one of twenty models that have none.
_FALSE_ALARMS = 0.05
# Two groups give one degree of freedom: almost no value lies outside such an interval.
_FEW_GROUPS = 2
# The loss of a model that predicts none of the noise, which has variance 1.
_LOSS_OF_NOTHING = 1.0
# Equal models may differ by this fraction of their loss between machines.
_SAME = 1e-5
# How rarely a model that copies nothing is taken for one that does.
_CHANCE_OF_COPIES = 0.01

# A row's group and its values, summed: [rows, sum of the first feature, ...].
_Sums = dict[int, np.ndarray]
_FEATURES = "features"


class MeanWithInterval(metric_types.Metric):
    """Mean of a feature, with its standard error and degrees of freedom.

    TFMA writes it with the ends of its 95 % interval. Rows without the feature do not count; the
    mean of no rows is NaN.
    """

    def __init__(self, feature: str, name: str | None = None) -> None:
        """Makes the metric.

        Args:
            feature: A number on each row.
            name: Name of the metric; by default, the feature's name.
        """
        super().__init__(_mean_with_interval, feature=feature, name=name or feature)


class UpperBound(metric_types.Metric):
    """Upper end of the 95 % interval of a feature's mean, a plain number for a threshold.

    It is NaN, and so fails every threshold, if there is no interval: if the pictures are of fewer
    than two groups, or a value is not finite.
    """

    def __init__(self, feature: str, name: str, relative_to: str | None = None) -> None:
        """Makes the metric.

        Args:
            feature: A number on each row.
            name: Name of the metric.
            relative_to: Feature whose mean divides the upper end.
        """
        super().__init__(_upper_bound, feature=feature, name=name, relative_to=relative_to)


class SurelyLower(metric_types.Metric):
    """Whether a feature's mean is low enough, as far as the rows show: see `surely_lower`.

    A plain number for a threshold: 1 for yes, -1 for surely not, 0 if it is unclear. NaN, which
    fails every threshold, if a value is not finite.
    """

    def __init__(
        self,
        feature: str,
        relative_to: str,
        name: str,
        looks: int,
        min_improvement: float,
        max_regression: float,
    ) -> None:
        """Makes the metric.

        Args:
            feature: The change, a number on each row.
            relative_to: Feature with the value that changed.
            name: Name of the metric.
            looks: Number of looks for a regression in the verdict, including this one.
            min_improvement: How far below zero the mean has to be.
            max_regression: How far above zero its 95 % interval may reach.
        """
        super().__init__(
            _surely_lower,
            feature=feature,
            relative_to=relative_to,
            name=name,
            looks=looks,
            min_improvement=min_improvement,
            max_regression=max_regression,
        )


class ShownIncrease(metric_types.Metric):
    """How much higher a feature's mean may be, if it is shown to be higher at all.

    A plain number for a threshold: see `shown_increase`. NaN, which fails every threshold, if a
    value is not finite.
    """

    def __init__(self, feature: str, relative_to: str, name: str, looks: int) -> None:
        """Makes the metric.

        Args:
            feature: The change, a number on each row.
            relative_to: Feature with the value that changed.
            name: Name of the metric.
            looks: Number of looks for a regression in the verdict, including this one.
        """
        super().__init__(
            _shown_increase, feature=feature, relative_to=relative_to, name=name, looks=looks
        )


class RowCount(metric_types.Metric):
    """The number of rows that have a feature."""

    def __init__(self, feature: str, name: str) -> None:
        """Makes the metric.

        Args:
            feature: A number on each row that counts.
            name: Name of the metric.
        """
        super().__init__(_row_count, feature=feature, name=name)


class ShareBelow(metric_types.Metric):
    """How far the mean of a feature lies below the mean of another, as a fraction of the latter.

    The features are on different rows, of different pictures: their means are independent, and the
    interval is Welch's. TFMA writes it with the ends of its 95 % interval. NaN if one of them has
    no rows.
    """

    def __init__(self, feature: str, other: str, name: str) -> None:
        """Makes the metric.

        Args:
            feature: A number on some rows.
            other: A number on other rows.
            name: Name of the metric.
        """
        super().__init__(_share_below, feature=feature, other=other, name=name)


class DifferenceOfMeans(metric_types.Metric):
    """How far the mean of a feature lies above the mean of another, as a fraction of a third mean.

    The first two features are on different rows, of different pictures: their means are
    independent, and the interval is Welch's. TFMA writes it with the ends of its 95 % interval.
    NaN if one of the features has no rows.
    """

    def __init__(self, feature: str, other: str, relative_to: str, name: str) -> None:
        """Makes the metric.

        Args:
            feature: A number on some rows.
            other: A number on other rows.
            relative_to: A number on some rows.
            name: Name of the metric.
        """
        super().__init__(
            _difference_of_means, feature=feature, other=other, relative_to=relative_to, name=name
        )


class SurelyBelow(metric_types.Metric):
    """What `ShareBelow` surely is at least, a plain number for a threshold.

    The lower end of its one-sided 95 % interval if that is above zero; otherwise 0, also if there
    are too few pictures for an interval. NaN, which fails every threshold, if one of the features
    has no rows or a value is not finite.
    """

    def __init__(self, feature: str, other: str, name: str) -> None:
        """Makes the metric.

        Args:
            feature: A number on some rows.
            other: A number on other rows.
            name: Name of the metric.
        """
        super().__init__(_surely_below, feature=feature, other=other, name=name)


class SurelyAtLeast(metric_types.Metric):
    """What the mean of a feature surely is at least, a plain number for a threshold.

    The lower end of its one-sided 95 % interval if that is above zero; otherwise 0, also if there
    is no interval. NaN, which fails every threshold, if there are no rows or a value is not finite.
    """

    def __init__(self, feature: str, name: str) -> None:
        """Makes the metric.

        Args:
            feature: A number on some rows, not negative.
            name: Name of the metric.
        """
        super().__init__(_surely_at_least, feature=feature, name=name)


class Copies(metric_types.Metric):
    """Fraction of a feature's values that are below the smallest hundredth of another feature's.

    With `shown`, it is 0 if values of one distribution would give as many in more than one of a
    hundred cases (see `chance_of_copies`): a plain number for a threshold. NaN if one of the
    features has no rows. It keeps all values, so there must be few of them.
    """

    def __init__(self, feature: str, reference: str, name: str, shown: bool = False) -> None:
        """Makes the metric.

        Args:
            feature: A number on some rows.
            reference: A number on other rows.
            name: Name of the metric.
            shown: Whether to count only what chance does not explain.
        """
        super().__init__(_copies, feature=feature, reference=reference, name=name, shown=shown)


class FrechetDistance(metric_types.Metric):
    """Squared Frechet distance between the distributions of two features, taken as normal.

    The formula of the FID (Heusel et al. 2017, equation 6) on vectors in the rows. Rows without the
    features do not count. It is biased upwards if there are few rows, so only distances over
    equally many rows can be compared.
    """

    def __init__(self, feature: str, reference: str, name: str) -> None:
        """Makes the metric.

        Args:
            feature: A vector on some of the rows.
            reference: A vector of the same length on the same rows.
            name: Name of the metric.
        """
        super().__init__(_frechet_distance, feature=feature, reference=reference, name=name)


def _mean_with_interval(feature: str, name: str) -> metric_types.MetricComputations:
    def value(sums: _Sums) -> ValueWithTDistribution:
        return cluster_mean(sums)

    return _computation(name, [GROUP, feature], _GroupSums([feature], name, value))


def _upper_bound(
    feature: str, name: str, relative_to: str | None
) -> metric_types.MetricComputations:
    features = [feature] if relative_to is None else [feature, relative_to]

    def value(sums: _Sums) -> float:
        _, _, upper = calculate_confidence_interval(cluster_mean(sums))
        if relative_to is None:
            return float(upper)
        rows, _, total = sum(sums.values(), np.zeros(3))
        return float(upper / (total / rows)) if total else math.nan

    return _computation(name, [GROUP, *features], _GroupSums(features, name, value))


def _surely_lower(
    feature: str,
    relative_to: str,
    name: str,
    looks: int,
    min_improvement: float,
    max_regression: float,
) -> metric_types.MetricComputations:
    def value(sums: _Sums) -> float:
        return surely_lower(
            cluster_mean(sums), _mean_of_second(sums), looks, min_improvement, max_regression
        )

    features = [feature, relative_to]
    return _computation(name, [GROUP, *features], _GroupSums(features, name, value))


def _shown_increase(
    feature: str, relative_to: str, name: str, looks: int
) -> metric_types.MetricComputations:
    def value(sums: _Sums) -> float:
        return shown_increase(cluster_mean(sums), _mean_of_second(sums), looks)

    features = [feature, relative_to]
    return _computation(name, [GROUP, *features], _GroupSums(features, name, value))


def _row_count(feature: str, name: str) -> metric_types.MetricComputations:
    def value(sums: _Sums) -> float:
        rows, _ = sum(sums.values(), np.zeros(2))
        return float(rows)

    return _computation(name, [GROUP, feature], _GroupSums([feature], name, value))


def _share_below(feature: str, other: str, name: str) -> metric_types.MetricComputations:
    return _difference_of_means(other, feature, other, name)


def _surely_below(feature: str, other: str, name: str) -> metric_types.MetricComputations:
    def value(*sums: _Sums) -> float:
        share = relative_difference(*sums)
        if not math.isfinite(share.unsampled_value):
            return math.nan
        return max(0.0, shown_lower_end(share, looks=1))

    combiner = _SeveralSums([other, feature, other], name, value)
    return _computation(name, [GROUP, feature, other], combiner)


def _surely_at_least(feature: str, name: str) -> metric_types.MetricComputations:
    def value(sums: _Sums) -> float:
        mean = cluster_mean(sums)
        if not math.isfinite(mean.unsampled_value):
            return math.nan
        return max(0.0, shown_lower_end(mean, looks=1))

    return _computation(name, [GROUP, feature], _GroupSums([feature], name, value))


def _difference_of_means(
    feature: str, other: str, relative_to: str, name: str
) -> metric_types.MetricComputations:
    features = [feature, other, relative_to]
    combiner = _SeveralSums(features, name, relative_difference)
    return _computation(name, [GROUP, *features], combiner)


def relative_difference(
    sums: _Sums, other_sums: _Sums, scale_sums: _Sums
) -> ValueWithTDistribution:
    """How far a mean lies above another, independent one, as a fraction of a third.

    The interval is Welch's (1947), with whole degrees of freedom, rounded down. The uncertainty of
    the third mean is ignored: it is of second order while the difference is small.

    Args:
        sums: Sums of the first mean, as `cluster_mean` takes them.
        other_sums: Sums of the other mean.
        scale_sums: Sums of the third mean, which may be one of the two.

    Returns:
        The difference; NaN for every part that there are too few groups for.
    """
    means = cluster_mean(sums), cluster_mean(other_sums)
    scale = abs(cluster_mean(scale_sums).unsampled_value) or math.nan
    value = (means[0].unsampled_value - means[1].unsampled_value) / scale
    parts = [(m.sample_standard_deviation**2, m.sample_degrees_of_freedom) for m in means]
    variance = math.fsum(part for part, _ in parts)
    if not (math.isfinite(value) and math.isfinite(variance)):
        return ValueWithTDistribution(value, math.nan, 0, value)
    freedom = min(count for _, count in parts)
    if variance:
        freedom = math.floor(variance**2 / math.fsum(part**2 / count for part, count in parts))
    return ValueWithTDistribution(value, math.sqrt(variance) / scale, freedom, value)


def _copies(
    feature: str, reference: str, name: str, shown: bool
) -> metric_types.MetricComputations:
    def value(values: list[float], others: list[float]) -> float:
        if not (values and others):
            return math.nan
        count = int(np.sum(np.array(values) < nearest_hundredth(others)))
        if shown and chance_of_copies(count, len(values), len(others)) > _CHANCE_OF_COPIES:
            return 0.0
        return count / len(values)

    return _computation(name, [feature, reference], _Values(feature, reference, name, value))


def chance_of_copies(count: int, number: int, num_others: int) -> float:
    """How likely it is that `count` values are below `nearest_hundredth` of others like them.

    If all come from one distribution, all their orders are equally likely, so this is exact for any
    number of values.

    Args:
        count: Number of values that are below.
        number: Number of values.
        num_others: Number of other values.

    Returns:
        The probability of at least `count` such values.
    """
    if not count:
        return 1.0
    nearer = num_others // 100
    total = number + num_others
    return float(stats.hypergeom.cdf(nearer, total, num_others, count + nearer))


def _mean_of_second(sums: _Sums) -> float:
    rows, _, total = sum(sums.values(), np.zeros(3))
    return float(total / rows) if rows else math.nan


def surely_lower(
    change: ValueWithTDistribution,
    scale: float,
    looks: int,
    min_improvement: float,
    max_regression: float,
) -> float:
    """Whether a loss has fallen as required.

    Args:
        change: The mean of the paired differences.
        scale: The loss that has changed.
        looks: Number of looks for a regression in the verdict (see `shown_lower_end`).
        min_improvement: The mean change has to be below minus this.
        max_regression: The 95 % interval may reach this far above zero.

    Returns:
        1 if it has, and the upper end of its 95 % interval is at most `max_regression`. -1 if the
        opposite is shown: the lower end is at or above minus `min_improvement`, or above
        `max_regression`; or the loss is the same, which is not an improvement. Otherwise 0. With
        one or two groups, whose intervals hold nearly everything, the opposite is shown by a loss
        that has risen to 1, the loss of a model that predicts none of the noise. NaN if a number is
        not finite.
    """
    value, bar = change.unsampled_value, -min_improvement
    if not (math.isfinite(value) and math.isfinite(scale)):
        return math.nan
    if bar <= 0 and abs(value) <= _SAME * scale:
        return -1.0
    lower = shown_lower_end(change, looks)
    if change.sample_degrees_of_freedom < _FEW_GROUPS and scale + value >= _LOSS_OF_NOTHING:
        lower = value
    if lower >= bar or lower > max_regression:
        return -1.0
    _, _, upper = calculate_confidence_interval(change)
    return 1.0 if value < bar and upper <= max_regression else 0.0


def shown_increase(change: ValueWithTDistribution, scale: float, looks: int) -> float:
    """How much higher a loss may be, if it is shown to be higher.

    Args:
        change: The mean of the paired differences.
        scale: The loss that has changed.
        looks: Number of looks for a regression in the verdict (see `shown_lower_end`).

    Returns:
        The upper end of the 95 % interval as a fraction of `scale` if the lower end is above zero;
        otherwise 0. NaN if a number is not finite.
    """
    value = change.unsampled_value
    if not (math.isfinite(value) and math.isfinite(scale) and scale):
        return math.nan
    if value <= _SAME * scale or shown_lower_end(change, looks) <= 0:
        return 0.0
    _, _, upper = calculate_confidence_interval(change)
    return float(upper / scale)


def shown_lower_end(mean: ValueWithTDistribution, looks: int) -> float:
    """The value that a mean is surely not below, corrected for several looks.

    The lower end of a one-sided interval whose level is divided by the looks (Bonferroni; Dunn
    1961): of models that are no worse, any of the looks finds at most one in twenty to be worse.

    Returns:
        The lower end; minus infinity if there is only one group, and so no interval.
    """
    if mean.sample_degrees_of_freedom < 1:
        return -math.inf
    quantile = _quantile(looks, mean.sample_degrees_of_freedom)
    return float(mean.unsampled_value - quantile * mean.sample_standard_deviation)


@functools.cache
def _quantile(looks: int, degrees_of_freedom: int) -> float:
    return float(stats.t.ppf(1 - _FALSE_ALARMS / looks, degrees_of_freedom))


def cluster_mean(sums: _Sums) -> ValueWithTDistribution:
    """Mean of all rows, its standard error, and the degrees of freedom of the t-distribution.

    Args:
        sums: For each group, the number of rows and the sum of their values.

    Returns:
        The mean; NaN for missing parts: a mean needs one row, a standard error two groups.
    """
    if not sums:
        return ValueWithTDistribution(math.nan, math.nan, 0, math.nan)
    rows, totals = np.array([values[:2] for values in sums.values()]).T
    mean = float(totals.sum() / rows.sum())
    if len(sums) < 2:
        return ValueWithTDistribution(mean, math.nan, 0, mean)
    correction = len(sums) / (len(sums) - 1)
    if not math.isfinite(mean):
        return ValueWithTDistribution(mean, math.nan, len(sums) - 1, mean)
    variance = correction * np.sum((totals - mean * rows) ** 2) / rows.sum() ** 2
    return ValueWithTDistribution(mean, float(np.sqrt(variance)), len(sums) - 1, mean)


def _computation(
    name: str, features: Iterable[str], combiner: beam.CombineFn
) -> metric_types.MetricComputations:
    preprocessor = metric_types.StandardMetricInputsPreprocessor(
        include_filter={_FEATURES: {feature: {} for feature in features}},
        include_default_inputs=False,
    )
    key = metric_types.MetricKey(name=name)
    return [
        metric_types.MetricComputation(keys=[key], preprocessors=[preprocessor], combiner=combiner)
    ]


class _GroupSums(beam.CombineFn):
    """Sums the features of the rows that have them, group by group."""

    def __init__(self, features: list[str], name: str, value: Callable[[_Sums], Any]) -> None:
        self._features = features
        self._key = metric_types.MetricKey(name=name)
        self._value = value

    def create_accumulator(self) -> _Sums:
        return {}

    def add_input(self, sums: _Sums, element: Any) -> _Sums:
        row = element[_FEATURES]
        values = [_vector(row, feature) for feature in self._features]
        if all(value is not None for value in values):
            [group] = row[GROUP]
            _add(sums, int(group), np.concatenate([[1.0], *values]))
        return sums

    def merge_accumulators(self, accumulators: Iterable[_Sums]) -> _Sums:
        merged: _Sums = {}
        for sums in accumulators:
            for group, values in sums.items():
                _add(merged, group, values)
        return merged

    def extract_output(self, sums: _Sums) -> dict[metric_types.MetricKey, Any]:
        # In the order of the groups, so that workers do not change the last digit.
        return {self._key: self._value(dict(sorted(sums.items())))}


class _SeveralSums(beam.CombineFn):
    """Sums features that are on different rows, each group by group."""

    def __init__(self, features: Sequence[str], name: str, value: Callable[..., Any]) -> None:
        self._parts = [_GroupSums([feature], name, value) for feature in features]
        self._key = metric_types.MetricKey(name=name)
        self._value = value

    def create_accumulator(self) -> list[_Sums]:
        return [part.create_accumulator() for part in self._parts]

    def add_input(self, several: list[_Sums], element: Any) -> list[_Sums]:
        return [p.add_input(sums, element) for p, sums in zip(self._parts, several, strict=True)]

    def merge_accumulators(self, accumulators: Iterable[list[_Sums]]) -> list[_Sums]:
        return [
            part.merge_accumulators(sums)
            for part, sums in zip(self._parts, zip(*accumulators, strict=True), strict=True)
        ]

    def extract_output(self, several: list[_Sums]) -> dict[metric_types.MetricKey, Any]:
        return {self._key: self._value(*(dict(sorted(sums.items())) for sums in several))}


class _Values(beam.CombineFn):
    """All values of two features that are on different rows."""

    def __init__(
        self,
        feature: str,
        other: str,
        name: str,
        value: Callable[[list[float], list[float]], float],
    ) -> None:
        self._features = (feature, other)
        self._key = metric_types.MetricKey(name=name)
        self._value = value

    def create_accumulator(self) -> list[list[float]]:
        return [[], []]

    def add_input(self, both: list[list[float]], element: Any) -> list[list[float]]:
        for values, feature in zip(both, self._features, strict=True):
            found = _vector(element[_FEATURES], feature)
            if found is not None:
                values += found.tolist()
        return both

    def merge_accumulators(self, accumulators: Iterable[list[list[float]]]) -> list[list[float]]:
        merged: list[list[float]] = [[], []]
        for both in accumulators:
            for values, others in zip(merged, both, strict=True):
                values += others
        return merged

    def extract_output(self, both: list[list[float]]) -> dict[metric_types.MetricKey, float]:
        return {self._key: self._value(*both)}


def _frechet_distance(feature: str, reference: str, name: str) -> metric_types.MetricComputations:
    return _computation(name, [feature, reference], _Moments(feature, reference, name))


class _Moments(beam.CombineFn):
    """Number of rows, and sums of the values and products of both features."""

    def __init__(self, feature: str, reference: str, name: str) -> None:
        self._features = (feature, reference)
        self._key = metric_types.MetricKey(name=name)

    def create_accumulator(self) -> list[Any]:
        return [0, *[0.0] * 4]

    def add_input(self, moments: list[Any], element: Any) -> list[Any]:
        found = [_vector(element[_FEATURES], feature) for feature in self._features]
        vectors = [vector for vector in found if vector is not None]
        if len(vectors) < len(found):
            return moments
        products = [product for v in vectors for product in (v, np.outer(v, v))]
        return [a + b for a, b in zip(moments, [1, *products], strict=True)]

    def merge_accumulators(self, accumulators: Iterable[list[Any]]) -> list[Any]:
        return [sum(parts) for parts in zip(*accumulators, strict=True)]

    def extract_output(self, moments: list[Any]) -> dict[metric_types.MetricKey, float]:
        rows, *sums = moments
        if rows < 2:
            return {self._key: math.nan}
        (mean, square), (other_mean, other_square) = (
            (sums[0] / rows, sums[1] / rows),
            (sums[2] / rows, sums[3] / rows),
        )
        distance = frechet_distance(
            mean,
            square - np.outer(mean, mean),
            other_mean,
            other_square - np.outer(other_mean, other_mean),
        )
        return {self._key: distance}


def frechet_distance(
    mean: np.ndarray, covariance: np.ndarray, other_mean: np.ndarray, other_covariance: np.ndarray
) -> float:
    """Squared Frechet distance of two normal distributions (Dowson and Landau 1982, equation 4)."""
    if not all(map(np.all, map(np.isfinite, (mean, covariance, other_mean, other_covariance)))):
        return math.nan
    root = _root(covariance)
    # The root of a product and the root of its symmetric form have the same trace.
    product = np.linalg.eigvalsh(root @ other_covariance @ root)
    traces = np.trace(covariance) + np.trace(other_covariance)
    distance = np.sum((mean - other_mean) ** 2) + traces
    return float(distance - 2 * np.sum(np.sqrt(np.maximum(product, 0.0))))


def _root(covariance: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(covariance)
    return (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T


def _add(sums: _Sums, group: int, values: np.ndarray) -> None:
    sums[group] = sums[group] + values if group in sums else values


def _vector(row: Any, feature: str) -> np.ndarray | None:
    values = row.get(feature)
    if values is None or not np.size(values):
        return None
    return np.asarray(values, np.float64).reshape(-1)
