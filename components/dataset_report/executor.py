"""The work of DatasetReport."""

from __future__ import annotations

import collections
import dataclasses
import itertools
import json
import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from tfx import types
from tfx.dsl.components.base import base_executor
from tfx.dsl.io import fileio
from tfx.types import artifact_utils
from tfx.utils import io_utils

from components.caption_example_gen.captions import (
    TEMPLATE_PROPERTY,
    CaptionTemplate,
    TagShuffle,
)
from components.caption_example_gen.groups_file import GROUPS_NAME, GroupedPicture, read_groups
from components.caption_example_gen.word_captions import WordCaptions
from components.caption_validator.anomalies import read_anomalies
from components.caption_validator.drift import Drift
from components.caption_validator.former import found_statistics
from components.dataset_report.buckets import BucketRow, bucket_rows
from components.dataset_report.drift import comparisons
from components.dataset_report.reconstructions import (
    AUTOENCODER,
    Reconstruction,
    num_pictures,
    reconstruct,
)
from components.dataset_report.samples import CutCaption, Sample, collect
from components.dataset_report.statistics import (
    CAPTION_LENGTH,
    PICTURE_MEASURES,
    PICTURE_MEASURES_IN_BUCKETS,
    TOKENS,
    Statistics,
)
from components.pages.page import render
from components.tfrecords import read_shard
from trainer.data.buckets import BucketLimits
from trainer.presets import get_preset
from trainer.text.new_word import NewWord
from trainer.text.tokenizer import MAX_LENGTH
from trainer.weights.base_model import BaseModel

REPORT_NAME = "dataset.html"

_TEMPLATE_NAME = "template.html"
_REJECTS_NAME = "rejects.jsonl"
_REJECTED = "rejected_"
_HELD_OUT, _TRAINED_ON = "eval", "train"
_TOTAL = "rejected_total"

_MAX_SAMPLES = 24
_MAX_CUT_CAPTIONS = 10
_MAX_REJECTS = 50
_MAX_VARIED = 5
_MAX_VARIANTS = 4

_SCHEMA_TYPES = {0: "", 1: "bytes", 2: "int", 3: "float", 4: "struct"}

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Reject:
    """A row that was set aside."""

    reason: str
    detail: str
    origin: str
    row: str
    caption: str | None


class Executor(base_executor.BaseExecutor):
    """Writes the page."""

    def Do(  # noqa: N802
        self,
        input_dict: dict[str, list[types.Artifact]],
        output_dict: dict[str, list[types.Artifact]],
        exec_properties: dict[str, Any],
    ) -> None:
        """See `DatasetReport`.

        Raises:
            WeightsError: The base weights have changed since the component was made.
        """
        self._log_startup(input_dict, output_dict, exec_properties)
        examples = artifact_utils.get_single_instance(input_dict["examples"])
        rejects = artifact_utils.get_single_instance(input_dict["rejects"])
        statistics = Statistics(artifact_utils.get_single_instance(input_dict["statistics"]))
        anomalies = artifact_utils.get_single_instance(input_dict["anomalies"])
        schema = io_utils.SchemaReader().read(
            io_utils.get_only_uri_in_dir(artifact_utils.get_single_uri(input_dict["schema"]))
        )
        report = artifact_utils.get_single_instance(output_dict["report"])
        base_model = BaseModel.locate(
            get_preset(exec_properties["preset"]),
            exec_properties["image_size"],
            exec_properties["base_weights"],
        )
        base_model.check_unchanged(exec_properties["autoencoder_hash"], AUTOENCODER)

        tags = TagShuffle(**json.loads(exec_properties.get("tags") or "{}"))
        limits = exec_properties.get("buckets")
        buckets = BucketLimits(**json.loads(limits)) if limits else None
        words = WordCaptions.of_json(exec_properties.get("word_captions"))
        samples, cut = _from_examples(examples, statistics, words.word if words else None)
        reasons = rejected_reasons(rejects)
        shown = first_of_each_reason(_read_rejects(rejects), _MAX_REJECTS, list(reasons))
        given = input_dict.get("baseline_statistics")
        before = artifact_utils.get_single_instance(given) if given else found_statistics(anomalies)
        drift = Drift.read(anomalies.uri)
        page = render(
            __package__,
            _TEMPLATE_NAME,
            facts=_facts(examples),
            dataset=examples.get_string_custom_property("dataset"),
            rows=statistics.rows,
            rejected_total=sum(reasons.values()),
            reasons=reasons,
            rejects=shown,
            anomalies=read_anomalies(anomalies),
            drift=drift,
            comparisons=list(comparisons(drift, statistics, before)) if drift and before else [],
            features=_features(schema, statistics),
            caption_length=(CAPTION_LENGTH, statistics.panels(CAPTION_LENGTH)),
            vocabularies=statistics.vocabularies(),
            picture_measures=[
                (measure, statistics.panels(measure))
                for measure in (PICTURE_MEASURES_IN_BUCKETS if buckets else PICTURE_MEASURES)
            ],
            formats=statistics.formats(),
            pictures=statistics.pictures(),
            near_duplicates=_near_duplicates(examples),
            animated=examples.get_int_custom_property("images_animated"),
            left_right=examples.get_int_custom_property("captions_left_right"),
            truncated=examples.get_int_custom_property("captions_truncated"),
            max_length=MAX_LENGTH,
            samples=samples,
            buckets=list(_buckets(examples, buckets)),
            reconstructions=list(_reconstructions(base_model, examples, buckets)),
            image_size=base_model.image_size,
            cut=cut,
            words=words,
            replaced=examples.get_int_custom_property("captions_replaced"),
            templates=words.of(words.caption("") or "") if words and words.templates else (),
            tags=tags,
            varied=_varied(samples, tags, CaptionTemplate.of(examples)),
        )
        fileio.makedirs(report.uri)
        path = os.path.join(report.uri, REPORT_NAME)
        with fileio.open(path, "wb") as f:
            f.write(page.encode())
        logger.info("The page about the dataset: %s", path)


@dataclasses.dataclass(frozen=True)
class NearDuplicates:
    """Groups of pictures that are nearly the same.

    Attributes:
        groups: Number of groups.
        pictures: Number of pictures in all groups.
        shown: The first groups, with their pictures that have a thumbnail.
        hidden: For each of these groups, the number of its other pictures.
    """

    groups: int
    pictures: int
    shown: Sequence[Sequence[GroupedPicture]]
    hidden: Sequence[int]


def _near_duplicates(examples: types.Artifact) -> NearDuplicates | None:
    """The groups that CaptionExampleGen found; `None` if it did not look."""
    path = os.path.join(examples.uri, GROUPS_NAME)
    if not fileio.exists(path):
        return None
    groups, pictures = 0, 0
    shown: list[list[GroupedPicture]] = []
    hidden: list[int] = []
    for members in read_groups(path):
        groups += 1
        pictures += len(members)
        if seen := [picture for picture in members if picture.thumbnail]:
            shown.append(seen)
            hidden.append(len(members) - len(seen))
    return NearDuplicates(groups, pictures, shown, hidden)


def rejected_reasons(rejects: types.Artifact) -> dict[str, int]:
    """The reasons for which rows were set aside, with their counts, the most frequent first."""
    names = rejects.mlmd_artifact.custom_properties
    counts = {
        name.removeprefix(_REJECTED): rejects.get_int_custom_property(name)
        for name in names
        if name.startswith(_REJECTED) and name != _TOTAL
    }
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def first_of_each_reason(
    rejects: Iterable[Reject], limit: int, reasons: Sequence[str]
) -> list[Reject]:
    """Takes up to `limit` rows, the first of every reason before the second of any.

    Returns:
        The rows, in the order of `reasons` and, within a reason, in their original order.
    """
    by_reason: dict[str, list[Reject]] = {reason: [] for reason in reasons}
    for reject in rejects:
        rows = by_reason.setdefault(reject.reason, [])
        if len(rows) < limit:
            rows.append(reject)
    in_turn = itertools.chain.from_iterable(itertools.zip_longest(*by_reason.values()))
    chosen = itertools.islice((reject for reject in in_turn if reject is not None), limit)
    numbers = collections.Counter(reject.reason for reject in chosen)
    return [row for reason, rows in by_reason.items() for row in rows[: numbers[reason]]]


def _read_rejects(rejects: types.Artifact) -> Iterator[Reject]:
    with fileio.open(os.path.join(rejects.uri, _REJECTS_NAME), "r") as f:
        for line in f:
            row = json.loads(line)
            yield Reject(
                row["reason"], row["detail"], row["origin"], str(row["row"]), row["caption"]
            )


def _from_examples(
    examples: types.Artifact, statistics: Statistics, word: NewWord | None
) -> tuple[list[Sample], list[CutCaption]]:
    samples: list[Sample] = []
    cut: list[CutCaption] = []
    splits = artifact_utils.decode_split_names(examples.split_names)
    for number, split in enumerate(splits):
        longest = statistics.maximum(split, TOKENS)
        has_cut = longest is not None and longest > MAX_LENGTH
        found = collect(
            split,
            _records(examples, split),
            (_MAX_SAMPLES - len(samples)) // (len(splits) - number),
            _MAX_CUT_CAPTIONS - len(cut) if has_cut else 0,
            word,
        )
        samples += found[0]
        cut += found[1]
    return samples, cut


def _varied(
    samples: Iterable[Sample], tags: TagShuffle, template: CaptionTemplate
) -> list[list[str]]:
    """The first variants of the first captions that have several."""
    trained_on = (sample for sample in samples if sample.split == _TRAINED_ON)
    every = (list(dict.fromkeys(tags.of(s.caption, s.id, template))) for s in trained_on)
    several = (variants[:_MAX_VARIANTS] for variants in every if len(variants) > 1)
    return list(itertools.islice(several, _MAX_VARIED))


def _buckets(examples: types.Artifact, limits: BucketLimits | None) -> Iterator[BucketRow]:
    if limits is None:
        return iter(())
    splits = artifact_utils.decode_split_names(examples.split_names)
    return bucket_rows({split: _records(examples, split) for split in splits}, limits)


def _reconstructions(
    base_model: BaseModel, examples: types.Artifact, limits: BucketLimits | None
) -> Iterator[Reconstruction]:
    held_out = _HELD_OUT in artifact_utils.decode_split_names(examples.split_names)
    if not held_out or base_model.folder is None:
        return iter(())
    number = num_pictures(base_model.image_size)
    records = itertools.islice(_records(examples, _HELD_OUT), number)
    return reconstruct(base_model, records, limits)


def _records(examples: types.Artifact, split: str) -> Iterator[bytes]:
    pattern = io_utils.all_files_pattern(artifact_utils.get_split_uri([examples], split))
    return itertools.chain.from_iterable(map(read_shard, sorted(map(str, fileio.glob(pattern)))))


def _facts(examples: types.Artifact) -> dict[str, str]:
    names = {
        "Revision": "dataset_revision",
        "Kind": "dataset_kind",
        "Taken for": "dataset_taken_for",
        "Pictures from": "image_column",
        "Captions from": "caption_column",
        "Captions put into": TEMPLATE_PROPERTY,
        "Fingerprint": "dataset_fingerprint",
    }
    facts = {shown: examples.get_string_custom_property(name) for shown, name in names.items()}
    return {shown: value for shown, value in facts.items() if value}


def _features(schema: Any, statistics: Statistics) -> list[Mapping[str, Any]]:
    return [
        {
            "name": feature.name,
            "type": _SCHEMA_TYPES.get(feature.type, ""),
            "required": feature.presence.min_fraction == 1.0,
            "missing": statistics.missing(feature.name),
        }
        for feature in sorted(schema.feature, key=lambda feature: feature.name)
    ]
