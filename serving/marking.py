"""The part of the command line that says what drawn pictures say of themselves."""

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
    """Whether, and with what, pictures are marked.

    Attributes:
        metadata: Whether they are.
        prompt: Whether their marks have the prompts.
        signer: Signs what they say; `None` for no signature.
    """

    metadata: bool = True
    prompt: bool = True
    signer: Signer | None = None

    def encode(self, pixels: np.ndarray, pictures: Sequence[Marks], columns: int = 1) -> bytes:
        """A PNG file; see `storage.picture_marks.encode`.

        Raises:
            ServingError: It cannot be signed.
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
    """Adds `--no-metadata`, `--no-prompt-in-metadata`, and what pictures are signed with."""
    parser.add_argument(
        "--no-metadata",
        action="store_true",
        help="write into pictures neither what was asked for nor which release drew them",
    )
    parser.add_argument(
        "--no-prompt-in-metadata",
        action="store_true",
        help="write it without the prompts",
    )
    parser.add_argument(
        "--c2pa-certificate",
        metavar="FILE",
        help="sign it (C2PA): a chain of certificates in PEM, the signer's own first",
    )
    parser.add_argument(
        "--c2pa-key-env",
        metavar="NAME",
        help="the environment variable that holds the private key of that, in PEM",
    )


def of(arguments: argparse.Namespace, release: Release | None = None) -> Marking:
    """What was asked for.

    Args:
        arguments: The flags.
        release: What is drawn with, which may say what its pictures are signed with.

    Raises:
        ServingError: There is half of what signing takes, or it is not what it must be; or Pillow,
            which writes marks, is not installed.
    """
    if not arguments.no_metadata and importlib.util.find_spec("PIL") is None:
        raise ServingError(
            "Pillow is not installed, which writes into a picture what it was asked for with: pip "
            "install Pillow, or leave that out by --no-metadata"
        )
    signer = _signer(arguments.c2pa_certificate, arguments.c2pa_key_env)
    if signer is None and release is not None and not arguments.no_metadata:
        signer = signer_of(release.facts)
    if signer is not None and arguments.no_metadata:
        raise ServingError("--no-metadata leaves nothing to sign: leave it out, or the certificate")
    return Marking(not arguments.no_metadata, not arguments.no_prompt_in_metadata, signer)


def signed_with(certificate: str, key_env: str) -> dict[str, str]:
    """What a release says of how its pictures are signed; `signer_of` reads it.

    Args:
        certificate: File with the chain, PEM.
        key_env: The environment variable that holds the key where pictures are drawn, by its name.

    Raises:
        ServingError: There is no such file, or there is a key in it.
    """
    check_place(certificate)
    chain = _read(certificate).decode(errors="replace")
    if "BEGIN CERTIFICATE" not in chain or "PRIVATE KEY" in chain:
        raise ServingError(
            f"{certificate} must hold certificates in PEM and nothing else: it goes into the "
            "release, where everybody reads it"
        )
    return {"certificate": chain, "key_env": key_env}


def signer_of(facts: Mapping[str, Any]) -> Signer | None:
    """Signs pictures of a release as it says; `None` where it says nothing, or no key is here.

    Raises:
        ServingError: The key that is here is not that of its certificate.
    """
    said = facts.get(C2PA)
    if said is None:
        return None
    certificate, key_env = said["certificate"], said["key_env"]
    key = os.environ.get(key_env, "")
    if not key:
        print(
            f"note: pictures are not signed: the release asks for the key in {key_env}, and there "
            "is nothing in that environment variable",
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
            f"--c2pa-key-env names {key_env}, and there is nothing in that environment variable; "
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
