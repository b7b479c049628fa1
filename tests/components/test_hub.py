"""Datasets of the hub, read for real from a hub on this machine whose answers fail in every way."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_server import NOW, TOKEN, HubServer, Ran, write

from components.caption_example_gen.sources.base import DatasetError
from components.caption_example_gen.sources.hub import HubId, parse_hub_id

_ID = "some-org/pictures"
_PRELUDE = """
import hashlib, logging
logging.basicConfig(level=logging.DEBUG)
from components.caption_example_gen.sources.base import DatasetError
from components.caption_example_gen.sources.hub import HubFiles, parse_hub_id

def error(call, *args):
    try:
        call(*args)
    except DatasetError as error:
        return str(error)

def sha256(files, path, opened="open"):
    with getattr(files, opened)(path) as f:
        return hashlib.sha256(f.read()).hexdigest()
"""


def _run(hub: HubServer, home: Path, code: str, **env: str) -> Ran:
    return hub.run(home, f"{_PRELUDE}\n{code}", **env)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def hub() -> Iterator[HubServer]:
    with HubServer(page_size=2) as server:
        yield server


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = write(
        tmp_path / "dataset",
        **{
            ".gitattributes": 20,
            "data/a b#%41@+ü.parquet": 3000,
            "data/train.parquet": 3 << 20,
            "data/deep/er/x.txt": 5,
            "empty.txt": 0,
        },
    )
    (folder / "README.md").write_text("---\nlicense: mit\n---\nPictures\n")
    return folder


@pytest.mark.parametrize(
    ("dataset", "expected"),
    [
        ("mnist", HubId("mnist", None)),
        ("org/name", HubId("org/name", None)),
        ("org/name@v1.0", HubId("org/name", "v1.0")),
        ("org/name@refs/convert/parquet", HubId("org/name", "refs/convert/parquet")),
        ("hf://datasets/org/name", HubId("org/name", None)),
        ("hf://datasets/org/name@main", HubId("org/name", "main")),
        ("./org/name", None),
        ("../name", None),
        ("/org/name", None),
        ("a/b/c", None),
        ("a folder/b", None),
        ("gs://bucket/name", None),
        ("keras/pictures.tar.gz", None),
        ("", None),
    ],
)
def test_what_is_a_name_of_the_hub(dataset: str, expected: HubId | None) -> None:
    assert parse_hub_id(dataset) == expected


@pytest.mark.parametrize(
    ("dataset", "problem"),
    [
        ("org/name@", "ends with @"),
        ("hf://org/name", "does not name a dataset"),
        ("hf://datasets/org/name/data/train", "does not name a dataset"),
        ("hf://datasets/", "does not name a dataset"),
    ],
)
def test_half_a_name_is_an_error(dataset: str, problem: str) -> None:
    with pytest.raises(DatasetError, match=problem):
        parse_hub_id(dataset)


def test_reads_files_whole_and_in_parts(hub: HubServer, home: Path, folder: Path) -> None:
    commit = hub.add(_ID, folder, private_to=[TOKEN], tag="v1")
    ran = _run(
        hub,
        home,
        """
files = HubFiles.resolve("some-org/pictures")
out["commit"], out["shown"], out["sizes"] = files.commit, files.shown, dict(files.sizes())
with files.peek("data/train.parquet") as f:
    f.seek(-8, 2)
    out["tail"] = f.read().hex()
    f.seek(1000)
    out["middle"] = f.read(8).hex()
out["peeked"] = {path: sha256(files, path, "peek") for path in files.sizes()}
files.fetch(files.sizes())
out["read"] = {path: sha256(files, path) for path in files.sizes()}
out["cached"] = {path: sha256(files, path, "peek") for path in files.sizes()}
try:
    files.open("data/none.parquet")
except FileNotFoundError as error:
    out["none"] = str(error)
out["fingerprint"] = files.fingerprint(["data/train.parquet"])
out["by_tag"] = HubFiles.resolve("some-org/pictures", "v1").commit
out["by_commit"] = HubFiles.resolve("some-org/pictures", files.commit).commit
""",
        HF_TOKEN=TOKEN,
    )
    paths = {
        path.relative_to(folder).as_posix(): path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".gitattributes"
    }
    content = {path: _sha256(local) for path, local in paths.items()}
    assert ran.out["sizes"] == {path: local.stat().st_size for path, local in paths.items()}
    assert list(ran.out["sizes"]) == sorted(paths)
    assert ran.out["commit"] == ran.out["by_tag"] == ran.out["by_commit"] == commit
    assert ran.out["shown"] == f"{_ID}@{commit[:8]}"
    big = (folder / "data/train.parquet").read_bytes()
    assert ran.out["tail"] == big[-8:].hex()
    assert ran.out["middle"] == big[1000:1008].hex()
    assert ran.out["peeked"] == ran.out["read"] == ran.out["cached"] == content
    assert "data/none.parquet" in ran.out["none"]
    assert len(ran.out["fingerprint"]) == 64

    # A look at a file fetches parts of it; what is in the cache is not asked for again.
    got = hub.asked(rf"GET /{commit}/{_ID}/data/train.parquet")
    assert [request.range is None for request in got].count(True) <= 2
    assert got[0].range is not None
    assert len(hub.asked(rf"GET /{commit}/{_ID}/data/a b")) == 1
    # The token goes to the hub, and never to where its large files lie.
    assert all(request.token == TOKEN for request in hub.asked("/api/|/resolve/"))
    assert hub.asked(rf" /{commit}/")
    assert all(request.token is None for request in hub.asked(rf" /{commit}/"))


def test_503_three_times_at_every_turn(hub: HubServer, home: Path, folder: Path) -> None:
    commit = hub.add(_ID, folder)
    turns = {
        "info": "GET /api/datasets/some-org/pictures$",
        "tree": "GET /api/datasets/.*/tree/",
        "head": "HEAD .*train.parquet",
        "get": f"GET /{commit}/.*train.parquet",
    }
    for match in turns.values():
        hub.fail(match, 3, status=503, headers=NOW)
    ran = _run(
        hub,
        home,
        """
files = HubFiles.resolve("some-org/pictures")
out["sha256"] = sha256(files, "data/train.parquet")
""",
    )
    assert ran.out["sha256"] == _sha256(folder / "data/train.parquet")
    for turn, match in turns.items():
        statuses = [request.status for request in hub.asked(match)]
        assert statuses[:4] in ([503, 503, 503, 200], [503, 503, 503, 302]), turn
    assert "the hub answered 503; trying again in 0 s" in ran.log


def test_503_for_ever_is_an_error(hub: HubServer, home: Path, folder: Path) -> None:
    hub.add(_ID, folder)
    hub.fail("GET /api/datasets/some-org/pictures$", status=503, headers=NOW)
    ran = _run(hub, home, 'out["error"] = error(HubFiles.resolve, "some-org/pictures")')
    assert f"dataset {_ID!r} cannot be fetched: the hub answered 503" in ran.out["error"]


def test_a_cut_connection_goes_on_where_it_was_cut(
    hub: HubServer, home: Path, folder: Path
) -> None:
    # The library writes pieces of 10 MiB; what is on the disk is not fetched again.
    piece = 10 << 20
    write(folder, **{"data/train.parquet": 2 * piece + 12345})
    commit = hub.add(_ID, folder)
    hub.fail(f"GET /{commit}/.*train.parquet", 2, cut_after=piece + 1000)
    ran = _run(
        hub,
        home,
        """
files = HubFiles.resolve("some-org/pictures")
out["sha256"] = sha256(files, "data/train.parquet")
""",
    )
    assert ran.out["sha256"] == _sha256(folder / "data/train.parquet")
    got = hub.asked(f"GET /{commit}/.*train.parquet")
    assert [(request.range, request.status) for request in got] == [
        (None, 200),
        (f"bytes={piece}-", 206),
        (f"bytes={2 * piece}-", 206),
    ]


def test_429_waits_as_long_as_it_is_asked_to(hub: HubServer, home: Path, folder: Path) -> None:
    commit = hub.add(_ID, folder)
    turns = ["GET /api/datasets/some-org/pictures$", f"GET /{commit}/.*a b"]
    for match in turns:
        hub.fail(match, 1, status=429, headers={"Retry-After": "2"})
    start = time.monotonic()
    ran = _run(
        hub,
        home,
        """
files = HubFiles.resolve("some-org/pictures")
out["sha256"] = [sha256(files, path) for path in files.sizes() if "a b" in path]
""",
    )
    assert time.monotonic() - start > 4
    assert ran.out["sha256"] == [_sha256(path) for path in folder.glob("data/a b*")]
    for match in turns:
        assert [request.status for request in hub.asked(match)] == [429, 200]


def test_errors_say_what_it_is_and_what_to_do(hub: HubServer, home: Path, folder: Path) -> None:
    hub.add("org/private", folder, private_to=[TOKEN])
    hub.add("org/gated", folder, gated_to=[TOKEN])
    hub.add("org/taken-down", folder)
    hub.disable("org/taken-down")
    hub.add("org/there", folder, tag="v1")
    hub.add("org/there", folder, branch="other")
    hub.add("org/forbidden", folder)
    hub.fail("/api/datasets/org/forbidden", status=403)
    hub.add("org/holes", folder)
    hub.fail(
        "(HEAD|GET) .*/org/holes/.*train", status=404, headers={"X-Error-Code": "EntryNotFound"}
    )
    code = """
def read(dataset):
    repo_id, revision = parse_hub_id(dataset)
    files = HubFiles.resolve(repo_id, revision)
    files.fetch(files.sizes())

for dataset in ("org/none", "lambdalabs/pokemon-blip-captions", "org/private", "org/gated",
                "org/taken-down", "org/forbidden", "org/holes", "org/there@v2",
                "org/there@" + "0" * 40, "org/there@v1"):
    out[dataset] = error(read, dataset)
"""
    nobody = _run(hub, home, code).out
    assert nobody["org/there@v1"] is None
    for dataset in ("org/none", "org/private"):
        assert f"dataset {dataset!r} is not on the hub, or is private" in nobody[dataset]
        assert "set HF_TOKEN" in nobody[dataset]
    assert "lambdalabs/naruto-blip-captions" in nobody["lambdalabs/pokemon-blip-captions"]
    assert "diffusers/pokemon-gpt4-captions" in nobody["lambdalabs/pokemon-blip-captions"]
    assert "is gated: accept its terms on" in nobody["org/gated"]
    assert "/datasets/org/gated and set HF_TOKEN" in nobody["org/gated"]
    assert "has been disabled" in nobody["org/taken-down"]
    assert "may not be read without a token: set HF_TOKEN" in nobody["org/forbidden"]
    assert "'data/train.parquet' of dataset 'org/holes'" in nobody["org/holes"]
    assert "listed, but is not on the hub" in nobody["org/holes"]
    assert (
        "dataset 'org/there' has no revision 'v2': give one of 'main', 'other', 'v1', or a commit"
        in nobody["org/there@v2"]
    )
    assert "has no revision '0000000000" in nobody["org/there@" + "0" * 40]

    stranger = "hf_Stranger"
    hub.know(stranger)
    other = _run(hub, home, code, HF_TOKEN=stranger).out
    assert "private and the token in HF_TOKEN may not read it" in other["org/private"]
    assert "diffusers/pokemon-gpt4-captions" in other["lambdalabs/pokemon-blip-captions"]
    assert "with the account that the token in HF_TOKEN belongs to" in other["org/gated"]
    assert "give the token permission" in other["org/forbidden"]

    wrong = _run(hub, home, code, HF_TOKEN="hf_Wrong").out
    assert all("does not accept the token" in wrong[name] for name in ("org/private", "org/gated"))
    broken = _run(hub, home, code, HF_TOKEN="hf_é\x0bSecret")
    assert "characters that are not allowed in a token" in broken.out["org/private"]
    assert "Secret" not in json.dumps(broken.out) + broken.log

    owner = _run(hub, home, code, HF_TOKEN=TOKEN).out
    assert owner["org/private"] is owner["org/gated"] is None


def test_bytes_that_do_not_match_their_hash_never_stay(
    hub: HubServer, home: Path, folder: Path
) -> None:
    commit = hub.add(_ID, folder)
    true = (folder / "data/train.parquet").read_bytes()
    false = true[:-1] + bytes([true[-1] ^ 1])
    code = """
files = HubFiles.resolve("some-org/pictures")
out["error"] = error(files.open, "data/train.parquet")
out["fetch"] = error(files.fetch, files.sizes())
"""
    for name, fault in {
        "bytes": {"match": f"GET /{commit}/.*train", "body": false},
        "etag": {"match": "HEAD .*train", "etag": "0" * 64},
    }.items():
        hub.fail(**fault)
        ran = _run(hub, home / name, code)
        assert "data/train.parquet" in ran.out["error"], name
        assert "arrived damaged twice: its hash is" in ran.out["error"]
        assert "arrived damaged twice: its hash is" in ran.out["fetch"]
        kept = [path.name for path in (home / name / "hub").rglob("*")]
        assert hashlib.sha256(true).hexdigest() not in kept
        assert "0" * 64 not in kept
        assert "train.parquet" not in kept
        hub.mend()

    hub.fail(f"GET /{commit}/.*train", body=true[:-5])
    ran = _run(hub, home / "bytes", code.splitlines()[1] + "\n" + code.splitlines()[2])
    assert "data/train.parquet" in ran.out["error"]
    hub.mend()

    # Once is a mishap: the file is fetched anew. So is one that was damaged in the cache.
    hub.fail(f"GET /{commit}/.*train", 1, body=false)
    ran = _run(
        hub,
        home / "once",
        """
from pathlib import Path
import os
files = HubFiles.resolve("some-org/pictures")
out["sha256"] = [sha256(files, "data/train.parquet")]
with files.open("data/train.parquet") as f:
    local = Path(f.name).resolve()
content = local.read_bytes()
local.write_bytes(b"x" + content[1:])
out["sha256"].append(sha256(files, "data/train.parquet"))
""",
    )
    assert ran.out["sha256"] == [hashlib.sha256(true).hexdigest()] * 2
    assert "is damaged and is fetched again" in ran.log


def test_bytes_are_checked_without_symbolic_links_too(
    hub: HubServer, home: Path, folder: Path
) -> None:
    commit = hub.add(_ID, folder)
    true = (folder / "data/train.parquet").read_bytes()
    hub.fail(f"GET /{commit}/.*train", 1, body=b"x" + true[1:])
    ran = _run(
        hub,
        home,
        """
files = HubFiles.resolve("some-org/pictures")
out["sha256"] = sha256(files, "data/train.parquet")
""",
        HF_HUB_DISABLE_SYMLINKS="1",
    )
    assert ran.out["sha256"] == hashlib.sha256(true).hexdigest()
    assert not any(path.is_symlink() for path in (home / "hub").rglob("*"))


def test_offline_has_all_or_says_so(hub: HubServer, home: Path, folder: Path) -> None:
    hub.add(_ID, folder)
    code = """
files = HubFiles.resolve("some-org/pictures")
out["commit"], out["sizes"] = files.commit, dict(files.sizes())
out["fingerprint"] = files.fingerprint(files.sizes())
"""
    every = """
out["sha256"] = {path: sha256(files, path) for path in files.sizes()}
out["peeked"] = {path: sha256(files, path, "peek") for path in files.sizes()}
"""
    one = 'out["one"] = sha256(files, "data/train.parquet")\n'
    failing = """
path = next(path for path in files.sizes() if "a b" in path)
out["open"], out["peek"] = error(files.open, path), error(files.peek, path)
out["fetch"] = error(files.fetch, files.sizes())
"""
    whole = _run(hub, home / "whole", code + every).out
    part = _run(hub, home / "part", code + one).out
    hub.stop()
    assert _run(hub, home / "whole", code + every, HF_HUB_OFFLINE="1").out == whole
    offline = _run(hub, home / "part", code + one + failing, HF_HUB_OFFLINE="1").out
    assert {name: offline[name] for name in part} == part
    for way in ("open", "peek", "fetch"):
        assert "a b" in offline[way] or "empty.txt" in offline[way] or "deep" in offline[way]
        assert "is not in the hub's cache" in offline[way]
        assert "HF_HUB_OFFLINE" in offline[way]
    none = _run(
        hub,
        home / "none",
        """
out["resolve"] = error(HubFiles.resolve, "some-org/pictures")
out["sizes"] = error(HubFiles("some-org/pictures", "0" * 40).sizes)
""",
        HF_HUB_OFFLINE="1",
    ).out
    assert all("HF_HUB_OFFLINE forbids fetching it" in message for message in none.values())


def test_a_moved_branch_is_another_dataset(
    hub: HubServer, home: Path, folder: Path, tmp_path: Path
) -> None:
    code = """
files = HubFiles.resolve("some-org/pictures")
out["commit"], out["fingerprint"] = files.commit, files.fingerprint(())
"""
    first = hub.add(_ID, folder)
    before = _run(hub, home, code).out
    second = hub.add(_ID, write(tmp_path / "more", **{"data/train.parquet": 1000}))
    # A hub that stumbles does not bring back the old commit.
    hub.fail("GET /api/datasets/some-org/pictures$", 2, status=500, headers=NOW)
    after = _run(hub, home, code).out
    assert (before["commit"], after["commit"]) == (first, second)
    assert before["fingerprint"] != after["fingerprint"]
    hub.stop()
    impatient = """
import storage.hub
storage.hub._WAITS_S = (0.01,)
out["error"] = error(HubFiles.resolve, "some-org/pictures")
"""
    gone = _run(hub, home, impatient).out
    assert f"the hub at {hub.url} cannot be reached (ConnectError" in gone["error"]
    assert "HF_HUB_OFFLINE=1" in gone["error"]
    assert _run(hub, home, code, HF_HUB_OFFLINE="1").out == after
