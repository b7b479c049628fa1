"""The work of LatentGen.

Each shard of examples becomes the shard of latents with the same number. The encoding of a picture
depends neither on the pictures beside it (see `Encoders`) nor on how Beam distributes the shards.
Nothing is sorted or shuffled, and all splits go through the same workers, which load the encoders
once.

What a former run has encoded therefore need not be encoded again: the result would be the same
bytes. The index of former runs (see `LatentsIndex`) tells which of their records can be used, and
these are put aside for the shards that can use them. A worker takes over a record if it is what was
written, is of the same picture, and was made by encoders that give the same result here, to the
last bit.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import json
import logging
import os
import platform
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import apache_beam as beam
import tensorflow as tf
from apache_beam.utils import shared
from tfx import types
from tfx.types import artifact_utils
from tfx.utils import io_utils

from components.caption_example_gen.captions import CaptionTemplate, TagShuffle
from components.caption_example_gen.word_captions import WordCaptions
from components.counts import WriteCounts, read_counts
from components.latent_gen.encoding import (
    CAPTIONS,
    CAPTIONS_TAKEN,
    ENCODING,
    HELD_OUT,
    OTHER_NUMERICS,
    PICTURES,
    PICTURES_TAKEN,
    TRAINED_ON,
    VIEWS,
    EncodeShard,
    Shard,
    Way,
    in_bucket,
    read_indexed,
)
from components.latent_gen.former_records import DAMAGED, FormerShard, PutAside
from components.latent_gen.halves import choosing, first_of_groups
from components.latent_gen.index import IndexedShard, LatentsIndex, find_uses, picture_key
from components.progress import SharedProgress
from components.tfrecords import describe_examples, shard_name
from components.whole_elements import WholeElementsExecutor
from storage import filesystem, row_index
from storage.progress import Work
from storage.user_errors import UserError
from trainer.data.buckets import BucketCounts, BucketLimits

FLIPS = FLIP_AUTO, FLIP_ALWAYS, FLIP_NEVER = "auto", "always", "never"

_COUNTS_NAME = "counts.json"
# The packages that decode, scale and encode, if they are installed.
_PACKAGES = ("keras", "numpy", "pillow", "pillow-heif", "tensorflow", "tensorflow-cpu")

logger = logging.getLogger(__name__)


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
            WeightsError: The weights have changed since the component was made.
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

        folder = os.path.join(latents.uri, f".unfinished-{uuid.uuid4().hex}")
        counts_path = os.path.join(folder, _COUNTS_NAME)
        tf.io.gfile.makedirs(folder)
        shards = [shard for split in splits for shard in _shards(examples, latents, split)]
        rows_uri = os.path.join(examples.uri, row_index.FOLDER_NAME)
        words = WordCaptions.of_json(exec_properties.get("word_captions"))
        if words is not None:
            words = words.varied(row.caption for row in row_index.read_rows(rows_uri, TRAINED_ON))
        limits = exec_properties.get("buckets")
        way = Way(
            base_model,
            flip,
            exec_properties["crop"],
            exec_properties["crop_seed"],
            tags,
            template,
            words,
            BucketLimits(**json.loads(limits)) if limits else None,
        )
        index_folder = exec_properties["latents_index"]
        index = LatentsIndex(index_folder, _facts(exec_properties, way)) if index_folder else None
        former = list(_former(index, shards, rows_uri, way, folder)) if index else []
        number = sum(examples.get_int_custom_property(f"num_{split}") for split in splits)
        progress = SharedProgress(Work(ENCODING, number, "pictures"))
        encode = EncodeShard(way, folder, index is not None, shared.Shared(), progress)
        with progress.shown(), self._make_beam_pipeline() as pipeline:
            _build(pipeline, shards, former, PutAside(folder), encode, counts_path)
        counts = read_counts(counts_path)
        if index is not None:
            _note(index, latents.uri, [read_indexed(folder, shard) for shard in shards])
        tf.io.gfile.rmtree(folder)
        views = counts.get(VIEWS)
        rows = list(row_index.read_rows(rows_uri, TRAINED_ON))

        manifest = LatentsManifest(
            preset=preset.name,
            image_size=image_size,
            encoders_hash=encoders_hash,
            flip=flip,
            counts={split: counts[split] for split in splits},
            # Left out if no picture repeats, as in most datasets.
            views=None if views == counts.get(TRAINED_ON) else views,
            caption_variants=max(1, tags.variants, words.variants if words else 0),
            pictures=len({row.picture for row in rows}) or None,
            word=dataclasses.asdict(words.word) if words else {},
            buckets=None if way.limits is None else list(_filled(way.limits, counts, splits)),
            rows_digest=row_index.digest(rows_uri) if rows else None,
        )
        manifest.write(latents.uri)
        write_counts(latents.uri, count_captions(row.caption for row in rows))
        held_out = row_index.read_rows(rows_uri, HELD_OUT)
        write_choosing(latents.uri, choosing(held_out, first_of_groups(examples.uri)))
        latents.set_string_custom_property("preset", preset.name)
        latents.set_int_custom_property("image_size", image_size)
        latents.set_int_custom_property("flip", int(flip))
        latents.set_string_custom_property("encoders_hash", encoders_hash)
        if manifest.buckets is not None:
            latents.set_int_custom_property("buckets", len(manifest.buckets))
        for split, count in manifest.counts.items():
            latents.set_int_custom_property(f"num_{split}", count)
        if manifest.views is not None:
            latents.set_int_custom_property(VIEWS, manifest.views)
            logger.info(
                "An epoch has %s views of %s pictures; their folders set how often each repeats.",
                f"{manifest.views:,}",
                f"{counts[TRAINED_ON]:,}",
            )
        total = sum(manifest.counts.values())
        for what, name in ((PICTURES, PICTURES_TAKEN), (CAPTIONS, CAPTIONS_TAKEN)):
            latents.set_int_custom_property(name, counts[name])
            latents.set_int_custom_property(f"{what}_encoded", total - counts[name])
        _tell(counts, total, image_size, flip, manifest.buckets)


def _filled(
    limits: BucketLimits, counts: Mapping[str, int], splits: Sequence[str]
) -> Iterator[BucketCounts]:
    """The buckets that contain pictures."""
    for bucket in limits.buckets:
        of_splits = {split: counts.get(in_bucket(bucket, split), 0) for split in splits}
        if any(of_splits.values()):
            views = counts.get(in_bucket(bucket, VIEWS), 0)
            yield BucketCounts(bucket.width, bucket.height, of_splits, views)


def _flips(flip: str, examples: types.Artifact) -> bool:
    """Whether mirror images are encoded too."""
    if flip != FLIP_AUTO:
        return flip == FLIP_ALWAYS
    if not examples.has_custom_property("captions_left_right"):
        raise UserError(
            "the examples do not say how many captions name left or right, so it is unknown "
            "whether pictures may be mirrored: "
            f"give --flip {FLIP_ALWAYS} or --flip {FLIP_NEVER}"
        )
    count = examples.get_int_custom_property("captions_left_right")
    if count:
        logger.warning(
            "Flips are off: %d captions say left or right, which would be wrong for a mirror image "
            "(--flip %s turns flips on anyway).",
            count,
            FLIP_ALWAYS,
        )
    return count == 0


def _shards(examples: types.Artifact, latents: types.Artifact, split: str) -> Iterator[Shard]:
    folder = artifact_utils.get_split_uri([latents], split)
    tf.io.gfile.makedirs(folder)
    pattern = io_utils.all_files_pattern(artifact_utils.get_split_uri([examples], split))
    sources = sorted(tf.io.gfile.glob(pattern))
    for index, source in enumerate(sources):
        target = os.path.join(folder, shard_name("latents", index, len(sources)))
        yield Shard(split, index, source, target)


def _facts(exec_properties: Mapping[str, Any], way: Way) -> dict[str, object]:
    """Everything that affects the encoding, except the machine's numerics."""
    versions = {}
    for name in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    names = ("code_version", "preset", "image_size", "encoders_hash")
    return {
        **{name: exec_properties[name] for name in names},
        "numerics": way.base_model.preset.numerics,
        "flip": way.flip,
        **({"buckets": dataclasses.asdict(way.limits)} if way.limits else {}),
        "versions": versions,
        "machine": platform.machine(),
    }


def _former(
    index: LatentsIndex, shards: Sequence[Shard], rows_uri: str, way: Way, folder: str
) -> Iterator[FormerShard]:
    """The files of former runs that contain usable records."""
    examples = {
        shard.target: [
            (row.id, picture_key(row.picture, way.position(row.id)))
            for row in row_index.read_shard_rows(rows_uri, shard.split, shard.number)
        ]
        for shard in shards
    }
    for number, (found, wanted) in enumerate(find_uses(index.read(), examples)):
        wanted_path = filesystem.join(folder, f"wanted-{number}.json")
        yield FormerShard.of(found, wanted, wanted_path)


def _note(index: LatentsIndex, uri: str, shards: Sequence[IndexedShard]) -> None:
    """Adds what was encoded to the index; a missing entry is no reason to fail."""
    try:
        index.write(uri, shards)
    except OSError as error:
        logger.warning(
            "The next run will encode all of this again: the index cannot be written: %s", error
        )


def _build(
    pipeline: beam.Pipeline,
    shards: Sequence[Shard],
    former: Sequence[FormerShard],
    put_aside: PutAside,
    encode: EncodeShard,
    counts_path: str,
) -> None:
    parts = [pipeline | "Shards" >> beam.Create([(shard.target, shard) for shard in shards])]
    counts = []
    # Every source costs the runner one or two stages.
    if former:
        aside = (
            pipeline
            | "Former" >> beam.Create(former, reshuffle=True)
            | "PutAside" >> beam.ParDo(put_aside).with_outputs(DAMAGED, main="pieces")
        )
        parts.append(aside.pieces)
        counts.append(aside[DAMAGED])
    encoded = (
        parts
        | "AllParts" >> beam.Flatten()
        | "ByShard" >> beam.GroupByKey()
        | "Encode" >> beam.ParDo(encode)
    )
    ([encoded, *counts] | "AllCounts" >> beam.Flatten() | "WriteCounts" >> WriteCounts(counts_path))


def _tell(
    counts: Mapping[str, int],
    total: int,
    image_size: int,
    flip: bool,
    buckets: Sequence[BucketCounts] | None,
) -> None:
    pictures, captions = (total - counts[name] for name in (PICTURES_TAKEN, CAPTIONS_TAKEN))
    what = f"{pictures:,} pictures and {captions:,} captions"
    square, at = f"{image_size} x {image_size}", len(buckets or ())
    logger.info(
        "Encoded %s at %s pixels%s.",
        f"{pictures:,} pictures and captions" if pictures == captions else what,
        square if buckets is None else f"{at} sizes, of about {square}",
        ", and the pictures' mirror images" if flip else "",
    )
    unheard = [b.name for b in buckets or () if b.views and not b.counts.get(HELD_OUT)]
    if unheard:
        logger.warning(
            "No picture of %s pixels is held out, so nothing shows how well a model draws this "
            "size: raise dataset.eval_fraction to hold out more, or model.bucket_step to make "
            "fewer sizes.",
            ", ".join(unheard),
        )
    if counts[PICTURES_TAKEN]:
        logger.info(
            "%s unchanged pictures are taken over from former runs, already encoded.",
            f"{counts[PICTURES_TAKEN]:,}",
        )
    if damaged := counts.get(DAMAGED):
        logger.warning(
            "%s latent records of former runs are missing or damaged, and are not taken over.",
            f"{damaged:,}",
        )
    if others := counts[OTHER_NUMERICS]:
        logger.info(
            "%s pictures are encoded again, not taken over from former runs: the encoders rounded "
            "differently there, as they do on another machine.",
            f"{others:,}",
        )
