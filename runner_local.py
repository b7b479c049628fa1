"""Runs the whole pipeline on this machine: `python runner_local.py --help`."""

from __future__ import annotations

import argparse
import datetime
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

# Nothing here may import TensorFlow or TFX: help and errors in the settings come at once.
from pipeline import command_line, housekeeping, summary
from pipeline import console as consoles
from pipeline.config import (
    ConfigError,
    RunConfig,
    check_output_folder,
    load_config,
    prompt_notes,
    resolve_base_weights,
    resolve_clip_model,
    resolve_dataset,
    save_config,
)
from trainer.training.interruption import TrainingInterruptedError

_EXIT_FAILED, _EXIT_CONFIG, _EXIT_INTERRUPTED = 1, 2, 130

_DESCRIPTION = """\
Fine-tunes Stable Diffusion on captioned pictures, from the dataset to served models: reads and
checks the data, encodes it, trains, compares the result with the base weights on held-out pictures
and, where it is better, pushes it to a serving directory. A step whose inputs and settings have not
changed is taken from the cache; a run that was killed goes on where it was."""

_EPILOG = """\
examples:
  python runner_local.py
      the sample dataset at preset tiny: a few minutes on two cores
  python runner_local.py --dataset ~/pictures --output runs/mine
      your own pictures: docs/datasets.md has the layouts
  python runner_local.py --dataset lambdalabs/naruto-blip-captions --output runs/naruto
      a dataset of the Hugging Face hub
  python runner_local.py --steps 2000 --learning-rate 5e-4
      trains anew with other settings; the data steps come from the cache
  python runner_local.py --config mine.yaml
      any other setting: see pipeline/default.yaml, where each is explained

what is written, all below --output:
  serving_model/        the pushed models, by version
  report/               pages about dataset and evaluation, pictures, loss curve, summary.json
  metadata.sqlite       ML Metadata: every step, its settings, inputs and outputs
  artifacts/            the outputs of every step
  checkpoints/          where a killed training goes on
  config.yaml           the settings that the latest run used
  logs/                 everything that was said, a file a run

exit status: 0 done, 1 a step failed, 2 a setting is wrong (nothing was started), 130 interrupted"""

_FLAGS: command_line.Flags = {
    **command_line.RUN_FLAGS,
    "where": ((("output",), "--output", "folder that everything is written under"),),
}


def _parser() -> command_line.Parser:
    parser = command_line.Parser(
        prog="runner_local.py",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    where = command_line.add_flags(parser, _FLAGS)["where"]
    where.add_argument(
        "--config", metavar="FILE", help="YAML file with settings; flags have the last word"
    )
    where.add_argument("--verbose", action="store_true", help="show what all libraries say, too")
    return parser


def _parse(argv: Sequence[str] | None) -> tuple[RunConfig, bool]:
    arguments, flags = command_line.parse(_parser(), _FLAGS, argv)
    return load_config(arguments.config, flags), arguments.verbose


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line `argv`; returns the exit status."""
    try:
        config, verbose = _parse(argv)
        config, fingerprint = resolve_dataset(config)
        check_output_folder(config.output)
        with housekeeping.output_lock(config.output), housekeeping.own_temporary_folder():
            return _run(config, fingerprint, verbose)
    except (
        ConfigError,
        housekeeping.OutputInUseError,
        housekeeping.DatabaseError,
    ) as error:
        print(f"error: {error}", file=sys.stderr)
        return _EXIT_CONFIG
    except KeyboardInterrupt:
        print("Interrupted before anything was started.", file=sys.stderr)
        return _EXIT_INTERRUPTED


def _run(config: RunConfig, fingerprint: str, verbose: bool) -> int:
    output = Path(config.output)
    serving_dir = str(output / "serving_model")
    log_path = output / "logs" / f"run-{datetime.datetime.now():%Y%m%d-%H%M%S}.log"
    consoles.quiet_environment(verbose)
    with consoles.open_console(log_path, verbose) as console:
        try:
            config, base_model = resolve_base_weights(config)
            config = resolve_clip_model(config)
            housekeeping.repair(str(output), serving_dir)
            save_config(config, output / "config.yaml")
            console.print(
                f"Fine-tuning {config.model.preset} on {summary.shown_path(config.dataset.path)}; "
                f"everything is written below {summary.shown_path(output)}."
            )
            for note in prompt_notes(config):
                console.print(f"note: {note}")
            console.print("Loading TensorFlow and TFX ...")
            from pipeline import local_runner
            from pipeline.pipeline import create_pipeline

            consoles.settle_logging()
            pipeline = create_pipeline(
                config,
                pipeline_root=str(output / housekeeping.ARTIFACTS_NAME),
                metadata_path=str(output / housekeeping.DATABASE_NAME),
                serving_dir=serving_dir,
                checkpoint_dir=str(output / "checkpoints"),
                dataset_fingerprint=fingerprint,
                base_model=base_model,
                beam_pipeline_args=local_runner.beam_pipeline_args(),
            )
            try:
                outcome = local_runner.ReportingDagRunner(console.print).run(pipeline)
            except local_runner.ComponentError as error:
                cause = error.__cause__
                if isinstance(cause, TrainingInterruptedError):
                    console.print(f"\nInterrupted: {cause}.")
                    return _EXIT_INTERRUPTED
                detail = "".join(traceback.format_exception(cause)) if cause else f"{error}\n"
                console.print(
                    f"\n{error.component} failed after {local_runner.duration(error.seconds)}:\n\n"
                    f"{detail}\nWhat was done before it is kept: the same command goes on from "
                    f"{error.component}. Full log: {summary.shown_path(log_path)}\n"
                )
                for label, command in summary.lineage_commands(config.output, "latest"):
                    console.print(f"  {label}: {command}")
                return _EXIT_FAILED
            console.print(f"\n{local_runner.outcome_table(outcome)}\n")
            if outcome.nothing_executed:
                console.print("Nothing to do: every step is up to date.\n")
            _show_result(config, [c.execution_id for c in outcome.components], serving_dir, console)
            return 0
        except KeyboardInterrupt:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            housekeeping.repair(str(output), serving_dir, reason="interrupted by the user")
            console.print("\nInterrupted: the same command goes on where this run was.")
            return _EXIT_INTERRUPTED


def _show_result(
    config: RunConfig,
    execution_ids: Sequence[int],
    serving_dir: str,
    console: consoles.Console,
) -> None:
    store = housekeeping.open_store(config.output, read_only=True)
    result = summary.read_result(store, execution_ids)
    summary.copy_reports(result, config.output)
    console.print(summary.last_screen(config, result, serving_dir, console.log_path))


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    sys.stderr.flush()
    # Everything is written; TensorFlow's and Beam's threads would only delay the end and add
    # their last words to the terminal.
    os._exit(status)
