"""Checks between keys, and between a key and what it names."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from google.protobuf import text_format
from tensorflow_metadata.proto.v0 import schema_pb2

from pipeline.config.buckets import BUCKET_LIMITS, bucket_limits
from pipeline.config.layering import Given
from pipeline.config.printing import listed
from pipeline.config.schema import (
    RELEASE,
    ConfigError,
    DatasetConfig,
    EvaluationConfig,
    ModelConfig,
    RunConfig,
    names_place,
)
from pipeline.config.words import check_word, new_word_of
from serving.request import cut_note, may_be_cut
from storage.plain_text import is_blank, plain
from trainer.data.buckets import ImpossibleLimitError
from trainer.presets import Preset, get_preset, preset_names
from trainer.training_config import ResolvedTrainingConfig


def check_preset(given: Given) -> Preset:
    """The preset of the given name; raises a `ConfigError` if there is none."""
    if not isinstance(given.value, str) or given.value not in preset_names():
        raise ConfigError(
            f"{given} is not a preset: choose one of {listed(preset_names(), given.value)}"
        )
    return get_preset(given.value)


def check_across_keys(config: RunConfig, preset: Preset, given: Mapping[str, Given]) -> None:
    """Raises a `ConfigError` if keys that are each possible contradict each other.

    Args:
        config: The tree made from `given`, with absolute local paths.
        preset: The preset that `config` names.
        given: The value and origin of every key, for messages.
    """
    _check_output(config.output, given["output"])
    try:
        preset.check_image_size(config.model.image_size)
    except ValueError as error:
        raise ConfigError(f"{given['model.image_size']}: {error}") from None
    _check_buckets(config.model, preset, given)
    _check_training(config.training, given)
    _check_tuning(config, given)
    for name, allowed in config.vertex.problems():
        raise ConfigError(f"{given[f'vertex.{name}']} is impossible: {allowed}")
    _check_captions(config.dataset, given)
    check_word(config, preset, given)
    if config.dataset.schema is not None:
        _check_schema(config.dataset.schema, given["dataset.schema"])
    _check_base_weights(config.model.base_weights, preset, given["model.base_weights"])
    _check_start_from(config.model.start_from, given["model.start_from"])
    if config.serving.checkpoint is not None:
        _check_checkpoint(preset, given["serving.checkpoint"])
    if config.serving.sign_key is not None and config.serving.sign_key_env is not None:
        raise ConfigError(
            f"{given['serving.sign_key']} is impossible with serving.sign_key_env: both name a "
            "key; give only one of them"
        )
    if (config.serving.c2pa_certificate is None) != (config.serving.c2pa_key_env is None):
        raise ConfigError(
            f"{given['serving.c2pa_certificate']} and {given['serving.c2pa_key_env']} belong "
            "together: give both, or null for both"
        )
    check_measures(config.evaluation.measures, str(given["evaluation.measures"]))
    _check_prompts(config.validation.prompts or ())
    if config.evaluation.clip_model is not None and not config.evaluation.num_samples:
        raise ConfigError(
            f"{given['evaluation.clip_model']} is impossible with evaluation.num_samples = 0: "
            "there are no pictures to score"
        )
    _check_remembering(config.evaluation, given)
    _check_prior(config, given)


def _check_prior(config: RunConfig, given: Mapping[str, Given]) -> None:
    prior = config.prior
    if prior.caption is None:
        for name in ("folder", "max_distance"):
            if getattr(prior, name) is not None:
                raise ConfigError(
                    f"{given[f'prior.{name}']} is impossible without prior.caption: say what "
                    "pictures of the class show, such as --prior 'a photo of a dog'"
                )
        return
    if is_blank(prior.caption):
        raise ConfigError(
            f"{given['prior.caption']} is impossible: it must say what pictures of the class show, "
            "such as 'a photo of a dog'"
        )
    if config.dataset.caption is not None and (
        prior.plain_caption == plain(config.dataset.caption).strip()
    ):
        raise ConfigError(
            f"{given['prior.caption']} is impossible: it equals dataset.caption, but must leave "
            "out the subject's name, such as sks, or the model learns that name for the whole class"
        )
    if config.model.buckets:
        raise ConfigError(
            f"{given['prior.caption']} is impossible with model.buckets = true: class pictures are "
            "squares, and so must be all pictures in their batch; use only one of the two"
        )
    if any(map(is_blank, prior.scenes)):
        raise ConfigError(f"{given['prior.scenes']} is impossible: one of the scenes is empty")
    if prior.num_compared == 1 or (prior.max_distance is not None and not prior.num_compared):
        raise ConfigError(
            f"{given['prior.num_compared']} is impossible: it must be at least 2, as distances are "
            "relative to that between two pictures, or 0 without prior.max_distance to draw none"
        )


def _check_buckets(model: ModelConfig, preset: Preset, given: Mapping[str, Given]) -> None:
    if not model.buckets:
        for name in BUCKET_LIMITS:
            if getattr(model, f"bucket_{name}") is not None:
                raise ConfigError(
                    f"{given[f'model.bucket_{name}']} is impossible with model.buckets = false: "
                    "set model.buckets to true, or this to null"
                )
    try:
        bucket_limits(model, preset)
    except ImpossibleLimitError as error:
        wrong = given[f"model.bucket_{error.name}"]
        raise ConfigError(f"{wrong} is impossible: {error}") from None


def _check_remembering(evaluation: EvaluationConfig, given: Mapping[str, Given]) -> None:
    """A limit needs the measurement that it applies to."""
    for limit, number, what in (
        ("max_memorization_gap", "num_training_pictures", "no training pictures are scored"),
        ("max_copies", "num_training_samples", "no pictures are drawn for training captions"),
    ):
        if getattr(evaluation, limit) is not None and not getattr(evaluation, number):
            raise ConfigError(
                f"{given[f'evaluation.{limit}']} is impossible with evaluation.{number} = 0: {what}"
            )


def _check_captions(dataset: DatasetConfig, given: Mapping[str, Given]) -> None:
    if dataset.caption_template is not None:
        # Without a template, the tokenizer is not needed.
        from components.caption_example_gen.captions import CaptionTemplate

        try:
            CaptionTemplate.parse(dataset.caption_template)
        except ValueError as error:
            raise ConfigError(
                f"{given['dataset.caption_template']} is not a template: {error}"
            ) from None
    if dataset.tag_dropout and not dataset.tag_shuffle:
        raise ConfigError(
            f"{given['dataset.tag_dropout']} is impossible with dataset.tag_shuffle = 0: set "
            "dataset.tag_shuffle to the number of variants of a caption, such as 8"
        )


def prompt_notes(config: RunConfig) -> Iterator[str]:
    """For each validation prompt that is too long for the text encoder, says what it loses."""
    # The tokenizer takes a third of a second, so it is used only if necessary.
    word = new_word_of(config.word)
    for prompt in config.validation.prompts or ():
        # A word with several vectors may have more tokens than letters.
        if word is None and not may_be_cut(prompt):
            continue
        from trainer.text.tokenizer import cut_words

        if cut := cut_words(prompt, word=word):
            yield cut_note(prompt, cut)


def check_measures(names: Sequence[str] | None, given: str) -> None:
    """Raises a `ConfigError` if a measure does not exist, or is always taken."""
    from components.measures import MeasureSettings, applying

    try:
        applying(MeasureSettings(asked_for=tuple(names or ())))
    except ValueError as error:
        raise ConfigError(f"{given}: {error}") from None


def _check_checkpoint(preset: Preset, given: Given) -> None:
    # Importing huggingface_hub takes half a second; import it only if needed.
    from trainer.weights import original_layout
    from trainer.weights.errors import WeightsError

    try:
        original_layout.check_preset(preset)
    except WeightsError as error:
        raise ConfigError(f"{given} is impossible: {error}") from None


def _check_output(output: str, given: Given) -> None:
    if "://" in output:
        raise ConfigError(
            f"{given} is impossible: a local run needs a folder on this machine, because its "
            "metadata is an SQLite database"
        )


def _check_training(training: ResolvedTrainingConfig, given: Mapping[str, Given]) -> None:
    def refuse(name: str, why: str) -> NoReturn:
        raise ConfigError(f"{given[f'training.{name}']} is impossible with training.{why}")

    steps, warmup_steps = training.steps, training.warmup_steps
    if steps is not None and training.epochs:
        refuse("epochs", f"steps = {steps}: give only one; set epochs to 0 or steps to null")
    if steps is not None and warmup_steps is not None and warmup_steps > steps:
        refuse("warmup_steps", f"steps = {steps}: it must not be larger")
    if training.batch_size % training.accumulation_steps:
        refuse(
            "accumulation_steps",
            f"batch_size = {training.batch_size}: it must divide batch_size, so that all parts "
            "have the same size",
        )
    if training.chooses and training.evaluate_every_steps == 0:
        name = "keep" if training.keep == "best" else "stop_early"
        refuse(name, "evaluate_every_steps = 0: without held-out losses nothing can be chosen")
    if training.lora_alpha and not training.lora_rank:
        refuse(
            "lora_alpha",
            "lora_rank = 0, because there are no adapters: set lora_rank, or lora_alpha to 0",
        )


def _check_tuning(config: RunConfig, given: Mapping[str, Given]) -> None:
    tuning = config.tuning

    def refuse(name: str, why: str) -> NoReturn:
        raise ConfigError(f"{given[f'tuning.{name}']} is impossible{why}")

    if tuning.trials == 1:
        refuse("trials", ": one trial has nothing to be compared with; try 12, or 0 for no search")
    range_given = tuning.learning_rate
    if range_given and (len(range_given) != 2 or range_given[0] >= range_given[1]):
        refuse(
            "learning_rate",
            ": it must be the lowest and the highest rate, such as [1e-4, 1e-2]; null for a tenth "
            "to ten times training.learning_rate, or [] not to search it",
        )
    if tuning.rank and not config.training.lora_rank:
        refuse(
            "rank",
            " with training.lora_rank = 0, because there are no adapters: set training.lora_rank "
            "to one of these ranks, or tuning.rank to []",
        )
    if not tuning.trials:
        return
    for name in ("rank", "ema_decay", "min_snr_gamma"):
        values = getattr(tuning, name)
        if len(set(values)) < len(values):
            refuse(name, ": it has a value twice")
    if range_given == () and sum(len(v) > 1 for v in tuning.choices.values()) == 0:
        refuse(
            "trials",
            ": there is nothing to search; give tuning.learning_rate a range, or "
            "tuning.ema_decay, min_snr_gamma or rank several values",
        )


def _check_schema(path: str, given: Given) -> None:
    if "://" in path:
        return
    try:
        text_format.Parse(Path(path).read_text(encoding="utf-8"), schema_pb2.Schema())
    except (OSError, ValueError, text_format.ParseError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it does not hold a schema"
        raise ConfigError(
            f"{given} is impossible ({reason}): it must be a schema.pbtxt, such as the one that a "
            "run writes below artifacts/SchemaGen"
        ) from None


def _check_base_weights(base_weights: str, preset: Preset, given: Given) -> None:
    if base_weights in ("random", "default"):
        return
    # Importing huggingface_hub takes half a second; import it only if needed.
    from storage import hub
    from storage.folders import open_folder
    from trainer.weights import diffusers_layout, original_layout
    from trainer.weights.errors import WeightsError

    files = [f.name for f in preset.weight_files.values() if f.published_at is None]
    wanted = (
        f"it must be a folder with {', '.join(files)}, or one in diffusers' layout, or a single "
        ".safetensors in the original layout, or 'random' to start from random weights"
    )
    if base_weights.startswith(hub.SCHEME):
        try:
            hub.parse_address(base_weights)
        except hub.HubError as error:
            raise ConfigError(f"{given} is impossible: {error}") from None
    try:
        single = original_layout.split_address(base_weights)
    except WeightsError as error:
        raise ConfigError(f"{given} is impossible: {error}") from None
    if "://" in base_weights:
        return
    if single is not None and os.path.isfile(base_weights):
        return
    if not os.path.isdir(base_weights):
        what = "folder" if single is None else "file"
        raise ConfigError(f"{given} is impossible: there is no such {what}; {wanted}")
    if diffusers_layout.is_diffusers(open_folder(base_weights)):
        return
    missing = [name for name in files if not os.path.isfile(os.path.join(base_weights, name))]
    if missing:
        raise ConfigError(f"{given} is impossible: the folder lacks {', '.join(missing)}; {wanted}")


def _check_start_from(start_from: str, given: Given) -> None:
    wanted = (
        "it must be base, latest_blessed, release:N such as release:3, or the folder of a model "
        "that the Trainer wrote, such as runs/default/artifacts/Trainer/model/7"
    )
    if start_from.startswith(RELEASE):
        number = start_from.removeprefix(RELEASE)
        if not (number.isascii() and number.isdecimal()):
            raise ConfigError(
                f"{given} is impossible: {number!r} is not a release number; {wanted}"
            )
    elif names_place(start_from) and "://" not in start_from and not os.path.isdir(start_from):
        raise ConfigError(f"{given} is impossible: there is no such folder; {wanted}")


def _check_prompts(prompts: Sequence[str]) -> None:
    for number, prompt in enumerate(prompts, start=1):
        if is_blank(prompt):
            raise ConfigError(
                f"validation.prompts: prompt {number} of {len(prompts)} is empty: say what to "
                "draw, or leave it out"
            )
