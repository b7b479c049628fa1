"""The flags that decide how drawn pictures are marked and signed."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from serving import png
from serving.errors import ServingError, check_place
from serving.releases import C2PA, Release
from storage import filesystem, picture_marks
from storage.content_credentials import CredentialsError, Signer
from storage.picture_marks import Marks


@dataclasses.dataclass(frozen=True)
class Marking:
    """Whether pictures are marked, and with what.

    Attributes:
        metadata: Whether pictures are marked.
        prompt: Whether the marks include the prompts.
        signer: Signs the marks; `None` for no signature.
    """

    metadata: bool = True
    prompt: bool = True
    signer: Signer | None = None

    def encode(self, pixels: np.ndarray, pictures: Sequence[Marks], columns: int = 1) -> bytes:
        """A PNG file; see `storage.picture_marks.encode`.

        Raises:
            ServingError: The file cannot be signed.
        """
        if not self.metadata:
            return png.encode(pixels)
        told = pictures if self.prompt else [marks.without_prompt for marks in pictures]
        contents = picture_marks.encode(pixels, told, columns)
        if self.signer is None:
            return contents
        requests = [picture_marks.request_of(marks) for marks in told]
        try:
            return self.signer.sign(
                contents, picture_marks.source_type(told), {"pictures": requests}
            )
        except CredentialsError as error:
            raise ServingError(str(error)) from error


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds `--no-metadata`, `--no-prompt-in-metadata`, and the flags for signing pictures."""
    parser.add_argument(
        "--no-metadata",
        action="store_true",
        help="do not write the request and the release into pictures",
    )
    parser.add_argument(
        "--no-prompt-in-metadata",
        action="store_true",
        help="leave the prompts out of the request",
    )
    parser.add_argument(
        "--c2pa-certificate",
        metavar="FILE",
        help="sign pictures (C2PA): a chain of certificates in PEM, the signer's own first",
    )
    parser.add_argument(
        "--c2pa-key-env",
        metavar="NAME",
        help="the environment variable that holds the certificate's private key, in PEM",
    )


def of(arguments: argparse.Namespace, release: Release | None = None) -> Marking:
    """How to mark pictures, by the flags.

    Args:
        arguments: The flags.
        release: The release that draws, which may say how its pictures are signed.

    Raises:
        ServingError: The certificate or the key for signing is missing or wrong; or Pillow, which
            writes marks, is not installed.
    """
    if not arguments.no_metadata and importlib.util.find_spec("PIL") is None:
        raise ServingError(
            "writing the request into a picture needs Pillow, which is not installed: pip install "
            "Pillow, or leave the request out by --no-metadata"
        )
    signer = _signer(arguments.c2pa_certificate, arguments.c2pa_key_env)
    if signer is None and release is not None and not arguments.no_metadata:
        signer = signer_of(release.facts)
    if signer is not None and arguments.no_metadata:
        raise ServingError("--no-metadata leaves nothing to sign: drop it, or the certificate")
    return Marking(not arguments.no_metadata, not arguments.no_prompt_in_metadata, signer)


def signed_with(certificate: str, key_env: str) -> dict[str, str]:
    """What a release says about how its pictures are signed; `signer_of` reads it.

    Args:
        certificate: File with the chain, PEM.
        key_env: Name of the environment variable that holds the key where pictures are drawn.

    Raises:
        ServingError: There is no such file, or it contains a key.
    """
    check_place(certificate)
    chain = _read(certificate).decode(errors="replace")
    if "BEGIN CERTIFICATE" not in chain or "PRIVATE KEY" in chain:
        raise ServingError(
            f"{certificate} must hold only certificates in PEM: it goes into the release, where "
            "everybody can read it"
        )
    return {"certificate": chain, "key_env": key_env}


def signer_of(facts: Mapping[str, Any]) -> Signer | None:
    """The signer that a release asks for; `None` if it asks for none, or the key is not set here.

    Raises:
        ServingError: The key set here does not belong to the certificate.
    """
    said = facts.get(C2PA)
    if said is None:
        return None
    certificate, key_env = said["certificate"], said["key_env"]
    key = os.environ.get(key_env, "")
    if not key:
        print(
            f"note: pictures are not signed: the release asks for the key in the environment "
            f"variable {key_env}, which is empty or not set",
            file=sys.stderr,
            flush=True,
        )
        return None
    return _made(certificate.encode(), key.encode())


def _signer(certificate: str | None, key_env: str | None) -> Signer | None:
    if certificate is None and key_env is None:
        return None
    if certificate is None or key_env is None:
        raise ServingError("--c2pa-certificate and --c2pa-key-env belong together: give both")
    check_place(certificate)
    key = os.environ.get(key_env, "")
    if not key:
        raise ServingError(
            f"--c2pa-key-env names the environment variable {key_env}, which is empty or not set; "
            "it must hold a private key in PEM"
        )
    return _made(_read(certificate), key.encode())


def _read(certificate: str) -> bytes:
    try:
        return filesystem.read_bytes(certificate)
    except OSError as error:
        raise ServingError(f"{certificate} cannot be read: {error.strerror or error}") from error


def _made(certificate: bytes, key: bytes) -> Signer:
    try:
        return Signer(certificate, key)
    except CredentialsError as error:
        raise ServingError(f"pictures cannot be signed: {error}") from error
