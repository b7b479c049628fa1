"""The work of LatentGen.

A shard of examples becomes the shard of latents of the same number, encoded from front to back in
batches of one fixed size. So the result does not depend on how Beam spreads the shards, nothing is
sorted or shuffled, and all splits go through the same workers, which load the encoders once.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
import os
import sys
import uuid
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import apache_beam as beam
import numpy as np
import tensorflow as tf
from apache_beam.utils import shared
from tfx import types
from tfx.types import artifact_utils
from tfx.utils import io_utils

from components.caption_example_gen.captions import CaptionTemplate, TagShuffle
from components.counts import WriteCounts, read_counts
from components.latent_gen.halves import choosing, first_of_groups
from components.tfrecords import describe_examples, read_shard, shard_name, write_shard
from components.whole_elements import WholeElementsExecutor
from storage import row_index
from storage.user_errors import UserError

if TYPE_CHECKING:
    from trainer.weights.base_model import BaseModel

FLIPS = FLIP_AUTO, FLIP_ALWAYS, FLIP_NEVER = "auto", "always", "never"
CROPS = CROP_CENTRE, CROP_RANDOM = "centre", "random"

# The image encoder's activations are some hundred values a pixel.
_BATCH_PIXELS = 1 << 20
_MAX_BATCH_SIZE = 16
_COUNTS_NAME = "counts.json"
# Beside the splits, what an epoch sees of examples that are trained on.
_VIEWS = "views"

# Whose captions are scored and may be drawn, and so stay as they were written.
_HELD_OUT = "eval"
_TRAINED_ON = "train"

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class _Shard:
    """A file of examples and the file of latents that it becomes."""

    split: str
    source: str
    target: str


@dataclasses.dataclass(frozen=True)
class _Encoded:
    """What the encoders say of a batch: float32 arrays, `mirror_*` only where flips are on."""

    context: np.ndarray
    mean: np.ndarray
    log_variance: np.ndarray
    mirror_mean: np.ndarray | None
    mirror_log_variance: np.ndarray | None


class Executor(WholeElementsExecutor):
    """Encodes examples with Beam."""

    def Do(  # noqa: N802
        self,
        input_dict: dict[str, list[types.Artifact]],
        output_dict: dict[str, list[types.Artifact]],
        exec_properties: dict[str, Any],
    ) -> None:
        """See `LatentGen`.

        Raises:
            WeightsError: The weights are not those that the component was made with.
            RuntimeError: An example holds a picture that cannot be decoded.
        """
        self._log_startup(input_dict, output_dict, exec_properties)
        # Import Keras.
        from trainer.data.caption_counts import count_captions, write_counts
        from trainer.data.held_out import write_choosing
        from trainer.data.latents import LatentsManifest
        from trainer.presets import ENCODERS, get_preset
        from trainer.weights.base_model import BaseModel

        preset, image_size = get_preset(exec_properties["preset"]), exec_properties["image_size"]
        base_model = BaseModel.locate(preset, image_size, exec_properties["base_weights"])
        encoders_hash = exec_properties["encoders_hash"]
        base_model.check_unchanged(encoders_hash, ENCODERS)

        examples = artifact_utils.get_single_instance(input_dict["examples"])
        flip = _flips(exec_properties["flip"], examples)
        tags = TagShuffle(
            exec_properties["tag_variants"],
            exec_properties["tag_keep"],
            exec_properties["tag_dropout"],
            exec_properties["tag_seed"],
        )
        template = CaptionTemplate.of(examples)
        latents = artifact_utils.get_single_instance(output_dict["latents"])
        splits = artifact_utils.decode_split_names(examples.split_names)
        describe_examples(latents, splits, span=examples.span, version=examples.version)

        temporary_folder = os.path.join(latents.uri, f".unfinished-{uuid.uuid4().hex}")
        counts_path = os.path.join(temporary_folder, _COUNTS_NAME)
        tf.io.gfile.makedirs(temporary_folder)
        shards = [shard for split in splits for shard in _shards(examples, latents, split)]
        with self._make_beam_pipeline() as pipeline:
            (
                pipeline
                | "Shards" >> beam.Create(shards)
                | "Spread" >> beam.Reshuffle()
                | "Encode"
                >> beam.ParDo(
                    _EncodeShard(
                        base_model,
                        flip,
                        exec_properties["crop"],
                        exec_properties["crop_seed"],
                        tags,
                        template,
                        temporary_folder,
                        shared.Shared(),
                    )
                )
                | "WriteCounts" >> WriteCounts(counts_path)
            )
        counts = read_counts(counts_path)
        views = counts.get(_VIEWS)
        tf.io.gfile.rmtree(temporary_folder)
        rows_uri = os.path.join(examples.uri, row_index.FOLDER_NAME)
        rows = list(row_index.read_rows(rows_uri, _TRAINED_ON))

        manifest = LatentsManifest(
            preset=preset.name,
            image_size=image_size,
            encoders_hash=encoders_hash,
            flip=flip,
            counts={split: counts[split] for split in splits},
            # Where none repeats, as in most datasets, there is nothing to say.
            views=None if views == counts.get(_TRAINED_ON) else views,
            caption_variants=max(1, tags.variants),
            pictures=len({row.picture for row in rows}) or None,
        )
        manifest.write(latents.uri)
        write_counts(latents.uri, count_captions(row.caption for row in rows))
        held_out = row_index.read_rows(rows_uri, _HELD_OUT)
        write_choosing(latents.uri, choosing(held_out, first_of_groups(examples.uri)))
        latents.set_string_custom_property("preset", preset.name)
        latents.set_int_custom_property("image_size", image_size)
        latents.set_int_custom_property("flip", int(flip))
        latents.set_string_custom_property("encoders_hash", encoders_hash)
        for split, count in manifest.counts.items():
            latents.set_int_custom_property(f"num_{split}", count)
        if manifest.views is not None:
            latents.set_int_custom_property(_VIEWS, manifest.views)
            logger.info(
                "An epoch sees %s of %s pictures, which repeat as their folders say.",
                f"{manifest.views:,}",
                f"{counts[_TRAINED_ON]:,}",
            )
        logger.info(
            "Encoded %s pictures and captions at %d x %d pixels%s.",
            f"{sum(manifest.counts.values()):,}",
            image_size,
            image_size,
            ", and the pictures' mirror images" if flip else "",
        )


class Encoders:
    """The two frozen encoders of a preset."""

    def __init__(self, base_model: BaseModel, flip: bool) -> None:
        """Builds the networks and loads their weights.

        Args:
            base_model: Whose encoders, and for which size of the pictures.
            flip: Whether to encode mirror images, too.
        """
        text_encoder = base_model.build("text_encoder")
        image_encoder = base_model.build("image_encoder")
        image_size = base_model.image_size
        length = base_model.preset.text_encoder.max_length

        def moments(images: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            return tuple(tf.split(image_encoder(images, training=False), 2, axis=-1))

        @tf.function(
            input_signature=[
                tf.TensorSpec([None, length], tf.int32),
                tf.TensorSpec([None, image_size, image_size, 3], tf.float32),
            ],
            autograph=False,
        )
        def encode(tokens: tf.Tensor, images: tf.Tensor) -> dict[str, tf.Tensor]:
            context = text_encoder(tokens, training=False)
            mean, log_variance = moments(images)
            encoded = {"context": context, "mean": mean, "log_variance": log_variance}
            if flip:
                mean, log_variance = moments(tf.reverse(images, axis=[2]))
                encoded |= {"mirror_mean": mean, "mirror_log_variance": log_variance}
            return encoded

        self._encode = encode

    def __call__(self, tokens: np.ndarray, images: np.ndarray) -> _Encoded:
        """Encodes a batch.

        Args:
            tokens: int32 [B, 77], or [B * V, 77] of several captions of each picture.
            images: float32 [B, H, W, 3] in [-1, 1].
        """
        encoded = {name: tensor.numpy() for name, tensor in self._encode(tokens, images).items()}
        return _Encoded(
            context=encoded["context"],
            mean=encoded["mean"],
            log_variance=encoded["log_variance"],
            mirror_mean=encoded.get("mirror_mean"),
            mirror_log_variance=encoded.get("mirror_log_variance"),
        )


def _flips(flip: str, examples: types.Artifact) -> bool:
    """Whether mirror images are encoded too."""
    if flip != FLIP_AUTO:
        return flip == FLIP_ALWAYS
    if not examples.has_custom_property("captions_left_right"):
        raise UserError(
            "the examples do not say how many captions name left or right, so what is mirrored "
            f"cannot be found out: give --flip {FLIP_ALWAYS} or --flip {FLIP_NEVER}"
        )
    count = examples.get_int_custom_property("captions_left_right")
    if count:
        logger.warning(
            "Flips are off: %d captions say left or right, which would be wrong of a mirror image "
            "(--flip %s has them all the same).",
            count,
            FLIP_ALWAYS,
        )
    return count == 0


def _shards(examples: types.Artifact, latents: types.Artifact, split: str) -> Iterator[_Shard]:
    folder = artifact_utils.get_split_uri([latents], split)
    tf.io.gfile.makedirs(folder)
    pattern = io_utils.all_files_pattern(artifact_utils.get_split_uri([examples], split))
    sources = sorted(tf.io.gfile.glob(pattern))
    for index, source in enumerate(sources):
        target = os.path.join(folder, shard_name("latents", index, len(sources)))
        yield _Shard(split, source, target)


class _EncodeShard(beam.DoFn):
    """Shard -> (split, records in it); writes the shard of latents."""

    def __init__(
        self,
        base_model: BaseModel,
        flip: bool,
        crop: str,
        crop_seed: int,
        tags: TagShuffle,
        template: CaptionTemplate,
        temporary_folder: str,
        shared_encoders: shared.Shared,
    ) -> None:
        self._base_model = base_model
        self._flip = flip
        self._crop = crop
        self._crop_seed = crop_seed
        self._tags = tags
        self._template = template
        self._temporary_folder = temporary_folder
        self._shared_encoders = shared_encoders

    def setup(self) -> None:
        # One copy a process, however many threads work in it.
        self._encoders = self._shared_encoders.acquire(
            lambda: Encoders(self._base_model, self._flip)
        )

    def process(self, shard: _Shard) -> Iterator[tuple[str, int]]:
        views: list[int] = []
        records = self._encoded_records(read_shard(shard.source), shard.split == _HELD_OUT, views)
        yield shard.split, write_shard(shard.target, records, self._temporary_folder)
        if shard.split == _TRAINED_ON:
            yield _VIEWS, sum(views)

    def _encoded_records(
        self, serialized: Iterator[bytes], held_out: bool, views: list[int]
    ) -> Iterator[bytes]:
        """The latents of examples; notes in `views` how often an epoch sees each."""
        from trainer.data.latents import make_latent_example
        from trainer.text.tokenizer import tokenize

        batch_size = max(1, min(_MAX_BATCH_SIZE, _BATCH_PIXELS // self._base_model.image_size**2))
        while batch := list(itertools.islice(serialized, batch_size)):
            features = [tf.train.Example.FromString(record).features.feature for record in batch]
            ids = [_bytes_of(f, "id").decode() for f in features]
            captions = [_bytes_of(f, "caption").decode() for f in features]
            varied = [
                [caption]
                if held_out or not self._tags.variants
                else self._tags.of(caption, i, self._template)
                for caption, i in zip(captions, ids, strict=True)
            ]
            variants = len(varied[0])
            text = self._base_model.preset.text_encoder
            tokens = tokenize(
                [caption for several in varied for caption in several],
                text.max_length,
                text.padding,
            )
            images = np.stack(
                [
                    self._image(_bytes_of(f, "image/encoded"), i)
                    for f, i in zip(features, ids, strict=True)
                ]
            )
            # The last batch is filled up: kernels may round differently at another batch size.
            fill = batch_size - len(batch)
            encoded = self._encoders(
                np.pad(tokens, ((0, fill * variants), (0, 0)), mode="edge"),
                np.pad(images, ((0, fill), (0, 0), (0, 0), (0, 0)), mode="edge"),
            )
            for row, example_id in enumerate(ids):
                # What is held out is scored once.
                repeats = None if held_out else _repeats_of(features[row])
                views.append(repeats or 1)
                own = slice(row * variants, (row + 1) * variants)
                yield make_latent_example(
                    example_id=example_id,
                    tokens=tokens[own],
                    context=encoded.context[own],
                    mean=encoded.mean[row],
                    log_variance=encoded.log_variance[row],
                    mirror_mean=_row(encoded.mirror_mean, row),
                    mirror_log_variance=_row(encoded.mirror_log_variance, row),
                    caption=captions[row] if held_out else None,
                    repeats=repeats,
                ).SerializeToString(deterministic=True)

    def _image(self, encoded: bytes, example_id: str) -> np.ndarray:
        from storage import images

        try:
            # CaptionExampleGen has judged the size.
            image = images.decode_image(encoded, max_pixels=sys.maxsize)
        except images.ImageError as error:
            raise UserError(
                f"example {example_id} cannot be encoded: {error}. Its file has changed since "
                "CaptionExampleGen wrote it: remove that step's folder below artifacts, and start "
                "the run again"
            ) from error
        position = images.CENTRE
        if self._crop == CROP_RANDOM:
            position = images.random_position(example_id, self._crop_seed)
        size = self._base_model.image_size
        return images.to_model_range(images.resize_cover(image, size, position))


def _bytes_of(features: Any, name: str) -> bytes:
    value: bytes = features[name].bytes_list.value[0]
    return value


def _repeats_of(features: Any) -> int | None:
    values = features["repeats"].int64_list.value if "repeats" in features else ()
    return int(values[0]) if values else None


def _row(values: np.ndarray | None, row: int) -> np.ndarray | None:
    return None if values is None else values[row]
