"""Reading stores: what is in them, and that reading leaves them and their writers alone."""

from __future__ import annotations

import contextlib
import hashlib
import os
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
from made_store import COMPLETE, FAILED, FIRST_DAY, HOSTILE, StoreMaker
from ml_metadata.metadata_store import metadata_store
from ml_metadata.proto import metadata_store_pb2 as mlmd

from pipeline import housekeeping, lineage
from pipeline.lineage import cli, database


def open_store(path):
    return lineage.locate(str(path)).open()


def test_runs(small):
    path, _ = small
    with open_store(path) as store:
        runs = store.runs()
    assert [(run.name, run.status.value, run.releases, run.blessed) for run in runs] == [
        ("running", "running", (), None),
        ("failed", "failed", (), None),
        ("other data", "succeeded", (), False),
        ("again", "all cached", ("1",), True),
        ("second", "succeeded", ("2",), True),
        ("first", "succeeded", ("1",), True),
    ]
    first, again, running = runs[-1], runs[3], runs[0]
    assert first.pipeline == "sd-finetuning"
    assert first.metrics == {"loss": 0.17, "loss_baseline": 0.2, "loss_delta": 0.17 - 0.2}
    assert first.steps == {"complete": 10}
    assert again.steps == {"cached": 9, "complete": 1}
    assert first.started == FIRST_DAY
    assert first.seconds == pytest.approx(4 + 6 + 0.3 + 0.4 + 9 + 120 + 11 + 5 + 8 + 8 * 0.5)
    assert running.ended is None
    assert running.seconds is None


def test_steps_and_settings(small):
    path, made = small
    with open_store(path) as store:
        steps = store.steps(store.find_run_id("first"))
        trainer = next(step for step in steps if step.node == "Trainer")
        links = store.links(executions=[trainer.id])
        failed = store.latest_step("LossScorer", store.find_run_id("failed"))
    assert [step.node for step in steps][:3] == ["CaptionExampleGen", "StatisticsGen", "SchemaGen"]
    assert trainer.type == "tfx.components.trainer.component.Trainer"
    assert trainer.seconds == 120
    assert trainer.settings["custom_config.training.learning_rate"] == 3e-4
    assert trainer.settings["custom_config.base_weights_hash"] == "b" * 16
    assert [(k.key, k.output, k.artifact_id) for k in links] == [
        ("examples", False, made["first"]["latents"][0].id),
        ("model", True, made["first"]["model"][0].id),
        ("model_run", True, made["first"]["model_run"][0].id),
    ]
    assert failed.state is lineage.State.FAILED
    assert failed.error == "ResourceExhaustedError: out of memory"
    assert "failure_reason" not in failed.settings


def test_a_step_that_was_tried_again_counts_once(tmp_path):
    maker = StoreMaker()
    maker.execution("run", "Trainer", FAILED)
    maker.execution("run", "Trainer", COMPLETE)
    maker.save(tmp_path / "db")
    with open_store(tmp_path / "db") as store:
        [run] = store.runs()
    assert run.status is lineage.RunStatus.SUCCEEDED
    assert run.steps == {"complete": 1}


def test_pipeline_of_a_run_without_a_parent(small, tmp_path):
    path = _without(tmp_path / "db", "DELETE FROM ParentContext", small[0])
    with open_store(path) as store:
        assert {run.pipeline for run in store.runs()} == {"sd-finetuning"}


def test_find_run(small):
    path, _ = small
    with open_store(path) as store:
        first = store.find_run_id("first")
        assert store.find_run_id(str(first)) == first
        assert store.find_run("sec").name == "second"
        assert store.find_run("latest").name == "running"
        with pytest.raises(lineage.LineageError, match=r"2 runs have names that start with 'f'"):
            store.find_run("f")
        with pytest.raises(lineage.LineageError, match=r"there is no run 'none' in .*: `runs`"):
            store.find_run("none")


def test_names_that_look_like_anything(hostile):
    with open_store(hostile) as store:
        runs = {run.name: run for run in store.runs()}
        assert set(runs) == set(HOSTILE)
        for text in HOSTILE:
            assert store.find_run(text).name == text
            step = store.latest_step(text, runs[text].id)
            assert step.settings[text] == text
            assert "<b>nested</b>" in step.settings.values()
            [link] = store.links(executions=[step.id])
            assert link.key == text
            assert store.artifact(link.artifact_id).properties[text] == text
    assert runs[HOSTILE[0]].status is lineage.RunStatus.FAILED
    assert runs[HOSTILE[1]].status is lineage.RunStatus.CANCELED


def test_json_of_ml_metadatas_client(tmp_path):
    maker = StoreMaker()
    artifact = maker.artifact("ExampleAnomalies")
    properties = maker.artifacts[0][1].custom_properties
    # The three forms in which TFX writes JSON values.
    properties["blessed"].struct_value.update({"train": 1.0})
    properties["list"].struct_value.update({"__value__": [1.0, "two"]})
    properties["text"].struct_value.update({"__value__": '{"b": 1, "a": 2}'})
    maker.execution("run", "CaptionValidator", outputs={"anomalies": [artifact]})
    maker.save(tmp_path / "db")
    with open_store(tmp_path / "db") as store:
        properties = store.artifact(1).properties
        [run] = store.runs()
    assert properties == {
        "blessed": '{"train": 1.0}',
        "list": '[1.0, "two"]',
        "text": '{"a": 2, "b": 1}',
    }
    assert run.blessed is None


def test_reading_changes_nothing(small):
    path, _ = small
    os.chmod(path, 0o444)
    before = hashlib.sha256(path.read_bytes()).hexdigest(), os.stat(path).st_mtime_ns
    with open_store(path) as store:
        store.runs()
        store.runs()
        lineage.trace(store, "latest")
        with pytest.raises(lineage.LineageError, match=r"readonly|read-only|query"):
            store._database.rows("DELETE FROM Artifact")
    assert (hashlib.sha256(path.read_bytes()).hexdigest(), os.stat(path).st_mtime_ns) == before
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_write_ahead_mode(small, tmp_path):
    path = tmp_path / "metadata.sqlite"
    path.write_bytes(small[0].read_bytes())
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
    with open_store(path) as store:
        assert len(store.runs()) == 6
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    with contextlib.closing(sqlite3.connect(path)) as writer, writer:
        writer.execute("UPDATE Artifact SET uri = 'new' WHERE id = 1")
        writer.commit()
        # What stands in the log alone is seen, too.
        with open_store(path) as store:
            assert store.artifact(1).uri == "new"


_WRITER = """
import sys, time
from ml_metadata.metadata_store import metadata_store
from ml_metadata.proto import metadata_store_pb2 as mlmd
config = mlmd.ConnectionConfig()
config.sqlite.filename_uri = sys.argv[1]
store = metadata_store.MetadataStore(config)
kind = store.put_artifact_type(mlmd.ArtifactType(name="New"))
print("ready", flush=True)
for number in range(50):
    store.put_artifacts([mlmd.Artifact(type_id=kind, uri=str(number))])
    time.sleep(0.02)
print("done", flush=True)
"""


def test_a_pipeline_that_writes_at_the_same_time_goes_on(tmp_path):
    path = tmp_path / "metadata.sqlite"
    maker = StoreMaker()
    maker.run("first")
    maker.save(path)
    with subprocess.Popen(
        [sys.executable, "-c", _WRITER, str(path)], stdout=subprocess.PIPE, text=True
    ) as writer:
        assert writer.stdout.readline() == "ready\n"
        seen = []
        # A reader that holds a store open holds no lock.
        with open_store(path) as held:
            while writer.poll() is None:
                with open_store(path) as store:
                    seen.append(store.counts()["artifacts"])
            assert held.counts()["artifacts"] <= seen[0]
        assert writer.stdout.readline() == "done\n"
    with open_store(path) as store:
        assert len(store.artifacts(store.artifacts_of_type("New"))) == 50
    assert seen == sorted(seen)


def _locked(path: Path) -> contextlib.AbstractContextManager:
    """Holds the file as a writer does in the moment of its commit, in a process of its own."""
    script = (
        "import sqlite3, sys\n"
        "c = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
        "c.execute('BEGIN EXCLUSIVE')\nprint('held', flush=True)\nsys.stdin.read()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "held\n"
    return process


def test_locked(small, monkeypatch):
    path, _ = small
    os.chmod(path, 0o644)
    monkeypatch.setattr(database, "_BUSY_SECONDS", 0.2)
    with _locked(path) as holder:
        try:
            with (
                pytest.raises(lineage.LineageError, match=r"is locked: another process"),
                open_store(path),
            ):
                pass
        finally:
            holder.stdin.close()
    with open_store(path) as store:
        assert store.runs()


def test_a_writer_that_died_in_a_commit(tmp_path):
    path = tmp_path / "metadata.sqlite"
    maker = StoreMaker()
    maker.run("first")
    maker.save(path)
    # Killed after its pages are in the file and before its journal is gone.
    script = (
        "import os, sqlite3, sys\n"
        "c = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
        "c.execute('PRAGMA cache_size = 1')\nc.execute('BEGIN')\n"
        "c.execute(\"UPDATE Artifact SET uri = 'x'\")\n"
        'c.execute("UPDATE ArtifactProperty SET string_value = hex(randomblob(4000))")\n'
        "os._exit(0)\n"
    )
    subprocess.run([sys.executable, "-c", script, str(path)], check=True)
    assert (tmp_path / "metadata.sqlite-journal").stat().st_size
    before = path.read_bytes()
    with (
        pytest.raises(lineage.LineageError, match=r"left in the middle of a write"),
        open_store(path),
    ):
        pass
    assert path.read_bytes() == before


def _without(path: Path, statement: str, source: Path) -> Path:
    path.write_bytes(source.read_bytes())
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(statement)
    return path


def test_files_that_are_no_store(small, tmp_path):
    source, _ = small
    (tmp_path / "empty").touch()
    (tmp_path / "text").write_text("this is no database, however long it may be" * 100)
    (tmp_path / "short").write_bytes(source.read_bytes()[:20000])
    with contextlib.closing(sqlite3.connect(tmp_path / "foreign")) as connection, connection:
        connection.execute("CREATE TABLE Artifact (id)")
    _without(tmp_path / "old", "UPDATE MLMDEnv SET schema_version = 6", source)
    _without(tmp_path / "hollow", "DROP TABLE Execution", source)
    (tmp_path / "folder").mkdir()
    for name, message in {
        "none": "there is no metadata database",
        "empty": "is empty: no run has written to it yet",
        "text": "is not a SQLite database",
        "short": "is damaged",
        "foreign": "does not contain ML Metadata",
        "old": "has version 6 of ML Metadata's schema",
        "hollow": "is damaged: no such table: Execution",
        "folder": "there is no metadata database",
    }.items():
        with (
            pytest.raises(lineage.LineageError, match=message) as error,
            open_store(tmp_path / name) as store,
        ):
            store.runs()
        assert "\n" not in str(error.value)
    assert (tmp_path / "empty").stat().st_size == 0


def test_values_that_nobody_expects(tmp_path):
    path = tmp_path / "metadata.sqlite"
    maker = StoreMaker()
    maker.artifact("Model", note="x", number=1.5)
    maker.execution("run", "Trainer", COMPLETE, {"note": "x"}, {}, {})
    maker.execution("run", "no state", COMPLETE)
    maker.save(path)
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(
            "UPDATE ArtifactProperty SET string_value = CAST(X'ff41' AS TEXT) WHERE name = 'note'"
        )
        connection.execute("UPDATE ArtifactProperty SET double_value = 9e999 WHERE name = 'number'")
        connection.execute("UPDATE Execution SET last_known_state = NULL WHERE id = 2")
        connection.execute(f"UPDATE Execution SET create_time_since_epoch = {1 << 62}")
        connection.execute("UPDATE Artifact SET uri = NULL, state = 77")
    with open_store(path) as store:
        artifact = store.artifact(1)
        assert artifact.properties["note"] == "\ufffdA"
        assert (artifact.uri, artifact.state.value) == ("", "unknown")
        [run] = store.runs()
        assert run.status is lineage.RunStatus.UNKNOWN
    for command in (["runs"], ["run", "run"], ["artifact", "artifact:1"], ["why", "Trainer"]):
        for extra in ([], ["--json"]):
            assert cli.main(["--store", str(path), *command, *extra]) == 0
    assert cli.main(["--store", str(path), "export", "run"]) == 1
    assert cli.main(["--store", str(path), "export", "run", "--format", "html"]) == 0


def test_a_store_without_runs(tmp_path):
    housekeeping.open_store(str(tmp_path))
    with open_store(tmp_path) as store:
        assert store.runs() == []
        with pytest.raises(lineage.LineageError, match="has no pipeline run yet"):
            store.find_run("latest")
        with pytest.raises(lineage.LineageError, match="has no release yet"):
            lineage.trace(store, "latest")


def test_folder_with_an_odd_name(tmp_path):
    folder = tmp_path / "50% of a?b#c 图"
    folder.mkdir()
    maker = StoreMaker()
    maker.run("first")
    maker.save(folder / "metadata.sqlite")
    with open_store(folder) as store:
        assert [run.name for run in store.runs()] == ["first"]


def test_interrupted_where_nobody_holds_the_output_folder(small, tmp_path):
    path, _ = small
    (tmp_path / "metadata.sqlite").write_bytes(path.read_bytes())
    with open_store(tmp_path) as store:
        assert store.find_run("running").status is lineage.RunStatus.RUNNING
    script = (
        "import sys\nfrom pipeline import housekeeping\n"
        "with housekeeping.output_lock(sys.argv[1]):\n"
        "    print('held', flush=True)\n    sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[3],
    ) as holder:
        assert holder.stdout.readline() == "held\n"
        with open_store(tmp_path) as store:
            assert store.find_run("running").status is lineage.RunStatus.RUNNING
        holder.stdin.close()
    with open_store(tmp_path) as store:
        run = store.find_run("running")
    assert run.status is lineage.RunStatus.INTERRUPTED
    assert run.ended is not None


@pytest.mark.parametrize(
    "question",
    [
        ("run", "latest"),
        ("artifact", "artifact:1"),
        ("trace", "artifact:1"),
        ("impact", "http://me:hunter2@host/x"),
        ("impact", "creatures"),
        *(("export", "latest", "--format", name) for name in ("openlineage", "dot", "html")),
    ],
)
@pytest.mark.parametrize("flags", [(), ("--json",)])
def test_a_secret_that_a_former_version_recorded_is_not_shown(tmp_path, capfd, question, flags):
    maker = StoreMaker()
    url = "http://me:hunter2@host/x"
    examples = maker.artifact(
        "Examples", "https://host/x?sig=hunter2", dataset=url, name="creatures"
    )
    settings = {"dataset": url, "options": f'{{"a": {{"b": "{url}"}}, "name": "creatures"}}'}
    maker.execution("run", "CaptionExampleGen", COMPLETE, settings, {}, {"examples": [examples]})
    maker.execution("run", "Trainer", FAILED, {"failure_reason": f"{url} is gone"})
    maker.save(tmp_path / "db")
    status = cli.main(["--store", str(tmp_path / "db"), *flags, *question])
    said = "".join(capfd.readouterr())
    assert "hunter2" not in said
    if question != ("impact", url):
        assert status == 0
        assert "http://***@host/x" in said or "dot" in question or "impact" in question


@pytest.mark.parametrize(
    "address",
    [
        "",
        "ftp://host/db",
        "mysql://host",
        "mysql://u:hunter2@h/db",
        "mysql://u@h/db?password=hunter2",
        "vertex://p/l?endpoint=http://u:hunter2@h",
    ],
)
def test_addresses_that_are_none(address):
    with pytest.raises(lineage.LineageError) as error, lineage.locate(address).open():
        pass
    assert "hunter2" not in str(error.value)


def test_mysql_password_comes_from_a_variable(monkeypatch):
    monkeypatch.delenv("NOT_SET", raising=False)
    location = lineage.locate("mysql://user@host/db?password_env=NOT_SET")
    with (
        pytest.raises(lineage.LineageError, match="NOT_SET for mysql://host/db is not set"),
        location.open(),
    ):
        pass


def test_stamp_changes_with_the_file(tmp_path):
    path = tmp_path / "metadata.sqlite"
    location = lineage.locate(str(path))
    assert location.stamp() is None
    store = housekeeping.open_store(str(tmp_path))
    before = location.stamp()
    assert location.stamp() == before
    time.sleep(0.01)
    store.put_artifact_type(mlmd.ArtifactType(name="New"))
    assert location.stamp() != before


def test_what_the_client_reads(many):
    """Ours against ML Metadata's own client, for every run, step and artifact."""
    config = mlmd.ConnectionConfig()
    config.sqlite.filename_uri = str(many)
    config.sqlite.connection_mode = mlmd.SqliteMetadataSourceConfig.READONLY
    client = metadata_store.MetadataStore(config)
    with open_store(many) as store:
        assert store.counts() == {
            "executions": len(client.get_executions()),
            "artifacts": len(client.get_artifacts()),
        }
        contexts = client.get_contexts_by_type("pipeline_run")
        assert store.run_ids() == {c.id: c.name for c in contexts}
        for context in contexts[::20]:
            theirs = client.get_executions_by_context(context.id)
            ours = store.steps(context.id)
            assert {e.id for e in theirs} == {e.id for e in ours}
            events = client.get_events_by_execution_ids([e.id for e in theirs])
            links = store.links(executions=[e.id for e in ours])
            assert {
                (e.execution_id, e.artifact_id, e.path.steps[0].key, e.path.steps[1].index)
                for e in events
            } == {(k.execution_id, k.artifact_id, k.key, k.index) for k in links}
