"""A store in MySQL: ML Metadata's client writes to a server, we read it with a reader's rights."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import time

import pytest
from made_store import FIRST_DAY, MINUTE, Settings, StoreMaker
from ml_metadata.metadata_store import metadata_store
from ml_metadata.proto import metadata_store_pb2 as mlmd

from pipeline import lineage
from pipeline.lineage import cli


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A MariaDB server with an empty database; yields (port, connection as root)."""
    pymysql = pytest.importorskip("pymysql")
    if shutil.which("mariadbd") is None or shutil.which("mariadb-install-db") is None:
        pytest.skip("there is no MariaDB server on PATH")
    folder = tmp_path_factory.mktemp("mysql")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = ["--no-defaults", "--user=root", f"--datadir={folder}/data"]
    subprocess.run(
        [
            "mariadb-install-db",
            *common,
            "--auth-root-authentication-method=normal",
            "--skip-test-db",
        ],
        check=True,
        capture_output=True,
    )
    process = subprocess.Popen(
        ["mariadbd", *common, f"--socket={folder}/s", f"--port={port}", "--bind-address=127.0.0.1"],
        stderr=subprocess.DEVNULL,
    )
    try:
        while True:
            try:
                root = pymysql.connect(host="127.0.0.1", port=port, user="root", autocommit=True)
                break
            except pymysql.err.OperationalError:
                assert process.poll() is None
                time.sleep(0.1)
        with contextlib.closing(root), root.cursor() as cursor:
            for statement in (
                "CREATE DATABASE mlmd",
                "CREATE DATABASE other",
                "CREATE USER writer IDENTIFIED BY 'w'",
                "GRANT ALL ON mlmd.* TO writer",
                "CREATE USER reader IDENTIFIED BY 'r'",
                "GRANT SELECT ON *.* TO reader",
            ):
                cursor.execute(statement)
            yield port, cursor
    finally:
        process.terminate()
        process.wait(60)


@pytest.fixture(scope="module")
def address(server):
    port, _ = server
    config = mlmd.ConnectionConfig()
    config.mysql.host, config.mysql.port, config.mysql.database = "127.0.0.1", port, "mlmd"
    config.mysql.user, config.mysql.password = "writer", "w"
    maker = StoreMaker()
    first = maker.run("first", at=FIRST_DAY, loss=0.17)
    maker.run(
        "50% <b>图</b>", Settings(dataset="data/b%d"), FIRST_DAY + MINUTE, first["model"], 0.1
    )
    maker.write(metadata_store.MetadataStore(config))
    return f"mysql://reader@127.0.0.1:{port}/mlmd?password_env=READER_PASSWORD"


@pytest.fixture(autouse=True)
def password(monkeypatch):
    monkeypatch.setenv("READER_PASSWORD", "r")


def test_questions(address):
    with lineage.locate(address).open() as store:
        runs = {run.name: run for run in store.runs()}
        assert set(runs) == {"first", "50% <b>图</b>"}
        assert runs["first"].metrics["loss"] == 0.17
        assert runs["first"].releases == ("1",)
        trace = lineage.trace(store, "release:2")
        assert {f.value for f in trace.facts if f.name == "dataset"} == {"data/b%d"}
        assert [r.name for r in lineage.impact(store, "data/b%d").runs] == ["50% <b>图</b>"]
        assert lineage.diff(store, "first", "50%").differences
        assert lineage.why(store, "Trainer", "50%").verdict == "miss"


def test_commands_and_stamp(address, capsysbinary):
    assert cli.main(["--store", address, "run", "first"]) == 0
    assert b"CaptionExampleGen" in capsysbinary.readouterr().out
    location = lineage.locate(address)
    assert location.stamp() == location.stamp()


def test_a_reader_cannot_write_and_waits_for_nobody(server, address):
    _, root = server
    with lineage.locate(address).open() as store:
        before = store.counts()
        root.execute("UPDATE mlmd.Artifact SET uri = 'changed' WHERE id = 1")
        assert store.artifact(1).uri != "changed"
        with pytest.raises(lineage.LineageError, match=r"denied|READ ONLY|read-only"):
            store._database.rows("DELETE FROM Artifact")
    with lineage.locate(address).open() as store:
        assert store.artifact(1).uri == "changed"
        assert store.counts() == before


def test_what_is_no_store(server, address, monkeypatch):
    port, _ = server
    for changed, message in (
        (address.replace("/mlmd", "/other"), "does not contain ML Metadata"),
        (address.replace("/mlmd", "/none"), "cannot be opened: .*none"),
        (address.replace(f":{port}", ":1"), "cannot be opened"),
    ):
        with pytest.raises(lineage.LineageError, match=message), lineage.locate(changed).open():
            pass
    monkeypatch.setenv("READER_PASSWORD", "wrong secret")
    with (
        pytest.raises(lineage.LineageError, match="cannot be opened") as error,
        lineage.locate(address).open(),
    ):
        pass
    assert "secret" not in str(error.value)
