"""Removes what nothing needs from an output folder: `python -m pipeline.clean --help`."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence

from ml_metadata.metadata_store import metadata_store

from pipeline import failures, housekeeping, interruption
from pipeline.cleaning import SERVING_NAME, Plan, carry_out, counted, make_plan
from pipeline.disk import in_words
from pipeline.lineage.locations import DATABASE_NAME, DEFAULT_STORE
from pipeline.needs import Policy
from storage.flags import Command, Words, positive_number
from storage.user_errors import UserError

_DESCRIPTION = """\
Removes what nothing needs from a run's output folder: models that are neither blessed nor the
latest, examples and latents that no remaining model was made from, and the checkpoints of finished
trainings. Releases, blessed models, the latest run and everything they were made from stay, and so
do the reports, statistics and curves of all runs. ML Metadata records what was removed: the
lineage shows it, and a run that needs it again makes it again."""

_EXAMPLES: tuple[tuple[Words, str], ...] = (
    (("--dry-run",), "shows what would be removed"),
    (("--output", "runs/mine"), ""),
    (("--keep-runs", "3"), ""),
)


def command() -> Command:
    """The parser of the command line."""
    parser = Command(
        "pipeline.clean",
        _DESCRIPTION,
        _EXAMPLES,
        notes="For details, see docs/disk.md. No run may be active in the same folder. If a\n"
        "clean-up is interrupted, the next one finishes it.",
        failed="something could not be removed",
    )
    parser.add_argument(
        "--output",
        metavar="FOLDER",
        default=DEFAULT_STORE,
        help="a run's output folder (default: %(default)s)",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="show what would be removed, and remove nothing"
    )
    parser.add_argument(
        "--keep-runs",
        metavar="N",
        type=positive_number,
        help="keep everything that the newest N runs made; of older blessed models, keep only "
        "releases and the latest one, as output.keep_runs does after every run "
        "(default: the latest run, and every blessed model)",
    )
    parser.add_argument(
        "--keep-checkpoints",
        action="store_true",
        help="keep the checkpoints of finished trainings for as long as their models stay",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line `argv`; returns the exit status."""
    arguments = command().parse_args(argv)
    return failures.exit_status(lambda: _main(arguments))


def _main(arguments: argparse.Namespace) -> int:
    if "://" in arguments.output:
        raise UserError(
            f"--output {arguments.output} is not a folder on this machine: docs/disk.md says what "
            "can be removed from runs on Vertex"
        )
    output = os.path.abspath(arguments.output)
    if not os.path.isfile(os.path.join(output, DATABASE_NAME)):
        raise UserError(f"there is no run in {output}: name a run's folder with --output")
    policy = Policy(
        keep_runs=arguments.keep_runs or 1,
        keep_blessed=arguments.keep_runs is None,
        keep_checkpoints=arguments.keep_checkpoints,
    )
    if arguments.dry_run:
        with _copied_store(output) as store:
            plan = make_plan(store, output, policy)
        print(_told(plan, "would be removed"))
        if plan.removals:
            print("\nNothing was removed. Run it without --dry-run to remove it.")
        return 0
    with housekeeping.output_lock(output):
        try:
            housekeeping.repair(output, os.path.join(output, SERVING_NAME))
            store = housekeeping.open_store(output)
            plan = make_plan(store, output, policy)
            carry_out(store, plan)
        except KeyboardInterrupt as stop:
            print("Interrupted: the next clean-up finishes this one.", file=sys.stderr)
            return interruption.exit_status(interruption.signal_of(stop))
    print(_told(plan, "removed"))
    return 0


@contextlib.contextmanager
def _copied_store(output: str) -> Iterator[metadata_store.MetadataStore]:
    """A copy of an output folder's store, valid at its present place; nothing is written to it."""
    with tempfile.TemporaryDirectory() as folder:
        housekeeping.copy_database(output, folder)
        yield housekeeping.open_store(folder)


def _told(plan: Plan, title: str) -> str:
    """What is removed and what stays, as text for people."""
    rows = [(r.what, in_words(r.size), r.why) for r in plan.removals]
    lines = [f"{title}: {counted(plan.removals) if rows else 'nothing'}", *_columns(rows)]
    if rows:
        lines.append(f"  {in_words(plan.size)} in all")
    if plan.kept:
        kept = sorted(plan.kept.items(), key=lambda item: -item[1])
        lines += ["stays:", *_columns([(f"for {n}", in_words(s), "") for n, s in kept])]
    return "\n".join(lines)


def _columns(rows: Iterable[tuple[str, str, str]]) -> list[str]:
    rows = list(rows)
    widths = [max((len(row[i]) for row in rows), default=0) for i in range(2)]
    return [
        f"  {name:<{widths[0]}}  {size:>{widths[1]}}  {why}".rstrip() for name, size, why in rows
    ]


if __name__ == "__main__":
    sys.exit(main())
