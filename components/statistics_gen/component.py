"""The StatisticsGen component."""

from __future__ import annotations

from tfx import components
from tfx.dsl.components.base import executor_spec

from components.statistics_gen.executor import Executor


class StatisticsGen(components.StatisticsGen):
    """TFX's own component with our executor; see there."""

    EXECUTOR_SPEC = executor_spec.BeamExecutorSpec(Executor)
