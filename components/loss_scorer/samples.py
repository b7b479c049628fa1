"""Pictures drawn for held-out captions, and what can be measured of them without a second model."""

from __future__ import annotations

import dataclasses
import heapq
import itertools
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import tensorflow as tf

from components.loss_scorer import draws
from components.loss_scorer.latent_examples import LatentExample
from components.loss_scorer.models import Encode, ScoredModel, exported_decoder
from trainer.presets import LATENT_SCALE, Prediction
from trainer.weights.base_model import BaseModel

_GRID = 2


@dataclasses.dataclass(frozen=True)
class SampleSettings:
    """How pictures are drawn.

    Attributes:
        num_steps: Sampling steps.
        guidance_scale: Classifier-free guidance scale.
        batch_size: Pictures that are drawn at once.
        clip_model: Address of a CLIP; empty for none.
    """

    num_steps: int
    guidance_scale: float
    batch_size: int
    clip_model: str = ""


@dataclasses.dataclass(frozen=True)
class Measures:
    """What one model's picture for a caption is like.

    Attributes:
        agrees: Whether the creature has the colour that the caption names; `None` where it names
            none.
        features: See `latent_features`.
        clip_score: See `components.loss_scorer.clip.clip_scores`; `None` without a CLIP.
    """

    agrees: bool | None
    features: np.ndarray
    clip_score: float | None


@dataclasses.dataclass(frozen=True)
class SampledExample:
    """A held-out example and the pictures drawn for it.

    Attributes:
        candidate: Of the candidate's picture.
        baseline: Of the baseline's.
        held_out: Features of the held-out picture itself.
    """

    candidate: Measures
    baseline: Measures | None
    held_out: np.ndarray


def chosen(example_ids: Iterable[str], number: int, seed: int) -> frozenset[str]:
    """Picks examples at random, but the same ones every time; memory grows with `number` alone."""
    picked = heapq.nsmallest(number, example_ids, key=lambda name: (draws.rank(name, seed), name))
    return frozenset(picked)


def latent_features(mean: np.ndarray) -> np.ndarray:
    """A picture in a few numbers, out of the image encoder's mean.

    Args:
        mean: float32 [h, w, 4].

    Returns:
        float32 [20], scaled as the diffusion model sees latents: the mean of each channel in each
        quarter, and each channel's standard deviation.
    """
    mean = LATENT_SCALE * mean
    quarters = [
        part.mean(axis=(0, 1))
        for half in np.array_split(mean, _GRID, axis=0)
        for part in np.array_split(half, _GRID, axis=1)
    ]
    return np.concatenate([*quarters, mean.std(axis=(0, 1))]).astype(np.float32)


class _Drawer:
    """Draws latents with one model."""

    def __init__(
        self,
        model: ScoredModel,
        prediction: Prediction,
        settings: SampleSettings,
        unconditional: tf.Tensor,
    ) -> None:
        # Imports Keras.
        from trainer.diffusion.noise_schedule import NoiseSchedule
        from trainer.diffusion.sampler import sample

        @tf.function
        def draw(noise: tf.Tensor, context: tf.Tensor) -> tf.Tensor:
            return sample(
                model.predict,
                NoiseSchedule(prediction),
                noise=noise,
                context=context,
                unconditional_context=tf.broadcast_to(unconditional, tf.shape(context)),
                num_steps=tf.constant(settings.num_steps),
                guidance_scale=tf.constant(settings.guidance_scale, tf.float32),
            )

        self._model = model
        self._draw = draw

    def __call__(self, examples: Sequence[LatentExample], noise: np.ndarray) -> tf.Tensor:
        """Latents float32 [B, h, w, 4] for the examples' captions."""
        contexts = self._model.contexts(
            np.stack([example.tokens for example in examples]),
            np.stack([example.context for example in examples]),
        )
        return self._draw(noise, contexts)


class Sampler:
    """Draws and measures pictures with both models, from the same noise."""

    def __init__(
        self,
        models: Sequence[ScoredModel | None],
        *,
        frozen_encoder: Encode,
        decoder_folder: str,
        base_model: BaseModel,
        settings: SampleSettings,
        seed: int,
    ) -> None:
        """Loads the decoder and the image encoder, which are no model's own: nothing trains them.

        Args:
            models: Candidate and baseline; `None` for what cannot be compared.
            frozen_encoder: The base weights' text encoder.
            decoder_folder: Folder of an exported model.
            base_model: What they were trained from; its image encoder measures.
            settings: How pictures are drawn.
            seed: Decides the noise that they start from.
        """
        # Import Keras.
        from components.loss_scorer.clip import Clip
        from trainer.text.tokenizer import tokenize

        self._settings = settings
        self._seed = seed
        self._latent_shape = base_model.latent_shape
        self._decode = exported_decoder(decoder_folder)
        self._clip = Clip(settings.clip_model) if settings.clip_model else None
        image_encoder, preset = base_model.build("image_encoder"), base_model.preset
        empty = tf.constant(tokenize([""], preset.text_encoder.max_length))

        @tf.function
        def encode(images: tf.Tensor) -> tf.Tensor:
            pixels = tf.cast(images, tf.float32) / 127.5 - 1.0
            return tf.split(image_encoder(pixels, training=False), 2, axis=-1)[0]

        self._encode = encode
        self._drawers = [
            _Drawer(model, preset.prediction, settings, (model.encode or frozen_encoder)(empty)[0])
            if model
            else None
            for model in models
        ]

    def __call__(self, examples: Iterable[LatentExample]) -> Iterator[tuple[str, SampledExample]]:
        """Samples for examples; yields each one's id and measures, in their order."""
        examples = iter(examples)
        while batch := list(itertools.islice(examples, self._settings.batch_size)):
            candidate, baseline = (
                self._measures(drawer, batch) if drawer else [None] * len(batch)
                for drawer in self._drawers
            )
            for example, mine, other in zip(batch, candidate, baseline, strict=True):
                assert mine is not None
                yield example.id, SampledExample(mine, other, latent_features(example.mean))

    def _measures(self, drawer: _Drawer, batch: list[LatentExample]) -> list[Measures]:
        from components.loss_scorer.clip import clip_scores
        from components.loss_scorer.colour_agreement import body_colour, caption_colour
        from trainer.text.tokenizer import caption_of

        # Filled up: kernels may round differently at another batch size.
        filled = batch + batch[-1:] * (self._settings.batch_size - len(batch))
        noise = [
            draws.initial_noise(example.id, self._seed, self._latent_shape) for example in filled
        ]
        images = self._decode(drawer(filled, np.stack(noise)))
        means = self._encode(images).numpy()[: len(batch)]
        pictures = images.numpy()[: len(batch)]
        colours = [caption_colour(caption_of(example.tokens)) for example in batch]
        scores: list[float | None] = [None] * len(batch)
        if self._clip is not None:
            texts = self._clip.text_embeddings(np.stack([example.tokens for example in batch]))
            scores = list(map(float, clip_scores(self._clip.image_embeddings(pictures), texts)))
        return [
            Measures(
                agrees=None if colour is None else body_colour(picture) == colour,
                features=latent_features(mean),
                clip_score=score,
            )
            for colour, picture, mean, score in zip(colours, pictures, means, scores, strict=True)
        ]
