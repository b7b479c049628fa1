"""Headers of the files that other tools open: Stability's ModelSpec 1.0.1, sd-scripts' keys."""

from __future__ import annotations

import hashlib
import json
import posixpath
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from storage import filesystem
from trainer.presets import NUM_TIMESTEPS, Prediction, Preset

ORIGINAL = "https://github.com/Stability-AI/generative-models"
"""ModelSpec's name for the code that the original layout takes its tensor names from."""

DIFFUSERS = "diffusers"
"""The same for adapters, as sd-scripts writes it."""

LORA_NAME = "lora.safetensors"
"""The file with the adapters of a model, next to its SavedModels."""

LEARNED_EMBEDS_NAME = "learned_embeds.safetensors"
"""The file with the vectors of a new word, next to its SavedModels; diffusers expects this name."""

DATASET_DIR = "1_pictures"
"""What the `ss_*` keys call the pictures: sd-scripts puts the name of a folder there."""

ZERO_TERMINAL_SNR = "zero_terminal_snr"
"""The key that says whether the last timestep is pure noise; ModelSpec has no key for it."""

_HASH = "modelspec.hash_sha256"
_NO_HASH = "0x" + 64 * "0"
# Bytes of the number at the beginning of a file; its parts are aligned to the same size.
_UNIT = 8
# The name of the base weights that come with a preset.
_SHIPPED = "default"


def model_spec(
    preset: Preset,
    image_size: int,
    *,
    title: str,
    description: str,
    implementation: str = ORIGINAL,
    adapter: str = "",
) -> dict[str, str]:
    """The `modelspec.*` keys of a model.

    Args:
        preset: Its preset.
        image_size: Side of its pictures in pixels.
        title: The name that tools show.
        description: The description that they show.
        implementation: `ORIGINAL` or `DIFFUSERS`.
        adapter: Kind of adapter, such as `lora`; "" for a whole model.
    """
    architecture = preset.architecture
    content = {
        "sai_model_spec": "1.0.1",
        "architecture": f"{architecture}/{adapter}" if adapter else architecture,
        "implementation": implementation,
        "title": title,
        "resolution": f"{image_size}x{image_size}",
        "description": description,
        "prediction_type": _PREDICTIONS[preset.prediction],
        "timestep_range": f"0,{NUM_TIMESTEPS - 1}",
    }
    header = {f"modelspec.{key}": value for key, value in content.items()}
    if preset.zero_terminal_snr:
        header[ZERO_TERMINAL_SNR] = str(True)
    return header


def prediction_of(header: Mapping[str, str]) -> Prediction | None:
    """What a model predicts according to its `modelspec.*` keys; `None` if they do not say."""
    said = header.get("modelspec.prediction_type")
    return next((ours for ours, theirs in _PREDICTIONS.items() if theirs == said), None)


def release_keys(
    preset_name: str, *, version: int, pushed_at: str | None, run: str | None
) -> dict[str, str]:
    """The keys of a file in a release: which release, of which run, and when it was made.

    Args:
        preset_name: Preset of the model.
        version: Number of the release.
        pushed_at: When it was made, in ISO 8601.
        run: The pipeline run that made it.
    """
    content = {
        "release": str(version),
        "pipeline_run": run,
        "modelspec.title": f"{preset_name} release {version}",
        "modelspec.date": pushed_at,
    }
    return {key: value for key, value in content.items() if value}


def public_name(address: str, preset_name: str) -> str:
    """The name of base weights in a file that is passed on.

    Args:
        address: Where they were. For a path on this machine, only its last part is used.
        preset_name: Their preset; the name of the base weights that come with it.
    """
    if address == _SHIPPED:
        return preset_name
    return address if "://" in address else posixpath.basename(address.rstrip("/"))


def adapter_keys(
    preset: Preset,
    training: Mapping[str, Any],
    *,
    image_size: int,
    num_images: int,
    num_views: int,
    base_weights: str,
    training_id: str,
    buckets: Mapping[tuple[int, int], int] | None = None,
) -> dict[str, str]:
    """The `ss_*` keys of adapters, which tools show.

    Args:
        preset: The preset that the adapters are for.
        training: Settings of the training.
        image_size: Side of the pictures in pixels.
        num_images: Pictures that were trained on.
        num_views: Pictures an epoch saw, each counted as often as it was repeated.
        base_weights: Name of the weights that the adapters were trained on.
        training_id: Names the training.
        buckets: Widths and heights of the pictures, with how many an epoch saw; `None` if all are
            squares.
    """
    views = {(image_size, image_size): num_views} if buckets is None else buckets
    of_sizes = {
        str(place): {"resolution": [*size], "count": count}
        for place, (size, count) in enumerate(views.items())
    }
    text_encoder_rate = training["learning_rate"] if training["train_text_encoder"] else None
    of_velocity = preset.prediction == "v_prediction"
    content = {
        "v2": preset.generation == 2,
        "base_model_version": f"sd_v{preset.generation}{'_v' * of_velocity}",
        "sd_model_name": base_weights,
        "session_id": training_id,
        "network_module": "networks.lora",
        "network_dim": training["lora_rank"],
        "network_alpha": training["lora_alpha"] or training["lora_rank"],
        "resolution": (image_size, image_size),
        "enable_bucket": buckets is not None,
        "bucket_info": json.dumps({"buckets": of_sizes}),
        "num_train_images": num_views,
        "num_reg_images": 0,
        "dataset_dirs": json.dumps(
            {DATASET_DIR: {"n_repeats": num_views // num_images, "img_count": num_images}}
        ),
        "steps": training["steps"],
        "max_train_steps": training["steps"],
        "total_batch_size": training["batch_size"],
        "gradient_accumulation_steps": training["accumulation_steps"],
        "learning_rate": training["learning_rate"],
        "unet_lr": training["learning_rate"],
        "text_encoder_lr": text_encoder_rate,
        "lr_scheduler": training["learning_rate_schedule"],
        "lr_warmup_steps": training["warmup_steps"],
        "max_grad_norm": training["max_gradient_norm"],
        "caption_dropout_rate": training["caption_dropout"],
        "min_snr_gamma": training["min_snr_gamma"] or None,
        "noise_offset": training["noise_offset"] or None,
        "mixed_precision": _MIXED[training["precision"]],
        "gradient_checkpointing": training["gradient_checkpointing"],
        "seed": training["seed"],
    }
    if preset.zero_terminal_snr:
        content["zero_terminal_snr"] = True
    # Every value is text in this format; sd-scripts writes Python's representation.
    return {f"ss_{key}": str(value) for key, value in content.items()}


def tag_keys(tags: Mapping[str, int]) -> dict[str, str]:
    """The key from which tools take the words of an adapter.

    Args:
        tags: Words, with how often each occurred.
    """
    return {"ss_tag_frequency": json.dumps({DATASET_DIR: dict(tags)}, ensure_ascii=False)}


def save_file(
    tensors: Mapping[str, np.ndarray], path: str | Path, header: Mapping[str, str]
) -> None:
    """Writes a safetensors file whose header has ModelSpec's hash of all its tensors.

    Args:
        tensors: By name.
        path: On this machine.
        header: All other keys.
    """
    with filesystem.usual_mode(path):
        safetensors.numpy.save_file(
            dict(tensors), path, metadata={"format": "pt", **header, _HASH: _NO_HASH}
        )
    # Only the library knows the order of the tensors, so the hash is filled in afterwards; it is
    # as long as its placeholder.
    with open(path, "r+b") as file:
        size = int.from_bytes(file.read(_UNIT), "little")
        content = json.loads(file.read(size))
        digest = hashlib.sha256()
        while chunk := file.read(1 << 24):
            digest.update(chunk)
        text = _header(content, {_HASH: f"0x{digest.hexdigest()}"})
        assert len(text) <= size
        file.seek(_UNIT)
        file.write(text.ljust(size))


def with_header(file: bytes, header: Mapping[str, str]) -> bytes:
    """A safetensors file with more keys in its header.

    Args:
        file: As `save_file` wrote it.
        header: Keys that are added, or replaced.
    """
    end = _UNIT + int.from_bytes(file[:_UNIT], "little")
    text = _header(json.loads(file[_UNIT:end]), header)
    # The tensors begin at an offset that the format prescribes.
    text = text.ljust(-(-len(text) // _UNIT) * _UNIT)
    return len(text).to_bytes(_UNIT, "little") + text + file[end:]


def _header(content: Mapping[str, Any], more: Mapping[str, str]) -> bytes:
    metadata = content["__metadata__"] | more
    # The library does not order these keys, and the same model must give the same file.
    content = {**content, "__metadata__": dict(sorted(metadata.items()))}
    return json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()


# ModelSpec's names.
_PREDICTIONS: Mapping[Prediction, str] = {"epsilon": "epsilon", "v_prediction": "v"}
_MIXED = {"float32": "no", "float16": "fp16", "bfloat16": "bf16"}
