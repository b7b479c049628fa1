"""The work of Evaluator: TFX's own, and then the reasons for its verdict."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from typing import Any

import tensorflow_model_analysis as tfma
from tfx import types
from tfx.components.evaluator import executor as tfx_executor
from tfx.components.util import model_utils
from tfx.types import artifact_utils

# TFMA imports it by a name in its configuration; named here, its code is in the cache key.
from components.evaluator import metrics as _metrics  # noqa: F401
from components.evaluator.results import ALL, Metrics, read_metrics, slice_of

# Metrics that thresholds are put on.
CHANGE = "loss_delta"
CHANGE_UPPER = "loss_delta_upper"
INCREASE_UPPER = "loss_increase_upper"

REASONS = "reasons"

logger = logging.getLogger(__name__)


# A subclass of TFX's, or Vertex would not write a blessing that its resolver understands.
class Executor(tfx_executor.Executor):
    """Evaluates with TFX's own executor, and says why a model is not blessed."""

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
        found = read_metrics(evaluation.uri).get(ALL, {})
        for artifact in (evaluation, blessing):
            _set_metrics(artifact, found)
        if model_utils.is_model_blessed(blessing):
            blessing.set_string_custom_property(REASONS, "")
            logger.info("The model is blessed.")
            return
        reasons = list(why_not(tfma.load_validation_result(evaluation.uri), scores))
        blessing.set_string_custom_property(REASONS, "\n".join(reasons))
        for reason in reasons:
            logger.warning("Not blessed: %s.", reason)


def why_not(result: tfma.proto.ValidationResult, scores: types.Artifact) -> Iterator[str]:
    """Why a model is not blessed, in words for people.

    What makes all comparisons void is said instead of the thresholds that fail because of it.

    Args:
        result: What TFMA found, with a failure.
        scores: LossScorer's output.
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
    baseline = scores.get_string_custom_property("baseline")
    for validation in result.metric_validations_per_slice:
        for failure in validation.failures:
            yield _failed(failure, slice_of(validation.slice_key), baseline)


def _failed(failure: Any, key: tuple[tuple[str, str], ...], baseline: str) -> str:
    name = failure.metric_key.name
    value = failure.metric_value.double_value.value
    # The bound is the float next to what was set.
    bound = round(failure.metric_threshold.value_threshold.upper_bound.value, 12)
    where = f" at timesteps {key[0][1]}" if key else ""
    if failure.message.strip() or math.isnan(value):
        return f"{name}{where} cannot be told: the held-out pictures are too few for an interval"
    if name == CHANGE:
        return (
            f"the held-out loss {'rises' if value > 0 else 'falls'} by {abs(value):.6f} against "
            f"{baseline}{where}, and has to fall by more than {-bound:g} "
            "(evaluation.min_loss_improvement)"
        )
    if name == CHANGE_UPPER:
        return (
            f"the 95 % interval of the change in loss{where} reaches {value:+.6f}, and may reach "
            f"{bound:+g} (evaluation.max_loss_regression)"
        )
    if name == INCREASE_UPPER:
        return (
            f"the loss{where} may be {value:.1%} above that of {baseline} (upper end of the 95 % "
            f"interval), and no more than {bound:.1%} is allowed "
            "(evaluation.max_stratum_regression)"
        )
    return f"{name}{where} is {value:g}, and may be {bound:g}"


def _set_metrics(artifact: types.Artifact, found: Metrics) -> None:
    for name, metric in found.items():
        values = {name: metric.value, f"{name}_lower": metric.lower, f"{name}_upper": metric.upper}
        for key, value in values.items():
            # SQLite, and so ML Metadata, has no NaN and no infinity.
            if math.isfinite(value):
                artifact.set_float_custom_property(key, value)
