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
    """Says whether a dataset's content is another than in the last run that came to its end.

    Never to be taken from a cache: what it looks at is no input.

    Outputs:
      change: `simple_artifacts.File` without a file, with the custom properties `changed` (1 or 0),
        `content`, the fingerprint, and `content_of`, the dataset's place.
    """

    SPEC_CLASS = DatasetChangeSpec
    EXECUTOR_SPEC = executor_spec.ExecutorClassSpec(executors.ChangeExecutor)

    def __init__(self, dataset: str, spec: DatasetSpec, memory: str) -> None:
        """Makes the component.

        Args:
            dataset: Where it lies; may be a runtime parameter.
            spec: What is read of it, and how; its place counts for nothing here.
            memory: Path or address of the file in which `DatasetDone` notes what was read.
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
    """Notes that a run with this content has come to its end, which is the pusher's.

    Outputs:
      done: The same, of what was noted.
    """

    SPEC_CLASS = DatasetDoneSpec
    EXECUTOR_SPEC = executor_spec.ExecutorClassSpec(executors.DoneExecutor)

    def __init__(
        self, change: types.BaseChannel, pushed_model: types.BaseChannel, memory: str
    ) -> None:
        """Makes the component.

        Args:
            change: What DatasetChange found when the run began.
            pushed_model: What the last step left, whether or not it pushed.
            memory: As DatasetChange has it.
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
