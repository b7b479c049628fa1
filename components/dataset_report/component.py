"""The DatasetReport component."""

from __future__ import annotations

from tfx import types
from tfx.dsl.components.base import base_component, executor_spec
from tfx.types import channel_utils, component_spec, standard_artifacts

from components import artifacts
from components.code_version import code_version
from components.dataset_report import executor


class DatasetReportSpec(component_spec.ComponentSpec):
    """Inputs, outputs and settings of DatasetReport."""

    PARAMETERS = {"code_version": component_spec.ExecutionParameter(type=str)}
    INPUTS = {
        "examples": component_spec.ChannelParameter(type=standard_artifacts.Examples),
        "statistics": component_spec.ChannelParameter(type=standard_artifacts.ExampleStatistics),
        "schema": component_spec.ChannelParameter(type=standard_artifacts.Schema),
        "anomalies": component_spec.ChannelParameter(type=standard_artifacts.ExampleAnomalies),
        "rejects": component_spec.ChannelParameter(type=artifacts.RejectedRows),
    }
    OUTPUTS = {"report": component_spec.ChannelParameter(type=artifacts.DatasetReport)}


class DatasetReport(base_component.BaseComponent):
    """Shows what a dataset is like, on one page.

    Outputs:
      report: `components.DatasetReport` with `dataset.html`: what TFDV found of captions and
        pictures, sample pictures, the captions that are cut, anomalies and rejected rows. One
        file, which needs no network and no script.
    """

    SPEC_CLASS = DatasetReportSpec
    EXECUTOR_SPEC = executor_spec.ExecutorClassSpec(executor.Executor)

    def __init__(
        self,
        examples: types.BaseChannel,
        statistics: types.BaseChannel,
        schema: types.BaseChannel,
        anomalies: types.BaseChannel,
        rejects: types.BaseChannel,
    ) -> None:
        """Makes the component.

        Args:
            examples: CaptionExampleGen's.
            statistics: StatisticsGen's of them.
            schema: What the statistics were validated against.
            anomalies: What came of it.
            rejects: The rows that CaptionExampleGen set aside.
        """
        super().__init__(
            DatasetReportSpec(
                code_version=code_version(executor.__name__),
                examples=examples,
                statistics=statistics,
                schema=schema,
                anomalies=anomalies,
                rejects=rejects,
                report=channel_utils.as_channel([artifacts.DatasetReport()]),
            )
        )
