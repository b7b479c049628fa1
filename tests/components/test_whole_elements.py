"""Workers in threads do not cut elements in two, which Beam's own do by the clock."""

from __future__ import annotations

import time

import apache_beam as beam
import pytest
from apache_beam.runners.portability.fn_api_runner import execution, worker_handlers
from tfx.dsl.components.base.base_beam_executor import BaseBeamExecutor

from components.caption_example_gen.executor import Executor as CaptionExampleGen
from components.evaluator.executor import Executor as Evaluator
from components.latent_gen.executor import Executor as LatentGen
from components.loss_scorer.executor import Executor as LossScorer
from components.statistics_gen.executor import Executor as StatisticsGen


class _Slow:
    """Takes longer to write than Beam waits until it flushes what is written."""

    def __reduce__(self):
        time.sleep(0.3)
        return _Slow, ()


@pytest.mark.parametrize(
    ("executor", "workers"),
    [
        (CaptionExampleGen, 2),
        (StatisticsGen, 2),
        (LatentGen, 2),
        (LossScorer, 2),
        (Evaluator, 1),
        (Evaluator, 2),
    ],
)
def test_an_element_that_is_long_in_writing_is_sent_whole(monkeypatch, tmp_path, executor, workers):
    monkeypatch.setattr(worker_handlers, "DATA_BUFFER_TIME_LIMIT_MS", 100)
    sent = []
    # Only looked at: half an element, read as one, may ask for all the memory that there is.
    monkeypatch.setattr(execution.GroupingBuffer, "append", lambda _, data: sent.append(data))
    arguments = [
        "--direct_running_mode=multi_threading",
        f"--direct_num_workers={workers}",
        # As `beam_pipeline_args` of the local runner says: or TFX packs its code.
        "--sdk_container_image=none",
    ]
    context = BaseBeamExecutor.Context(beam_pipeline_args=arguments, tmp_dir=str(tmp_path))
    with executor(context)._make_beam_pipeline() as pipeline:
        (
            pipeline
            | beam.Create([None], reshuffle=False)
            | beam.Map(lambda _: (0, _Slow()))
            | beam.GroupByKey()
        )
    assert len(sent) == 1
