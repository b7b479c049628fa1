"""TFMA's results, read from its own output files."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

import tensorflow_model_analysis as tfma

from components.measures import MEASURES
from components.measures.class_distance import CLASS_DISTANCE

# Name and value of the one feature that defines a slice; empty for all rows.
Slice = tuple[tuple[str, str], ...]
ALL: Slice = ()


@dataclasses.dataclass(frozen=True)
class Metric:
    """A metric of a slice.

    Attributes:
        value: The metric; may be NaN.
        lower: Lower end of its 95 % interval; NaN if it has none.
        upper: Upper end of the interval; likewise.
    """

    value: float
    lower: float = math.nan
    upper: float = math.nan


Metrics = dict[str, Metric]

# The possible range of each metric, which a t-distribution does not know.
_POSSIBLE = {
    **dict.fromkeys(("loss", "loss_baseline", CLASS_DISTANCE), (0.0, math.inf)),
    **{
        name: measure.possible
        for measure in MEASURES
        for name in (measure.name, measure.baseline_name)
    },
}


def read_metrics(folder: str) -> dict[Slice, Metrics]:
    """The metrics of every slice, in the order of the slices.

    Intervals are cut at impossible values, such as a loss below zero or a fraction above one.

    Args:
        folder: Folder of a `ModelEvaluation`.

    Returns:
        The metrics by slice; empty if there were no rows.
    """
    return dict(sorted(_slices(folder)))


def of_feature(metrics: dict[Slice, Metrics], feature: str) -> dict[str, Metrics]:
    """The slices that one feature defines, by its values."""
    return {key[0][1]: found for key, found in metrics.items() if key and key[0][0] == feature}


def slice_of(key: tfma.SliceKey) -> Slice:  # type: ignore[name-defined]
    """The key of a slice from TFMA's proto."""
    return tuple(
        (single.column, single.bytes_value.decode("utf-8", "replace"))
        for single in key.single_slice_keys
    )


def _slices(folder: str) -> Iterator[tuple[Slice, Metrics]]:
    for found in tfma.load_metrics(folder):
        metrics = {}
        for pair in found.metric_keys_and_values:
            # `example_count` also comes as a count of weighted examples.
            metric = Metric(pair.value.double_value.value)
            if pair.HasField("confidence_interval"):
                interval = pair.confidence_interval
                metric = dataclasses.replace(
                    metric,
                    lower=interval.lower_bound.double_value.value,
                    upper=interval.upper_bound.double_value.value,
                )
            metrics[pair.key.name] = metric
        possible = dict(_POSSIBLE)
        if "loss_baseline" in metrics:
            possible["loss_delta"] = (-metrics["loss_baseline"].value, math.inf)
        for name in possible.keys() & metrics.keys():
            metrics[name] = _cut(metrics[name], *possible[name])
        yield slice_of(found.slice_key), metrics


def _cut(metric: Metric, least: float, most: float) -> Metric:
    def inside(end: float) -> float:
        return min(max(end, least), most) if math.isfinite(end) and not math.isnan(least) else end

    return dataclasses.replace(metric, lower=inside(metric.lower), upper=inside(metric.upper))
