"""The work of CaptionExampleGen.

Beam passes around only where things are, never pictures: the first stage writes the examples of a
unit (a row group, a tar, a few files) into a spill file, a stretch for every shard; the second
reads a shard's stretches, sorts them and writes the shard. Memory depends on the size of a shard,
not on that of the dataset.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import json
import logging
import os
import pickle
import re
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import apache_beam as beam
import tensorflow as tf
from apache_beam.options.pipeline_options import StandardOptions
from tfx import types
from tfx.dsl.components.base import base_beam_executor
from tfx.types import artifact_utils

from components.caption_example_gen.sources import (
    DatasetSpec,
    Row,
    Unit,
    dataset_fingerprint,
    empty_split_message,
    open_dataset,
    revision_of,
    split_of,
)
from components.counts import WriteCounts, read_counts
from components.tfrecords import describe_examples, shard_name, write_shard

if TYPE_CHECKING:
    from trainer.images import ImageFacts

SPLITS = ("train", "eval")
REJECTS_NAME = "rejects.jsonl"

_SHARD_BYTES = 32 << 20
_SPILL_BYTES = 32 << 20
_COUNTS_NAME, _LONG_CAPTIONS_NAME = "counts.json", "long_captions.json"
_REJECTS, _COUNTS, _LONG_CAPTIONS = "rejects", "counts", "long_captions"
_TRUNCATED, _LEFT_RIGHT, _ANIMATED = "captions_truncated", "captions_left_right", "images_animated"
_REJECTED = "rejected_"
_LONG_CAPTIONS_SHOWN = 3
_SHOWN_CHARACTERS = 60

# A picture's mirror image would make these wrong.
_LEFT_RIGHT_WORDS = frozenset({"left", "right", "leftmost", "rightmost", "leftward", "rightward"})
_WORD = re.compile(r"\w+")

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class _Settings:
    """The component's exec properties that workers need, and where to write."""

    spec: DatasetSpec
    eval_fraction: float
    seed: int
    max_pixels: int
    max_aspect_ratio: float
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
    num_tokens: int
    notes: tuple[str, ...]
    example: bytes


@dataclasses.dataclass(frozen=True)
class _Problem:
    """Why a picture or a caption cannot be used."""

    reason: str
    detail: str


@dataclasses.dataclass(frozen=True)
class _Reject:
    """A line of the rejects' file."""

    reason: str
    detail: str
    origin: str
    row: int
    caption: str | None


@dataclasses.dataclass(frozen=True)
class _Picture:
    """A picture that passed every check, and its share of an example."""

    id: str
    encoded: bytes
    facts: ImageFacts
    split: str


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
        spec = DatasetSpec(
            dataset=exec_properties["dataset"],
            config=exec_properties["dataset_config"],
            split=exec_properties["dataset_split"],
            image_column=exec_properties["image_column"],
            caption_column=exec_properties["caption_column"],
        )
        source = open_dataset(spec)
        fingerprint = dataset_fingerprint(spec, source)
        if fingerprint != exec_properties["dataset_fingerprint"]:
            raise RuntimeError(
                f"dataset {spec.dataset!r} is not the one that this run was prepared for: its "
                f"fingerprint is {fingerprint}, expected "
                f"{exec_properties['dataset_fingerprint']}; start the run again"
            )
        if source.left_out:
            logger.info(
                "%d files of other splits are not read, such as %s.",
                len(source.left_out),
                source.left_out[0],
            )

        describe_examples(examples, SPLITS)
        eval_fraction = exec_properties["eval_fraction"]
        shares = {"train": 1.0 - eval_fraction, "eval": eval_fraction}
        settings = _Settings(
            spec=spec,
            eval_fraction=eval_fraction,
            seed=exec_properties["seed"],
            max_pixels=exec_properties["max_pixels"],
            max_aspect_ratio=exec_properties["max_aspect_ratio"],
            num_shards={
                split: 1 + int(source.image_bytes * shares[split] / _SHARD_BYTES)
                for split in SPLITS
            },
            split_uris={split: artifact_utils.get_split_uri([examples], split) for split in SPLITS},
            spill_folder=os.path.join(examples.uri, f".spill-{uuid.uuid4().hex}"),
        )
        for path in (*settings.split_uris.values(), settings.spill_folder, rejects.uri):
            tf.io.gfile.makedirs(path)
        pipeline = self._make_beam_pipeline()
        if _runs_here(pipeline):
            source.files.fetch(source.paths)
        with pipeline:
            _build(pipeline, source.units(), settings, rejects.uri)
        counts = read_counts(os.path.join(settings.spill_folder, _COUNTS_NAME))
        with tf.io.gfile.GFile(os.path.join(settings.spill_folder, _LONG_CAPTIONS_NAME), "r") as f:
            long_captions = json.loads(f.read())
        tf.io.gfile.rmtree(settings.spill_folder)

        rejected = {
            name.removeprefix(_REJECTED): count
            for name, count in counts.items()
            if name.startswith(_REJECTED)
        }
        num_rejected = sum(rejected.values())
        num_rows = num_rejected + sum(counts.get(split, 0) for split in SPLITS)
        if num_rows == 0:
            raise RuntimeError(f"dataset {spec.dataset!r} has no rows")
        _check_rejected(
            rejected, num_rows, exec_properties["max_rejected_fraction"], spec.dataset, rejects
        )
        num_examples = {split: counts.get(split, 0) for split in SPLITS}
        _check_splits(num_examples, settings)

        for name, text in (
            ("dataset", spec.dataset),
            ("dataset_fingerprint", fingerprint),
            ("dataset_revision", revision_of(spec)),
            ("dataset_kind", source.kind),
            ("image_column", source.image_column),
            ("caption_column", source.caption_column),
        ):
            examples.set_string_custom_property(name, text)
        for split in SPLITS:
            examples.set_int_custom_property(f"num_{split}", num_examples[split])
        for note in (_TRUNCATED, _LEFT_RIGHT, _ANIMATED):
            examples.set_int_custom_property(note, counts.get(note, 0))
        for artifact in (examples, rejects):
            artifact.set_int_custom_property("rejected_total", num_rejected)
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
                num_rejected,
                num_rows,
                reasons,
                os.path.join(rejects.uri, REJECTS_NAME),
            )
        if counts.get(_ANIMATED):
            logger.warning("%d pictures are animated: the first frame is used.", counts[_ANIMATED])
        if long_captions:
            logger.warning(
                "%d captions are longer than the text encoder reads and will be cut, such as %s",
                counts[_TRUNCATED],
                "; ".join(
                    f"{_shortened(caption)!r} ({tokens} tokens)"
                    for _, tokens, caption in long_captions
                ),
            )


def _runs_here(pipeline: beam.Pipeline) -> bool:
    """Whether the workers see this machine's files."""
    runner = pipeline.options.view_as(StandardOptions).runner
    return runner is None or runner == "DirectRunner"


def _shortened(caption: str) -> str:
    return caption if len(caption) <= _SHOWN_CHARACTERS else f"{caption[:_SHOWN_CHARACTERS]} ..."


def _build(
    pipeline: beam.Pipeline,
    units: Iterable[Unit],
    settings: _Settings,
    rejects_uri: str,
) -> None:
    checked = (
        pipeline
        | "Units" >> beam.Create(units)
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
        >> beam.ParDo(_WriteShard(settings)).with_outputs(
            _REJECTS, _COUNTS, _LONG_CAPTIONS, main="nothing"
        )
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
    no_long_caption = pipeline | "NoLongCaption" >> beam.Create([None])
    (
        (written[_LONG_CAPTIONS], no_long_caption)
        | "AllLongCaptions" >> beam.Flatten()
        | "LongCaptionsTogether" >> beam.GroupBy(_same_key)
        | "WriteLongCaptions"
        >> beam.Map(_write_long_captions, os.path.join(settings.spill_folder, _LONG_CAPTIONS_NAME))
    )


def _same_key(_: Any) -> int:
    return 0


def _shard_key(split: str, index: int) -> str:
    return f"{split}/{index}"


class _CheckRows(beam.DoFn):
    """Unit -> (shard, where its candidates lie); rejected rows and their counts on the side."""

    def __init__(self, settings: _Settings) -> None:
        self._settings = settings

    def setup(self) -> None:
        self._source = open_dataset(self._settings.spec)

    def process(self, unit: Unit) -> Iterator[Any]:
        candidates: dict[str, list[_Candidate]] = {}
        rejected: collections.Counter[str] = collections.Counter()
        size = 0
        for row in self._source.read(unit):
            for outcome in self._check(row):
                if isinstance(outcome, _Reject):
                    rejected[f"{_REJECTED}{outcome.reason}"] += 1
                    yield beam.pvalue.TaggedOutput(_REJECTS, dataclasses.asdict(outcome))
                    continue
                shard, candidate = outcome
                candidates.setdefault(shard, []).append(candidate)
                size += len(candidate.example)
            if size > _SPILL_BYTES:
                yield from self._spill(candidates)
                candidates, size = {}, 0
        yield from self._spill(candidates)
        for name, count in rejected.items():
            yield beam.pvalue.TaggedOutput(_COUNTS, (name, count))

    def _check(self, row: Row) -> Iterator[_Reject | tuple[str, _Candidate]]:
        """What becomes of a row: something for each of its captions."""
        picture = self._checked_picture(row)
        for raw in row.captions or (None,):
            caption = _checked_caption(raw, row.image_problem)
            if isinstance(caption, _Problem):
                yield _rejected(row, raw, caption)
            elif isinstance(picture, _Problem):
                yield _rejected(row, raw, picture)
            else:
                yield self._candidate(row, picture, caption)

    def _checked_picture(self, row: Row) -> _Picture | _Problem:
        from trainer.images import ImageError, inspect_image

        if row.image is None:
            return _Problem("image_missing", row.image_problem or "the row has no picture")
        try:
            facts = inspect_image(row.image, self._settings.max_pixels)
        except ImageError as error:
            return _Problem(f"image_{error.reason}", str(error))
        ratio = facts.width / facts.height
        if max(ratio, 1 / ratio) > self._settings.max_aspect_ratio:
            return _Problem(
                "image_extreme_aspect_ratio",
                f"the picture is {facts.width} x {facts.height} pixels, more than "
                f"{self._settings.max_aspect_ratio:g} times as long as wide",
            )
        image_id = hashlib.sha256(row.image).hexdigest()
        split = split_of(image_id, self._settings.eval_fraction, self._settings.seed)
        return _Picture(id=image_id, encoded=row.image, facts=facts, split=split)

    def _candidate(self, row: Row, picture: _Picture, caption: str) -> tuple[str, _Candidate]:
        from trainer.tokenizer import MAX_LENGTH, token_count

        example_id = hashlib.sha256(f"{picture.id}{caption}".encode()).hexdigest()
        # Shards are ranges of the id, which is as good as random: an order that is a shuffle.
        index = int(example_id[:8], 16) * self._settings.num_shards[picture.split] >> 32
        words = _WORD.findall(caption.lower())
        num_tokens = token_count(caption)
        noted = {
            _TRUNCATED: num_tokens > MAX_LENGTH,
            _LEFT_RIGHT: not _LEFT_RIGHT_WORDS.isdisjoint(words),
            _ANIMATED: picture.facts.animated,
        }
        return _shard_key(picture.split, index), _Candidate(
            id=example_id,
            file=row.file,
            row=row.number,
            caption=caption,
            num_tokens=num_tokens,
            notes=tuple(name for name, holds in noted.items() if holds),
            example=_serialized(example_id, picture, caption, num_tokens, words),
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
        counts: collections.Counter[str] = collections.Counter()
        for row in rows:
            if kept and kept[-1].id == row.id:
                first = kept[-1]
                counts[f"{_REJECTED}duplicate"] += 1
                reject = _Reject(
                    reason="duplicate",
                    detail=f"same picture and caption as {first.file} row {first.row}",
                    origin=row.file,
                    row=row.row,
                    caption=row.caption,
                )
                yield beam.pvalue.TaggedOutput(_REJECTS, dataclasses.asdict(reject))
            else:
                kept.append(row)
                counts.update([split, *row.notes])
        name = shard_name("examples", int(index), self._settings.num_shards[split])
        write_shard(
            os.path.join(self._settings.split_uris[split], name),
            (row.example for row in kept),
            self._settings.spill_folder,
        )
        for item in counts.items():
            yield beam.pvalue.TaggedOutput(_COUNTS, item)
        for row in [row for row in kept if _TRUNCATED in row.notes][:_LONG_CAPTIONS_SHOWN]:
            yield beam.pvalue.TaggedOutput(_LONG_CAPTIONS, (row.id, row.num_tokens, row.caption))


def _write_rejects(element: tuple[int, Iterable[dict[str, Any] | None]], path: str) -> None:
    rejects = [reject for reject in element[1] if reject is not None]
    rejects.sort(key=lambda reject: (reject["origin"], reject["row"]))
    with tf.io.gfile.GFile(path, "w") as f:
        f.write("".join(json.dumps(reject, ensure_ascii=False) + "\n" for reject in rejects))


def _write_long_captions(
    element: tuple[int, Iterable[tuple[str, int, str] | None]], path: str
) -> None:
    few = sorted(found for found in element[1] if found is not None)[:_LONG_CAPTIONS_SHOWN]
    with tf.io.gfile.GFile(path, "w") as f:
        f.write(json.dumps(few))


def _rejected(row: Row, caption: bytes | None, problem: _Problem) -> _Reject:
    return _Reject(
        reason=problem.reason,
        detail=problem.detail,
        origin=row.file,
        row=row.number,
        caption=None if caption is None else caption.decode("utf-8", "replace"),
    )


def _checked_caption(caption: bytes | None, image_problem: str) -> str | _Problem:
    if caption is None:
        return _Problem("caption_missing", image_problem or "the row has no caption")
    try:
        text = caption.decode("utf-8")
    except UnicodeDecodeError as error:
        return _Problem("caption_not_utf8", f"the caption is no UTF-8 text: {error}")
    if not text.strip():
        return _Problem("caption_blank", "the caption is empty or white space")
    return text


def _serialized(
    example_id: str, picture: _Picture, caption: str, num_tokens: int, words: Sequence[str]
) -> bytes:
    facts = picture.facts
    example = tf.train.Example()
    # Filled in place: making the messages one by one and joining them takes twice as long.
    features = example.features.feature
    features["id"].bytes_list.value.append(example_id.encode())
    features["image/id"].bytes_list.value.append(picture.id.encode())
    features["image/encoded"].bytes_list.value.append(picture.encoded)
    features["image/format"].bytes_list.value.append(facts.format.encode())
    features["image/height"].int64_list.value.append(facts.height)
    features["image/width"].int64_list.value.append(facts.width)
    features["image/aspect_ratio"].float_list.value.append(facts.width / facts.height)
    features["image/brightness"].float_list.value.append(facts.brightness)
    features["caption"].bytes_list.value.append(caption.encode())
    features["caption/num_tokens"].int64_list.value.append(num_tokens)
    features["caption/words"].bytes_list.value.extend(word.encode() for word in words)
    serialized: bytes = example.SerializeToString(deterministic=True)
    return serialized


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
        raise RuntimeError(f"no row of dataset {settings.spec.dataset!r} can be used")
    for split, other in zip(SPLITS, reversed(SPLITS), strict=True):
        if num_examples[split] == 0:
            raise RuntimeError(
                empty_split_message(
                    split,
                    f"all {total} usable rows of dataset {settings.spec.dataset!r} fall",
                    other,
                    settings.eval_fraction,
                    settings.seed,
                )
            )
