"""The layout of diffusers' Stable Diffusion 1.x and 2.x: its files and their settings.

A folder holds `unet/`, `vae/` and `text_encoder/`, each with a `config.json` and its tensors as
safetensors; `trainer.weights.diffusers_format` reads and writes the tensors. Nothing here imports
TensorFlow.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import Any, get_args

from storage.folders import Folder
from trainer.presets import (
    BETA_END,
    BETA_START,
    LATENT_CHANNELS,
    LATENT_SCALE,
    NUM_TIMESTEPS,
    Prediction,
    Preset,
)
from trainer.weights.errors import WeightsError

CONFIG_NAME = "config.json"
INDEX_NAME = "model_index.json"
SCHEDULER_CONFIG = "scheduler/scheduler_config.json"
SCHEDULER = "EulerDiscreteScheduler"
"""The sampler that draws the same pictures from the same noise as the SavedModels.

Euler's steps in the standard deviation of the noise are the steps of DDIM (Song et al. 2021,
equation 14), and diffusers' own DDIM cannot visit KerasCV's timesteps.
"""

DTYPES = ("float32", "float16", "bfloat16")
"""The types that tensors can be written as."""

COMPONENTS: Mapping[str, str] = {
    "text_encoder": "text_encoder",
    "image_encoder": "vae",
    "diffusion_model": "unet",
    "decoder": "vae",
}
"""The folder of each network."""

STEMS: Mapping[str, str] = {
    "text_encoder": "model",
    "vae": "diffusion_pytorch_model",
    "unet": "diffusion_pytorch_model",
}
"""For each of those folders, the name of its tensor file without `.safetensors`."""

_PICKLES = ("pytorch_model", "diffusion_pytorch_model")
_HALF = "fp16"

# Fields that must have the preset's value. Any other field that a configuration omits, as old ones
# omit fields that came later, has the value of Stable Diffusion v1.
_DIMENSIONS = frozenset(
    {
        "attention_head_dim",
        "block_out_channels",
        "cross_attention_dim",
        "down_block_types",
        "hidden_size",
        "intermediate_size",
        "layers_per_block",
        "max_position_embeddings",
        "norm_num_groups",
        "num_hidden_layers",
        "up_block_types",
        "vocab_size",
    }
)
# These describe the file or the picture size, not the computation.
_WITHOUT_EFFECT = frozenset({"architectures", "model_type", "sample_size"})
# The same, or without effect at full precision or if another field has its default; fields that
# are neither here nor in our configurations are new.
_KNOWN_OTHERS = frozenset(
    {
        "addition_embed_type_num_heads",
        "attention_type",
        "dropout",
        "encoder_hid_dim_type",
        "force_upcast",
        "upcast_attention",
    }
)
_MISSING = "not given"

logger = logging.getLogger(__name__)


def is_diffusers(folder: Folder) -> bool:
    """Whether a folder has this layout, complete or not."""
    return any(
        folder.exists(name)
        for name in (INDEX_NAME, *(f"{part}/{CONFIG_NAME}" for part in COMPONENTS.values()))
    )


def network_files(folder: Folder, network: str) -> tuple[str, ...]:
    """The safetensors files that hold a network, relative to the folder.

    Full precision is preferred to half precision; shards are found by their index.

    Raises:
        WeightsError: There are none, or only pickled ones.
    """
    component = COMPONENTS[network]
    stem = f"{component}/{STEMS[component]}"
    for name in (f"{stem}.safetensors", f"{stem}.{_HALF}.safetensors"):
        index = f"{stem}.safetensors.index.json"
        if _HALF in name:
            index = f"{stem}.safetensors.index.{_HALF}.json"
        if folder.exists(name):
            return (name,)
        if folder.exists(index):
            shards = folder.read_json(index).get("weight_map", {}).values()
            if not shards or not all(isinstance(shard, str) for shard in shards):
                raise WeightsError(f"{folder.shown(index)} is damaged: it lists no files")
            names = tuple(f"{component}/{shard}" for shard in sorted(set(shards)))
            for shard in names:
                if not folder.exists(shard):
                    raise WeightsError(
                        f"the base weights of the {network} are incomplete: there is no "
                        f"{folder.shown(shard)}, which {index} lists"
                    )
            return names
    for pickle in (f"{p}{variant}.bin" for p in _PICKLES for variant in ("", f".{_HALF}")):
        if folder.exists(f"{component}/{pickle}"):
            raise WeightsError(
                f"{folder.shown(f'{component}/{pickle}')} is a pickle, which can run any code when "
                "it is opened, so it is not read: convert it with diffusers' "
                "save_pretrained(..., safe_serialization=True), or use a repository that has "
                ".safetensors files"
            )
    raise WeightsError(
        f"the base weights of the {network} are missing: there is no "
        f"{folder.shown(stem)}.safetensors"
    )


def check_configs(folder: Folder, preset: Preset) -> None:
    """Compares every configuration in a folder with the preset.

    Raises:
        WeightsError: One is missing, or describes another model; the message names all fields that
            differ.
    """
    for component, expected in (
        ("unet", unet_config(preset)),
        ("vae", vae_config(preset)),
        ("text_encoder", text_encoder_config(preset)),
    ):
        name = f"{component}/{CONFIG_NAME}"
        if not folder.exists(name):
            raise WeightsError(
                f"{folder.address} is incomplete: it lacks {name}; diffusers' layout has unet/, "
                "vae/ and text_encoder/, each with a config.json and .safetensors"
            )
        _check(folder.shown(name), folder.read_json(name), expected, preset)
    if folder.exists(SCHEDULER_CONFIG):
        found = folder.read_json(SCHEDULER_CONFIG)
        expected = {key: value for key, value in _schedule(preset).items() if key in found}
        shown = folder.shown(SCHEDULER_CONFIG)
        if (prediction := found.get("prediction_type")) in get_args(Prediction):
            expected["prediction_type"] = prediction
        _check(shown, found, expected, preset)
        if found.get("rescale_betas_zero_snr") and prediction == "epsilon":
            raise WeightsError(
                f"{shown} describes a model that cannot draw: rescale_betas_zero_snr is true and "
                'prediction_type is "epsilon"'
            )


def trained_for(folder: Folder) -> tuple[Prediction | None, bool | None]:
    """What the model in a folder predicts, and whether its last timestep is pure noise.

    Both come from the configuration of its scheduler, which `check_configs` has checked; `None` for
    a value that is not given.
    """
    if not folder.exists(SCHEDULER_CONFIG):
        return None, None
    found = folder.read_json(SCHEDULER_CONFIG)
    return found.get("prediction_type"), found.get("rescale_betas_zero_snr")


def check_preset(preset: Preset) -> None:
    """Raises a `WeightsError` if diffusers has no model with the shape of a preset."""
    vae_config(preset)


def unet_config(preset: Preset) -> dict[str, Any]:
    """`unet/config.json` of a preset: every field that matters, as diffusers writes it."""
    dimensions = preset.diffusion_model
    attention = dimensions.cross_attention
    return {
        "_class_name": "UNet2DConditionModel",
        "act_fn": "silu",
        "addition_embed_type": None,
        # Despite its name, diffusers uses this as the number of heads.
        "attention_head_dim": (
            dimensions.num_heads
            if isinstance(dimensions.num_heads, int)
            else list(dimensions.num_heads)
        ),
        "block_out_channels": list(dimensions.widths),
        "center_input_sample": False,
        "class_embed_type": None,
        "conv_in_kernel": 3,
        "conv_out_kernel": 3,
        "cross_attention_dim": preset.text_encoder.width,
        "cross_attention_norm": None,
        "down_block_types": ["CrossAttnDownBlock2D" if a else "DownBlock2D" for a in attention],
        "downsample_padding": 1,
        "dual_cross_attention": False,
        "encoder_hid_dim": None,
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "in_channels": LATENT_CHANNELS,
        "layers_per_block": dimensions.num_blocks,
        "mid_block_only_cross_attention": None,
        "mid_block_scale_factor": 1,
        "mid_block_type": "UNetMidBlock2DCrossAttn",
        "norm_eps": 1e-05,
        "norm_num_groups": dimensions.norm_groups,
        "num_attention_heads": None,
        "num_class_embeds": None,
        "only_cross_attention": False,
        "out_channels": LATENT_CHANNELS,
        "resnet_out_scale_factor": 1.0,
        "resnet_skip_time_act": False,
        "resnet_time_scale_shift": "default",
        "sample_size": preset.latent_shape(preset.image_size)[0],
        "time_cond_proj_dim": None,
        "time_embedding_act_fn": None,
        "time_embedding_dim": _time_embedding_dim(preset),
        "time_embedding_type": "positional",
        "timestep_post_act": None,
        "transformer_layers_per_block": 1,
        "up_block_types": ["CrossAttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attention)],
        "use_linear_projection": dimensions.linear_projections,
    }


def vae_config(preset: Preset) -> dict[str, Any]:
    """`vae/config.json` of a preset.

    Raises:
        WeightsError: diffusers has no autoencoder like the preset's.
    """
    encoder, decoder = preset.image_encoder, preset.decoder
    if (
        encoder.widths != decoder.widths
        or encoder.num_blocks + 1 != decoder.num_blocks
        or encoder.norm_groups != decoder.norm_groups
    ):
        raise WeightsError(
            f"diffusers has no autoencoder like the one of preset {preset.name!r}: there the "
            "decoder has the widths of the encoder and one more block per level, here they have "
            f"widths {encoder.widths} with {encoder.num_blocks} and {decoder.widths} with "
            f"{decoder.num_blocks}"
        )
    levels = len(encoder.widths)
    return {
        "_class_name": "AutoencoderKL",
        "act_fn": "silu",
        "block_out_channels": list(encoder.widths),
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "in_channels": 3,
        "latent_channels": LATENT_CHANNELS,
        "latents_mean": None,
        "latents_std": None,
        "layers_per_block": encoder.num_blocks,
        "mid_block_add_attention": True,
        "norm_num_groups": encoder.norm_groups,
        "out_channels": 3,
        "sample_size": preset.image_size,
        "scaling_factor": LATENT_SCALE,
        "shift_factor": None,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "use_post_quant_conv": True,
        "use_quant_conv": True,
    }


def text_encoder_config(preset: Preset) -> dict[str, Any]:
    """`text_encoder/config.json` of a preset."""
    dimensions = preset.text_encoder
    return {
        "architectures": ["CLIPTextModel"],
        "hidden_act": dimensions.activation,
        "hidden_size": dimensions.width,
        "intermediate_size": 4 * dimensions.width,
        "layer_norm_eps": 1e-05,
        "max_position_embeddings": dimensions.max_length,
        "model_type": "clip_text_model",
        "num_attention_heads": dimensions.num_heads,
        "num_hidden_layers": dimensions.num_layers,
        "vocab_size": dimensions.vocabulary_size,
    }


def scheduler_config(preset: Preset) -> dict[str, Any]:
    """`scheduler/scheduler_config.json` of a preset, matching `trainer.diffusion.sampler`.

    It visits the same timesteps except for their rounding.
    """
    return {
        "_class_name": SCHEDULER,
        **_schedule(preset),
        "interpolation_type": "linear",
        "timestep_spacing": "trailing" if preset.zero_terminal_snr else "linspace",
        "use_karras_sigmas": False,
        **({"rescale_betas_zero_snr": True} if preset.zero_terminal_snr else {}),
    }


def _schedule(preset: Preset) -> dict[str, Any]:
    return {
        "beta_end": BETA_END,
        "beta_schedule": "scaled_linear",
        "beta_start": BETA_START,
        "num_train_timesteps": NUM_TIMESTEPS,
        "prediction_type": preset.prediction,
        "trained_betas": None,
    }


def _check(
    shown: str, found: Mapping[str, Any], expected: Mapping[str, Any], preset: Preset
) -> None:
    differences = []
    for key, wanted in expected.items():
        value = found.get(key, _MISSING if key in _DIMENSIONS else wanted)
        if key == "time_embedding_dim":
            value = value or _default_time_embedding_dim(preset)
            wanted = preset.diffusion_model.embedding_width
        if key not in _WITHOUT_EFFECT and not _same(value, wanted):
            differences.append(f"{key} is {_shown(value)} (here {_shown(wanted)})")
    if differences:
        raise WeightsError(
            f"{shown} describes another model than preset {preset.name!r}: "
            f"{', '.join(differences)}; only Stable Diffusion {preset.generation}.x in the "
            "preset's size is supported"
        )
    if expected.get("_class_name") in ("UNet2DConditionModel", "AutoencoderKL"):
        new = [
            key
            for key, value in found.items()
            if value and not key.startswith("_") and key not in {*expected, *_KNOWN_OTHERS}
        ]
        if new:
            logger.warning(
                "%s has unknown fields, which are assumed to have no effect: %s.",
                shown,
                ", ".join(f"{key} = {_shown(found[key])}" for key in new),
            )


def _same(found: Any, wanted: Any) -> bool:
    if isinstance(found, list) and not isinstance(wanted, list):
        # One value for every level.
        return bool(found) and all(_same(value, wanted) for value in found)
    nothing = (None, False)
    return bool(found == wanted) or (found in nothing and wanted in nothing)


def _shown(value: Any) -> str:
    return value if value is _MISSING else json.dumps(value)


def _default_time_embedding_dim(preset: Preset) -> int:
    return 4 * preset.diffusion_model.widths[0]


def _time_embedding_dim(preset: Preset) -> int | None:
    width = preset.diffusion_model.embedding_width
    return None if width == _default_time_embedding_dim(preset) else width
