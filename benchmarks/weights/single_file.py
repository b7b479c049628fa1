"""Single files in the original layout, as opened by diffusers' `from_single_file`.

Runs in its own environment, with `requirements.txt` beside this file, from the root:

    python -m benchmarks.weights.single_file --names tests/data/original_names.json.gz
    python -m benchmarks.weights.single_file --shapes tests/data/original_shapes.json.gz
    python -m benchmarks.weights.single_file --file tiny.safetensors --folder tiny
    python -m benchmarks.weights.single_file --file small.safetensors \
        --folder tests/data/diffusers_tiny --values tests/data/diffusers_tiny/single_file.npz

The first stores, for the tests, what diffusers turns each name into, for files with the structures
of both presets; the second stores the shapes of Stable Diffusion v1.4. The third compares a file
that `python -m trainer.diffusers_export` wrote with the folder that it wrote for the same model:
every tensor, and a picture drawn with each. The last does so without the picture, and stores the
outputs of that file's networks for the inputs in the folder's `reference.npz`;
`python tests/trainer/diffusers_preset.py small.safetensors` writes the file.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.loaders.single_file_utils import create_diffusers_clip_model_from_ldm
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel

from trainer.weights.original_names import original_names

_NARROW = {"norm_num_groups": 2}
# Levels, blocks and width changes are those of the presets; all else is as small as possible.
_UNET = {
    "tiny": {
        "block_out_channels": (4, 6, 8),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "layers_per_block": 1,
    },
    "sd-v1-4": {"block_out_channels": (4, 6, 8, 8), "layers_per_block": 2},
}
_UNET_WIDTHS = {"cross_attention_dim": 4, "attention_head_dim": 2}
_VAE = {
    "tiny": {"block_out_channels": (4, 6, 8, 10), "layers_per_block": 1},
    "sd-v1-4": {"block_out_channels": (4, 6, 8, 8), "layers_per_block": 2},
}
_TEXT_LAYERS = {"tiny": 2, "sd-v1-4": 12}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--names", type=Path, help="file to write")
    what.add_argument("--shapes", type=Path, help="file to write")
    what.add_argument("--file", type=Path, help="a single file")
    parser.add_argument("--folder", type=Path, help="the same model in diffusers' layout")
    parser.add_argument("--values", type=Path, help="file to write its outputs to")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    if arguments.names:
        _write(arguments.names, {structure: _names(structure) for structure in _UNET})
    elif arguments.shapes:
        _write(arguments.shapes, _shapes())
    elif arguments.values:
        np.savez_compressed(arguments.values, **_values(arguments.file, arguments.folder))
    else:
        _compare(arguments.file, arguments.folder)


def _write(path: Path, content: dict[str, Any]) -> None:
    # Without a timestamp, the file is always the same.
    path.write_bytes(gzip.compress(json.dumps(content, indent=1).encode(), mtime=0))


def _shapes() -> dict[str, dict[str, list[int]]]:
    """For each network of Stable Diffusion v1.4, the shapes of its tensors in a single file."""
    with torch.device("meta"):
        networks = {
            "text_encoder": CLIPTextModel(
                CLIPTextConfig(
                    hidden_size=768,
                    intermediate_size=3072,
                    num_attention_heads=12,
                    num_hidden_layers=_TEXT_LAYERS["sd-v1-4"],
                )
            ),
            "vae": AutoencoderKL(
                down_block_types=("DownEncoderBlock2D",) * 4,
                up_block_types=("UpDecoderBlock2D",) * 4,
                block_out_channels=(128, 256, 512, 512),
                layers_per_block=2,
            ),
            "unet": UNet2DConditionModel(cross_attention_dim=768),
        }
    return {
        name: {
            key: [*tensor.shape, 1, 1] if _is_matrix(key, tensor) else list(tensor.shape)
            for key, tensor in zip(
                original_names(name, list(tensors)), tensors.values(), strict=True
            )
        }
        for name, tensors in _by_network(networks).items()
    }


def _is_matrix(key: str, tensor: torch.Tensor) -> bool:
    """Whether it is a matrix in diffusers and a 1 x 1 convolution in a single file."""
    return ".attn_1." in key and tensor.ndim == 2


def _names(structure: str) -> dict[str, dict[str, str]]:
    """For each network, the names in a single file, and diffusers' names for them."""
    networks: dict[str, Any] = {
        "text_encoder": CLIPTextModel(
            CLIPTextConfig(
                hidden_size=4,
                intermediate_size=16,
                num_attention_heads=2,
                num_hidden_layers=_TEXT_LAYERS[structure],
                vocab_size=8,
                max_position_embeddings=77,
            )
        ),
        "vae": AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            **_VAE[structure],
            **_NARROW,
        ),
        "unet": UNet2DConditionModel(**_UNET[structure], **_UNET_WIDTHS, **_NARROW),
    }
    # Every tensor holds one number, different for each tensor.
    numbers = iter(range(1, 100_000))
    with torch.no_grad():
        for network in networks.values():
            for parameter in network.parameters():
                parameter.fill_(next(numbers))
    stored: dict[str, torch.Tensor] = {}
    of_network: dict[str, list[str]] = {}
    for name, tensors in _by_network(networks).items():
        keys = original_names(name, list(tensors))
        of_network[name] = keys
        for key, tensor in zip(keys, tensors.values(), strict=True):
            stored[key] = tensor[:, :, None, None] if _is_matrix(key, tensor) else tensor
    with tempfile.TemporaryDirectory() as scratch:
        for name, network in networks.items():
            network.save_pretrained(f"{scratch}/{name}")
        save_file(stored, f"{scratch}/model.safetensors")
        opened = _opened(Path(scratch, "model.safetensors"), Path(scratch))
    # diffusers does not report a tensor that it does not know or does not find.
    found = {
        name: {float(tensor.flatten()[0]): key for key, tensor in tensors.items()}
        for name, tensors in _by_network(opened).items()
    }
    return {
        name: {key: found[name][float(stored[key].flatten()[0])] for key in keys}
        for name, keys in of_network.items()
    }


def _by_network(networks: dict[str, Any]) -> dict[str, dict[str, torch.Tensor]]:
    """All tensors, by the names of our networks and the names in files of diffusers' layout."""
    vae = networks["vae"].state_dict()
    text = networks["text_encoder"].state_dict()
    encoder = ("encoder.", "quant_conv.")
    return {
        "text_encoder": {f"text_model.{k.removeprefix('text_model.')}": v for k, v in text.items()},
        "image_encoder": {k: v for k, v in vae.items() if k.startswith(encoder)},
        "decoder": {k: v for k, v in vae.items() if not k.startswith(encoder)},
        "diffusion_model": networks["unet"].state_dict(),
    }


def _opened(file: Path, configs: Path) -> dict[str, Any]:
    """The networks in a single file."""
    where: dict[str, Any] = {"config": str(configs), "local_files_only": True}
    return {
        "text_encoder": create_diffusers_clip_model_from_ldm(
            CLIPTextModel, load_file(file), subfolder="text_encoder", **where
        ),
        "vae": AutoencoderKL.from_single_file(str(file), subfolder="vae", **where),
        "unet": UNet2DConditionModel.from_single_file(str(file), subfolder="unet", **where),
    }


def _values(file: Path, folder: Path) -> dict[str, np.ndarray]:
    """The outputs of the networks in a single file, and a digest of its tensors."""
    opened = _opened(file, folder)
    for name, kind in (
        ("text_encoder", CLIPTextModel),
        ("vae", AutoencoderKL),
        ("unet", UNet2DConditionModel),
    ):
        theirs = kind.from_pretrained(folder / name).state_dict()
        ours = opened[name].state_dict()
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    inputs = {k: torch.from_numpy(v) for k, v in np.load(folder / "reference.npz").items()}
    text, vae, unet = (opened[name].eval() for name in ("text_encoder", "vae", "unet"))
    with torch.no_grad():
        latent = inputs["decoder/latent"] / vae.config.scaling_factor
        outputs = {
            "text_encoder": text(inputs["text_encoder/tokens"]).last_hidden_state,
            "image_encoder": vae.encode(inputs["image_encoder/image"]).latent_dist.parameters,
            "diffusion_model": unet(
                *(inputs[f"diffusion_model/{name}"] for name in ("latent", "timesteps", "context"))
            ).sample,
            "decoder": vae.decode(latent).sample,
        }
    digest = hashlib.sha256()
    for name, tensor in sorted(load_file(file).items()):
        digest.update(f"{name}{list(tensor.shape)}".encode())
        digest.update(tensor.numpy().tobytes())
    return {
        "digest": np.array(digest.hexdigest()),
        **{f"{name}/output": output.numpy() for name, output in outputs.items()},
    }


def _compare(file: Path, folder: Path) -> None:
    full: dict[str, Any] = {"torch_dtype": torch.float32}
    single = StableDiffusionPipeline.from_single_file(
        str(file), config=str(folder), local_files_only=True, safety_checker=None, **full
    )
    whole = StableDiffusionPipeline.from_pretrained(str(folder), safety_checker=None, **full)
    for name in ("text_encoder", "vae", "unet"):
        theirs = getattr(whole, name).state_dict()
        ours = getattr(single, name).state_dict()
        assert ours.keys() == theirs.keys()
        largest = max(float((ours[k] - theirs[k]).abs().max()) for k in theirs)
        print(f"{name}: {len(theirs)} tensors, the largest difference is {largest:g}", flush=True)
    side = whole.unet.config.sample_size * 8
    pictures = [
        pipeline(
            "a small red monster",
            num_inference_steps=2,
            height=side,
            width=side,
            generator=torch.Generator().manual_seed(0),
            output_type="np",
        ).images
        for pipeline in (single, whole)
    ]
    print(f"a picture: the largest difference is {abs(pictures[0] - pictures[1]).max():g}")


if __name__ == "__main__":
    main()
