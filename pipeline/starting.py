"""Looks up which model a run's training starts from, before anything starts.

`latest_blessed` is the latest blessed model that was trained on other data than the run's: so a run
with the same data starts from the same model as before, a second run has nothing to do, and a run
with other settings is another try from the same start. Data is compared by the dataset's
fingerprint.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from ml_metadata.metadata_store import metadata_store
from ml_metadata.proto import metadata_store_pb2 as mlmd

from pipeline.config.resolving import trained_preset
from pipeline.config.schema import (
    BASE,
    LATEST_BLESSED,
    RELEASE,
    ConfigError,
    RunConfig,
    names_place,
)
from pipeline.lineage.model import CONTENT_DIGEST
from serving.releases import EXPORT_NAME, RELEASES
from storage import filesystem
from storage.errors import one_line
from storage.filesystem import content_digest
from storage.hashing import sha256_hex
from storage.model_manifest import MODEL_MANIFEST_NAME
from storage.user_errors import UserError

if TYPE_CHECKING:
    from trainer.weights.base_model import BaseModel

_MODEL, _PUSHED, _BLESSING = "Model", "PushedModel", "ModelBlessing"
_EXAMPLES, _STATISTICS = "Examples", "ExampleStatistics"
_RUN, _FINGERPRINT = "pipeline_run", "dataset_fingerprint"
_OUTPUTS = (mlmd.Event.OUTPUT, mlmd.Event.DECLARED_OUTPUT)
_INPUTS = (mlmd.Event.INPUT, mlmd.Event.DECLARED_INPUT)
_MANIFEST_DIGEST = "manifest_sha256"


@dataclasses.dataclass(frozen=True)
class Start:
    """The model that a training starts from.

    Attributes:
        uri: Folder of the model's artifact; "" for the latest blessed model, if any, when the
            pipeline gets there.
        shown: What messages call the model.
        identity: Identifies the model's content, independent of the place of the output folder.
        properties: Custom properties by which its artifact is recognised as the same.
        statistics: Folder of the statistics of the dataset that it was trained on; "" if unknown.
        examples: Folder of that dataset itself; "" if it no longer exists.
    """

    uri: str
    shown: str
    identity: str
    properties: Mapping[str, str] = dataclasses.field(default_factory=dict)
    statistics: str = ""
    examples: str = ""


AT_RUN_TIME = Start("", "the latest blessed model, if there is any then", LATEST_BLESSED)
"""On Vertex, where the pipeline itself looks the model up in ML Metadata."""


def find_start(
    config: RunConfig,
    base_model: BaseModel,
    dataset_fingerprint: str,
    store: metadata_store.MetadataStore,
    serving_dir: str,
) -> Start | None:
    """What the training of a local run starts from; `None` for the base weights.

    Args:
        config: All settings, resolved.
        base_model: The base weights, which the model must have been made from.
        dataset_fingerprint: Fingerprint of the dataset as it is now.
        store: ML Metadata of the output folder.
        serving_dir: Where the releases are.

    Raises:
        ConfigError: There is no such model, its files are gone, or it does not fit.
    """
    start_from = config.model.start_from
    if start_from == BASE:
        return None
    models = _Models(store)
    if names_place(start_from):
        uri = _artifact_folder(start_from)
        _check(config, uri, base_model)
        digest = content_digest(uri)
        start = Start(uri, f"the model in {uri}", digest, {CONTENT_DIGEST: digest})
        # An earlier run may have imported the folder as a second artifact, beside the original.
        return models.with_dataset(start, *store.get_artifacts_by_uri(uri))
    if start_from == LATEST_BLESSED:
        made = models.made_with(dataset_fingerprint)
        found = [m for m in models.blessed() if m.id not in made]
        if not found:
            return None
        model = found[-1]
    else:
        model = models.of_release(start_from.removeprefix(RELEASE), serving_dir)
    _check(config, model.uri, base_model)
    start = Start(model.uri, models.shown(model), f"artifact {model.id}")
    return models.with_dataset(start, model)


def find_start_for_vertex(
    config: RunConfig, base_model: BaseModel, serving_dir: str
) -> Start | None:
    """What the training of a compiled pipeline starts from; `None` for the base weights.

    Args:
        config: All settings, resolved.
        base_model: The base weights, which the model must have been made from.
        serving_dir: Where releases are pushed to.

    Raises:
        ConfigError: There is no such model, its files are gone, or it does not fit.
    """
    start_from = config.model.start_from
    if start_from == BASE:
        return None
    if start_from == LATEST_BLESSED:
        return AT_RUN_TIME
    if not names_place(start_from):
        version = start_from.removeprefix(RELEASE)
        uri = _pushed_from(version, serving_dir)
        _check(config, uri, base_model)
        return Start(uri, f"release {version}", f"release {version}")
    uri = _artifact_folder(start_from)
    _check(config, uri, base_model)
    manifest = filesystem.join(uri, EXPORT_NAME, MODEL_MANIFEST_NAME)
    # A digest of the whole model would require fetching all its files from the bucket.
    digest = sha256_hex([filesystem.read_bytes(manifest)])
    return Start(uri, f"the model in {uri}", digest, {_MANIFEST_DIGEST: digest})


def find_start_outside(config: RunConfig, base_model: BaseModel) -> str | None:
    """The folder of the SavedModels that training outside a pipeline starts from, if any.

    Raises:
        ConfigError: The setting needs an output folder to look it up; otherwise as `find_start`.
    """
    start_from = config.model.start_from
    if start_from == BASE:
        return None
    if not names_place(start_from):
        raise ConfigError(
            f"model.start_from = {start_from!r} is impossible here, because there is no output "
            "folder to look it up in: give the folder of the model"
        )
    uri = _artifact_folder(start_from)
    _check(config, uri, base_model)
    return filesystem.join(uri, EXPORT_NAME)


def told(start_from: str, start: Start | None, finds_dataset: bool = False) -> str:
    """What to tell the user about where training starts; "" for the base weights by default.

    Args:
        start_from: The setting.
        start: What was found.
        finds_dataset: Whether the pipeline itself looks for the dataset that it was trained on.
    """
    if start is not None:
        said = f"Training starts from {start.shown} (model.start_from: {start_from})."
        if finds_dataset:
            return said
        if not start.statistics:
            said += (
                " There are no statistics here of the dataset that it was trained on, so this "
                "dataset is not checked for drift."
            )
        elif not start.examples:
            said += (
                " The dataset that it was trained on is no longer here: this dataset is compared "
                "only with its statistics, not with its words and rejected rows."
            )
        return said
    if start_from == BASE:
        return ""
    return (
        "Training starts from the base weights: no model that was trained on other data is blessed "
        f"yet (model.start_from: {start_from})."
    )


class _Models:
    """The models in a store."""

    def __init__(self, store: metadata_store.MetadataStore) -> None:
        self._store = store
        self._live = {a.id: a for a in _of_type(store, _MODEL) if _live(a)}

    def blessed(self) -> list[mlmd.Artifact]:
        """Blessed models that still exist, the latest last."""
        ids = {
            properties["current_model_id"].int_value
            for blessing in _of_type(self._store, _BLESSING)
            if (properties := dict(blessing.custom_properties))
            .get("blessed", mlmd.Value())
            .int_value
            and "current_model_id" in properties
        }
        return [self._live[i] for i in sorted(ids.intersection(self._live))]

    def made_with(self, dataset_fingerprint: str) -> set[int]:
        """Ids of models that runs on a dataset with this content made, or found in the cache."""
        runs = {
            context.id
            for execution in self._store.get_executions()
            if _text(execution.custom_properties, _FINGERPRINT) == dataset_fingerprint
            for context in self._store.get_contexts_by_execution(execution.id)
            if context.type == _RUN
        }
        steps = {e.id for run in runs for e in self._store.get_executions_by_context(run)}
        events = list(self._events(steps))
        # Outputs of an importer, which has no inputs, are models that a training started from.
        taking = {e.execution_id for e in events if e.type in _INPUTS}
        return {e.artifact_id for e in events if e.type in _OUTPUTS and e.execution_id in taking}

    def of_release(self, version: str, serving_dir: str) -> mlmd.Artifact:
        """The model of a release in a serving directory; raises a `ConfigError` without one."""
        pushed = [
            a
            for a in _of_type(self._store, _PUSHED)
            if _text(a.custom_properties, "pushed_version") == version
            and _same_place(_text(a.custom_properties, "pushed_destination"), serving_dir)
        ]
        there = filesystem.is_file(filesystem.join(serving_dir, RELEASES, f"{version}.json"))
        if not pushed or not there:
            raise _no_release(version, serving_dir)
        steps = {
            e.execution_id
            for e in self._store.get_events_by_artifact_ids([a.id for a in pushed])
            if e.type in _OUTPUTS
        }
        models = [
            e.artifact_id
            for e in self._events(steps)
            if e.type in _INPUTS and e.path.steps[0].key == "model"
        ]
        found = [self._live[i] for i in sorted(models) if i in self._live]
        if not found:
            raise ConfigError(
                f"model.start_from = {RELEASE}{version} is impossible: the model that was pushed "
                "as this release is gone; start from another release, or from base"
            )
        return found[-1]

    def with_dataset(self, start: Start, *models: mlmd.Artifact) -> Start:
        """Adds to a start where the dataset of its model and the dataset's statistics are."""
        latents = self._given([model.id for model in models], _EXAMPLES)
        datasets = self._given(latents, _EXAMPLES)
        # Latest first: if other code made the dataset again, the latest one counts.
        for dataset in sorted(datasets, reverse=True):
            taking = {
                e.execution_id
                for e in self._store.get_events_by_artifact_ids([dataset])
                if e.type in _INPUTS
            }
            made = {e.artifact_id for e in self._events(taking) if e.type in _OUTPUTS}
            statistics = [
                a
                for a in (self._store.get_artifacts_by_id(sorted(made)) if made else ())
                if a.type == _STATISTICS and _live(a) and filesystem.is_folder(a.uri)
            ]
            if statistics:
                [examples] = self._store.get_artifacts_by_id([dataset])
                there = _live(examples) and filesystem.is_folder(examples.uri)
                return dataclasses.replace(
                    start,
                    statistics=statistics[-1].uri,
                    examples=examples.uri if there else "",
                )
        return start

    def _given(self, artifacts: Iterable[int], kind: str) -> list[int]:
        """Inputs, of a type, of the steps that made the given artifacts."""
        ids = list(artifacts)
        events = self._store.get_events_by_artifact_ids(ids) if ids else ()
        steps = {e.execution_id for e in events if e.type in _OUTPUTS}
        taken = {e.artifact_id for e in self._events(steps) if e.type in _INPUTS}
        found = self._store.get_artifacts_by_id(sorted(taken)) if taken else ()
        return [a.id for a in found if a.type == kind]

    def shown(self, model: mlmd.Artifact) -> str:
        """What messages call a model."""
        steps = {
            e.execution_id
            for e in self._store.get_events_by_artifact_ids([model.id])
            if e.type in _INPUTS and e.path.steps[0].key == "model"
        }
        outputs = [e.artifact_id for e in self._events(steps) if e.type in _OUTPUTS]
        versions = [
            version
            for a in (self._store.get_artifacts_by_id(outputs) if outputs else ())
            if a.type == _PUSHED and (version := _text(a.custom_properties, "pushed_version"))
        ]
        return f"release {versions[-1]}, model {model.id}" if versions else f"model {model.id}"

    def _events(self, steps: Iterable[int]) -> Iterator[mlmd.Event]:
        ids = sorted(steps)
        yield from self._store.get_events_by_execution_ids(ids) if ids else ()


def _check(config: RunConfig, uri: str, base_model: BaseModel) -> None:
    """Raises a `ConfigError` if training cannot start from the model of an artifact."""
    from trainer.weights.starting_model import StartingModel

    try:
        trained = dataclasses.replace(base_model, preset=trained_preset(config, base_model))
        StartingModel.locate(filesystem.join(uri, EXPORT_NAME), trained)
    except (UserError, OSError) as error:
        raise ConfigError(
            f"model.start_from = {config.model.start_from!r}: {one_line(error)}"
        ) from None


def _artifact_folder(place: str) -> str:
    folder = place.rstrip("/")
    head, _, name = folder.rpartition("/")
    return head if name == EXPORT_NAME else folder


def _pushed_from(version: str, serving_dir: str) -> str:
    """Folder of the model artifact that a release was pushed from, as the release says."""
    path = filesystem.join(serving_dir, RELEASES, f"{version}.json")
    if not filesystem.is_file(path):
        raise _no_release(version, serving_dir)
    try:
        return str(json.loads(filesystem.read_bytes(path))["model"]["uri"])
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"model.start_from = {RELEASE}{version} is impossible: {path} is damaged "
            f"({one_line(error)}); start from another release, or from base"
        ) from None


def _no_release(version: str, serving_dir: str) -> ConfigError:
    from serving.errors import ServingError
    from serving.releases import list_versions

    try:
        known = ", ".join(map(str, list_versions(serving_dir)))
    except ServingError:
        known = ""
    return ConfigError(
        f"model.start_from = {RELEASE}{version} is impossible: there is no release {version} in "
        f"{serving_dir}; " + (f"there are: {known}" if known else "nothing was pushed yet")
    )


def _same_place(first: str, second: str) -> bool:
    if "://" in first or "://" in second:
        return first.rstrip("/") == second.rstrip("/")
    return os.path.realpath(first) == os.path.realpath(second)


def _live(artifact: mlmd.Artifact) -> bool:
    return bool(artifact.state == mlmd.Artifact.LIVE and artifact.uri)


def _of_type(store: metadata_store.MetadataStore, kind: str) -> list[mlmd.Artifact]:
    found = store.get_artifacts_by_type(kind)
    return sorted(found, key=lambda artifact: artifact.id)


def _text(properties: Any, name: str) -> str:
    # Reading a missing key adds it to a protobuf map; not so to a dict.
    return str(dict(properties).get(name, mlmd.Value()).string_value)
