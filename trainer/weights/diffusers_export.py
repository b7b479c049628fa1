"""Writes a model for other tools: `python -m trainer.diffusers_export --help`.

A folder is written in diffusers' layout, and loads with `StableDiffusionPipeline.from_pretrained`:
the four networks, the vocabulary of the tokenizer and the settings of the sampler. A `.safetensors`
file is written in the original layout, with the four networks in one file. `docs/weights.md` says
what changes in the process.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import logging
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import keras
import numpy as np
import safetensors.numpy
import tensorflow as tf

from storage import filesystem
from storage.errors import one_line
from storage.file_systems import open_address
from storage.model_manifest import MODEL_MANIFEST_NAME, ModelManifest
from trainer import model_spec
from trainer.networks import build_network
from trainer.networks.new_vectors import with_more_tokens
from trainer.presets import NETWORKS, Prediction, Preset, get_preset
from trainer.text.new_word import FIRST_NEW_ID, NewWord
from trainer.text.tokenizer import MAX_LENGTH, vocabulary_and_merges
from trainer.weights import diffusers_layout, original_layout
from trainer.weights.base_model import DEFAULT_WEIGHTS, BaseModel
from trainer.weights.diffusers_format import to_diffusers, to_original
from trainer.weights.errors import WeightsError
from trainer.weights.exported import exported_values

_SERVING_FOLDER = "Format-Serving"
_END, _START = "<|endoftext|>", "<|startoftext|>"

logger = logging.getLogger(__name__)

_Values = Callable[[str, keras.Model], Iterator[np.ndarray]]


@dataclasses.dataclass(frozen=True)
class _Trained:
    """A model that the pipeline trained.

    Attributes:
        shown: Its address in messages.
        manifest: Its manifest.
        folders: The folder of the SavedModel, by network.
        release: The keys of its release; empty if it is not a release.
    """

    shown: str
    manifest: ModelManifest
    folders: Mapping[str, str]
    release: Mapping[str, str]


def export_trained(
    model: str,
    output: str,
    *,
    base_weights: str | None = None,
    dtype: str = "float32",
    release: Mapping[str, str] | None = None,
) -> None:
    """Writes a model that the pipeline trained.

    Args:
        model: The Trainer's `model` artifact, or the folder in it with `manifest.json`; or a
            release: its file in the serving directory, or `release.json` of a published one.
        output: Folder or `.safetensors` file to write, or its address; it must not exist, or be an
            empty folder.
        base_weights: Where the base weights are now, for the image encoder, which training does
            not change; `None` for where they were.
        dtype: One of `diffusers_layout.DTYPES`.
        release: The keys of the release that a single file is made for; `None` for the release
            that `model` is.

    Raises:
        WeightsError: There is no such model, the base weights are not the ones that it was trained
            from, or its preset cannot be written in this layout.
    """
    trained = _find(model)
    manifest = trained.manifest
    base_weights = base_weights or manifest.base_weights_source
    if base_weights is None:
        raise WeightsError(
            f"the manifest in {trained.shown} does not say where its base weights were: give "
            "--base-weights"
        )
    base_model = BaseModel.locate(get_preset(manifest.preset), manifest.image_size, base_weights)
    found, numerics = base_model.hash(["image_encoder"]), base_model.preset.numerics
    if found != manifest.base_weights.get("image_encoder") or manifest.numerics != numerics:
        raise WeightsError(
            f"the base weights in {base_weights!r} are not the ones that the model in "
            f"{trained.shown} was trained from: give their address with --base-weights"
        )

    word = NewWord.of_fields(manifest.word)
    # The original layout has no room for another vocabulary.
    left_out = word if output.endswith(original_layout.SUFFIX) else None
    if left_out is not None:
        logger.info(
            "A single file cannot hold the word %s: it is in %s next to the model.",
            left_out.token,
            model_spec.LEARNED_EMBEDS_NAME,
        )

    def values(network: str, built: keras.Model) -> Iterator[np.ndarray]:
        if network == "image_encoder":
            return _base_values(base_model, network, built)
        if network == "text_encoder" and left_out is not None:
            return _without_word(trained.folders[network], built, preset, left_out)
        return exported_values(trained.folders[network], network, built)

    trained_on = model_spec.public_name(
        manifest.base_weights_source or base_weights, manifest.preset
    )
    made_by = {
        "training_id": manifest.training_id,
        "base_weights": trained_on,
        "code_version": manifest.code_version,
        "git_commit": manifest.git_commit,
    }
    preset = base_model.preset.trained_as(
        cast(Prediction, manifest.prediction), manifest.zero_terminal_snr
    )
    header = model_spec.model_spec(
        preset,
        manifest.image_size,
        title=f"{manifest.preset} {manifest.training_id or ''}".strip(),
        description=f"Stable Diffusion, fine-tuned; base weights: {trained_on}.",
    ) | {key: value for key, value in made_by.items() if value}
    header |= trained.release if release is None else release
    if word is not None and left_out is None:
        preset = with_more_tokens(preset, word.vectors)
    _write(preset, manifest.image_size, values, output, dtype, header, word)


def _without_word(
    folder: str, built: keras.Model, preset: Preset, word: NewWord
) -> Iterator[np.ndarray]:
    """Weights of a text encoder without the vectors of a new word, in the order of `built`."""
    larger = build_network("text_encoder", with_more_tokens(preset, word.vectors), 0)
    values = exported_values(folder, "text_encoder", larger)
    for variable, value in zip(built.weights, values, strict=True):
        yield value[:FIRST_NEW_ID] if variable.shape != value.shape else value


def export_base_weights(
    preset_name: str, output: str, *, base_weights: str = DEFAULT_WEIGHTS, dtype: str = "float32"
) -> None:
    """Writes base weights, such as the published Keras files.

    Args:
        preset_name: Their preset.
        output: As for `export_trained`.
        base_weights: Where they are; see `trainer.weights.base_model.BaseModel`.
        dtype: One of `diffusers_layout.DTYPES`.

    Raises:
        WeightsError: They are missing or damaged, or the preset cannot be written in this layout.
    """
    preset = get_preset(preset_name)
    base_model = BaseModel.locate(preset, preset.image_size, base_weights)
    values = functools.partial(_base_values, base_model)
    header = model_spec.model_spec(
        base_model.preset,
        base_model.image_size,
        title=preset_name,
        description=f"Base weights of preset {preset_name}, not fine-tuned.",
    )
    _write(base_model.preset, base_model.image_size, values, output, dtype, header)


def _write(
    preset: Preset,
    image_size: int,
    values: _Values,
    output: str,
    dtype: str,
    header: Mapping[str, str],
    word: NewWord | None = None,
) -> None:
    # A preset that the layout cannot hold is reported before anything is loaded.
    single = output.endswith(original_layout.SUFFIX)
    if single:
        original_layout.check_preset(preset)
    configs = {
        "unet": diffusers_layout.unet_config(preset)
        | {"sample_size": preset.latent_shape(image_size)[0]},
        "vae": diffusers_layout.vae_config(preset) | {"sample_size": image_size},
        "text_encoder": diffusers_layout.text_encoder_config(preset)
        | {"bos_token_id": 49406, "eos_token_id": 49407, "pad_token_id": 1},
    }
    try:
        files, root = open_address(output)
    except (ImportError, ValueError) as error:
        raise WeightsError(f"--output cannot be opened: {one_line(error)}") from None
    if files.exists(root) and (single or not files.isdir(root) or files.ls(root)):
        what = "file" if single else "folder"
        raise WeightsError(f"{output} already exists: give --output a new {what}")
    if preset.numerics == "keras_cv":
        logger.info(
            "These weights were trained with KerasCV's layers; diffusers computes slightly "
            "differently (docs/weights.md says how much)."
        )
    local = "://" not in output
    parent = os.path.dirname(os.path.abspath(output)) if local else None
    if parent:
        os.makedirs(parent, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=parent, prefix=".diffusers-") as unfinished:
        if single:
            file = Path(unfinished, f"model{original_layout.SUFFIX}")
            model_spec.save_file(_original_tensors(preset, image_size, values, dtype), file, header)
            if local:
                os.rename(file, output)
            else:
                files.put_file(str(file), root)
            logger.info("Wrote %s.", output)
            return
        folder = Path(unfinished, "model")
        for component, config in configs.items():
            _write_json(folder / component / diffusers_layout.CONFIG_NAME, config)
        _write_tensors(preset, image_size, values, folder, dtype)
        _write_json(
            folder / diffusers_layout.SCHEDULER_CONFIG, diffusers_layout.scheduler_config(preset)
        )
        _write_tokenizer(folder / "tokenizer", preset.text_encoder.padding, word)
        _write_json(folder / diffusers_layout.INDEX_NAME, _MODEL_INDEX)
        if local:
            with contextlib.suppress(FileNotFoundError):
                os.rmdir(output)
            os.rename(folder, output)
        else:
            files.put(f"{folder}/", f"{root.rstrip('/')}/", recursive=True)
    logger.info("Wrote %s.", output)


def _original_tensors(
    preset: Preset, image_size: int, values: _Values, dtype: str
) -> dict[str, np.ndarray]:
    tensors: dict[str, np.ndarray] = {}
    for network in NETWORKS:
        logger.info("Writing the %s.", network)
        model = build_network(network, preset, image_size)
        tensors |= to_original(model, network, _cast(values(network, model), network, dtype))
    return tensors


def _cast(values: Iterator[np.ndarray], network: str, dtype: str) -> Iterator[np.ndarray]:
    # NumPy itself has no bfloat16.
    numpy_dtype = tf.as_dtype(dtype).as_numpy_dtype
    for value in values:
        with np.errstate(over="ignore"):
            cast = value.astype(numpy_dtype, copy=False)
        if not np.isfinite(cast).all():
            raise WeightsError(
                f"the {network} has weights that are too large for {dtype} or not numbers: use "
                "float32"
            )
        yield cast


def _write_tensors(
    preset: Preset, image_size: int, values: _Values, folder: Path, dtype: str
) -> None:
    for component, networks in _NETWORKS_OF.items():
        tensors: dict[str, np.ndarray] = {}
        for network in networks:
            logger.info("Writing the %s.", network)
            model = build_network(network, preset, image_size)
            tensors |= to_diffusers(model, _cast(values(network, model), network, dtype))
        stem = diffusers_layout.STEMS[component]
        # Both libraries refuse files that are not marked as PyTorch's.
        path = folder / component / f"{stem}.safetensors"
        with filesystem.usual_mode(path):
            safetensors.numpy.save_file(tensors, path, metadata={"format": "pt"})


def _base_values(base_model: BaseModel, network: str, model: keras.Model) -> Iterator[np.ndarray]:
    base_model.load(model, network)
    return map(np.asarray, model.weights)


def _find(model: str) -> _Trained:
    if model.endswith(".json"):
        return _find_release(model)
    for folder in (model.rstrip("/"), f"{model.rstrip('/')}/{_SERVING_FOLDER}"):
        if manifest := ModelManifest.find(folder):
            return _Trained(folder, manifest, {n: f"{folder}/{n}" for n in NETWORKS}, {})
    raise WeightsError(
        f"there is no {MODEL_MANIFEST_NAME} in {model}: give --model the Trainer's model, such as "
        "runs/default/artifacts/Trainer/model/7, or a release, such as "
        "runs/default/serving_model/releases/3.json"
    )


def _find_release(path: str) -> _Trained:
    """The release whose file is at `path`: next to all SavedModels, or with its own."""
    try:
        facts = json.loads(filesystem.read_bytes(path))
        version, manifest = facts["version"], ModelManifest.of_release(facts)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WeightsError(
            f"{path} is not the file of a release ({one_line(error)}): give --model one from a "
            "serving directory, such as runs/default/serving_model/releases/3.json, or the "
            "release.json of a published release"
        ) from None
    if manifest is None:
        raise WeightsError(
            f"{path} was written by an earlier version and does not describe its model: give "
            "--model the Trainer's model"
        )
    folder = filesystem.parent(path)
    folders = {network: f"{folder}/{network}" for network in NETWORKS}
    if os.path.basename(path) == f"{version}.json":
        directory = filesystem.parent(folder)
        folders = {network: f"{directory}/{network}/{version}" for network in NETWORKS}
    keys = model_spec.release_keys(
        manifest.preset,
        version=version,
        pushed_at=facts.get("pushed_at"),
        run=(facts.get("lineage") or {}).get("pipeline_run"),
    )
    return _Trained(path, manifest, folders, keys)


def _write_tokenizer(folder: Path, padding: int, word: NewWord | None) -> None:
    vocabulary, merges = vocabulary_and_merges()
    [pad] = [token for token, index in vocabulary.items() if index == padding]
    _write_json(folder / "vocab.json", vocabulary)
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    if word is not None:
        # diffusers puts the other tokens after the first, wherever it is in a prompt.
        names = [word.token, *(f"{word.token}_{number}" for number in range(1, word.vectors))]
        _write_json(folder / "added_tokens.json", dict(zip(names, word.ids, strict=True)))
    special = {
        "bos_token": _START,
        "eos_token": _END,
        "pad_token": pad,
        "unk_token": _END,
    }
    _write_json(folder / "special_tokens_map.json", special)
    _write_json(
        folder / "tokenizer_config.json",
        {
            **special,
            "add_prefix_space": False,
            "do_lower_case": True,
            "errors": "replace",
            "model_max_length": MAX_LENGTH,
            "tokenizer_class": "CLIPTokenizer",
        },
    )


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


_NETWORKS_OF: Mapping[str, Sequence[str]] = {
    component: [n for n in NETWORKS if diffusers_layout.COMPONENTS[n] == component]
    for component in dict.fromkeys(diffusers_layout.COMPONENTS.values())
}

_MODEL_INDEX: Mapping[str, Any] = {
    "_class_name": "StableDiffusionPipeline",
    "feature_extractor": [None, None],
    "requires_safety_checker": False,
    "safety_checker": [None, None],
    "scheduler": ["diffusers", diffusers_layout.SCHEDULER],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}
