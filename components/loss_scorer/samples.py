"""Draws pictures for held-out captions, and measures them."""

from __future__ import annotations

import dataclasses
import functools
import heapq
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import tensorflow as tf

from components.loss_scorer.latent_examples import LatentExample, of_one_shape
from components.loss_scorer.models import Encode, ScoredModel, exported_decoder
from components.measures import MeasureSettings, applying
from components.measures.measure import Drawn
from trainer.diffusion import draws
from trainer.text.new_word import NewWord
from trainer.weights.base_model import BaseModel


@dataclasses.dataclass(frozen=True)
class SampleSettings:
    """How pictures are drawn.

    Attributes:
        sampler: One of `trainer.diffusion.samplers.SAMPLERS`.
        num_steps: Sampling steps.
        guidance_scale: Classifier-free guidance scale.
        batch_size: Number of pictures to draw at once.
        measures: Settings of the measures to take.
    """

    sampler: str
    num_steps: int
    guidance_scale: float
    batch_size: int
    measures: MeasureSettings


@dataclasses.dataclass(frozen=True)
class DrawnPicture:
    """A picture that the candidate drew for an example's caption.

    Attributes:
        example: The example.
        picture: uint8 [H, W, 3].
        mean: float32 [h, w, 4], from the image encoder.
    """

    example: LatentExample
    picture: np.ndarray
    mean: np.ndarray


def traced(in_buckets: bool) -> Callable[[Callable[..., tf.Tensor]], Callable[..., tf.Tensor]]:
    """Traces a function for each shape of its inputs, or once for latents of any height and width.

    A model that was built for one size accepts others if the size is unknown during tracing.
    """
    if not in_buckets:
        return functools.partial(tf.function, autograph=False)

    def of_any_size(function: Callable[..., tf.Tensor]) -> Callable[..., tf.Tensor]:
        made = tf.function(function, autograph=False)

        @functools.wraps(function)
        def call(*given: tf.Tensor) -> tf.Tensor:
            tensors = [tf.convert_to_tensor(each) for each in given]
            return made.get_concrete_function(*map(_of_any_size, tensors))(*tensors)

        return call

    return of_any_size


def _of_any_size(tensor: tf.Tensor) -> tf.TensorSpec:
    """The spec of a tensor, with open height and width if it is a latent."""
    shape = tensor.shape.as_list()
    if len(shape) == 4:
        shape[1:3] = [None, None]
    return tf.TensorSpec(shape, tensor.dtype)


def chosen(example_ids: Iterable[str], number: int, seed: int) -> frozenset[str]:
    """Picks random examples, the same ones every time; memory only grows with `number`."""
    picked = heapq.nsmallest(number, example_ids, key=lambda name: (draws.rank(name, seed), name))
    return frozenset(picked)


class _Drawer:
    """Draws latents with one model."""

    def __init__(
        self,
        model: ScoredModel,
        settings: SampleSettings,
        unconditional: tf.Tensor,
        seed: int,
        in_buckets: bool,
    ) -> None:
        # Imports Keras.
        from trainer.diffusion.sampler import in_one_call, sample, step_noise

        @traced(in_buckets)
        def draw(noise: tf.Tensor, context: tf.Tensor) -> tf.Tensor:
            shape = tf.shape(noise)

            def fresh_noise(index: tf.Tensor) -> tf.Tensor:
                # The same for all, so that a picture does not depend on its position in the batch.
                one = step_noise(tf.constant([seed, 0]), index, tf.concat([[1], shape[1:]], axis=0))
                return tf.broadcast_to(one, shape)

            unconditional_context = tf.broadcast_to(unconditional, tf.shape(context))
            return sample(
                in_one_call(model.predict, context, unconditional_context),
                model.schedule,
                noise=noise,
                num_steps=tf.constant(settings.num_steps),
                guidance_scale=tf.constant(settings.guidance_scale, tf.float32),
                sampler=settings.sampler,
                fresh_noise=fresh_noise,
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
        word: NewWord | None = None,
        in_buckets: bool = False,
        on_drawn: Callable[[int], object] = lambda number: None,
    ) -> None:
        """Loads the decoder and the image encoder, which are never trained and so are shared.

        Args:
            models: Candidate and baseline; `None` for a model that cannot be compared.
            frozen_encoder: The text encoder of the base weights.
            decoder_folder: Folder of an exported model.
            base_model: The model that they were trained from; its image encoder is used to measure.
            settings: How pictures are drawn.
            seed: Seed of the noise that they start from.
            word: A new word that captions may contain.
            in_buckets: Whether pictures are of several sizes.
            on_drawn: Called with the number of pictures just drawn.
        """
        # Import Keras.
        from trainer.text.tokenizer import tokenize

        self._settings = settings
        self._seed = seed
        self._word = word
        self._on_drawn = on_drawn
        self._decode = exported_decoder(decoder_folder)
        self._measures = [
            (measure, measure.load(settings.measures)) for measure in applying(settings.measures)
        ]
        image_encoder, preset = base_model.build("image_encoder"), base_model.preset
        text = preset.text_encoder
        empty = tf.constant(tokenize([""], text.max_length, text.padding))

        @tf.function(autograph=False)
        def encode(images: tf.Tensor) -> tf.Tensor:
            pixels = tf.cast(images, tf.float32) / 127.5 - 1.0
            return tf.split(image_encoder(pixels, training=False), 2, axis=-1)[0]

        self._encode = encode

        def drawer(model: ScoredModel) -> _Drawer:
            unconditional = (model.encode or frozen_encoder)(empty)[0]
            return _Drawer(model, settings, unconditional, seed, in_buckets)

        self._drawer = drawer
        self._drawers = [drawer(model) if model else None for model in models]

    def __call__(
        self, examples: Iterable[LatentExample]
    ) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
        """Draws and measures for examples, in order except that equal shapes come together.

        Yields:
            The id of an example, and the features of all measures for its rows: float32 [N], by
            name.
        """
        for batch in of_one_shape(examples, self._settings.batch_size):
            drawn = [self._draw(drawer, batch) if drawer else None for drawer in self._drawers]
            found: list[dict[str, np.ndarray]] = [{} for _ in batch]
            for measure, values_of in self._measures:
                mine, others = (values_of(some) if some else [None] * len(batch) for some in drawn)
                for features, example, one, other in zip(found, batch, mine, others, strict=True):
                    for name, value in measure.features(one, other, example.mean).items():
                        if value is not None:
                            features[name] = np.ravel(np.asarray(value, np.float32))
            for example, features in zip(batch, found, strict=True):
                yield example.id, features

    def drawn(self, examples: Iterable[LatentExample]) -> Iterator[DrawnPicture]:
        """Pictures of the candidate only, in order except that equal shapes come together."""
        drawer = self._drawers[0]
        assert drawer is not None
        for batch in of_one_shape(examples, self._settings.batch_size):
            drawn = self._draw(drawer, batch)
            yield from map(DrawnPicture, batch, drawn.pictures, drawn.means)

    def means(
        self, examples: Sequence[LatentExample], others: ScoredModel | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Draws for examples, from the same noise, with the candidate and with another model.

        Args:
            examples: Examples whose captions are drawn; the noise depends on the id.
            others: The other model; `None`: the baseline.

        Returns:
            Means of the image encoder, float32 [N, h, w, 4], for the candidate and the other model.
        """
        drawers = [self._drawers[0], self._drawers[1] if others is None else self._drawer(others)]
        means: list[list[np.ndarray]] = [[], []]
        for start in range(0, len(examples), self._settings.batch_size):
            batch = list(examples[start : start + self._settings.batch_size])
            for drawer, found in zip(drawers, means, strict=True):
                assert drawer is not None
                found.extend(self._draw(drawer, batch).means)
        mine, theirs = (np.stack(found) for found in means)
        return mine, theirs

    def _draw(self, drawer: _Drawer, batch: list[LatentExample]) -> Drawn:
        from trainer.text.tokenizer import caption_of

        # Filled up: kernels may round differently at another batch size.
        filled = batch + batch[-1:] * (self._settings.batch_size - len(batch))
        # A picture is drawn at the size of the picture that the caption belongs to.
        noise = [draws.initial_noise(e.id, self._seed, e.mean.shape) for e in filled]
        images = self._decode(drawer(filled, np.stack(noise)))
        self._on_drawn(len(batch))
        tokens, word = np.stack([example.tokens for example in batch]), self._word
        return Drawn(
            pictures=images.numpy()[: len(batch)],
            means=self._encode(images).numpy()[: len(batch)],
            # Measures only know the words of the vocabulary.
            tokens=word.as_initial(tokens) if word else tokens,
            captions=[caption_of(row, word) for row in tokens],
        )
