"""Single files in the original layout of Stable Diffusion v1.x: where they are, what they hold.

The header of a file is enough to tell. `trainer.weights.original_names` has the names of the
tensors, `trainer.weights.diffusers_format` reads and writes them. Nothing here imports
TensorFlow.
"""

from __future__ import annotations

import json
import posixpath
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from storage import hub
from storage.errors import one_line
from storage.folders import Folder
from trainer import model_spec
from trainer.presets import LATENT_CHANNELS, NETWORKS, Prediction, Preset
from trainer.weights import diffusers_layout
from trainer.weights.errors import WeightsError
from trainer.weights.original_names import AVERAGED, TEXT_ENCODER, UNET, network_of

SUFFIX = ".safetensors"
"""Suffix of the name of a single file."""

_PICKLES = (".ckpt", ".pt", ".pth", ".bin")
_DTYPES = frozenset({"F16", "BF16", "F32", "F64"})
# The limit of the format, so that a damaged length does not make us read the whole file.
_LARGEST_HEADER = 100_000_000
_UNIT = 8

# Descriptions of other files, by the prefix of a tensor name in them.
_OTHERS: Mapping[str, str] = {
    "cond_stage_model.model.": "of Stable Diffusion 2.x",
    "conditioner.embedders.": "of Stable Diffusion XL",
    f"{UNET}label_emb.": "of Stable Diffusion XL, or of another model with labels",
    f"{UNET}joint_blocks.": "of Stable Diffusion 3",
    f"{UNET}double_blocks.": "of Flux",
    "v_pred": "of a model that predicts v instead of the noise",
    "lora_": "of adapters (LoRA), without a model",
    "down_blocks.": "of one network in diffusers' layout (give the folder with all of them)",
    "0000.": "of one of this project's own networks (give the folder with all of them)",
}
_INPUTS = {8: ", as in models that edit a picture", 9: ", as in models for inpainting"}


@dataclass(frozen=True)
class Checkpoint:
    """A single file in the original layout.

    Attributes:
        name: File name in its folder.
        networks: The networks of `trainer.presets.NETWORKS` that it holds.
        ignored: Names of the tensors that belong to no network.
        prediction: What its diffusion model predicts; `None` if the file does not say.
        zero_terminal_snr: Whether its last timestep is pure noise, likewise.
    """

    name: str
    networks: tuple[str, ...]
    ignored: tuple[str, ...]
    prediction: Prediction | None = None
    zero_terminal_snr: bool | None = None

    def ignored_shown(self) -> str:
        """The names of ignored tensors in one line, counted by prefix."""
        groups: dict[str, list[str]] = {}
        for name in self.ignored:
            groups.setdefault(name.partition(".")[0], []).append(name)
        return ", ".join(
            names[0] if len(names) == 1 else f"{group}.* ({len(names)})"
            for group, names in groups.items()
        )


def split_address(address: str) -> tuple[str, str] | None:
    """Folder and name of a single file; `None` if an address is a folder.

    Raises:
        WeightsError: The address is a pickled file.
    """
    folder, name = posixpath.split(address)
    if address.startswith(hub.SCHEME) and address.count("/") < 4:
        # A whole model of the hub, whatever the suffix of its name.
        return None
    if name.endswith(_PICKLES):
        raise WeightsError(_is_pickle(address))
    return (folder or ".", name) if name.endswith(SUFFIX) else None


def read_checkpoint(folder: Folder, name: str, preset: Preset) -> Checkpoint:
    """Reads the header of a single file.

    Args:
        folder: Folder of the file.
        name: Its name there.
        preset: The preset of its networks; whether each tensor fits is only checked on loading.

    Raises:
        WeightsError: The file is missing, damaged or a pickle, holds no diffusion model, or is for
            another model.
    """
    shown = folder.shown(name)
    check_preset(preset)
    if not folder.exists(name):
        raise WeightsError(f"the base weights are missing: there is no {shown}")
    header, metadata = _header(folder, name)
    for beginning, what in _OTHERS.items():
        if any(key.startswith(beginning) for key in header):
            raise WeightsError(f"{shown} is {what}: only Stable Diffusion v1.x is supported")
    spelled = UNET if any(key.startswith(UNET) for key in header) else AVERAGED
    owners = {
        key: "diffusion_model" if key.startswith(spelled) else network_of(key) for key in header
    }
    networks = tuple(n for n in NETWORKS if n in owners.values())
    if "diffusion_model" not in networks:
        first = f"but the first here is {min(header)}" if header else "but there are none here"
        raise WeightsError(
            f"{shown} holds no diffusion model: in the original layout the names of its tensors "
            f"begin with {UNET}, {first}"
        )
    _check_shapes(shown, {key: entry["shape"] for key, entry in header.items()}, preset)
    for key, entry in header.items():
        if owners[key] and entry["dtype"] not in _DTYPES:
            raise WeightsError(
                f"{shown} holds {key} as {entry['dtype']}: use a file in float16, bfloat16 or "
                "float32"
            )
    of_zero = metadata.get(model_spec.ZERO_TERMINAL_SNR)
    return Checkpoint(
        name,
        networks,
        ignored=tuple(sorted(k for k, n in owners.items() if n is None)),
        prediction=model_spec.prediction_of(metadata),
        zero_terminal_snr=None if of_zero is None else of_zero == str(True),
    )


def check_preset(preset: Preset) -> None:
    """Raises a `WeightsError` if this layout cannot hold the models of a preset."""
    if not preset.single_file:
        raise WeightsError(
            f"a model of preset {preset.name!r} cannot be a single file here: in the original "
            f"layout of Stable Diffusion {preset.generation}.x, the text encoder has another "
            "structure; use a folder in diffusers' layout"
        )
    diffusers_layout.check_preset(preset)


def _header(folder: Folder, name: str) -> tuple[dict[str, Any], dict[str, str]]:
    """`dtype` and `shape` of each tensor in a safetensors file, and its metadata."""
    shown = folder.shown(name)
    start = folder.read_start(name, _UNIT)
    size = int.from_bytes(start, "little")
    if len(start) < _UNIT or size > _LARGEST_HEADER:
        # Read as a length, the first bytes of a pickle are longer than any header.
        if start.startswith((b"PK", b"\x80")):
            raise WeightsError(_is_pickle(shown))
        raise WeightsError(f"{shown} is damaged or not a safetensors file: fetch it again")
    try:
        header: dict[str, Any] = json.loads(folder.read_start(name, _UNIT + size)[_UNIT:])
        metadata = header.get("__metadata__", {})
        tensors = {key: entry for key, entry in header.items() if key != "__metadata__"}
        if not all({"dtype", "shape"} <= entry.keys() for entry in tensors.values()):
            raise ValueError("it describes no tensors")
    except (ValueError, AttributeError) as error:
        raise WeightsError(
            f"{shown} is damaged: its header cannot be read ({one_line(error)}); fetch it again"
        ) from None
    return tensors, metadata


def _check_shapes(shown: str, shapes: Mapping[str, Sequence[int]], preset: Preset) -> None:
    """Compares the shapes that distinguish models of different sizes."""
    text, unet = preset.text_encoder, preset.diffusion_model
    differences = []
    for key, shape in shapes.items():
        expected = None
        if key == f"{UNET}input_blocks.0.0.weight":
            expected = [unet.widths[0], LATENT_CHANNELS, 3, 3]
        elif key.startswith(UNET) and key.endswith(".attn2.to_k.weight") and len(shape) == 2:
            expected = [shape[0], text.width]
        elif key.startswith(TEXT_ENCODER) and key.endswith("embeddings.token_embedding.weight"):
            expected = [text.vocabulary_size, text.width]
        if expected is not None and list(shape) != expected:
            what = _INPUTS.get(shape[1], "") if len(shape) == 4 else ""
            differences.append(f"{key} has the shape {list(shape)}{what} (here {expected})")
    if differences:
        more = f" and {len(differences) - 1} more" if len(differences) > 1 else ""
        raise WeightsError(
            f"{shown} is for another model than preset {preset.name!r}: {differences[0]}{more}; "
            "only Stable Diffusion v1.x in the preset's size is supported"
        )


def _is_pickle(shown: str) -> str:
    return (
        f"{shown} is a pickle, which can run any code when it is opened, so it is not read: use "
        "the model's .safetensors, or make one as docs/weights.md says (torch.load with "
        "weights_only=True, which runs no code, then safetensors.torch.save_file)"
    )
