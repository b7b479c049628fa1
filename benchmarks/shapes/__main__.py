"""Training in buckets beside centre crops, at equal steps: `make bench-shapes`.

Draws a set of portraits and landscapes, runs the pipeline on it twice, and scores both models on
the same held-out pictures at the same timesteps and noise: on the whole ones, as buckets have them,
and on their middles, as crops have them. Prints Markdown.
"""

from __future__ import annotations

import argparse
import collections
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf

from benchmarks.processes import ROOT
from benchmarks.shapes.pictures import write_pictures
from components.loss_scorer.samples import SampleSettings
from components.loss_scorer.scorer import PICTURE_SIZE, Scorer, ScoringTask
from components.measures import MeasureSettings
from components.tfrecords import read_shard
from storage.model_manifest import ModelManifest
from trainer.presets import get_preset
from trainer.training.evaluations import paired_interval
from trainer.weights.base_model import BaseModel

_STRATA, _DRAWS, _BATCH = 10, 4, 16
_RUNS = {"buckets": "true", "centre crops": "false"}


def main() -> None:
    """The command line; see its help."""
    parser = argparse.ArgumentParser(prog="make bench-shapes", description=__doc__)
    parser.add_argument("--output", default=str(ROOT / "runs" / "shapes"), help="folder for all")
    parser.add_argument("--pictures", type=int, default=400, help="that are drawn")
    parser.add_argument("--steps", type=int, default=200, help="of each training")
    parser.add_argument("--batch-size", type=int, default=16, help="of each training")
    parser.add_argument("--seed", type=int, default=0, help="of pictures and trainings")
    arguments = parser.parse_args()
    output = Path(arguments.output)
    write_pictures(output / "pictures", arguments.pictures, arguments.seed)
    for name, buckets in _RUNS.items():
        flags = {
            "--dataset": output / "pictures",
            "--output": _folder(output, name),
            "--buckets": buckets,
            "--steps": arguments.steps,
            "--batch-size": arguments.batch_size,
            "--seed": arguments.seed,
            "--config": output / "settings.yaml",
        }
        (output / "settings.yaml").write_text(_SETTINGS)
        given = [str(word) for pair in flags.items() for word in pair]
        subprocess.run([sys.executable, "runner_local.py", *given], cwd=ROOT, check=True)
    for pictures in _RUNS:
        print(f"\nheld-out loss on {_SEEN[pictures]}\n")
        print("| pictures | rows | base weights | centre crops | buckets | change, 95 % interval |")
        print("| --- | ---: | ---: | ---: | ---: | --- |")
        for line in _compared(output, pictures):
            print(line)


# What is drawn and measured besides is no part of this.
_SETTINGS = """
dataset: {near_duplicates: ignore, eval_fraction: 0.15}
training: {evaluate_every_steps: 0}
validation: {prompts: [a drawing of a round blue creature next to a tall red creature]}
evaluation: {num_samples: 0, num_training_pictures: 0, num_training_samples: 0}
serving: {canary: false}
"""
_SEEN = {"buckets": "whole pictures, in buckets", "centre crops": "their middles, as squares"}


def _folder(output: Path, name: str) -> Path:
    return output / name.replace(" ", "_")


def _latest(run: Path, artifact: str) -> Path:
    return max((run / "artifacts" / artifact).iterdir(), key=lambda path: int(path.name))


def _compared(output: Path, pictures: str) -> list[str]:
    """Lines of a table: for each size of pictures, and for all, the losses of both models."""
    models = {
        name: _latest(_folder(output, name), "Trainer/model") / "Format-Serving" for name in _RUNS
    }
    latents = _latest(_folder(output, pictures), "LatentGen/latents")
    manifest = ModelManifest.read(str(models["buckets"]))
    base = BaseModel.locate(get_preset(manifest.preset), manifest.image_size, "default")
    ours = _losses(latents, base, models["buckets"], models["centre crops"])
    started = _losses(latents, base, models["buckets"], None)
    lines = []
    for size in [*sorted(ours, key=lambda name: _aspect(name)), "all"]:
        rows, before = (
            np.concatenate([*found.values()] if size == "all" else [found[size]])
            for found in (ours, started)
        )
        # A picture's rows are no independent ones.
        differences = rows[..., 0].mean(axis=1) - rows[..., 1].mean(axis=1)
        mean = rows.mean(axis=(0, 1))
        share = [100 * end / mean[1] for end in (differences.mean(), *paired_interval(differences))]
        lines.append(
            f"| {size} | {len(rows)} | {before[..., 1].mean():.4f} | {mean[1]:.4f} | {mean[0]:.4f} "
            f"| {share[0]:+.1f} % ({share[1]:+.1f} to {share[2]:+.1f}) |"
        )
    return lines


def _aspect(size: str) -> float:
    width, height = map(int, size.split(" x "))
    return width / height


def _losses(
    latents: Path, base: BaseModel, candidate: Path, baseline: Path | None
) -> Mapping[str, np.ndarray]:
    """By size of the pictures: losses of candidate and baseline, [pictures, rows, 2]."""
    task = ScoringTask(
        base_model=base,
        candidate=str(candidate),
        baseline=None if baseline is None else str(baseline),
        comparable=True,
        num_strata=_STRATA,
        seed=0,
        batch_size=_BATCH,
        samples=SampleSettings("ddim", 1, 1.0, 1, MeasureSettings()),
        num_draws=_DRAWS,
        in_buckets=True,
    )
    files = sorted((latents / "Split-eval").glob("*.gz"))
    scorer = Scorer(task)
    found: dict[str, list[Sequence[float]]] = collections.defaultdict(list)
    for path in files:
        for row in scorer.rows(lambda path=path: read_shard(str(path))):
            features = tf.train.Example.FromString(row.record).features.feature
            size = features[PICTURE_SIZE].bytes_list.value[0].decode()
            found[size].append((row.loss, row.loss_baseline))
    return {
        size: np.array(losses).reshape(-1, _STRATA * _DRAWS, 2) for size, losses in found.items()
    }


if __name__ == "__main__":
    main()
