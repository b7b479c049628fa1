"""Cost of a few more pictures in LatentGen, compared with encoding all: `make bench-taking-over`.

Encodes a generated set, then the set with some more pictures, once taking over the existing latents
and once from scratch, with the preset `tiny`. Prints the times as Markdown, also processor times,
which other programs do not affect, and whether the bytes are the same.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import time
from pathlib import Path

from tfx.dsl.components.base import base_beam_executor
from tfx.types import artifact, channel_utils, standard_artifacts

from benchmarks.ingest.pictures import write_dataset
from components import RejectedRows
from components.caption_example_gen import CaptionExampleGen, sources
from components.caption_example_gen import executor as ingest
from components.caption_example_gen.rows import IGNORE
from components.latent_gen import LatentGen
from components.latent_gen import executor as latent_gen
from pipeline.local_runner import beam_pipeline_args
from storage.filesystem import content_digest
from trainer.presets import get_preset
from trainer.weights.base_model import DEFAULT_WEIGHTS, BaseModel

_PRESET = get_preset("tiny")


def main() -> None:
    """The command line; see its help."""
    parser = argparse.ArgumentParser(prog="make bench-taking-over", description=__doc__)
    parser.add_argument("--pictures", type=int, default=2000, help="pictures at first")
    parser.add_argument("--more", type=int, default=20, help="pictures to add")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    with tempfile.TemporaryDirectory() as folder:
        _measure(Path(folder), arguments.pictures, arguments.more)


def _measure(root: Path, pictures: int, more: int) -> None:
    index = str(root / "latents_index")
    first, grown = (_ingested(root, count) for count in (pictures, pictures + more))
    print("run | pictures encoded | taken over | seconds | processor seconds", flush=True)
    made = {}
    for name, examples, folder in (
        ("the first", first, index),
        (f"{more} more", grown, index),
        ("from nothing", grown, ""),
    ):
        since, processor_since = time.monotonic(), time.process_time()
        latents = _encoded(root / name, examples, folder)
        seconds = time.monotonic() - since
        processor_seconds = time.process_time() - processor_since
        encoded, taken = (
            latents.get_int_custom_property(f"pictures_{what}")
            for what in ("encoded", "taken_over")
        )
        counts = f"{encoded:,} | {taken:,}"
        print(f"{name} | {counts} | {seconds:.1f} | {processor_seconds:.1f}", flush=True)
        made[name] = (processor_seconds, content_digest(latents.uri))
    (_, (seconds, digest), (all_seconds, all_digest)) = made.values()
    same = "the same bytes" if digest == all_digest else "DIFFERENT BYTES"
    print(f"\n{100 * seconds / all_seconds:.1f} % of the processor time, with {same}")


def _ingested(root: Path, count: int) -> artifact.Artifact:
    dataset = str(root / f"dataset-{count}")
    write_dataset(dataset, count, distinct=count)
    spec = sources.resolve_dataset(sources.DatasetSpec(dataset))
    component = CaptionExampleGen(
        spec.dataset, sources.dataset_fingerprint(spec), near_duplicates=IGNORE
    )
    examples, rejects = standard_artifacts.Examples(), RejectedRows()
    examples.uri, rejects.uri = (str(root / f"{name}-{count}") for name in ("examples", "rejects"))
    ingest.Executor(_context()).Do(
        {}, {"examples": [examples], "rejects": [rejects]}, dict(component.exec_properties)
    )
    return examples


def _encoded(folder: Path, examples: artifact.Artifact, index: str) -> artifact.Artifact:
    component = LatentGen(
        channel_utils.as_channel([standard_artifacts.Examples()]),
        BaseModel.locate(_PRESET, _PRESET.image_size, DEFAULT_WEIGHTS),
        latents_index=index,
    )
    latents = standard_artifacts.Examples()
    latents.uri = str(folder)
    latent_gen.Executor(_context()).Do(
        {"examples": [examples]}, {"latents": [latents]}, dict(component.exec_properties)
    )
    return latents


def _context() -> base_beam_executor.BaseBeamExecutor.Context:
    return base_beam_executor.BaseBeamExecutor.Context(beam_pipeline_args=[*beam_pipeline_args()])


if __name__ == "__main__":
    main()
