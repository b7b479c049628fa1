"""diffusers' step and pipeline to compare with our rows, in PyTorch; needs torch and diffusers.

A step does the same work as ours: cached latents and contexts in, AdamW in one kernel, clipping and
the moving average of the weights; channels last, and float32 multiplied as TF32, as XLA does. In 16
bits the networks compute under autocast, with weights in float32, like ours. diffusers' pipeline
draws pictures from contexts; in 16 bits its weights and arithmetic have 16 bits, as is usual.
Random weights. Prints one line of JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import resource
from collections.abc import Callable
from typing import Any

import torch

from .timing import compiling_and_calls, speed

_LEARNING_RATE, _WEIGHT_DECAY, _CLIP_NORM, _EMA_DECAY = 1e-5, 1e-2, 1.0, 0.9999
_GUIDANCE_SCALE, _NUM_STEPS = 7.5, 25
_TOKENS = 77
# The words of PyTorch, of its compiler around them, of cuBLAS and of a CPU.
_OUT_OF_MEMORY = re.compile(r"out of memory|ALLOC_FAILED|allocate memory")
_PROJECTIONS = ("to_q", "to_k", "to_v", "to_out.0")

Call = Callable[[], object]


class AdaptedLinear(torch.nn.Module):
    """A projection with its own adapter (Hu et al. 2022)."""

    def __init__(self, linear: torch.nn.Linear, rank: int) -> None:
        """Adds an adapter that at first changes nothing."""
        super().__init__()
        self.linear = linear
        self.down = torch.nn.Linear(linear.in_features, rank, bias=False)
        self.up = torch.nn.Linear(rank, linear.out_features, bias=False)
        torch.nn.init.zeros_(self.up.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., width in] to [..., width out]."""
        return self.linear(x) + self.up(self.down(x))


def training(row: dict[str, Any], networks: dict[str, Any], device: torch.device) -> Call:
    """One optimizer step of a row."""
    from diffusers import DDPMScheduler, UNet2DConditionModel

    torch.manual_seed(0)
    side, batch = row["image_size"] // 8, row["batch_size"]
    model = UNet2DConditionModel(**networks["unet"], sample_size=side)
    if row["lora_rank"]:
        model.requires_grad_(False)
        for name, module in list(model.named_modules()):
            if name.endswith(_PROJECTIONS) and isinstance(module, torch.nn.Linear):
                parent, _, own = name.rpartition(".")
                adapted = AdaptedLinear(module, row["lora_rank"])
                setattr(model.get_submodule(parent), own, adapted)
    if row["gradient_checkpointing"]:
        model.enable_gradient_checkpointing()
    model = model.to(device, memory_format=torch.channels_last).train()
    trained = [p for p in model.parameters() if p.requires_grad]
    averages = [p.detach().clone() for p in trained]
    optimizer = torch.optim.AdamW(
        trained, lr=_LEARNING_RATE, weight_decay=_WEIGHT_DECAY, fused=True
    )
    schedule = DDPMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", num_train_timesteps=1000
    )
    mean, log_variance = torch.randn(2, batch, 4, side, side, device=device).unbind()
    context = torch.randn(batch, _TOKENS, networks["unet"]["cross_attention_dim"], device=device)
    network = torch.compile(model) if row["compiled"] else model
    half = {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(row["precision"])
    scaler = torch.amp.GradScaler(device.type, enabled=half is torch.float16)

    def step() -> None:
        latents = (mean + torch.exp(0.5 * log_variance) * torch.randn_like(mean)) * 0.18215
        latents = latents.contiguous(memory_format=torch.channels_last)
        noise = torch.randn_like(latents)
        timesteps = torch.randint(0, 1000, (batch,), device=device)
        noisy = schedule.add_noise(latents, noise, timesteps)
        with torch.autocast(device.type, half) if half else contextlib.nullcontext():
            predicted = network(noisy, timesteps, context).sample
        loss = torch.nn.functional.mse_loss(predicted.float(), noise.float())
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(trained, _CLIP_NORM)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)
        torch._foreach_lerp_(averages, [p.detach() for p in trained], 1.0 - _EMA_DECAY)

    return step


def drawing(row: dict[str, Any], networks: dict[str, Any], device: torch.device) -> Call:
    """Drawing the pictures of a row, from contexts to pixels."""
    from diffusers import (
        AutoencoderKL,
        DDIMScheduler,
        StableDiffusionPipeline,
        UNet2DConditionModel,
    )

    torch.manual_seed(0)
    size, batch = row["image_size"], row["batch_size"]
    dtype = getattr(torch, row["precision"])
    pipeline = StableDiffusionPipeline(
        vae=AutoencoderKL(**networks["vae"], sample_size=size),
        text_encoder=None,
        tokenizer=None,
        unet=UNet2DConditionModel(**networks["unet"], sample_size=size // 8),
        scheduler=DDIMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            clip_sample=False,
            set_alpha_to_one=False,
            steps_offset=1,
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).to(device, dtype)
    pipeline.set_progress_bar_config(disable=True)
    for network in (pipeline.unet, pipeline.vae):
        network.to(memory_format=torch.channels_last).eval()
    if row["compiled"]:
        pipeline.unet = torch.compile(pipeline.unet)
        pipeline.vae.decode = torch.compile(pipeline.vae.decode)
    shape = (batch, _TOKENS, networks["unet"]["cross_attention_dim"])
    context, unconditional = torch.randn(2, *shape, device=device, dtype=dtype).unbind()

    def draw() -> None:
        pipeline(
            prompt_embeds=context,
            negative_prompt_embeds=unconditional,
            num_inference_steps=_NUM_STEPS,
            guidance_scale=_GUIDANCE_SCALE,
            height=size,
            width=size,
            output_type="pt",
        )

    return draw


def measure(row: dict[str, Any], networks: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """Times a row."""
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    on_gpu = device.type == "cuda"

    def wait() -> None:
        if on_gpu:
            torch.cuda.synchronize()

    call = (training if row["kind"] == "training" else drawing)(row, networks, device)
    compile_seconds, seconds = compiling_and_calls(call, wait)
    name = torch.cuda.get_device_name(device) if on_gpu else "cpu"
    return {
        **speed(row, name, seconds),
        "compile_seconds": compile_seconds,
        "peak_bytes": torch.cuda.max_memory_allocated(device)
        if on_gpu
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--device", choices=("gpu", "cpu"), default="gpu")
    parser.add_argument("--row", type=json.loads, required=True, help="a row of the manifest")
    parser.add_argument("--networks", type=json.loads, required=True, help="dimensions of networks")
    arguments = parser.parse_args()
    device = torch.device("cuda" if arguments.device == "gpu" else "cpu")
    try:
        facts = measure(arguments.row, arguments.networks, device)
    except ImportError as error:
        # The error of diffusers' placeholder for a missing package begins with an empty line.
        why = f"there is no {error.name} here" if error.name else str(error).strip()[:300]
        facts = {"state": "missing", "why": why}
    except RuntimeError as error:
        told = [line for line in str(error).splitlines() if _OUT_OF_MEMORY.search(line)]
        if not told:
            raise
        facts = {"state": "does not fit", "why": told[0][:300]}
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
