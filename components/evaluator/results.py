"""What TFMA found, read from its own output files."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

import tensorflow_model_analysis as tfma

from components.measures import MEASURES
from components.measures.class_distance import CLASS_DISTANCE

# Name and value of the one feature that a slice is made of; empty for all rows.
Slice = tuple[tuple[str, str], ...]
ALL: Slice = ()


@dataclasses.dataclass(frozen=True)
class Metric:
    """A metric of a slice.

    Attributes:
        value: The metric; may be NaN.
        lower: Lower end of its 95 % interval; NaN where it has none.
        upper: Upper end of it.
    """

    value: float
    lower: float = math.nan
    upper: float = math.nan


Metrics = dict[str, Metric]

# What each metric may be at all; a t-distribution knows nothing of it.
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

    Intervals end where what cannot be begins: the loss below zero, a fraction above one.

    Args:
        folder: Of a `ModelEvaluation`.

    Returns:
        No slice at all where there were no rows.
    """
    return dict(sorted(_slices(folder)))


def of_feature(metrics: dict[Slice, Metrics], feature: str) -> dict[str, Metrics]:
    """The slices that are made of one feature, by its values."""
    return {key[0][1]: found for key, found in metrics.items() if key and key[0][0] == feature}


def slice_of(key: tfma.SliceKey) -> Slice:  # type: ignore[name-defined]
    """A slice's key from TFMA's proto."""
    return tuple(
        (single.column, single.bytes_value.decode("utf-8", "replace"))
        for single in key.single_slice_keys
    )


def _slices(folder: str) -> Iterator[tuple[Slice, Metrics]]:
    for found in tfma.load_metrics(folder):
        metrics = {}
        for pair in found.metric_keys_and_values:
            # `example_count` comes as a count of weighted examples, too.
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
