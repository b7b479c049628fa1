"""The work of LossScorer.

A shard of latents becomes the shard of scores of the same number, from front to back in batches
of one fixed size: the result does not depend on how Beam spreads the shards, and memory does not
grow with the number of examples.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import logging
import math
import os
import uuid
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import apache_beam as beam
import numpy as np
import tensorflow as tf
from apache_beam.utils import shared
from tfx import types
from tfx.dsl.components.base import base_beam_executor
from tfx.types import artifact_utils
from tfx.utils import io_utils, path_utils

from components.loss_scorer.draws import Draw, draw, stratum_name
from components.tfrecords import describe_examples, read_shard, shard_name, write_shard

if TYPE_CHECKING:
    from trainer.presets import Preset

SPLIT = "eval"
SCORED = ("diffusion_model",)
BASE_WEIGHTS_LABEL = "base weights"
LOSSES = ("loss", "loss_baseline", "loss_delta")

_MANIFEST_NAME = "manifest.json"
# Attention at full size holds some 0.5 GB for every 64 x 64 latent.
_BATCH_POSITIONS = 1 << 13
_MAX_BATCH_SIZE = 64
_EXAMPLES_AT_A_TIME = 16

_Predict = Callable[[tf.Tensor, tf.Tensor, tf.Tensor], tf.Tensor]

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class ScoringTask:
    """What every worker has to know.

    Attributes:
        preset: The models' dimensions.
        image_size: Side of the pictures in pixels.
        base_weights: Source of the base weights.
        candidate: Folder of the candidate's SavedModel.
        baseline: Folder of the baseline's SavedModel; None for the base weights.
        num_strata: Parts that the timesteps are divided into.
        seed: Gives other timesteps and noise.
        batch_size: Rows that are scored at once.
    """

    preset: Preset
    image_size: int
    base_weights: str
    candidate: str
    baseline: str | None
    num_strata: int
    seed: int
    batch_size: int

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of a latent."""
        return self.preset.latent_shape(self.image_size)


@dataclasses.dataclass(frozen=True)
class _Shard:
    """A file of latents and the file of scores that it becomes."""

    source: str
    target: str


@dataclasses.dataclass(frozen=True)
class _Row:
    """One example at one timestep."""

    example_id: bytes
    stratum: int
    draw: Draw
    mean: np.ndarray
    log_variance: np.ndarray
    context: np.ndarray


@dataclasses.dataclass(frozen=True)
class Totals:
    """Means over all rows, as they stand in the scores."""

    loss: float
    loss_baseline: float
    loss_delta: float
    num_rows: int
    num_not_finite: int


class Executor(base_beam_executor.BaseBeamExecutor):
    """Scores examples with Beam."""

    def Do(  # noqa: N802
        self,
        input_dict: dict[str, list[types.Artifact]],
        output_dict: dict[str, list[types.Artifact]],
        exec_properties: dict[str, Any],
    ) -> None:
        """See `LossScorer`.

        Raises:
            ValueError: Latents or candidate are of another preset or image size.
            RuntimeError: The base weights are not those that the component was made with.
        """
        self._log_startup(input_dict, output_dict, exec_properties)
        # Imports Keras.
        from trainer.presets import get_preset
        from trainer.weights import base_weights_hash, preset_for

        preset = preset_for(get_preset(exec_properties["preset"]), exec_properties["base_weights"])
        image_size = exec_properties["image_size"]
        base_weights = exec_properties["base_weights"]
        hash_now = base_weights_hash(preset, base_weights, SCORED)
        if hash_now != exec_properties["base_weights_hash"]:
            raise RuntimeError(
                f"the base weights in {base_weights!r} have changed since the run was prepared "
                f"(hash {hash_now}, expected {exec_properties['base_weights_hash']}): start the "
                "run again"
            )
        latents = artifact_utils.get_single_instance(input_dict["latents"])
        model = artifact_utils.get_single_instance(input_dict["model"])
        _check_latents(latents.uri, preset.name, image_size)
        candidate = path_utils.serving_model_path(model.uri)
        _check_candidate(candidate, preset.name, image_size)
        baseline, baseline_label = _baseline(
            input_dict.get("baseline_model", []), preset.name, image_size
        )
        height, width, _ = preset.latent_shape(image_size)
        task = ScoringTask(
            preset=preset,
            image_size=image_size,
            base_weights=base_weights,
            candidate=os.path.join(candidate, "diffusion_model"),
            baseline=None if baseline is None else os.path.join(baseline, "diffusion_model"),
            num_strata=exec_properties["num_strata"],
            seed=exec_properties["seed"],
            batch_size=max(1, min(_MAX_BATCH_SIZE, _BATCH_POSITIONS // (height * width))),
        )

        scores = artifact_utils.get_single_instance(output_dict["scores"])
        describe_examples(scores, [SPLIT], span=latents.span, version=latents.version)
        shards = list(_shards(latents, scores))
        temporary_folder = os.path.join(scores.uri, f".unfinished-{uuid.uuid4().hex}")
        tf.io.gfile.makedirs(temporary_folder)
        with self._make_beam_pipeline() as pipeline:
            (
                pipeline
                | "Shards" >> beam.Create(shards)
                | "Spread" >> beam.Reshuffle()
                | "Score" >> beam.ParDo(_ScoreShard(task, temporary_folder, shared.Shared()))
            )
        tf.io.gfile.rmtree(temporary_folder)

        totals = read_totals(shard.target for shard in shards)
        num_examples = totals.num_rows // task.num_strata
        for name in LOSSES:
            # SQLite, and so ML Metadata, has no NaN and no infinity.
            if math.isfinite(value := getattr(totals, name)):
                scores.set_float_custom_property(name, value)
        scores.set_int_custom_property("num_examples", num_examples)
        scores.set_int_custom_property("num_rows", totals.num_rows)
        scores.set_int_custom_property("num_not_finite", totals.num_not_finite)
        scores.set_string_custom_property("baseline", baseline_label)
        if totals.num_not_finite or not totals.num_rows:
            logger.warning(
                "%d of %d held-out losses are not finite numbers: the model cannot be blessed.",
                totals.num_not_finite,
                totals.num_rows,
            )
        logger.info(
            "Held-out loss: %.4f %s, %.4f fine-tuned (%+.4f), %s examples at %d timesteps each.",
            totals.loss_baseline,
            baseline_label,
            totals.loss,
            totals.loss_delta,
            f"{num_examples:,}",
            task.num_strata,
        )


class Scorer:
    """Candidate and baseline, loaded."""

    def __init__(self, task: ScoringTask) -> None:
        """Loads both models."""
        # Import Keras.
        from trainer.latents import sample_posterior
        from trainer.noise_schedule import add_noise

        models = (
            _saved_model(task.candidate),
            _base_model(task) if task.baseline is None else _saved_model(task.baseline),
        )

        @tf.function
        def score(
            mean: tf.Tensor,
            log_variance: tf.Tensor,
            posterior_noise: tf.Tensor,
            epsilon: tf.Tensor,
            timesteps: tf.Tensor,
            context: tf.Tensor,
        ) -> tuple[tf.Tensor, ...]:
            latent = sample_posterior(mean, log_variance, posterior_noise)
            noisy = add_noise(latent, epsilon, timesteps)
            return tuple(
                tf.reduce_mean(
                    tf.square(epsilon - predict(noisy, timesteps, context)), axis=[1, 2, 3]
                )
                for predict in models
            )

        self._task = task
        self._score = score

    def records(self, serialized: Iterable[bytes]) -> Iterator[bytes]:
        """Scores records of latents; yields `num_strata` records for each, in their order."""
        rows = self._rows(iter(serialized))
        while batch := list(itertools.islice(rows, self._task.batch_size)):
            losses, baseline_losses = self._losses(batch)
            for row, loss, loss_baseline in zip(batch, losses, baseline_losses, strict=True):
                yield _score_record(
                    row, self._task.num_strata, float(loss), float(loss_baseline)
                ).SerializeToString(deterministic=True)

    def _rows(self, serialized: Iterator[bytes]) -> Iterator[_Row]:
        from trainer.latents import parse_latents

        task = self._task
        while some := list(itertools.islice(serialized, _EXAMPLES_AT_A_TIME)):
            parsed = parse_latents(tf.constant(some), task.preset, task.image_size)
            examples = {name: tensor.numpy() for name, tensor in parsed.items()}
            for index, example_id in enumerate(examples["id"]):
                for stratum in range(task.num_strata):
                    yield _Row(
                        example_id=example_id,
                        stratum=stratum,
                        draw=draw(
                            example_id.decode(),
                            stratum,
                            task.num_strata,
                            task.seed,
                            task.latent_shape,
                        ),
                        mean=examples["latent/mean"][index],
                        log_variance=examples["latent/log_variance"][index],
                        context=examples["context"][index],
                    )

    def _losses(self, batch: list[_Row]) -> tuple[np.ndarray, np.ndarray]:
        # The last batch is filled up: kernels may round differently at another batch size.
        filled = batch + batch[-1:] * (self._task.batch_size - len(batch))
        loss, loss_baseline = self._score(
            np.stack([row.mean for row in filled]),
            np.stack([row.log_variance for row in filled]),
            np.stack([row.draw.posterior_noise for row in filled]),
            np.stack([row.draw.epsilon for row in filled]),
            np.array([row.draw.timestep for row in filled], np.int32),
            np.stack([row.context for row in filled]),
        )
        return loss.numpy()[: len(batch)], loss_baseline.numpy()[: len(batch)]


def read_totals(files: Iterable[str]) -> Totals:
    """Adds up files of scores; the means are NaN where there are no rows or a loss is NaN."""
    sums = dict.fromkeys(LOSSES, 0.0)
    num_rows = num_not_finite = 0
    for path in files:
        for record in read_shard(path):
            features = tf.train.Example.FromString(record).features.feature
            losses = {name: features[name].float_list.value[0] for name in LOSSES}
            num_rows += 1
            num_not_finite += not all(math.isfinite(loss) for loss in losses.values())
            for name, loss in losses.items():
                sums[name] += loss
    means = {name: total / num_rows if num_rows else math.nan for name, total in sums.items()}
    return Totals(**means, num_rows=num_rows, num_not_finite=num_not_finite)


class _ScoreShard(beam.DoFn):
    """Writes the shard of scores; yields nothing."""

    def __init__(
        self, task: ScoringTask, temporary_folder: str, shared_scorer: shared.Shared
    ) -> None:
        self._task = task
        self._temporary_folder = temporary_folder
        self._shared_scorer = shared_scorer

    def setup(self) -> None:
        # One copy a process, however many threads work in it.
        self._scorer = self._shared_scorer.acquire(lambda: Scorer(self._task))

    def process(self, shard: _Shard) -> None:
        records = self._scorer.records(read_shard(shard.source))
        write_shard(shard.target, records, self._temporary_folder)


def _saved_model(folder: str) -> _Predict:
    model = tf.saved_model.load(folder)
    signature = model.signatures["predict_epsilon"]

    def predict(latent: tf.Tensor, timesteps: tf.Tensor, context: tf.Tensor) -> tf.Tensor:
        return signature(latent=latent, timesteps=timesteps, context=context)["epsilon"]

    # The loaded object owns the variables that its signatures only borrow.
    predict.model = model  # type: ignore[attr-defined]
    return predict


def _base_model(task: ScoringTask) -> _Predict:
    from trainer.models import build_diffusion_model
    from trainer.noise_schedule import timestep_embedding
    from trainer.weights import load_base_weights

    model = build_diffusion_model(task.preset, task.image_size)
    load_base_weights(model, "diffusion_model", task.preset, task.base_weights)
    width = task.preset.diffusion_model.timestep_width

    def predict(latent: tf.Tensor, timesteps: tf.Tensor, context: tf.Tensor) -> tf.Tensor:
        embedding = timestep_embedding(timesteps, width)
        return tf.cast(model([latent, embedding, context], training=False), tf.float32)

    return predict


def _score_record(
    row: _Row, num_strata: int, loss: float, loss_baseline: float
) -> tf.train.Example:
    def text(value: bytes) -> tf.train.Feature:
        return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))

    def number(value: float) -> tf.train.Feature:
        return tf.train.Feature(float_list=tf.train.FloatList(value=[value]))

    timestep = tf.train.Feature(int64_list=tf.train.Int64List(value=[row.draw.timestep]))
    features = {
        "id": text(row.example_id),
        "timestep": timestep,
        "timestep_bucket": text(stratum_name(row.stratum, num_strata).encode()),
        "loss": number(loss),
        "loss_baseline": number(loss_baseline),
        "loss_delta": number(loss - loss_baseline),
        "label": number(0.0),
    }
    return tf.train.Example(features=tf.train.Features(feature=features))


def _shards(latents: types.Artifact, scores: types.Artifact) -> Iterator[_Shard]:
    folder = artifact_utils.get_split_uri([scores], SPLIT)
    tf.io.gfile.makedirs(folder)
    pattern = io_utils.all_files_pattern(artifact_utils.get_split_uri([latents], SPLIT))
    sources = sorted(tf.io.gfile.glob(pattern))
    for index, source in enumerate(sources):
        yield _Shard(source, os.path.join(folder, shard_name("scores", index, len(sources))))


def _check_latents(uri: str, preset: str, image_size: int) -> None:
    from trainer.latents import LatentsManifest

    manifest = LatentsManifest.read(uri)
    if (manifest.preset, manifest.image_size) != (preset, image_size):
        raise ValueError(
            f"the latents in {uri} are of preset {manifest.preset!r} at {manifest.image_size} "
            f"pixels, this run needs {preset!r} at {image_size}: run LatentGen again"
        )


def _check_candidate(folder: str, preset: str, image_size: int) -> None:
    if (found := _identity(folder)) != (preset, image_size):
        raise ValueError(
            f"the candidate in {folder} is {_described(found)}, this run needs preset {preset!r} "
            f"at {image_size} pixels: run the Trainer again"
        )


def _baseline(models: list[types.Artifact], preset: str, image_size: int) -> tuple[str | None, str]:
    """The baseline's serving folder, `None` for the base weights, and what it is called."""
    if not models:
        return None, BASE_WEIGHTS_LABEL
    model = artifact_utils.get_single_instance(models)
    folder = path_utils.serving_model_path(model.uri)
    if (found := _identity(folder)) != (preset, image_size):
        logger.warning(
            "The latest blessed model (%d) is %s, and cannot be compared with one of preset %r at "
            "%d pixels: the base weights are the baseline.",
            model.id,
            _described(found),
            preset,
            image_size,
        )
        return None, BASE_WEIGHTS_LABEL
    return folder, f"model {model.id}"


def _identity(folder: str) -> tuple[str, int] | None:
    """Preset and image size of the models in a serving folder; `None` where it does not say."""
    path = os.path.join(folder, _MANIFEST_NAME)
    if not tf.io.gfile.exists(path):
        return None
    with tf.io.gfile.GFile(path, "r") as f:
        manifest = json.loads(f.read())
    return manifest["preset"], manifest["image_size"]


def _described(identity: tuple[str, int] | None) -> str:
    if identity is None:
        return "a model without a manifest"
    return "of preset {!r} at {} pixels".format(*identity)
