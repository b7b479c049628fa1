# PYTHON_ARGCOMPLETE_OK
"""Runs the whole pipeline on this machine: `python runner_local.py --help`."""

from __future__ import annotations

import argparse
import datetime
import logging
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

# Nothing here may import TensorFlow or TFX: help and errors in the settings appear at once.
from pipeline import (
    cleaning,
    command_line,
    failures,
    housekeeping,
    interruption,
    repeat,
    starting,
    summary,
    watch,
    withdrawal,
)
from pipeline import console as consoles
from pipeline.config import (
    RunConfig,
    check_keys,
    check_output_folder,
    load_config,
    prompt_notes,
    resolve_base_weights,
    resolve_clip_model,
    resolve_dataset,
    save_config,
)
from pipeline.disk import check_disk
from pipeline.needs import Policy
from pipeline.outcome import ComponentError, RunOutcome, duration, outcome_table
from storage.addresses import redacted
from storage.commands import CHECKOUT, shown_path
from storage.flags import Words
from storage.local_stamp import local_stamp
from storage.withdrawn import KnownBy
from trainer.training.interruption import TrainingInterruptedError

if TYPE_CHECKING:
    from tfx.orchestration.pipeline import Pipeline

    from trainer.weights.base_model import BaseModel

logger = logging.getLogger("pipeline.runner_local")

_DESCRIPTION = """\
Fine-tunes Stable Diffusion on captioned pictures, from the dataset to served models: reads and
checks the data, encodes it, trains, compares the result with the baseline on held-out pictures and,
if it is better, pushes it to a serving directory. A step whose inputs and settings have not changed
is taken from the cache; after a run was killed, the next one goes on from there."""

_EXAMPLES: tuple[tuple[Words, str], ...] = (
    ((), "the sample dataset with the preset tiny: a few minutes on two cores"),
    (
        ("--dataset", "my/pictures", "--output", "runs/mine"),
        "your own pictures: docs/datasets.md lists the layouts",
    ),
    (
        ("--dataset", "lambdalabs/naruto-blip-captions", "--output", "runs/naruto"),
        "a dataset of the Hugging Face hub",
    ),
    (
        ("--steps", "2000", "--learning-rate", "5e-4"),
        "trains anew with other settings; the data steps come from the cache",
    ),
    (
        ("--steps", "2000", "--plan"),
        "shows what that would run, why and at what cost; runs nothing",
    ),
    (
        ("--config", "mine.yaml"),
        "any other setting: pipeline/default.yaml explains each one",
    ),
    (
        ("--config", "mine.yaml", "--watch", "15m"),
        "a run whenever the dataset's content changes: docs/watch.md",
    ),
)

_NOTES = """\
output files, all below --output:
  serving_model/        the pushed models, by version
  report/               pages about dataset and evaluation, pictures, loss curve, summary.json
  metadata.sqlite       ML Metadata: every step, its settings, inputs and outputs
  artifacts/            the outputs of every step
  checkpoints/          where a killed training goes on
  config.yaml           the settings that the latest run used
  logs/                 all messages, one file per run"""

_FLAGS: command_line.Flags = {
    **command_line.RUN_FLAGS,
    "where": ((("output",), "--output", "folder that everything is written to"),),
}


def command() -> command_line.Parser:
    """The parser of the command line."""
    parser = command_line.Parser(
        summary.RUNNER, _DESCRIPTION, _EXAMPLES, notes=_NOTES, failed="a step failed"
    )
    where = command_line.add_flags(parser, _FLAGS)["where"]
    command_line.add_config_flag(where)
    where.add_argument("--verbose", action="store_true", help="also show all messages of libraries")
    where.add_argument(
        "--plan",
        action="store_true",
        help="show what would run, why, at what cost, and what would be refused; run nothing",
    )
    where.add_argument(
        "--watch",
        metavar="TIME",
        help="look at the dataset every TIME, such as 15m, and run when its content has changed",
    )
    return parser


def _parse(argv: Sequence[str] | None) -> tuple[RunConfig, argparse.Namespace]:
    arguments, flags = command_line.parse(command(), _FLAGS, argv)
    return load_config(arguments.config, flags), arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line `argv`; returns the exit status."""
    return failures.exit_status(lambda: _main(sys.argv[1:] if argv is None else argv))


def _main(argv: Sequence[str]) -> int:
    config, arguments = _parse(argv)
    if arguments.watch is not None:
        return _watch(config, arguments.watch, argv)
    check_keys(config)
    config, fingerprint = resolve_dataset(config)
    if arguments.plan:
        with housekeeping.own_temporary_folder() as folder:
            return _plan(config, fingerprint, folder)
    check_output_folder(config.output)
    with housekeeping.output_lock(config.output), housekeeping.own_temporary_folder():
        return _run(config, fingerprint, arguments.verbose, argv)


def _watch(config: RunConfig, interval: str, argv: Sequence[str]) -> int:
    """Runs whenever the dataset's content changes, until a signal ends it."""
    seconds = watch.parse_interval(interval)
    check_output_folder(config.output)
    others = command_line.without(argv, "--watch")
    command = [sys.executable, str(CHECKOUT / summary.RUNNER), *others]
    known: dict[object, str] = {}

    def look() -> str:
        # The settings may have been edited in the meantime.
        settings, _ = _parse(others)
        listed = [settings.dataset.withdrawn] if settings.dataset.withdrawn else []
        stamp = local_stamp(settings.dataset.path, *listed)
        facts = None if stamp is None else (stamp, settings.dataset)
        if facts is not None and facts in known:
            return known[facts]
        _, fingerprint = resolve_dataset(settings)
        known.clear()
        if facts is not None:
            known[facts] = fingerprint
        return fingerprint

    def say(text: str) -> None:
        print(redacted(text), flush=True)

    say(
        f"Watching {shown_path(config.dataset.path)}, every {interval}; runs write below "
        f"{shown_path(config.output)}, their logs in logs/."
    )
    watcher = watch.Watcher(
        look,
        lambda: watch.run_process(command, config.output),
        interval=seconds,
        busy=lambda: watch.in_use(config.output),
        say=say,
    )
    try:
        watcher.watch()
    except KeyboardInterrupt as stop:
        interruption.ignore_signals()
        number = interruption.signal_of(stop)
        say(f"Ended by {interruption.in_words(number)}.")
        return interruption.exit_status(number)


def _run(config: RunConfig, fingerprint: str, verbose: bool, argv: Sequence[str]) -> int:
    output = Path(config.output)
    serving_dir = str(output / "serving_model")
    log_path = output / "logs" / f"run-{datetime.datetime.now():%Y%m%d-%H%M%S}.log"
    consoles.quiet_environment(verbose)
    with consoles.open_console(log_path, verbose) as console:
        try:
            config, base_model = resolve_base_weights(config)
            config = resolve_clip_model(config)
            housekeeping.repair(str(output), serving_dir)
            store = housekeeping.open_store(str(output), read_only=True)
            start = starting.find_start(config, base_model, fingerprint, store, serving_dir)
            identity = "" if start is None else start.identity
            key = repeat.run_key(config, fingerprint, base_model, identity)
            outcome = repeat.find_done(store, key)
            looked_up = outcome is not None
            known_by = None
            if outcome is None:
                roots = [str(output), serving_dir]
                known_by = withdrawal.look_up(config, start, str(output), roots)
            save_config(config, output / "config.yaml")
            console.print(
                f"Fine-tuning {config.model.preset} on {shown_path(config.dataset.path)}; "
                f"everything is written below {shown_path(output)}."
            )
            if said := starting.told(config.model.start_from, start):
                console.print(said)
            if said := withdrawal.told(config, start, known_by):
                console.print(said)
            for note in prompt_notes(config):
                console.print(f"note: {note}")
            if outcome is None:
                check_disk(config, unfinished=repeat.ended_badly(store))
                outcome = _run_pipeline(
                    config, fingerprint, base_model, start, known_by, serving_dir, console
                )
                repeat.remember(housekeeping.open_store(str(output)), outcome, key)
            console.print(f"\n{outcome_table(outcome)}\n")
            if outcome.nothing_executed:
                recorded = "; no run was started, and none is recorded" if looked_up else ""
                console.print(f"Nothing to do: every step is up to date{recorded}.\n")
            if config.keep_runs:
                policy = Policy(config.keep_runs, False, config.keep_checkpoints)
                store = housekeeping.open_store(str(output))
                if removed := cleaning.after_run(store, str(output), policy):
                    console.print(f"{removed}\n")
            _show_result(config, outcome, serving_dir, console, argv)
            return 0
        except ComponentError as error:
            cause = error.__cause__
            if isinstance(cause, TrainingInterruptedError):
                console.print(f"\nInterrupted: {cause}.")
                return interruption.exit_status(cause.signal)
            console.print(
                f"\n{error.component} failed after {duration(error.seconds)}: "
                f"{_told(cause or error)}\n"
                "\nWhat was done before it is kept: the same command goes on from "
                f"{error.component}. Full log: {shown_path(log_path)}\n"
            )
            for label, command in summary.lineage_commands(config.output, "latest"):
                console.print(f"  {label}: {command}")
            return failures.EXIT_FAILED
        except Exception as error:
            logger.debug("The run failed.", exc_info=error)
            raise
        except KeyboardInterrupt as stop:
            interruption.ignore_signals()
            number = interruption.signal_of(stop)
            said = interruption.in_words(number)
            ended = housekeeping.repair(str(output), serving_dir, f"interrupted by {said}").failed
            console.print(
                f"\nInterrupted by {said}{' during ' if ended else ''}{' and '.join(ended)}: what "
                "was done before is kept, and the same command goes on from there."
            )
            return interruption.exit_status(number)


def _plan(config: RunConfig, fingerprint: str, folder: str) -> int:
    """Shows what a run would do; writes only into `folder`."""
    consoles.quiet_environment(verbose=False)
    with consoles.open_console(Path(folder) / "plan.log", verbose=False) as console:
        config, base_model = resolve_base_weights(config)
        config = resolve_clip_model(config)
        serving_dir = str(Path(config.output) / "serving_model")
        store = housekeeping.copy_as_repaired(config.output, serving_dir, folder)
        start = starting.find_start(config, base_model, fingerprint, store, serving_dir)
        place = config.output if os.path.isdir(config.output) else folder
        known_by = withdrawal.look_up(config, start, place, [config.output, serving_dir])
        estimate = check_disk(config, unfinished=repeat.ended_badly(store))
        console.print(
            f"Fine-tuning {config.model.preset} on {shown_path(config.dataset.path)} would write "
            f"below {shown_path(config.output)}. Nothing is run."
        )
        if said := starting.told(config.model.start_from, start):
            console.print(said)
        if said := withdrawal.told(config, start, known_by):
            console.print(said)
        for note in (*prompt_notes(config), watch.in_use(config.output)):
            if note:
                console.print(f"note: {note}")
        console.print("Loading TensorFlow and TFX ...\n")
        from pipeline import plan

        training = config.training
        pictures = None if training.steps is None else training.steps * training.batch_size
        pipeline = _pipeline(config, fingerprint, base_model, start, known_by, serving_dir, folder)
        steps = plan.plan_steps(pipeline, config.output, pictures)
        for line in plan.plan_table(steps):
            console.print(line)
        console.print(f"\n  memory  {plan.memory_text(config, store)}\n  disk    {estimate}")
        return 0


def _run_pipeline(
    config: RunConfig,
    fingerprint: str,
    base_model: BaseModel,
    start: starting.Start | None,
    known_by: KnownBy | None,
    serving_dir: str,
    console: consoles.Console,
) -> RunOutcome:
    console.print("Loading TensorFlow and TFX ...")
    from pipeline import local_runner

    pipeline = _pipeline(
        config, fingerprint, base_model, start, known_by, serving_dir, config.output
    )
    return local_runner.ReportingDagRunner(console.print).run(pipeline)


def _pipeline(
    config: RunConfig,
    fingerprint: str,
    base_model: BaseModel,
    start: starting.Start | None,
    known_by: KnownBy | None,
    serving_dir: str,
    metadata_dir: str,
) -> Pipeline:
    from pipeline import local_runner
    from pipeline.pipeline import create_pipeline

    consoles.settle_logging()
    output = Path(config.output)
    return create_pipeline(
        config,
        pipeline_root=str(output / housekeeping.ARTIFACTS_NAME),
        metadata_path=os.path.join(metadata_dir, housekeeping.DATABASE_NAME),
        serving_dir=serving_dir,
        checkpoint_dir=str(output / "checkpoints"),
        latents_index=str(output / "latents_index"),
        dataset_fingerprint=fingerprint,
        base_model=base_model,
        start=start,
        known_by=known_by,
        beam_pipeline_args=local_runner.beam_pipeline_args(),
    )


def _told(error: BaseException) -> str:
    """What the screen shows of a step's error; the log has all of it."""
    logger.debug("The step failed.", exc_info=error)
    explanation = failures.explanation(error)
    if explanation is not None:
        return explanation
    if isinstance(error, ComponentError):
        return str(error)
    return "\n\n" + "".join(traceback.format_exception(error)).rstrip()


def _show_result(
    config: RunConfig,
    outcome: RunOutcome,
    serving_dir: str,
    console: consoles.Console,
    argv: Sequence[str],
) -> None:
    store = housekeeping.open_store(config.output, read_only=True)
    result = summary.read_result(store, [c.execution_id for c in outcome.components])
    summary.copy_reports(result, config.output)
    console.print(summary.last_screen(config, result, serving_dir, console.log_path, argv))


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    sys.stderr.flush()
    # Everything is written; the threads of TensorFlow and Beam would only delay the end and write
    # to the terminal.
    os._exit(status)
