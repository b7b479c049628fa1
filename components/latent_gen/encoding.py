"""Turns a shard of examples into a shard of latents, taken over from former runs or encoded."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import hashlib
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import apache_beam as beam
import numpy as np
import tensorflow as tf
from apache_beam.utils import shared

from components.caption_example_gen.captions import CaptionTemplate, TagShuffle
from components.caption_example_gen.word_captions import WordCaptions
from components.latent_gen.encoders import Encoders, Moments
from components.latent_gen.former_records import FormerRecords, Pieces
from components.latent_gen.index import IndexedRecord, IndexedShard, picture_key, record_digest
from components.progress import SharedProgress
from components.tfrecords import read_shard, write_shard
from storage import filesystem, images
from storage.user_errors import UserError
from trainer.data.buckets import Bucket, BucketLimits
from trainer.data.latents import make_latent_example
from trainer.text.new_word import FIRST_NEW_ID, NewWord
from trainer.text.tokenizer import tokenize
from trainer.weights.base_model import BaseModel

CROPS = CROP_CENTRE, CROP_RANDOM = "centre", "random"

HELD_OUT, TRAINED_ON = "eval", "train"
"""Splits. Held-out captions are scored and may be drawn, so they stay as written."""

ENCODING = "encoding"
"""The work whose progress is counted."""

VIEWS = "views"
"""The counter, beside the splits, of the views of training examples in an epoch."""

# In batches: how many examples may wait for one before them.
_MOST_WAITING = 16

PICTURES, CAPTIONS = "pictures", "captions"
PICTURES_TAKEN, CAPTIONS_TAKEN = f"{PICTURES}_taken_over", f"{CAPTIONS}_taken_over"
OTHER_NUMERICS = "other_numerics"
"""Counters for former runs: what was taken over, and the records that were not because their
encoders had other numerics."""


@dataclasses.dataclass(frozen=True)
class Shard:
    """A file of examples and the file of latents that it becomes.

    Attributes:
        split: Split of both files.
        number: Number of the shard within the split.
        source: File of the examples.
        target: File of the latents.
    """

    split: str
    number: int
    source: str
    target: str


@dataclasses.dataclass(frozen=True)
class Way:
    """How examples are encoded.

    Attributes:
        base_model: The model whose encoders are used.
        flip: Whether the mirror images are also encoded.
        crop: One of `CROPS`.
        crop_seed: Seed of random crops.
        tags: How training captions are varied.
        template: Template that the captions were put into.
        words: How captions are varied if a new word is learned; `None` if none is learned.
        limits: Limits of the buckets that pictures are scaled and cropped to; `None`: a square.
    """

    base_model: BaseModel
    flip: bool
    crop: str
    crop_seed: int
    tags: TagShuffle
    template: CaptionTemplate
    words: WordCaptions | None = None
    limits: BucketLimits | None = None

    @property
    def word(self) -> NewWord | None:
        """The new word; `None` if none is learned."""
        return self.words.word if self.words else None

    def bucket(self, width: int, height: int) -> Bucket | None:
        """The bucket for a picture of this width and height; `None`: a square."""
        return None if self.limits is None else self.limits.bucket_of(width, height)

    def position(self, example_id: str) -> tuple[float, float]:
        """Position of the part of a picture that is kept."""
        if self.crop == CROP_RANDOM:
            return images.random_position(example_id, self.crop_seed)
        return images.CENTRE

    def captions(self, caption: str, example_id: str, held_out: bool) -> Sequence[str]:
        """A caption, or its variants."""
        if held_out:
            return [caption]
        if self.words is not None and self.words.variants:
            return self.words.of(caption)
        if not self.tags.variants:
            return [caption]
        return self.tags.of(caption, example_id, self.template)


def in_bucket(bucket: Bucket, what: str) -> str:
    """The counter for the examples of a split, or for `VIEWS`, in a bucket."""
    return f"{bucket.name}/{what}"


@dataclasses.dataclass
class _Item:
    """An example in progress. Its context and moments are `None` until they are encoded."""

    id: str
    caption: str
    repeats: int | None
    picture: str
    bucket: Bucket | None
    tokens: np.ndarray
    context: np.ndarray | None = None
    moments: Moments | None = None


class EncodeShard(beam.DoFn):
    """(Target path, the `Shard` and all `Pieces` for it) -> counts; writes the latents."""

    def __init__(
        self,
        way: Way,
        folder: str,
        indexed: bool,
        encoders: shared.Shared,
        progress: SharedProgress,
    ) -> None:
        """Makes the function.

        Args:
            way: How to encode.
            folder: Existing folder for incomplete files, on the same file system as the latents.
            indexed: Whether to record what was written, for `read_indexed`.
            encoders: Handle of the encoders that all threads of a process share.
            progress: Counts `ENCODING`.
        """
        self._way = way
        self._folder = folder
        self._indexed = indexed
        self._shared_encoders = encoders
        self._progress = progress

    def setup(self) -> None:
        """Builds the encoders: one copy per process, however many threads work in it."""
        self._encoders: Encoders = self._shared_encoders.acquire(
            lambda: Encoders(self._way.base_model, self._way.flip)
        )

    def process(self, element: tuple[str, Iterable[Shard | Pieces]]) -> Iterator[tuple[str, int]]:
        """Writes one file of latents."""
        target, parts = element
        parts = list(parts)
        [shard] = [part for part in parts if isinstance(part, Shard)]
        pieces = [part for part in parts if isinstance(part, Pieces)]
        numerics = self._encoders.numerics if self._indexed else ""
        counts: collections.Counter[str] = collections.Counter()
        written: list[IndexedRecord] = []
        with contextlib.closing(
            FormerRecords(p for p in pieces if p.numerics == numerics)
        ) as former:
            records = self._records(shard, former, counts, written)
            counts[shard.split] += write_shard(target, records, self._folder)
        others = (each for each in pieces if each.numerics != numerics)
        counts[OTHER_NUMERICS] += sum(len(each.pieces) for each in others)
        if self._indexed:
            said = json.dumps([numerics, written]).encode()
            filesystem.write_bytes(_said_path(self._folder, target), said)
        yield from counts.items()

    def _records(
        self,
        shard: Shard,
        former: FormerRecords,
        counts: collections.Counter[str],
        written: list[IndexedRecord],
    ) -> Iterator[bytes]:
        """The latents of a shard's examples, in order."""
        held_out, at_once = shard.split == HELD_OUT, self._encoders.batch_size
        waiting: collections.deque[_Item] = collections.deque()
        captions: list[_Item] = []
        pictures: dict[Bucket | None, list[tuple[_Item, np.ndarray]]] = {}

        def encode_pictures(bucket: Bucket | None) -> None:
            alike = pictures.pop(bucket)
            moments = self._encoders.pictures([image for _, image in alike])
            for row, (item, _) in enumerate(alike):
                item.moments = moments.of(row)

        def encode(least: int) -> None:
            if len(captions) >= least:
                word = self._way.word
                # The frozen encoder only has the vector of the initial word.
                contexts = self._encoders.captions(
                    [word.as_initial(item.tokens) if word else item.tokens for item in captions]
                )
                for item, context in zip(captions, contexts, strict=True):
                    item.context = context
                captions.clear()
            for bucket in [key for key, alike in pictures.items() if len(alike) >= least]:
                encode_pictures(bucket)
            # The first is in a bucket with few pictures, and keeps all behind it in memory.
            if len(waiting) > _MOST_WAITING * at_once and waiting[0].moments is None:
                encode_pictures(waiting[0].bucket)

        def done() -> Iterator[bytes]:
            while waiting and waiting[0].context is not None and waiting[0].moments is not None:
                item = waiting.popleft()
                record = _serialized(item, held_out)
                written.append(IndexedRecord(item.id, item.picture, record_digest(record)))
                self._progress.update(ENCODING)
                yield record

        for serialized in read_shard(shard.source):
            features = tf.train.Example.FromString(serialized).features.feature
            item = self._item(features, held_out)
            self._take_over(item, former)
            counts[CAPTIONS_TAKEN] += item.context is not None
            counts[PICTURES_TAKEN] += item.moments is not None
            if shard.split == TRAINED_ON:
                counts[VIEWS] += item.repeats or 1
            if item.bucket is not None:
                counts[in_bucket(item.bucket, shard.split)] += 1
                if shard.split == TRAINED_ON:
                    counts[in_bucket(item.bucket, VIEWS)] += item.repeats or 1
            waiting.append(item)
            if item.context is None:
                captions.append(item)
            if item.moments is None:
                image = self._image(_bytes_of(features, "image/encoded"), item)
                pictures.setdefault(item.bucket, []).append((item, image))
            encode(at_once)
            yield from done()
        encode(1)
        yield from done()

    def _item(self, features: Any, held_out: bool) -> _Item:
        way, text = self._way, self._way.base_model.preset.text_encoder
        example_id, caption = (_bytes_of(features, name).decode() for name in ("id", "caption"))
        sha256 = hashlib.sha256(_bytes_of(features, "image/encoded")).hexdigest()
        return _Item(
            id=example_id,
            caption=caption,
            # A held-out example is scored once.
            repeats=None if held_out else _repeats_of(features),
            picture=picture_key(sha256, way.position(example_id)),
            bucket=way.bucket(*(_int_of(features, f"image/{side}") for side in ("width", "height")))
            if way.limits
            else None,
            tokens=tokenize(
                way.captions(caption, example_id, held_out),
                text.max_length,
                text.padding,
                way.word,
            ),
        )

    def _take_over(self, item: _Item, former: FormerRecords) -> None:
        """Takes over what a former run has encoded: the picture, and the caption if unchanged."""
        record = former.read(item.id, item.picture)
        if record is None:
            return
        features = record.features.feature
        item.moments = Moments(
            **{
                field.name: _halves(features, f"latent/{field.name}")
                for field in dataclasses.fields(Moments)
                if f"latent/{field.name}" in features
            }
        )
        # The context of a new word's tokens comes from its initial word, which may have changed.
        is_known = (item.tokens < FIRST_NEW_ID).all()
        if is_known and np.array_equal(features["tokens"].int64_list.value, item.tokens.ravel()):
            item.context = _halves(features, "context")

    def _image(self, encoded: bytes, item: _Item) -> np.ndarray:
        try:
            # CaptionExampleGen has already checked the size.
            image = images.decode_image(encoded, max_pixels=sys.maxsize)
        except images.ImageError as error:
            raise UserError(
                f"example {item.id} cannot be encoded: {error}. Its file has changed since "
                "CaptionExampleGen wrote it: remove the folder of that step below artifacts, and "
                "start the run again"
            ) from error
        size = self._way.base_model.image_size if item.bucket is None else item.bucket.size
        return images.to_model_range(images.resize_cover(image, size, self._way.position(item.id)))


def read_indexed(folder: str, shard: Shard) -> IndexedShard:
    """Reads what `EncodeShard` recorded about a shard, from its file in the same folder."""
    numerics, records = json.loads(filesystem.read_bytes(_said_path(folder, shard.target)))
    return IndexedShard(shard.target, numerics, tuple(IndexedRecord(*r) for r in records))


def _said_path(folder: str, target: str) -> str:
    return filesystem.join(folder, f"{hashlib.sha256(target.encode()).hexdigest()}.json")


def _serialized(item: _Item, held_out: bool) -> bytes:
    assert item.context is not None
    assert item.moments is not None
    serialized: bytes = make_latent_example(
        example_id=item.id,
        tokens=item.tokens,
        context=item.context,
        **item.moments.arrays(),
        caption=item.caption if held_out else None,
        repeats=item.repeats,
        size=None if item.bucket is None else item.bucket.size,
    ).SerializeToString(deterministic=True)
    return serialized


def _halves(features: Any, name: str) -> np.ndarray:
    return np.frombuffer(_bytes_of(features, name), "<f2")


def _bytes_of(features: Any, name: str) -> bytes:
    value: bytes = features[name].bytes_list.value[0]
    return value


def _int_of(features: Any, name: str) -> int:
    value: int = features[name].int64_list.value[0]
    return value


def _repeats_of(features: Any) -> int | None:
    values = features["repeats"].int64_list.value if "repeats" in features else ()
    return int(values[0]) if values else None
