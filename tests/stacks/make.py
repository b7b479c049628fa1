"""Writes what one stack leaves behind, for the other to go on with.

    PYTHONPATH=.:tests/pipeline:tests/serving:tests/trainer python tests/stacks/make.py

run on each stack, writes `tests/data/stacks/tfx-<version>.tar.gz`: a run of the small pipeline, a
training's checkpoint and end, latents, a release and a picture of it. All paths in it are below
`ROOT`, since ML Metadata records absolute ones.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import sys
import tarfile
from pathlib import Path

os.environ["TF_USE_LEGACY_KERAS"] = "0"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
TESTS = Path(__file__).resolve().parents[1]

import numpy as np  # noqa: E402
from PIL import Image  # noqa: E402

ROOT = Path("/tmp/sd-finetuning-tfx-stacks")
"""Where the files were made and are unpacked to."""

RUN_FLAGS = ("--dataset", str(ROOT / "dataset"), "--output", str(ROOT / "run"), "--steps", "3")
PROMPT, SEED = "a drawing of a round blue creature", 3
STEPS_BEFORE = 4
NUM_BLOCKS = 1


def run() -> int:
    """Runs the small pipeline in `ROOT`; returns the exit code."""
    import small_pipeline

    import runner_local

    sys.modules["pipeline.pipeline"] = small_pipeline
    return runner_local.main(RUN_FLAGS)


def latents() -> list[bytes]:
    """Three serialized records."""
    from trainer.data.latents import make_latent_example

    rng = np.random.default_rng(0)
    return [
        make_latent_example(
            example_id=f"{number}",
            tokens=rng.integers(0, 49408, 77),
            context=rng.standard_normal((77, 8)),
            mean=rng.standard_normal((8, 8, 4)),
            log_variance=rng.standard_normal((8, 8, 4)),
        ).SerializeToString(deterministic=True)
        for number in range(3)
    ]


def picture() -> np.ndarray:
    """Drawn from the release, uint8 [64, 64, 3]."""
    from serving.client import Generator

    return Generator(str(ROOT / "serving_model")).generate([PROMPT], seed=SEED)[0]


def main() -> None:
    """Makes everything anew."""
    import small_releases
    import small_runs
    import tensorflow as tf

    shutil.rmtree(ROOT, ignore_errors=True)
    (ROOT / "dataset").mkdir(parents=True)
    with (ROOT / "dataset" / "metadata.jsonl").open("w") as table:
        for number in range(12):
            Image.new("RGB", (64, 64), (20 * number, 128, 0)).save(
                ROOT / "dataset" / f"{number}.png"
            )
            row = {"file_name": f"{number}.png", "text": f"a plain picture, number {number}"}
            table.write(json.dumps(row) + "\n")
    assert run() == 0
    for name, steps in (("whole", 6), ("half", STEPS_BEFORE)):
        order = {"folder": str(ROOT / name), "overrides": {"steps": steps}}
        small_runs.train({**order, "num_blocks": NUM_BLOCKS})
    (ROOT / "half" / "end.npz").unlink()
    for checkpoint in (ROOT / "whole").glob("*"):
        if checkpoint.name != "end.npz":
            checkpoint.unlink()
    options = tf.io.TFRecordOptions(compression_type="GZIP")
    with tf.io.TFRecordWriter(str(ROOT / "latents.gz"), options) as writer:
        for record in latents():
            writer.write(record)
    (ROOT / "exported").mkdir()
    small_releases.export({1: ROOT / "exported"})
    small_releases.publish(ROOT / "serving_model", 1, ROOT / "exported")
    shutil.rmtree(ROOT / "exported")
    np.save(ROOT / "picture.npy", picture())
    version = importlib.metadata.version("tfx")
    archive = TESTS / "data" / "stacks" / f"tfx-{version}.tar.gz"
    with tarfile.open(archive, "w:gz") as file:
        file.add(ROOT, arcname=".")
    print(archive, archive.stat().st_size)


if __name__ == "__main__":
    main()
