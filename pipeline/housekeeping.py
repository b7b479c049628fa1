"""Allows one run at a time in an output folder, and makes the folder consistent first.

TFX writes an execution's state, outputs and events to ML Metadata in one SQLite transaction, and an
output counts only from then on. A killed run therefore leaves executions that stay RUNNING for
ever, and files that nothing refers to. `repair` marks these executions as failed and removes these
files. It also withdraws outputs while their files are gone, so that the step that makes them does
not count as done. A folder that was moved continues in its new place. This module does not need
TFX.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import fcntl
import json
import logging
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ml_metadata import errors as mlmd_errors
from ml_metadata.metadata_store import metadata_store
from ml_metadata.proto import metadata_store_pb2 as mlmd

from pipeline.lineage.locations import DATABASE_NAME
from pipeline.lineage.model import CONTENT_DIGEST, FAILURE_REASON, INTERRUPTED, REMOVED_ON
from pipeline.lineage.moved import ARTIFACTS_NAME, Relocation, relocate
from serving.serving_directory import ServingDirectory
from storage.errors import one_line
from storage.filesystem import content_digest
from storage.user_errors import UserError

_LOCK_NAME = ".lock"
_DIED = "the run ended before this step did"
_SYSTEM = ".system"
_UNFINISHED = (mlmd.Execution.NEW, mlmd.Execution.RUNNING, mlmd.Execution.UNKNOWN)
_SUCCESSFUL = (mlmd.Execution.COMPLETE, mlmd.Execution.CACHED)
_OUTPUT_EVENTS = (mlmd.Event.OUTPUT, mlmd.Event.DECLARED_OUTPUT, mlmd.Event.PENDING_OUTPUT)

logger = logging.getLogger(__name__)


class OutputInUseError(UserError):
    """Another run is working in the output folder; the message is one line for the user."""


class DatabaseError(UserError):
    """The metadata database cannot be opened; the message is one line for the user."""


@contextlib.contextmanager
def output_lock(output: str) -> Iterator[None]:
    """Locks the output folder for this process; the kernel unlocks it however the process ends.

    Raises:
        OutputInUseError: Another process holds it.
    """
    descriptor = os.open(os.path.join(output, _LOCK_NAME), os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            # A record lock: unlike flock's, forked children that outlive the run do not keep it.
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            holder = os.read(descriptor, 32).decode(errors="replace").strip()
            raise OutputInUseError(
                f"another run (process {holder or 'unknown'}) is working in {output}: wait for it "
                "to end, or choose another folder with --output"
            ) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
        os.ftruncate(descriptor, 0)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def own_temporary_folder() -> Iterator[str]:
    """Within this context, temporary files have their own folder, which is removed at the end.

    TensorFlow never removes the code that it generates there: twenty files per run.
    """
    before = os.environ.get("TMPDIR")
    with tempfile.TemporaryDirectory(prefix="sd-finetuning-", ignore_cleanup_errors=True) as folder:
        os.environ["TMPDIR"] = tempfile.tempdir = folder
        try:
            yield folder
        finally:
            tempfile.tempdir = None
            if before is None:
                del os.environ["TMPDIR"]
            else:
                os.environ["TMPDIR"] = before


@dataclasses.dataclass(frozen=True)
class RepairReport:
    """What `repair` found.

    Attributes:
        failed: Steps that a dead run left unfinished.
        withdrawn: Addresses of artifacts whose files are gone or have changed.
        removed: Paths of leftovers that were removed.
        returned: Addresses of artifacts whose files were gone and are back.
        moved_from: Former places of this folder.
    """

    failed: tuple[str, ...]
    withdrawn: tuple[str, ...]
    removed: tuple[str, ...]
    returned: tuple[str, ...] = ()
    moved_from: tuple[str, ...] = ()


def open_store(output: str, read_only: bool = False) -> metadata_store.MetadataStore:
    """Opens the output folder's ML Metadata; creates it if it does not exist.

    Raises:
        DatabaseError: The file is not a database of ML Metadata.
    """
    path = os.path.join(output, DATABASE_NAME)
    config = mlmd.ConnectionConfig()
    config.sqlite.filename_uri = path
    config.sqlite.connection_mode = (
        mlmd.SqliteMetadataSourceConfig.READONLY
        if read_only
        else mlmd.SqliteMetadataSourceConfig.READWRITE_OPENCREATE
    )
    try:
        return metadata_store.MetadataStore(config)
    except (mlmd_errors.StatusError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise DatabaseError(
            f"{path} is not a usable ML Metadata database ({reason}): move it away to start "
            "afresh, or choose another folder with --output"
        ) from None


def contexts_of(
    store: metadata_store.MetadataStore, execution_id: int, kind: str
) -> list[mlmd.Context]:
    """An execution's contexts of a type, such as `pipeline_run` or `node`."""
    try:
        return [c for c in store.get_contexts_by_execution(execution_id) if c.type == kind]
    except mlmd_errors.NotFoundError:
        return []


def repair(
    output: str,
    serving_dir: str,
    reason: str = "",
) -> RepairReport:
    """Makes the output folder consistent; only the holder of its lock may call this.

    Args:
        output: The run's output folder, absolute.
        serving_dir: Where releases are pushed to.
        reason: The reason to record on unfinished executions, given by the run that owns them; ""
            if that run is dead, which is then the recorded reason.

    Raises:
        DatabaseError: Its database is not one of ML Metadata, or cannot be written to.
    """
    # Refuses any other file before anything is written to it.
    open_store(output)
    moved = settle_in(output, serving_dir)
    store = open_store(output)
    executions = store.get_executions()
    failed = _fail_unfinished(store, executions, reason or _DIED)
    copied = any(not _is_same_folder(folder, output) for folder in moved.former)
    withdrawn, returned = _compare_with_files(store, serving_dir, every_digest=copied)
    removed = _remove_orphans(Path(output) / ARTIFACTS_NAME, executions)
    report = RepairReport(
        tuple(failed), tuple(withdrawn), tuple(removed), tuple(returned), moved.former
    )
    for folder in report.moved_from:
        logger.info("What was recorded in %s continues here, in %s.", folder, output)
    if report.failed and not reason:
        logger.info(
            "A former run was stopped during %s: this one goes on from there.",
            " and ".join(report.failed),
        )
    for uri in report.withdrawn:
        logger.info("%s is gone or has changed; the step that makes it runs again.", uri)
    for uri in report.returned:
        logger.info("%s is back.", uri)
    for path in report.removed:
        logger.debug("Removed %s, which an unfinished run left behind.", path)
    return report


def copy_database(output: str, folder: str) -> None:
    """Copies an output folder's ML Metadata into another folder, with addresses as they are now.

    Args:
        output: The run's output folder, absolute; nothing is written there.
        folder: Where the copy goes.

    Raises:
        DatabaseError: It cannot be read.
    """
    path = Path(output, DATABASE_NAME)
    try:
        with contextlib.ExitStack() as stack:
            there, here = (
                stack.enter_context(
                    contextlib.closing(sqlite3.connect(uri, uri=True, isolation_level=None))
                )
                for uri in (f"{path.as_uri()}?mode=ro", Path(folder, DATABASE_NAME).as_uri())
            )
            there.backup(here)
            relocate(here, output)
    except sqlite3.Error as error:
        raise DatabaseError(
            f"{path} cannot be read as a database of ML Metadata ({error}): name the output "
            "folder of a run with --output"
        ) from None


def copy_as_repaired(output: str, serving_dir: str, folder: str) -> metadata_store.MetadataStore:
    """A copy of the output folder's ML Metadata as the next run will find it; changes nothing.

    Args:
        output: The run's output folder, absolute; it may be missing.
        serving_dir: Where releases are pushed to.
        folder: Where the copy goes.

    Raises:
        DatabaseError: The file is not a database of ML Metadata.
    """
    path = os.path.join(output, DATABASE_NAME)
    if not os.path.isfile(path):
        return open_store(folder)
    open_store(output, read_only=True)
    copy_database(output, folder)
    store = open_store(folder)
    _fail_unfinished(store, store.get_executions(), _DIED)
    _compare_with_files(store, serving_dir, every_digest=False)
    return store


def _fail_unfinished(
    store: metadata_store.MetadataStore, executions: Iterable[mlmd.Execution], reason: str
) -> list[str]:
    unfinished = [e for e in executions if e.last_known_state in _UNFINISHED]
    if not unfinished:
        return []
    now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    events = store.get_events_by_execution_ids([e.id for e in unfinished])
    outputs = sorted({e.artifact_id for e in events if e.type in _OUTPUT_EVENTS})
    artifacts = store.get_artifacts_by_id(outputs) if outputs else []
    abandoned = [a for a in artifacts if a.state != mlmd.Artifact.LIVE]
    for artifact in abandoned:
        artifact.state = mlmd.Artifact.ABANDONED
    # Outputs first: if we are killed in between, the execution is still found unfinished.
    if abandoned:
        store.put_artifacts(abandoned)
    for execution in unfinished:
        execution.last_known_state = mlmd.Execution.FAILED
        execution.custom_properties[FAILURE_REASON].string_value = f"{reason} (noted {now})"
        execution.custom_properties[INTERRUPTED].int_value = 1
    store.put_executions(unfinished)
    return [_step(store, e) for e in unfinished]


def settle_in(output: str, serving_dir: str) -> Relocation:
    """Rewrites recorded addresses if this folder was moved, or copied from another one.

    Only the holder of its lock may call this.

    Args:
        output: The output folder, absolute.
        serving_dir: Where releases are pushed to.

    Raises:
        DatabaseError: Its database cannot be written to.
    """
    path = os.path.join(output, DATABASE_NAME)
    if not os.path.isfile(path):
        return Relocation((), output)
    try:
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
            moved = relocate(connection, output)
    except sqlite3.Error as error:
        raise DatabaseError(
            f"{path} cannot be written to ({one_line(error)}): a run needs a writable folder; "
            "choose another one with --output"
        ) from None
    # A bucket does not move with this folder.
    if "://" not in serving_dir:
        ServingDirectory(serving_dir).settle_in(moved.apply)
    return moved


def _is_same_folder(first: str, second: str) -> bool:
    with contextlib.suppress(OSError):
        return os.path.samefile(first, second)
    return False


def _compare_with_files(
    store: metadata_store.MetadataStore, serving_dir: str, *, every_digest: bool
) -> tuple[list[str], list[str]]:
    """Withdraws artifacts whose files are gone, and restores those whose files are back.

    Args:
        store: ML Metadata of the output folder.
        serving_dir: Where releases are.
        every_digest: Whether to compare every artifact that has a digest with its files, as after a
            copy; otherwise only artifacts whose files are back.
    """
    withdrawn, returned = [], []
    for artifact in store.get_artifacts():
        if "://" in artifact.uri or artifact.state not in (
            mlmd.Artifact.LIVE,
            mlmd.Artifact.DELETED,
        ):
            continue
        live = artifact.state == mlmd.Artifact.LIVE
        there = os.path.exists(artifact.uri) and _release_there(artifact, serving_dir)
        if there and (every_digest or not live):
            there = _is_as_recorded(artifact)
        if live and not there:
            artifact.state = mlmd.Artifact.DELETED
            withdrawn.append(artifact)
        elif there and not live:
            artifact.state = mlmd.Artifact.LIVE
            artifact.custom_properties.pop(REMOVED_ON, None)
            returned.append(artifact)
    if withdrawn or returned:
        store.put_artifacts([*withdrawn, *returned])
    return [a.uri for a in withdrawn], [a.uri for a in returned]


def _is_as_recorded(artifact: mlmd.Artifact) -> bool:
    """Whether an artifact's files match its recorded digest, if it has one.

    A clean-up leaves some files of what it removes.
    """
    properties = dict(artifact.custom_properties)
    recorded = properties.get(CONTENT_DIGEST, mlmd.Value()).string_value
    if not recorded:
        return REMOVED_ON not in properties
    try:
        return recorded == content_digest(artifact.uri)
    except OSError:
        return False


def _release_there(artifact: mlmd.Artifact, serving_dir: str) -> bool:
    """Whether the release that a pushed model names can still be served."""
    # A protobuf map gains an entry when it is read at a key that it lacks; a dict does not.
    properties = dict(artifact.custom_properties)
    if artifact.type != "PushedModel" or "pushed_version" not in properties:
        return True
    version = properties["pushed_version"].string_value
    release = os.path.join(serving_dir, "releases", f"{version}.json")
    models = ["text_encoder", "diffusion_model", "decoder"]
    if any(path.startswith("image_encoder/") for path in _files_of(release) or ()):
        models.append("image_encoder")
    folders = [os.path.join(serving_dir, model, version) for model in models]
    pushed = os.path.join(artifact.uri, "release.json")
    return (
        os.path.isfile(release)
        and all(os.path.isfile(os.path.join(folder, "saved_model.pb")) for folder in folders)
        and (not os.path.isfile(pushed) or _files_of(pushed) == _files_of(release))
    )


def _files_of(release: str) -> Any:
    """The hashes in a release file, since another release may have the same number."""
    try:
        return json.loads(Path(release).read_bytes())["files"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _remove_orphans(artifacts: Path, executions: Iterable[mlmd.Execution]) -> list[str]:
    """Removes files that no finished execution owns.

    TFX's layout: `<component>/<output>/<execution id>`, and for its own use
    `<component>/.system/{executor_execution/<execution id>, stateful_working_dir/<uuid>}`.
    """
    finished = {str(e.id) for e in executions if e.last_known_state in _SUCCESSFUL}
    orphans = []
    for component in _folders(artifacts):
        for key in _folders(component):
            if key.name == _SYSTEM:
                orphans += _folders(key / "stateful_working_dir")
                orphans += _folders(key / "driver_execution")
                runs = _folders(key / "executor_execution")
            else:
                runs = _folders(key)
            for run in runs:
                if run.name.isdecimal() and run.name not in finished:
                    orphans.append(run)
                elif key.name == _SYSTEM and (run / ".temp").is_dir():
                    orphans.append(run / ".temp")
    for orphan in orphans:
        shutil.rmtree(orphan)
    return [str(o) for o in orphans]


def _folders(parent: Path) -> list[Path]:
    if not parent.is_dir():
        return []
    return sorted(p for p in parent.iterdir() if p.is_dir() and not p.is_symlink())


def _step(store: metadata_store.MetadataStore, execution: mlmd.Execution) -> str:
    """The name of the execution's step in the pipeline."""
    nodes = contexts_of(store, execution.id, "node")
    return (nodes[0].name if nodes else execution.type).rpartition(".")[2]
