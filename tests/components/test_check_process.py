import os
import signal

import ingested_rows
import psutil
import pyarrow as pa
import pytest

from components.caption_example_gen import check_process, executor
from components.caption_example_gen.check_process import CheckProcess, CheckProcesses
from components.caption_example_gen.rows import CheckSettings, RowChecker
from components.caption_example_gen.sources import DatasetError, DatasetSpec, open_dataset
from storage.user_errors import UserError


def _started():
    """The processes of this kind that there are; other tests may have left others."""
    return [
        child
        for child in psutil.Process().children()
        if check_process.__name__ in _command_line(child)
    ]


def _command_line(process):
    try:
        return process.cmdline()
    except psutil.NoSuchProcess:  # one that has ended, whether asked for yet or not
        return []


@pytest.fixture
def settings(tmp_path):
    rows = [(ingested_rows.png(i), f"caption {i}") for i in range(6)] + [(b"no picture", "x")]
    ingested_rows.write(tmp_path / "set" / "a.parquet", rows)
    (tmp_path / "spill").mkdir()
    return CheckSettings(
        spec=DatasetSpec(str(tmp_path / "set")),
        eval_fraction=0.3,
        seed=0,
        max_pixels=1 << 20,
        max_aspect_ratio=10.0,
        num_shards={"train": 2, "eval": 1},
        spill_folder=str(tmp_path / "spill"),
        spill_bytes=300,
    )


@pytest.fixture
def process(settings):
    process = CheckProcess()
    process.open(settings)
    yield process
    process.close()


def _outcome(batches):
    return [
        ({shard: stretch.read() for shard, stretch in batch.spilled.items()}, batch.rejects)
        for batch in batches
    ]


def test_gives_what_the_checker_gives(settings, process):
    units = list(open_dataset(settings.spec).units())
    assert len(units) == 2
    checker = RowChecker(settings)
    for unit in units:
        expected = _outcome(checker.check(unit))
        assert _outcome(process.check(unit)) == expected
        assert len(expected) > 1


def test_an_unreadable_file_is_an_error_here_and_no_end_there(settings, process):
    [unit, *_] = open_dataset(settings.spec).units()
    path = os.path.join(settings.spec.dataset, unit.file)
    with open(path, "rb") as f:
        whole = f.read()
    with open(path, "wb") as f:
        f.write(whole[:-20])
    with pytest.raises(DatasetError, match="cannot be read"):
        list(process.check(unit))
    with open(path, "wb") as f:
        f.write(whole)
    assert _outcome(process.check(unit))


def test_a_process_that_is_killed_is_an_error(settings, process):
    [unit, *_] = open_dataset(settings.spec).units()
    [child] = _started()
    os.kill(child.pid, signal.SIGKILL)
    with pytest.raises(UserError, match="killed by signal 9"):
        list(process.check(unit))


def test_more_threads_than_processes(settings):
    processes = CheckProcesses(1)
    [unit, *_] = open_dataset(settings.spec).units()
    one, other = processes.take(settings), processes.take(settings)
    assert _outcome(one.check(unit)) == _outcome(other.check(unit))
    processes.close()
    assert not _started()


@pytest.mark.parametrize("broken", [False, True])
def test_none_is_left_after_a_run(tmp_path, monkeypatch, broken):
    ingested_rows.write(
        tmp_path / "set" / "a.parquet", [(ingested_rows.png(i), "x") for i in range(9)]
    )
    started = []
    take = CheckProcesses.take

    def noted(self, settings):
        process = take(self, settings)
        started.extend(_started())
        if broken:
            process._process.kill()
        return process

    monkeypatch.setattr(CheckProcesses, "take", noted)
    if broken:
        with pytest.raises(RuntimeError, match="killed by signal 9"):
            ingested_rows.generate(tmp_path, tmp_path / "set", ingested_rows.TWO_WORKERS)
    else:
        ingested_rows.generate(tmp_path, tmp_path / "set", ingested_rows.TWO_WORKERS)
    assert len(started) >= 2
    assert not _started()


def test_pictures_with_several_captions_get_as_many_more_shards(tmp_path, monkeypatch):
    pictures = [ingested_rows.png(i) for i in range(20)]
    captions = [[f"{i} {j}" for j in range(4)] for i in range(20)]
    monkeypatch.setattr(executor, "_SHARD_BYTES", 3000)
    shards = {}
    for name, rows in (
        ("one", [(picture, texts[:1]) for picture, texts in zip(pictures, captions, strict=True)]),
        ("four", list(zip(pictures, captions, strict=True))),
    ):
        ingested_rows.write(
            tmp_path / name / "a.parquet",
            rows,
            caption_type=pa.list_(pa.string()),
        )
        examples, _ = ingested_rows.generate(tmp_path, tmp_path / name)
        folder = os.path.join(examples.uri, "Split-train")
        shards[name] = [os.path.getsize(os.path.join(folder, f)) for f in os.listdir(folder)]
    assert len(shards["four"]) >= 3 * len(shards["one"])
    assert max(shards["four"]) < 2 * max(shards["one"])
