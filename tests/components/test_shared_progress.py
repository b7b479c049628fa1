"""Progress of what Beam's workers do."""

from __future__ import annotations

import io
import logging
import sys

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions

from components.progress import SharedProgress
from storage import progress
from storage.progress import Work


class _Doing(beam.DoFn):
    def __init__(self, shown: SharedProgress) -> None:
        self._shown = shown

    def process(self, element: int):
        self._shown.update("doing")
        yield element


def test_threads_of_a_pipeline_count_together(caplog, monkeypatch) -> None:
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    monkeypatch.setattr(progress, "_SHORT_SECONDS", 0.0)
    caplog.set_level(logging.INFO, "storage.progress")
    options = PipelineOptions(["--direct_running_mode=multi_threading", "--direct_num_workers=2"])
    shown = SharedProgress(Work("doing", 40, "things"))
    with shown.shown(), beam.Pipeline(options=options) as pipeline:
        things = pipeline | beam.Create(range(40)) | beam.Reshuffle()
        things | beam.ParDo(_Doing(shown))
    told = [message.partition(" things")[0] for message in caplog.messages]
    assert told[-1] == "doing: 40 of 40"
    assert len(told) == 10


def test_a_worker_elsewhere_counts_in_silence(caplog) -> None:
    caplog.set_level(logging.INFO)
    SharedProgress(Work("doing", 1, "things")).update("doing")
    assert not caplog.messages
