"""Decides whether a model is good enough: TFX's Evaluator on LossScorer's scores.

The scores are precomputed predictions, so the Evaluator loads no model. Candidate and baseline are
scored on the same noise; the mean of the paired differences and its interval decide. The baseline
is the base weights in a first run and the latest blessed model later, or the model that training
started from.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

import tensorflow_model_analysis as tfma
from tfx.dsl.components.common.resolver import Resolver, ResolverStrategy
from tfx.types import BaseChannel, Channel, standard_artifacts

from components.evaluator.executor import (
    CHANGE,
    CHANGE_UPPER,
    CLASS_DISTANCE_SHOWN,
    COPIES,
    COPIES_SHOWN,
    GAP,
    GAP_ADDED,
    GAP_BASELINE,
    GAP_SHOWN,
    INCREASE_SHOWN,
    INCREASE_UPPER,
    SURELY_LOWER,
    TEXT_EXCESS,
)
from components.loss_scorer.executor import CLASS_SPLIT
from components.loss_scorer.executor import SPLIT as EVALUATED
from components.loss_scorer.remembering import NEARNESS, NEARNESS_HELD_OUT
from components.loss_scorer.remembering import SPLIT as REMEMBERING
from components.loss_scorer.scorer import (
    CAPTION_BUCKET,
    PICTURE_SIZE,
    STRATUM,
    TEXT_PART,
    TRAINING_LOSSES,
    TRAINING_TEXT_PART,
)
from components.measures import MeasureSettings, applying
from components.measures.class_distance import CLASS_DISTANCE
from pipeline.baseline import BLESSING, CANDIDATE, MODEL, LatestBlessedBeforeCandidate
from pipeline.config import EvaluationConfig, PriorConfig

_METRICS_MODULE = "components.evaluator.metrics"


def eval_config(
    evaluation: EvaluationConfig, prior: PriorConfig | None = None, *, in_buckets: bool = False
) -> tfma.EvalConfig:
    """What the Evaluator computes, and when it blesses.

    Metrics, over all rows, per stratum of timesteps, per caption length and, if pictures have
    several sizes (`in_buckets`), per size: the number of rows (`example_count`); with their 95 %
    intervals the mean losses of the candidate (`loss`) and of the baseline (`loss_baseline`), and
    the mean of the paired differences (`loss_delta`); the upper end of the interval of `loss_delta`
    (`loss_delta_upper`), also as a fraction of the mean of `loss_baseline` (`loss_increase_upper`);
    and, if pictures are drawn, their measures (`components.measures`).

    Two more metrics exist for their thresholds: whether the loss is surely lower (`surely_lower`: 1
    yes, 0 uncertain, -1 surely not), over all rows at least 0 if `when_unsure` is `push` and
    otherwise 1; and the increase in a stratum that is shown (`loss_increase_shown`), in each
    stratum at most `max_stratum_regression`. A value that is not a number never blesses.

    If memorization is measured, there are more metrics over all rows: the losses on training
    pictures (`train_loss`, `train_loss_baseline`), how far each is below the held-out loss
    (`memorization_gap`, `memorization_gap_baseline`), and how much further the candidate's loss has
    fallen (`memorization_gap_added`); how much larger the text's part of a prediction is for
    training captions (`text_part_excess`); and the fraction of drawn pictures that are suspected
    copies (`copies`). The parts of the gap and of the copies that are certain,
    `memorization_gap_shown` and `copies_shown`, have thresholds if `max_memorization_gap` and
    `max_copies` are given.

    If pictures of a subject's class are drawn: how far they have moved (`class_distance`), and the
    part of that which is certain (`class_distance_shown`), which has a threshold if
    `prior.max_distance` is given.
    """
    baseline = "loss_baseline"
    looks = evaluation.num_strata + 1
    sliced_by = (STRATUM, CAPTION_BUCKET, *([PICTURE_SIZE] if in_buckets else []))
    metrics = [
        # TFMA's own count would include the rows of training pictures.
        _metric("RowCount", feature="loss", name="example_count"),
        _metric("MeanWithInterval", feature="loss"),
        _metric("MeanWithInterval", feature=baseline),
        _metric("MeanWithInterval", feature=CHANGE),
        _metric("UpperBound", feature=CHANGE, name=CHANGE_UPPER),
        _metric("UpperBound", feature=CHANGE, relative_to=baseline, name=INCREASE_UPPER),
        _bounded(
            _metric(
                "SurelyLower",
                feature=CHANGE,
                relative_to=baseline,
                name=SURELY_LOWER,
                looks=looks,
                min_improvement=evaluation.min_loss_improvement,
                max_regression=evaluation.max_loss_regression,
            ),
            tfma.SlicingSpec(),
            {"lower_bound": {"value": 0.0 if evaluation.when_unsure == "push" else 1.0}},
        ),
        _bounded(
            _metric(
                "ShownIncrease",
                feature=CHANGE,
                relative_to=baseline,
                name=INCREASE_SHOWN,
                looks=looks,
            ),
            _every(STRATUM),
            {"upper_bound": {"value": evaluation.max_stratum_regression}},
        ),
    ]
    if evaluation.num_samples:
        measures = applying(MeasureSettings(evaluation.measures or (), evaluation.clip_model or ""))
        metrics += [
            _metric(metric.class_name, **metric.arguments)
            for measure in measures
            for metric in measure.metrics()
        ]
    metrics += _remembering(evaluation)
    if prior is not None and draws_class(prior):
        metrics.append(_metric("MeanWithInterval", feature=CLASS_DISTANCE))
        shown = _metric("SurelyAtLeast", feature=CLASS_DISTANCE, name=CLASS_DISTANCE_SHOWN)
        metrics.append(_at_most(shown, prior.max_distance))
    return tfma.EvalConfig(
        # Only one model, although there is a baseline: with a second one, TFMA looks for thresholds
        # under a model name that metrics of features do not set on their results, and never
        # blesses.
        model_specs=[
            tfma.ModelSpec(
                name="candidate",
                # All rows have a label; no metric here reads predictions.
                prediction_key="label",
                label_key="label",
                model_type="materialized_prediction",
            )
        ],
        slicing_specs=[tfma.SlicingSpec(), *map(_every, sliced_by)],
        metrics_specs=[tfma.MetricsSpec(metrics=metrics)],
        # TFMA's own intervals stay off; `components.evaluator.metrics` says why.
        options={"include_default_metrics": {"value": False}},
    )


def draws_class(prior: PriorConfig) -> bool:
    """Whether to draw pictures of a subject's class for comparison."""
    return prior.caption is not None and prior.num_compared > 0


def splits(evaluation: EvaluationConfig, prior: PriorConfig | None = None) -> list[str]:
    """The splits of the scores that the Evaluator reads."""
    remembers = evaluation.num_training_pictures or evaluation.num_training_samples
    return [
        EVALUATED,
        *([REMEMBERING] if remembers else []),
        *([CLASS_SPLIT] if prior is not None and draws_class(prior) else []),
    ]


def _remembering(evaluation: EvaluationConfig) -> Iterator[tfma.MetricConfig]:
    if evaluation.num_training_pictures:
        train_loss, train_loss_baseline, train_loss_delta = TRAINING_LOSSES
        gap = {"feature": train_loss, "other": "loss"}
        yield _metric("MeanWithInterval", feature=train_loss)
        yield _metric("MeanWithInterval", feature=train_loss_baseline)
        yield _metric("ShareBelow", name=GAP, **gap)
        yield _metric(
            "ShareBelow", name=GAP_BASELINE, feature=train_loss_baseline, other="loss_baseline"
        )
        yield _metric(
            "DifferenceOfMeans",
            name=GAP_ADDED,
            feature=CHANGE,
            other=train_loss_delta,
            relative_to="loss",
        )
        yield _at_most(
            _metric("SurelyBelow", name=GAP_SHOWN, **gap), evaluation.max_memorization_gap
        )
        yield _metric("MeanWithInterval", feature=TEXT_PART)
        yield _metric("MeanWithInterval", feature=TRAINING_TEXT_PART)
        yield _metric(
            "DifferenceOfMeans",
            name=TEXT_EXCESS,
            feature=TRAINING_TEXT_PART,
            other=TEXT_PART,
            relative_to=TEXT_PART,
        )
    if evaluation.num_training_samples:
        near = {"feature": NEARNESS, "reference": NEARNESS_HELD_OUT}
        yield _metric("MeanWithInterval", feature=NEARNESS)
        yield _metric("MeanWithInterval", feature=NEARNESS_HELD_OUT)
        yield _metric("Copies", name=COPIES, **near)
        yield _at_most(
            _metric("Copies", name=COPIES_SHOWN, shown=True, **near), evaluation.max_copies
        )


def _at_most(metric: tfma.MetricConfig, most: float | None) -> tfma.MetricConfig:
    """Puts a threshold on a metric over all rows, if there is one."""
    if most is None:
        return metric
    return _bounded(metric, tfma.SlicingSpec(), {"upper_bound": {"value": most}})


def _metric(class_name: str, **config: str | float) -> tfma.MetricConfig:
    return tfma.MetricConfig(
        class_name=class_name, module=_METRICS_MODULE, config=json.dumps(config)
    )


def _bounded(
    metric: tfma.MetricConfig, slices: tfma.SlicingSpec, bound: dict[str, dict[str, float]]
) -> tfma.MetricConfig:
    """Puts a threshold on a metric in some slices; without slices, it would apply to all."""
    metric.per_slice_thresholds.add(slicing_specs=[slices], threshold={"value_threshold": bound})
    return metric


def _every(feature: str) -> tfma.SlicingSpec:
    return tfma.SlicingSpec(feature_keys=[feature])


def baseline_node(
    candidate: BaseChannel, strategy: type[ResolverStrategy] = LatestBlessedBeforeCandidate
) -> Resolver:
    """Finds the model that the candidate is compared with; its output `model` may be empty.

    Args:
        candidate: The model that was just trained.
        strategy: How to find it; on Vertex `LatestBlessedModelStrategy`, the only one available.
    """
    channels: dict[str, BaseChannel] = {
        MODEL: Channel(type=standard_artifacts.Model),
        BLESSING: Channel(type=standard_artifacts.ModelBlessing),
    }
    if strategy is LatestBlessedBeforeCandidate:
        channels[CANDIDATE] = candidate
    return Resolver(strategy, None, **channels).with_id("LatestBlessedModel")
