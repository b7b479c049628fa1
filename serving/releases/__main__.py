"""The command `python -m serving.releases`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

from serving import seals
from serving.errors import ServingError
from serving.releases import (
    DEFAULT_SERVING_DIR,
    Release,
    configured_versions,
    current_version,
    find_release,
    list_versions,
)
from serving.serving_directory import ServingDirectory
from storage.flags import Command, Parser, report
from storage.user_errors import UserError

_SHOWN_HEX_DIGITS = 12


def command() -> Command:
    """The parser of the command line."""
    parser = Command(
        "serving.releases",
        "The releases of a serving directory.",
        [
            (("list",), ""),
            (("verify", "3"), ""),
            (("rollback",), "serves the release before the current one again"),
            (("prune", "--keep", "5"), ""),
        ],
        failed="files of a release are damaged",
    )
    commands = parser.add_subparsers(
        dest="command", required=True, metavar="COMMAND", parser_class=Parser
    )
    directory = Parser(add_help=False)
    directory.add_argument(
        "--serving-dir",
        default=DEFAULT_SERVING_DIR,
        metavar="DIR",
        help="the folder that the pipeline pushes to, local or gs:// (default: %(default)s)",
    )

    def add(name: str, what: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=what, description=what, parents=[directory])

    add("list", "Lists all releases and marks the current one.")
    show = add("show", "Shows what was written about a release, as JSON.")
    show.add_argument("version", type=int, nargs="?", help="(default: the current one)")
    verify = add("verify", "Checks that the files of a release are those that were pushed.")
    verify.add_argument("version", type=int, nargs="?", help="(default: the current one)")
    verify.add_argument(
        "--loaded",
        action="store_true",
        help="all releases that servers load, as a deployment verifies them before it starts",
    )
    seals.add_key_arguments(verify)
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
    arguments = command().parse_args(argv)
    serving_dir = arguments.serving_dir
    try:
        # Says what is wrong if this is not a serving directory.
        current = current_version(serving_dir) if arguments.command != "rollback" else 0
        versions = list_versions(serving_dir)
        directory = ServingDirectory(serving_dir)
        if arguments.command == "list":
            for version in versions:
                print(_line(find_release(serving_dir, version), version == current))
        elif arguments.command == "show":
            release = directory.read_release(arguments.version or current)
            print(json.dumps(release, indent=2, sort_keys=True))
        elif arguments.command == "verify":
            return _verify(arguments, current)
        elif arguments.command == "rollback":
            print(f"release {directory.rollback(arguments.to)} is served now")
        elif arguments.keep < 1:
            raise ServingError(f"--keep is {arguments.keep}; it must be 1 or more")
        else:
            removed = directory.prune(arguments.keep)
            print(f"removed: {', '.join(map(str, removed)) or 'nothing'}")
            for reason, kept in directory.kept(arguments.keep).items():
                print(f"kept: {', '.join(map(str, kept))}, {reason}")
    except (UserError, OSError) as error:
        return report(error)
    return 0


def _verify(arguments: argparse.Namespace, current: int) -> int:
    """Verifies releases; returns the exit code."""
    serving_dir, status = arguments.serving_dir, 0
    arguments.verify = None
    verification = seals.of(arguments)
    if arguments.loaded and arguments.version is not None:
        raise ServingError("--loaded verifies what servers load: leave the version out")
    loaded = configured_versions(serving_dir) or [current]
    for version in loaded if arguments.loaded else [arguments.version or current]:
        release = find_release(serving_dir, version)
        if "files" not in release.facts:
            raise ServingError(
                f"the release file of release {version} lists no files: nothing can be verified"
            )
        damaged = seals.verify(release, verification)
        for fault in damaged:
            print(fault)
        signer = seals.signer_of(serving_dir, version)[:_SHOWN_HEX_DIGITS]
        by = f", signed by the key {signer}" if signer else ", not signed"
        print(f"release {version} {'is damaged' if damaged else f'is as it was pushed{by}'}")
        status = status or bool(damaged)
    return status


def _line(release: Release, is_current: bool) -> str:
    facts = release.facts
    metrics = "  ".join(f"{name} {value:.4f}" for name, value in facts.get("metrics", {}).items())
    columns = [
        f"{release.version:>6}",
        facts.get("pushed_at", ""),
        facts.get("preset", ""),
        metrics,
        "unsure" if release.unsure else "",
        "signed" if seals.signer_of(release.serving_dir, release.version) else "",
    ]
    return ("* " if is_current else "  ") + "  ".join(filter(None, columns))


if __name__ == "__main__":
    sys.exit(main())
