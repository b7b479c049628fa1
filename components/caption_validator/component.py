"""The CaptionValidator component."""

from __future__ import annotations

from collections.abc import Sequence

from tfx import types
from tfx.components import ExampleValidator
from tfx.dsl.components.base import base_component, executor_spec
from tfx.types import component_spec, standard_artifacts, standard_component_specs
from tfx.utils import json_utils

from components.caption_validator import executor
from components.code_version import code_version


class CaptionValidatorSpec(standard_component_specs.ExampleValidatorSpec):
    """ExampleValidator's, with two parameters more."""

    PARAMETERS = {
        **standard_component_specs.ExampleValidatorSpec.PARAMETERS,
        "fail_on_anomalies": component_spec.ExecutionParameter(type=int),
        "code_version": component_spec.ExecutionParameter(type=str),
    }


class CaptionValidator(ExampleValidator):
    """TFX's ExampleValidator, which can also stop the run.

    Outputs:
      anomalies: `standard_artifacts.ExampleAnomalies`, as ExampleValidator writes them. Custom
        property `num_anomalies`.
    """

    SPEC_CLASS = CaptionValidatorSpec
    EXECUTOR_SPEC = executor_spec.ExecutorClassSpec(executor.Executor)

    def __init__(
        self,
        statistics: types.BaseChannel,
        schema: types.BaseChannel,
        fail_on_anomalies: bool = False,
        exclude_splits: Sequence[str] = (),
    ) -> None:
        """Makes the component.

        Args:
            statistics: Of the examples.
            schema: What the statistics should be like.
            fail_on_anomalies: Whether an anomaly stops the run. It is logged in any case.
            exclude_splits: Splits that are not validated.
        """
        # ExampleValidator's own would make the spec without the further parameters.
        base_component.BaseComponent.__init__(
            self,
            CaptionValidatorSpec(
                statistics=statistics,
                schema=schema,
                exclude_splits=json_utils.dumps(list(exclude_splits)),
                fail_on_anomalies=int(fail_on_anomalies),
                code_version=code_version(executor.__name__),
                anomalies=types.Channel(type=standard_artifacts.ExampleAnomalies),
            ),
        )
