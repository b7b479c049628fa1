"""The training step of diffusers' script on cached latents; prints one line of JSON.

Runs in its own environment, with `benchmarks/train/requirements.txt`.
"""

from __future__ import annotations

import torch
from diffusers import DDPMScheduler, UNet2DConditionModel

from benchmarks.train.measured import (
    CLIP_NORM,
    LEARNING_RATE,
    WEIGHT_DECAY,
    Timer,
    arguments_of,
)


def main() -> None:
    """The command line."""
    parser = arguments_of(__doc__)
    parser.add_argument(
        "--fused", action="store_true", help="use PyTorch's fused AdamW, not its default"
    )
    arguments = parser.parse_args()
    side, batch = arguments.image_size // 8, arguments.batch_size
    timer = Timer()
    # All other dimensions are those of Stable Diffusion v1.4 by default.
    with timer.building():
        model = UNet2DConditionModel(cross_attention_dim=768, sample_size=side).train()
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=LEARNING_RATE,
        weight_decay=WEIGHT_DECAY,
        fused=arguments.fused or None,
    )
    schedule = DDPMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", num_train_timesteps=1000
    )
    mean, log_variance = torch.randn(2, batch, 4, side, side).unbind()
    context = torch.randn(batch, 77, 768)

    def loss() -> torch.Tensor:
        latents = (mean + torch.exp(0.5 * log_variance) * torch.randn_like(mean)) * 0.18215
        noise = torch.randn_like(latents)
        timesteps = torch.randint(0, 1000, (batch,))
        predicted = model(schedule.add_noise(latents, noise, timesteps), timesteps, context).sample
        return torch.nn.functional.mse_loss(predicted.float(), noise.float())

    def step() -> float:
        value = loss()
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return value.item()

    def forward() -> float:
        with torch.no_grad():
            return loss().item()

    timer.measure(step, forward, arguments.steps)


if __name__ == "__main__":
    main()
