"""Results of diffusers' pipelines from a picture, and from a part of it, for our tests.

Runs in the environment of `requirements.txt` beside this file:

    python benchmarks/weights/from_pictures.py --weights tests/data/diffusers_tiny \
        --output tests/data/diffusers_tiny/from_pictures.npz

`--weights` is a folder in diffusers' layout. The file holds a picture, uint8 [1, H, W, 3], a mask,
uint8 [1, H, W], both contexts, float32 [2, 77, D], the noise added to the latent and the noise of
every step, float32 [1 + N, 1, h, w, 4], the latent of the picture, and the final latents of the
pipelines, by pipeline, sampler, steps and strength. The latent is the mean given by the encoder;
the pipelines would sample around it.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    UNet2DConditionModel,
)

CASES = ((1, 1.0), (2, 0.5), (10, 0.25), (10, 0.7))
GUIDANCE_SCALE = 3.0
_SEED = 5
_SCHEDULE = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--weights", type=Path, required=True, help="a folder in diffusers' layout")
    parser.add_argument("--output", type=Path, required=True, help="file to write, .npz")
    arguments = parser.parse_args()
    vae = AutoencoderKL.from_pretrained(arguments.weights / "vae").float().eval()
    unet = UNet2DConditionModel.from_pretrained(arguments.weights / "unet").float().eval()
    side = unet.config.sample_size
    picture, mask = _picture(8 * side), _mask(8 * side)
    contexts = np.random.default_rng(_SEED).standard_normal(
        (2, 77, unet.config.cross_attention_dim), np.float32
    )
    with torch.no_grad():
        image = torch.tensor(picture).permute(0, 3, 1, 2) / 127.5 - 1.0
        latent = vae.config.scaling_factor * vae.encode(image).latent_dist.mean
    arrays = {
        "picture": picture,
        "mask": mask,
        "contexts": contexts,
        "noise": _noise(latent.shape, 1 + max(steps for steps, _ in CASES)),
        "latent": _channels_last(latent),
    }
    for sampler, scheduler in (
        (
            "dpmpp_2m",
            DPMSolverMultistepScheduler(
                **_SCHEDULE,
                algorithm_type="dpmsolver++",
                solver_order=2,
                use_karras_sigmas=True,
            ),
        ),
        ("euler_a", EulerAncestralDiscreteScheduler(**_SCHEDULE)),
    ):
        parts = {
            "vae": vae,
            "unet": unet,
            "scheduler": scheduler,
            "text_encoder": None,
            "tokenizer": None,
            "safety_checker": None,
            "feature_extractor": None,
            "requires_safety_checker": False,
        }
        for steps, strength in CASES:
            request = {
                "image": latent,
                "strength": strength,
                "num_inference_steps": steps,
                "guidance_scale": GUIDANCE_SCALE,
                "prompt_embeds": torch.tensor(contexts[1:]),
                "negative_prompt_embeds": torch.tensor(contexts[:1]),
                "output_type": "latent",
            }
            name = f"{sampler}/{steps}/{strength}"
            # At full strength this pipeline keeps a trace of the picture. The other one and ours
            # do not: they draw from pure noise.
            if strength < 1.0:
                arrays[f"from_image/{name}"] = _result(
                    StableDiffusionImg2ImgPipeline(**parts), **request
                )
            arrays[f"inpaint/{name}"] = _result(
                StableDiffusionInpaintPipeline(**parts),
                **request,
                mask_image=torch.tensor(mask[:, None] / 255.0, dtype=torch.float32),
                # Only for networks of nine channels; by default, its shape differs from the latent.
                masked_image_latents=torch.zeros_like(latent),
                height=8 * side,
                width=8 * side,
            )
    np.savez_compressed(arguments.output, **arrays)


def _picture(side: int) -> np.ndarray:
    """A smooth picture with three different channels, uint8 [1, side, side, 3]."""
    rows, columns = np.mgrid[:side, :side] / side
    channels = [np.sin(5 * rows + k * columns + k) for k in range(3)]
    return np.round(127.5 * (1 + np.stack(channels, axis=-1))).astype(np.uint8)[None]


def _mask(side: int) -> np.ndarray:
    """255 at whole positions of the latent, for which diffusers takes the nearest pixel."""
    mask = np.zeros((1, side, side), np.uint8)
    mask[:, side // 4 : side // 2, side // 8 : -side // 4] = 255
    return mask


def _noise(shape: torch.Size, count: int) -> np.ndarray:
    """Successive noise of a generator with the seed."""
    generator = torch.Generator().manual_seed(_SEED)
    return np.stack([_channels_last(torch.randn(shape, generator=generator)) for _ in range(count)])


def _result(pipeline: Any, **request: Any) -> np.ndarray:
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(_SEED)
    return _channels_last(pipeline(**request, generator=generator).images)


def _channels_last(tensor: torch.Tensor) -> np.ndarray:
    return tensor.permute(0, 2, 3, 1).numpy()


if __name__ == "__main__":
    main()
