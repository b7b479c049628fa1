"""Repair of a real SQLite ML Metadata database and of the folders beside it; no TFX needed."""

from __future__ import annotations

import copy
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from ml_metadata.proto import metadata_store_pb2 as mlmd

from pipeline import housekeeping
from pipeline.lineage.model import CONTENT_DIGEST, FAILURE_REASON, INTERRUPTED
from storage import filesystem

REPO_ROOT = Path(__file__).resolve().parent.parent.parent


class Output:
    """An output folder as TFX leaves one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = housekeeping.open_store(str(folder))
        self._execution_type = self.store.put_execution_type(
            mlmd.ExecutionType(name="components.some.component.Some")
        )
        self._artifact_types = {
            name: self.store.put_artifact_type(mlmd.ArtifactType(name=name))
            for name in ("Model", "PushedModel")
        }

    def add(
        self,
        state: int,
        artifact_state: int | None,
        type_name: str = "Model",
        **properties: str,
    ) -> tuple[int, Path]:
        """An execution, and its output's folder with a file in it; returns id and folder."""
        [execution_id] = self.store.put_executions(
            [mlmd.Execution(type_id=self._execution_type, last_known_state=state)]
        )
        uri = self.folder / "artifacts" / "Some" / "out" / str(execution_id)
        uri.mkdir(parents=True)
        (uri / "file").touch()
        temporary = self.folder / "artifacts" / "Some" / ".system" / "executor_execution"
        (temporary / str(execution_id) / ".temp").mkdir(parents=True)
        (uri.parent.parent / ".system" / "stateful_working_dir" / "uuid").mkdir(
            parents=True, exist_ok=True
        )
        if artifact_state is not None:
            artifact = mlmd.Artifact(
                type_id=self._artifact_types[type_name], uri=str(uri), state=artifact_state
            )
            for key, value in properties.items():
                artifact.custom_properties[key].string_value = value
            [artifact_id] = self.store.put_artifacts([artifact])
            event = mlmd.Event(
                artifact_id=artifact_id, execution_id=execution_id, type=mlmd.Event.OUTPUT
            )
            self.store.put_events([event])
        return execution_id, uri

    def repair(self) -> housekeeping.RepairReport:
        return housekeeping.repair(str(self.folder), str(self.folder / "serving_model"))

    def at(self, folder: Path) -> Output:
        """The same folder after it was moved or copied to another place."""
        there = copy.copy(self)
        there.folder, there.store = folder, housekeeping.open_store(str(folder))
        return there

    def state(self, execution_id: int) -> int:
        return self.store.get_executions_by_id([execution_id])[0].last_known_state

    def artifact(self, uri: Path) -> mlmd.Artifact:
        [artifact] = self.store.get_artifacts_by_uri(str(uri))
        return artifact


@pytest.fixture
def output(tmp_path) -> Output:
    return Output(tmp_path)


@pytest.mark.parametrize("state", [mlmd.Execution.RUNNING, mlmd.Execution.NEW])
def test_unfinished_execution_becomes_failed_and_its_files_go(output, state):
    done, done_uri = output.add(mlmd.Execution.COMPLETE, mlmd.Artifact.LIVE)
    dead, dead_uri = output.add(state, mlmd.Artifact.PENDING)
    unregistered, unregistered_uri = output.add(state, None)

    report = output.repair()

    assert len(report.failed) == 2
    for execution_id in (dead, unregistered):
        assert output.state(execution_id) == mlmd.Execution.FAILED
        [execution] = output.store.get_executions_by_id([execution_id])
        reason = execution.custom_properties[FAILURE_REASON].string_value
        assert reason.startswith("the run ended before this step did")
        assert execution.custom_properties[INTERRUPTED].int_value == 1
    assert output.artifact(dead_uri).state == mlmd.Artifact.ABANDONED
    assert not dead_uri.exists()
    assert not unregistered_uri.exists()

    assert output.state(done) == mlmd.Execution.COMPLETE
    assert output.artifact(done_uri).state == mlmd.Artifact.LIVE
    assert (done_uri / "file").exists()
    system = done_uri.parent.parent / ".system"
    assert not list(system.rglob("*.temp"))
    assert not list((system / "stateful_working_dir").iterdir())


def test_repair_of_a_clean_folder_changes_nothing(output):
    output.add(mlmd.Execution.COMPLETE, mlmd.Artifact.LIVE)
    output.repair()
    before = output.store.get_artifacts()[0].last_update_time_since_epoch
    assert output.repair() == housekeeping.RepairReport((), (), ())
    assert output.store.get_artifacts()[0].last_update_time_since_epoch == before


def test_failed_execution_keeps_its_state_and_loses_its_files(output):
    failed, uri = output.add(mlmd.Execution.FAILED, None)
    assert output.repair().removed
    assert output.state(failed) == mlmd.Execution.FAILED
    assert not uri.exists()


def test_artifact_whose_files_are_gone_is_withdrawn(output):
    _, uri = output.add(mlmd.Execution.COMPLETE, mlmd.Artifact.LIVE)
    (uri / "file").unlink()
    uri.rmdir()
    assert output.repair().withdrawn == (str(uri),)
    assert output.artifact(uri).state == mlmd.Artifact.DELETED


@pytest.mark.parametrize("missing", [None, "releases/7.json", "decoder/7/saved_model.pb"])
def test_pushed_model_lives_as_long_as_its_release(output, missing):
    _, uri = output.add(
        mlmd.Execution.COMPLETE, mlmd.Artifact.LIVE, "PushedModel", pushed_version="7"
    )
    serving = output.folder / "serving_model"
    files = [f"{name}/7/saved_model.pb" for name in ("text_encoder", "diffusion_model", "decoder")]
    for name in [*files, "releases/7.json"]:
        if name != missing:
            (serving / name).parent.mkdir(parents=True, exist_ok=True)
            (serving / name).touch()
    output.repair()
    live = output.artifact(uri).state == mlmd.Artifact.LIVE
    assert live is (missing is None)


@pytest.mark.parametrize("missing", [False, True])
def test_an_image_encoder_belongs_to_the_release_that_has_one(output, missing):
    _, uri = output.add(
        mlmd.Execution.COMPLETE, mlmd.Artifact.LIVE, "PushedModel", pushed_version="7"
    )
    serving = output.folder / "serving_model"
    models = ["text_encoder", "diffusion_model", "decoder", *([] if missing else ["image_encoder"])]
    for name in models:
        (serving / name / "7").mkdir(parents=True)
        (serving / name / "7" / "saved_model.pb").touch()
    (serving / "releases").mkdir()
    files = json.dumps({"files": {"image_encoder/7/saved_model.pb": "1"}})
    for place in (serving / "releases" / "7.json", uri / "release.json"):
        place.write_text(files)
    output.repair()
    assert (output.artifact(uri).state == mlmd.Artifact.LIVE) is not missing


def test_model_that_was_not_blessed_needs_no_release(output):
    _, uri = output.add(mlmd.Execution.COMPLETE, mlmd.Artifact.LIVE, "PushedModel")
    output.repair()
    assert output.artifact(uri).state == mlmd.Artifact.LIVE


def test_what_was_gone_for_a_moment_is_taken_back_if_it_is_the_same(output):
    same, changed = (output.add(mlmd.Execution.COMPLETE, mlmd.Artifact.LIVE)[1] for _ in range(2))
    for uri in (same, changed):
        artifact = output.artifact(uri)
        digest = filesystem.content_digest(str(uri))
        artifact.custom_properties[CONTENT_DIGEST].string_value = digest
        output.store.put_artifacts([artifact])
        uri.rename(uri.with_name("elsewhere"))
        assert output.repair().withdrawn == (str(uri),)
        uri.with_name("elsewhere").rename(uri)
        # Another process would read the files anew.
        filesystem.content_digest.cache_clear()
        if uri == changed:
            (uri / "file").write_text("another")
        assert output.repair().returned == ((str(uri),) if uri == same else ())
    assert output.artifact(same).state == mlmd.Artifact.LIVE
    assert output.artifact(changed).state == mlmd.Artifact.DELETED


def test_a_release_of_the_same_number_is_no_release_that_returns(output):
    _, uri = output.add(
        mlmd.Execution.COMPLETE, mlmd.Artifact.LIVE, "PushedModel", pushed_version="7"
    )
    serving = output.folder / "serving_model"
    for name in ("text_encoder", "diffusion_model", "decoder"):
        (serving / name / "7").mkdir(parents=True)
        (serving / name / "7" / "saved_model.pb").touch()
    (serving / "releases").mkdir()
    release = serving / "releases" / "7.json"
    (uri / "release.json").write_text(json.dumps({"files": {"a": "1"}}))
    assert output.repair().withdrawn == (str(uri),)
    release.write_text(json.dumps({"files": {"a": "2"}}))
    assert output.repair().returned == ()
    release.write_text(json.dumps({"files": {"a": "1"}, "model": "elsewhere"}))
    assert output.repair().returned == (str(uri),)


@pytest.mark.parametrize("name", ["moved", "möved"])
@pytest.mark.parametrize("former", ["first", "first (ä)", "moved-not", "mov"])
def test_a_moved_folder_is_gone_on_with_where_it_is(tmp_path, former, name):
    first = tmp_path / former
    first.mkdir()
    output = Output(first)
    execution_id, uri = output.add(
        mlmd.Execution.COMPLETE,
        mlmd.Artifact.LIVE,
        outside="/somewhere/else",
        beside=f"{first}-2/x",
        config=json.dumps({"dir": f"{first}/checkpoints", "n": 1}),
        place=str(first),
    )
    [execution] = output.store.get_executions_by_id([execution_id])
    execution.custom_properties["checkpoint_dir"].string_value = f"{first}/checkpoints"
    output.store.put_executions([execution])
    output.repair()

    there = tmp_path / name
    first.rename(there)
    output = output.at(there)
    report = output.repair()
    assert report == housekeeping.RepairReport((), (), (), (), (str(first),))
    artifact = output.artifact(there / uri.relative_to(first))
    assert artifact.state == mlmd.Artifact.LIVE
    properties = {k: v.string_value for k, v in artifact.custom_properties.items()}
    assert json.loads(properties.pop("config")) == {"dir": f"{there}/checkpoints", "n": 1}
    assert properties == {
        "outside": "/somewhere/else",
        "beside": f"{first}-2/x",
        "place": str(there),
    }
    [execution] = output.store.get_executions_by_id([execution_id])
    recorded = execution.custom_properties["checkpoint_dir"].string_value
    assert recorded == f"{there}/checkpoints"
    assert output.repair() == housekeeping.RepairReport((), (), ())


def test_a_copy_of_which_a_part_is_missing_or_damaged_has_the_rest(tmp_path):
    first = tmp_path / "first"
    first.mkdir()
    output = Output(first)
    whole, damaged, missing = (
        output.add(mlmd.Execution.COMPLETE, mlmd.Artifact.LIVE)[1] for _ in range(3)
    )
    for uri in (whole, damaged, missing):
        artifact = output.artifact(uri)
        digest = filesystem.content_digest(str(uri))
        artifact.custom_properties[CONTENT_DIGEST].string_value = digest
        output.store.put_artifacts([artifact])
    output.repair()
    here = shutil.copytree(first, tmp_path / "copies" / "first")
    (here / damaged.relative_to(first) / "file").write_text("another")
    shutil.rmtree(here / missing.relative_to(first))
    copied = output.at(here)
    gone = [str(here / uri.relative_to(first)) for uri in (damaged, missing)]
    assert list(copied.repair().withdrawn) == gone
    assert copied.artifact(here / whole.relative_to(first)).state == mlmd.Artifact.LIVE
    # The original does not notice.
    assert output.repair() == housekeeping.RepairReport((), (), ())


def test_what_two_places_recorded_is_in_one(tmp_path):
    (tmp_path / "here").mkdir()
    output = Output(tmp_path / "here")
    _, old = output.add(mlmd.Execution.COMPLETE, mlmd.Artifact.DELETED)
    _, new = output.add(mlmd.Execution.COMPLETE, mlmd.Artifact.LIVE)
    artifact = output.artifact(old)
    artifact.uri = str(old).replace("/here/", "/before/")
    output.store.put_artifacts([artifact])
    report = output.repair()
    assert report.returned == (str(old),)
    assert report.moved_from == (str(tmp_path / "before"),)
    assert output.artifact(new).state == mlmd.Artifact.LIVE


def test_folders_of_a_lost_database_do_not_mix_with_new_ones(tmp_path):
    leftover = tmp_path / "artifacts" / "Some" / "out" / "1"
    leftover.mkdir(parents=True)
    bystander = tmp_path / "artifacts" / "Some" / "out" / "notes"
    bystander.mkdir()
    housekeeping.repair(str(tmp_path), str(tmp_path / "serving_model"))
    assert not leftover.exists()
    assert bystander.exists()


def test_database_that_is_none_is_refused_in_one_line(tmp_path):
    (tmp_path / housekeeping.DATABASE_NAME).write_text("no database" * 1000)
    with pytest.raises(housekeeping.DatabaseError, match="not a usable ML Metadata") as caught:
        housekeeping.open_store(str(tmp_path))
    assert "\n" not in str(caught.value)


_HOLD = """
import sys, time
from pipeline.housekeeping import output_lock
with output_lock(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


def test_lock_is_held_by_one_and_freed_by_a_kill(tmp_path):
    holder = subprocess.Popen(
        [sys.executable, "-c", _HOLD, str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=REPO_ROOT,
    )
    try:
        assert holder.stdout.readline() == "held\n"
        with (
            pytest.raises(housekeeping.OutputInUseError, match=f"process {holder.pid}"),
            housekeeping.output_lock(str(tmp_path)),
        ):
            pass
    finally:
        holder.kill()
        holder.wait()
    with housekeeping.output_lock(str(tmp_path)):
        pass
