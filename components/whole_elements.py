"""Elements of Beam's local runner, sent whole between its workers."""

from __future__ import annotations

import apache_beam as beam
from apache_beam.runners.portability.fn_api_runner import worker_handlers
from tfx.dsl.components.base import base_beam_executor


class WholeElementsExecutor(base_beam_executor.BaseBeamExecutor):
    """An executor whose Beam workers send what they write when it is much or all, not by the clock.

    With `--direct_running_mode=multi_threading`, and any number of workers, a thread of Beam's
    sends and empties each buffer every second, while another one may be in the middle of writing
    an element to it (up to Beam 2.77 at least). The element is cut in two, and both halves are read
    as elements: errors of decoding, or lists of as many gigabytes as a length made of garbage says.
    What is written between sending and emptying is lost. No flag switches this off; zero does.
    """

    def _make_beam_pipeline(self) -> beam.Pipeline:
        worker_handlers.DATA_BUFFER_TIME_LIMIT_MS = 0
        return super()._make_beam_pipeline()
