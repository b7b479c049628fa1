"""Runs the whole pipeline on this machine: `python runner_local.py --help`."""

from __future__ import annotations

import argparse
import datetime
import difflib
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

# Nothing here may import TensorFlow or TFX: help and errors in the settings come at once.
from pipeline import config as settings
from pipeline import console as consoles
from pipeline import housekeeping, summary
from trainer.interruption import TrainingInterruptedError
from trainer.presets import PRESETS

_EXIT_FAILED, _EXIT_SETTINGS, _EXIT_INTERRUPTED = 1, 2, 130

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
  report/               pictures before and after, loss curve, summary.json
  metadata.sqlite       ML Metadata: every step, its settings, inputs and outputs
  artifacts/            the outputs of every step
  checkpoints/          where a killed training goes on
  config.yaml           the settings that the latest run used
  logs/                 everything that was said, a file a run

exit status: 0 done, 1 a step failed, 2 a setting is wrong (nothing was started), 130 interrupted"""

# For each group of flags: the settings that a flag sets, its name, its help.
_FLAGS: dict[str, tuple[tuple[tuple[str, ...], str, str], ...]] = {
    "data and model": (
        (("dataset.path",), "--dataset", "folder, archive, gs:// URL or dataset of the hub"),
        (("dataset.config",), "--dataset-config", "configuration (subset) of the dataset"),
        (("dataset.split",), "--dataset-split", "the dataset's own split to read, or all"),
        (("dataset.image_column",), "--image-column", "column with the pictures"),
        (("dataset.caption_column",), "--caption-column", "column with the captions"),
        (
            ("dataset.max_rejected_fraction",),
            "--max-rejected-fraction",
            "fraction of unusable rows above which the run stops",
        ),
        (("dataset.schema",), "--schema", "schema.pbtxt to hold the data against"),
        (
            ("dataset.fail_on_anomalies",),
            "--fail-on-anomalies",
            "whether an anomaly in the data's statistics stops the run, true or false",
        ),
        (("model.preset",), "--preset", f"what to fine-tune: {', '.join(PRESETS)}"),
        (("model.base_weights",), "--base-weights", "where to start: see docs/weights.md"),
        (("model.image_size",), "--image-size", "side of the pictures in pixels"),
        (("model.flip",), "--flip", "mirror images, too: auto, always or never"),
        (("model.crop",), "--crop", "part of a picture that is kept: centre or random"),
    ),
    "training": (
        (("training.steps",), "--steps", "optimizer steps"),
        (("training.epochs",), "--epochs", "instead of steps: how often each picture is seen"),
        (("training.batch_size",), "--batch-size", "pictures a step"),
        (("training.learning_rate",), "--learning-rate", "peak learning rate"),
        (("training.lora_rank",), "--lora-rank", "rank of adapters to train; 0: all weights"),
        (("training.precision",), "--precision", "float32, bfloat16 or float16"),
        (
            ("training.seed", "validation.seed"),
            "--seed",
            "seed of the training and of the pictures that are drawn; what is held out, and the "
            "noise it is scored with, keep their own seeds, so that losses can be compared",
        ),
    ),
    "where": ((("output",), "--output", "folder that everything is written under"),),
}

# These may look like numbers.
_TEXTS = (
    "dataset.path", "dataset.config", "dataset.split", "dataset.image_column",
    "dataset.caption_column", "dataset.schema", "model.preset", "model.base_weights", "output",
)  # fmt: skip


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise settings.ConfigError(f"{message} (see --help)")


def _parser() -> argparse.ArgumentParser:
    defaults = settings.default_settings()
    parser = _Parser(
        prog="runner_local.py",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    for title, flags in _FLAGS.items():
        group = parser.add_argument_group(title)
        for keys, flag, text in flags:
            default = defaults[keys[0]]
            section, _, name = keys[0].rpartition(".")
            if default is None and section == "dataset":
                default = {"config": "the default one", "schema": "inferred"}.get(name, "found")
            elif default is None:
                default = ", ".join(
                    f"{_recommended(preset, name):g} at {preset.name}"
                    for preset in PRESETS.values()
                )
            group.add_argument(
                flag,
                dest=flag,
                metavar=flag.strip("-").rpartition("-")[2].upper(),
                type=str if keys[0] in _TEXTS else _value,
                help=f"{text} (default: {default})",
            )
        if title == "where":
            group.add_argument(
                "--config", metavar="FILE", help="YAML file with settings; flags have the last word"
            )
            group.add_argument(
                "--verbose", action="store_true", help="show what all libraries say, too"
            )
    return parser


def _recommended(preset: Any, name: str) -> float:
    return preset.image_size if name == "image_size" else getattr(preset.training, name)


def _value(text: str) -> bool | int | float | str:
    """A flag's text as the value that it is, if it is one; the configuration judges it."""
    if text in ("true", "false"):
        return text == "true"
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            continue
    return text


def _parse(argv: Sequence[str] | None) -> tuple[settings.RunConfig, bool]:
    parser = _parser()
    arguments, unknown = parser.parse_known_args(argv)
    if unknown:
        names = [flag for action in parser._actions for flag in action.option_strings]
        close = difflib.get_close_matches(unknown[0].partition("=")[0], names, n=1)
        hint = f"did you mean {close[0]}?" if close else "see --help for the flags there are"
        raise settings.ConfigError(f"there is no flag {unknown[0]!r}: {hint}")
    flags: dict[str, tuple[str, Any]] = {}
    for group in _FLAGS.values():
        for keys, flag, _ in group:
            value = getattr(arguments, flag)
            if value is not None:
                flags |= dict.fromkeys(keys, (flag, value))
    return settings.load_config(arguments.config, flags), arguments.verbose


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line `argv`; returns the exit status."""
    try:
        config, verbose = _parse(argv)
        config, fingerprint = settings.resolve_dataset(config)
        settings.check_output_folder(config.output)
        with housekeeping.output_lock(config.output):
            return _run(config, fingerprint, verbose)
    except (
        settings.ConfigError,
        housekeeping.OutputInUseError,
        housekeeping.DatabaseError,
    ) as error:
        print(f"error: {error}", file=sys.stderr)
        return _EXIT_SETTINGS
    except KeyboardInterrupt:
        print("Interrupted before anything was started.", file=sys.stderr)
        return _EXIT_INTERRUPTED


def _run(config: settings.RunConfig, fingerprint: str, verbose: bool) -> int:
    output = Path(config.output)
    serving_dir = str(output / "serving_model")
    log_path = output / "logs" / f"run-{datetime.datetime.now():%Y%m%d-%H%M%S}.log"
    consoles.quiet_environment(verbose)
    with consoles.open_console(log_path, verbose) as console:
        try:
            config = settings.resolve_base_weights(config)
            housekeeping.repair(str(output), serving_dir)
            settings.save_config(config, output / "config.yaml")
            console.print(
                f"Fine-tuning {config.model.preset} on {summary.shown_path(config.dataset.path)}; "
                f"everything is written below {summary.shown_path(output)}."
            )
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
    config: settings.RunConfig,
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
