"""diffusers' pipeline in PyTorch, with `dpmpp_2m`; prints one line of JSON.

Runs in its own environment, with `benchmarks/weights/requirements.txt`. The weights of `tiny` are
the shipped ones, in diffusers' layout; at full width they are random, with the same shapes. The
prompt comes as tokens, which take less than a millisecond to make.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    DPMSolverMultistepScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel

from benchmarks.serving.measured import GUIDANCE_SCALE, NUM_STEPS, Draw, arguments, measure

_SHIPPED = Path(__file__).resolve().parents[2] / "trainer" / "base_weights"


def main() -> None:
    """The command line: that of the other ways, and the type to compute in."""
    dtype = getattr(torch, sys.argv.pop())
    given = arguments()
    tokens = torch.from_numpy(np.load(given.folder / "tokens.npy"))

    def load() -> Draw:
        text_encoder, vae, unet = (
            network.to(dtype).eval() for network in _networks(_SHIPPED / given.preset)
        )
        pipeline = StableDiffusionPipeline(
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=None,
            unet=unet,
            scheduler=DPMSolverMultistepScheduler(
                beta_start=0.00085,
                beta_end=0.012,
                beta_schedule="scaled_linear",
                steps_offset=1,
                algorithm_type="dpmsolver++",
                solver_order=2,
                use_karras_sigmas=True,
            ),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        pipeline.set_progress_bar_config(disable=True)

        def draw(count: int) -> np.ndarray:
            with torch.inference_mode():
                prompt, negative = text_encoder(tokens.repeat_interleave(count, 0))[0].chunk(2)
                images = pipeline(
                    prompt_embeds=prompt,
                    negative_prompt_embeds=negative,
                    num_inference_steps=NUM_STEPS,
                    guidance_scale=GUIDANCE_SCALE,
                    height=given.image_size,
                    width=given.image_size,
                    generator=torch.Generator().manual_seed(0),
                    output_type="np",
                ).images
            pixels: np.ndarray = (images * 255.0).astype(np.uint8)
            return pixels

        return draw

    measure(load, given.image_size, given.pictures)


def _networks(shipped: Path) -> tuple[torch.nn.Module, ...]:
    """Text encoder, autoencoder and diffusion model."""
    if shipped.exists():
        return (
            CLIPTextModel.from_pretrained(shipped / "text_encoder"),
            AutoencoderKL.from_pretrained(shipped / "vae"),
            UNet2DConditionModel.from_pretrained(shipped / "unet"),
        )
    text = CLIPTextConfig(
        hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12
    )
    autoencoder = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
    )
    unet = UNet2DConditionModel(cross_attention_dim=768, sample_size=64)
    return CLIPTextModel(text), autoencoder, unet


if __name__ == "__main__":
    main()
