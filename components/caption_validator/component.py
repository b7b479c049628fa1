"""The CaptionValidator component."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from tfx import types
from tfx.components import ExampleValidator
from tfx.dsl.components.base import base_component, executor_spec
from tfx.types import component_spec, standard_artifacts, standard_component_specs
from tfx.utils import json_utils

from components.caption_validator import executor
from components.code_version import code_version


class CaptionValidatorSpec(standard_component_specs.ExampleValidatorSpec):
    """ExampleValidator's spec, with parameters for the comparison with a former dataset."""

    PARAMETERS = {
        **standard_component_specs.ExampleValidatorSpec.PARAMETERS,
        "fail_on_anomalies": component_spec.ExecutionParameter(type=int),
        # By measure, the allowed distance from the former dataset, as JSON; only if there is one.
        "drift": component_spec.ExecutionParameter(type=str, optional=True),
        "fail_on_drift": component_spec.ExecutionParameter(type=int, optional=True),
        "datasets_index": component_spec.ExecutionParameter(type=str, optional=True),
        "code_version": component_spec.ExecutionParameter(type=str),
    }
    INPUTS = {
        **standard_component_specs.ExampleValidatorSpec.INPUTS,
        "examples": component_spec.ChannelParameter(
            type=standard_artifacts.Examples, optional=True
        ),
        "baseline_statistics": component_spec.ChannelParameter(
            type=standard_artifacts.ExampleStatistics, optional=True
        ),
        "baseline_examples": component_spec.ChannelParameter(
            type=standard_artifacts.Examples, optional=True
        ),
        "base_model": component_spec.ChannelParameter(type=standard_artifacts.Model, optional=True),
    }


class CaptionValidator(ExampleValidator):
    """TFX's ExampleValidator, which also finds drift and can stop the run.

    Outputs:
      anomalies: `standard_artifacts.ExampleAnomalies`, as ExampleValidator writes them. Custom
        property `num_anomalies`. If there is a former dataset, they include drifted features,
        `drift.json` beside them has the distance of every feature, and there are `num_drifted`
        and `drift`, a short summary; and `compared_with`, the location of the former statistics,
        if the component itself found them.
    """

    SPEC_CLASS = CaptionValidatorSpec
    EXECUTOR_SPEC = executor_spec.ExecutorClassSpec(executor.Executor)

    def __init__(
        self,
        statistics: types.BaseChannel,
        schema: types.BaseChannel,
        fail_on_anomalies: bool = False,
        exclude_splits: Sequence[str] = (),
        examples: types.BaseChannel | None = None,
        baseline_statistics: types.BaseChannel | None = None,
        baseline_examples: types.BaseChannel | None = None,
        drift: Mapping[str, float] | None = None,
        fail_on_drift: bool = False,
        base_model: types.BaseChannel | None = None,
        datasets_index: str = "",
    ) -> None:
        """Makes the component.

        Args:
            statistics: Statistics of the examples.
            schema: The schema that the statistics should match.
            fail_on_anomalies: Whether an anomaly stops the run. It is logged in any case.
            exclude_splits: Splits that are not validated.
            examples: Examples of the dataset, to compare with the former ones.
            baseline_statistics: Statistics of the former dataset; `None` if there is none to
                compare with.
            baseline_examples: The former dataset, for its rows; `None` if these are not needed.
            drift: For each of `components.caption_validator.drift.MEASURES` to compare, the
                allowed distance.
            fail_on_drift: Whether drift stops the run even if other anomalies do not.
            base_model: The model whose dataset is the former one, which is then looked up in
                `datasets_index`; may be empty when the component runs.
            datasets_index: Folder where every run records its dataset, directly below the folder
                that all runs write to; "" if ML Metadata is queried before a run.
        """
        compares = not (baseline_statistics is None and base_model is None)
        # ExampleValidator's constructor would make the spec without the additional parameters.
        base_component.BaseComponent.__init__(
            self,
            CaptionValidatorSpec(
                statistics=statistics,
                schema=schema,
                exclude_splits=json_utils.dumps(list(exclude_splits)),
                fail_on_anomalies=int(fail_on_anomalies),
                # Without a former dataset, the allowed distances are not part of the cache key.
                drift=json.dumps(drift or {}, sort_keys=True) if compares else None,
                fail_on_drift=int(fail_on_drift) if compares else None,
                datasets_index=datasets_index or None,
                examples=examples if compares or datasets_index else None,
                baseline_statistics=baseline_statistics,
                baseline_examples=baseline_examples if compares else None,
                base_model=base_model if datasets_index else None,
                code_version=code_version(executor.__name__),
                anomalies=types.Channel(type=standard_artifacts.ExampleAnomalies),
            ),
        )
