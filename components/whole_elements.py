"""Keeps the elements that workers of Beam's local runner exchange in one piece."""

from __future__ import annotations

import apache_beam as beam
from apache_beam.runners.portability.fn_api_runner import worker_handlers
from tfx.dsl.components.base import base_beam_executor


class WholeElementsExecutor(base_beam_executor.BaseBeamExecutor):
    """An executor whose Beam workers send a buffer when it is full or finished, not on a timer.

    With `--direct_running_mode=multi_threading` and any number of workers, a Beam thread sends and
    empties each buffer every second, while another thread may be in the middle of writing an
    element to it (up to Beam 2.77 at least). The element is cut in two, and both halves are read as
    elements: this gives decoding errors, or lists whose garbage length asks for gigabytes. Anything
    written between sending and emptying is lost. No flag switches this off; a limit of zero does.
    """

    def _make_beam_pipeline(self) -> beam.Pipeline:
        worker_handlers.DATA_BUFFER_TIME_LIMIT_MS = 0
        return super()._make_beam_pipeline()
