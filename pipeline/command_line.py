"""Flags for settings, shared by the runners; importing this does not import TensorFlow."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from pipeline.config import ConfigError, default_values
from storage.addresses import redacted
from storage.flags import Command, tell_shell
from trainer.presets import PRESETS

# For each group of flags: the settings that a flag sets, its name, its help.
Flags = Mapping[str, tuple[tuple[tuple[str, ...], str, str], ...]]

RUN_FLAGS: Flags = {
    "data and model": (
        (("dataset.path",), "--dataset", "folder, archive, gs:// URL or dataset of the hub"),
        (("dataset.config",), "--dataset-config", "configuration (subset) of the dataset"),
        (("dataset.split",), "--dataset-split", "the dataset's own split to read, or all"),
        (("dataset.image_column",), "--image-column", "column with the pictures"),
        (("dataset.caption_column",), "--caption-column", "column with the captions"),
        (("dataset.form",), "--dataset-form", "how to read the dataset's files"),
        (("dataset.caption",), "--caption", "caption of pictures that have none"),
        (
            ("prior.caption",),
            "--prior",
            "class of the subject, such as 'a photo of a dog'",
        ),
        (
            ("prior.folder",),
            "--class-pictures",
            "folder with pictures of that class; without one, the base weights draw them",
        ),
        (
            ("dataset.captions_from",),
            "--captions-from",
            "where the captions of pictures that have none come from: their folder, file_name, or "
            "parameters, the prompts that A1111 or ComfyUI wrote into them",
        ),
        (
            ("dataset.caption_lines",),
            "--caption-lines",
            "lines of a caption file: joined or each",
        ),
        (
            ("dataset.max_rejected_fraction",),
            "--max-rejected-fraction",
            "the run stops if a larger fraction of the rows is unusable",
        ),
        (
            ("dataset.caption_template",),
            "--caption-template",
            'template for captions, such as "{caption}, in the style of sks"',
        ),
        (
            ("dataset.near_duplicates",),
            "--near-duplicates",
            "what to do with nearly identical pictures: keep_together, keep_one or ignore",
        ),
        (("dataset.withdrawn",), "--withdrawn", "file that lists what to take out of the dataset"),
        (("dataset.schema",), "--schema", "schema.pbtxt to validate the data against"),
        (
            ("dataset.fail_on_anomalies",),
            "--fail-on-anomalies",
            "whether an anomaly in the data's statistics stops the run, true or false",
        ),
        (
            ("drift.fail_on_drift",),
            "--fail-on-drift",
            "whether the run stops if the data has drifted from that of the model that training "
            "starts from, true or false",
        ),
        (("model.preset",), "--preset", f"what to fine-tune: {', '.join(PRESETS)}"),
        (("model.base_weights",), "--base-weights", "where to start: see docs/weights.md"),
        (
            ("model.start_from",),
            "--start-from",
            "base, or a model to continue from: latest_blessed, release:N, or its folder",
        ),
        (
            ("model.allow_withdrawn",),
            "--allow-withdrawn",
            "whether that may be a model trained on what --withdrawn lists, true or false",
        ),
        (("model.image_size",), "--image-size", "side of the square pictures, in pixels"),
        (("model.flip",), "--flip", "train on mirror images, too: auto, always or never"),
        (("model.crop",), "--crop", "which part of a picture to keep: centre or random"),
        (("word.token",), "--word", "train only a new word, such as <creature>"),
        (("word.initial",), "--initial-word", "word that the new word starts as, such as animal"),
        (
            ("model.buckets",),
            "--buckets",
            "whether pictures keep their shape, true or false",
        ),
    ),
    "training": (
        (("training.steps",), "--steps", "optimizer steps"),
        (("training.epochs",), "--epochs", "instead of steps: how often each picture is seen"),
        (("training.batch_size",), "--batch-size", "pictures per step"),
        (("training.learning_rate",), "--learning-rate", "peak learning rate"),
        (
            ("training.lora_rank",),
            "--lora-rank",
            "rank of adapters to train; 0: all weights",
        ),
        (("training.precision",), "--precision", "auto, float32, bfloat16 or float16"),
        (
            ("training.seed", "validation.seed"),
            "--seed",
            "seed of the training and of the pictures drawn; the held-out split and the noise for "
            "scoring it keep their own seeds, so that losses stay comparable",
        ),
        (
            ("validation.prompts",),
            "--prompt",
            "what to draw before and after training, instead of held-out captions; may be given "
            "several times",
        ),
    ),
}

# Text settings, whose values may look like numbers.
_TEXTS = (
    "dataset.path", "dataset.config", "dataset.split", "dataset.image_column",
    "dataset.caption_column", "dataset.form", "dataset.caption", "dataset.captions_from",
    "dataset.caption_lines", "dataset.caption_template", "dataset.withdrawn", "dataset.schema",
    "prior.caption", "prior.folder", "model.preset", "model.base_weights", "model.start_from",
    "word.token", "word.initial", "output",
    "vertex.project", "vertex.region", "vertex.pipeline_root", "vertex.serving_dir",
    "vertex.service_account", "vertex.network", "vertex.image", "vertex.accelerator",
    "vertex.api_endpoint",
)  # fmt: skip
# Settings that are lists: their flags may be given several times.
_LISTS = ("validation.prompts",)
_OPEN = {
    "dataset": "found",
    "prior": "none",
    "vertex": "none",
    "validation": "found",
    "word": "none",
}


# What other trainers call it.
_OTHER_NAMES = dict.fromkeys(("--resolution", "--size", "--width", "--height"), "--image-size")


class Parser(Command):
    """A `Command` that raises a `ConfigError` instead of ending the program."""

    def error(self, message: str) -> NoReturn:
        """Raises a `ConfigError`."""
        raise ConfigError(f"{redacted(message)} (see --help)")


def add_flags(parser: Parser, flags: Flags) -> dict[str, Any]:
    """Adds the groups of `flags`; returns argparse's group for each title, to extend it."""
    defaults = default_values()
    groups = {}
    for title, rows in flags.items():
        groups[title] = group = parser.add_argument_group(title)
        for keys, flag, text in rows:
            group.add_argument(
                flag,
                dest=flag,
                metavar=flag.strip("-").rpartition("-")[2].upper(),
                type=str if keys[0] in (*_TEXTS, *_LISTS) else _value,
                action="append" if keys[0] in _LISTS else "store",
                help=f"{text} (default: {_shown_default(keys[0], defaults[keys[0]])})",
            )
    return groups


def add_config_flag(to: argparse._ActionsContainer) -> None:
    """Adds `--config`, whose values are the files for `load_config`."""
    to.add_argument(
        "--config",
        metavar="FILE",
        action="append",
        help="YAML file with settings; flags override it. If it is given several times, the last "
        "file wins",
    )


def parse(
    parser: Parser, flags: Flags, argv: Sequence[str] | None
) -> tuple[argparse.Namespace, dict[str, tuple[str, Any]]]:
    """Parses a command line.

    Returns:
        What the parser found, and for every setting that a flag sets (name of the flag, value).

    Raises:
        ConfigError: There is no such flag, or its value is missing.
    """
    tell_shell(parser)
    arguments, unknown = parser.parse_known_args(argv)
    if unknown:
        names = [flag for action in parser._actions for flag in action.option_strings]
        name = unknown[0].partition("=")[0]
        close = [_OTHER_NAMES[name]] if name in _OTHER_NAMES else []
        close = close or difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean {close[0]}?" if close else "see --help for all flags"
        raise ConfigError(f"there is no flag {redacted(unknown[0])!r}: {hint}")
    given: dict[str, tuple[str, Any]] = {}
    for rows in flags.values():
        for keys, flag, _ in rows:
            value = getattr(arguments, flag)
            if value is not None:
                given |= dict.fromkeys(keys, (flag, value))
    return arguments, given


def _shown_default(key: str, default: Any) -> Any:
    section, _, name = key.rpartition(".")
    if default is not None:
        return str(default).lower() if isinstance(default, bool) else default
    if section in ("model", "training"):
        return ", ".join(
            f"{_recommended(preset, name)} at {preset.name}" for preset in PRESETS.values()
        )
    open_defaults = {
        "config": "the default one",
        "schema": "inferred",
        "caption": "none",
        "captions_from": "none",
    }
    return open_defaults.get(name, _OPEN[section])


def _recommended(preset: Any, name: str) -> str:
    value = preset.image_size if name == "image_size" else getattr(preset.training, name)
    return value if isinstance(value, str) else f"{value:g}"


def _value(text: str) -> bool | int | float | str:
    """A flag's text as a bool or number if it looks like one; the configuration validates it."""
    if text in ("true", "false"):
        return text == "true"
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            continue
    return text


def without(argv: Sequence[str], *flags: str) -> list[str]:
    """A command line without the given flags and their values."""
    kept = []
    words = iter(argv)
    for word in words:
        flag, has_value, _ = word.partition("=")
        if flag not in flags:
            kept.append(word)
        elif not has_value:
            next(words, None)
    return kept
