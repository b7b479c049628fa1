"""What diffusers' schedulers make of a model that is a formula, for our samplers' tests.

Runs where torch and diffusers are, as `benchmarks/weights/requirements.txt` has them:

    python benchmarks/serving/schedulers.py --output tests/data/schedulers

writes `reference.npz`. Each sampler, prediction and number of steps has the timesteps that the
model was asked for, the latents that it was given, as the network sees them, and the last latent;
besides, there are the timesteps alone for every number of steps up to 100.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DPMSolverMultistepScheduler, EulerAncestralDiscreteScheduler

STEPS = (1, 2, 10, 25)
PREDICTIONS = ("epsilon", "v_prediction")
_SHAPE = (2, 2, 2, 4)
_SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
_SCHEDULERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "dpmpp_2m": (
        DPMSolverMultistepScheduler,
        {"algorithm_type": "dpmsolver++", "solver_order": 2, "use_karras_sigmas": True},
    ),
    "euler_a": (EulerAncestralDiscreteScheduler, {}),
}


def model(latent: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
    """A fixed function of the latent and the timestep; the tests have the same."""
    return 0.7 * latent + 0.3 * torch.sin(2.0 * latent + timestep / 200.0)


def fresh_noise(index: int) -> tuple[torch.Generator, torch.Tensor]:
    """A generator, and the noise that it will give."""
    noise = torch.randn(_SHAPE, generator=torch.Generator().manual_seed(1 + index))
    return torch.Generator().manual_seed(1 + index), noise


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--output", type=Path, required=True)
    output = parser.parse_args().output
    output.mkdir(parents=True, exist_ok=True)
    arrays = {
        "noise": torch.randn(_SHAPE, generator=torch.Generator().manual_seed(0)).numpy(),
        "fresh_noise": np.stack([fresh_noise(index)[1].numpy() for index in range(max(STEPS))]),
    }
    for name in _SCHEDULERS:
        for prediction in PREDICTIONS:
            for num_steps in STEPS:
                found = _trajectory(name, prediction, num_steps, torch.from_numpy(arrays["noise"]))
                prefix = f"{name}/{prediction}/{num_steps}"
                arrays.update({f"{prefix}/{key}": value for key, value in found.items()})
        timesteps = [_scheduler(name, "epsilon", number).timesteps for number in range(1, 101)]
        arrays[f"{name}/timesteps"] = torch.cat(timesteps).numpy()
    np.savez_compressed(output / "reference.npz", **arrays)


def _scheduler(name: str, prediction: str, num_steps: int) -> Any:
    kind, settings = _SCHEDULERS[name]
    scheduler = kind(**_SCHEDULE, **settings, prediction_type=prediction)
    scheduler.set_timesteps(num_steps)
    return scheduler


def _trajectory(
    name: str, prediction: str, num_steps: int, noise: torch.Tensor
) -> dict[str, np.ndarray]:
    scheduler = _scheduler(name, prediction, num_steps)
    sample = noise * scheduler.init_noise_sigma
    given = []
    for index, timestep in enumerate(scheduler.timesteps):
        latent = scheduler.scale_model_input(sample, timestep)
        given.append(latent.numpy())
        predicted = model(latent, timestep)
        generator, _ = fresh_noise(index)
        sample = scheduler.step(predicted, timestep, sample, generator=generator).prev_sample
    return {
        "timesteps": scheduler.timesteps.numpy(),
        "given": np.stack(given),
        "result": sample.numpy(),
    }


if __name__ == "__main__":
    main()
