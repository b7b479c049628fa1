"""The work of WithdrawnReport."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import tensorflow as tf
from tfx import types
from tfx.dsl.components.base import base_executor
from tfx.types import artifact_utils
from tfx.utils import path_utils

from components.caption_example_gen.captions import CaptionTemplate, TagShuffle
from components.caption_example_gen.sources import DatasetError, DatasetSpec
from components.caption_example_gen.word_captions import WordCaptions
from components.latent_gen.encoding import Way
from components.loss_scorer.executor import SCORED, batch_size_of, judging_records
from components.pages import RELEASE_PLACE
from components.pages.page import render
from components.withdrawn_report.losses import (
    Gap,
    Losses,
    Scores,
    gap,
    gap_added,
    read_again,
    score,
    task,
)
from storage import filesystem
from storage.model_manifest import ModelManifest
from storage.withdrawn import Entry, KnowingRelease, KnownBy, Withdrawn, WithdrawnRow
from trainer.data.buckets import BucketLimits

PAGE_NAME, JSON_NAME = "withdrawn.html", "withdrawn.json"
REQUESTS = "requests"
"""The folder with the same files for each reason, if there are several."""

_TEMPLATE_NAME = "template.html"
# More pictures would hardly make the interval narrower.
_MOST_HELD_OUT = 200

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class _Compared:
    """Withdrawn pictures beside held-out ones.

    Attributes:
        withdrawn: Losses on the withdrawn pictures.
        held_out: Losses on the held-out pictures.
        gap: How much lower the losses on the withdrawn pictures are.
        gap_added: How much further these have fallen from the losses of the base weights.
        verdict: The result in a sentence.
    """

    withdrawn: Losses
    held_out: Losses
    gap: Gap
    gap_added: Gap
    verdict: str


@dataclasses.dataclass(frozen=True)
class _Findings:
    """The contents of a page.

    Attributes:
        training_id: Id of the model's training.
        list_digest: Digest of the list.
        entries: Entries of the list.
        rows: Rows that were withdrawn for them.
        known_by: Which releases know these rows.
        compared: Whether the new model knows them; `None` if nothing could be scored.
        losses: The losses of the model and of the base weights on each row.
        not_scored: Why rows were not scored; "" if all were.
    """

    training_id: str | None
    list_digest: str
    entries: Sequence[Entry]
    rows: Sequence[WithdrawnRow]
    known_by: KnownBy
    compared: _Compared | None
    losses: Mapping[str, tuple[float, float]]
    not_scored: str

    @property
    def unmatched(self) -> list[Entry]:
        """Entries that name no row."""
        named = {row.entry for row in self.rows}
        return [entry for entry in self.entries if entry.line not in named]

    def json(self) -> str:
        """The contents as JSON for programs; numbers that are not finite are null."""
        said = dataclasses.asdict(self)
        losses = said.pop("losses")
        lines = {row["id"]: losses.get(row["id"]) for row in said["rows"]}
        for row in said["rows"]:
            row["line"] = row.pop("entry")
            row["loss"], row["loss_base_weights"] = lines[row["id"]] or (None, None)
        return json.dumps(_finite(said), indent=2, ensure_ascii=False)


class Executor(base_executor.BaseExecutor):
    """Reads pictures again, scores them, and writes the pages."""

    def Do(  # noqa: N802
        self,
        input_dict: dict[str, list[types.Artifact]],
        output_dict: dict[str, list[types.Artifact]],
        exec_properties: dict[str, Any],
    ) -> None:
        """See `WithdrawnReport`.

        Raises:
            WeightsError: The base weights have changed since the component was made.
        """
        self._log_startup(input_dict, output_dict, exec_properties)
        rejects = artifact_utils.get_single_instance(input_dict["rejects"])
        model = artifact_utils.get_single_instance(input_dict["model"])
        report = artifact_utils.get_single_instance(output_dict["report"])
        withdrawn = Withdrawn.read(rejects.uri)
        spec = DatasetSpec(
            **json.loads(exec_properties["spec"]), dataset=exec_properties["dataset"]
        )
        pictures, problem = _read_again(spec, withdrawn.rows)
        scores = None
        if pictures:
            [latents] = input_dict["latents"]
            candidate = path_utils.serving_model_path(model.uri)
            scores = _scores(withdrawn.rows, pictures, latents, candidate, exec_properties)
        # From here on, an entry is identified by its line: each request only has some entries.
        rows = [
            dataclasses.replace(row, entry=withdrawn.entries[row.entry].line)
            for row in withdrawn.rows
        ]
        manifest = ModelManifest.read(path_utils.serving_model_path(model.uri))
        whole = _Findings(
            training_id=manifest.training_id,
            list_digest=withdrawn.digest,
            entries=withdrawn.entries,
            rows=rows,
            known_by=_known_by(exec_properties["known_by"]),
            compared=None,
            losses={},
            not_scored=problem,
        )
        found = _with_scores(whole, scores)
        for folder, one in _requests(found, whole, scores):
            _write(one, os.path.join(report.uri, *folder))
        _describe(report, found)
        logger.info(
            "%s rows are withdrawn%s.",
            f"{len(rows):,}",
            f": {found.compared.verdict}" if found.compared else f"; not scored: {problem}",
        )


def _known_by(text: str) -> KnownBy:
    found = KnownBy.of_json(text)
    if not found.problem:
        return found
    logger.warning("Which releases know what is withdrawn was not looked up: %s", found.problem)
    return dataclasses.replace(found, problem="not looked up")


def _read_again(spec: DatasetSpec, rows: Sequence[WithdrawnRow]) -> tuple[Mapping[str, bytes], str]:
    """The pictures that the dataset still has, and why others cannot be scored."""
    if not rows:
        return {}, "no row of the dataset is listed"
    try:
        pictures = read_again(spec, rows)
    except DatasetError as error:
        # The page must not reveal the path of the dataset to whoever receives it.
        logger.warning("Withdrawn pictures are not scored: %s", error)
        return {}, "the dataset can no longer be read"
    missing = {row.picture for row in rows} - pictures.keys()
    problem = f"{len(missing):,} pictures are no longer in the dataset" if missing else ""
    return pictures, problem


def _scores(
    rows: Sequence[WithdrawnRow],
    pictures: Mapping[str, bytes],
    latents: types.Artifact,
    candidate: str,
    exec_properties: Mapping[str, Any],
) -> tuple[Scores, Scores] | None:
    """Losses of withdrawn and of held-out examples; `None` if nothing is held out."""
    # Import Keras.
    from trainer.data.held_out import different_pictures
    from trainer.data.latents import LatentsManifest
    from trainer.presets import get_preset
    from trainer.weights.base_model import BaseModel

    preset, image_size = get_preset(exec_properties["preset"]), exec_properties["image_size"]
    base_model = BaseModel.locate(preset, image_size, exec_properties["base_weights"])
    base_model.check_unchanged(exec_properties["base_weights_hash"], SCORED)
    manifest = LatentsManifest.read(latents.uri)
    limits = exec_properties.get("buckets")
    way = Way(
        base_model,
        flip=False,
        crop=exec_properties["crop"],
        crop_seed=exec_properties["crop_seed"],
        # Like held-out captions, these are encoded as written.
        tags=TagShuffle(),
        template=CaptionTemplate(),
        words=WordCaptions.of_json(exec_properties.get("word_captions")),
        limits=BucketLimits(**json.loads(limits)) if limits else None,
    )
    held_out = different_pictures(judging_records(latents, candidate), _MOST_HELD_OUT).records
    if not held_out:
        return None
    held_out = held_out[:_MOST_HELD_OUT]
    settings = task(
        base_model,
        candidate,
        way,
        exec_properties["num_strata"],
        exec_properties["seed"],
        batch_size_of(preset, manifest),
        in_buckets=limits is not None,
    )
    # Scorers switch it off; it is restored for whatever runs next in this process.
    tensor_float_32 = tf.config.experimental.tensor_float_32_execution_enabled()
    found = score(rows, pictures, held_out, way, settings, exec_properties["min_draws"])
    tf.config.experimental.enable_tensor_float_32_execution(tensor_float_32)
    return found


def _with_scores(found: _Findings, scores: tuple[Scores, Scores] | None) -> _Findings:
    """The same findings, with the scores of their rows."""
    if scores is None:
        return dataclasses.replace(
            found, not_scored=found.not_scored or "no held-out picture can judge this model"
        )
    own, held_out = scores[0].only(row.id for row in found.rows), scores[1]
    if not own.by_example:
        return dataclasses.replace(
            found, not_scored=found.not_scored or "no row of the dataset is listed"
        )
    added = gap_added(own, held_out)
    compared = _Compared(own.losses, held_out.losses, gap(own, held_out), added, _verdict(added))
    means = {name: tuple(losses.mean(0).tolist()) for name, losses in own.by_example.items()}
    return dataclasses.replace(found, compared=compared, losses=means)


def _verdict(added: Gap) -> str:
    if not added.has_interval:
        return (
            "a single picture has no interval, so it is unknown whether there is a gap"
            if math.isfinite(added.value)
            else "a loss is not a finite number, so it is unknown whether there is a gap"
        )
    if added.is_shown:
        return "a gap is shown: the loss has surely fallen further on the withdrawn pictures"
    return "no gap is shown: the loss has not surely fallen further on the withdrawn pictures"


def _requests(
    found: _Findings, whole: _Findings, scores: tuple[Scores, Scores] | None
) -> Iterator[tuple[tuple[str, ...], _Findings]]:
    """Folders and their contents: all findings, and the findings for each reason."""
    yield (), found
    reasons = list(dict.fromkeys(entry.reason for entry in found.entries))
    if len(reasons) < 2:
        return
    for number, reason in enumerate(reasons, start=1):
        entries = [entry for entry in found.entries if entry.reason == reason]
        lines, shown = ({getattr(e, name) for e in entries} for name in ("line", "shown"))
        releases = (
            KnowingRelease(r.version, r.how, tuple(e for e in r.entries if e in shown))
            for r in found.known_by.releases
        )
        of_request = dataclasses.replace(
            whole,
            entries=entries,
            rows=[row for row in found.rows if row.entry in lines],
            known_by=dataclasses.replace(
                found.known_by, releases=tuple(r for r in releases if r.entries)
            ),
        )
        yield (REQUESTS, f"{number:02}"), _with_scores(of_request, scores)


def _write(found: _Findings, folder: str) -> None:
    filesystem.make_folder(folder)
    page = render(
        __package__,
        _TEMPLATE_NAME,
        found=found,
        finite=math.isfinite,
        release=RELEASE_PLACE,
    )
    for name, content in ((PAGE_NAME, page), (JSON_NAME, found.json())):
        filesystem.write_bytes(filesystem.join(folder, name), content.encode())


def _describe(report: types.Artifact, found: _Findings) -> None:
    report.set_int_custom_property("withdrawn_rows", len(found.rows))
    if found.compared is None:
        return
    for name, value in (
        ("withdrawn_loss", found.compared.withdrawn.mean),
        ("withdrawn_gap", found.compared.gap.value),
        ("withdrawn_gap_added", found.compared.gap_added.value),
    ):
        report.set_float_custom_property(name, value)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
