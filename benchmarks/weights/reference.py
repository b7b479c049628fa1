"""The PyTorch side: a checkpoint with random weights in diffusers' layout, and its outputs.

Runs in its own environment, with `requirements.txt` beside this file:

    python benchmarks/weights/reference.py --size tiny --output tests/data/diffusers_tiny
    python benchmarks/weights/reference.py --size tiny-v2 --output tests/data/diffusers_tiny_v2
    python benchmarks/weights/reference.py --size sd-v1-4 --output runs/diffusers_sd

writes `unet/`, `vae/`, `text_encoder/` as diffusers saves them, `scheduler/`, and `reference.npz`
with the inputs and outputs of each network. `python -m benchmarks.weights` compares them. With the
weights of a folder instead of random ones, only `reference.npz` is written:

    python benchmarks/weights/reference.py --weights trainer/base_weights/tiny \
        --output tests/data/tiny
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, PNDMScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

_UNET = {
    # Two levels with attention and one without, a level that keeps its width, and a timestep
    # embedding with its own width.
    "tiny": {
        "block_out_channels": (8, 12, 12),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "layers_per_block": 1,
        "cross_attention_dim": 12,
        "attention_head_dim": 2,
        "norm_num_groups": 4,
        "time_embedding_dim": 24,
        "sample_size": 8,
    },
    "sd-v1-4": {"cross_attention_dim": 768, "sample_size": 64},
    # As in Stable Diffusion 2: heads of one size, and matrices as projections.
    "tiny-v2": {
        "block_out_channels": (8, 12),
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "layers_per_block": 1,
        "cross_attention_dim": 12,
        "attention_head_dim": (2, 3),
        "use_linear_projection": True,
        "norm_num_groups": 4,
        "sample_size": 8,
    },
}
_VAE = {
    "tiny": {"block_out_channels": (4, 8, 8, 12), "layers_per_block": 1, "norm_num_groups": 4},
    "sd-v1-4": {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2},
    "tiny-v2": {"block_out_channels": (4, 4, 4, 4), "layers_per_block": 1, "norm_num_groups": 2},
}
_TEXT = {
    "tiny": {
        "hidden_size": 12,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "vocab_size": 50,
    },
    "sd-v1-4": {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "vocab_size": 49408,
    },
    "tiny-v2": {
        "hidden_size": 12,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "vocab_size": 50,
        "hidden_act": "gelu",
    },
}
_IMAGE_SIZE = {"tiny": 64, "sd-v1-4": 128, "tiny-v2": 64}
_OF_SCHEDULER = {
    "tiny-v2": {
        "prediction_type": "v_prediction",
        "rescale_betas_zero_snr": True,
        "timestep_spacing": "trailing",
    }
}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--size", choices=sorted(_UNET), help="size of networks with random weights")
    what.add_argument("--weights", type=Path, help="a folder in diffusers' layout")
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    output = arguments.output
    output.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    networks = _loaded(arguments.weights) if arguments.weights else _made(arguments.size, output)
    arrays: dict[str, np.ndarray] = {}

    def run(name: str, network: Callable[..., Any], **inputs: torch.Tensor) -> None:
        with torch.no_grad():
            arrays[f"{name}/output"] = network(**inputs).numpy()
        arrays.update({f"{name}/{key}": value.numpy() for key, value in inputs.items()})

    text = next(networks).eval()
    tokens = torch.randint(0, text.config.vocab_size, (2, 77))
    run("text_encoder", lambda tokens: text(tokens).last_hidden_state, tokens=tokens)
    vae = next(networks).eval()
    pixels = _IMAGE_SIZE.get(arguments.size, vae.config.sample_size)
    side = pixels // 8
    run(
        "image_encoder",
        lambda image: vae.encode(image).latent_dist.parameters,
        image=torch.rand(1, 3, pixels, pixels) * 2 - 1,
    )
    # diffusers leaves the division by the scaling factor to the pipeline.
    run(
        "decoder",
        lambda latent: vae.decode(latent / vae.config.scaling_factor).sample,
        latent=torch.randn(1, 4, side, side),
    )
    unet = next(networks).eval()
    run(
        "diffusion_model",
        lambda latent, timesteps, context: unet(latent, timesteps, context).sample,
        latent=torch.randn(2, 4, side, side),
        timesteps=torch.tensor([3, 977]),
        context=torch.randn(2, 77, unet.config.cross_attention_dim),
    )
    # Runs the code after the last network.
    next(networks, None)
    np.savez_compressed(output / "reference.npz", **arrays)


def _loaded(folder: Path) -> Iterator[torch.nn.Module]:
    """Text encoder, autoencoder and diffusion model."""
    for kind, name in (
        (CLIPTextModel, "text_encoder"),
        (AutoencoderKL, "vae"),
        (UNet2DConditionModel, "unet"),
    ):
        yield kind.from_pretrained(folder / name).float()


def _made(size: str, output: Path) -> Iterator[torch.nn.Module]:
    """The same networks with random weights, which are also written to `output`."""
    text = _text_encoder(size)
    text.save_pretrained(output / "text_encoder")
    yield text
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        **_VAE[size],
    )
    _randomize(vae)
    vae.save_pretrained(output / "vae")
    yield vae
    unet = UNet2DConditionModel(**_UNET[size])
    _randomize(unet)
    unet.save_pretrained(output / "unet")
    yield unet
    schedule = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    scheduler = (
        DDIMScheduler(**schedule, clip_sample=False, **_OF_SCHEDULER[size])
        if size in _OF_SCHEDULER
        else PNDMScheduler(**schedule, skip_prk_steps=True, steps_offset=1)
    )
    scheduler.save_pretrained(output / "scheduler")


def _text_encoder(size: str) -> CLIPTextModel:
    settings = {"hidden_act": "quick_gelu", **_TEXT[size]}
    config = CLIPTextConfig(max_position_embeddings=77, **settings)
    model = CLIPTextModel(config).eval()
    _randomize(model)
    return model


def _randomize(model: torch.nn.Module) -> None:
    """Adds noise to initially constant parameters, so that no two tensors are alike."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.std() == 0 or parameter.ndim == 1:
                parameter += 0.1 * torch.randn_like(parameter)


if __name__ == "__main__":
    main()
