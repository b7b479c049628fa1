"""The work of CaptionExampleGen.

Beam passes around only where things are, never pictures: the first stage writes the examples of a
row group into a spill file, a stretch for every shard; the second reads a shard's stretches, sorts
them and writes the shard. Memory depends on the size of a shard, not on that of the dataset.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
import pickle
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import apache_beam as beam
import tensorflow as tf
from tfx import types
from tfx.components.util import examples_utils
from tfx.dsl.components.base import base_beam_executor
from tfx.proto import example_gen_pb2
from tfx.types import artifact_utils

from components.caption_example_gen.source import (
    ParquetFolder,
    Row,
    RowGroup,
    empty_split_message,
    split_of,
)
from components.counts import WriteCounts, read_counts
from components.tfrecords import shard_name, write_shard

SPLITS = ("train", "eval")
REJECTS_NAME = "rejects.jsonl"

_SHARD_BYTES = 32 << 20
_SPILL_BYTES = 32 << 20
_COUNTS_NAME = "counts.json"
_REJECTS, _COUNTS = "rejects", "counts"
_TRUNCATED = "captions_truncated"
_REJECTED = "rejected_"

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class _Settings:
    """The component's exec properties that workers need, and where to write."""

    dataset: str
    image_column: str
    caption_column: str
    eval_fraction: float
    seed: int
    num_shards: Mapping[str, int]
    split_uris: Mapping[str, str]
    spill_folder: str


@dataclasses.dataclass(frozen=True)
class _Candidate:
    """A row that passed every check of its own; whether it is a duplicate is not known yet."""

    id: str
    file: str
    row: int
    caption: str
    truncated: bool
    example: bytes


class _RejectedError(Exception):
    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


class Executor(base_beam_executor.BaseBeamExecutor):
    """Reads, checks, splits and writes captioned pictures with Beam."""

    def Do(  # noqa: N802
        self,
        input_dict: dict[str, list[types.Artifact]],
        output_dict: dict[str, list[types.Artifact]],
        exec_properties: dict[str, Any],
    ) -> None:
        """See `CaptionExampleGen`.

        Raises:
            DatasetError: The dataset is missing, unreadable or lacks the columns.
            RuntimeError: It changed after its fingerprint was taken, too many rows are unusable,
                or a split is empty.
        """
        self._log_startup(input_dict, output_dict, exec_properties)
        examples = artifact_utils.get_single_instance(output_dict["examples"])
        rejects = artifact_utils.get_single_instance(output_dict["rejects"])
        dataset = exec_properties["dataset"]
        folder = ParquetFolder(
            dataset, exec_properties["image_column"], exec_properties["caption_column"]
        )
        summary = folder.summary()
        fingerprint = folder.fingerprint()
        if fingerprint != exec_properties["dataset_fingerprint"]:
            raise RuntimeError(
                f"dataset {dataset!r} is not the one that this run was prepared for: its "
                f"fingerprint is {fingerprint}, expected "
                f"{exec_properties['dataset_fingerprint']}; start the run again"
            )

        _describe_examples(examples)
        eval_fraction = exec_properties["eval_fraction"]
        shares = {"train": 1.0 - eval_fraction, "eval": eval_fraction}
        settings = _Settings(
            dataset=dataset,
            image_column=exec_properties["image_column"],
            caption_column=exec_properties["caption_column"],
            eval_fraction=eval_fraction,
            seed=exec_properties["seed"],
            num_shards={
                split: 1 + int(summary.image_bytes * shares[split] / _SHARD_BYTES)
                for split in SPLITS
            },
            split_uris={split: artifact_utils.get_split_uri([examples], split) for split in SPLITS},
            spill_folder=os.path.join(examples.uri, f".spill-{uuid.uuid4().hex}"),
        )
        for path in (*settings.split_uris.values(), settings.spill_folder, rejects.uri):
            tf.io.gfile.makedirs(path)
        logger.info(
            "Reading %s rows in %s row groups of %s.",
            f"{summary.num_rows:,}",
            f"{len(summary.row_groups):,}",
            dataset,
        )
        with self._make_beam_pipeline() as pipeline:
            _build(pipeline, summary.row_groups, settings, rejects.uri)
        counts = read_counts(os.path.join(settings.spill_folder, _COUNTS_NAME))
        tf.io.gfile.rmtree(settings.spill_folder)

        rejected = {
            name.removeprefix(_REJECTED): count
            for name, count in counts.items()
            if name.startswith(_REJECTED)
        }
        _check_rejected(
            rejected, summary.num_rows, exec_properties["max_rejected_fraction"], dataset, rejects
        )
        num_examples = {split: counts.get(split, 0) for split in SPLITS}
        _check_splits(num_examples, settings)

        examples.set_string_custom_property("dataset", dataset)
        examples.set_string_custom_property("dataset_fingerprint", fingerprint)
        for split in SPLITS:
            examples.set_int_custom_property(f"num_{split}", num_examples[split])
        truncated = counts.get(_TRUNCATED, 0)
        examples.set_int_custom_property(_TRUNCATED, truncated)
        for artifact in (examples, rejects):
            artifact.set_int_custom_property("rejected_total", sum(rejected.values()))
        for reason, count in rejected.items():
            rejects.set_int_custom_property(f"{_REJECTED}{reason}", count)

        logger.info(
            "%s examples to train on, %s held out.",
            f"{num_examples['train']:,}",
            f"{num_examples['eval']:,}",
        )
        if rejected:
            reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(rejected.items()))
            logger.warning(
                "%d of %d rows were set aside (%s): see %s",
                sum(rejected.values()),
                summary.num_rows,
                reasons,
                os.path.join(rejects.uri, REJECTS_NAME),
            )
        if truncated:
            logger.warning(
                "%d captions are longer than the text encoder reads and will be cut.", truncated
            )


def _build(
    pipeline: beam.Pipeline,
    row_groups: Sequence[RowGroup],
    settings: _Settings,
    rejects_uri: str,
) -> None:
    checked = (
        pipeline
        | "RowGroups" >> beam.Create(row_groups)
        | "Spread" >> beam.Reshuffle()
        | "Check" >> beam.ParDo(_CheckRows(settings)).with_outputs(_REJECTS, _COUNTS, main="spills")
    )
    # A shard that no row falls into is written, too: the names of the files count them.
    shards = pipeline | "Shards" >> beam.Create(
        [
            (_shard_key(split, index), None)
            for split in SPLITS
            for index in range(settings.num_shards[split])
        ]
    )
    written = (
        (checked.spills, shards)
        | "WithEmptyShards" >> beam.Flatten()
        | "ByShard" >> beam.GroupByKey()
        | "Write"
        >> beam.ParDo(_WriteShard(settings)).with_outputs(_REJECTS, _COUNTS, main="nothing")
    )
    # Likewise, the file of rejects is there if there are none.
    no_reject = pipeline | "NoReject" >> beam.Create([None])
    (
        (checked[_REJECTS], written[_REJECTS], no_reject)
        | "AllRejects" >> beam.Flatten()
        | "RejectsTogether" >> beam.GroupBy(_same_key)
        | "WriteRejects" >> beam.Map(_write_rejects, os.path.join(rejects_uri, REJECTS_NAME))
    )
    (
        (checked[_COUNTS], written[_COUNTS])
        | "AllCounts" >> beam.Flatten()
        | "WriteCounts" >> WriteCounts(os.path.join(settings.spill_folder, _COUNTS_NAME))
    )


def _same_key(_: Any) -> int:
    return 0


def _shard_key(split: str, index: int) -> str:
    return f"{split}/{index}"


class _CheckRows(beam.DoFn):
    """Row group -> (shard, where its candidates lie); rejected rows and counts on the side."""

    def __init__(self, settings: _Settings) -> None:
        self._settings = settings

    def setup(self) -> None:
        self._folder = ParquetFolder(
            self._settings.dataset, self._settings.image_column, self._settings.caption_column
        )

    def process(self, row_group: RowGroup) -> Iterator[Any]:
        candidates: dict[str, list[_Candidate]] = {}
        size = 0
        for row in self._folder.read(row_group):
            try:
                shard, candidate = self._check(row)
            except _RejectedError as error:
                yield from _reject(
                    reason=error.reason,
                    detail=str(error),
                    file=row.file,
                    row=row.number,
                    caption=None if row.caption is None else row.caption.decode("utf-8", "replace"),
                )
                continue
            candidates.setdefault(shard, []).append(candidate)
            size += len(candidate.example)
            if size > _SPILL_BYTES:
                yield from self._spill(candidates)
                candidates, size = {}, 0
        yield from self._spill(candidates)

    def _check(self, row: Row) -> tuple[str, _Candidate]:
        from trainer.images import ImageError, decode_image
        from trainer.tokenizer import MAX_LENGTH, token_count

        caption = _checked_caption(row.caption)
        try:
            encoded = self._folder.picture(row)
        except (FileNotFoundError, ValueError) as error:
            detail = str(error) if isinstance(error, ValueError) else f"no file {row.image_path!r}"
            raise _RejectedError("image_missing", detail) from error
        if encoded is None:
            raise _RejectedError("image_missing", "the row has no picture")
        try:
            image = decode_image(encoded)
        except ImageError as error:
            raise _RejectedError(f"image_{error.reason}", str(error)) from error
        example_id = hashlib.sha256(encoded + caption.encode()).hexdigest()
        split = split_of(encoded, self._settings.eval_fraction, self._settings.seed)
        # Shards are ranges of the id, which is as good as random: an order that is a shuffle.
        index = int(example_id[:8], 16) * self._settings.num_shards[split] >> 32
        features = {
            "id": _bytes_feature(example_id.encode()),
            "image/encoded": _bytes_feature(encoded),
            "image/format": _bytes_feature(str(image.format).encode()),
            "image/height": _int_feature(image.height),
            "image/width": _int_feature(image.width),
            "caption": _bytes_feature(caption.encode()),
        }
        example = tf.train.Example(features=tf.train.Features(feature=features))
        return _shard_key(split, index), _Candidate(
            id=example_id,
            file=row.file,
            row=row.number,
            caption=caption,
            truncated=token_count(caption) > MAX_LENGTH,
            example=example.SerializeToString(deterministic=True),
        )

    def _spill(
        self, candidates: Mapping[str, list[_Candidate]]
    ) -> Iterator[tuple[str, tuple[str, int, int]]]:
        if not candidates:
            return
        # A new name for every attempt: of a bundle that is tried twice, only one is referred to.
        path = os.path.join(self._settings.spill_folder, uuid.uuid4().hex)
        stretches = []
        offset = 0
        with tf.io.gfile.GFile(path, "wb") as f:
            for shard, rows in candidates.items():
                content = pickle.dumps(rows)
                f.write(content)
                stretches.append((shard, (path, offset, len(content))))
                offset += len(content)
        yield from stretches


class _WriteShard(beam.DoFn):
    """(Shard, where its candidates lie) -> the shard's file; duplicates and counts on the side."""

    def __init__(self, settings: _Settings) -> None:
        self._settings = settings

    def process(
        self, element: tuple[str, Iterable[tuple[str, int, int] | None]]
    ) -> Iterator[beam.pvalue.TaggedOutput]:
        shard, stretches = element
        split, index = shard.split("/")
        rows: list[_Candidate] = []
        for stretch in stretches:
            if stretch is not None:
                path, offset, length = stretch
                with tf.io.gfile.GFile(path, "rb") as f:
                    f.seek(offset)
                    rows.extend(pickle.loads(f.read(length)))
        rows.sort(key=lambda row: (row.id, row.file, row.row))
        kept: list[_Candidate] = []
        for row in rows:
            if kept and kept[-1].id == row.id:
                first = kept[-1]
                yield from _reject(
                    reason="duplicate",
                    detail=f"same picture and caption as {first.file} row {first.row}",
                    file=row.file,
                    row=row.row,
                    caption=row.caption,
                )
            else:
                kept.append(row)
        name = shard_name("examples", int(index), self._settings.num_shards[split])
        write_shard(
            os.path.join(self._settings.split_uris[split], name),
            (row.example for row in kept),
            self._settings.spill_folder,
        )
        yield beam.pvalue.TaggedOutput(_COUNTS, (split, len(kept)))
        yield beam.pvalue.TaggedOutput(_COUNTS, (_TRUNCATED, sum(row.truncated for row in kept)))


def _write_rejects(element: tuple[int, Iterable[dict[str, Any] | None]], path: str) -> None:
    rejects = [reject for reject in element[1] if reject is not None]
    rejects.sort(key=lambda reject: (reject["origin"], reject["row"]))
    with tf.io.gfile.GFile(path, "w") as f:
        f.write("".join(json.dumps(reject, ensure_ascii=False) + "\n" for reject in rejects))


def _reject(
    *, reason: str, detail: str, file: str, row: int, caption: str | None
) -> Iterator[beam.pvalue.TaggedOutput]:
    yield beam.pvalue.TaggedOutput(
        _REJECTS,
        {"reason": reason, "detail": detail, "origin": file, "row": row, "caption": caption},
    )
    yield beam.pvalue.TaggedOutput(_COUNTS, (f"{_REJECTED}{reason}", 1))


def _checked_caption(caption: bytes | None) -> str:
    if caption is None:
        raise _RejectedError("caption_missing", "the row has no caption")
    try:
        text = caption.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _RejectedError(
            "caption_not_utf8", f"the caption is no UTF-8 text: {error}"
        ) from error
    if not text.strip():
        raise _RejectedError("caption_blank", "the caption is empty or white space")
    return text


def _bytes_feature(value: bytes) -> tf.train.Feature:
    return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))


def _int_feature(value: int) -> tf.train.Feature:
    return tf.train.Feature(int64_list=tf.train.Int64List(value=[value]))


def _describe_examples(examples: types.Artifact) -> None:
    """Sets what TFX's own ExampleGen sets, for the components that read examples."""
    examples.split_names = artifact_utils.encode_split_names(list(SPLITS))
    examples.span = 0
    examples.version = 0
    examples_utils.set_file_format(examples, "tfrecords_gzip")
    tf_example = example_gen_pb2.FORMAT_TF_EXAMPLE  # type: ignore[attr-defined]
    examples_utils.set_payload_format(examples, tf_example)


def _check_rejected(
    rejected: Mapping[str, int],
    num_rows: int,
    max_fraction: float,
    dataset: str,
    rejects: types.Artifact,
) -> None:
    total = sum(rejected.values())
    if total <= max_fraction * num_rows:
        return
    # The artifact's files are deleted when a component fails, so the error shows an example each.
    first: dict[str, str] = {}
    with tf.io.gfile.GFile(os.path.join(rejects.uri, REJECTS_NAME), "r") as f:
        for line in f:
            reject = json.loads(line)
            first.setdefault(
                reject["reason"], f"{reject['origin']} row {reject['row']}: {reject['detail']}"
            )
    width = max(map(len, rejected))
    table = "".join(
        f"\n  {reason:<{width}}  {count:>8,}  {first[reason]}"
        for reason, count in sorted(rejected.items(), key=lambda item: (-item[1], item[0]))
    )
    raise RuntimeError(
        f"{total:,} of {num_rows:,} rows of dataset {dataset!r} ({total / num_rows:.1%}) cannot be "
        f"used, more than max_rejected_fraction {max_fraction:g} allows: mend them, or raise it\n"
        f"  {'reason':<{width}}  {'rows':>8}  the first of them{table}"
    )


def _check_splits(num_examples: Mapping[str, int], settings: _Settings) -> None:
    total = sum(num_examples.values())
    if total == 0:
        raise RuntimeError(f"no row of dataset {settings.dataset!r} can be used")
    for split, other in zip(SPLITS, reversed(SPLITS), strict=True):
        if num_examples[split] == 0:
            raise RuntimeError(
                empty_split_message(
                    split,
                    f"all {total} usable rows of dataset {settings.dataset!r} fall",
                    other,
                    settings.eval_fraction,
                    settings.seed,
                )
            )
