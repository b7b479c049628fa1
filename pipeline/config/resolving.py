"""Checks what the configuration refers to, before anything starts."""

from __future__ import annotations

import dataclasses
import os
import tempfile
from typing import TYPE_CHECKING

import pydantic

from pipeline.config.checks import check_measures
from pipeline.config.printing import allowed
from pipeline.config.schema import ConfigError, DatasetConfig, PriorConfig, RunConfig
from pipeline.config.subject import class_dataset, subject_prompts
from storage.withdrawn import WithdrawnError
from trainer.presets import Preset, get_preset
from trainer.training_config import Prompts

if TYPE_CHECKING:
    from components.caption_example_gen.sources import DatasetSpec
    from trainer.weights.base_model import BaseModel


def dataset_spec(dataset: DatasetConfig) -> DatasetSpec:
    """A dataset's settings in the form that its readers take."""
    from components.caption_example_gen.sources import DatasetSpec

    return DatasetSpec(
        dataset=dataset.path,
        config=dataset.config or "",
        split=dataset.split,
        image_column=dataset.image_column or "",
        caption_column=dataset.caption_column or "",
        form=dataset.form or "",
        caption=dataset.caption or "",
        captions_from=dataset.captions_from or "",
        caption_lines=dataset.caption_lines,
        withdrawn=dataset.withdrawn or "",
    )


def resolve_dataset(config: RunConfig) -> tuple[RunConfig, str]:
    """Finds the dataset and checks it before anything starts.

    Returns:
        The configuration with the full place of the dataset (with its commit for a dataset of the
        hub) and the measures and prompts that it requests, or the prompts that show a subject; with
        the same for a folder of class pictures; and the dataset's fingerprint, a hash that changes
        with its content.

    Raises:
        ConfigError: There is no such dataset, it lacks a column or a second picture, or it requests
            an unknown measure or too many prompts.
    """
    # Importing pyarrow takes a second; errors in the settings should not wait for it.
    from components.caption_example_gen import sources

    dataset, evaluation, validation = config.dataset, config.evaluation, config.validation
    try:
        spec = sources.resolve_dataset(dataset_spec(dataset))
        source = sources.open_dataset(spec)
        sources.check_dataset(spec, source)
        fingerprint = sources.dataset_fingerprint(spec, source)
        if evaluation.measures is None:
            asked_for = sources.measures_of(source)
            check_measures(
                asked_for,
                f"`measures` in README.md of dataset {source.files.shown!r}, which "
                "evaluation.measures overrides",
            )
            evaluation = dataclasses.replace(evaluation, measures=asked_for)
        if validation.prompts is None and (prompts := sources.prompts_of(source)):
            validation = dataclasses.replace(validation, prompts=prompts)
    except pydantic.ValidationError:
        raise ConfigError(
            f"`{sources.PROMPTS_FIELD}` in README.md of dataset {dataset.path!r} has "
            f"{len(prompts)} prompts: it must be {allowed(Prompts)}; --prompt overrides it"
        ) from None
    except sources.DatasetError as error:
        raise ConfigError(str(error)) from None
    except WithdrawnError as error:
        raise ConfigError(f"dataset.withdrawn: {error}") from None
    if validation.prompts is None:
        validation = dataclasses.replace(validation, prompts=subject_prompts(config))
    dataset = dataclasses.replace(dataset, path=spec.dataset)
    resolved = dataclasses.replace(
        config,
        dataset=dataset,
        evaluation=evaluation,
        validation=validation,
        prior=_resolved_prior(config),
    )
    return resolved, fingerprint


def _resolved_prior(config: RunConfig) -> PriorConfig:
    """Adds the full place and the fingerprint of the class pictures, if they are in a folder."""
    prior = config.prior
    if prior.folder is None:
        return dataclasses.replace(prior, folder_fingerprint=None)
    from components.caption_example_gen import sources

    try:
        spec = sources.resolve_dataset(dataset_spec(class_dataset(config)))
        source = sources.open_dataset(spec)
        sources.check_dataset(spec, source)
        fingerprint = sources.dataset_fingerprint(spec, source)
    except sources.DatasetError as error:
        raise ConfigError(f"prior.folder = {prior.folder!r}: {error}") from None
    return dataclasses.replace(prior, folder=spec.dataset, folder_fingerprint=fingerprint)


def resolve_base_weights(config: RunConfig, *, fetch: bool = True) -> tuple[RunConfig, BaseModel]:
    """Finds and verifies the base weights, fetching them from the hub, before anything starts.

    Args:
        config: All settings.
        fetch: Whether weights of the hub are needed on this machine.

    Returns:
        The configuration with the full place of the weights (with its commit for a model of the
        hub); and the base weights found there.

    Raises:
        ConfigError: A file is missing, damaged or of another model, or the weights cannot be
            trained as set.
    """
    from storage.folders import FolderError
    from trainer.weights.base_model import BaseModel

    model = config.model
    try:
        base_model = BaseModel.locate(
            get_preset(model.preset), model.image_size, model.base_weights
        )
        found = base_model.prepare(fetch=fetch)
    except FolderError as error:
        raise ConfigError(f"model.base_weights = {model.base_weights!r}: {error}") from None
    trained_preset(config, base_model)
    resolved = dataclasses.replace(config, model=dataclasses.replace(model, base_weights=found))
    return resolved, dataclasses.replace(base_model, base_weights=found)


def trained_preset(config: RunConfig, base_model: BaseModel) -> Preset:
    """The preset of the model that a run trains.

    Args:
        config: All settings.
        base_model: The base weights.

    Raises:
        ConfigError: The prediction type and the last timestep do not go together.
    """
    model = config.model
    try:
        return base_model.preset.trained_as(model.prediction, model.zero_terminal_snr)
    except ValueError as error:
        given = {"prediction": model.prediction, "zero_terminal_snr": model.zero_terminal_snr}
        said = [f"model.{name} = {value}" for name, value in given.items() if value is not None]
        raise ConfigError(
            f"{' with '.join(said).replace('True', 'true')} is impossible: {error}; set "
            "model.prediction to v_prediction, or model.zero_terminal_snr to false"
        ) from None


def resolve_clip_model(config: RunConfig) -> RunConfig:
    """Finds the CLIP model that scores samples, before anything starts.

    Returns:
        The configuration with the model's full place (with its commit for a model of the hub).

    Raises:
        ConfigError: There is no such model, or it is another kind of model.
    """
    evaluation = config.evaluation
    if evaluation.clip_model is None:
        return config
    # Importing TensorFlow takes seconds; import it only if needed.
    from components.measures.clip import check_clip
    from storage.folders import FolderError

    try:
        address = check_clip(evaluation.clip_model)
    except FolderError as error:
        raise ConfigError(f"evaluation.clip_model = {evaluation.clip_model!r}: {error}") from None
    resolved = dataclasses.replace(evaluation, clip_model=address)
    return dataclasses.replace(config, evaluation=resolved)


def check_keys(config: RunConfig) -> None:
    """Checks the keys that sign releases and their pictures, if they are signed here.

    Raises:
        ConfigError: A key is missing, or cannot sign.
    """
    # Importing NumPy and the picture writers takes time; errors in other settings come first.
    from serving import marking, seals
    from serving.errors import ServingError

    serving = config.serving
    try:
        seals.signing_key(serving.sign_key, serving.sign_key_env)
        if serving.c2pa_certificate is not None:
            marking.signed_with(serving.c2pa_certificate, serving.c2pa_key_env or "")
    except ServingError as error:
        raise ConfigError(str(error)) from None


def check_output_folder(output: str) -> None:
    """Creates `output` if it is missing; raises a `ConfigError` if it cannot be used."""
    try:
        os.makedirs(output, exist_ok=True)
        with tempfile.TemporaryFile(dir=output):
            pass
    except OSError as error:
        raise ConfigError(
            f"the output folder {output} cannot be written to ({error.strerror}): choose another "
            "one with --output"
        ) from None
