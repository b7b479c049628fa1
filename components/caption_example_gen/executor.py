"""The work of CaptionExampleGen.

Beam passes around only locations, neither pictures nor long lists of file names. The first stage
writes the examples of a unit (a row group, a tar, a few files) into a spill file, with one stretch
for every shard. The second stage reads the stretches of a shard, sorts them and writes the shard.
Memory depends on the size of a shard, not of the dataset. In between, unless near duplicates are
ignored, one worker compares the sketches of all pictures (see `groups`), and the few spill files
with a picture that must move are rewritten.

If Beam's workers are threads of this process, each has a process of its own that does the work of
the first stage (see `check_process`).
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import itertools
import json
import logging
import os
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import apache_beam as beam
import tensorflow as tf
from apache_beam.options.pipeline_options import DirectOptions, StandardOptions
from apache_beam.utils import shared
from tfx import types
from tfx.types import artifact_utils

from components.caption_example_gen.captions import TEMPLATE_PROPERTY
from components.caption_example_gen.check_process import CheckProcess, CheckProcesses
from components.caption_example_gen.empty_split import fill_empty_split
from components.caption_example_gen.groups import Verdicts, Withdrawal, judge_groups, thumbnail
from components.caption_example_gen.groups_file import (
    GROUPS_NAME,
    GroupedPicture,
    read_groups,
    write_groups,
)
from components.caption_example_gen.rows import (
    ANIMATED,
    IGNORE,
    LEFT_RIGHT,
    REPLACED,
    TRUNCATED,
    Candidate,
    CheckSettings,
    Reject,
    RowChecker,
    Stretch,
    shard_index,
    shard_key,
    spill,
    spill_units,
)
from components.caption_example_gen.sources import (
    DatasetSpec,
    Source,
    Unit,
    dataset_fingerprint,
    one_picture_message,
    open_dataset,
    revision_of,
)
from components.caption_example_gen.word_captions import WordCaptions
from components.counts import read_counts, write_counts
from components.progress import SharedProgress
from components.tfrecords import describe_examples, shard_name, write_shard
from components.whole_elements import WholeElementsExecutor
from storage import hub, row_index
from storage.local_stamp import local_stamp
from storage.progress import Work
from storage.user_errors import UserError
from storage.withdrawn import WITHDRAWN_ROWS, Withdrawn, WithdrawnRow, read_list

SPLITS = ("train", "eval")
REJECTS_NAME = "rejects.jsonl"

_SHARD_BYTES = 32 << 20
_SPILL_BYTES = 32 << 20
_COUNTS_NAME, _LONG_CAPTIONS_NAME = "counts.json", "long_captions.json"
_THUMBNAILS_NAME, _WITHDRAWN_NAME = "thumbnails.json", "withdrawn.json"
_FOUND, _SKETCHED = "found", "sketched"
# The kinds of findings.
_REJECTS, _COUNTS, _LONG_CAPTIONS, _THUMBNAILS, _TAKEN_OUT = _KINDS = (
    "rejects", "counts", "long_captions", "thumbnails", "withdrawn"
)  # fmt: skip
_REJECTED = "rejected_"
_DUPLICATE = "duplicate"
_NEAR_DUPLICATE = "near_duplicate"
_WITHDRAWN = "withdrawn"
_LONG_CAPTIONS_SHOWN = 3
_ROWS_LOOKED_AT = 64
_SHOWN_CHARACTERS = 60
_READING = "reading"

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class _Job:
    """Everything that workers need to know.

    Attributes:
        settings: For checking rows.
        processes: `CheckProcesses` that check them; `None` if the worker does so itself.
        split_uris: Folder of every split.
        rows_uri: Folder of the index of rows.
        progress: Counts `_READING`.
    """

    settings: CheckSettings
    processes: shared.Shared | None
    split_uris: Mapping[str, str]
    rows_uri: str
    progress: SharedProgress


@dataclasses.dataclass(frozen=True)
class _Outcome:
    """The outcome of checking all rows.

    Attributes:
        examples: Number of examples in each split.
        rejected: Number of rejected rows by reason.
        notes: Number of examples with each of `TRUNCATED`, `LEFT_RIGHT` and `ANIMATED`, and, if
            there are any, `REPLACED`.
        long_captions: Some of the captions that will be cut, each with its number of tokens.
        groups: Groups of near duplicates; `None` if these are ignored.
        withdrawn: The rows that a list takes out.
    """

    examples: Mapping[str, int]
    rejected: Mapping[str, int]
    notes: Mapping[str, int]
    long_captions: Sequence[tuple[str, int]]
    groups: Sequence[Sequence[GroupedPicture]] | None
    withdrawn: Sequence[WithdrawnRow]

    @property
    def num_rejected(self) -> int:
        return sum(self.rejected.values())

    @property
    def unusable(self) -> Mapping[str, int]:
        """Number of faulty rows by reason, without duplicates and withdrawn rows."""
        good = (_DUPLICATE, _NEAR_DUPLICATE, _WITHDRAWN)
        return {r: count for r, count in self.rejected.items() if r not in good}

    @property
    def num_unusable(self) -> int:
        return sum(self.unusable.values())

    @property
    def num_rows(self) -> int:
        return self.num_rejected + sum(self.examples.values())


class Executor(WholeElementsExecutor):
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
            UserError: The dataset changed after its fingerprint was taken, or while it was read;
                too many rows are unusable; or fewer than two pictures are usable.
        """
        self._log_startup(input_dict, output_dict, exec_properties)
        examples = artifact_utils.get_single_instance(output_dict["examples"])
        rejects = artifact_utils.get_single_instance(output_dict["rejects"])
        spec = _spec(exec_properties)
        describe_examples(examples, SPLITS)
        pipeline = self._make_beam_pipeline()
        with _check_processes(pipeline) as processes:
            stamp = local_stamp(spec.dataset)
            source, fingerprint = _open_unchanged(spec, exec_properties["dataset_fingerprint"])
            settings = _settings(spec, source, exec_properties, examples.uri)
            split_uris = {s: artifact_utils.get_split_uri([examples], s) for s in SPLITS}
            rows_uri = os.path.join(examples.uri, row_index.FOLDER_NAME)
            numbers = [unit.num_rows for unit in source.units()]
            # Some forms give the number of rows only once they are read.
            total = sum(number or 0 for number in numbers) if None not in numbers else 0
            progress = SharedProgress(Work(_READING, total, "rows"))
            job = _Job(settings, processes, split_uris, rows_uri, progress)
            try:
                with progress.shown():
                    _run(pipeline, source, job, rejects.uri)
            except Exception:
                # A changed dataset explains a file that is missing or half written.
                _check_unchanged(spec, fingerprint, stamp)
                raise
        _check_unchanged(spec, fingerprint, stamp)
        outcome = _take_outcome(settings)
        _check_rejected(outcome, exec_properties["max_rejected_fraction"], spec.dataset, rejects)
        outcome = _with_both_splits(outcome, settings, split_uris, examples.uri)
        _describe_dataset(examples, spec, source, fingerprint)
        _describe_counts(examples, rejects, outcome)
        if settings.caption_template:
            examples.set_string_custom_property(TEMPLATE_PROPERTY, settings.caption_template)
        if outcome.groups is not None:
            write_groups(outcome.groups, os.path.join(examples.uri, GROUPS_NAME))
        _tell(outcome, rejects)
        if settings.withdrawn is not None:
            withdrawn = Withdrawn(settings.withdrawn.entries, tuple(outcome.withdrawn))
            withdrawn.write(rejects.uri)
            examples.set_string_custom_property("withdrawn_digest", settings.withdrawn.digest)
            examples.set_int_custom_property(WITHDRAWN_ROWS, len(outcome.withdrawn))
            _tell_withdrawn(withdrawn, rejects)


def _spec(exec_properties: Mapping[str, Any]) -> DatasetSpec:
    return DatasetSpec(
        dataset=exec_properties["dataset"],
        config=exec_properties["dataset_config"],
        split=exec_properties["dataset_split"],
        image_column=exec_properties["image_column"],
        caption_column=exec_properties["caption_column"],
        form=exec_properties["dataset_form"],
        caption=exec_properties["caption"],
        captions_from=exec_properties["captions_from"],
        caption_lines=exec_properties["caption_lines"],
        withdrawn=exec_properties.get("withdrawn") or "",
    )


def _open_unchanged(spec: DatasetSpec, expected: str) -> tuple[Source, str]:
    """A dataset and its fingerprint, which must equal `expected` unless that is empty."""
    source = open_dataset(spec)
    fingerprint = dataset_fingerprint(spec, source)
    if expected not in ("", fingerprint):
        raise UserError(
            f"dataset {spec.dataset!r} has changed since this run was prepared: its "
            f"fingerprint is {fingerprint}, expected {expected}; start the run again"
        )
    logger.info("Dataset %s is %s.", spec.dataset, source.taken_for)
    if source.left_out:
        logger.info(
            "%d files belong to other splits and are not read, such as %s.",
            len(source.left_out),
            source.left_out[0],
        )
    return source, fingerprint


def _check_unchanged(spec: DatasetSpec, fingerprint: str, stamp: object) -> None:
    """Raises a `UserError` if a dataset has changed since its `local_stamp` was taken.

    Otherwise the cache would hold what was read under the fingerprint of other data.
    """
    if stamp is not None and local_stamp(spec.dataset) == stamp:
        return
    # A commit never changes.
    if spec.dataset.startswith(hub.SCHEME):
        return
    if (found := dataset_fingerprint(spec, open_dataset(spec))) != fingerprint:
        raise UserError(
            f"dataset {spec.dataset!r} changed while it was read: its fingerprint was "
            f"{fingerprint} and is now {found}; start the run again when nothing writes to it"
        )


def _settings(
    spec: DatasetSpec, source: Source, exec_properties: Mapping[str, Any], examples_uri: str
) -> CheckSettings:
    return CheckSettings(
        spec=spec,
        eval_fraction=exec_properties["eval_fraction"],
        seed=exec_properties["seed"],
        max_pixels=exec_properties["max_pixels"],
        max_aspect_ratio=exec_properties["max_aspect_ratio"],
        num_shards=_num_shards(source, exec_properties["eval_fraction"]),
        spill_folder=os.path.join(examples_uri, f".spill-{uuid.uuid4().hex}"),
        spill_bytes=_SPILL_BYTES,
        near_duplicates=exec_properties["near_duplicates"],
        caption_template=exec_properties["caption_template"],
        word_captions=WordCaptions.of_json(exec_properties.get("word_captions")),
        withdrawn=read_list(spec.withdrawn) if spec.withdrawn else None,
        reader=source.elsewhere(),
    )


def _num_shards(source: Source, eval_fraction: float) -> dict[str, int]:
    """Number of shards of each split, so that a worker can hold one in memory."""
    # Each caption of a picture makes an example with a copy of it.
    units = itertools.islice(source.units(), 1)
    rows = (row for unit in units for row in source.read(unit, peek=True))
    captions = [len(row.captions) for row in itertools.islice(rows, _ROWS_LOOKED_AT)]
    size = source.image_bytes * max(1.0, sum(captions) / max(1, len(captions)))
    shares = {"train": 1.0 - eval_fraction, "eval": eval_fraction}
    return {split: 1 + int(size * shares[split] / _SHARD_BYTES) for split in SPLITS}


def _runs_here(pipeline: beam.Pipeline) -> bool:
    """Whether the workers see this machine's files."""
    runner = pipeline.options.view_as(StandardOptions).runner
    return runner is None or runner == "DirectRunner"


@contextlib.contextmanager
def _check_processes(pipeline: beam.Pipeline) -> Iterator[shared.Shared | None]:
    """Processes for the workers, if these are several threads of this process."""
    direct = pipeline.options.view_as(DirectOptions)
    threaded = direct.direct_running_mode == "multi_threading" and direct.direct_num_workers != 1
    if not (_runs_here(pipeline) and threaded):
        yield None
        return
    handle = shared.Shared()
    workers = direct.direct_num_workers or os.cpu_count() or 1
    with contextlib.closing(handle.acquire(lambda: CheckProcesses(workers))):
        yield handle


def _run(pipeline: beam.Pipeline, source: Source, job: _Job, rejects_uri: str) -> None:
    """Writes the examples, the rejected rows and the files that `_take_outcome` reads."""
    if _runs_here(pipeline):
        source.files.fetch(source.paths)
    for path in (*job.split_uris.values(), job.rows_uri, job.settings.spill_folder, rejects_uri):
        tf.io.gfile.makedirs(path)
    with pipeline:
        _build(pipeline, spill_units(source.units(), job.settings.spill_folder), job, rejects_uri)


def _build(
    pipeline: beam.Pipeline,
    units: Iterable[Unit | Stretch],
    job: _Job,
    rejects_uri: str,
) -> None:
    paths = {
        _REJECTS: os.path.join(rejects_uri, REJECTS_NAME),
        _COUNTS: os.path.join(job.settings.spill_folder, _COUNTS_NAME),
        _LONG_CAPTIONS: os.path.join(job.settings.spill_folder, _LONG_CAPTIONS_NAME),
        _THUMBNAILS: os.path.join(job.settings.spill_folder, _THUMBNAILS_NAME),
        _TAKEN_OUT: os.path.join(job.settings.spill_folder, _WITHDRAWN_NAME),
    }
    # Every grouping and every source costs the runner a stage or two, so there are only a few.
    checked = (
        pipeline
        # Reshuffling spreads the units over the workers.
        | "Units" >> beam.Create([None, *units], reshuffle=True)
        | "Check" >> beam.ParDo(_CheckRows(job)).with_outputs(_FOUND, _SKETCHED, main="spills")
    )
    spills, found = checked.spills, [checked[_FOUND]]
    side_inputs: list[Any] = []
    if job.settings.compares:
        verdicts = (
            checked[_SKETCHED]
            | "Together" >> beam.GroupByKey()
            | "Group" >> beam.Map(_judge_groups, job.settings)
        )
        side_inputs.append(beam.pvalue.AsSingleton(verdicts))
        settled = spills | "Settle" >> beam.ParDo(
            _SettleGroups(job.settings), *side_inputs
        ).with_outputs(_FOUND, main="spills")
        spills = settled.spills
        found.append(settled[_FOUND])
    written = (
        spills
        | "ByShard" >> beam.GroupByKey()
        | "Write" >> beam.ParDo(_WriteShard(job), *side_inputs)
    )
    (
        (*found, written)
        | "AllFound" >> beam.Flatten()
        | "ByKind" >> beam.GroupByKey()
        | "WriteFound" >> beam.Map(_write_found, paths)
    )


class _CheckRows(beam.DoFn):
    """Unit, or its location -> (shard, location of its candidates).

    Rejected rows and their counts are side outputs.

    `None` -> every shard and every kind of finding, empty.
    """

    def __init__(self, job: _Job) -> None:
        self._job = job

    def setup(self) -> None:
        settings, processes = self._job.settings, self._job.processes
        self._checker: RowChecker | CheckProcess = (
            RowChecker(settings)
            if processes is None
            else processes.acquire(functools.partial(CheckProcesses, 0)).take(settings)
        )

    def process(self, unit: Unit | Stretch | None) -> Iterator[Any]:
        if unit is None:
            # Every file is written, even if no row falls into it.
            for split, count in self._job.settings.num_shards.items():
                yield from ((shard_key(split, index), None) for index in range(count))
            for kind in _KINDS:
                yield beam.pvalue.TaggedOutput(_FOUND, (kind, None))
            yield beam.pvalue.TaggedOutput(_SKETCHED, (0, None))
            return
        rejected: collections.Counter[str] = collections.Counter()
        for batch in self._checker.check(unit):
            self._job.progress.update(_READING, batch.num_rows)
            yield from batch.spilled.items()
            if batch.sketches is not None:
                yield beam.pvalue.TaggedOutput(_SKETCHED, (0, batch.sketches))
            for reject in batch.rejects:
                rejected[f"{_REJECTED}{reject.reason}"] += 1
                yield beam.pvalue.TaggedOutput(_FOUND, _found(reject))
        for item in rejected.items():
            yield beam.pvalue.TaggedOutput(_FOUND, (_COUNTS, item))


def _judge_groups(
    element: tuple[int, Iterable[Stretch | None]], settings: CheckSettings
) -> Verdicts:
    """Locations of all sketches -> verdicts on pictures that have near duplicates.

    Also writes the groups, for `_take_outcome`.
    """
    groups, verdicts = judge_groups((s for s in element[1] if s is not None), settings)
    write_groups(groups, os.path.join(settings.spill_folder, GROUPS_NAME))
    return verdicts


class _SettleGroups(beam.DoFn):
    """(Shard, location of its candidates) -> the same for the shards they belong in.

    Rejected rows, their counts and thumbnails are side outputs.
    """

    def __init__(self, settings: CheckSettings) -> None:
        self._settings = settings

    def process(self, element: tuple[str, Stretch | None], verdicts: Verdicts) -> Iterator[Any]:
        shard, stretch = element
        if stretch is None or stretch.path not in verdicts.paths:
            yield element
            return
        settled: dict[str, list[Candidate]] = collections.defaultdict(list)
        shown: dict[str, str] = {}
        for row in stretch.read():
            picture = row.picture
            if (withdrawal := verdicts.withdrawn.get(picture)) is not None:
                taken_out = WithdrawnRow(
                    row.id,
                    picture,
                    row.caption,
                    row.file,
                    row.row,
                    **dataclasses.asdict(withdrawal),
                )
                yield beam.pvalue.TaggedOutput(_FOUND, (_TAKEN_OUT, taken_out))
                reject = Reject(
                    reason=_WITHDRAWN,
                    detail=self._listed(withdrawal),
                    origin=row.file,
                    row=row.row,
                    caption=row.caption,
                )
                yield beam.pvalue.TaggedOutput(_FOUND, _found(reject))
                yield beam.pvalue.TaggedOutput(_FOUND, (_COUNTS, (f"{_REJECTED}{_WITHDRAWN}", 1)))
            elif picture in verdicts.dropped:
                reject = Reject(
                    reason=_NEAR_DUPLICATE,
                    detail=verdicts.dropped[picture],
                    origin=row.file,
                    row=row.row,
                    caption=row.caption,
                )
                yield beam.pvalue.TaggedOutput(_FOUND, _found(reject))
                count = (f"{_REJECTED}{_NEAR_DUPLICATE}", 1)
                yield beam.pvalue.TaggedOutput(_FOUND, (_COUNTS, count))
                if picture in verdicts.shown and picture not in shown:
                    shown[picture] = thumbnail(row.example)
            elif picture in verdicts.elsewhere:
                split = verdicts.elsewhere[picture]
                index = shard_index(row.id, self._settings.num_shards[split])
                settled[shard_key(split, index)].append(row)
            else:
                settled[shard].append(row)
        yield from spill(settled, self._settings.spill_folder).items()
        for item in shown.items():
            yield beam.pvalue.TaggedOutput(_FOUND, (_THUMBNAILS, item))

    def _listed(self, withdrawal: Withdrawal) -> str:
        assert self._settings.withdrawn is not None
        entry = self._settings.withdrawn.entries[withdrawal.entry]
        resembling = f"nearly the same as sha256:{withdrawal.near}, " if withdrawal.near else ""
        return f"{resembling}listed as {entry.shown}: {entry.reason}"


class _WriteShard(beam.DoFn):
    """(Shard, locations of its candidates) -> findings; writes the shard."""

    def __init__(self, job: _Job) -> None:
        self._job = job

    def process(
        self, element: tuple[str, Iterable[Stretch | None]], verdicts: Verdicts | None = None
    ) -> Iterator[tuple[str, Any]]:
        shard, stretches = element
        split, index = shard.split("/")
        rows: list[Candidate] = []
        for stretch in stretches:
            if stretch is not None:
                rows.extend(stretch.read())
        rows.sort(key=lambda row: (row.id, row.file, row.row))
        kept: list[Candidate] = []
        counts: collections.Counter[str] = collections.Counter()
        for row in rows:
            if kept and kept[-1].id == row.id:
                first = kept[-1]
                counts[f"{_REJECTED}{_DUPLICATE}"] += 1
                reject = Reject(
                    reason=_DUPLICATE,
                    detail=f"same picture and caption as {first.file} row {first.row}",
                    origin=row.file,
                    row=row.row,
                    caption=row.caption,
                )
                yield _found(reject)
            else:
                kept.append(row)
                counts.update([split, *row.notes])
        name = shard_name("examples", int(index), self._job.settings.num_shards[split])
        write_shard(
            os.path.join(self._job.split_uris[split], name),
            (row.example for row in kept),
            self._job.settings.spill_folder,
        )
        index_name = row_index.file_name(split, int(index))
        with tf.io.gfile.GFile(os.path.join(self._job.rows_uri, index_name), "wb") as f:
            for row in kept:
                f.write(row_index.IndexedRow(row.id, row.picture, row.caption).line())
        for item in counts.items():
            yield _COUNTS, item
        for row in [row for row in kept if TRUNCATED in row.notes][:_LONG_CAPTIONS_SHOWN]:
            yield _LONG_CAPTIONS, (row.id, row.num_tokens, row.caption)
        wanted = verdicts.shown if verdicts else frozenset()
        for picture, row in {row.picture: row for row in kept if row.picture in wanted}.items():
            yield _THUMBNAILS, (picture, thumbnail(row.example))


def _found(reject: Reject) -> tuple[str, tuple[str, int, bytes]]:
    """A reject as it is sorted and written, with all others, in one place."""
    return _REJECTS, (reject.origin, reject.row, reject.line())


def _write_found(element: tuple[str, Iterable[Any]], paths: Mapping[str, str]) -> None:
    kind, found = element
    items = (item for item in found if item is not None)
    if kind == _COUNTS:
        write_counts(items, paths[kind])
    elif kind == _REJECTS:
        with tf.io.gfile.GFile(paths[kind], "wb") as f:
            # Without a write there would be no file.
            f.write(b"".join(line for _, _, line in sorted(items)))
    elif kind == _THUMBNAILS:
        with tf.io.gfile.GFile(paths[kind], "w") as f:
            f.write(json.dumps(dict(items)))
    elif kind == _TAKEN_OUT:
        rows = sorted(items, key=lambda row: (row.entry, row.id, row.origin, row.row))
        with tf.io.gfile.GFile(paths[kind], "w") as f:
            f.write(json.dumps([dataclasses.asdict(row) for row in rows]))
    else:
        with tf.io.gfile.GFile(paths[kind], "w") as f:
            f.write(json.dumps(sorted(items)[:_LONG_CAPTIONS_SHOWN]))


def _take_outcome(settings: CheckSettings) -> _Outcome:
    """Reads the workers' findings and removes their files."""
    spill_folder = settings.spill_folder
    counts = read_counts(os.path.join(spill_folder, _COUNTS_NAME))
    with tf.io.gfile.GFile(os.path.join(spill_folder, _LONG_CAPTIONS_NAME), "r") as f:
        long_captions = json.loads(f.read())
    groups = _take_groups(spill_folder) if settings.near_duplicates != IGNORE else None
    with tf.io.gfile.GFile(os.path.join(spill_folder, _WITHDRAWN_NAME), "r") as f:
        withdrawn = [WithdrawnRow(**row) for row in json.loads(f.read())]
    tf.io.gfile.rmtree(spill_folder)
    return _Outcome(
        examples={split: counts.get(split, 0) for split in SPLITS},
        rejected={
            name.removeprefix(_REJECTED): count
            for name, count in counts.items()
            if name.startswith(_REJECTED)
        },
        notes={
            **{note: counts.get(note, 0) for note in (TRUNCATED, LEFT_RIGHT, ANIMATED)},
            # Absent if the model learns no new word.
            **({REPLACED: counts[REPLACED]} if REPLACED in counts else {}),
        },
        long_captions=[(caption, num_tokens) for _, num_tokens, caption in long_captions],
        groups=groups,
        withdrawn=withdrawn,
    )


def _take_groups(spill_folder: str) -> list[list[GroupedPicture]]:
    """Groups of near duplicates, with those thumbnails that exist."""
    path = os.path.join(spill_folder, GROUPS_NAME)
    with tf.io.gfile.GFile(os.path.join(spill_folder, _THUMBNAILS_NAME), "r") as f:
        thumbnails = json.loads(f.read())
    return [
        [dataclasses.replace(p, thumbnail=thumbnails.get(p.picture, "")) for p in members]
        for members in read_groups(path)
    ]


def _check_rejected(
    outcome: _Outcome, max_fraction: float, dataset: str, rejects: types.Artifact
) -> None:
    total, num_rows = outcome.num_unusable, outcome.num_rows
    if num_rows == 0:
        raise UserError(f"dataset {dataset!r} has no rows: add some, or set another by --dataset")
    if outcome.withdrawn and num_rows == total + len(outcome.withdrawn):
        raise UserError(
            f"nothing is left of dataset {dataset!r}: {len(outcome.withdrawn):,} of its "
            f"{num_rows:,} rows are withdrawn (dataset.withdrawn)"
        )
    if total == num_rows:
        raise UserError(
            f"no row of dataset {dataset!r} can be used: fix the rows, or set another dataset by "
            f"--dataset\n{_table(outcome.unusable, rejects)}"
        )
    if total > max_fraction * num_rows:
        raise UserError(
            f"{total:,} of {num_rows:,} rows of dataset {dataset!r} ({total / num_rows:.1%}) "
            f"cannot be used; at most {100 * max_fraction:g} % may be unusable: fix the rows, or "
            f"allow more by --max-rejected-fraction\n{_table(outcome.unusable, rejects)}"
        )


def _table(unusable: Mapping[str, int], rejects: types.Artifact) -> str:
    """Rows by reason, with an example: the files of a failed component are deleted."""
    first: dict[str, str] = {}
    with tf.io.gfile.GFile(os.path.join(rejects.uri, REJECTS_NAME), "r") as f:
        for line in f:
            reject = json.loads(line)
            first.setdefault(
                reject["reason"], f"{reject['origin']} row {reject['row']}: {reject['detail']}"
            )
    width = max(map(len, unusable))
    rows = [f"  {'reason':<{width}}  {'rows':>8}  first row"]
    for reason, count in sorted(unusable.items(), key=lambda item: (-item[1], item[0])):
        rows.append(f"  {_in_words(reason):<{width}}  {count:>8,}  {first[reason]}")
    return "\n".join(rows)


def _in_words(reason: str) -> str:
    return reason.replace("_", " ")


def _with_both_splits(
    outcome: _Outcome,
    settings: CheckSettings,
    split_uris: Mapping[str, str],
    examples_uri: str,
) -> _Outcome:
    """Makes sure that neither split is empty."""
    total = sum(outcome.examples.values())
    if total == 0:
        raise UserError(f"no row of dataset {settings.spec.dataset!r} can be used")
    for empty, other in zip(SPLITS, reversed(SPLITS), strict=True):
        if outcome.examples[empty]:
            continue
        groups = outcome.groups or ()
        first_of = {p.picture: members[0].picture for members in groups for p in members}
        moved, going = fill_empty_split(empty, other, split_uris, settings, examples_uri, first_of)
        if not moved:
            raise UserError(
                one_picture_message(f"all {total} usable rows of dataset {settings.spec.dataset!r}")
            )
        logger.info(
            "No picture's hash falls into %s (eval_fraction %g, seed %d): that split gets the "
            "picture whose hash is nearest.",
            empty,
            settings.eval_fraction,
            settings.seed,
        )
        groups = [
            [dataclasses.replace(p, split=empty) if p.picture in going else p for p in members]
            for members in groups
        ]
        return dataclasses.replace(
            outcome,
            examples={empty: moved, other: total - moved},
            groups=None if outcome.groups is None else groups,
        )
    return outcome


def _describe_dataset(
    examples: types.Artifact, spec: DatasetSpec, source: Source, fingerprint: str
) -> None:
    for name, text in (
        ("dataset", spec.dataset),
        ("dataset_fingerprint", fingerprint),
        ("dataset_revision", revision_of(spec)),
        ("dataset_kind", source.kind),
        ("dataset_taken_for", source.taken_for),
        ("image_column", source.image_column),
        ("caption_column", source.caption_column),
    ):
        examples.set_string_custom_property(name, text)


def _describe_counts(examples: types.Artifact, rejects: types.Artifact, outcome: _Outcome) -> None:
    for split, count in outcome.examples.items():
        examples.set_int_custom_property(f"num_{split}", count)
    for note, count in outcome.notes.items():
        examples.set_int_custom_property(note, count)
    for artifact in (examples, rejects):
        artifact.set_int_custom_property("rejected_total", outcome.num_rejected)
    for reason, count in outcome.rejected.items():
        rejects.set_int_custom_property(f"{_REJECTED}{reason}", count)
    if outcome.groups is not None:
        examples.set_int_custom_property("near_duplicate_groups", len(outcome.groups))
        pictures = sum(map(len, outcome.groups))
        examples.set_int_custom_property("near_duplicate_pictures", pictures)


def _tell(outcome: _Outcome, rejects: types.Artifact) -> None:
    logger.info(
        "%s examples to train on, %s held out.",
        f"{outcome.examples['train']:,}",
        f"{outcome.examples['eval']:,}",
    )
    if repeated := outcome.rejected.get(_DUPLICATE):
        logger.info(
            "%d rows repeat the picture and caption of another row and are left out.", repeated
        )
    if outcome.groups:
        dropped = outcome.rejected.get(_NEAR_DUPLICATE)
        logger.info(
            "%d pictures are near duplicates, in %d groups (other sizes, crops or mirror images of "
            "one picture): %s.",
            sum(map(len, outcome.groups)),
            len(outcome.groups),
            f"one picture of each group is kept, and {dropped} rows are left out"
            if dropped
            else "each group is trained on or held out as a whole",
        )
    if outcome.unusable:
        reasons = ", ".join(
            f"{count} {_in_words(reason)}" for reason, count in sorted(outcome.unusable.items())
        )
        logger.warning(
            "%d of %d rows were set aside (%s): see %s",
            outcome.num_unusable,
            outcome.num_rows,
            reasons,
            os.path.join(rejects.uri, REJECTS_NAME),
        )
    if animated := outcome.notes[ANIMATED]:
        logger.warning("%d pictures are animated: the first frame is used.", animated)
    if replaced := outcome.notes.get(REPLACED):
        logger.warning(
            "%s captions lack the new word and are replaced by sentences with it (word.templates).",
            f"{replaced:,}",
        )
    if outcome.long_captions:
        logger.warning(
            "%d captions are longer than what the text encoder reads and will be cut, such as %s",
            outcome.notes[TRUNCATED],
            "; ".join(
                f"{_shortened(caption)!r} ({num_tokens} tokens)"
                for caption, num_tokens in outcome.long_captions
            ),
        )


def _tell_withdrawn(withdrawn: Withdrawn, rejects: types.Artifact) -> None:
    near = sum(bool(row.near) for row in withdrawn.rows)
    logger.info(
        "%d rows are withdrawn, %d of them as near duplicates of listed pictures: see %s",
        len(withdrawn.rows),
        near,
        os.path.join(rejects.uri, REJECTS_NAME),
    )
    unmatched = withdrawn.unmatched
    rejects.set_int_custom_property("withdrawn_unmatched", len(unmatched))
    if unmatched:
        logger.warning(
            "%d entries of dataset.withdrawn match no usable row, such as line %d (%s): without "
            "the picture, its near duplicates cannot be found. List them, too, or leave the "
            "picture in the dataset; it is not trained on.",
            len(unmatched),
            unmatched[0].line,
            _shortened(unmatched[0].shown),
        )


def _shortened(caption: str) -> str:
    return caption if len(caption) <= _SHOWN_CHARACTERS else f"{caption[:_SHOWN_CHARACTERS]} ..."
