"""Signed manifests in pictures (C2PA), with the Content Authenticity Initiative's library.

The library is an extra (`c2pa`) and is imported only where it is used.
"""

from __future__ import annotations

import dataclasses
import io
import json
from typing import Any

_LABEL = "org.sd-finetuning-tfx.request"
# The PNG chunk that contains a manifest (C2PA 2.1, appendix A.3).
_PNG_CHUNK = b"caBX"
_UNTRUSTED = "signingCredential.untrusted"


class CredentialsError(ValueError):
    """A picture cannot be signed, or its signed manifest cannot be read."""


@dataclasses.dataclass(frozen=True)
class Credentials:
    """What a signed manifest says.

    Attributes:
        valid: Whether the signature is valid and the file is the one that was signed.
        signer: The name in the certificate; whether to trust it is up to the reader.
        faults: What is wrong, as codes of the specification.
    """

    valid: bool
    signer: str
    faults: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Signer:
    """Signs pictures.

    Attributes:
        certificate: The certificate chain (PEM), the signer's own certificate first.
        key: The private key (PEM) of the signer's certificate.
    """

    certificate: bytes
    key: bytes = dataclasses.field(repr=False)

    def __post_init__(self) -> None:
        """Raises a `CredentialsError` if the two do not match or the library is missing."""
        from cryptography import x509
        from cryptography.hazmat.primitives import serialization

        _library()
        try:
            leaf = x509.load_pem_x509_certificate(self.certificate)
        except ValueError:
            raise CredentialsError("the certificate is not in PEM format") from None
        try:
            private = serialization.load_pem_private_key(self.key, password=None)
        except (ValueError, TypeError):
            # The library's message could reveal parts of the key.
            raise CredentialsError("the key is not in PEM format without a password") from None
        if private.public_key() != leaf.public_key():
            raise CredentialsError("the key does not belong to the first certificate")

    def sign(self, contents: bytes, source_type: str, request: dict[str, Any]) -> bytes:
        """Returns a PNG file with a signed manifest.

        Args:
            contents: The file.
            source_type: IPTC's address for how the picture was made.
            request: The request that it was drawn from.

        Raises:
            CredentialsError: The certificate is not meant for this, or the library is missing.
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
        # A thumbnail would be another picture in the file, which nobody asked for.
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
            "C2PA does not support this kind of key: it must be ECDSA with 256, 384 or 521 bits, "
            "RSA or Ed25519"
        )


def has_manifest(contents: bytes) -> bool:
    """Whether a PNG file seems to have a manifest."""
    return _PNG_CHUNK in contents


def read(contents: bytes) -> Credentials:
    """Reads the manifest of a PNG file.

    Raises:
        CredentialsError: It cannot be read, or the library is missing.
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
            "c2pa-python, which signs pictures and reads their signatures, is not installed: "
            'pip install "c2pa-python>=0.30", or this project\'s extra c2pa'
        ) from None
    return c2pa
