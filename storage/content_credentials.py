"""Signed manifests in pictures (C2PA), by the Content Authenticity Initiative's library.

It is an extra (`c2pa`), imported where it is used alone.
"""

from __future__ import annotations

import dataclasses
import io
import json
from typing import Any

_LABEL = "org.sd-finetuning-tfx.request"
# The part of a PNG file that a manifest lies in (C2PA 2.1, appendix A.3).
_PNG_CHUNK = b"caBX"
_UNTRUSTED = "signingCredential.untrusted"


class CredentialsError(ValueError):
    """A picture cannot be signed, or what it is signed with cannot be read."""


@dataclasses.dataclass(frozen=True)
class Credentials:
    """What a signed manifest says.

    Attributes:
        valid: Whether the signature is right, and the file is what was signed.
        signer: Whose name the certificate has; whether to believe that is the reader's matter.
        faults: What is wrong, by the specification's codes.
    """

    valid: bool
    signer: str
    faults: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Signer:
    """Signs pictures.

    Attributes:
        certificate: The chain, PEM, the signer's own first.
        key: Its private key, PEM.
    """

    certificate: bytes
    key: bytes = dataclasses.field(repr=False)

    def __post_init__(self) -> None:
        """Raises a `CredentialsError` where they are no pair, or the library is not there."""
        from cryptography import x509
        from cryptography.hazmat.primitives import serialization

        _library()
        try:
            leaf = x509.load_pem_x509_certificate(self.certificate)
        except ValueError:
            raise CredentialsError("the certificate is none in PEM") from None
        try:
            private = serialization.load_pem_private_key(self.key, password=None)
        except (ValueError, TypeError):
            # The library's message could tell of the key.
            raise CredentialsError("the key is none in PEM without a password") from None
        if private.public_key() != leaf.public_key():
            raise CredentialsError("the key is not that of the first certificate")

    def sign(self, contents: bytes, source_type: str, request: dict[str, Any]) -> bytes:
        """A PNG file with a manifest.

        Args:
            contents: The file.
            source_type: IPTC's address of how it was made.
            request: What it was asked for with.

        Raises:
            CredentialsError: The certificate is not for this, or the library is not there.
        """
        c2pa = _library()
        action = {"action": "c2pa.created", "digitalSourceType": source_type}
        manifest = {
            "claim_generator_info": [{"name": "sd-finetuning-tfx"}],
            "assertions": [
                {"label": "c2pa.actions.v2", "data": {"actions": [action]}},
                {"label": _LABEL, "data": request},
            ],
        }
        signed = io.BytesIO()
        # It would be another picture in the file, which nobody asked for.
        settings = {"builder": {"thumbnail": {"enabled": False}}}
        try:
            info = c2pa.C2paSignerInfo(self._algorithm, self.certificate, self.key, None)
            with (
                c2pa.Context.from_dict(settings, signer=c2pa.Signer.from_info(info)) as context,
                c2pa.Builder(manifest, context=context) as builder,
            ):
                builder.sign("image/png", io.BytesIO(contents), signed)
        except c2pa.C2paError as error:
            raise CredentialsError(
                f"the picture cannot be signed with this certificate: {error}"
            ) from None
        return signed.getvalue()

    @property
    def _algorithm(self) -> bytes:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

        key = serialization.load_pem_private_key(self.key, password=None)
        if isinstance(key, ec.EllipticCurvePrivateKey) and key.key_size in (256, 384, 521):
            return f"es{min(key.key_size, 512)}".encode()
        if isinstance(key, rsa.RSAPrivateKey):
            return b"ps256"
        if isinstance(key, ed25519.Ed25519PrivateKey):
            return b"ed25519"
        raise CredentialsError(
            "the key is of a kind that C2PA does not know: it must be ECDSA of 256, 384 or 521 "
            "bits, RSA or Ed25519"
        )


def has_manifest(contents: bytes) -> bool:
    """Whether a PNG file seems to have one."""
    return _PNG_CHUNK in contents


def read(contents: bytes) -> Credentials:
    """What the manifest of a PNG file says.

    Raises:
        CredentialsError: It cannot be read, or the library is not there.
    """
    c2pa = _library()
    try:
        with c2pa.Reader("image/png", io.BytesIO(contents)) as reader:
            found = json.loads(reader.json())
    except c2pa.C2paError as error:
        raise CredentialsError(f"its signed manifest cannot be read: {error}") from None
    status = [str(one["code"]) for one in found.get("validation_status") or ()]
    faults = tuple(dict.fromkeys(code for code in status if code != _UNTRUSTED))
    active = found.get("manifests", {}).get(found.get("active_manifest"), {})
    signature = active.get("signature_info") or {}
    names = (signature.get("common_name"), signature.get("issuer"))
    return Credentials(
        valid=not faults,
        signer=", ".join(dict.fromkeys(str(name) for name in names if name)) or "nobody",
        faults=faults,
    )


def _library() -> Any:
    try:
        import c2pa
    except ImportError:
        raise CredentialsError(
            "c2pa-python is not installed, which signs pictures and reads what they are signed "
            'with: pip install "c2pa-python>=0.30", or this project\'s extra c2pa'
        ) from None
    return c2pa
