"""The work of Evaluator: TFX's own evaluation, and then the verdict in words."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import tensorflow_model_analysis as tfma
from tfx import types
from tfx.components.evaluator import executor as tfx_executor
from tfx.components.util import model_utils
from tfx.types import artifact_utils
from tfx.utils import proto_utils

# TFMA imports it by name from its configuration; imported here, its code is in the cache key.
from components.evaluator import metrics as _metrics  # noqa: F401
from components.evaluator.results import ALL, Metrics, Slice, read_metrics, slice_of
from components.measures.class_distance import CLASS_CAPTION, CLASS_DISTANCE, NUM_CLASS_PICTURES
from components.whole_elements import WholeElementsExecutor
from storage.verdict import BLESSED, REFUSED, UNSURE, VERDICT

CHANGE = "loss_delta"
CHANGE_UPPER = "loss_delta_upper"
INCREASE_UPPER = "loss_increase_upper"
# Metrics with thresholds.
SURELY_LOWER = "surely_lower"
INCREASE_SHOWN = "loss_increase_shown"

# What a model remembers.
GAP, GAP_BASELINE, GAP_ADDED = (
    "memorization_gap",
    "memorization_gap_baseline",
    "memorization_gap_added",
)
TEXT_EXCESS = "text_part_excess"
COPIES = "copies"
# Metrics with thresholds, if these are set.
GAP_SHOWN = "memorization_gap_shown"
COPIES_SHOWN = "copies_shown"

# How far pictures of a subject's class have surely moved; the threshold applies to this.
CLASS_DISTANCE_SHOWN = "class_distance_shown"

NUM_TRAINING_PICTURES, NUM_TRAINING_SAMPLES = "num_training_pictures", "num_training_samples"
_FOR_THRESHOLDS = (SURELY_LOWER, INCREASE_SHOWN, GAP_SHOWN, COPIES_SHOWN, CLASS_DISTANCE_SHOWN)

REASONS, NUM_PICTURES = "reasons", "num_pictures"

logger = logging.getLogger(__name__)


# It must be a subclass of TFX's, or Vertex writes a blessing that its resolver does not understand.
class Executor(WholeElementsExecutor, tfx_executor.Executor):
    """Evaluates with TFX's own executor, and states the verdict and its reasons."""

    def Do(  # noqa: N802
        self,
        input_dict: dict[str, list[types.Artifact]],
        output_dict: dict[str, list[types.Artifact]],
        exec_properties: dict[str, Any],
    ) -> None:
        """See `Evaluator`."""
        super().Do(input_dict, output_dict, exec_properties)
        scores = artifact_utils.get_single_instance(input_dict["examples"])
        evaluation = artifact_utils.get_single_instance(output_dict["evaluation"])
        blessing = artifact_utils.get_single_instance(output_dict["blessing"])
        found = read_metrics(evaluation.uri)
        config = tfma.EvalConfig()
        proto_utils.json_to_proto(exec_properties["eval_config"], config)
        reasons = list(
            why_not(tfma.load_validation_result(evaluation.uri), scores, found, _asked_for(config))
        )
        unsure = not reasons and found[ALL][SURELY_LOWER].value == 0
        if unsure:
            reasons = [_cannot_be_told(found[ALL], scores)]
        verdict = UNSURE if unsure else REFUSED if reasons else BLESSED
        for artifact in (evaluation, blessing):
            _set_metrics(artifact, found.get(ALL, {}))
        blessing.set_string_custom_property(VERDICT, verdict)
        blessing.set_string_custom_property(REASONS, "\n".join(reasons))
        blessing.set_int_custom_property(NUM_PICTURES, scores.get_int_custom_property(NUM_PICTURES))
        _tell(verdict, reasons, pushed=model_utils.is_model_blessed(blessing))


def why_not(
    result: tfma.proto.ValidationResult,
    scores: types.Artifact,
    found: Mapping[Slice, Metrics],
    asked_for: Mapping[str, float],
) -> Iterator[str]:
    """The reasons against a model, in words for users, the worst first.

    A problem that makes all comparisons void is given instead of the thresholds that fail because
    of it.

    Args:
        result: TFMA's validation result.
        scores: LossScorer's output.
        found: All metrics.
        asked_for: Arguments of `SurelyLower`.
    """
    problem = scores.get_string_custom_property("baseline_problem")
    num_rows = scores.get_int_custom_property("num_rows")
    num_not_finite = scores.get_int_custom_property("num_candidate_not_finite")
    num_baseline_not_finite = scores.get_int_custom_property("num_baseline_not_finite")
    if not num_rows:
        yield "the eval split is empty, so there is nothing to judge the model by"
        return
    if num_not_finite:
        yield f"{num_not_finite:,} of {num_rows:,} held-out losses are not finite numbers"
    if problem:
        yield problem
    elif num_baseline_not_finite:
        yield f"{num_baseline_not_finite:,} of {num_rows:,} losses of the baseline are not finite"
    if num_not_finite or problem or num_baseline_not_finite:
        return
    if found[ALL][SURELY_LOWER].value < 0:
        yield _not_lower(found[ALL], scores, asked_for)
    failures = [
        (failure.metric_value.double_value.value, slice_of(validation.slice_key), failure)
        for validation in result.metric_validations_per_slice
        for failure in validation.failures
        if failure.metric_key.name == INCREASE_SHOWN
    ]
    for _, key, failure in sorted(failures, key=lambda item: (-item[0], item[1])):
        bound = failure.metric_threshold.value_threshold.upper_bound.value
        yield (
            f"at timesteps {key[0][1]} the loss is higher than the loss of {_baseline(scores)} by "
            f"{_percent(found[key])}; at most {bound:.1%} is allowed "
            "(evaluation.max_stratum_regression)"
        )
    telling = {
        GAP_SHOWN: _remembers,
        COPIES_SHOWN: _copies,
        CLASS_DISTANCE_SHOWN: _class_moved,
    }
    for validation in result.metric_validations_per_slice:
        for failure in validation.failures:
            if (tell := telling.get(failure.metric_key.name)) is not None:
                most = failure.metric_threshold.value_threshold.upper_bound.value
                yield tell(found[ALL], most, scores)


def _remembers(metrics: Metrics, most: float, scores: types.Artifact) -> str:
    gap, setting = metrics[GAP], "(evaluation.max_memorization_gap)"
    if not math.isfinite(gap.value):
        return (
            "it is unknown what the model remembers: its losses on training pictures are not all "
            f"finite numbers {setting}"
        )
    count = scores.get_int_custom_property(NUM_TRAINING_PICTURES)
    return (
        f"the model remembers what it was trained on: its loss on {count:,} training "
        f"picture{'' if count == 1 else 's'} is {gap.value:.1%} (95 % interval {gap.lower:+.1%} "
        f"to {gap.upper:+.1%}) below its held-out loss; at most {most:.1%} is allowed {setting}"
    )


def _copies(metrics: Metrics, most: float, scores: types.Artifact) -> str:
    share, setting = metrics[COPIES].value, "(evaluation.max_copies)"
    if not math.isfinite(share):
        return (
            "it is unknown whether the model draws copies: with a single training picture, there "
            f"is no other to compare distances with {setting}"
        )
    count = scores.get_int_custom_property(NUM_TRAINING_SAMPLES)
    return (
        f"{round(share * count):,} of {count:,} pictures drawn for captions of training pictures "
        "are nearer to a training picture than the nearest hundredth of the held-out pictures, "
        f"which chance does not explain; at most {most:.1%} are allowed {setting}"
    )


def _class_moved(metrics: Metrics, most: float, scores: types.Artifact) -> str:
    distance, setting = metrics[CLASS_DISTANCE], "(prior.max_distance)"
    caption = scores.get_string_custom_property(CLASS_CAPTION)
    if not math.isfinite(distance.value):
        return (
            f"it is unknown whether the model still draws {caption!r} as before: its pictures have "
            f"no finite distance {setting}"
        )
    count = scores.get_int_custom_property(NUM_CLASS_PICTURES)
    return (
        f"the model does not draw {caption!r} as the base weights do: {count:,} pictures from the "
        f"same noise have moved by {distance.value:.2f} (95 % interval {distance.lower:.2f} to "
        f"{distance.upper:.2f}) of the usual distance between two of them; at most {most:g} is "
        f"allowed {setting}"
    )


def _not_lower(metrics: Metrics, scores: types.Artifact, asked_for: Mapping[str, float]) -> str:
    change, least = metrics[CHANGE], asked_for["min_improvement"]
    if round(_share(metrics, change.value), 5) == 0:
        return (
            f"the held-out loss equals that of {_baseline(scores)}, {metrics['loss'].value:.4f}: "
            "the model is no better"
        )
    said = f"the held-out loss {_moved(metrics)} against {_baseline(scores)} on {_pictures(scores)}"
    if change.value > 0:
        return said
    return (
        f"{said}, which is {-change.value:.6f}; it has to fall by more than {least:g} "
        "(evaluation.min_loss_improvement)"
    )


def _cannot_be_told(metrics: Metrics, scores: types.Artifact) -> str:
    return (
        f"it is unclear from {_pictures(scores)} whether the model is better: the loss "
        f"{_moved(metrics)} against {_baseline(scores)}"
    )


def _moved(metrics: Metrics) -> str:
    """How the loss changed, such as `falls by 24.6 % (95 % interval -60.2 % to +11.0 %)`."""
    share = _share(metrics, metrics[CHANGE].value)
    return f"{'rises' if share > 0 else 'falls'} by {_percent(metrics)}"


def _percent(metrics: Metrics) -> str:
    change = metrics[CHANGE]
    lower, upper = (_share(metrics, end) for end in (change.lower, change.upper))
    interval = (
        f"95 % interval {lower:+.1%} to {upper:+.1%}"
        if math.isfinite(lower) and math.isfinite(upper)
        else "one picture has no interval"
    )
    return f"{abs(_share(metrics, change.value)):.1%} ({interval})"


def _share(metrics: Metrics, change: float) -> float:
    return change / metrics["loss_baseline"].value


def _baseline(scores: types.Artifact) -> str:
    label: str = scores.get_string_custom_property("baseline")
    return label


def _pictures(scores: types.Artifact) -> str:
    count = scores.get_int_custom_property(NUM_PICTURES)
    return f"{count:,} held-out picture{'' if count == 1 else 's'}"


def _asked_for(config: tfma.EvalConfig) -> Mapping[str, float]:
    """The arguments of the metric `SURELY_LOWER`."""
    for metric in (metric for spec in config.metrics_specs for metric in spec.metrics):
        arguments: dict[str, Any] = json.loads(metric.config or "{}")
        if arguments.get("name") == SURELY_LOWER:
            return arguments
    raise ValueError(f"the configuration has no metric {SURELY_LOWER}; this is a bug")


def _tell(verdict: str, reasons: Sequence[str], *, pushed: bool) -> None:
    if verdict == BLESSED:
        logger.info("The model is blessed.")
        return
    first, *others = reasons
    if verdict == UNSURE:
        setting = "(evaluation.when_unsure)"
        then = f"The model is blessed anyway {setting}" if pushed else f"Not blessed {setting}"
        logger.warning("Unsure: %s. %s.", first, then)
        return
    more = f"; {len(others)} more on the evaluation's page" if others else ""
    logger.warning("Not blessed: %s%s.", first, more)


def _set_metrics(artifact: types.Artifact, found: Metrics) -> None:
    for name, metric in found.items():
        # These only serve TFMA's thresholds and do not measure the model.
        if name in _FOR_THRESHOLDS:
            continue
        values = {name: metric.value, f"{name}_lower": metric.lower, f"{name}_upper": metric.upper}
        for key, value in values.items():
            # SQLite, and so ML Metadata, has neither NaN nor infinity.
            if math.isfinite(value):
                artifact.set_float_custom_property(key, value)
