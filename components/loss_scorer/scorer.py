"""Loads candidate and baseline, and makes the rows of scores."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np
import tensorflow as tf

from components.loss_scorer import models
from components.loss_scorer.latent_examples import LatentExample, of_one_shape, read_examples
from components.loss_scorer.records import bytes_feature, float_feature, int_feature, record_of
from components.loss_scorer.samples import DrawnPicture, Sampler, SampleSettings, traced
from components.measures.class_distance import CLASS_DISTANCE, class_distances
from trainer.data.buckets import Bucket
from trainer.diffusion.draws import NoiseDraw, draw_noise, stratum_name
from trainer.diffusion.noise_schedule import NUM_TIMESTEPS, NoiseSchedule
from trainer.presets import LATENT_DOWNSAMPLING
from trainer.text.new_word import NewWord
from trainer.weights.base_model import BaseModel

LOSSES = ("loss", "loss_baseline", "loss_delta")
TRAINING_LOSSES = tuple(f"train_{name}" for name in LOSSES)
"""The same for training pictures, which have separate rows."""
TEXT_PART, TRAINING_TEXT_PART = "text_part", "train_text_part"
"""Features on one row of some examples: see `Scorer.text_parts`."""

# Features of a row beside its losses.
GROUP = "group"
STRATUM = "timestep_bucket"
CAPTION_BUCKET = "caption_bucket"
PICTURE_SIZE = "picture_size"
"""Only set if pictures are of several sizes."""

# With up to so many pictures, hardly any share a group; with more, an interval is hardly narrower.
_NUM_GROUPS = 1024
_CAPTION_BOUNDS = (10, 20, 40, 77)
_EXAMPLES_AT_A_TIME = 16
# In the stratum of this timestep, captions differ most in how they are remembered.
_TEXT_TIMESTEP = 950


@dataclasses.dataclass(frozen=True)
class ScoringTask:
    """The task of every worker.

    Attributes:
        base_model: The model that the others were trained from.
        candidate: Folder of the candidate's SavedModels.
        baseline: Folder of the baseline's SavedModels; None for the base weights.
        comparable: Whether there is a baseline; without one, its losses are NaN.
        num_strata: Number of parts that the timesteps are divided into.
        seed: Seed of timesteps and noise.
        batch_size: Number of rows to score at once.
        samples: How pictures are drawn.
        num_draws: Rows of an example in each stratum.
        sampled: Ids of the examples whose captions are drawn.
        left_out: Ids of the examples that are not scored.
        text_parts: Ids of the held-out examples whose text part is measured; empty if it is not
            measured for training pictures either.
        caption_variants: Caption variants in the records of the train split.
        drawn: Ids of the training pictures whose captions the candidate draws.
        class_caption: Caption of a subject's class; empty if there is no class.
        class_pictures: Number of class pictures to draw.
        word: A new word that captions may contain.
        in_buckets: Whether pictures are of several sizes, which the rows then record.
    """

    base_model: BaseModel
    candidate: str
    baseline: str | None
    comparable: bool
    num_strata: int
    seed: int
    batch_size: int
    samples: SampleSettings
    num_draws: int = 1
    sampled: frozenset[str] = frozenset()
    left_out: frozenset[str] = frozenset()
    text_parts: frozenset[str] = frozenset()
    caption_variants: int = 1
    drawn: frozenset[str] = frozenset()
    class_caption: str = ""
    class_pictures: int = 0
    word: NewWord | None = None
    in_buckets: bool = False


@dataclasses.dataclass(frozen=True)
class _Row:
    """One example at one timestep."""

    example: LatentExample
    contexts: tuple[np.ndarray, ...]
    stratum: int
    draw: NoiseDraw


@dataclasses.dataclass(frozen=True)
class Scored:
    """One example at one timestep, scored.

    Attributes:
        loss: Loss of the candidate.
        loss_baseline: Loss of the baseline; NaN if there is none.
        record: Both losses and the other features of the row, a serialized tf.Example.
    """

    loss: float
    loss_baseline: float
    record: bytes


class Scorer:
    """Candidate and baseline, loaded."""

    def __init__(
        self, task: ScoringTask, on_drawn: Callable[[int], object] = lambda number: None
    ) -> None:
        """Loads both models.

        Args:
            task: What to score and draw.
            on_drawn: Called with the number of pictures just drawn.
        """
        # Import Keras.
        from trainer.data.latents import sample_posterior

        # TensorFloat-32, the default of GPUs that have it, keeps 10 bits of the mantissa.
        tf.config.experimental.enable_tensor_float_32_execution(False)
        self._task = task
        self._on_drawn = on_drawn
        self._models = [models.exported_model(task.candidate, task.word)]
        if task.comparable:
            self._models.append(
                models.loaded_base_model(task.base_model, task.in_buckets)
                if task.baseline is None
                else models.exported_model(task.baseline, task.word)
            )

        # Both see the same noisy latents, made with the candidate's schedule.
        schedule = self._models[0].schedule
        predict_alike = len({model.schedule.prediction for model in self._models}) == 1

        def of(model: models.ScoredModel) -> Callable[..., tf.Tensor]:
            @traced(task.in_buckets)
            def loss(
                mean: tf.Tensor,
                log_variance: tf.Tensor,
                posterior_noise: tf.Tensor,
                noise: tf.Tensor,
                timesteps: tf.Tensor,
                context: tf.Tensor,
            ) -> tf.Tensor:
                latent = sample_posterior(mean, log_variance, posterior_noise)
                noisy = schedule.add_noise(latent, noise, timesteps)
                predicted = model.predict(noisy, timesteps, context)
                if predict_alike:
                    error = schedule.target(latent, noise, timesteps) - predicted
                else:
                    # Both predictions give the noise, even if there is only noise.
                    alpha_bar = schedule.alpha_bar(timesteps)
                    error = noise - model.schedule.predicted_noise(noisy, predicted, alpha_bar)
                return tf.reduce_mean(tf.square(error), axis=[1, 2, 3])

            return loss

        self._losses_of = [of(model) for model in self._models]
        if task.sampled or task.drawn or task.text_parts or task.class_pictures:
            self._frozen_encoder = models.frozen_text_encoder(
                [task.candidate, task.baseline], task.base_model
            )
        if task.sampled or task.drawn or task.class_pictures:
            self._sampler = self._made_sampler()
        if task.text_parts:
            self._text_part_of = self._made_text_part(schedule)

    def rows(self, serialized: Callable[[], Iterable[bytes]]) -> Iterator[Scored]:
        """Scores records of latents; yields all rows of each scored record together.

        They come in the order of the records, except that equal shapes come together.

        Args:
            serialized: Returns the records each time it is called.
        """
        measured: Mapping[str, Mapping[str, np.ndarray]] = {}
        if self._task.sampled:
            sampled = (
                example
                for example in self._examples(serialized())
                if example.id in self._task.sampled
            )
            measured = dict(self._sampler(sampled))
        rows = self._rows(self._examples(serialized()), self._task.num_draws)
        for row, losses in self._scored(rows):
            features = self._features(row, LOSSES, losses)
            if self._task.in_buckets:
                features[PICTURE_SIZE] = bytes_feature(_picture_size(row.example.mean).encode())
            features[CAPTION_BUCKET] = bytes_feature(caption_bucket(row.example.tokens).encode())
            found = measured.get(row.example.id, {})
            features |= {name: float_feature(*values) for name, values in found.items()}
            yield _as_scored(features, losses)

    def training_rows(
        self, serialized: Callable[[], Iterable[bytes]], num_draws: int
    ) -> Iterator[Scored]:
        """Scores records of training pictures, as `rows` does.

        Args:
            serialized: Returns the records each time it is called.
            num_draws: Rows of each record in a stratum.
        """
        for row, losses in self._scored(self._rows(self._trained_on(serialized()), num_draws)):
            yield _as_scored(self._features(row, TRAINING_LOSSES, losses), losses)

    def text_parts(self, serialized: Iterable[bytes], *, training: bool) -> Iterator[bytes]:
        """How much of the candidate's prediction depends on the caption, a record for each example.

        The root mean squared difference between its predictions with and without the caption, at a
        timestep of one stratum (Wen et al. 2024, "Detecting, Explaining, and Mitigating
        Memorization in Diffusion Models", section 3.2, on noisy pictures instead of pure noise).

        Args:
            serialized: Records of latents; some of the held-out ones are left out.
            training: Whether they are records of training pictures.
        """
        task = self._task
        name = TRAINING_TEXT_PART if training else TEXT_PART
        examples = (
            self._trained_on(serialized)
            if training
            else (e for e in self._examples(serialized) if e.id in task.text_parts)
        )
        stratum = task.num_strata * _TEXT_TIMESTEP // NUM_TIMESTEPS
        rows = self._rows(examples, 1, [stratum])
        for batch in self._batches(rows):
            inputs, contexts = self._inputs(batch)
            found = self._text_part_of(*inputs, contexts[0]).numpy()
            for row, value in zip(batch, found, strict=False):
                features = {
                    "id": bytes_feature(row.example.id.encode()),
                    GROUP: int_feature(group_of(row.example.mean)),
                    name: float_feature(float(value)),
                    "label": float_feature(0.0),
                }
                yield record_of(features)

    def drawn(self, serialized: Iterable[bytes]) -> Iterator[DrawnPicture]:
        """Draws pictures for captions of training pictures, with the candidate."""
        wanted = (e for e in self._trained_on(serialized) if e.id in self._task.drawn)
        return self._sampler.drawn(wanted)

    def class_rows(self) -> Iterator[bytes]:
        """How far class pictures have moved from those of the base weights, a record for each."""
        # Imports Keras.
        from trainer.text.tokenizer import tokenize

        task = self._task
        text = task.base_model.preset.text_encoder
        tokens = tokenize([task.class_caption], text.max_length, text.padding)
        context = self._frozen_encoder(tf.constant(tokens, tf.int32)).numpy()[0]
        # A class caption has no picture of its own.
        nothing = np.zeros(task.base_model.latent_shape, np.float32)
        examples = [
            LatentExample(f"class/{index}", tokens[0], context, nothing, nothing)
            for index in range(task.class_pictures)
        ]
        compared_with_base = task.comparable and task.baseline is None
        base = None if compared_with_base else models.loaded_base_model(task.base_model)
        after, before = self._sampler.means(examples, base)
        for index, distance in enumerate(class_distances(before, after)):
            yield record_of(
                {
                    "id": bytes_feature(examples[index].id.encode()),
                    GROUP: int_feature(index % _NUM_GROUPS),
                    CLASS_DISTANCE: float_feature(float(distance)),
                    "label": float_feature(0.0),
                }
            )

    def _made_text_part(self, schedule: NoiseSchedule) -> Callable[..., tf.Tensor]:
        # Imports Keras.
        from trainer.data.latents import sample_posterior
        from trainer.text.tokenizer import tokenize

        candidate = self._models[0]
        text = self._task.base_model.preset.text_encoder
        empty_tokens = tf.constant(tokenize([""], text.max_length, text.padding))
        empty = (candidate.encode or self._frozen_encoder)(empty_tokens)

        @traced(self._task.in_buckets)
        def text_part(
            mean: tf.Tensor,
            log_variance: tf.Tensor,
            posterior_noise: tf.Tensor,
            noise: tf.Tensor,
            timesteps: tf.Tensor,
            context: tf.Tensor,
        ) -> tf.Tensor:
            latent = sample_posterior(mean, log_variance, posterior_noise)
            noisy = schedule.add_noise(latent, noise, timesteps)
            unconditional = tf.broadcast_to(empty, tf.shape(context))
            part = candidate.predict(noisy, timesteps, context) - candidate.predict(
                noisy, timesteps, unconditional
            )
            return tf.sqrt(tf.reduce_mean(tf.square(part), axis=[1, 2, 3]))

        return text_part

    def _made_sampler(self) -> Sampler:
        task = self._task
        return Sampler(
            [*self._models, None][:2],
            frozen_encoder=self._frozen_encoder,
            decoder_folder=task.candidate,
            base_model=task.base_model,
            settings=task.samples,
            seed=task.seed,
            word=task.word,
            in_buckets=task.in_buckets,
            on_drawn=self._on_drawn,
        )

    def _trained_on(self, serialized: Iterable[bytes]) -> Iterator[LatentExample]:
        base_model = self._task.base_model
        return read_examples(
            serialized, base_model.preset, base_model.image_size, self._task.caption_variants
        )

    def _examples(self, serialized: Iterable[bytes]) -> Iterator[LatentExample]:
        base_model = self._task.base_model
        for example in read_examples(serialized, base_model.preset, base_model.image_size):
            if example.id not in self._task.left_out:
                yield example

    def _rows(
        self,
        examples: Iterator[LatentExample],
        num_draws: int,
        strata: Sequence[int] | None = None,
    ) -> Iterator[_Row]:
        """Rows of examples, in some strata or in all."""
        task = self._task
        for some in of_one_shape(examples, _EXAMPLES_AT_A_TIME):
            # Filled up, like every batch.
            filled = some + some[-1:] * (_EXAMPLES_AT_A_TIME - len(some))
            tokens = np.stack([example.tokens for example in filled])
            stored = np.stack([example.context for example in filled])
            contexts = [model.contexts(tokens, stored) for model in self._models]
            for index, example in enumerate(some):
                for stratum, draw in itertools.product(
                    range(task.num_strata) if strata is None else strata, range(num_draws)
                ):
                    drawn = draw_noise(
                        example.id,
                        stratum,
                        task.num_strata,
                        task.seed,
                        example.mean.shape,
                        draw,
                    )
                    yield _Row(example, tuple(c[index] for c in contexts), stratum, drawn)

    def _scored(self, rows: Iterator[_Row]) -> Iterator[tuple[_Row, tuple[float, float]]]:
        for batch in self._batches(rows):
            yield from zip(batch, self._losses(batch), strict=True)

    def _batches(self, rows: Iterator[_Row]) -> Iterator[list[_Row]]:
        """Batches of rows whose latents have one shape."""
        for _, alike in itertools.groupby(rows, lambda row: row.example.mean.shape):
            while batch := list(itertools.islice(alike, self._task.batch_size)):
                yield batch

    def _inputs(self, batch: list[_Row]) -> tuple[tuple[np.ndarray, ...], list[np.ndarray]]:
        """The inputs that all models share for the rows, and the contexts of each model."""
        # The last batch is filled up: kernels may round differently at another batch size.
        filled = batch + batch[-1:] * (self._task.batch_size - len(batch))
        shared = (
            np.stack([row.example.mean for row in filled]),
            np.stack([row.example.log_variance for row in filled]),
            np.stack([row.draw.posterior_noise for row in filled]),
            np.stack([row.draw.epsilon for row in filled]),
            np.array([row.draw.timestep for row in filled], np.int32),
        )
        models = range(len(self._models))
        return shared, [np.stack([row.contexts[i] for row in filled]) for i in models]

    def _losses(self, batch: list[_Row]) -> Iterator[tuple[float, float]]:
        shared, contexts = self._inputs(batch)
        losses = [
            losses_of(*shared, context).numpy()
            for losses_of, context in zip(self._losses_of, contexts, strict=True)
        ]
        if not self._task.comparable:
            losses.append(np.full(self._task.batch_size, math.nan, np.float32))
        for _, loss, loss_baseline in zip(batch, *losses, strict=False):
            yield float(loss), float(loss_baseline)

    def _features(
        self, row: _Row, names: Sequence[str], losses: tuple[float, float]
    ) -> dict[str, tf.train.Feature]:
        loss, loss_baseline = losses
        values = (loss, loss_baseline, loss - loss_baseline)
        return {
            "id": bytes_feature(row.example.id.encode()),
            "timestep": int_feature(row.draw.timestep),
            STRATUM: bytes_feature(stratum_name(row.stratum, self._task.num_strata).encode()),
            GROUP: int_feature(group_of(row.example.mean)),
            **{name: float_feature(value) for name, value in zip(names, values, strict=True)},
            "label": float_feature(0.0),
        }


def _as_scored(features: Mapping[str, tf.train.Feature], losses: tuple[float, float]) -> Scored:
    return Scored(*losses, record_of(features))


def _picture_size(mean: np.ndarray) -> str:
    """The `Bucket.name` for the mean of a latent, [h, w, 4]."""
    height, width, _ = (LATENT_DOWNSAMPLING * side for side in mean.shape)
    return Bucket(width, height).name


def group_of(mean: np.ndarray) -> int:
    """The group of a picture, from 0 to 1023: the same for all of its captions.

    Args:
        mean: The mean of the latent, float32 [h, w, 4], the same for equal pictures.
    """
    digest = hashlib.sha256(mean.tobytes()).digest()
    return int.from_bytes(digest[:8], "little") % _NUM_GROUPS


def caption_bucket(tokens: np.ndarray) -> str:
    """The range that contains a caption's number of tokens, including start and end tokens."""
    from trainer.text.tokenizer import END_OF_TEXT

    ends = np.flatnonzero(tokens == END_OF_TEXT)
    count = int(ends[0]) + 1 if len(ends) else len(tokens)
    first = 1
    for last in _CAPTION_BOUNDS:
        if count <= last:
            return f"{first:02d}-{last:02d} tokens"
        first = last + 1
    return f"{first:02d} tokens or more"
