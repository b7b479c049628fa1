"""Removes what nothing needs from an output folder; it may be killed at any moment.

`pipeline.needs` decides what that is. Artifacts are removed in three steps: all of them are marked
for deletion, in one transaction; then, for each, its files are removed, and it is marked as
deleted, with the time. From the first step on neither the cache nor a resolver trusts it, and the
next clean-up finishes what was begun. A folder of checkpoints, which ML Metadata does not know, is
renamed first.

Small files that describe what was removed stay: a model's manifest, the index of a dataset's rows,
reports, statistics, curves. Traces read them from there.
"""

from __future__ import annotations

import collections
import dataclasses
import datetime
import logging
import os
import re
import shutil
from collections.abc import Iterator, Sequence

from ml_metadata import errors as mlmd_errors
from ml_metadata.metadata_store import metadata_store
from ml_metadata.proto import metadata_store_pb2 as mlmd

from pipeline.disk import folder_bytes, in_words
from pipeline.lineage.model import CHECKPOINTS_REMOVED_ON, REMOVED_ON
from pipeline.lineage.moved import ARTIFACTS_NAME
from pipeline.needs import EXAMPLES, MODEL, History, Policy
from serving.releases import EXPORT_NAME
from storage.filesystem import content_digest
from storage.model_manifest import MODEL_MANIFEST_NAME
from storage.row_index import FOLDER_NAME as ROW_INDEX

CHECKPOINTS_NAME, SERVING_NAME = "checkpoints", "serving_model"

# For each type that is removed: what stays, below its folder.
_STAYS = {MODEL: os.path.join(EXPORT_NAME, MODEL_MANIFEST_NAME), EXAMPLES: ROW_INDEX}
# A removal that was begun is finished.
_GOING = mlmd.Artifact.MARKED_FOR_DELETION
_REMOVED_PREFIX = ".removed-"
# As in the Trainer's executor; importing that would import TFX.
_TRAINING_ID = "training_id"
_TRAINING = re.compile(
    rf"(?P<begun>{re.escape(_REMOVED_PREFIX)})?(?P<id>(?P<search>search-)?[0-9a-f]{{16}})"
)

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Removal:
    """A folder that nothing needs.

    Attributes:
        path: Where it is.
        what: What it is called, for people.
        why: Why nothing needs it.
        size: Its size in bytes, without the files that stay.
        artifact: The artifact that it belongs to; `None` for checkpoints.
        training_id: The training, or the search, that the checkpoints belong to.
    """

    path: str
    what: str
    why: str
    size: int
    artifact: mlmd.Artifact | None = None
    training_id: str = ""


@dataclasses.dataclass(frozen=True)
class Plan:
    """What will be removed, and what stays.

    Attributes:
        removals: The folders that nothing needs, the largest first.
        kept: Bytes of the models, examples and checkpoints that stay, by what needs them.
    """

    removals: tuple[Removal, ...]
    kept: dict[str, int]

    @property
    def size(self) -> int:
        """Bytes that the removal frees."""
        return sum(removal.size for removal in self.removals)


def make_plan(store: metadata_store.MetadataStore, output: str, policy: Policy) -> Plan:
    """Finds what nothing needs; changes nothing.

    Args:
        store: ML Metadata of the output folder.
        output: That folder, absolute.
        policy: What stays although no release needs it.
    """
    history = History(store)
    needed = history.needed(os.path.join(output, SERVING_NAME), policy)
    blessed = history.blessed()
    removals: list[Removal] = []
    kept: dict[str, int] = collections.defaultdict(int)
    held = {history.artifacts[i].uri for i in needed}
    for artifact in history.artifacts.values():
        if artifact.type not in _STAYS or not _is_ours(artifact, history, output):
            continue
        there = artifact.state == mlmd.Artifact.LIVE and os.path.isdir(artifact.uri)
        size = sum(os.lstat(path).st_size for path in _removable(artifact))
        if artifact.state == _GOING:
            why = "its removal was begun"
        elif not there:
            continue
        elif artifact.uri in held:
            kept[needed.get(artifact.id, "the newest runs")] += size
            continue
        elif artifact.type == EXAMPLES:
            why = "nothing that stays was made from it"
        elif artifact.id in blessed:
            why = "a later one is blessed, and its release is gone"
        else:
            why = "not blessed, and not the latest"
        name = os.path.relpath(artifact.uri, os.path.join(output, ARTIFACTS_NAME))
        removals.append(Removal(artifact.uri, name, why, size, artifact))
    for removal in _checkpoints(history, output, needed if policy.keep_checkpoints else {}):
        if removal.why:
            removals.append(removal)
        else:
            kept["checkpoints"] += removal.size
    removals.sort(key=lambda removal: (-removal.size, removal.path))
    return Plan(tuple(removals), dict(kept))


def carry_out(store: metadata_store.MetadataStore, plan: Plan) -> None:
    """Carries out a plan; only the holder of the output folder's lock may call this.

    Raises:
        OSError: A file cannot be removed. The next clean-up finishes what was begun.
    """
    artifacts = [removal.artifact for removal in plan.removals if removal.artifact is not None]
    for artifact in artifacts:
        artifact.state = _GOING
    if artifacts:
        store.put_artifacts(artifacts)
        # Cached digests of these folders are no longer valid.
        content_digest.cache_clear()
    # Checkpoints last: the note on their models is then added to the latest state of these.
    for removal in sorted(plan.removals, key=lambda removal: removal.artifact is None):
        if removal.artifact is None:
            _remove_checkpoints(store, removal)
            continue
        _remove_files(removal.artifact)
        removal.artifact.state = mlmd.Artifact.DELETED
        removal.artifact.custom_properties[REMOVED_ON].string_value = _now()
        store.put_artifacts([removal.artifact])
        logger.debug("Removed %s: %s.", removal.path, removal.why)


def after_run(store: metadata_store.MetadataStore, output: str, policy: Policy) -> str:
    """Removes what nothing needs after a run; never makes that run fail.

    Returns:
        A line that says what was removed; "" if nothing was.
    """
    try:
        plan = make_plan(store, output, policy)
        carry_out(store, plan)
    except (OSError, mlmd_errors.StatusError) as error:
        logger.warning("The clean-up after the run failed: %s", error)
        return ""
    if not plan.removals:
        return ""
    return f"Removed what nothing needs, {counted(plan.removals)}, {in_words(plan.size)}."


def _is_ours(artifact: mlmd.Artifact, history: History, output: str) -> bool:
    """Whether an artifact is where TFX put it: nothing else is ever removed."""
    below, name = os.path.split(artifact.uri)
    component = os.path.dirname(os.path.dirname(below))
    maker = history.maker.get(artifact.id)
    return (
        component == os.path.join(output, ARTIFACTS_NAME)
        and name == str(maker)
        and os.path.normpath(artifact.uri) == artifact.uri
        and not os.path.islink(artifact.uri)
    )


def _removable(artifact: mlmd.Artifact) -> Iterator[str]:
    """The files of an artifact that are removed."""
    stays = os.path.join(artifact.uri, _STAYS[artifact.type])
    for folder, folders, names in os.walk(artifact.uri):
        if folder == stays:
            folders.clear()
            continue
        linked = [name for name in folders if os.path.islink(os.path.join(folder, name))]
        for path in (os.path.join(folder, name) for name in (*names, *linked)):
            if path != stays:
                yield path


def _remove_files(artifact: mlmd.Artifact) -> None:
    for path in list(_removable(artifact)):
        os.remove(path)
    for folder, _, _ in os.walk(artifact.uri, topdown=False):
        if not os.listdir(folder):
            os.rmdir(folder)


def _checkpoints(history: History, output: str, needed: dict[int, str]) -> Iterator[Removal]:
    """The folders of checkpoints; for those that stay, `why` is empty."""
    parent = os.path.join(output, CHECKPOINTS_NAME)
    trainings: dict[str, list[int]] = collections.defaultdict(list)
    for model in history.artifacts.values():
        properties = dict(model.custom_properties)
        if model.type == MODEL and model.id in history.maker and _TRAINING_ID in properties:
            trainings[properties[_TRAINING_ID].string_value].append(model.id)
    folders = {
        os.path.join(parent, name): found
        for name in (sorted(os.listdir(parent)) if os.path.isdir(parent) else ())
        if (found := _TRAINING.fullmatch(name)) and os.path.isdir(os.path.join(parent, name))
    }
    written = {path: _last_written(path) for path in folders}
    # Running the same command again continues from there, even if only to export the same model.
    latest = max(written, key=lambda path: written[path], default="")
    for path, found in folders.items():
        models = trainings.get(found["id"], [])
        if found["begun"]:
            why = "its removal was begun"
        elif path == latest and history.ended_badly:
            why = ""
        elif models:
            why = "" if any(m in needed for m in models) else "its training is finished"
        else:
            # A search runs before the training that it is for.
            why = "a later training is finished"
            if not found["search"]:
                why += ", and this one was not"
            if written[path] >= history.training_began:
                why = ""
        name = os.path.join(CHECKPOINTS_NAME, found["id"])
        yield Removal(path, name, why, folder_bytes(path), training_id=found["id"])


def _last_written(folder: str) -> float:
    return max(
        (
            os.lstat(os.path.join(parent, name)).st_mtime
            for parent, _, names in os.walk(folder)
            for name in names
        ),
        default=os.stat(folder).st_mtime,
    )


def _remove_checkpoints(store: metadata_store.MetadataStore, removal: Removal) -> None:
    parent, name = os.path.split(removal.path)
    path = removal.path
    if not name.startswith(_REMOVED_PREFIX):
        path = os.path.join(parent, _REMOVED_PREFIX + name)
        shutil.rmtree(path, ignore_errors=True)
        os.rename(removal.path, path)
    models = [
        a
        for a in store.get_artifacts_by_type(MODEL)
        if dict(a.custom_properties).get(_TRAINING_ID, mlmd.Value()).string_value
        == removal.training_id
    ]
    for model in models:
        model.custom_properties[CHECKPOINTS_REMOVED_ON].string_value = _now()
    if models:
        store.put_artifacts(models)
    shutil.rmtree(path)
    logger.debug("Removed %s: %s.", removal.path, removal.why)


def _now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


def counted(removals: Sequence[Removal]) -> str:
    """The number of folders, in words."""
    return "1 folder" if len(removals) == 1 else f"{len(removals)} folders"
