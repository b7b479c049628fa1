"""Results of diffusers' schedulers with a formula as the model, for the tests of our samplers.

Runs in an environment with torch and diffusers, as in `benchmarks/weights/requirements.txt`:

    python benchmarks/serving/schedulers.py --output tests/data/schedulers

writes `reference.npz`. For each sampler, prediction and number of steps it has the timesteps of the
calls of the model, the latents that it was given, as the network sees them, and the last latent;
and for every number of steps up to 100 the timesteps alone. The same with zero terminal SNR, for
models that predict the velocity, is under `zero_terminal_snr/`.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EulerAncestralDiscreteScheduler

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
_ZERO_TERMINAL_SNR = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
_SCHEDULERS_OF_ZERO_TERMINAL_SNR: dict[str, tuple[Any, dict[str, Any]]] = {
    "ddim": (DDIMScheduler, {"clip_sample": False, **_ZERO_TERMINAL_SNR}),
    "dpmpp_2m": (
        DPMSolverMultistepScheduler,
        {"algorithm_type": "dpmsolver++", "solver_order": 2, **_ZERO_TERMINAL_SNR},
    ),
    "euler_a": (EulerAncestralDiscreteScheduler, _ZERO_TERMINAL_SNR),
}


def model(latent: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
    """A fixed function of the latent and the timestep; the tests use the same one."""
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
    noise = torch.from_numpy(arrays["noise"])
    for root, schedulers, predictions in (
        ("", _SCHEDULERS, PREDICTIONS),
        ("zero_terminal_snr/", _SCHEDULERS_OF_ZERO_TERMINAL_SNR, PREDICTIONS[1:]),
    ):
        for name, of in schedulers.items():
            for prediction in predictions:
                for num_steps in STEPS:
                    found = _trajectory(_scheduler(of, prediction, num_steps), noise)
                    prefix = f"{root}{name}/{prediction}/{num_steps}"
                    arrays.update({f"{prefix}/{key}": value for key, value in found.items()})
            # If the step is rounded down, some schedulers have one timestep more, which is below 0.
            timesteps = [_scheduler(of, "epsilon", n).timesteps[:n] for n in range(1, 101)]
            arrays[f"{root}{name}/timesteps"] = torch.cat(timesteps).numpy()
    rescaled = _scheduler(_SCHEDULERS_OF_ZERO_TERMINAL_SNR["ddim"], "v_prediction", 1)
    arrays["zero_terminal_snr/alphas_cumprod"] = rescaled.alphas_cumprod.numpy()
    np.savez_compressed(output / "reference.npz", **arrays)


def _scheduler(of: tuple[Any, dict[str, Any]], prediction: str, num_steps: int) -> Any:
    kind, settings = of
    scheduler = kind(**_SCHEDULE, **settings, prediction_type=prediction)
    scheduler.set_timesteps(num_steps)
    return scheduler


def _trajectory(scheduler: Any, noise: torch.Tensor) -> dict[str, np.ndarray]:
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
