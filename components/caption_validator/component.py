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
    """ExampleValidator's, with what is needed to compare with a former dataset."""

    PARAMETERS = {
        **standard_component_specs.ExampleValidatorSpec.PARAMETERS,
        "fail_on_anomalies": component_spec.ExecutionParameter(type=int),
        # How far what may be from the former dataset, as JSON; only where there is one.
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
    """TFX's ExampleValidator, which also finds drift, and can stop the run.

    Outputs:
      anomalies: `standard_artifacts.ExampleAnomalies`, as ExampleValidator writes them. Custom
        property `num_anomalies`. Where there is a former dataset, what drifted away from it is
        among them, `drift.json` beside them says how far everything is, and there are `num_drifted`
        and `drift`, a few words; `compared_with`, where the former statistics are, if the step
        itself has found them.
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
            statistics: Of the examples.
            schema: What the statistics should be like.
            fail_on_anomalies: Whether an anomaly stops the run. It is logged in any case.
            exclude_splits: Splits that are not validated.
            examples: Of the dataset, to be held against the former one's.
            baseline_statistics: Of the former dataset; `None` where there is none to compare with.
            baseline_examples: The former dataset, for its rows; `None` where these are not needed.
            drift: For each of `components.caption_validator.drift.MEASURES` that is to be compared,
                how far it may be.
            fail_on_drift: Whether drift stops the run, though other anomalies do not.
            base_model: The model whose dataset is the former one, which is then looked up in
                `datasets_index`; may be empty when the step runs.
            datasets_index: Folder where every run notes what its dataset was like, directly below
                the one that all runs write to; "" where ML Metadata is asked before a run.
        """
        compares = not (baseline_statistics is None and base_model is None)
        # ExampleValidator's own would make the spec without the further parameters.
        base_component.BaseComponent.__init__(
            self,
            CaptionValidatorSpec(
                statistics=statistics,
                schema=schema,
                exclude_splits=json_utils.dumps(list(exclude_splits)),
                fail_on_anomalies=int(fail_on_anomalies),
                # Without a former dataset, how far one may be is no part of the cache key.
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
