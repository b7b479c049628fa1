"""The decision whether a model is good enough: TFX's stock Evaluator on LossScorer's scores.

The scores are predictions already made, so the Evaluator loads no model. Candidate and baseline
were scored on the same noise; the mean of the paired differences decides, against the base weights
in a first run and against the latest blessed model later.
"""

from __future__ import annotations

import math

import tensorflow_model_analysis as tfma
from google.protobuf import text_format
from tfx.components import Evaluator
from tfx.dsl.components.common.resolver import Resolver, ResolverStrategy
from tfx.types import BaseChannel, Channel, standard_artifacts

from pipeline.baseline import BLESSING, CANDIDATE, MODEL, LatestBlessedBeforeCandidate

# One model alone, although there is a baseline: beside a second one, TFMA looks for the threshold
# of `Mean` under a model's name that `Mean` does not give its results, and never blesses.
# Confidence intervals are off: their default method, the jackknife, changes the point values.
_EVAL_CONFIG = """
model_specs {
  name: "candidate" prediction_key: "loss" label_key: "label" model_type: "materialized_prediction"
}
slicing_specs {}
slicing_specs { feature_keys: "timestep_bucket" }
metrics_specs {
  metrics { class_name: "ExampleCount" }
  metrics { class_name: "MeanPrediction" config: '"name": "loss"' }
  metrics {
    class_name: "Mean"
    config: '"name": "loss_baseline", "feature_key_path": ["features", "loss_baseline"]'
  }
  metrics {
    class_name: "Mean"
    config: '"name": "loss_delta", "feature_key_path": ["features", "loss_delta"]'
  }
}
options { include_default_metrics { value: false } }
"""


def eval_config(min_loss_improvement: float = 0.0) -> tfma.EvalConfig:
    """What the Evaluator computes, and when it blesses.

    Metrics, over all rows and for each stratum of timesteps: the number of rows
    (`example_count`), the mean losses of the candidate (`loss`) and of what it was compared with
    (`loss_baseline`), and the mean of the paired differences (`loss_delta`).

    Args:
        min_loss_improvement: The candidate is blessed only if the mean of `loss_delta` over all
            rows is below minus this number. A mean that is not a number never is.

    Raises:
        ValueError: `min_loss_improvement` is not a finite number.
    """
    if not math.isfinite(min_loss_improvement):
        raise ValueError(
            f"min_loss_improvement {min_loss_improvement} is impossible: it must be a finite number"
        )
    config = text_format.Parse(_EVAL_CONFIG, tfma.EvalConfig())
    # TFMA's bound is inclusive, and an equal model is no better one.
    bound = math.nextafter(-min_loss_improvement, -math.inf)
    loss_delta = config.metrics_specs[0].metrics[-1]
    # A threshold without slices would hold for every stratum, too.
    threshold = loss_delta.per_slice_thresholds.add()
    threshold.slicing_specs.add()
    threshold.threshold.value_threshold.upper_bound.value = bound
    return config


def baseline_node(
    candidate: BaseChannel, strategy: type[ResolverStrategy] = LatestBlessedBeforeCandidate
) -> Resolver:
    """Finds the model that the candidate is compared with; its output `model` may be empty.

    Args:
        candidate: The model that was just trained.
        strategy: How; on Vertex `LatestBlessedModelStrategy`, the only one it knows.
    """
    channels: dict[str, BaseChannel] = {
        MODEL: Channel(type=standard_artifacts.Model),
        BLESSING: Channel(type=standard_artifacts.ModelBlessing),
    }
    if strategy is LatestBlessedBeforeCandidate:
        channels[CANDIDATE] = candidate
    return Resolver(strategy, None, **channels).with_id("LatestBlessedModel")


def evaluator_node(
    scores: BaseChannel,
    model: BaseChannel,
    baseline_model: BaseChannel,
    config: tfma.EvalConfig,
) -> Evaluator:
    """The stock Evaluator on scores.

    Args:
        scores: LossScorer's output.
        model: The candidate, which the blessing is about.
        baseline_model: What LossScorer was given, too; may stay empty.
        config: From `eval_config`.
    """
    return Evaluator(
        examples=scores, model=model, baseline_model=baseline_model, eval_config=config
    )
