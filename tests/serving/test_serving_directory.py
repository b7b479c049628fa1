"""Releases of small files: what readers see, who may write, what crashes leave."""

import contextlib
import hashlib
import json
import random
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from google.protobuf import text_format
from small_sources import FILES, write_source
from tensorflow_serving.config import model_server_config_pb2

from serving import lock
from serving.errors import ServingError
from serving.releases import SERVED_NETWORKS, find_release, list_versions
from serving.releases import __main__ as releases_command
from serving.serving_directory import ServingDirectory
from storage import transfer

ROOT = Path(__file__).resolve().parents[2]


def push(root: str | Path, source: str, model: object) -> int:
    directory = ServingDirectory(str(root))
    return directory.publish(source, {"model": model}, lambda staged: None)["version"]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Releases 1, 2 and 3."""
    for number in (1, 2, 3):
        push(tmp_path / "s", write_source(tmp_path / f"m{number}", f"model {number}"), number)
    return tmp_path / "s"


def served(root: Path) -> int:
    """What a server that polls `models.config` would load, each file held against its hash.

    Returns:
        The highest version.
    """
    config = (root / "models.config").read_text()
    versions = sorted({int(number) for number in re.findall(r"versions: (\d+)", config)})
    paths = re.findall(r'base_path: "(.*)"', config)
    assert paths == [str(root / network) for network in SERVED_NETWORKS]
    assert 1 <= len(versions) <= 2
    for version in versions:
        release = json.loads((root / "releases" / f"{version}.json").read_text())
        for path, digest in release["files"].items():
            assert hashlib.sha256((root / path).read_bytes()).hexdigest() == digest
        contents = {
            (root / network / str(version) / FILES[0]).read_text() for network in SERVED_NETWORKS
        }
        # All three are of the same push.
        assert len({content.rpartition(" ")[0].rpartition(" ")[0] for content in contents}) == 1
    return versions[-1]


def poll(root: Path, stop: threading.Event, seen: list[int]) -> None:
    while not stop.is_set():
        with contextlib.suppress(FileNotFoundError) if not seen else contextlib.nullcontext():
            version = served(root)
            assert not seen or version >= seen[-1]
            seen.append(version)


def pushes_beside_a_reader(root: Path, count: int) -> None:
    stop, seen, failures = threading.Event(), [], []

    def read() -> None:
        try:
            poll(root, stop, seen)
        except BaseException as error:
            failures.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(1, count + 1):
        source = write_source(root.parent / "source", f"model {number}")
        assert push(root, source, number) == number
        if number % 10 == 0:
            # More than come while the reader computes hashes.
            ServingDirectory(str(root)).prune(50)
    stop.set()
    reader.join()
    assert failures == []
    assert len(set(seen)) > count / 10


def test_a_polling_reader_never_sees_half_a_release(tmp_path: Path) -> None:
    pushes_beside_a_reader(tmp_path / "s", 60)


@pytest.mark.slow
def test_a_polling_reader_during_a_thousand_pushes(tmp_path: Path) -> None:
    pushes_beside_a_reader(tmp_path / "s", 1000)


_PUSH = """
import sys
from serving.serving_directory import ServingDirectory
from storage import transfer
directory = ServingDirectory(sys.argv[1])
print("ready", flush=True)
for number in range(int(sys.argv[3]), 10**9):
    directory.publish(sys.argv[2], {"model": number}, lambda staged: None)
"""


def test_pushers_that_are_killed_leave_a_whole_release(tmp_path: Path) -> None:
    root, source = tmp_path / "s", write_source(tmp_path / "m", "model")
    push(root, source, 0)
    rng = random.Random(0)
    last = 1
    for kill in range(6):
        # Two at once, of which one dies.
        pushers = [
            subprocess.Popen(
                [sys.executable, "-c", _PUSH, root, source, str(1000 * (2 * kill + n + 1))],
                cwd=ROOT,
                stdout=subprocess.PIPE,
            )
            for n in range(2)
        ]
        for pusher in pushers:
            assert pusher.stdout.readline() == b"ready\n"
        time.sleep(rng.uniform(0.05, 0.2))
        pushers[0].kill()
        pushers[0].wait()
        time.sleep(0.05)
        pushers[1].send_signal(signal.SIGKILL)
        pushers[1].wait()
        version = served(root)
        assert version >= last
        last = version
    final = push(root, source, "last")
    assert served(root) == final > 10
    versions = list_versions(str(root))
    for network in SERVED_NETWORKS:
        assert sorted(int(path.name) for path in (root / network).iterdir()) == versions
    directory = ServingDirectory(str(root))
    assert all(directory.damaged_files(version) == [] for version in versions)
    assert not list(root.glob(".staging-*")) + list(root.rglob(".partial-*"))


def test_rollback_and_forward(root: Path, tmp_path: Path) -> None:
    directory = ServingDirectory(str(root))
    assert directory.rollback() == 2
    assert served(root) == 2
    assert find_release(str(root)).version == 2
    # The pipeline runs again, and its pusher with it: the bad release stays away.
    assert push(root, str(tmp_path / "m3"), 3) == 3
    assert served(root) == 2
    assert directory.rollback(3) == 3
    assert served(root) == 3
    assert directory.rollback(1) == 1
    with pytest.raises(ServingError, match="there is no release before 1"):
        directory.rollback()
    with pytest.raises(ServingError, match=r"there is no release 9 in .*; there are: 1, 2, 3"):
        directory.rollback(9)
    (root / "decoder" / "2" / "saved_model.pb").write_text("changed")
    with pytest.raises(
        ServingError, match=r"release 2 is damaged: changed: decoder/2/saved_model\.pb; choose"
    ):
        directory.rollback(2)
    assert served(root) == 1
    # A new model is served, whatever was before.
    assert push(root, write_source(tmp_path / "m4", "model 4"), 4) == 4
    assert served(root) == 4


def test_pruning_spares_the_current_release(root: Path, tmp_path: Path) -> None:
    directory = ServingDirectory(str(root))
    directory.rollback(1)
    assert directory.prune(1) == [2]
    assert list_versions(str(root)) == [1, 3]
    # The one before the current one is still loaded.
    directory.rollback(3)
    assert directory.prune(1) == []
    assert served(root) == 3
    for network in SERVED_NETWORKS:
        assert sorted(path.name for path in (root / network).iterdir()) == ["1", "3"]
    with pytest.raises(ValueError, match="keep is 0"):
        directory.prune(0)


def test_an_image_encoder_comes_and_goes_with_its_release(root: Path, tmp_path: Path) -> None:
    directory = ServingDirectory(str(root))
    with_pictures = write_source(tmp_path / "m4", "model 4", image_to_image=True)

    def loaded() -> dict[str, list[int]]:
        config = text_format.Parse(
            (root / "models.config").read_text(), model_server_config_pb2.ModelServerConfig()
        )
        models = config.model_config_list.config
        assert all(model.base_path == str(root / model.name) for model in models)
        return {m.name: list(m.model_version_policy.specific.versions) for m in models}

    def of_three(*versions: int) -> dict[str, list[int]]:
        return {network: list(versions) for network in SERVED_NETWORKS}

    # The same training, exported again with or without it, is a release of its own.
    facts = {"manifest": {"training_id": "a"}}

    def publish(source: str, model: int) -> int:
        return directory.publish(source, {"model": model, **facts}, lambda _: None)["version"]

    assert publish(write_source(tmp_path / "m", "model 4"), 4) == 4
    assert loaded() == of_three(3, 4)
    assert publish(with_pictures, 5) == 5
    assert publish(with_pictures, 5) == 5
    assert loaded() == {**of_three(4, 5), "image_encoder": [5]}
    assert publish(write_source(tmp_path / "m6", "model 4"), 6) == 6
    assert loaded() == {**of_three(5, 6), "image_encoder": [5]}
    assert find_release(str(root), 5).networks == (*SERVED_NETWORKS, "image_encoder")
    assert find_release(str(root)).networks == SERVED_NETWORKS
    # What former versions of this program count, by this.
    text = (root / "models.config").read_bytes()
    assert re.findall(rb"versions: *([0-9]+)", text) == [b"5", b"6"] * 3
    damaged = root / "image_encoder" / "5" / FILES[0]
    whole = damaged.read_text()
    damaged.write_text("changed")
    with pytest.raises(ServingError, match=r"release 5 is damaged: .*image_encoder/5/saved_model"):
        directory.rollback()
    damaged.write_text(whole)
    assert directory.rollback() == 5
    assert loaded() == {**of_three(5), "image_encoder": [5]}
    # One without a release is what a killed push left.
    (root / "releases" / "5.json").rename(tmp_path / "5.json")
    assert publish(with_pictures, 7) == 7
    assert sorted(path.name for path in (root / "image_encoder").iterdir()) == ["7"]
    assert directory.prune(1) == [1, 2, 3, 4, 6]
    assert loaded() == {**of_three(7), "image_encoder": [7]}


def test_numbers_never_come_back(root: Path, tmp_path: Path) -> None:
    for path in [
        root / "releases" / "3.json",
        *(root / network / "3" for network in SERVED_NETWORKS),
    ]:
        path.rename(tmp_path / path.parent.name) if path.is_file() else subprocess.run(
            ["rm", "-r", path], check=True
        )
    assert push(root, str(tmp_path / "m3"), 3) == 4


def test_a_damaged_configuration_is_told_and_mended(root: Path) -> None:
    config = root / "models.config"
    whole = config.read_text()
    config.write_text(whole.replace("versions: 3", "versions: 9", 1))
    with pytest.raises(ServingError, match=r"names the versions \[2, 9, 2, 3, 2, 3\]; .*--to"):
        find_release(str(root))
    config.write_text(whole.replace("versions: 3", "versions: 8"))
    with pytest.raises(ServingError, match="the configured version 8 is not a release"):
        find_release(str(root))
    assert releases_command.main(["rollback", "--serving-dir", str(root), "--to", "3"]) == 0
    assert served(root) == 3


def test_the_command_line(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def run(*arguments: str) -> tuple[int, str, str]:
        code = releases_command.main([arguments[0], "--serving-dir", str(root), *arguments[1:]])
        return code, *capsys.readouterr()

    code, out, _ = run("list")
    assert code == 0
    assert [line.split() for line in out.splitlines()] == [["1"], ["2"], ["*", "3"]]
    code, out, _ = run("show", "2")
    assert json.loads(out)["version"] == 2
    assert json.loads(run("show")[1])["version"] == 3
    assert run("rollback") == (0, "release 2 is served now\n", "")
    assert run("verify") == (0, "release 2 is as it was pushed, not signed\n", "")
    (root / "decoder" / "2" / FILES[0]).unlink()
    code, out, _ = run("verify", "2")
    assert code == 1
    assert out == f"missing: decoder/2/{FILES[0]}\nrelease 2 is damaged\n"
    removed = "removed: 1\nkept: 3, among the newest 1\nkept: 2, the current one\n"
    assert run("prune", "--keep", "1") == (0, removed, "")
    assert run("rollback", "--to", "3") == (0, "release 3 is served now\n", "")
    nothing = (
        "removed: nothing\nkept: 3, the current one\n"
        "kept: 2, which servers keep loaded beside it until the next push\n"
    )
    assert run("prune", "--keep", "1") == (0, nothing, "")
    code, _, err = run("show", "1")
    assert (code, err) == (2, f"error: there is no release 1 in {root}; there are: 2, 3\n")
    assert run("prune", "--keep", "0")[2] == "error: --keep is 0; it must be 1 or more\n"
    assert releases_command.main(["list", "--serving-dir", "/nowhere"]) == 2
    assert capsys.readouterr().err.startswith("error: there is no serving directory /nowhere; ")


def test_commands_that_need_no_tensorflow(root: Path) -> None:
    script = (
        "import sys\n"
        "from serving.releases.__main__ import main\n"
        f"assert main(['list', '--serving-dir', {str(root)!r}]) == 0\n"
        f"assert main(['rollback', '--serving-dir', {str(root)!r}]) == 0\n"
        "assert 'tensorflow' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True)


class Remote:
    """A directory in TensorFlow's own memory, which knows no folders and no locks."""

    def __init__(self, name: str) -> None:
        import tensorflow as tf

        self.root = f"ram://{name}"
        self.gfile = tf.io.gfile

    def read(self, path: str) -> str:
        with self.gfile.GFile(f"{self.root}/{path}") as f:
            return f.read()

    def files(self) -> set[str]:
        return {
            f"{folder}/{name}".replace("//", "/").partition(f"{self.root[6:]}/")[2]
            for folder, _, names in self.gfile.walk(self.root)
            for name in names
        }


def test_remote_directories(tmp_path: Path) -> None:
    remote = Remote("bucket_a/serving")
    for number in (1, 2, 3):
        source = write_source(tmp_path / f"m{number}", f"model {number}")
        assert push(remote.root, source, number) == number
    config = remote.read("models.config")
    assert re.findall(r'base_path: "(.*)"', config) == [
        f"{remote.root}/{n}" for n in SERVED_NETWORKS
    ]
    assert re.findall(r"versions: (\d+)", config) == ["2", "3"] * 3
    assert remote.read(f"decoder/2/{FILES[1]}") == f"model 2 decoder {FILES[1]}"
    directory = ServingDirectory(remote.root)
    assert directory.damaged_files(3) == []
    assert find_release(remote.root).version == 3
    assert directory.rollback() == 2
    assert find_release(remote.root).version == 2
    assert directory.prune(1) == [1]
    expected = {f"{n}/{v}/{name}" for n in SERVED_NETWORKS for v in (2, 3) for name in FILES}
    expected |= {f"releases/{name}" for name in ("2.json", "3.json", "rollback.json")}
    assert remote.files() == {*expected, "releases/last_version", "models.config"}


def test_two_remote_pushes_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "SETTLE_SECONDS", 0.0)
    remote = Remote("bucket_b/serving")
    source = write_source(tmp_path / "m", "model")
    versions = []

    def publish(number: int) -> None:
        versions.append(push(remote.root, source, number))

    threads = [threading.Thread(target=publish, args=(number,)) for number in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(versions) == [1, 2, 3, 4, 5]
    directory = ServingDirectory(remote.root)
    assert all(directory.damaged_files(version) == [] for version in versions)


def test_a_push_that_was_taken_for_dead_publishes_nothing(tmp_path: Path) -> None:
    remote = Remote("bucket_c/serving")
    source = write_source(tmp_path / "m", "model")
    with remote.gfile.GFile(f"{remote.root}/.staging-dead/decoder/half", "w") as f:
        f.write("half")
    assert push(remote.root, source, 1) == 1
    assert not any("dead" in path for path in remote.files())

    def taken_for_dead(staged: str) -> None:
        for name in remote.gfile.listdir(f"{remote.root}/.claims"):
            remote.gfile.remove(f"{remote.root}/.claims/{name}")

    with pytest.raises(lock.LockLostError, match="nothing was pushed, push again"):
        ServingDirectory(remote.root).publish(source, {"model": 2}, taken_for_dead)
    assert find_release(remote.root).version == 1


_CLAIM = """
import sys, time
from serving import lock
lock.HEARTBEAT_SECONDS, lock.SETTLE_SECONDS, lock.STALE_SECONDS = 0.1, 0.1, 2.0
print("ready", flush=True)
for _ in range(int(sys.argv[2])):
    with lock.locked(sys.argv[1]):
        with open(sys.argv[3], "x"):
            time.sleep(0.02)
        __import__("os").remove(sys.argv[3])
print("done", flush=True)
"""


@pytest.mark.slow
def test_claims_let_one_process_at_a_time_in_and_outlive_no_dead_one(tmp_path: Path) -> None:
    """With files on this disk, which TensorFlow reaches by this scheme as if they were remote."""
    folder, inside = f"file://{tmp_path}/s", tmp_path / "inside"
    dead = tmp_path / "s" / ".claims"
    dead.mkdir(parents=True)
    for name in ("dead", "dead.alive"):
        (dead / name).write_text("0")
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", _CLAIM, folder, "5", inside],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for _ in range(2)
    ]
    for process in processes:
        out, err = process.communicate(timeout=200)
        assert out == b"ready\ndone\n", err[-2000:]
    assert list(dead.iterdir()) == []


def test_a_long_copy_tells_how_far_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(transfer, "_SHORT_BYTES", 0)
    caplog.set_level("INFO")
    source = write_source(tmp_path / "m", "model")
    push(tmp_path / "s", source, 1)
    pushed = [*(tmp_path / "s").glob("*/1/**/*")]
    total = 2 * sum(path.stat().st_size for path in pushed if path.is_file())
    told = [r.args for r in caplog.records if r.name == transfer.__name__]
    assert len(told) > 4
    assert [done for _, done, _ in told] == sorted(done for _, done, _ in told)
    assert {(what, all_) for what, _, all_ in told} == {
        ("copying the release and verifying the copy", total / 1e9)
    }


def test_a_disk_that_fails_is_no_mistake_of_the_command(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(*_: object) -> int:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(ServingDirectory, "rollback", fails)
    assert releases_command.main(["rollback", "--serving-dir", str(root)]) == 1
    assert capsys.readouterr().err == "error: [Errno 5] Input/output error\n"
