"""Pictures drawn by diffusers, with the noise they start from.

Runs in the environment of `requirements.txt` beside this file:

    python benchmarks/weights/pictures.py --model my-model --lora lora.safetensors \
        --prompt "a red apple" --prompt "a ghost" --output pictures.npz

`--model` is a folder that `python -m trainer.diffusers_export` wrote. The file holds the prompts,
the noise, float32 [N, h, w, 4], the settings, and the pictures, uint8 [N, H, W, 3]: `pictures`
without the adapters, `pictures_with_lora` with them. `tests/trainer/test_diffusers_pictures.py`
draws them from the same noise with our networks.
"""

from __future__ import annotations

import argparse
import functools
from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusionPipeline


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--model", type=Path, required=True, help="a folder in diffusers' layout")
    parser.add_argument("--lora", type=Path, help="adapters, as a run leaves them")
    parser.add_argument("--prompt", action="append", required=True)
    parser.add_argument("--num-steps", type=int, default=25)
    parser.add_argument("--guidance-scale", type=float, default=4.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, required=True, help="file to write, .npz")
    arguments = parser.parse_args()
    pipeline = StableDiffusionPipeline.from_pretrained(arguments.model)
    side = pipeline.unet.config.sample_size
    shape = (len(arguments.prompt), side, side, pipeline.unet.config.in_channels)
    noise = np.random.default_rng(arguments.seed).standard_normal(shape, np.float32)
    # PyTorch has channels first.
    latents = torch.tensor(noise).permute(0, 3, 1, 2)
    draw = functools.partial(
        pipeline,
        arguments.prompt,
        num_inference_steps=arguments.num_steps,
        guidance_scale=arguments.guidance_scale,
        output_type="np",
    )

    def pictures() -> np.ndarray:
        return np.round(255 * draw(latents=latents.clone()).images).astype(np.uint8)

    arrays = {
        "prompts": np.array(arguments.prompt),
        "noise": noise,
        "num_steps": np.array(arguments.num_steps),
        "guidance_scale": np.array(arguments.guidance_scale),
        "pictures": pictures(),
    }
    if arguments.lora is not None:
        pipeline.load_lora_weights(arguments.lora.parent, weight_name=arguments.lora.name)
        arrays["pictures_with_lora"] = pictures()
    np.savez_compressed(arguments.output, **arrays)


if __name__ == "__main__":
    main()
