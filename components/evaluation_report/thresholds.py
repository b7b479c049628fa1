"""The thresholds for a blessing, from the Evaluator's configuration, and the model's values."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

from tensorflow_model_analysis.writers import eval_config_writer

from components.evaluator.executor import (
    CHANGE,
    CHANGE_UPPER,
    CLASS_DISTANCE_SHOWN,
    COPIES_SHOWN,
    GAP_SHOWN,
    INCREASE_SHOWN,
    SURELY_LOWER,
)
from components.evaluator.results import ALL, Metrics, Slice
from components.loss_scorer.scorer import STRATUM


@dataclasses.dataclass(frozen=True)
class Threshold:
    """One threshold for a blessing.

    Attributes:
        what: The number that is compared.
        asked: Its allowed values.
        setting: The setting of the threshold.
        shown: Its value for this model.
    """

    what: str
    asked: str
    setting: str
    shown: str


def thresholds(evaluation: str, metrics: Mapping[Slice, Metrics]) -> list[Threshold]:
    """The thresholds that the model was compared with.

    Args:
        evaluation: Folder of a `ModelEvaluation`, where TFMA keeps its configuration.
        metrics: TFMA's metrics of every slice.
    """
    config, *_ = eval_config_writer.load_eval_run(evaluation)
    if config is None:
        return []
    metrics_of = {
        _arguments(metric).get("name"): metric
        for spec in config.metrics_specs
        for metric in spec.metrics
    }
    if not {SURELY_LOWER, INCREASE_SHOWN} <= metrics_of.keys():
        return []
    [bound] = metrics_of[INCREASE_SHOWN].per_slice_thresholds
    return [
        *_told(
            _arguments(metrics_of[SURELY_LOWER]),
            bound.threshold.value_threshold.upper_bound.value,
            metrics,
        ),
        *_remembering(metrics_of, metrics.get(ALL, {})),
        *_of_class(metrics_of, metrics.get(ALL, {})),
    ]


def _told(
    asked: Mapping[str, float], most: float, metrics: Mapping[Slice, Metrics]
) -> Iterator[Threshold]:
    total = metrics.get(ALL, {})
    yield Threshold(
        "Change in held-out loss",
        f"below {_signed(-asked['min_improvement'])}",
        "evaluation.min_loss_improvement",
        _signed(total[CHANGE].value if CHANGE in total else math.nan),
    )
    yield Threshold(
        "Upper end of its 95 % interval",
        f"at most {_signed(asked['max_regression'])}, or it is unsure",
        "evaluation.max_loss_regression",
        _signed(total[CHANGE_UPPER].value if CHANGE_UPPER in total else math.nan),
    )
    worst = max(
        (
            (found[INCREASE_SHOWN].value, key[0][1])
            for key, found in metrics.items()
            if key and key[0][0] == STRATUM and math.isfinite(found[INCREASE_SHOWN].value)
        ),
        key=lambda item: item[0],
        default=(math.nan, ""),
    )
    yield Threshold(
        "The same at the worst timesteps, in percent of the loss there, if it is shown to rise",
        f"at most {most:+.1%}",
        "evaluation.max_stratum_regression",
        f"{worst[0]:+.1%} at {worst[1]}" if worst[0] > 0 else "shown nowhere",
    )


def _remembering(metrics_of: Mapping[str | None, Any], total: Metrics) -> Iterator[Threshold]:
    """The thresholds on what the model remembers, if any are set."""
    for name, what, setting in (
        (
            GAP_SHOWN,
            "How far the loss on training pictures surely is below the held-out loss",
            "evaluation.max_memorization_gap",
        ),
        (
            COPIES_SHOWN,
            "Copies among the pictures drawn for training captions, if chance does not explain "
            "them",
            "evaluation.max_copies",
        ),
    ):
        if name in metrics_of and metrics_of[name].per_slice_thresholds:
            [bound] = metrics_of[name].per_slice_thresholds
            most = bound.threshold.value_threshold.upper_bound.value
            value = total[name].value if name in total else math.nan
            shown = f"{value:.1%}" if math.isfinite(value) else "unknown"
            yield Threshold(what, f"at most {most:.1%}", setting, shown)


def _of_class(metrics_of: Mapping[str | None, Any], total: Metrics) -> Iterator[Threshold]:
    """The threshold on how a subject's class is drawn, if one is set."""
    metric = metrics_of.get(CLASS_DISTANCE_SHOWN)
    if metric is None or not metric.per_slice_thresholds:
        return
    [bound] = metric.per_slice_thresholds
    value = total[CLASS_DISTANCE_SHOWN].value if CLASS_DISTANCE_SHOWN in total else math.nan
    yield Threshold(
        "How far pictures of the class surely have moved",
        f"at most {bound.threshold.value_threshold.upper_bound.value:g}",
        "prior.max_distance",
        f"{value:.2f}" if math.isfinite(value) else "unknown",
    )


def _arguments(metric: Any) -> dict[str, Any]:
    arguments: dict[str, Any] = json.loads(metric.config or "{}")
    return arguments


def _signed(value: float) -> str:
    if not math.isfinite(value):
        return "unknown"
    rounded = round(value, 6)
    return f"{rounded:+g}" if rounded else "0"
