"""Brings a published release into a serving directory: `python -m serving.pull hf://ORG/NAME`.

Every file is compared with its SHA-256 in `release.json`, and `release.json` with the signature if
there is one. The release becomes visible as in a push: whole or not at all. It keeps its number if
that is free.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from serving import seals
from serving.errors import ServingError
from serving.publish import RELEASE_NAME
from serving.releases import DEFAULT_SERVING_DIR, FOLDERS
from serving.seals import Verification
from serving.serving_directory import ServingDirectory
from storage.flags import Command, report
from storage.folders import Folder, FolderError, open_folder
from storage.transfer import sha256_of

_FILE = re.compile(rf"(?:{'|'.join(FOLDERS)})/[0-9]+/(?!.*(?:^|/)\.\.?(?:/|$))[^\\]+")
_SHA256 = re.compile(r"[0-9a-f]{64}")


def pull(source: str, serving_dir: str, verification: Verification | None = None) -> dict[str, Any]:
    """Gets a release.

    Args:
        source: `hf://ORG/NAME` or `hf://ORG/NAME@release-7`, or the address that
            `serving.publish` gave for a bucket or folder.
        serving_dir: The serving directory; it need not exist.
        verification: What to verify besides the hashes of the files, which are always verified;
            `None` verifies the signature if there is one.

    Returns:
        The release as it is in the serving directory now.

    Raises:
        ServingError: There is no release, a file of it is missing, damaged, added or misplaced, or
            a signature is wrong or cannot be verified.
    """
    verification = Verification() if verification is None else verification
    try:
        folder = open_folder(source)
        if not folder.exists(RELEASE_NAME):
            raise ServingError(f"there is no release in {source}: it has no {RELEASE_NAME}")
        published = folder.read_json(RELEASE_NAME)
        hashes = _hashes(published, folder)
        signature = _signature(folder, published, hashes, verification)
        if added := _added(folder, hashes):
            raise ServingError(
                f"{folder.shown(added[0])} was added: {RELEASE_NAME} does not list it; nothing was "
                "pulled"
            )
        with tempfile.TemporaryDirectory() as staged:
            for name, digest in hashes.items():
                _fetch(folder, name, digest, os.path.join(staged, *name.split("/")))
            facts = {**published, "pulled_from": folder.address}
            del facts["files"]
            directory = ServingDirectory(serving_dir)
            return directory.publish(
                staged,
                facts,
                lambda _: None,
                version=published["version"],
                signature=signature,
            )
    except FolderError as error:
        raise ServingError(str(error)) from error


def _hashes(release: dict[str, Any], folder: Folder) -> dict[str, str]:
    """Maps the path of each file, without the version, to its SHA-256."""
    version, files = release.get("version"), release.get("files") or {}
    known = type(version) is int and version > 0 and isinstance(files, dict) and files
    if not known or not all(
        _FILE.fullmatch(path) and _SHA256.fullmatch(str(digest)) for path, digest in files.items()
    ):
        raise ServingError(f"{folder.shown(RELEASE_NAME)} is damaged, or not a release file")
    return {seals.published_path(path): digest for path, digest in files.items()}


def _signature(
    folder: Folder, release: dict[str, Any], hashes: dict[str, str], verification: Verification
) -> bytes | None:
    """The signature of a release, once verified; `None` if it has none."""
    bundle, what = None, folder.shown(RELEASE_NAME)
    if folder.exists(seals.PUBLISHED_NAME):
        with folder.local(seals.PUBLISHED_NAME) as path:
            bundle = path.read_bytes()
    if not verification.wanted:
        return bundle
    signed = verification.check_signature(bundle, what)
    if signed is None:
        return None
    if signed.name != seals.release_name(release["version"]):
        raise ServingError(
            f"{what} is of version {release['version']}, but its signature is of {signed.name}; "
            "nothing was pulled"
        )
    if wrong := seals.faults(signed.files, hashes):
        raise ServingError(
            f"{what} is not what was signed: {seals.in_words(wrong)}; nothing was pulled"
        )
    return bundle


def _added(folder: Folder, hashes: dict[str, str]) -> list[str]:
    """Files that lie among the files of a release but are not part of it."""
    return [
        name
        for name in folder.names()
        if name.partition("/")[0] in FOLDERS and "/" in name and name not in hashes
    ]


def _fetch(folder: Folder, name: str, digest: str, target: str) -> None:
    if not folder.exists(name):
        raise ServingError(f"{folder.shown(name)} is missing; nothing was pulled")
    os.makedirs(os.path.dirname(target), exist_ok=True)
    with folder.local(name) as path:
        shutil.copyfile(path, target)
    if sha256_of(target) != digest:
        raise ServingError(
            f"{folder.shown(name)} is damaged: its SHA-256 is not the one in {RELEASE_NAME}; "
            "nothing was pulled"
        )


def command() -> Command:
    """The parser of the command line."""
    parser = Command(
        "serving.pull",
        "Brings a published release into a serving directory.",
        [
            (("hf://you/dragons",), ""),
            (("gs://bucket/models/release-3", "--serving-dir", Path("models")), ""),
        ],
    )
    parser.add_argument(
        "source", help="hf://ORG/NAME[@release-VERSION], gs://BUCKET/FOLDER/release-VERSION, ..."
    )
    parser.add_argument(
        "--serving-dir",
        default=DEFAULT_SERVING_DIR,
        metavar="DIR",
        help="the serving directory, local or gs://; made if it does not exist "
        "(default: %(default)s)",
    )
    seals.add_arguments(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code, 2 for a mistake."""
    arguments = command().parse_args(argv)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    try:
        release = pull(arguments.source, arguments.serving_dir, seals.of(arguments))
    except (ServingError, OSError) as error:
        return report(error)
    print(f"release {release['version']} is in {arguments.serving_dir}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
