"""Loads defaults, a file and flags into one valid tree, and saves the tree to a file."""

from __future__ import annotations

import dataclasses
import json
import os
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pydantic
import yaml

from pipeline.config.checks import check_across_keys, check_preset
from pipeline.config.layering import DEFAULT, Files, FlagValues, Given, lay_over_defaults
from pipeline.config.printing import allowed
from pipeline.config.schema import (
    BASE,
    FOLDER,
    KEEPING,
    OUTPUT,
    SECTIONS,
    ConfigError,
    DiskCheck,
    KeepRuns,
    RunConfig,
    names_place,
)
from pipeline.config.words import of_word
from trainer.presets import Preset

REPO_ROOT = Path(__file__).resolve().parents[2]

# Drawing a picture up to this size takes a fraction of a second on two cores.
_SAMPLED_IMAGE_SIZE = 128
_NUM_SAMPLES = 32
# For larger pictures: just enough to tell whether a class is still known.
_NUM_LARGE_SAMPLES = 8
_NUM_TRAINING_SAMPLES = 16


def load_config(files: Files = (), flags: FlagValues | None = None) -> RunConfig:
    """Resolves and validates the configuration.

    Args:
        files: YAML files of the user, each of which may set any of the keys; the last one wins.
        flags: Override all files: dotted key, such as `training.steps`, to (name of the flag,
            value).

    Returns:
        The tree with every open value filled in by the preset. Local folders are absolute, except
        for the dataset, which may be on a hub and which `resolve_dataset` locates.

    Raises:
        ConfigError: In one line, what was given, what is allowed and where to change it.
    """
    given = lay_over_defaults(files, flags)
    preset = check_preset(given["model.preset"])
    given = _fill_in(given, preset)
    config = _with_absolute_paths(_build(given, preset), given)
    check_across_keys(config, preset, given)
    return config


def save_config(config: RunConfig, path: str | os.PathLike[str]) -> None:
    """Writes the resolved tree as YAML that `load_config` reads back to an equal tree."""
    target = Path(path)
    partial = target.with_name(f".{target.name}.tmp")
    tree = dataclasses.asdict(config)
    tree[OUTPUT] = {FOLDER: config.output, **{name: tree.pop(name) for name in KEEPING}}
    partial.write_text(
        "# The settings of the latest run, resolved. Use them again with --config.\n"
        + yaml.safe_dump(tree, sort_keys=False, allow_unicode=True, width=100),
        encoding="utf-8",
    )
    os.replace(partial, target)


def recorded_settings(config: RunConfig) -> str:
    """The settings of a run that makes a release, as JSON that `load_config` reads as a file.

    Without where the run writes, what it keeps and which Vertex machines it uses.
    """
    tree = dataclasses.asdict(config)
    for name in (OUTPUT, *KEEPING, "vertex"):
        del tree[name]
    return json.dumps(tree, sort_keys=True, ensure_ascii=False)


def _fill_in(given: Mapping[str, Given], preset: Preset) -> dict[str, Given]:
    """Fills in open values outside `training`, whose own classes fill in theirs."""
    filled = dict(given)

    def fill(key: str, value: Any, origin: str) -> None:
        if filled[key].value is None:
            filled[key] = Given(key, value, origin)

    fill("model.image_size", preset.image_size, "the preset's")
    for key, value in of_word(filled).items():
        fill(key, value, "for word.token")
    for name, value in dataclasses.asdict(preset.sampling).items():
        fill(f"validation.{name}", value, "the preset's")
        fill(f"prior.{name}", value, "the preset's")
    compared = "latest_blessed" if filled["model.start_from"].value == BASE else "started_from"
    fill("evaluation.baseline", compared, "for model.start_from")
    small = filled["model.image_size"].value <= _SAMPLED_IMAGE_SIZE
    compared_of_class = _NUM_SAMPLES if small else _NUM_LARGE_SAMPLES
    fill("prior.num_compared", compared_of_class, "for the size")
    fill("evaluation.num_samples", _NUM_SAMPLES if small else 0, "for the size")
    fill("evaluation.num_training_samples", _NUM_TRAINING_SAMPLES if small else 0, "for the size")
    return filled


def _build(given: Mapping[str, Given], preset: Preset) -> RunConfig:
    """Builds the tree; checks each key by itself."""
    sections = {name: _section(name, cls, given) for name, cls in SECTIONS.items()}
    sections["training"] = sections["training"].resolved(preset)
    output = given["output"]
    if not isinstance(output.value, str) or not output.value:
        raise ConfigError(f"{output} is impossible: it must be the path of a folder")
    disk_check = given["disk_check"]
    if disk_check.value not in typing.get_args(DiskCheck):
        raise ConfigError(f"{disk_check} is impossible: it must be {allowed(DiskCheck)}")
    keep_runs, keep_checkpoints = (given[f"{OUTPUT}.{name}"] for name in KEEPING)
    if type(keep_runs.value) is not int or keep_runs.value < 0:
        raise ConfigError(f"{keep_runs} is impossible: it must be {allowed(KeepRuns)}")
    if not isinstance(keep_checkpoints.value, bool):
        raise ConfigError(f"{keep_checkpoints} is impossible: it must be {allowed(bool)}")
    return RunConfig(
        **sections,
        output=output.value,
        keep_runs=keep_runs.value,
        keep_checkpoints=keep_checkpoints.value,
        disk_check=disk_check.value,
    )


def _section(section: str, cls: type, given: Mapping[str, Given]) -> Any:
    fields = {field.name: given[f"{section}.{field.name}"] for field in dataclasses.fields(cls)}
    try:
        return cls(**{name: field.value for name, field in fields.items()})
    except pydantic.ValidationError as error:
        hints = typing.get_type_hints(cls, include_extras=True)
        wrong = dict.fromkeys(str(e["loc"][0]) for e in error.errors())
        raise ConfigError(
            "; ".join(
                f"{fields[name]} is impossible: it must be {allowed(hints[name])}" for name in wrong
            )
        ) from None


def _with_absolute_paths(config: RunConfig, given: Mapping[str, Given]) -> RunConfig:
    dataset, model, evaluation = config.dataset, config.model, config.evaluation
    word, serving = config.word, config.serving
    if given["dataset.path"].origin == DEFAULT:
        dataset = dataclasses.replace(dataset, path=str(REPO_ROOT / dataset.path))
    if dataset.schema is not None:
        dataset = dataclasses.replace(dataset, schema=_absolute(dataset.schema))
    if dataset.withdrawn is not None:
        dataset = dataclasses.replace(dataset, withdrawn=_absolute(dataset.withdrawn))
    if model.base_weights not in ("default", "random"):
        model = dataclasses.replace(model, base_weights=_absolute(model.base_weights))
    if names_place(model.start_from):
        model = dataclasses.replace(model, start_from=_absolute(model.start_from))
    if evaluation.clip_model is not None:
        evaluation = dataclasses.replace(evaluation, clip_model=_absolute(evaluation.clip_model))
    if serving.sign_key is not None:
        serving = dataclasses.replace(serving, sign_key=_absolute(serving.sign_key))
    if serving.c2pa_certificate is not None:
        certificate = _absolute(serving.c2pa_certificate)
        serving = dataclasses.replace(serving, c2pa_certificate=certificate)
    if word.learned_from is not None:
        word = dataclasses.replace(word, learned_from=_absolute(word.learned_from))
    return dataclasses.replace(
        config,
        dataset=dataset,
        model=model,
        word=word,
        evaluation=evaluation,
        serving=serving,
        output=_absolute(config.output),
    )


def _absolute(path: str) -> str:
    return path if "://" in path else os.path.abspath(os.path.expanduser(path))
