"""Releases are what was pushed, and signed by whom it says, or it is told what is not."""

import base64
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from signing_keys import key_pair
from small_sources import FILES, write_source

from serving import publish, pull, seals
from serving.errors import ServingError
from serving.generate import main as generate
from serving.releases import __main__ as releases_command
from serving.serving_directory import ServingDirectory
from storage.model_signatures import SignatureError, SigningKey, verified

PRIVATE, PUBLIC = key_pair()
CHANGED = f"decoder/1/{FILES[2]}"
MISSING = f"text_encoder/1/{FILES[1]}"
ADDED = "diffusion_model/1/assets/extra.txt"


def push(root: Path, source: str, model: object = 1, key: bytes | None = PRIVATE) -> int:
    signing = None if key is None else SigningKey(key)
    facts = {"model": {"id": model}}
    directory = ServingDirectory(str(root))
    return directory.publish(source, facts, lambda _: None, key=signing)["version"]


@pytest.fixture
def public(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv(seals.KEY_ENV, raising=False)
    path = tmp_path / "release.pub"
    path.write_bytes(PUBLIC)
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A signed release."""
    root = tmp_path / "serving_model"
    push(root, write_source(tmp_path / "m", "model 1"))
    return root


def harm(root: Path) -> None:
    """A byte that is another, a file that is gone, and one that nobody pushed."""
    contents = bytearray((root / CHANGED).read_bytes())
    contents[3] ^= 1
    (root / CHANGED).write_bytes(contents)
    (root / MISSING).unlink()
    (root / ADDED).parent.mkdir(parents=True)
    (root / ADDED).write_text("not pushed")


def verify(root: Path, *flags: object) -> int:
    return releases_command.main(["verify", "--serving-dir", str(root), *map(str, flags)])


def of_openssf(root: Path, signature: Path, public: Path, *flags: str) -> tuple[int, str]:
    """What the library's own command line says."""
    command = [sys.executable, "-m", "model_signing", "verify", "key", str(root)]
    keys = ["--signature", str(signature), "--public_key", str(public), *flags]
    ran = subprocess.run([*command, *keys], capture_output=True, text=True, check=False)
    return ran.returncode, ran.stdout + ran.stderr


def test_a_signed_release_is_what_was_pushed(root: Path, public: Path, capsys) -> None:
    assert verify(root, "--verify-key", public) == 0
    identity = SigningKey(PRIVATE).identity
    assert identity == seals.signer_of(str(root), 1)
    expected = f"release 1 is as it was pushed, signed by the key {identity[:12]}\n"
    assert capsys.readouterr().out == expected
    # Servers look for numbered folders in those of the models, and for nothing in this one.
    assert sorted(path.name for path in (root / "releases").iterdir()) == [
        *("1.json", "1.published.sig", "1.sig", "last_version")
    ]


def test_a_changed_a_missing_and_an_added_file_are_named(root: Path, public: Path, capsys) -> None:
    harm(root)
    assert verify(root, "--verify-key", public) == 1
    told = f"changed: {CHANGED}\nadded: {ADDED}\nmissing: {MISSING}\nrelease 1 is damaged\n"
    assert capsys.readouterr().out == told
    out = ["--out", str(root / "x.png"), "--serving-dir", str(root)]
    assert generate(["a cat", *out, "--verify-key", str(public)]) == 2
    told = f"not what was pushed: changed: {CHANGED}; added: {ADDED}; missing: {MISSING}; choose"
    assert told in capsys.readouterr().err
    with pytest.raises(ServingError, match=r"release 1 is damaged: changed: decoder/1/.*; missing"):
        publish.publish(str(root), str(root.parent / "published"), prompts=[])


def test_openssf_verifies_it_where_it_is_served(root: Path, public: Path) -> None:
    signature = root / "releases" / "1.sig"
    unsigned = "--ignore_unsigned_files"
    status, told = of_openssf(root, signature, public, unsigned)
    assert (status, told) == (0, "Verification succeeded\n")
    (root / CHANGED).write_bytes(b"other")
    status, told = of_openssf(root, signature, public, unsigned)
    assert status == 1
    assert "Hash mismatch" in told
    assert CHANGED in told


def test_openssf_verifies_what_is_published(root: Path, public: Path, tmp_path: Path) -> None:
    published = Path(publish.publish(str(root), str(tmp_path / "p"), prompts=[]))
    assert "signed, by OpenSSF" in (published / "README.md").read_text()
    kept = ["README.md", "release.json", "model.sig"]
    ignored = [flag for name in kept for flag in ("--ignore-paths", str(published / name))]
    status, told = of_openssf(published, published / "model.sig", public, *ignored)
    assert (status, told) == (0, "Verification succeeded\n")
    (published / "decoder" / "extra").write_text("added")
    status, told = of_openssf(published, published / "model.sig", public, *ignored)
    assert status == 1
    assert "Extra files found" in told
    assert "decoder/extra" in told


def test_whoever_mends_the_manifest_has_no_key(root: Path, public: Path, capsys) -> None:
    harm(root)
    path = root / "releases" / "1.json"
    facts = json.loads(path.read_text())
    facts["files"] = seals.digests(str(root), 1)
    path.write_text(json.dumps(facts))
    assert verify(root, "--verify-key", public) == 1
    out = capsys.readouterr().out
    assert f"changed: {CHANGED}\n" in out
    assert f"missing: {MISSING}\n" in out
    assert f"added: {ADDED}\n" in out
    # And another key signs it anew.
    theirs, _ = key_pair()
    for name, bundle in seals.signed_as(SigningKey(theirs), 1, facts["files"]).items():
        (root / "releases" / name).write_bytes(bundle)
    assert verify(root, "--verify-key", public) == 2
    assert "cannot be trusted: it is from the key" in capsys.readouterr().err


def test_the_signature_itself_is_verified(root: Path, public: Path, capsys) -> None:
    path = root / "releases" / "1.published.sig"
    bundle = json.loads(path.read_text())
    payload = base64.b64decode(bundle["dsseEnvelope"]["payload"])
    bundle["dsseEnvelope"]["payload"] = base64.b64encode(
        payload.replace(b"release-1", b"release-2")
    ).decode()
    path.write_text(json.dumps(bundle))
    assert verify(root, "--verify-key", public) == 2
    assert "it is not valid: its content was changed" in capsys.readouterr().err
    for content in (b"", b"[]", b'{"dsseEnvelope": {"payload": "e30="}}'):
        path.write_bytes(content)
        assert verify(root, "--verify-key", public) == 2
        assert "it is not a model signature" in capsys.readouterr().err


def test_a_signature_is_verified_where_there_is_one(
    root: Path, public: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys
) -> None:
    """What is asked for by flags, and what the environment has."""
    check, [release] = seals.check, [releases_command.find_release(str(root), 1)]
    with pytest.raises(ServingError, match=r"is signed by the key .* no public key .*--no-verify"):
        check(release, seals.Verification())
    check(release, seals.Verification(wanted=False))
    monkeypatch.setenv(seals.KEY_ENV, PUBLIC.decode())
    assert verify(root) == 0
    # A release without a signature is fine, unless one is asked for.
    plain = tmp_path / "plain"
    push(plain, str(tmp_path / "m"), key=None)
    assert verify(plain) == 0
    assert capsys.readouterr().out.endswith("release 1 is as it was pushed, not signed\n")
    assert verify(plain, "--verify-key-env", seals.KEY_ENV) == 2
    assert "release 1 is not signed" in capsys.readouterr().err
    out = ["--out", str(tmp_path / "x.png"), "--serving-dir", str(plain)]
    assert generate(["a cat", *out, "--verify"]) == 2
    assert "release 1 is not signed" in capsys.readouterr().err
    for flags, told in (
        (["--no-verify", "--verify-key", str(public)], "give only one of them"),
        (["--verify-key-env", "NOT_THERE"], "NOT_THERE, which is empty or not set"),
        (["--verify-key", "/nowhere"], "/nowhere cannot be read"),
        (["--verify", "--server", "http://localhost:1"], "verified where it runs"),
    ):
        where = out if "--server" not in flags else out[:2]
        assert generate(["a cat", *where, *flags]) == 2
        assert told in capsys.readouterr().err


def test_pulling_verifies(root: Path, public: Path, tmp_path: Path, capsys) -> None:
    published = publish.publish(str(root), str(tmp_path / "p"), prompts=[])
    into, key = str(tmp_path / "into"), seals.Verification(public_key=PUBLIC)
    with pytest.raises(ServingError, match="but there is no public key"):
        pull.pull(published, into)
    # Its number is taken there.
    push(Path(into), write_source(tmp_path / "other", "other"), key=None)
    assert pull.pull(published, into, key)["version"] == 2
    assert verify(Path(into), 2, "--verify-key", public) == 0
    (Path(into) / "decoder" / "2" / FILES[0]).write_text("changed")
    assert verify(Path(into), 2, "--verify-key", public) == 1
    assert f"changed: decoder/2/{FILES[0]}\n" in capsys.readouterr().out

    def pulled(harmed: Path) -> str:
        with pytest.raises(ServingError) as error:
            pull.pull(str(harmed), str(tmp_path / "never"), key)
        assert not (tmp_path / "never").exists()
        return str(error.value)

    def copy(name: str) -> Path:
        return Path(shutil.copytree(published, tmp_path / name))

    changed = copy("changed")
    (changed / "decoder" / FILES[0]).write_text("changed")
    assert f"decoder/{FILES[0]} is damaged" in pulled(changed)
    missing = copy("missing")
    (missing / "decoder" / FILES[0]).unlink()
    assert f"decoder/{FILES[0]} is missing" in pulled(missing)
    added = copy("added")
    (added / "decoder" / "extra").write_text("added")
    assert "decoder/extra was added" in pulled(added)
    mended = copy("mended")
    (mended / "decoder" / FILES[0]).write_text("changed")
    facts = json.loads((mended / "release.json").read_text())
    facts["files"][f"decoder/1/{FILES[0]}"] = "0" * 64
    (mended / "release.json").write_text(json.dumps(facts))
    assert f"not what was signed: changed: decoder/{FILES[0]}" in pulled(mended)
    renamed = copy("renamed")
    facts = {**facts, "version": 7}
    (renamed / "release.json").write_text(json.dumps(facts))
    assert "is of version 7, but its signature is of release-1" in pulled(renamed)
    stripped = copy("stripped")
    (stripped / "model.sig").unlink()
    assert pull.main([str(stripped), "--serving-dir", into, "--verify-key", str(public)]) == 2
    assert "is not signed" in capsys.readouterr().err


def test_a_release_is_signed_once_there_is_a_key(root: Path, tmp_path: Path) -> None:
    source = write_source(tmp_path / "m", "model 1")
    before = seals.read_signatures(str(root), 1)
    assert push(root, source) == 1
    assert seals.read_signatures(str(root), 1) == before
    other, public = key_pair(ec.SECP384R1())
    assert push(root, source, key=other) == 1
    signed = verified(seals.read_signatures(str(root), 1)["1.sig"], public)
    assert signed.name == "release-1"
    assert signed.files == seals.digests(str(root), 1)
    # Signatures go with their release.
    for number in (2, 3):
        push(root, write_source(tmp_path / f"m{number}", f"model {number}"), number)
    ServingDirectory(str(root)).prune(1)
    names = {path.name for path in (root / "releases").iterdir()}
    assert names == {"last_version", *(f"{v}{s}" for v in (2, 3) for s in (".json", ".sig"))} | {
        "2.published.sig", "3.published.sig"
    }  # fmt: skip


def test_what_servers_load_is_verified_together(root: Path, tmp_path: Path, capsys) -> None:
    push(root, write_source(tmp_path / "m2", "model 2"), 2, key=None)
    push(root, write_source(tmp_path / "m3", "model 3"), 3, key=None)
    harm(root)
    assert verify(root, "--loaded") == 0
    assert [line.split()[1] for line in capsys.readouterr().out.splitlines()] == ["2", "3"]
    (root / "decoder" / "2" / FILES[0]).write_text("changed")
    assert verify(root, "--loaded") == 1
    assert verify(root, 1, "--loaded") == 2


def test_keys_that_cannot_sign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SignatureError, match="not in PEM format"):
        SigningKey(b"secret")
    with pytest.raises(SignatureError, match="it must be ECDSA with 256, 384"):
        SigningKey(key_pair(ec.SECP256K1())[0])
    assert "PRIVATE" not in repr(SigningKey(PRIVATE))
    monkeypatch.setenv("SIGNING_KEY", PRIVATE.decode())
    found = seals.signing_key(None, "SIGNING_KEY")
    assert found is not None
    assert found.key == PRIVATE
    path = tmp_path / "key.pem"
    path.write_bytes(PUBLIC)
    for given, told in (
        ((None, "NOT_THERE"), "serving.sign_key_env names the environment variable NOT_THERE"),
        (("/nowhere", None), "serving.sign_key is /nowhere, which cannot be read"),
        ((str(path), None), f"serving.sign_key is {path}, which cannot sign releases"),
    ):
        with pytest.raises(ServingError, match=told):
            seals.signing_key(*given)
