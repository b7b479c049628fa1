"""Signed pictures, read by the library's own reader."""

from __future__ import annotations

import datetime
import io
import json
from pathlib import Path

import c2pa
import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from small_marks import small_marks

from serving import generate, marking
from serving.errors import ServingError
from storage import content_credentials, picture_marks
from storage.content_credentials import CredentialsError, Signer

PIXELS = np.random.default_rng(0).integers(0, 256, (16, 24, 3)).astype(np.uint8)
MARKS = small_marks(height=16, width=24)
KEYS = {
    "ecdsa": lambda: ec.generate_private_key(ec.SECP256R1()),
    "rsa": lambda: rsa.generate_private_key(65537, 2048),
    "ed25519": ed25519.Ed25519PrivateKey.generate,
}


def made(kind: str = "ecdsa", usage: x509.ObjectIdentifier | None = None) -> tuple[bytes, bytes]:
    """A chain of certificates for signing, and its key."""
    authority, key = KEYS["ecdsa"](), KEYS[kind]()
    names = [x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]) for name in ("root", "Ada")]
    start = datetime.datetime(2026, 1, 1)
    chain = []
    for name, public, is_authority in (
        (names[1], key.public_key(), False),
        (names[0], authority.public_key(), True),
    ):
        builder = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(names[0])
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(start)
            .not_valid_after(start + datetime.timedelta(days=36500))
            .add_extension(x509.BasicConstraints(is_authority, None), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.public_key()),
                critical=False,
            )
            .add_extension(
                x509.KeyUsage(
                    digital_signature=not is_authority,
                    content_commitment=False,
                    key_encipherment=False,
                    data_encipherment=False,
                    key_agreement=False,
                    key_cert_sign=is_authority,
                    crl_sign=is_authority,
                    encipher_only=False,
                    decipher_only=False,
                ),
                critical=True,
            )
        )
        if not is_authority:
            usages = [usage or ExtendedKeyUsageOID.EMAIL_PROTECTION]
            builder = builder.add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        chain.append(builder.sign(authority, hashes.SHA256()))
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    return b"".join(c.public_bytes(serialization.Encoding.PEM) for c in chain), private


@pytest.mark.parametrize("kind", KEYS)
def test_a_signed_picture_says_the_same(kind: str) -> None:
    signed = marking.Marking(signer=Signer(*made(kind))).encode(PIXELS, [MARKS])
    with c2pa.Reader("image/png", io.BytesIO(signed)) as reader:
        found = json.loads(reader.json())
    assertions = {
        one["label"]: one["data"]
        for one in found["manifests"][found["active_manifest"]]["assertions"]
    }
    [action] = assertions["c2pa.actions.v2"]["actions"]
    assert action["action"] == "c2pa.created"
    assert action["digitalSourceType"].endswith("/trainedAlgorithmicMedia")
    [request] = assertions["org.sd-finetuning-tfx.request"]["pictures"]
    assert (request["prompt"], request["seed"], request["release"]) == ("a cat", 7, 1)
    credentials = content_credentials.read(signed)
    assert (credentials.valid, credentials.faults) == (True, ())
    assert credentials.signer.startswith("Ada")
    # All else is as without a signature.
    found = picture_marks.read(signed)
    assert (found.pictures, found.is_as_marked, found.agrees) == ((MARKS,), True, True)


def test_a_change_is_noticed() -> None:
    signed = bytearray(marking.Marking(signer=Signer(*made())).encode(PIXELS, [MARKS]))
    assert content_credentials.has_manifest(bytes(signed))
    signed[signed.index(b"IDAT") + 100] ^= 1
    found = content_credentials.read(bytes(signed))
    assert (found.valid, found.faults) == (False, ("assertion.dataHash.mismatch",))
    plain = picture_marks.encode(PIXELS, [MARKS])
    assert not content_credentials.has_manifest(plain)
    with pytest.raises(CredentialsError, match="cannot be read"):
        content_credentials.read(plain)


def test_what_is_not_told_is_not_signed_either() -> None:
    signed = marking.Marking(prompt=False, signer=Signer(*made())).encode(PIXELS, [MARKS])
    assert b"a cat" not in signed


def test_a_key_that_does_not_fit_is_told_and_not_shown() -> None:
    (chain, key), (_, other) = made(), made()
    for certificate, private, said in (
        (b"none", key, "the certificate is not in PEM"),
        (chain, b"none", "the key is not in PEM"),
        (chain, other, "the key does not belong to the first certificate"),
    ):
        with pytest.raises(CredentialsError, match=said) as error:
            Signer(certificate, private)
        assert "BEGIN" not in str(error.value)
    assert "PRIVATE" not in repr(Signer(chain, key))
    # One for web servers.
    signer = Signer(*made(usage=ExtendedKeyUsageOID.SERVER_AUTH))
    with pytest.raises(ServingError, match="cannot be signed with this certificate"):
        marking.Marking(signer=signer).encode(PIXELS, [MARKS])


def test_the_command_line_refuses_half_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    chain, key = made()
    (tmp_path / "chain.pem").write_bytes(chain)
    monkeypatch.setenv("MY_KEY", key.decode())
    monkeypatch.delenv("NO_KEY", raising=False)
    certificate = ["--c2pa-certificate", f"{tmp_path}/chain.pem"]
    for flags, said in (
        (certificate, "belong together"),
        (["--c2pa-key-env", "MY_KEY"], "belong together"),
        (
            [*certificate, "--c2pa-key-env", "NO_KEY"],
            "names the environment variable NO_KEY, which is empty or not set",
        ),
        (["--c2pa-certificate", "none.pem", "--c2pa-key-env", "MY_KEY"], "none.pem cannot be read"),
        ([*certificate, "--c2pa-key-env", "MY_KEY", "--no-metadata"], "leaves nothing to sign"),
    ):
        assert generate.main(["a cat", "--out", f"{tmp_path}/x.png", *flags]) == 2
        printed = capsys.readouterr()
        assert said in printed.err
        assert "PRIVATE" not in printed.err + printed.out


def test_pictures_are_signed_as_their_release_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    certificate, key = made()
    chain = tmp_path / "chain.pem"
    chain.write_bytes(certificate)
    facts = {"c2pa": marking.signed_with(str(chain), "PICTURE_KEY")}
    monkeypatch.delenv("PICTURE_KEY", raising=False)
    assert marking.signer_of({}) is None
    assert capsys.readouterr().err == ""
    assert marking.signer_of(facts) is None
    assert "note: pictures are not signed: the release asks for" in capsys.readouterr().err
    monkeypatch.setenv("PICTURE_KEY", key.decode())
    signed = marking.Marking(signer=marking.signer_of(facts)).encode(PIXELS, [MARKS])
    assert content_credentials.read(signed).valid
    monkeypatch.setenv("PICTURE_KEY", made()[1].decode())
    with pytest.raises(ServingError, match="the key does not belong to the first certificate"):
        marking.signer_of(facts)
