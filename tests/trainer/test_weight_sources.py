"""Base weights from the hub, read for real from a hub on this machine that fails in every way."""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hub_server import NOW, TOKEN, HubServer, Ran, write
from safetensors.numpy import save_file

_DATA = Path(__file__).resolve().parents[1] / "data"
_ID = "some-org/weights"
# The library writes pieces of 10 MiB; what is on the disk is not fetched again.
_PIECE = 10 << 20
_SIZES = {"a.h5": 2 * _PIECE + 12345, "b.h5": 3000, "c.h5": 4000, "d.h5": 5000}
# `prepare` looks at names and hashes alone, so that the files need not be a network's.
_PRELUDE = """
import dataclasses, hashlib, logging, sys
from pathlib import Path
logging.basicConfig(level=logging.DEBUG)
from trainer.presets import NETWORKS, WeightFile, get_preset
from trainer.weights.base_model import BaseModel
from storage.folders import FolderError

hashes = {hashes}
preset = dataclasses.replace(
    get_preset("sd-v1-4"),
    weight_files={{
        network: WeightFile(name, sha256)
        for network, (name, sha256) in zip(NETWORKS, hashes.items())
    }},
)

def located(source):
    return BaseModel.locate(preset, preset.image_size, source)

def error(source):
    try:
        located(source).prepare()
    except FolderError as error:
        return str(error)

def found(source):
    folder = located(source).folder
    every = {{}}
    for name in hashes:
        with folder.local(name) as path:
            every[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return every
"""


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def hub() -> Iterator[HubServer]:
    with HubServer(page_size=2) as server:
        yield server


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("model"), **_SIZES, **{"README.md": 30})


@pytest.fixture(scope="module")
def hashes(folder: Path) -> dict[str, str]:
    return {name: _sha256(folder / name) for name in _SIZES}


def _run(hub: HubServer, home: Path, hashes: dict[str, str], code: str, **env: str) -> Ran:
    return hub.run(home, _PRELUDE.format(hashes=hashes) + code, **env)


def test_all_is_fetched_once_and_stays_at_its_commit(
    hub: HubServer, home: Path, folder: Path, hashes: dict[str, str], tmp_path: Path
) -> None:
    first = hub.add(_ID, folder, kind="models", private_to=[TOKEN], tag="v1")
    code = """
out["pinned"] = located("hf://some-org/weights").prepare()
out["found"] = found(out["pinned"])
out["tag"] = located("hf://some-org/weights@v1").prepare()
out["hash"] = located(out["pinned"]).hash()
out["no_tensorflow"] = "tensorflow" not in sys.modules
"""
    ran = _run(hub, home, hashes, code, HF_TOKEN=TOKEN)
    assert ran.out["pinned"] == ran.out["tag"] == f"hf://{_ID}@{first}"
    assert ran.out["found"] == hashes
    assert ran.out["hash"] == hashlib.sha256("\n".join(hashes.values()).encode()).hexdigest()
    assert ran.out["no_tensorflow"]
    for name in hashes:
        assert len(hub.asked(f"GET /{first}/{_ID}/{name}")) == 1
    # The token goes to the hub, and never to where its large files lie.
    assert all(request.token == TOKEN for request in hub.asked("/api/|/resolve/"))
    assert all(request.token is None for request in hub.asked(f" /{first}/"))

    # The branch moves; what was pinned stays, and needs no hub.
    moved = shutil.copytree(folder, tmp_path / "moved")
    (moved / "b.h5").write_bytes(b"other")
    second = hub.add(_ID, moved, kind="models")
    before = len(hub.requests)
    again = _run(hub, home, hashes, f'out["found"] = found("hf://{_ID}@{first}")\n')
    assert again.out["found"] == hashes
    assert len(hub.requests) == before
    after = _run(hub, home, hashes, f'out["error"] = error("hf://{_ID}")\n').out
    assert f"hf://{_ID}@{second}/b.h5 is corrupt or a different file" in after["error"]
    assert hashes["b.h5"] in after["error"]


def test_for_another_machine_nothing_is_fetched(
    hub: HubServer, home: Path, folder: Path, hashes: dict[str, str]
) -> None:
    commit = hub.add(_ID, folder, kind="models")
    code = f"""
out["pinned"] = located("hf://{_ID}").prepare(fetch=False)
out["hash"] = located(out["pinned"]).hash()
"""
    ran = _run(hub, home, hashes, code)
    assert ran.out["pinned"] == f"hf://{_ID}@{commit}"
    assert ran.out["hash"] == hashlib.sha256("\n".join(hashes.values()).encode()).hexdigest()
    assert not [name for name in hashes if hub.asked(f"GET /{commit}/{_ID}/{name}")]


def test_what_may_pass_is_tried_again(
    hub: HubServer, home: Path, folder: Path, hashes: dict[str, str]
) -> None:
    commit = hub.add(_ID, folder, kind="models")
    info, big = f"GET /api/models/{_ID}$", f"GET /{commit}/.*a.h5"
    turns = {
        "tree": f"GET /api/models/{_ID}/tree/",
        "head": "HEAD .*b.h5",
        "get": f"GET /{commit}/.*b.h5",
    }
    for match in (info, *turns.values()):
        hub.fail(match, 3, status=503, headers=NOW)
    hub.fail(f"GET /{commit}/.*c.h5", 1, status=429, headers={"Retry-After": "2"})
    hub.fail(big, 2, cut_after=_PIECE + 1000)
    start = time.monotonic()
    ran = _run(hub, home, hashes, f'out["found"] = found(located("hf://{_ID}").prepare())\n')
    assert ran.out["found"] == hashes
    assert time.monotonic() - start > 2
    for turn, match in turns.items():
        statuses = [request.status for request in hub.asked(match)]
        assert statuses[:4] in ([503, 503, 503, 200], [503, 503, 503, 302]), turn
    assert [request.status for request in hub.asked(info)][:4] == [503, 503, 503, 200]
    assert [request.status for request in hub.asked(f"GET /{commit}/.*c.h5")] == [429, 200]
    # A cut connection goes on where it was cut.
    assert [(request.range, request.status) for request in hub.asked(big)] == [
        (None, 200),
        (f"bytes={_PIECE}-", 206),
        (f"bytes={2 * _PIECE}-", 206),
    ]


def test_errors_say_what_it_is_and_what_to_do(
    hub: HubServer, home: Path, folder: Path, hashes: dict[str, str], tmp_path: Path
) -> None:
    hub.add("org/private", folder, kind="models", private_to=[TOKEN])
    hub.add("org/gated", folder, kind="models", gated_to=[TOKEN])
    hub.add("org/there", folder, kind="models", tag="v1")
    less = write(tmp_path / "less", **{"b.h5": 10, "README.md": 30})
    incomplete = hub.add("org/less", less, kind="models")
    hub.add("org/down", folder, kind="models")
    hub.fail("/api/models/org/down", status=503, headers=NOW)
    code = """
for name in ("org/none", "org/private", "org/gated", "org/there@v2", "org/there@" + "0" * 40,
             "org/less", "org/down", "org"):
    out[name] = error(f"hf://{name}")
"""
    nobody = _run(hub, home, hashes, code).out
    for name in ("org/none", "org/private"):
        assert f"model {name!r} is not on the hub, or is private" in nobody[name]
        assert "set HF_TOKEN" in nobody[name]
    assert (
        f"is gated: accept its terms on {hub.url}/org/gated and set HF_TOKEN" in nobody["org/gated"]
    )
    assert (
        "model 'org/there' has no revision 'v2': give one of 'main', 'v1'" in nobody["org/there@v2"]
    )
    assert "has no revision '0000000000" in nobody["org/there@" + "0" * 40]
    assert "model 'org/down' cannot be fetched: the hub answered 503" in nobody["org/down"]
    assert "'hf://org' is not the address of a model on the hub" in nobody["org"]
    assert f"there is no hf://org/less@{incomplete}/a.h5" in nobody["org/less"]

    hub.know("hf_Stranger")
    other = _run(hub, home, hashes, code, HF_TOKEN="hf_Stranger").out
    assert "private and the token in HF_TOKEN may not read it" in other["org/private"]
    assert "with the account that the token in HF_TOKEN belongs to" in other["org/gated"]
    wrong = _run(hub, home, hashes, code, HF_TOKEN="hf_Wrong").out
    assert "does not accept the token in HF_TOKEN" in wrong["org/private"]
    owner = _run(hub, home, hashes, code, HF_TOKEN=TOKEN).out
    assert owner["org/private"] is owner["org/gated"] is None


def test_bytes_that_do_not_match_their_hash_never_stay(
    hub: HubServer, home: Path, folder: Path, hashes: dict[str, str]
) -> None:
    commit = hub.add(_ID, folder, kind="models")
    true = (folder / "b.h5").read_bytes()
    code = f'out["error"] = error("hf://{_ID}")\n'
    hub.fail(f"GET /{commit}/.*b.h5", body=true[:-1] + bytes([true[-1] ^ 1]))
    ran = _run(hub, home, hashes, code)
    assert "b.h5 of model 'some-org/weights@" in ran.out["error"]
    assert "arrived damaged twice: its hash is" in ran.out["error"]
    kept = [path.name for path in (home / "hub").rglob("*")]
    assert hashes["b.h5"] not in kept
    assert "b.h5" not in kept
    hub.mend()

    # Once is a mishap; so is a file that was damaged in the cache.
    hub.fail(f"GET /{commit}/.*b.h5", 1, body=b"x" + true[1:])
    damage = """
local = located("hf://some-org/weights").folder.local("b.h5").__enter__().resolve()
local.write_bytes(b"x" + local.read_bytes()[1:])
"""
    ran = _run(hub, home, hashes, code + damage)
    assert ran.out["error"] is None
    assert "is damaged and is fetched again" in ran.log
    offline = _run(hub, home, hashes, code, HF_HUB_OFFLINE="1").out["error"]
    assert "is damaged in the hub's cache: its hash is" in offline
    assert "HF_HUB_OFFLINE forbids fetching it again" in offline
    assert _run(hub, home, hashes, code).out["error"] is None


def test_offline_has_what_is_in_the_cache(
    hub: HubServer, home: Path, folder: Path, hashes: dict[str, str]
) -> None:
    commit = hub.add(_ID, folder, kind="models")
    whole = f"""
out["pinned"] = located("hf://{_ID}").prepare()
out["found"] = found(out["pinned"])
"""
    part = f"""
with located("hf://{_ID}").folder.local("b.h5") as path:
    out["b"] = hashlib.sha256(path.read_bytes()).hexdigest()
"""
    failing = f'out["error"] = error("hf://{_ID}")\n'
    first = _run(hub, home / "whole", hashes, whole).out
    _run(hub, home / "part", hashes, part)
    hub.stop()
    assert _run(hub, home / "whole", hashes, whole, HF_HUB_OFFLINE="1").out == first
    offline = _run(hub, home / "part", hashes, part + failing, HF_HUB_OFFLINE="1").out
    assert offline["b"] == hashes["b.h5"]
    assert f"'a.h5' of model {_ID!r} at revision {commit!r}" in offline["error"]
    assert "is not in the hub's cache" in offline["error"]
    none = _run(hub, home / "none", hashes, failing, HF_HUB_OFFLINE="1").out["error"]
    assert "HF_HUB_OFFLINE forbids fetching it" in none


def test_offline_takes_a_cache_that_another_program_filled(
    hub: HubServer, home: Path, folder: Path, hashes: dict[str, str]
) -> None:
    hub.add(_ID, folder, kind="models")
    other = """
from huggingface_hub import hf_hub_download
for name in hashes:
    hf_hub_download("some-org/weights", name)
"""
    _run(hub, home, hashes, other)
    hub.stop()
    code = f'out["found"] = found(located("hf://{_ID}").prepare())\n'
    assert _run(hub, home, hashes, code, HF_HUB_OFFLINE="1").out["found"] == hashes


def test_a_single_file_is_of_its_commit(hub: HubServer, home: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    (model / "sd").mkdir(parents=True)
    conv_in = {"model.diffusion_model.input_blocks.0.0.weight": np.zeros((8, 4, 3, 3), np.float32)}
    save_file(conv_in, model / "sd" / "v1.safetensors")
    # What the file lacks is of the preset's default.
    default = tmp_path / "base_weights" / "tiny"
    shutil.copytree(_DATA / "diffusers_tiny", default)
    commit = hub.add(_ID, model, kind="models")
    code = f"""
from trainer.weights import base_model
base_model._SHIPPED = Path({str(default.parent)!r})
from diffusers_preset import PRESET as preset
out["source"] = located("hf://{_ID}/sd/v1.safetensors").prepare()
found = located(out["source"])
out["networks"] = found.checkpoint.networks
out["hashes"] = [found.hash([network]) for network in NETWORKS]
out["default"] = [located({str(default)!r}).hash([network]) for network in NETWORKS]
out["missing"] = error("hf://{_ID}/sd/v2.safetensors")
out["no_tensorflow"] = "tensorflow" not in sys.modules
"""
    ran = _run(hub, home, dict.fromkeys(_SIZES, ""), code).out
    assert ran["source"] == f"hf://{_ID}@{commit}/sd/v1.safetensors"
    assert ran["networks"] == ["diffusion_model"]
    assert [a == b for a, b in zip(ran["hashes"], ran["default"], strict=True)] == [
        True,
        True,
        False,
        True,
    ]
    assert f"there is no hf://{_ID}@{commit}/sd/v2.safetensors" in ran["missing"]
    assert ran["no_tensorflow"]


@pytest.mark.parametrize("layout", ["keras_2", "diffusers_tiny/", "diffusers_tiny"])
def test_both_layouts_are_told_by_their_files(
    layout: str, hub: HubServer, home: Path, tmp_path: Path
) -> None:
    """In a folder of the repository, too."""
    model = tmp_path / "model"
    inside = model / "sd" if layout.endswith("/") else model
    shutil.copytree(_DATA / layout.rstrip("/"), inside)
    (model / "README.md").write_text("Weights\n")
    commit = hub.add(_ID, model, kind="models")
    names = [f"{n}.h5" for n in ("text_encoder", "image_encoder", "diffusion_model", "decoder")]
    hashes = {name: _sha256(inside / name) if layout == "keras_2" else "" for name in names}
    address = f"hf://{_ID}" + ("/sd" if layout.endswith("/") else "")
    code = f"""
if {layout != "keras_2"}:
    from diffusers_preset import PRESET as preset
out["source"] = located("{address}").prepare()
out["numerics"] = located(out["source"]).preset.numerics
"""
    ran = _run(hub, home, hashes, code).out
    assert ran["source"] == address.replace(_ID, f"{_ID}@{commit}")
    assert ran["numerics"] == ("keras_cv" if layout == "keras_2" else "diffusers")
