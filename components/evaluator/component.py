"""The Evaluator component."""

from __future__ import annotations

import json
from collections.abc import Sequence

import tensorflow_model_analysis as tfma
from tfx import types
from tfx.dsl.components.base import base_beam_component, executor_spec
from tfx.types import channel_utils, component_spec, standard_artifacts, standard_component_specs

from components.code_version import code_version
from components.evaluator import executor

_STOCK = standard_component_specs.EvaluatorSpec


class EvaluatorSpec(component_spec.ComponentSpec):
    """The used part of TFX's Evaluator spec, and the version of the code."""

    PARAMETERS = {
        "eval_config": component_spec.ExecutionParameter(type=tfma.EvalConfig),
        # JSON, which TFX's executor reads.
        "example_splits": component_spec.ExecutionParameter(type=str),
        "code_version": component_spec.ExecutionParameter(type=str),
    }
    INPUTS = {name: _STOCK.INPUTS[name] for name in ("examples", "model", "baseline_model")}
    OUTPUTS = _STOCK.OUTPUTS
    TYPE_ANNOTATION = _STOCK.TYPE_ANNOTATION


class Evaluator(base_beam_component.BaseBeamComponent):
    """TFX's Evaluator on LossScorer's scores, with reasons for its verdict.

    TFX's own executor computes, decides and writes as usual. This one adds the reasons and the
    metrics to its artifacts, and the code of our metrics to the cache key.

    Outputs:
      evaluation: `standard_artifacts.ModelEvaluation`, as TFMA writes it; `tfma.load_eval_result`
        reads it. Custom properties: every metric over all rows that is a finite number, and
        `<metric>_lower` and `<metric>_upper`, the ends of its 95 % interval.
      blessing: `standard_artifacts.ModelBlessing` with the same custom properties, the ones that
        TFX sets, and `verdict`: `blessed`; `refused`; or `unsure`, if neither is shown and the
        thresholds decide what happens. `reasons`: why it is not `blessed`, one per line, the
        worst first. `num_pictures`: the number of held-out pictures.
    """

    SPEC_CLASS = EvaluatorSpec
    EXECUTOR_SPEC = executor_spec.BeamExecutorSpec(executor.Executor)

    def __init__(
        self,
        examples: types.BaseChannel,
        model: types.BaseChannel,
        baseline_model: types.BaseChannel | None = None,
        *,
        eval_config: tfma.EvalConfig,
        splits: Sequence[str] = ("eval",),
    ) -> None:
        """Makes the component.

        Args:
            examples: LossScorer's scores.
            model: The candidate, which may be blessed.
            baseline_model: The same baseline as LossScorer's; may stay empty.
            eval_config: Configuration from `pipeline.evaluation.eval_config`.
            splits: Splits of the scores to read.
        """
        super().__init__(
            EvaluatorSpec(
                eval_config=eval_config,
                example_splits=json.dumps(list(splits)),
                code_version=code_version(executor.__name__),
                examples=examples,
                model=model,
                baseline_model=baseline_model,
                evaluation=channel_utils.as_channel([standard_artifacts.ModelEvaluation()]),
                blessing=channel_utils.as_channel([standard_artifacts.ModelBlessing()]),
            )
        )
