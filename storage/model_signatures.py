"""Signatures of models, in the bundles that OpenSSF's model signing writes and verifies.

The library is an extra (`sign`) and is imported only where it is used. It hashes local folders;
here it gets digests that are known already, so that files in a bucket can be signed too.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

_INSTALL = 'pip install "model-signing>=1.1" pyOpenSSL, or this project\'s extra sign'
_CURVES = ("secp256r1", "secp384r1", "secp521r1")
_SHOWN_HEX_DIGITS = 12


class SignatureError(ValueError):
    """A model cannot be signed, or its signature is not valid or cannot be read."""


@dataclasses.dataclass(frozen=True)
class Signed:
    """What a signature says about a model.

    Attributes:
        name: The model's name.
        files: SHA-256 of each file, by path.
    """

    name: str
    files: Mapping[str, str]


@dataclasses.dataclass(frozen=True)
class SigningKey:
    """Signs models.

    Attributes:
        key: An ECDSA key with 256, 384 or 521 bits, in PEM without a password.
    """

    key: bytes = dataclasses.field(repr=False)

    def __post_init__(self) -> None:
        """Raises a `SignatureError` if the key is not of this kind or the library is missing."""
        check_library()
        _of_known_curve(self._public())

    @property
    def identity(self) -> str:
        """Names the key; see `key_identity`."""
        return _identity(self._public())

    def sign(self, name: str, files: Mapping[str, str]) -> bytes:
        """Returns the bundle as JSON.

        Args:
            name: The model's name.
            files: SHA-256 of each file, by path with slashes.
        """
        from model_signing import signing

        with _in_memory(self.key) as key, _in_memory(b"") as bundle:
            config = signing.Config().use_elliptic_key_signer(private_key=key)
            config.set_hashing_config(_listing(name, files)).sign(name, bundle)
            return bundle.read_bytes()

    def _public(self) -> Any:
        from cryptography.hazmat.primitives import serialization

        try:
            return serialization.load_pem_private_key(self.key, password=None).public_key()
        except (ValueError, TypeError):
            # The library's message could reveal parts of the key.
            raise SignatureError("the key is not in PEM format without a password") from None


def verified(bundle: bytes, public_key: bytes) -> Signed:
    """Returns what a bundle says, after checking that it was signed with a key.

    Raises:
        SignatureError: The signature is from another key or not valid, or the library is missing.
    """
    check_library()
    from cryptography.exceptions import InvalidSignature
    from model_signing import verifying

    key = _public_key(public_key)
    signed, signer = _read(bundle)
    if signer and signer != _identity(key):
        raise SignatureError(
            f"it is from the key {signer[:_SHOWN_HEX_DIGITS]}, but the given key is "
            f"{_identity(key)[:_SHOWN_HEX_DIGITS]}"
        )
    with _in_memory(public_key) as path, _in_memory(bundle) as signature:
        config = verifying.Config().use_elliptic_key_verifier(public_key=path)
        config.set_hashing_config(_listing(signed.name, signed.files))
        try:
            config.verify(signed.name, signature)
        except InvalidSignature:
            raise SignatureError("it is not valid: its content was changed") from None
        # Its JSON may lack anything.
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise SignatureError(f"it cannot be read: {error}") from None
    return signed


def signer(bundle: bytes) -> str:
    """The key that a bundle claims to be signed with, as `key_identity`; "" if it names none.

    Raises:
        SignatureError: It is not a bundle.
    """
    return _read(bundle)[1]


def key_identity(public_key: bytes) -> str:
    """Names a public key, as bundles do.

    Returns:
        The SHA-256 (hex) of its PEM.

    Raises:
        SignatureError: It is not a public key.
    """
    return _identity(_public_key(public_key))


def check_library() -> None:
    """Raises a `SignatureError` if the library is missing."""
    try:
        import model_signing.signing  # noqa: F401
    except ImportError as error:
        raise SignatureError(
            "model-signing, which signs and verifies models, is not installed "
            f"({error}): {_INSTALL}"
        ) from None


def _public_key(pem: bytes) -> Any:
    from cryptography.hazmat.primitives import serialization

    try:
        key = serialization.load_pem_public_key(pem)
    except ValueError:
        raise SignatureError("the public key is not in PEM format") from None
    _of_known_curve(key)
    return key


def _of_known_curve(key: Any) -> None:
    if getattr(getattr(key, "curve", None), "name", None) not in _CURVES:
        raise SignatureError(
            "model signing does not support this kind of key: it must be ECDSA with 256, 384 or "
            "521 bits, as made by `openssl ecparam -name prime256v1 -genkey -noout`"
        )


def _identity(key: Any) -> str:
    from cryptography.hazmat.primitives import serialization

    pem = key.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return hashlib.sha256(pem).hexdigest()


def _read(bundle: bytes) -> tuple[Signed, str]:
    """What a bundle says, and the key that it names; neither is verified."""
    try:
        content = json.loads(bundle)
        statement = json.loads(base64.b64decode(content["dsseEnvelope"]["payload"]))
        files = {
            str(resource["name"]): str(resource["digest"])
            for resource in statement["predicate"]["resources"]
        }
        key = content["verificationMaterial"].get("publicKey") or {}
        return Signed(str(statement["subject"][0]["name"]), files), str(key.get("hint") or "")
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, binascii.Error):
        raise SignatureError("it is not a model signature") from None


def _listing(name: str, files: Mapping[str, str]) -> Any:
    """Replaces the library's hashing of a folder with digests that are known."""
    from model_signing import hashing, manifest

    class Listing(hashing.Config):
        def hash(self, model_path: Any, *, files_to_hash: Any = None) -> manifest.Manifest:
            items = [
                manifest.FileManifestItem(
                    path=PurePosixPath(path),
                    digest=manifest.hashing.Digest("sha256", bytes.fromhex(digest)),
                )
                for path, digest in files.items()
            ]
            how = {"method": "files", "hash_type": "sha256", "allow_symlinks": False}
            return manifest.Manifest(name, items, manifest.SerializationType.from_args(how))

    return Listing()


@contextlib.contextmanager
def _in_memory(contents: bytes) -> Iterator[Path]:
    """A file in memory only: the library accepts keys only as paths."""
    handle = os.memfd_create("signing")
    try:
        os.write(handle, contents)
        yield Path(f"/proc/self/fd/{handle}")
    finally:
        os.close(handle)
