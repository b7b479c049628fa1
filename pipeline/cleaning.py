"""Removing from an output folder what nothing needs, so that it may be killed at any moment.

`pipeline.needs` tells what that is. An artifact goes in three steps: all that is to go is marked
for deletion, in one transaction; its files are removed; it is called deleted, with the time. From
the first step on neither the cache nor a resolver trusts it, and the next clean-up finishes what
was begun. A folder of checkpoints, of which ML Metadata knows nothing, is renamed first.

What is small, and tells what a thing was, stays: a model's manifest, the index of a dataset's rows,
reports, statistics, curves. Traces have them from there.
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

# Of each type that is removed, what stays of it, below its folder.
_STAYS = {MODEL: os.path.join(EXPORT_NAME, MODEL_MANIFEST_NAME), EXAMPLES: ROW_INDEX}
# What was begun is finished.
_GOING = mlmd.Artifact.MARKED_FOR_DELETION
_REMOVED_PREFIX = ".removed-"
# As the Trainer's executor has it, whose import would bring TFX.
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
        what: What it is, for people.
        why: Why nothing needs it.
        size: Its bytes, but for what stays.
        artifact: The artifact that it is of; `None` for checkpoints.
        training_id: The training, or the search, that checkpoints are of.
    """

    path: str
    what: str
    why: str
    size: int
    artifact: mlmd.Artifact | None = None
    training_id: str = ""


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is to be removed, and what is not.

    Attributes:
        removals: What nothing needs, the largest first.
        kept: Bytes of models and examples that stay, and of checkpoints, by what needs them.
    """

    removals: tuple[Removal, ...]
    kept: dict[str, int]

    @property
    def size(self) -> int:
        """Bytes that removing it frees."""
        return sum(removal.size for removal in self.removals)


def make_plan(store: metadata_store.MetadataStore, output: str, policy: Policy) -> Plan:
    """Finds what nothing needs; changes nothing.

    Args:
        store: Of the output folder.
        output: That folder, absolute.
        policy: What is to stay though no release needs it.
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
            why = "nothing that stays was made of it"
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
    """Removes what a plan says; only the holder of the output folder's lock may call this.

    Raises:
        OSError: A file cannot be removed. The next clean-up finishes what was begun.
    """
    artifacts = [removal.artifact for removal in plan.removals if removal.artifact is not None]
    for artifact in artifacts:
        artifact.state = _GOING
    if artifacts:
        store.put_artifacts(artifacts)
        # What is known of a folder's contents is not true any more.
        content_digest.cache_clear()
    # Checkpoints last: what is noted of their models is noted of what these are then.
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
    """Removes what nothing needs after a run, which it must not make fail.

    Returns:
        What was removed, in a line; "" for nothing.
    """
    try:
        plan = make_plan(store, output, policy)
        carry_out(store, plan)
    except (OSError, mlmd_errors.StatusError) as error:
        logger.warning("What nothing needs could not be removed: %s", error)
        return ""
    if not plan.removals:
        return ""
    return f"Removed what nothing needs, {counted(plan.removals)}, {in_words(plan.size)}."


def _is_ours(artifact: mlmd.Artifact, history: History, output: str) -> bool:
    """Whether an artifact lies where TFX has put it: nothing else is ever removed."""
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
    """The files of an artifact that go."""
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
    """The folders of checkpoints; those that stay have no reason why they should not."""
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
    # The same command goes on from there, though it be to export the same once more.
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
            # A search comes before the training that it is for.
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
    """How many folders these are, in words."""
    return "1 folder" if len(removals) == 1 else f"{len(removals)} folders"
