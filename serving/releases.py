"""The releases of a serving directory: `python -m serving.releases list` and so on.

A version of the three models is a release if and only if `releases/<version>.json` is there. The
highest that `models.config` names is the current one; `rollback` makes another one that.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from serving import storage
from serving.errors import ServingError
from serving.request import MAX_STEPS

NETWORKS = ("text_encoder", "diffusion_model", "decoder")
CONFIG_NAME = "models.config"
RELEASES = "releases"
ROLLBACK_NAME = "rollback.json"

DEFAULT_SERVING_DIR = "runs/default/serving_model"
FALLBACK_STEPS = 25
FALLBACK_GUIDANCE_SCALE = 7.5
_CONFIGURED = re.compile(rb"versions: *([0-9]+)")
_RELEASE_FILE = re.compile(r"([0-9]+)\.json")


@dataclass(frozen=True)
class Release:
    """One version of the three models.

    Attributes:
        serving_dir: The directory that it lies in.
        version: The version, the same for the three models.
        facts: What the pusher wrote about it.
        num_steps: Sampling steps where a request names none.
        guidance_scale: Guidance scale where a request names none.
    """

    serving_dir: str
    version: int
    facts: Mapping[str, Any]
    num_steps: int
    guidance_scale: float

    def model_folder(self, network: str) -> str:
        """The SavedModel of one of `NETWORKS`.

        Raises:
            ServingError: It is not there.
        """
        folder = storage.join(self.serving_dir, network, str(self.version))
        if not storage.is_file(storage.join(folder, "saved_model.pb")):
            raise ServingError(
                f"release {self.version} is incomplete: there is no SavedModel in {folder}; push "
                "again, or choose another version"
            )
        return folder


def list_versions(serving_dir: str) -> list[int]:
    """The versions that are releases, the newest last.

    Raises:
        ServingError: There is no such directory.
    """
    if not storage.is_folder(serving_dir):
        raise ServingError(
            f"there is no serving directory {serving_dir}; run the pipeline first, or name "
            "another one"
        )
    folder = storage.join(serving_dir, RELEASES)
    if not storage.is_folder(folder):
        return []
    matches = map(_RELEASE_FILE.fullmatch, storage.list_folder(folder))
    return sorted(int(match[1]) for match in matches if match)


def configured_versions(serving_dir: str) -> list[int]:
    """What `models.config` has the servers load, the current one last; nothing where there is none.

    Raises:
        ServingError: It is damaged.
    """
    path = storage.join(serving_dir, CONFIG_NAME)
    if not storage.is_file(path):
        return []
    named = [int(number) for number in _CONFIGURED.findall(storage.read_bytes(path))]
    if not named or any(named.count(version) != len(NETWORKS) for version in named):
        raise ServingError(
            f"{path} is damaged: it names the versions {named}; "
            "python -m serving.releases rollback --to VERSION writes it anew"
        )
    return sorted(set(named))


def current_version(serving_dir: str) -> int:
    """The current release: the highest that is configured, or the newest where none is.

    Raises:
        ServingError: There is no such directory or no release, or `models.config` is damaged.
    """
    versions = list_versions(serving_dir)
    if not versions:
        raise ServingError(
            f"there is no release in {serving_dir}; a run of the pipeline whose model is blessed "
            "pushes one"
        )
    current = (configured_versions(serving_dir) or versions)[-1]
    if current not in versions:
        raise ServingError(
            f"the configured version {current} is no release of {serving_dir}; choose one of "
            f"{', '.join(map(str, versions))} with python -m serving.releases rollback --to"
        )
    return current


def read_rollback(serving_dir: str) -> dict[str, Any] | None:
    """The latest rollback: `from`, `to` and `at`; None if there was none."""
    path = storage.join(serving_dir, RELEASES, ROLLBACK_NAME)
    if not storage.is_file(path):
        return None
    rollback: dict[str, Any] = json.loads(storage.read_bytes(path))
    return rollback


def find_release(serving_dir: str, version: int | None = None) -> Release:
    """Reads a release, the current one where `version` is None.

    Raises:
        ServingError: There is no such directory, release or version, or its file is damaged.
    """
    current = current_version(serving_dir)
    if version is None:
        version = current
    elif version not in (versions := list_versions(serving_dir)):
        raise ServingError(
            f"there is no release {version} in {serving_dir}; there are: "
            + ", ".join(map(str, versions))
        )
    return _read_release(serving_dir, version)


def _read_release(serving_dir: str, version: int) -> Release:
    path = storage.join(serving_dir, RELEASES, f"{version}.json")
    try:
        facts = json.loads(storage.read_bytes(path))
    except ValueError as error:
        raise _damaged(path, f"it is not JSON ({error})") from error
    except OSError as error:
        raise _damaged(path, f"it cannot be read ({error})") from error
    if not isinstance(facts, dict):
        raise _damaged(path, "it holds no JSON object")
    if str(facts.get("version", version)) != str(version):
        raise _damaged(path, f"it speaks of version {facts['version']}")
    defaults = facts.get("defaults", {})
    if not isinstance(defaults, dict):
        raise _damaged(path, "its `defaults` are no JSON object")
    num_steps = defaults.get("num_steps", FALLBACK_STEPS)
    if type(num_steps) is not int or not 1 <= num_steps <= MAX_STEPS:
        raise _damaged(path, f"its default num_steps is {num_steps!r}, not 1 to {MAX_STEPS}")
    guidance_scale = defaults.get("guidance_scale", FALLBACK_GUIDANCE_SCALE)
    if type(guidance_scale) not in (int, float) or not 0 <= guidance_scale < math.inf:
        raise _damaged(path, f"its default guidance_scale is {guidance_scale!r}, not 0 or more")
    return Release(serving_dir, version, facts, num_steps, float(guidance_scale))


def _damaged(path: str, what: str) -> ServingError:
    return ServingError(
        f"the release file {path} is damaged: {what}; push again, or choose another version"
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m serving.releases", description="The releases of a serving directory."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    directory = argparse.ArgumentParser(add_help=False)
    directory.add_argument(
        "--serving-dir",
        default=DEFAULT_SERVING_DIR,
        metavar="DIR",
        help="the folder that the pipeline pushes to, local or gs:// (default: %(default)s)",
    )

    def add(name: str, what: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=what, description=what, parents=[directory])

    add("list", "All releases, the current one marked.")
    show = add("show", "What was written about a release, as JSON.")
    show.add_argument("version", type=int, nargs="?", help="(default: the current one)")
    verify = add("verify", "Whether the files of a release are those that were pushed.")
    verify.add_argument("version", type=int, nargs="?", help="(default: the current one)")
    rollback = add("rollback", "Serves an earlier release again, after verifying its files.")
    rollback.add_argument(
        "--to", type=int, metavar="VERSION", help="(default: the one before the current one)"
    )
    prune = add("prune", "Removes old releases; the current one stays.")
    prune.add_argument(
        "--keep", type=int, required=True, metavar="N", help="how many of the newest to keep"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code, 2 for a mistake, 1 for damaged files."""
    # It imports this module.
    from serving.serving_directory import ServingDirectory

    arguments = _parser().parse_args(argv)
    serving_dir = arguments.serving_dir
    try:
        # Says what is wrong with a directory that is none.
        current = current_version(serving_dir) if arguments.command != "rollback" else 0
        versions = list_versions(serving_dir)
        directory = ServingDirectory(serving_dir)
        if arguments.command == "list":
            for version in versions:
                print(_line(_read_release(serving_dir, version), version == current))
        elif arguments.command == "show":
            release = directory.read_release(arguments.version or current)
            print(json.dumps(release, indent=2, sort_keys=True))
        elif arguments.command == "verify":
            version = arguments.version or current
            damaged = directory.damaged_files(version)
            for path in damaged:
                print(f"missing or changed: {path}")
            print(f"release {version} is {'damaged' if damaged else 'as it was pushed'}")
            return bool(damaged)
        elif arguments.command == "rollback":
            print(f"release {directory.rollback(arguments.to)} is served now")
        elif arguments.keep < 1:
            raise ServingError(f"--keep is {arguments.keep}; it must be 1 or more")
        else:
            removed = directory.prune(arguments.keep)
            print(f"removed: {', '.join(map(str, removed)) or 'nothing'}")
    except (ServingError, OSError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _line(release: Release, is_current: bool) -> str:
    facts = release.facts
    metrics = "  ".join(f"{name} {value:.4f}" for name, value in facts.get("metrics", {}).items())
    columns = [
        f"{release.version:>6}",
        facts.get("pushed_at", ""),
        facts.get("preset", ""),
        metrics,
    ]
    return ("* " if is_current else "  ") + "  ".join(filter(None, columns))


if __name__ == "__main__":
    sys.exit(main())
