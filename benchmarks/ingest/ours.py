"""Reads a dataset with CaptionExampleGen's executor; prints its cost as one line of JSON."""

from __future__ import annotations

import argparse
import os
import tempfile
import time

os.environ["TF_USE_LEGACY_KERAS"] = "0"

from tfx.dsl.components.base import base_beam_executor
from tfx.types import standard_artifacts

from benchmarks.ingest.measured import ChildrenMemory, print_result
from components import RejectedRows
from components.caption_example_gen import executor, sources
from components.caption_example_gen.component import CaptionExampleGen
from components.caption_example_gen.rows import IGNORE, NEAR_DUPLICATES


def main() -> None:
    """The command line: dataset folder, --workers, --near-duplicates."""
    parser = argparse.ArgumentParser()
    parser.add_argument("dataset")
    parser.add_argument("--workers", type=int, default=1)
    # `make bench-ingest` has a few hundred pictures, each many times, which would all be in groups.
    parser.add_argument("--near-duplicates", choices=NEAR_DUPLICATES, default=IGNORE)
    arguments = parser.parse_args()
    since, processor_since = time.monotonic(), time.process_time()
    spec = sources.resolve_dataset(sources.DatasetSpec(arguments.dataset))
    component = CaptionExampleGen(
        spec.dataset,
        sources.dataset_fingerprint(spec),
        near_duplicates=arguments.near_duplicates,
    )
    context = base_beam_executor.BaseBeamExecutor.Context(
        beam_pipeline_args=[
            "--direct_running_mode=multi_threading",
            f"--direct_num_workers={arguments.workers}",
            "--sdk_container_image=none",
        ]
    )
    examples, rejects = standard_artifacts.Examples(), RejectedRows()
    with tempfile.TemporaryDirectory(dir=os.path.dirname(arguments.dataset)) as folder:
        examples.uri, rejects.uri = (
            os.path.join(folder, "examples"),
            os.path.join(folder, "rejects"),
        )
        with ChildrenMemory() as children:
            executor.Executor(context).Do(
                {}, {"examples": [examples], "rejects": [rejects]}, dict(component.exec_properties)
            )
            seconds = time.monotonic() - since
            processor_seconds = time.process_time() - processor_since
    counts = [examples.get_int_custom_property(f"num_{split}") for split in executor.SPLITS]
    print_result(sum(counts), seconds, children.peak_mb, processor_seconds=processor_seconds)


if __name__ == "__main__":
    main()
