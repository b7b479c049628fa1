"""Makes a release again from its records: `python -m pipeline.reproduce --help`."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from pipeline import failures, lineage, reproduction
from pipeline.lineage import LineageError
from pipeline.lineage.locations import DEFAULT_STORE
from pipeline.lineage.text import columns
from pipeline.reproduction import Distance, Finding, Losses, Recorded, ReproductionError
from storage.commands import shown_path
from storage.flags import Command

_NOT_THE_SAME = 1
_MARKS = {True: "same", False: "other", None: "unknown"}

_DESCRIPTION = """\
Makes a release again: checks whether the data, the base weights, the code, the packages and the
processor are the ones that it was made with, runs the pipeline with its settings into another
folder, and compares weights and held-out losses with the release's. If data, weights or code
differ, it stops before anything is run and names the command that restores them. If packages or
the processor differ, it says so, and the result is then close, but not identical bit for bit."""


def command() -> Command:
    """The parser of the command line."""
    parser = Command(
        "pipeline.reproduce",
        _DESCRIPTION,
        [
            (("release:1", "--into", Path("runs/again"), "--check"), "checks what is missing"),
            (("release:1", "--into", Path("runs/again")), "makes it again and compares"),
        ],
        failed="the result is not identical, bit for bit",
    )
    parser.add_argument("release", metavar="RELEASE", help="such as release:1, or its release file")
    parser.add_argument(
        "--into", required=True, metavar="FOLDER", help="folder that the new run writes to"
    )
    parser.add_argument(
        "--store",
        default=DEFAULT_STORE,
        metavar="STORE",
        help="where its lineage is: an output folder, or any store that pipeline.lineage takes "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--serving-dir",
        metavar="DIR",
        help="where it is (default: where it was pushed to)",
    )
    parser.add_argument(
        "--config", metavar="FILE", help="the settings of its run, if the push recorded none"
    )
    parser.add_argument("--dataset", metavar="PLACE", help="where its data is now, if it was moved")
    parser.add_argument(
        "--base-weights", metavar="PLACE", help="where its base weights are now, if they were moved"
    )
    parser.add_argument("--check", action="store_true", help="check what is missing, and stop")
    parser.add_argument(
        "--anyway", action="store_true", help="run even if data, weights or code differ"
    )
    parser.add_argument("--json", action="store_true", help="print JSON, too, as the last line")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line `argv`; returns the exit status."""
    arguments = command().parse_args(argv)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    return failures.exit_status(lambda: _main(arguments))


def _main(arguments: argparse.Namespace) -> int:
    try:
        location = lineage.locate(arguments.store)
        recorded = reproduction.find(
            location, arguments.release, arguments.serving_dir, arguments.config
        )
    except LineageError as error:
        raise ReproductionError(str(error)) from None
    into = os.path.abspath(arguments.into)
    if into in location.roots:
        raise ReproductionError(
            f"--into {arguments.into} is where the release was made, so everything would come from "
            "its cache: name another folder"
        )
    given = {
        key: os.path.abspath(place) if os.path.exists(place) else place
        for key, place in (
            ("dataset.path", arguments.dataset),
            ("model.base_weights", arguments.base_weights),
        )
        if place
    }
    config = reproduction.configured(recorded, into, given)
    findings = reproduction.look(recorded, config)
    version = recorded.release.version
    print(f"release {version} of {shown_path(recorded.release.serving_dir)}\n")
    for line in _findings(findings):
        print(line)
    missing = [finding for finding in findings if finding.stops]
    if missing and not arguments.anyway:
        names = ", ".join(finding.name for finding in missing)
        print(f"\nNothing was run; not the same as then: {names}. --anyway runs it regardless.")
        return failures.EXIT_CONFIG
    if arguments.check:
        return 0
    print(f"\nMaking it again in {shown_path(into)} ...\n", flush=True)
    status = reproduction.run(into)
    if status:
        return status
    return _compare(arguments, recorded, findings, into)


def _findings(findings: Sequence[Finding]) -> list[str]:
    rows = columns([[f"  {f.name}", _MARKS[f.same], f.said] for f in findings])
    told = []
    for row, finding in zip(rows, findings, strict=True):
        told.append(row)
        if finding.command:
            told.append(f"{'':<16}{finding.command}")
    return told


def _compare(
    arguments: argparse.Namespace, recorded: Recorded, findings: Sequence[Finding], into: str
) -> int:
    model, losses = reproduction.made_in(into)
    distances = list(reproduction.apart(recorded, model))
    pairs = reproduction.paired(recorded.losses, losses)
    same = all(distance.same for distance in distances)
    print("\n".join(["", *_distances(distances), *_losses(pairs), "", _verdict(same, findings)]))
    if arguments.json:
        answer = {
            "release": recorded.release.version,
            "same": same,
            "findings": [dataclasses.asdict(finding) for finding in findings],
            "weights": [dataclasses.asdict(distance) for distance in distances],
            "losses": None if pairs is None else dataclasses.asdict(pairs),
        }
        print(json.dumps(answer))
    return 0 if same else _NOT_THE_SAME


def _distances(distances: Sequence[Distance]) -> list[str]:
    head = ["weights", "tensors", "the same", "largest difference", "relative L2", "SHA-256"]
    rows = [
        [
            d.network,
            str(d.tensors),
            str(d.equal),
            f"{d.most:.3g}",
            f"{d.relative:.3g}",
            d.digests[0][:12] if d.same else " / ".join(digest[:12] for digest in d.digests),
        ]
        for d in distances
    ]
    return columns([head, *rows])


def _losses(pairs: Losses | None) -> list[str]:
    if pairs is None:
        return [
            "",
            "held-out loss: not compared, because the losses of one of them are missing",
        ]
    return [
        "",
        f"held-out loss: {pairs.first:.6f} then, {pairs.second:.6f} now; over {pairs.pairs} pairs "
        f"of example and timestep, the same for both, at most {pairs.most:.3g} apart",
    ]


def _verdict(same: bool, findings: Sequence[Finding]) -> str:
    if same:
        return "The same, bit for bit."
    other = [finding.name for finding in findings if finding.same is False]
    unknown = [finding.name for finding in findings if finding.same is None]
    if other:
        return f"Not the same; these differ: {', '.join(other)}."
    if unknown:
        return f"Not the same; it is not known whether these differ: {', '.join(unknown)}."
    return (
        "Not the same, although everything that was recorded is: differences in the last digits "
        "come from this machine's arithmetic, larger ones from something that is not recorded."
    )


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    sys.exit(status)
