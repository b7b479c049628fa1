"""What a model is asked for before it is blessed, as the Evaluator was told, and what it shows."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

from tensorflow_model_analysis.writers import eval_config_writer

from components.evaluator.executor import CHANGE, CHANGE_UPPER, INCREASE_UPPER
from components.evaluator.results import ALL, Metrics, Slice
from components.loss_scorer.scorer import STRATUM


@dataclasses.dataclass(frozen=True)
class Threshold:
    """One thing that a model is asked for.

    Attributes:
        what: The number that counts.
        asked: What it may be.
        setting: Where that is set.
        shown: What it is for this model.
    """

    what: str
    asked: str
    setting: str
    shown: str


def thresholds(evaluation: str, metrics: Mapping[Slice, Metrics]) -> list[Threshold]:
    """What the model was asked for.

    Args:
        evaluation: Folder of a `ModelEvaluation`, where TFMA keeps its configuration.
        metrics: What TFMA found in every slice.
    """
    config, *_ = eval_config_writer.load_eval_run(evaluation)
    if config is None:
        return []
    bounds = {
        (_name(metric), threshold.threshold.value_threshold.upper_bound.value)
        for spec in config.metrics_specs
        for metric in spec.metrics
        for threshold in metric.per_slice_thresholds
    }
    return list(_told(dict(bounds), metrics))


def _told(bounds: Mapping[str, float], metrics: Mapping[Slice, Metrics]) -> Iterator[Threshold]:
    total = metrics.get(ALL, {})
    if CHANGE in bounds:
        # The bound is the float next to what was set.
        yield Threshold(
            "Change in held-out loss",
            f"below {_signed(bounds[CHANGE])}",
            "evaluation.min_loss_improvement",
            _signed(total[CHANGE].value if CHANGE in total else math.nan),
        )
    if CHANGE_UPPER in bounds:
        yield Threshold(
            "Upper end of its 95 % interval",
            f"at most {_signed(bounds[CHANGE_UPPER])}",
            "evaluation.max_loss_regression",
            _signed(total[CHANGE_UPPER].value if CHANGE_UPPER in total else math.nan),
        )
    if INCREASE_UPPER in bounds:
        worst = max(
            (
                (found[INCREASE_UPPER].value, key[0][1])
                for key, found in metrics.items()
                if key and key[0][0] == STRATUM and math.isfinite(found[INCREASE_UPPER].value)
            ),
            key=lambda item: item[0],
            default=(math.nan, ""),
        )
        yield Threshold(
            "The same at the worst timesteps, in per cent of the loss there",
            f"at most {bounds[INCREASE_UPPER]:+.1%}",
            "evaluation.max_stratum_regression",
            f"{worst[0]:+.1%} at {worst[1]}" if worst[1] else "not known",
        )


def _name(metric: Any) -> str:
    arguments = json.loads(metric.config or "{}")
    return str(arguments.get("name") or arguments.get("feature") or metric.class_name)


def _signed(value: float) -> str:
    if not math.isfinite(value):
        return "not known"
    rounded = round(value, 6)
    return f"{rounded:+g}" if rounded else "0"
