"""A serving directory in `gs://`: pushed to and changed by processes of their own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from loopback_storage import LoopbackStorage
from signing_keys import key_pair
from small_sources import write_source

from storage.model_signatures import key_identity

REPO_ROOT = Path(__file__).resolve().parents[2]
ROOT = "gs://bucket/serving"
PRIVATE, PUBLIC = key_pair()

# Arguments: root, source, model; and the end of a path, at which the push kills itself.
_PUSH = """
import os, signal, sys
from serving import lock
from storage import filesystem
from serving.serving_directory import ServingDirectory
from storage.model_signatures import SigningKey
lock.SETTLE_SECONDS, lock.HEARTBEAT_SECONDS, lock.STALE_SECONDS = 0.2, 0.5, 12.0
root, source, model, *last = sys.argv[1:]
if last:
    write_atomically = filesystem.write_atomically
    def write(path, contents):
        if path.endswith(last[0]):
            os.kill(os.getpid(), signal.SIGKILL)
        write_atomically(path, contents)
    filesystem.write_atomically = write
key = SigningKey(os.environ["RELEASE_KEY"].encode())
release = ServingDirectory(root).publish(source, {"model": model}, lambda staged: None, key=key)
print(release["version"])
"""


@pytest.fixture
def storage(tmp_path: Path) -> Iterator[LoopbackStorage]:
    with LoopbackStorage(tmp_path) as found:
        yield found


def start(storage: LoopbackStorage, *command: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *map(str, command)],
        cwd=REPO_ROOT,
        env={
            **os.environ,
            **storage.environment,
            "RELEASE_KEY": PRIVATE.decode(),
            "RELEASE_PUBLIC_KEY": PUBLIC.decode(),
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def done(process: subprocess.Popen[str]) -> str:
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0, err[-3000:]
    return out


def release(storage: LoopbackStorage, version: int) -> dict:
    """A release as it is in the bucket, all its files with what was pushed."""
    found = json.loads(storage.read(f"serving/releases/{version}.json"))
    for name in found["files"]:
        network, _, file = name.split("/", 2)
        assert storage.read(f"serving/{name}").decode() == f"{found['model']} {network} {file}"
    return found


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_pushes_to_a_bucket(storage: LoopbackStorage, tmp_path: Path) -> None:
    sources = {model: write_source(tmp_path / model, model) for model in ("a", "b", "c", "d")}
    assert done(start(storage, "-c", _PUSH, ROOT, sources["a"], "a")).strip() == "1"
    assert done(start(storage, "-c", _PUSH, ROOT, sources["a"], "a")).strip() == "1"

    killed = start(storage, "-c", _PUSH, ROOT, sources["b"], "b", "2.json")
    killed.communicate(timeout=200)
    assert killed.returncode == -signal.SIGKILL
    config = storage.read("serving/models.config").decode()
    assert config.count("versions: 1") == 3
    assert "versions: 2" not in config
    assert "serving/releases/2.json" not in storage.names()
    assert any(name.startswith("serving/decoder/2/") for name in storage.names())

    both = [start(storage, "-c", _PUSH, ROOT, sources[model], model) for model in ("c", "d")]
    assert sorted(done(process).strip() for process in both) == ["3", "4"]
    assert {release(storage, version)["model"] for version in (3, 4)} == {"c", "d"}
    names = [name for name in storage.names() if not name.endswith("/")]
    assert not any("/2." in name for name in names)
    assert not any("/2/" in name or "/.staging-" in name or "/.claims/" in name for name in names)
    assert storage.read("serving/models.config").decode().count("versions: 4") == 3

    def run(command: str, *flags: str) -> str:
        return done(
            start(storage, "-m", "serving.releases", command, "--serving-dir", ROOT, *flags)
        )

    assert run("rollback") == "release 3 is served now\n"
    assert storage.read("serving/models.config").decode().count("versions: 3") == 3
    listed = [line.split() for line in run("list").splitlines()]
    assert listed == [["1", "signed"], ["*", "3", "signed"], ["4", "signed"]]
    signed = f", signed by the key {key_identity(PUBLIC)[:12]}\n"
    assert run("verify", "1") == f"release 1 is as it was pushed{signed}"
    storage.write("serving/decoder/1/saved_model.pb", b"changed")
    storage.write("serving/decoder/1/extra", b"added")
    harmed = start(storage, "-m", "serving.releases", "verify", "1", "--serving-dir", ROOT)
    assert harmed.communicate(timeout=200)[0] == (
        "added: decoder/1/extra\nchanged: decoder/1/saved_model.pb\nrelease 1 is damaged\n"
    )
    assert harmed.returncode == 1
    assert run("prune", "--keep", "1").startswith("removed: 1\nkept: 4, among the newest 1\n")
    assert not any(name.startswith("serving/decoder/1/") for name in storage.names())
    assert run("rollback", "--to", "4") == "release 4 is served now\n"
    assert storage.read("serving/models.config").decode().count("versions: 3 versions: 4") == 3
    release(storage, 3)
    release(storage, 4)
