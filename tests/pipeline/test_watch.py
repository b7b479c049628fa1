"""When a watcher runs, and when not; and a real one beside a folder that is written to."""

from __future__ import annotations

import configparser
import datetime
import itertools
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from PIL import Image

import runner_local
from pipeline import command_line, watch
from pipeline.config import ConfigError, load_config
from storage.local_stamp import local_stamp
from storage.user_errors import UserError

REPO_ROOT = Path(__file__).resolve().parents[2]
DEPLOY = REPO_ROOT / "docs" / "watch"
MINUTE = 60.0


class Weekdays:
    """A watcher of a dataset that a test changes, with a clock of its own."""

    def __init__(self) -> None:
        self.content: str | Exception = "a" * 16
        self.now = datetime.datetime(2026, 3, 2, 9, 0).timestamp()
        self.fails = False
        self.busy = ""
        self.runs: list[str] = []
        self.said: list[str] = []
        self.watcher = watch.Watcher(
            self._look,
            self._run,
            interval=15 * MINUTE,
            busy=lambda: self.busy,
            say=self.said.append,
            clock=lambda: self.now,
        )

    def _look(self) -> str:
        if isinstance(self.content, Exception):
            raise self.content
        return self.content

    def _run(self) -> watch.Outcome:
        self.runs.append(f"{self.content}"[0])
        self.now += 5 * MINUTE
        if self.fails:
            return watch.Outcome(False, "Trainer: no room")
        return watch.Outcome(True, "release 3")

    def looks(self, times: int) -> list[str]:
        """Looks so often; returns what was said."""
        before = len(self.said)
        for _ in range(times):
            self.watcher.decide()
            self.now += 15 * MINUTE
        return [line.partition("  ")[2] for line in self.said[before:]]


@pytest.fixture
def days() -> Weekdays:
    return Weekdays()


def test_a_change_is_run_once_it_has_been_quiet_for_an_interval(days: Weekdays) -> None:
    assert days.looks(3) == [
        "new content (aaaaaaaa): a run begins when the next look finds the same; the next look is "
        "at 09:15:00",
        "new content (aaaaaaaa): a run begins",
        "the run is done after 5 min 00 s: release 3",
        "unchanged since the run that ended at 09:20:00",
    ]
    # As long as it is written to, nothing runs.
    for content in "bcd":
        days.content = content * 16
        [line] = days.looks(1)
        assert line.startswith(f"new content ({content * 8}): a run begins when the next look")
    assert days.runs == ["a"]
    days.looks(3)
    assert days.runs == ["a", "d"]


def test_what_becomes_as_it_was_is_no_change(days: Weekdays) -> None:
    days.looks(2)
    days.content = "b" * 16
    days.looks(1)
    days.content = "a" * 16
    assert days.looks(2)[0].startswith("unchanged since the run")
    assert days.runs == ["a"]


def test_failures_are_tried_again_ever_more_rarely(days: Weekdays) -> None:
    days.fails = True
    began = []
    for _ in range(400):
        before = len(days.runs)
        since = days.now
        days.looks(1)
        if len(days.runs) > before:
            began.append(since)
    pauses = [(later - sooner) / MINUTE for sooner, later in itertools.pairwise(began)]
    assert pauses[:3] == [35.0, 65.0, 125.0]
    assert pauses == sorted(pauses)
    # But every day at least.
    assert pauses[-1] < 24 * 60 + 30
    assert any("failed after 5 min 00 s, 3 times in a row: Trainer: no room; next try at" in line
               for line in days.said)  # fmt: skip
    days.fails = False
    days.looks(200)
    assert len(days.runs) == len(began) + 1


def test_other_content_is_tried_before_its_time(days: Weekdays) -> None:
    days.fails = True
    days.looks(6)
    days.content = "b" * 16
    days.fails = False
    days.looks(2)
    assert days.runs[-1] == "b"
    assert days.looks(1)[0].startswith("unchanged since the run")


def test_nothing_is_started_beside_another_run(days: Weekdays) -> None:
    days.busy = "another run (process 7) is working in out"
    assert days.looks(3)[1:] == [
        f"new content (aaaaaaaa), but {days.busy}; the next look is at {at}"
        for at in ("09:30:00", "09:45:00")
    ]
    days.busy = ""
    days.looks(1)
    assert days.runs == ["a"]


@pytest.mark.parametrize("error", [UserError("it is\nnone"), OSError("no network")])
def test_a_dataset_that_cannot_be_read_is_looked_at_again(days: Weekdays, error: Exception) -> None:
    days.looks(1)
    days.content = error
    [line] = days.looks(1)
    said = str(error).splitlines()[0]
    assert line == f"the dataset cannot be read: {said}; the next look is at 09:30:00"
    days.content = "a" * 16
    days.looks(1)
    # Nobody knows what it was in between.
    assert days.runs == []
    days.looks(1)
    assert days.runs == ["a"]


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("15m", 900), ("2h", 7200), ("1d", 86400)]
)
def test_an_interval(text: str, seconds: float) -> None:
    assert watch.parse_interval(text) == seconds


@pytest.mark.parametrize("text", ["", "15", "m", "0s", "-1m", "1.5h", "15 m", "15M"])
def test_a_wrong_interval_is_a_line(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match="such as 90s, 15m, 2h or 1d"):
        watch.parse_interval(text)
    assert runner_local.main([f"--watch={text}"]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1


def test_a_stamp_changes_with_any_file(tmp_path: Path) -> None:
    file = tmp_path / "a" / "picture.png"
    file.parent.mkdir()
    file.write_bytes(b"one")
    before = local_stamp(str(tmp_path))
    assert local_stamp(str(tmp_path)) == before
    times = file.stat().st_atime_ns, file.stat().st_mtime_ns
    file.write_bytes(b"two")
    os.utime(file, ns=times)
    assert local_stamp(str(tmp_path)) != before
    listed = tmp_path.with_suffix(".txt")
    assert local_stamp(str(tmp_path), str(listed)) is None
    listed.write_text("caption:x # why")
    before = local_stamp(str(tmp_path), str(listed))
    listed.write_text("caption:x # why not")
    assert local_stamp(str(tmp_path), str(listed)) not in (before, None)
    (tmp_path / "link").symlink_to("a")
    assert local_stamp(str(tmp_path)) is None
    assert local_stamp("gs://bucket/pictures") is None


# Stands for a run: it holds the folder, notes what it read, and fails or waits where it is told to.
_RUN = """
import fcntl, pathlib, signal, sys, time
dataset, output = map(pathlib.Path, sys.argv[1:])
def stop(number, frame):
    (output / "stopped").write_text(str(number))
    sys.exit(128 + number)
signal.signal(signal.SIGTERM, stop)
lock = open(output / ".lock", "w")
fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
text = sorted(p.read_text() for p in dataset.glob("*.txt"))
with open(output / "runs", "a") as runs:
    runs.write(" ".join(text) + "\\n")
if "bad" in text:
    sys.exit("error: the caption is bad")
while "slow" in text:
    time.sleep(0.05)
"""
_WATCH = """
import sys
import runner_local
from pipeline import watch
watch.parse_interval = lambda text: float(text)
of_ours = watch.run_process
def run_process(command, output):
    return of_ours([sys.executable, "-c", RUN, DATASET, output], output)
watch.run_process = run_process
sys.exit(runner_local.main(["--dataset", DATASET, "--output", OUTPUT, "--watch", "0.3"]))
"""


class Watched:
    """A real watcher of a real folder; what it starts stands for a run."""

    def __init__(self, folder: Path) -> None:
        self.dataset, self.output = folder / "pictures", folder / "out"
        self.dataset.mkdir()
        self.log = folder / "log"
        code = f"RUN={_RUN!r}; DATASET={str(self.dataset)!r}; OUTPUT={str(self.output)!r}\n{_WATCH}"
        with open(self.log, "w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", code], stdout=log, stderr=log, cwd=REPO_ROOT
            )

    def put(self, number: int, caption: str) -> None:
        picture = self.dataset / f"{number}.png"
        if not picture.exists():
            Image.new("RGB", (64, 64), (60 * number, 128, 0)).save(picture)
        (self.dataset / f"{number}.txt").write_text(caption)

    def wait_for(self, happened: Callable[[], object], seconds: float = 60.0) -> None:
        deadline = time.monotonic() + seconds
        while not happened():
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.02)

    @property
    def runs(self) -> list[str]:
        path = self.output / "runs"
        return path.read_text().splitlines() if path.exists() else []

    def end(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(timeout=30)


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[Watched]:
    watched = Watched(tmp_path)
    yield watched
    watched.process.kill()
    watched.process.wait()


def test_a_folder_that_is_written_to_while_it_is_watched(watched: Watched) -> None:
    log = watched.log
    watched.wait_for(lambda: "cannot be read" in log.read_text())
    written = 0

    def wrote_for_three_looks() -> bool:
        nonlocal written
        written += 1
        watched.put(written % 4, f"caption {written}")
        return log.read_text().count("new content") >= 3

    watched.wait_for(wrote_for_three_looks)
    assert watched.runs == []
    for number, word in enumerate(("four", "plain", "pictures", "here")):
        watched.put(number, word)
    watched.wait_for(lambda: "unchanged since the run" in log.read_text())
    assert watched.runs == ["four here pictures plain"]

    watched.put(1, "bad")
    watched.wait_for(lambda: "once: the caption is bad; next try at" in log.read_text())
    watched.wait_for(lambda: "unchanged since a run failed once" in log.read_text())
    watched.put(1, "slow")
    watched.wait_for(lambda: watched.runs[-1] == "four here pictures slow")
    # In a run, the signal goes there, and is waited for.
    assert watched.end() == 143
    assert (watched.output / "stopped").read_text() == str(int(signal.SIGTERM))
    assert log.read_text().splitlines()[-1] == "Ended by SIGTERM."
    assert "Traceback" not in log.read_text()


def test_a_signal_between_two_looks_ends_it_at_once(watched: Watched) -> None:
    watched.wait_for(lambda: "cannot be read" in watched.log.read_text())
    assert watched.end(signal.SIGINT) == 130
    assert watched.log.read_text().splitlines()[-1] == "Ended by Ctrl-C."
    assert not (watched.output / "runs").exists()


def unit() -> tuple[configparser.ConfigParser, list[str]]:
    parser = configparser.ConfigParser(interpolation=None, strict=True)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(DEPLOY / "sd-finetuning.service")
    return parser, shlex.split(parser["Service"]["ExecStart"])


def test_the_unit_watches_and_gives_a_run_time_to_end(tmp_path: Path) -> None:
    parser, (_, script, *argv) = unit()
    assert Path(script).name == "runner_local.py"
    arguments, _ = command_line.parse(runner_local.command(), runner_local._FLAGS, argv)
    assert watch.parse_interval(arguments.watch) >= 60
    service = parser["Service"]
    # Else the run is told twice, and its second Ctrl-C or SIGTERM is not waited with.
    assert service["KillMode"] == "mixed"
    assert service["SuccessExitStatus"] == "143"
    assert not {"Restart", "TimeoutStopSec"} - set(service)


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd here")
def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    text = (DEPLOY / "sd-finetuning.service").read_text()
    _, (python, *_) = unit()
    text = text.replace(python, sys.executable).replace("User=sdft", "User=root")
    for content, status in ((text, 0), (text.replace("KillMode", "KilMode"), 1)):
        file = tmp_path / f"watch{status}.service"
        file.write_text(content)
        done = subprocess.run(
            ["systemd-analyze", "verify", "--man=no", str(file)],
            capture_output=True,
            text=True,
            check=False,
        )
        said = [line for line in done.stderr.splitlines() if file.name in line]
        assert bool(said) is bool(status), done.stderr


@pytest.mark.parametrize("version", ["1.30", kubernetes_validate.latest_version()])
def test_the_cron_job_is_valid_and_runs_one_at_a_time(version: str, tmp_path: Path) -> None:
    documents: dict[str, Any] = {
        d["kind"]: d for d in yaml.safe_load_all((DEPLOY / "cronjob.yaml").read_text())
    }
    assert set(documents) == {"ConfigMap", "PersistentVolumeClaim", "CronJob"}
    for document in documents.values():
        kubernetes_validate.validate(document, version, strict=True)
    job = documents["CronJob"]["spec"]
    assert job["concurrencyPolicy"] == "Forbid"
    pod = job["jobTemplate"]["spec"]["template"]["spec"]
    [container] = pod["containers"]
    settings = tmp_path / "config.yaml"
    [text] = documents["ConfigMap"]["data"].values()
    settings.write_text(text)
    config = load_config(settings)
    assert config.keep_runs > 0
    mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    assert any(config.output.startswith(path) for path in mounts)
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert set(mounts.values()) == set(volumes)
    assert (
        volumes["runs"]["persistentVolumeClaim"]["claimName"]
        == (documents["PersistentVolumeClaim"]["metadata"]["name"])
    )
    argv = [a.replace("/etc/sd-finetuning/config.yaml", str(settings)) for a in container["args"]]
    parsed, _ = command_line.parse(runner_local.command(), runner_local._FLAGS, argv)
    assert parsed.config == [str(settings)]
    del job["jobTemplate"]
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(documents["CronJob"], version, strict=True)
