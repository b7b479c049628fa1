"""What each stack wrote, `make.py` says how, is gone on with by the one that runs these tests."""

from __future__ import annotations

import fcntl
import hashlib
import shutil
import sqlite3
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import make
import numpy as np
import pytest
import small_runs
import tensorflow as tf
from zygote import Zygote

from trainer.training.fine_tuner import FineTuner

ARCHIVES = sorted((make.TESTS / "data" / "stacks").glob("*.tar.gz"))


@pytest.fixture(scope="module", params=ARCHIVES, ids=lambda path: path.name.removesuffix(".tar.gz"))
def left(request: pytest.FixtureRequest) -> Iterator[Path]:
    # The place is the same for every run of the tests on this machine.
    with make.ROOT.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        shutil.rmtree(make.ROOT, ignore_errors=True)
        make.ROOT.mkdir()
        with tarfile.open(request.param) as archive:
            archive.extractall(make.ROOT)
        yield make.ROOT
        shutil.rmtree(make.ROOT)


def run(zygote: Zygote) -> tuple[int, str]:
    """The small pipeline's run, in a process of its own, again."""
    status, run = zygote.run(*make.RUN_FLAGS)
    return status, run.out() + run.err()


def test_there_is_one_of_each_stack() -> None:
    assert [path.name for path in ARCHIVES] == ["tfx-1.16.0.tar.gz", "tfx-1.21.0.tar.gz"]


def test_a_database_of_a_newer_schema_is_refused_and_kept(left: Path, zygote: Zygote) -> None:
    database = left / "run" / "metadata.sqlite"
    kept = database.read_bytes()
    with sqlite3.connect(database) as connection:
        connection.execute("UPDATE MLMDEnv SET schema_version = 11")
    connection.close()
    before = hashlib.sha256(database.read_bytes()).hexdigest()
    status, said = run(zygote)
    assert status == 2
    [error] = [line for line in said.splitlines() if line.startswith("error")]
    assert "version 11" in error
    assert "Traceback" not in said
    assert hashlib.sha256(database.read_bytes()).hexdigest() == before
    database.write_bytes(kept)


def lineage(left: Path, *question: str) -> str:
    command = [sys.executable, "-m", "pipeline.lineage", "--store", str(left / "run"), *question]
    return subprocess.run(
        command, cwd=make.TESTS.parent, capture_output=True, text=True, check=True
    ).stdout


def test_finished_steps_come_from_the_cache_and_lineage_shows_both_runs(
    left: Path, zygote: Zygote, request: pytest.FixtureRequest
) -> None:
    status, said = run(zygote)
    assert status == 0, said
    for step in ("Source", "Train", "Judge", "Publish"):
        assert f"{step} cached: nothing that it depends on has changed" in said
    listed = lineage(left, "runs")
    assert "all cached" in listed
    assert "succeeded" in listed
    archive = Path(request.node.callspec.params["left"]).name
    assert f"tfx-{shown(lineage(left, 'artifact', '3'))['tfx_version']}.tar.gz" == archive


def shown(table: str) -> dict[str, str]:
    """The properties in what lineage prints of an artifact."""
    pairs = (line.split(maxsplit=1) for line in table.splitlines())
    return dict(pair for pair in pairs if len(pair) == 2)


@pytest.fixture(scope="module")
def subject() -> FineTuner:
    """Traced once: all that it goes on from is in what was left."""
    return small_runs.tuner(num_blocks=make.NUM_BLOCKS)


def test_a_training_is_resumed(left: Path, subject: FineTuner, tmp_path: Path) -> None:
    half = shutil.copytree(left / "half", tmp_path / "half")
    gone_on_from = []

    def batches(first_step: int) -> Iterator[small_runs.Batch]:
        gone_on_from.append(first_step)
        return small_runs.batches_from(first_step)

    records = subject.train(batches, str(half))
    assert gone_on_from == [make.STEPS_BEFORE]
    with np.load(left / "whole" / "end.npz") as whole:
        losses = [record.loss for record in records]
        np.testing.assert_allclose(losses, whole["losses"][:, 1], rtol=1e-4)
        expected = [whole[name].ravel() for name in whole.files if name != "losses"]
    ours = np.concatenate([values.ravel() for values in small_runs.state(subject)])
    theirs = np.concatenate(expected)
    assert np.linalg.norm(ours - theirs) < 1e-3 * np.linalg.norm(theirs)


def test_latents_are_read(left: Path) -> None:
    from trainer.data.latents import parse_latents

    stored = tf.data.TFRecordDataset([str(left / "latents.gz")], compression_type="GZIP")
    parsed = [
        parse_latents(tf.constant(records), small_runs.preset(), 64, False)
        for records in (list(stored.as_numpy_iterator()), make.latents())
    ]
    assert parsed[0].keys() == parsed[1].keys()
    for name, values in parsed[0].items():
        assert len(values) == 3
        np.testing.assert_array_equal(values, parsed[1][name])


def test_a_release_is_drawn_with(left: Path) -> None:
    drawn, expected = make.picture().astype(int), np.load(left / "picture.npy").astype(int)
    assert np.abs(drawn - expected).max() <= 2
    assert expected.std() > 5
