"""Training in buckets compared with centre crops, at equal steps: `make bench-shapes`.

Draws a set of portraits, landscapes and squares, trains on it both ways, and scores both models on
the same held-out pictures, timesteps and noise: on whole pictures, as in buckets, and on their
middles, as in crops. Prints Markdown. `--only-draw` leaves the set as a folder that
`runner_local.py --dataset` takes.
"""

from __future__ import annotations

import argparse
import collections
import logging
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import tensorflow as tf

from benchmarks.shapes.pictures import composed, write_pictures
from components.latent_gen.encoders import Encoders
from components.tfrecords import write_shard
from storage.images import resize_cover, to_model_range
from trainer.data.buckets import BucketCounts, BucketLimits, cropped
from trainer.data.latents import make_latent_example, training_batches
from trainer.presets import get_preset
from trainer.text.tokenizer import tokenize
from trainer.training.evaluations import ScoredPictures, paired_interval
from trainer.training.fine_tuner import Batch, FineTuner
from trainer.training_config import TrainingConfig
from trainer.weights.base_model import BaseModel

_BUCKETS, _CROPS = "in buckets", "centre crops"
_SEEN = {_BUCKETS: "whole pictures", _CROPS: "their middles, as squares"}
_STRATA = 20


def main() -> None:
    """The command line; see its help."""
    parser = argparse.ArgumentParser(prog="make bench-shapes", description=__doc__)
    parser.add_argument("--pictures", type=int, default=400, help="pictures to train on")
    parser.add_argument("--held-out", type=int, default=60, help="further, held-out pictures")
    parser.add_argument("--steps", type=int, default=350, help="steps of each training")
    parser.add_argument("--batch-size", type=int, default=16, help="batch size of each training")
    parser.add_argument("--seed", type=int, default=0, help="seed of pictures and trainings")
    parser.add_argument("--only-draw", metavar="FOLDER", help="only write the set to a folder")
    arguments = parser.parse_args()
    if arguments.only_draw:
        write_pictures(Path(arguments.only_draw), arguments.pictures, arguments.seed)
        return
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    preset = get_preset("tiny")
    base = BaseModel.locate(preset, preset.image_size, "default")
    encoders = Encoders(base, flip=False)
    limits = BucketLimits.of(preset, preset.image_size)
    with tempfile.TemporaryDirectory() as folder:
        measure = _Measure(base, encoders, limits, arguments, folder)
        before = measure.losses()
        trained = {}
        for way in (_CROPS, _BUCKETS):
            measure.train(way)
            trained[way] = measure.losses()
    for seen, what in _SEEN.items():
        print(f"\n| {what} | pictures | base weights | {_CROPS} | {_BUCKETS} | change |")
        print("| --- | ---: | ---: | ---: | ---: | --- |")
        for name, places in measure.held_out_by_size.items():
            losses = [found[seen][places] for found in (before, *trained.values())]
            means = [float(np.mean(some)) for some in losses]
            change = losses[2] - losses[1]
            ends = [100 * end / means[1] for end in (change.mean(), *paired_interval(change))]
            print(
                f"| {name} | {len(places)} | {means[0]:.4f} | {means[1]:.4f} | {means[2]:.4f} "
                f"| {ends[0]:+.1f} % ({ends[1]:+.1f} to {ends[2]:+.1f}) |"
            )
    print(f"\ncropped on average: {measure.cropped:.1%}; to squares {measure.cropped_square:.1%}")


class _Measure:
    """The set both ways, and trainings on it."""

    def __init__(
        self,
        base: BaseModel,
        encoders: Encoders,
        limits: BucketLimits,
        arguments: argparse.Namespace,
        folder: str,
    ) -> None:
        self._base, self._encoders, self._folder = base, encoders, folder
        self._config = TrainingConfig(
            steps=arguments.steps,
            batch_size=arguments.batch_size,
            seed=arguments.seed,
            train_text_encoder=False,
            log_every_steps=25,
        ).resolved(base.preset)
        self._number = arguments.pictures
        number = arguments.pictures + arguments.held_out
        records: dict[str, list[bytes]] = {_BUCKETS: [], _CROPS: []}
        counts: collections.Counter[tuple[int, int]] = collections.Counter()
        self.held_out_by_size: dict[str, list[int]] = collections.defaultdict(list)
        lost, lost_square = [], []
        square = base.image_size
        for index in range(number):
            picture, caption = composed(index, arguments.seed)
            bucket = limits.bucket_of(*picture.size)
            pixels = {
                _BUCKETS: resize_cover(picture, bucket.size),
                _CROPS: resize_cover(picture, square),
            }
            for way, image in pixels.items():
                records[way].append(self._record(index, caption, image, way == _BUCKETS))
            lost.append(cropped(*picture.size, bucket))
            lost_square.append(1 - min(picture.size) / max(picture.size))
            if index < self._number:
                counts[bucket.width, bucket.height] += 1
            else:
                self.held_out_by_size[bucket.name].append(index - self._number)
                self.held_out_by_size["all"].append(index - self._number)
        self.held_out_by_size["all"] = self.held_out_by_size.pop("all")
        self.cropped, self.cropped_square = float(np.mean(lost)), float(np.mean(lost_square))
        self._buckets = [
            BucketCounts(*size, {"train": count}, count) for size, count in sorted(counts.items())
        ]
        self._files = {}
        for way, some in records.items():
            self._files[way] = f"{folder}/{way.replace(' ', '_')}.gz"
            write_shard(self._files[way], some[: self._number], folder)
        self._held_out = {
            way: ScoredPictures(some[self._number :], _STRATA, base.preset, square)
            for way, some in records.items()
        }

        # One tuner for all, so that each size is traced once.
        self._tuner = FineTuner(
            base.build("diffusion_model"),
            base.preset,
            self._config,
            empty_caption=tf.constant(encoders.captions([tokenize([""])])[0, 0]),
        )
        self._tuner.save_state(f"{folder}/initial")

    def train(self, way: str) -> None:
        """Trains again from the start, one way or the other."""
        self._tuner.restart(f"{self._folder}/initial", self._config.learning_rate)

        def batches(first_step: int) -> Iterator[Batch]:
            return training_batches(
                [self._files[way]],
                self._base.preset,
                self._base.image_size,
                flip=False,
                batch_size=self._config.batch_size,
                seed=self._config.seed,
                first_step=first_step,
                num_examples=self._number,
                buckets=self._buckets if way == _BUCKETS else None,
            )

        folder = f"{self._folder}/{way}"
        self._tuner.train(batches, folder, lambda record: logging.info("%s", record))

    def losses(self) -> Mapping[str, np.ndarray]:
        """Losses of the averaged weights on each held-out picture, seen either way."""
        return {
            way: np.array(pictures.means(self._tuner.score_exported(pictures, self._folder, None)))
            for way, pictures in self._held_out.items()
        }

    def _record(self, index: int, caption: str, pixels: np.ndarray, says_size: bool) -> bytes:
        tokens = tokenize([caption])
        moments = self._encoders.pictures([to_model_range(pixels)]).of(0)
        record: bytes = make_latent_example(
            example_id=f"{index:06d}",
            tokens=tokens[0],
            context=self._encoders.captions([tokens])[0, 0],
            mean=moments.mean,
            log_variance=moments.log_variance,
            size=(pixels.shape[0], pixels.shape[1]) if says_size else None,
        ).SerializeToString()
        return record


if __name__ == "__main__":
    main()
