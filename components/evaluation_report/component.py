"""The EvaluationReport component."""

from __future__ import annotations

from tfx import types
from tfx.dsl.components.base import base_component, executor_spec
from tfx.types import channel_utils, component_spec, standard_artifacts

from components import artifacts
from components.code_version import code_version
from components.evaluation_report import executor


class EvaluationReportSpec(component_spec.ComponentSpec):
    """Inputs, outputs and settings of EvaluationReport."""

    PARAMETERS = {
        "base_weights": component_spec.ExecutionParameter(type=str),
        "code_version": component_spec.ExecutionParameter(type=str),
    }
    INPUTS = {
        "examples": component_spec.ChannelParameter(type=standard_artifacts.Examples),
        "latents": component_spec.ChannelParameter(type=standard_artifacts.Examples),
        "model": component_spec.ChannelParameter(type=standard_artifacts.Model),
        "model_run": component_spec.ChannelParameter(type=standard_artifacts.ModelRun),
        "baseline_model": component_spec.ChannelParameter(
            type=standard_artifacts.Model, optional=True
        ),
        "scores": component_spec.ChannelParameter(type=standard_artifacts.Examples),
        "evaluation": component_spec.ChannelParameter(type=standard_artifacts.ModelEvaluation),
        "blessing": component_spec.ChannelParameter(type=standard_artifacts.ModelBlessing),
    }
    OUTPUTS = {"report": component_spec.ChannelParameter(type=artifacts.EvaluationReport)}


class EvaluationReport(base_component.BaseComponent):
    """Shows the results of an evaluation on one page.

    The numbers come from the Evaluator; averages are TFMA's and are not computed again here.

    Outputs:
      report: `components.EvaluationReport` with
        `evaluation.html`: the verdict and its reasons; every validation prompt drawn by the base
        weights, by the model that this one was compared with, and by this one, from the same
        noise; losses by timestep and by caption length with their intervals; the training
        curve; the held-out examples with the highest and the lowest loss, and the model's
        reconstructions of them. It is one file that needs no network and no script;
        `before_after.png`: the prompts drawn by the base weights and by the candidate;
        `loss_curve.png`: the training loss and the two held-out losses;
        `summary.json`: the numbers.
    """

    SPEC_CLASS = EvaluationReportSpec
    EXECUTOR_SPEC = executor_spec.ExecutorClassSpec(executor.Executor)

    def __init__(
        self,
        examples: types.BaseChannel,
        latents: types.BaseChannel,
        model: types.BaseChannel,
        model_run: types.BaseChannel,
        scores: types.BaseChannel,
        evaluation: types.BaseChannel,
        blessing: types.BaseChannel,
        baseline_model: types.BaseChannel | None = None,
        *,
        base_weights: str = "default",
    ) -> None:
        """Makes the component.

        Args:
            examples: Output of CaptionExampleGen.
            latents: Output of LatentGen.
            model: The candidate.
            model_run: Logs and pictures of its training.
            scores: Output of LossScorer.
            evaluation: The Evaluator's metrics.
            blessing: The Evaluator's blessing.
            baseline_model: The same baseline as LossScorer's; may stay empty.
            base_weights: Source of the base weights, which the preset's numerics depend on.
        """
        super().__init__(
            EvaluationReportSpec(
                base_weights=base_weights,
                code_version=code_version(executor.__name__),
                examples=examples,
                latents=latents,
                model=model,
                model_run=model_run,
                baseline_model=baseline_model,
                scores=scores,
                evaluation=evaluation,
                blessing=blessing,
                report=channel_utils.as_channel([artifacts.EvaluationReport()]),
            )
        )
