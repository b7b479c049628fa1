"""The record that LatentGen writes, and that training and evaluation read."""

from __future__ import annotations

import collections
import dataclasses
import itertools
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from trainer.data.buckets import BucketCounts, bucket_order
from trainer.diffusion.noise_schedule import LATENT_SCALE
from trainer.presets import LATENT_DOWNSAMPLING, ImageSize, Preset
from trainer.text.new_word import NewWord

LATENTS_MANIFEST_NAME = "manifest.json"
_SHUFFLE_BUFFER = 16_384
_REPEATS = "repeats"
_SIZE = "latent/size"


@dataclasses.dataclass(frozen=True)
class LatentsManifest:
    """How a set of latents was made; `manifest.json` next to them.

    Attributes:
        preset: Name of the preset.
        image_size: Side of the pictures in pixels.
        encoders_hash: SHA-256 over the weights of the text and image encoder.
        flip: Whether the latents of mirror images are included.
        counts: Number of records in each split.
        views: Number of training records that an epoch sees, with their repeats; `None` if no
            record has repeats, so that an epoch sees each once.
        caption_variants: Variants of contexts and tokens in a record of the train split.
        pictures: Number of different training pictures, fewer than records if some have several
            captions; `None` if they were not counted.
        word: The fields of a `NewWord` that captions may have; empty for none. Contexts have the
            initial word in its place.
        buckets: The buckets of the pictures, if these keep their shape; `None` if all are squares.
        rows_digest: Digest of the dataset's rows (see `storage.row_index.digest`); `None` if it was
            not computed.
    """

    preset: str
    image_size: int
    encoders_hash: str
    flip: bool
    counts: dict[str, int]
    views: int | None = None

    @property
    def epoch_size(self) -> int:
        """Number of records that an epoch sees, including repeats."""
        return self.counts["train"] if self.views is None else self.views

    caption_variants: int = 1
    pictures: int | None = None
    word: dict[str, Any] = dataclasses.field(default_factory=dict)
    buckets: list[BucketCounts] | None = None
    rows_digest: str | None = None

    @property
    def new_word(self) -> NewWord | None:
        """The word that captions may have; `None` for none."""
        return NewWord.of_fields(self.word)

    @property
    def fields(self) -> dict[str, Any]:
        """The fields by name; empty ones are left out, as before they existed."""
        without = {name for name in ("word", "buckets", "rows_digest") if not getattr(self, name)}
        return {n: v for n, v in dataclasses.asdict(self).items() if n not in without}

    @property
    def trained_buckets(self) -> list[BucketCounts] | None:
        """The buckets that have training pictures."""
        return self.buckets and [bucket for bucket in self.buckets if bucket.views]

    @property
    def largest(self) -> ImageSize:
        """The size with the most pixels among the training pictures."""
        sizes = [bucket.size for bucket in self.trained_buckets or ()]
        return max(sizes, key=lambda size: (math.prod(size), size)) if sizes else self.image_size

    def write(self, uri: str) -> None:
        """Writes `<uri>/manifest.json`."""
        with tf.io.gfile.GFile(os.path.join(uri, LATENTS_MANIFEST_NAME), "w") as f:
            f.write(json.dumps(self.fields, indent=2, sort_keys=True))

    @classmethod
    def read(cls, uri: str) -> LatentsManifest:
        """Reads `<uri>/manifest.json`."""
        with tf.io.gfile.GFile(os.path.join(uri, LATENTS_MANIFEST_NAME), "r") as f:
            content = json.loads(f.read())
        buckets = content.get("buckets")
        return cls(
            **{**content, "buckets": buckets and [BucketCounts(**bucket) for bucket in buckets]}
        )


def make_latent_example(
    *,
    example_id: str,
    tokens: np.ndarray,
    context: np.ndarray,
    mean: np.ndarray,
    log_variance: np.ndarray,
    mirror_mean: np.ndarray | None = None,
    mirror_log_variance: np.ndarray | None = None,
    caption: str | None = None,
    repeats: int | None = None,
    size: tuple[int, int] | None = None,
) -> tf.train.Example:
    """One record.

    Args:
        example_id: The example's content hash.
        tokens: int [77], or [V, 77] for several variants of the caption.
        context: The text encoder's output, [77, D], or [V, 77, D]; stored as float16.
        mean: The image encoder's mean, [h, w, 4]; stored as float16.
        log_variance: The image encoder's log-variance, [h, w, 4]; stored as float16.
        mirror_mean: The same for the mirror image, if flips are on.
        mirror_log_variance: The same for the mirror image, if flips are on.
        caption: The original caption of a held-out example, which may become a prompt.
        repeats: How often an epoch sees a training example; `None`: once, like all examples of its
            dataset.
        size: Height and width of the picture in pixels, if sizes vary; `None` if all are squares
            of one size.
    """

    def half(values: np.ndarray) -> tf.train.Feature:
        return tf.train.Feature(
            bytes_list=tf.train.BytesList(value=[np.asarray(values, dtype="<f2").tobytes()])
        )

    features = {
        "id": tf.train.Feature(bytes_list=tf.train.BytesList(value=[example_id.encode()])),
        "tokens": tf.train.Feature(
            int64_list=tf.train.Int64List(value=[int(t) for t in np.ravel(tokens)])
        ),
        "context": half(context),
        "latent/mean": half(mean),
        "latent/log_variance": half(log_variance),
    }
    if mirror_mean is not None and mirror_log_variance is not None:
        features["latent/mirror_mean"] = half(mirror_mean)
        features["latent/mirror_log_variance"] = half(mirror_log_variance)
    if caption is not None:
        features["caption"] = tf.train.Feature(
            bytes_list=tf.train.BytesList(value=[caption.encode()])
        )
    if repeats is not None:
        features[_REPEATS] = tf.train.Feature(int64_list=tf.train.Int64List(value=[repeats]))
    if size is not None:
        sides = [side // LATENT_DOWNSAMPLING for side in size]
        features[_SIZE] = tf.train.Feature(int64_list=tf.train.Int64List(value=sides))
    return tf.train.Example(features=tf.train.Features(feature=features))


def size_of(record: bytes, image_size: ImageSize) -> ImageSize:
    """The size of the picture of a record.

    Args:
        record: A serialized record.
        image_size: The size if the record has none.
    """
    sides = latent_sides(tf.train.Example.FromString(record).features.feature)
    if sides is None:
        return image_size
    return sides[0] * LATENT_DOWNSAMPLING, sides[1] * LATENT_DOWNSAMPLING


def latent_sides(features: Mapping[str, tf.train.Feature]) -> tuple[int, int] | None:
    """Height and width of the latents in a record; `None` if all are squares."""
    if _SIZE not in features:
        return None
    height, width = features[_SIZE].int64_list.value
    return height, width


def parse_latents(
    serialized: tf.Tensor,
    preset: Preset,
    image_size: ImageSize,
    flip: bool = False,
    caption_variants: int = 1,
) -> dict[str, tf.Tensor]:
    """Parses a batch of serialized records, string [B].

    Args:
        serialized: The records.
        preset: The preset that made them.
        image_size: Size of all their pictures.
        flip: Whether to parse the latents of mirror images.
        caption_variants: Number of caption variants in the records.

    Returns:
        `id` string [B], `tokens` int64 [B, 77], `context` float32 [B, 77, D], `latent/mean` and
        `latent/log_variance` float32 [B, h, w, 4]; with `flip` also `latent/mirror_mean` and
        `latent/mirror_log_variance`. With several variants of the caption, `tokens` is
        [B, V, 77] and `context` [B, V, 77, D].
    """
    shapes = _float_shapes(preset, image_size, flip, caption_variants)
    tokens_shape = _tokens_shape(preset, caption_variants)
    spec = {name: tf.io.FixedLenFeature([], tf.string) for name in ("id", *shapes)}
    spec["tokens"] = tf.io.FixedLenFeature([math.prod(tokens_shape)], tf.int64)
    parsed = tf.io.parse_example(serialized, spec)
    if caption_variants > 1:
        parsed["tokens"] = tf.reshape(parsed["tokens"], (-1, *tokens_shape))
    for name, shape in shapes.items():
        flat = tf.io.decode_raw(parsed[name], tf.float16)
        # With the batch dimension given, a record of another picture size is an error.
        values = tf.reshape(flat, (tf.shape(serialized)[0], *shape))
        parsed[name] = tf.cast(values, tf.float32)
    return parsed


def batch_spec(
    preset: Preset, image_size: ImageSize, flip: bool, batch_size: int, caption_variants: int = 1
) -> dict[str, tf.TensorSpec]:
    """Shapes and types of the numbers in a batch of `training_batches`."""
    spec = {
        name: tf.TensorSpec((batch_size, *shape), tf.float32)
        for name, shape in _float_shapes(preset, image_size, flip, caption_variants).items()
    }
    spec["tokens"] = tf.TensorSpec((batch_size, *_tokens_shape(preset, caption_variants)), tf.int64)
    return spec


def _tokens_shape(preset: Preset, caption_variants: int) -> tuple[int, ...]:
    length = preset.text_encoder.max_length
    return (length,) if caption_variants == 1 else (caption_variants, length)


def _float_shapes(
    preset: Preset, image_size: ImageSize, flip: bool, caption_variants: int
) -> dict[str, tuple[int, ...]]:
    latent = preset.latent_shape(image_size)
    shapes: dict[str, tuple[int, ...]] = {
        "context": (*_tokens_shape(preset, caption_variants), preset.text_encoder.width),
        "latent/mean": latent,
        "latent/log_variance": latent,
    }
    if flip:
        shapes |= {"latent/mirror_mean": latent, "latent/mirror_log_variance": latent}
    return shapes


def sample_posterior(mean: tf.Tensor, log_variance: tf.Tensor, noise: tf.Tensor) -> tf.Tensor:
    """Draws scaled latents from the encoder's posterior (Kingma and Welling 2014, section 2.4).

    Args:
        mean: float32 [B, h, w, 4].
        log_variance: float32 [B, h, w, 4].
        noise: float32 [B, h, w, 4], standard normal.

    Returns:
        float32 [B, h, w, 4], multiplied by `LATENT_SCALE`.
    """
    # The reference clamps the log-variance before it exponentiates (Stable Diffusion's
    # DiagonalGaussianDistribution); float16 storage could otherwise hold values that overflow.
    deviation = tf.exp(0.5 * tf.clip_by_value(log_variance, -30.0, 20.0))
    return LATENT_SCALE * (mean + deviation * noise)


def training_batches(
    files: Sequence[str],
    preset: Preset,
    image_size: int,
    *,
    flip: bool,
    batch_size: int,
    seed: int,
    first_step: int,
    num_examples: int,
    num_views: int | None = None,
    caption_variants: int = 1,
    buckets: Sequence[BucketCounts] | None = None,
) -> Iterator[dict[str, tf.Tensor]]:
    """Endless training batches whose order depends only on `seed`.

    Every epoch is a new shuffle of all examples with their repeats. The rest of an epoch that does
    not fill a batch is carried into the next epoch, so no example is left out. With buckets, each
    batch comes from one bucket, which `bucket_order` decides, and all this holds for each bucket
    separately.
    Starting at `first_step` gives the same batches as starting at zero and skipping, which makes a
    resumed run exact.

    Args:
        files: TFRecord files (gzip) of the train split.
        preset: The preset that made the latents.
        image_size: Side of the pictures in pixels.
        flip: Whether the records hold the latents of mirror images.
        batch_size: Examples per batch.
        seed: Decides the order.
        first_step: Batches to skip.
        num_examples: Examples in `files`.
        num_views: Number of examples that an epoch sees, with repeats (see
            `LatentsManifest.views`); `None` for each once.
        caption_variants: Number of caption variants in each record.
        buckets: The buckets of the records; `None` if all have `image_size`.

    Yields:
        What `parse_latents` returns.
    """

    def batches(
        size: ImageSize, epoch_size: int, first_batch: int, bucket: BucketCounts | None = None
    ) -> Iterator[dict[str, tf.Tensor]]:
        @tf.function(input_signature=[tf.TensorSpec([batch_size], tf.string)], autograph=False)
        def parse(serialized: tf.Tensor) -> dict[str, tf.Tensor]:
            return parse_latents(serialized, preset, size, flip, caption_variants)

        first_epoch, skipped = divmod(first_batch * batch_size, epoch_size)
        # The views of a record share its memory, so the buffer may hold more in proportion; all
        # buckets together hold as many as one buffer without buckets.
        buffer = max(1, min(epoch_size, _SHUFFLE_BUFFER * epoch_size // num_examples))
        seeds = [seed, *(() if bucket is None else bucket.size)]

        seen = tf.data.TFRecordDataset(sorted(files), compression_type="GZIP")
        if bucket is not None:
            seen = seen.filter(_is_of(bucket.size))
        if num_views is not None:
            seen = seen.flat_map(_views)

        def records() -> Iterator[bytes]:
            for epoch in itertools.count(first_epoch):
                shuffled = seen.shuffle(
                    buffer,
                    seed=int(np.random.SeedSequence([*seeds, epoch]).generate_state(1)[0]),
                    reshuffle_each_iteration=False,
                )
                wanted = shuffled.skip(skipped if epoch == first_epoch else 0)
                yield from wanted.prefetch(2 * batch_size).as_numpy_iterator()

        remaining = records()
        while True:
            yield parse(tf.constant(list(itertools.islice(remaining, batch_size))))

    if buckets is None:
        epoch_size = num_examples if num_views is None else num_views
        yield from batches(image_size, epoch_size, first_step)
        return
    order = bucket_order([bucket.views for bucket in buckets], batch_size, seed)
    done = collections.Counter(itertools.islice(order, first_step))
    begun: dict[int, Iterator[dict[str, tf.Tensor]]] = {}
    for place in order:
        if place not in begun:
            bucket = buckets[place]
            begun[place] = batches(bucket.size, bucket.views, done[place], bucket)
        yield next(begun[place])


def _is_of(size: tuple[int, int]) -> Callable[[tf.Tensor], tf.Tensor]:
    """A filter for records whose picture has a size."""
    spec = {_SIZE: tf.io.FixedLenFeature([len(size)], tf.int64)}
    sides = tf.constant([side // LATENT_DOWNSAMPLING for side in size], tf.int64)
    return lambda record: tf.reduce_all(tf.io.parse_single_example(record, spec)[_SIZE] == sides)


def _views(serialized: tf.Tensor) -> tf.data.Dataset:
    """A record, repeated as often as an epoch sees it."""
    spec = {_REPEATS: tf.io.FixedLenFeature([], tf.int64, default_value=1)}
    repeats = tf.io.parse_single_example(serialized, spec)[_REPEATS]
    return tf.data.Dataset.from_tensors(serialized).repeat(repeats)
