"""What files that others open say of themselves: Stability's ModelSpec 1.0.1, sd-scripts' keys."""

from __future__ import annotations

import hashlib
import json
import posixpath
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from trainer.presets import NUM_TIMESTEPS, Preset

ORIGINAL = "https://github.com/Stability-AI/generative-models"
"""ModelSpec's name for the code whose names the tensors of the original layout have."""

DIFFUSERS = "diffusers"
"""The same for adapters, as sd-scripts has it."""

_HASH = "modelspec.hash_sha256"
_NO_HASH = "0x" + 64 * "0"


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
        preset: What it is. Only that of Stable Diffusion's own size is called so: tools load by it.
        image_size: Side of its pictures in pixels.
        title: What tools call it.
        description: What they say of it.
        implementation: `ORIGINAL` or `DIFFUSERS`.
        adapter: What kind of adapter it is, such as `lora`; "" for a whole model.
    """
    architecture = "stable-diffusion-v1"
    if preset.name != "sd-v1-4":
        architecture = f"{architecture}-{preset.name}"
    content = {
        "sai_model_spec": "1.0.1",
        "architecture": f"{architecture}/{adapter}" if adapter else architecture,
        "implementation": implementation,
        "title": title,
        "resolution": f"{image_size}x{image_size}",
        "description": description,
        "prediction_type": preset.prediction,
        "timestep_range": f"0,{NUM_TIMESTEPS - 1}",
    }
    return {f"modelspec.{key}": value for key, value in content.items()}


def public_name(address: str) -> str:
    """What a file that is passed on calls a place: of one on this machine, the last part alone."""
    return address if "://" in address else posixpath.basename(address.rstrip("/"))


def adapter_keys(
    training: Mapping[str, Any],
    *,
    image_size: int,
    num_images: int,
    base_weights: str,
    training_id: str,
) -> dict[str, str]:
    """The `ss_*` keys that tools show of adapters.

    Args:
        training: The training's settings.
        image_size: Side of the pictures in pixels.
        num_images: Pictures that were trained on.
        base_weights: Where the weights lay that they were trained on.
        training_id: Names the training.
    """
    text_encoder_rate = training["learning_rate"] if training["train_text_encoder"] else None
    content = {
        "v2": False,
        "base_model_version": "sd_v1",
        "sd_model_name": public_name(base_weights),
        "session_id": training_id,
        "network_module": "networks.lora",
        "network_dim": training["lora_rank"],
        "network_alpha": training["lora_alpha"] or training["lora_rank"],
        "resolution": (image_size, image_size),
        "num_train_images": num_images,
        "num_reg_images": 0,
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
    # Every value is text in this format; sd-scripts writes Python's.
    return {f"ss_{key}": str(value) for key, value in content.items()}


def save_file(
    tensors: Mapping[str, np.ndarray], path: str | Path, header: Mapping[str, str]
) -> None:
    """Writes a safetensors file with ModelSpec's hash of all its tensors in the header.

    Args:
        tensors: By name.
        path: On this machine.
        header: All other keys.
    """
    safetensors.numpy.save_file(
        dict(tensors), path, metadata={"format": "pt", **header, _HASH: _NO_HASH}
    )
    # The order in which tensors lie is the library's own affair, so the hash comes afterwards; it
    # is as long as what stands in its place.
    with open(path, "r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        content = json.loads(file.read(size))
        digest = hashlib.sha256()
        while chunk := file.read(1 << 24):
            digest.update(chunk)
        metadata = content["__metadata__"] | {_HASH: f"0x{digest.hexdigest()}"}
        # The library has no order for these keys: the same model is to be the same file.
        content["__metadata__"] = dict(sorted(metadata.items()))
        text = json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()
        assert len(text) <= size
        file.seek(8)
        file.write(text.ljust(size))


_MIXED = {"float32": "no", "float16": "fp16", "bfloat16": "bf16"}
