"""The work of StatisticsGen."""

from __future__ import annotations

from tfx.components.statistics_gen import executor

from components.whole_elements import WholeElementsExecutor


class Executor(WholeElementsExecutor, executor.Executor):
    """TFX's own executor, with nothing cut or lost between Beam's workers."""
