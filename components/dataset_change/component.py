"""The components DatasetChange and DatasetDone."""

from __future__ import annotations

import dataclasses
import json

from tfx import types
from tfx.dsl.components.base import base_component, executor_spec
from tfx.types import channel_utils, component_spec, standard_artifacts
from tfx.types.experimental.simple_artifacts import File

from components.caption_example_gen.sources import DatasetSpec
from components.code_version import code_version
from components.dataset_change import executors


class DatasetChangeSpec(component_spec.ComponentSpec):
    """Output and settings of DatasetChange."""

    PARAMETERS = {
        "dataset": component_spec.ExecutionParameter(type=str),
        # The rest of the `DatasetSpec`, as JSON.
        "spec": component_spec.ExecutionParameter(type=str),
        "memory": component_spec.ExecutionParameter(type=str),
        "code_version": component_spec.ExecutionParameter(type=str),
    }
    INPUTS: dict[str, component_spec.ChannelParameter] = {}
    OUTPUTS = {"change": component_spec.ChannelParameter(type=File)}


class DatasetChange(base_component.BaseComponent):
    """Tells whether a dataset's content has changed since the last completed run.

    It must never be taken from a cache: the dataset that it looks at is not an input.

    Outputs:
      change: `simple_artifacts.File` without a file, with the custom properties `changed` (1 or 0),
        `content`, the fingerprint, and `content_of`, the dataset's path or address.
    """

    SPEC_CLASS = DatasetChangeSpec
    EXECUTOR_SPEC = executor_spec.ExecutorClassSpec(executors.ChangeExecutor)

    def __init__(self, dataset: str, spec: DatasetSpec, memory: str) -> None:
        """Makes the component.

        Args:
            dataset: Path or address of the dataset; may be a runtime parameter.
            spec: What is read from the dataset, and how; its `dataset` is ignored here.
            memory: Path or address of the file in which `DatasetDone` records what was read.
        """
        how = dataclasses.asdict(spec)
        del how["dataset"]
        super().__init__(
            DatasetChangeSpec(
                dataset=dataset,
                spec=json.dumps(how, sort_keys=True),
                memory=memory,
                code_version=code_version(executors.__name__),
                change=channel_utils.as_channel([File()]),
            )
        )


class DatasetDoneSpec(component_spec.ComponentSpec):
    """Inputs, output and settings of DatasetDone."""

    PARAMETERS = {
        "memory": component_spec.ExecutionParameter(type=str),
        "code_version": component_spec.ExecutionParameter(type=str),
    }
    INPUTS = {
        "change": component_spec.ChannelParameter(type=File),
        "pushed_model": component_spec.ChannelParameter(type=standard_artifacts.PushedModel),
    }
    OUTPUTS = {"done": component_spec.ChannelParameter(type=File)}


class DatasetDone(base_component.BaseComponent):
    """Records that a run with this content is complete, once the pusher has ended.

    Outputs:
      done: `simple_artifacts.File` without a file, with what was recorded as custom properties.
    """

    SPEC_CLASS = DatasetDoneSpec
    EXECUTOR_SPEC = executor_spec.ExecutorClassSpec(executors.DoneExecutor)

    def __init__(
        self, change: types.BaseChannel, pushed_model: types.BaseChannel, memory: str
    ) -> None:
        """Makes the component.

        Args:
            change: Output of DatasetChange from the start of the run.
            pushed_model: Output of the last step, whether or not it pushed.
            memory: The same as for DatasetChange.
        """
        super().__init__(
            DatasetDoneSpec(
                change=change,
                pushed_model=pushed_model,
                memory=memory,
                code_version=code_version(executors.__name__),
                done=channel_utils.as_channel([File()]),
            )
        )
