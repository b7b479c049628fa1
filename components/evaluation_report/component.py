"""The EvaluationReport component."""

from __future__ import annotations

from tfx import types
from tfx.dsl.components.base import base_component, executor_spec
from tfx.types import channel_utils, component_spec, standard_artifacts

from components import artifacts
from components.code_version import code_version
from components.evaluation_report import executor

_CODE = ("components.evaluation_report", "components.tfrecords")


class EvaluationReportSpec(component_spec.ComponentSpec):
    """Inputs, outputs and settings of EvaluationReport."""

    PARAMETERS = {"code_version": component_spec.ExecutionParameter(type=str)}
    INPUTS = {
        "model": component_spec.ChannelParameter(type=standard_artifacts.Model),
        "model_run": component_spec.ChannelParameter(type=standard_artifacts.ModelRun),
        "scores": component_spec.ChannelParameter(type=standard_artifacts.Examples),
        "blessing": component_spec.ChannelParameter(type=standard_artifacts.ModelBlessing),
    }
    OUTPUTS = {"report": component_spec.ChannelParameter(type=artifacts.EvaluationReport)}


class EvaluationReport(base_component.BaseComponent):
    """Draws what an evaluation found.

    Outputs:
      report: `components.EvaluationReport` with
        `before_after.png`: each validation prompt drawn by the base weights and by the candidate's
        exported SavedModels, from the same noise;
        `loss_curve.png`: the training loss and the two held-out losses;
        `loss_by_timestep.png`: the held-out losses by timestep;
        `summary.json`: the numbers.
    """

    SPEC_CLASS = EvaluationReportSpec
    EXECUTOR_SPEC = executor_spec.ExecutorClassSpec(executor.Executor)

    def __init__(
        self,
        model: types.BaseChannel,
        model_run: types.BaseChannel,
        scores: types.BaseChannel,
        blessing: types.BaseChannel,
    ) -> None:
        """Makes the component.

        Args:
            model: The candidate.
            model_run: Its training's logs and pictures.
            scores: What LossScorer made of it.
            blessing: What the Evaluator says of it.
        """
        super().__init__(
            EvaluationReportSpec(
                code_version=code_version(*_CODE),
                model=model,
                model_run=model_run,
                scores=scores,
                blessing=blessing,
                report=channel_utils.as_channel([artifacts.EvaluationReport()]),
            )
        )
