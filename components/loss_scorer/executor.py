"""The work of LossScorer.

Each shard of latents becomes the shard of scores with the same number, read from front to back in
batches of one fixed size: the result does not depend on how Beam distributes the shards, and memory
does not grow with the number of examples.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import itertools
import json
import logging
import math
import os
import time
import uuid
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import apache_beam as beam
import numpy as np
import tensorflow as tf
from apache_beam.utils import shared
from tfx import types
from tfx.types import artifact_utils
from tfx.utils import io_utils, path_utils

from components.counts import WriteCounts, read_counts
from components.loss_scorer import remembering
from components.loss_scorer.records import bytes_of
from components.loss_scorer.remembering import Remembering
from components.loss_scorer.samples import SampleSettings, chosen
from components.loss_scorer.scorer import Scorer, ScoringTask
from components.measures import MeasureSettings
from components.measures.class_distance import CLASS_CAPTION, NUM_CLASS_PICTURES
from components.progress import SharedProgress
from components.tfrecords import describe_examples, read_shard, shard_name, write_shard
from components.whole_elements import WholeElementsExecutor
from storage.model_manifest import ModelManifest
from storage.progress import Work
from storage.user_errors import UserError
from trainer.diffusion.draws import num_draws
from trainer.presets import ImageSize

if TYPE_CHECKING:
    from trainer.data.latents import LatentsManifest
    from trainer.presets import Preset

SPLIT = "eval"
CLASS_SPLIT = "class"
"""The split with the rows of class pictures, if there are any."""
_TRAINED_ON = "train"
SCORED = ("diffusion_model", "text_encoder", "image_encoder")
BASE_WEIGHTS_LABEL = "base weights"

_COUNTS_NAME = "counts.json"
_ROWS, _NOT_FINITE, _BASELINE_NOT_FINITE = COUNTS = (
    "num_rows",
    "num_candidate_not_finite",
    "num_baseline_not_finite",
)
_TRAINING_NOT_FINITE = "num_training_not_finite"
MILLISECONDS = ("milliseconds_training_pictures", "milliseconds_text_parts", "milliseconds_copies")
"""Custom properties for the duration of each part of the check on what a model remembers."""
_TRAINING_ROWS, _TEXT_PARTS, _COPIES = MILLISECONDS
_CLASS_MILLISECONDS = "milliseconds_class_pictures"
# Attention at full size takes about 0.5 GB for every 64 x 64 latent.
_BATCH_POSITIONS = 1 << 13
_MAX_BATCH_SIZE = 64
_SCORING, _DRAWING = "scoring", "drawing"

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class _Shard:
    """A file of latents and the file of scores that it becomes.

    Attributes:
        source: Path of the latents; `None` if the split has no files: the Evaluator needs one,
            even an empty one.
        target: Path of the scores.
    """

    source: str | None
    target: str

    def records(self) -> Iterator[bytes]:
        """The records of the latents."""
        return iter(()) if self.source is None else read_shard(self.source)


@dataclasses.dataclass(frozen=True)
class _Baseline:
    """What the candidate is compared with.

    Attributes:
        folder: Folder of the SavedModels; `None` for the base weights, or if there is a problem.
        label: Name of the baseline.
        problem: Why it cannot be compared; empty if it can.
    """

    folder: str | None
    label: str
    problem: str = ""


@dataclasses.dataclass(frozen=True)
class _HeldOut:
    """What to score: the ids of the examples, and the number of their pictures."""

    ids: list[str]
    num_pictures: int


class Executor(WholeElementsExecutor):
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
            WeightsError: The base weights have changed since the component was made.
        """
        self._log_startup(input_dict, output_dict, exec_properties)
        # Import Keras.
        from trainer.data.latents import LatentsManifest
        from trainer.presets import get_preset
        from trainer.weights.base_model import BaseModel

        preset, image_size = get_preset(exec_properties["preset"]), exec_properties["image_size"]
        base_model = BaseModel.locate(preset, image_size, exec_properties["base_weights"])
        base_model.check_unchanged(exec_properties["base_weights_hash"], SCORED)
        latents = artifact_utils.get_single_instance(input_dict["latents"])
        model = artifact_utils.get_single_instance(input_dict["model"])
        _check_latents(latents.uri, preset.name, image_size)
        candidate = path_utils.serving_model_path(model.uri)
        _check_candidate(candidate, preset.name, image_size)
        baseline = _baseline(input_dict.get("baseline_model", []), preset.name, image_size)
        scores = artifact_utils.get_single_instance(output_dict["scores"])
        num_training = exec_properties["num_training_pictures"]
        num_training_samples = exec_properties["num_training_samples"]
        remembers = bool(num_training or num_training_samples)
        num_class_pictures = exec_properties.get("num_class_pictures", 0)
        splits = [
            SPLIT,
            *([remembering.SPLIT] if remembers else []),
            *([CLASS_SPLIT] if num_class_pictures else []),
        ]
        describe_examples(scores, splits, span=latents.span, version=latents.version)
        shards = list(_shards(latents, scores))
        manifest = LatentsManifest.read(latents.uri)
        batch_size = batch_size_of(preset, manifest)
        seed, num_samples = exec_properties["seed"], exec_properties["num_samples"]
        chosen_by = _chosen_by(latents.uri, [candidate, baseline.folder])
        trained_on = _trained_on(shards, candidate, baseline.folder)
        left_out = chosen_by | trained_on
        held_out = _held_out(shards, left_out)
        if trained_on and not held_out.ids:
            raise UserError(
                "none of the held-out pictures can judge this model: the model it started from was "
                f"trained on {len(trained_on):,} of them, because dataset.seed or "
                "dataset.eval_fraction was different then; set these back to their old values, or "
                "model.start_from to base"
            )
        task = ScoringTask(
            base_model=base_model,
            candidate=candidate,
            baseline=baseline.folder,
            comparable=not baseline.problem,
            num_strata=exec_properties["num_strata"],
            seed=seed,
            batch_size=batch_size,
            samples=SampleSettings(
                sampler=exec_properties["sampler"],
                num_steps=exec_properties["sample_steps"],
                guidance_scale=exec_properties["sample_guidance_scale"],
                # Guidance doubles the batch.
                batch_size=max(1, batch_size // 2),
                measures=MeasureSettings(
                    asked_for=tuple(json.loads(exec_properties["measures"])),
                    clip_model=exec_properties["clip_model"],
                ),
            ),
            num_draws=num_draws(len(held_out.ids), exec_properties["min_draws"]),
            word=LatentsManifest.read(latents.uri).new_word,
            sampled=chosen(held_out.ids, num_samples, seed) if num_samples else frozenset(),
            left_out=left_out,
            class_caption=exec_properties.get("class_caption", ""),
            class_pictures=num_class_pictures,
            in_buckets=manifest.buckets is not None,
        )

        planned = None
        if remembers:
            judging = _judging(shards, left_out)
            planned = Remembering.planned(
                _files(latents, _TRAINED_ON),
                manifest.flip,
                judging,
                num_scored=num_training,
                num_drawn=num_training_samples,
            )
            task = dataclasses.replace(
                task,
                caption_variants=manifest.caption_variants,
                text_parts=frozenset(map(_id_of, planned.text_parts)),
                drawn=frozenset(map(_id_of, planned.drawn)),
            )
        num_examples = len(held_out.ids)
        counts = self._scored(shards, task, num_examples, scores.uri, planned)
        if planned is not None:
            scores.set_int_custom_property("num_training_pictures", len(planned.scored))
            scores.set_int_custom_property("num_training_samples", len(planned.drawn))
            for name in (_TRAINING_NOT_FINITE, *MILLISECONDS):
                scores.set_int_custom_property(name, counts[name])
        if num_class_pictures:
            scores.set_int_custom_property(NUM_CLASS_PICTURES, num_class_pictures)
            scores.set_string_custom_property(CLASS_CAPTION, task.class_caption)
            scores.set_int_custom_property(_CLASS_MILLISECONDS, counts[_CLASS_MILLISECONDS])
        for name in COUNTS:
            scores.set_int_custom_property(name, counts[name])
        scores.set_int_custom_property("num_examples", num_examples)
        scores.set_int_custom_property("num_pictures", held_out.num_pictures)
        scores.set_int_custom_property("num_choosing", len(chosen_by))
        if trained_on:
            scores.set_int_custom_property("num_trained_on_before", len(trained_on))
        scores.set_int_custom_property("num_sampled", len(task.sampled))
        scores.set_int_custom_property("num_strata", task.num_strata)
        scores.set_int_custom_property("num_draws", task.num_draws)
        scores.set_int_custom_property("seed", seed)
        scores.set_string_custom_property("baseline", baseline.label)
        if baseline.problem:
            scores.set_string_custom_property("baseline_problem", baseline.problem)
        logger.info(
            "Scored %s held-out examples at %d timesteps each%s.",
            f"{num_examples:,}",
            task.num_strata * task.num_draws,
            f", and drew pictures for {len(task.sampled):,} captions" if task.sampled else "",
        )
        if chosen_by:
            logger.info(
                "The %s examples that chose a model during its training do not judge it.",
                f"{len(chosen_by):,}",
            )
        if trained_on:
            logger.warning(
                "%s held-out examples do not judge this model: the model it started from, or is "
                "compared with, was trained on their pictures.",
                f"{len(trained_on):,}",
            )

    def _scored(
        self,
        shards: list[_Shard],
        task: ScoringTask,
        num_examples: int,
        uri: str,
        planned: Remembering | None,
    ) -> dict[str, int]:
        temporary_folder = os.path.join(uri, f".unfinished-{uuid.uuid4().hex}")
        counts_path = os.path.join(temporary_folder, _COUNTS_NAME)
        tf.io.gfile.makedirs(temporary_folder)
        # Scorers switch it off; it is restored for whatever runs next in this process.
        tensor_float_32 = tf.config.experimental.tensor_float_32_execution_enabled()
        progress = SharedProgress(*_works(task, num_examples, planned))
        given = (task, temporary_folder, shared.Shared(), progress)
        with progress.shown(), self._make_beam_pipeline() as pipeline:
            counted = [
                pipeline
                | "Shards" >> beam.Create(shards)
                | "Spread" >> beam.Reshuffle()
                | "Score" >> beam.ParDo(_ScoreShard(*given))
            ]
            if planned is not None:
                looked_at = _LookedAt.written(planned, uri, temporary_folder)
                counted.append(
                    pipeline
                    | "LookedAt" >> beam.Create([looked_at])
                    | "LookAt" >> beam.ParDo(_LookAt(*given))
                )
            if task.class_pictures:
                target = os.path.join(uri, f"Split-{CLASS_SPLIT}")
                tf.io.gfile.makedirs(target)
                counted.append(
                    pipeline
                    | "Class" >> beam.Create([target])
                    | "DrawClass" >> beam.ParDo(_DrawClass(*given))
                )
            counted | beam.Flatten() | "WriteCounts" >> WriteCounts(counts_path)
        tf.config.experimental.enable_tensor_float_32_execution(tensor_float_32)
        counts = read_counts(counts_path)
        if planned is not None and planned.drawn:
            begun = time.monotonic()
            remembering.held_against(looked_at.drawn, planned, task, looked_at.target, uri)
            counts[_COPIES] += _milliseconds_since(begun)
        tf.io.gfile.rmtree(temporary_folder)
        return counts


def _works(task: ScoringTask, num_examples: int, planned: Remembering | None) -> Iterator[Work]:
    """The amounts of work to do, for the progress display."""
    models = 2 if task.comparable else 1
    draws, drawn = num_examples * task.num_draws, len(task.sampled) * models
    if planned is not None:
        draws += len(planned.scored) * planned.num_draws
        drawn += len(planned.drawn)
    yield Work(_SCORING, draws * task.num_strata, "noisy latents")
    yield Work(_DRAWING, drawn + 2 * task.class_pictures, "pictures")


@dataclasses.dataclass(frozen=True)
class _LookedAt:
    """Files of records from which one worker finds out whether a model remembers.

    Attributes:
        scored: Training pictures that are scored.
        num_draws: Rows of each of them in a stratum.
        captions: Training pictures whose captions are drawn.
        held_out: Held-out pictures whose text part is measured, as it is for `scored`.
        target: Folder of the split `remembering`.
        drawn: File for the drawn pictures.
    """

    scored: str
    num_draws: int
    captions: str
    held_out: str
    target: str
    drawn: str

    @classmethod
    def written(cls, planned: Remembering, uri: str, temporary_folder: str) -> _LookedAt:
        """Writes the records for the worker."""

        def written(name: str, records: Iterable[bytes]) -> str:
            path = os.path.join(temporary_folder, f"{name}.gz")
            write_shard(path, records, temporary_folder)
            return path

        target = os.path.join(uri, f"Split-{remembering.SPLIT}")
        tf.io.gfile.makedirs(target)
        return cls(
            scored=written("scored", planned.scored),
            num_draws=planned.num_draws,
            captions=written("captions", planned.drawn),
            held_out=written("held_out", planned.text_parts),
            target=target,
            drawn=os.path.join(temporary_folder, "drawn.gz"),
        )


class _WithScorer(beam.DoFn):
    """Work with both models."""

    def __init__(
        self,
        task: ScoringTask,
        temporary_folder: str,
        shared_scorer: shared.Shared,
        progress: SharedProgress,
    ) -> None:
        self._task = task
        self._temporary_folder = temporary_folder
        self._shared_scorer = shared_scorer
        self._progress = progress

    def setup(self) -> None:
        # One copy per process, however many threads work in it.
        self._scorer = self._shared_scorer.acquire(
            lambda: Scorer(self._task, lambda number: self._progress.update(_DRAWING, number))
        )


class _LookAt(_WithScorer):
    """`_LookedAt` -> (counter, number); writes training rows and drawn pictures."""

    def process(self, looked_at: _LookedAt) -> Iterator[tuple[str, int]]:
        scorer = self._scorer
        counts = collections.Counter(dict.fromkeys((_TRAINING_NOT_FINITE, *MILLISECONDS), 0))

        def scored() -> Iterator[bytes]:
            rows = scorer.training_rows(lambda: read_shard(looked_at.scored), looked_at.num_draws)
            for row in rows:
                counts[_TRAINING_NOT_FINITE] += not math.isfinite(row.loss)
                self._progress.update(_SCORING)
                yield row.record

        def text_parts() -> Iterator[bytes]:
            for path, training in ((looked_at.scored, True), (looked_at.held_out, False)):
                yield from scorer.text_parts(read_shard(path), training=training)

        for name, records, spent in (
            ("scores", scored(), _TRAINING_ROWS),
            ("text_parts", text_parts() if self._task.text_parts else iter(()), _TEXT_PARTS),
        ):
            begun = time.monotonic()
            path = os.path.join(looked_at.target, shard_name(name, 0, 1))
            write_shard(path, records, self._temporary_folder)
            counts[spent] += _milliseconds_since(begun)
        if self._task.drawn:
            begun = time.monotonic()
            drawn = scorer.drawn(read_shard(looked_at.captions))
            remembering.write_drawn(looked_at.drawn, drawn, self._temporary_folder)
            counts[_COPIES] += _milliseconds_since(begun)
        yield from counts.items()


class _DrawClass(_WithScorer):
    """Folder -> (counter, number); writes the rows of class pictures there."""

    def process(self, folder: str) -> Iterator[tuple[str, int]]:
        begun = time.monotonic()
        path = os.path.join(folder, shard_name("scores", 0, 1))
        write_shard(path, self._scorer.class_rows(), self._temporary_folder)
        yield _CLASS_MILLISECONDS, _milliseconds_since(begun)


def _milliseconds_since(begun: float) -> int:
    return round(1000 * (time.monotonic() - begun))


class _ScoreShard(_WithScorer):
    """Shard -> (counter, number); writes the shard of scores."""

    def process(self, shard: _Shard) -> Iterator[tuple[str, int]]:
        counts = collections.Counter(dict.fromkeys(COUNTS, 0))

        def records() -> Iterator[bytes]:
            for row in self._scorer.rows(shard.records):
                counts[_ROWS] += 1
                counts[_NOT_FINITE] += not math.isfinite(row.loss)
                counts[_BASELINE_NOT_FINITE] += not math.isfinite(row.loss_baseline)
                self._progress.update(_SCORING)
                yield row.record

        write_shard(shard.target, records(), self._temporary_folder)
        yield from counts.items()


def batch_size_of(preset: Preset, latents: LatentsManifest) -> int:
    """The number of latents that are scored at once."""
    sizes: list[ImageSize] = [b.size for b in latents.buckets or ()] or [latents.image_size]
    positions = max(math.prod(preset.latent_shape(size)[:2]) for size in sizes)
    return max(1, min(_MAX_BATCH_SIZE, _BATCH_POSITIONS // positions))


def judging_records(latents: types.Artifact, candidate: str) -> Iterator[bytes]:
    """Records of the held-out examples that judge a model compared with the base weights.

    Args:
        latents: Output of LatentGen.
        candidate: Folder of the model's SavedModels.
    """
    shards = [_Shard(source, "") for source in _files(latents, SPLIT)]
    left_out = _chosen_by(latents.uri, [candidate]) | _trained_on(shards, candidate, None)
    return _judging(shards, left_out)


def _trained_on(shards: Iterable[_Shard], candidate: str, baseline: str | None) -> frozenset[str]:
    """Ids of the held-out examples whose pictures a model was trained on before.

    Empty if the candidate started from the base weights: the baseline may then have seen more
    pictures, but this is only to the candidate's disadvantage.
    """
    from trainer.data.trained_on import TrainedOn, trained_on_among

    if not ModelManifest.read(candidate).started_from:
        return frozenset()
    own, compared = TrainedOn.find(candidate), TrainedOn.find(baseline) if baseline else None
    marks = np.concatenate(
        [
            np.zeros(0, np.uint64) if own is None else own.before,
            np.zeros(0, np.uint64) if compared is None else compared.all,
        ]
    )
    records = itertools.chain.from_iterable(shard.records() for shard in shards)
    return trained_on_among(records, marks)


def _chosen_by(latents_uri: str, models: Iterable[str | None]) -> frozenset[str]:
    """Ids of the examples that chose one of the models, and therefore do not judge any of them."""
    from trainer.data.held_out import read_choosing

    chosen = any(ModelManifest.read(folder).chosen for folder in models if folder)
    return read_choosing(latents_uri) if chosen else frozenset()


def _judging(shards: list[_Shard], left_out: frozenset[str]) -> Iterator[bytes]:
    """Records of the held-out examples that are not left out."""
    for record in itertools.chain.from_iterable(shard.records() for shard in shards):
        if _id_of(record) not in left_out:
            yield record


def _held_out(shards: list[_Shard], left_out: frozenset[str]) -> _HeldOut:
    ids: list[str] = []
    pictures: set[bytes] = set()
    for record in _judging(shards, left_out):
        features = tf.train.Example.FromString(record).features.feature
        ids.append(_id_of(record))
        # The same key as in `group_of`, without its modulus.
        mean = features["latent/mean"].bytes_list.value[0]
        pictures.add(hashlib.sha256(mean).digest())
    return _HeldOut(ids, len(pictures))


def _shards(latents: types.Artifact, scores: types.Artifact) -> Iterator[_Shard]:
    folder = artifact_utils.get_split_uri([scores], SPLIT)
    tf.io.gfile.makedirs(folder)
    sources: list[str | None] = [*_files(latents, SPLIT)] or [None]
    for index, source in enumerate(sources):
        yield _Shard(source, os.path.join(folder, shard_name("scores", index, len(sources))))


def _files(latents: types.Artifact, split: str) -> list[str]:
    pattern = io_utils.all_files_pattern(artifact_utils.get_split_uri([latents], split))
    return sorted(tf.io.gfile.glob(pattern))


def _check_latents(uri: str, preset: str, image_size: int) -> None:
    from trainer.data.latents import LatentsManifest

    manifest = LatentsManifest.read(uri)
    if (manifest.preset, manifest.image_size) != (preset, image_size):
        raise UserError(
            f"the latents in {uri} are of preset {manifest.preset!r} at {manifest.image_size} "
            f"pixels, but this run needs {preset!r} at {image_size}: run LatentGen again"
        )


def _check_candidate(folder: str, preset: str, image_size: int) -> None:
    if (found := ModelManifest.find(folder)) is None or not found.fits(preset, image_size):
        raise UserError(
            f"the candidate in {folder} is {_described(found)}, but this run needs preset "
            f"{preset!r} at {image_size} pixels: run the Trainer again"
        )


def _baseline(models: list[types.Artifact], preset: str, image_size: int) -> _Baseline:
    if not models:
        return _Baseline(None, BASE_WEIGHTS_LABEL)
    model = artifact_utils.get_single_instance(models)
    label = f"model {model.id}"
    folder = path_utils.serving_model_path(model.uri)
    if (found := ModelManifest.find(folder)) is not None and found.fits(preset, image_size):
        return _Baseline(folder, label)
    problem = (
        f"the latest blessed model ({model.id}) is {_described(found)}, and cannot be compared "
        f"with a model of preset {preset!r} at {image_size} pixels (set evaluation.baseline to "
        "base_weights, or use another output folder)"
    )
    logger.warning("Only the candidate is scored: %s.", problem)
    return _Baseline(None, label, problem)


def _described(manifest: ModelManifest | None) -> str:
    if manifest is None:
        return "a model without a manifest"
    return f"of preset {manifest.preset!r} at {manifest.image_size} pixels"


def _id_of(record: bytes) -> str:
    return bytes_of(record, "id").decode()
