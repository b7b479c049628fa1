"""Whether a release is what was pushed: its manifest vouches for its files, a signature for that.

`releases/<version>.json` always has the SHA-256 of every file. If the push had a key, two bundles
of OpenSSF's model signing are beside it: `<version>.sig` with the paths in the serving directory,
and `<version>.published.sig` with the paths that the files have where they are published.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from serving.errors import ServingError, check_place
from serving.releases import FOLDERS, RELEASES, Release
from storage import filesystem, model_signatures
from storage.model_signatures import Signed, SigningKey

PUBLISHED_NAME = "model.sig"
"""Name of the second bundle in a published release; the library's own default."""
KEY_ENV = "RELEASE_PUBLIC_KEY"
"""The environment variable that is searched for a public key if none is named."""

_SHOWN_FAULTS = 3
_SHOWN_HEX_DIGITS = 12
_FILE = re.compile(r"([0-9]+)(?:\.published)?\.sig")


class Fault(NamedTuple):
    """A file that is not as it was pushed.

    Attributes:
        what: `changed`, `missing` or `added`.
        path: The file, relative to the folder that it should be in.
    """

    what: str
    path: str

    def __str__(self) -> str:
        return f"{self.what}: {self.path}"


@dataclasses.dataclass(frozen=True)
class Verification:
    """What to verify of a release before it is used.

    Attributes:
        wanted: Whether to verify anything.
        signature: Whether it must be signed; else a signature is verified if there is one.
        public_key: PEM; `None` if there is none.
    """

    wanted: bool = True
    signature: bool = False
    public_key: bytes | None = None

    def check_signature(self, bundle: bytes | None, what: str) -> Signed | None:
        """The content of a release's signature; `None` if there is none and none is required.

        Raises:
            ServingError: The signature is missing, wrong, or cannot be verified.
        """
        if bundle is None:
            if self.signature:
                raise ServingError(
                    f"{what} is not signed, but --verify or a key requires it: set "
                    "serving.sign_key or serving.sign_key_env for the push, or leave the flag out"
                )
            return None
        if self.public_key is None:
            try:
                of = f" by the key {model_signatures.signer(bundle)[:_SHOWN_HEX_DIGITS]}"
            except model_signatures.SignatureError:
                of = ""
            raise ServingError(
                f"{what} is signed{of}, but there is no public key to verify it with: name one by "
                f"--verify-key FILE or --verify-key-env NAME, put it into {KEY_ENV}, or skip "
                "verification by --no-verify"
            )
        try:
            return model_signatures.verified(bundle, self.public_key)
        except model_signatures.SignatureError as error:
            raise ServingError(f"the signature of {what} cannot be trusted: {error}") from None


def published_path(path: str) -> str:
    """Turns the path of a file in a serving directory into the path it is published under."""
    return re.sub("/[0-9]+/", "/", path, count=1)


def _served_path(path: str, version: int) -> str:
    """The opposite of `published_path`."""
    folder, _, name = path.partition("/")
    return f"{folder}/{version}/{name}"


def digests(root: str, version: int) -> dict[str, str]:
    """The SHA-256 of each file in the folders of a version, by its path below the root."""
    names = []
    for folder in FOLDERS:
        path = filesystem.join(root, folder, str(version))
        if filesystem.is_folder(path):
            names += [f"{folder}/{version}/{name}" for name in filesystem.files_below(path)]
    # Hashing releases the GIL, and object stores answer many requests at once.
    with ThreadPoolExecutor() as pool:
        hashes = pool.map(filesystem.sha256, (filesystem.join(root, name) for name in names))
        return dict(zip(names, hashes, strict=True))


def faults(expected: Mapping[str, str], found: Mapping[str, str]) -> list[Fault]:
    """The differences between two manifests, by path."""
    return [
        Fault("missing" if path not in found else "changed", path)
        if path in expected
        else Fault("added", path)
        for path in sorted(expected.keys() | found.keys())
        if expected.get(path) != found.get(path)
    ]


def in_words(found: Sequence[Fault]) -> str:
    """The first faults, and how many more there are."""
    more = len(found) - _SHOWN_FAULTS
    told = [*map(str, found[:_SHOWN_FAULTS]), *([f"{more} more"] if more > 0 else [])]
    return "; ".join(told)


def signature_names(version: int) -> tuple[str, str]:
    """The files of a version's two bundles, in the folder of the release files."""
    return f"{version}.sig", f"{version}.published.sig"


def version_of(name: str) -> int | None:
    """The version whose bundle a file in the folder of the release files is, if it is one."""
    found = _FILE.fullmatch(name)
    return int(found[1]) if found else None


def signed_as(key: SigningKey, version: int, files: Mapping[str, str]) -> dict[str, bytes]:
    """Both bundles of a release, by their names."""
    published = {published_path(path): digest for path, digest in files.items()}
    here, elsewhere = signature_names(version)
    name = release_name(version)
    return {here: key.sign(name, files), elsewhere: key.sign(name, published)}


def release_name(version: int) -> str:
    """Name of a release where it is published, and in its signatures."""
    return f"release-{version}"


def read_signatures(root: str, version: int) -> dict[str, bytes]:
    """The bundles of a release, by their names; a pulled release has only the second."""
    paths = {name: filesystem.join(root, RELEASES, name) for name in signature_names(version)}
    return {n: filesystem.read_bytes(path) for n, path in paths.items() if filesystem.is_file(path)}


def signer_of(root: str, version: int) -> str:
    """The key that signed a release, as its signature says; "" if it is not signed."""
    for bundle in read_signatures(root, version).values():
        try:
            return model_signatures.signer(bundle) or "?"
        except model_signatures.SignatureError:
            return "?"
    return ""


def verify(release: Release, verification: Verification) -> list[Fault]:
    """The files that are not as they were pushed, by the manifest and by the signatures.

    A release file without files, which only a person can have written, is not compared.

    Raises:
        ServingError: A signature is wrong, or cannot be verified.
    """
    found = digests(release.serving_dir, release.version)
    pushed = release.facts.get("files")
    wrong = [] if pushed is None else faults(pushed, found)
    bundles = read_signatures(release.serving_dir, release.version)
    what = f"release {release.version}"
    if not bundles:
        verification.check_signature(None, what)
    here, _ = signature_names(release.version)
    published = {published_path(path): digest for path, digest in found.items()}
    for name, bundle in bundles.items():
        signed = verification.check_signature(bundle, what)
        assert signed is not None
        if name == here:
            other = faults(signed.files, found)
        else:
            other = [
                Fault(fault.what, _served_path(fault.path, release.version))
                for fault in faults(signed.files, published)
            ]
        wrong += [fault for fault in other if fault not in wrong]
    return wrong


def check(release: Release, verification: Verification) -> None:
    """Raises a `ServingError` if a release is not what was pushed, or signed."""
    if not verification.wanted or release.version == 0:
        return
    if wrong := verify(release, verification):
        raise ServingError(
            f"release {release.version} is not what was pushed: {in_words(wrong)}; choose another "
            "version, push or pull it again, or use it anyway with --no-verify"
        )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds `--verify`, its opposite, and the flags for the public key."""
    parser.add_argument(
        "--verify",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="whether to verify the files and signature of the release; --verify requires a "
        "signature (default: verify the files, and a signature if there is one)",
    )
    add_key_arguments(parser)


def add_key_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags for the public key."""
    key = parser.add_mutually_exclusive_group()
    key.add_argument(
        "--verify-key",
        metavar="FILE",
        help="the public key of whoever signs the releases, in PEM; this requires a signature",
    )
    key.add_argument(
        "--verify-key-env",
        metavar="NAME",
        help=f"the environment variable that holds that key (default: {KEY_ENV}, if set)",
    )


def of(arguments: argparse.Namespace) -> Verification:
    """What to verify, by the flags.

    Raises:
        ServingError: The key is not there, or flags contradict each other.
    """
    wanted, path, env = arguments.verify, arguments.verify_key, arguments.verify_key_env
    named = path is not None or env is not None
    if wanted is False:
        if named:
            raise ServingError("--no-verify and a key contradict each other: give only one of them")
        return Verification(wanted=False)
    key = _public_key(path, env)
    return Verification(signature=named or bool(wanted), public_key=key)


def _public_key(path: str | None, env: str | None) -> bytes | None:
    if path is not None:
        check_place(path)
        try:
            return filesystem.read_bytes(path)
        except OSError as error:
            raise ServingError(f"{path} cannot be read: {error.strerror or error}") from error
    text = os.environ.get(env or KEY_ENV, "")
    if env is not None and not text:
        raise ServingError(
            f"--verify-key-env names the environment variable {env}, which is empty or not set; it "
            "must hold a public key in PEM"
        )
    return text.encode() or None


def signing_key(path: str | None, env: str | None) -> SigningKey | None:
    """The key that releases are signed with, from a file or an environment variable, if any.

    Raises:
        ServingError: The key is not there, or cannot sign.
    """
    if not path and not env:
        return None
    if path:
        named = f"serving.sign_key is {path}"
        check_place(path)
        try:
            key = filesystem.read_bytes(path)
        except OSError as error:
            raise ServingError(
                f"{named}, which cannot be read: {error.strerror or error}"
            ) from error
    else:
        named = f"serving.sign_key_env is {env}"
        key = os.environ.get(env or "", "").encode()
        if not key:
            raise ServingError(
                f"serving.sign_key_env names the environment variable {env}, which is empty or not "
                "set; it must hold a private key in PEM"
            )
    try:
        return SigningKey(key)
    except model_signatures.SignatureError as error:
        raise ServingError(f"{named}, which cannot sign releases: {error}") from None
