"""The numbers that a picture can be asked for with."""

from __future__ import annotations

import math
from collections.abc import Sequence

from serving.errors import ServingError

MAX_STEPS = 1000
"""Stable Diffusion's number of timesteps: more sampling steps would repeat some."""

MAX_SEED = 2**64 - 1
"""The most that fits the two 32-bit integers of a TensorFlow seed."""


def check_request(
    *, num_steps: int | None, guidance_scale: float | None, seeds: Sequence[int]
) -> None:
    """Checks the numbers of a request; None is always right.

    Raises:
        ServingError: One is out of range.
    """
    if num_steps is not None and not 1 <= num_steps <= MAX_STEPS:
        raise ServingError(f"the number of steps is {num_steps}; it must be 1 to {MAX_STEPS}")
    if guidance_scale is not None and not 0 <= guidance_scale < math.inf:
        raise ServingError(f"the guidance scale is {guidance_scale}; it must be 0 or more")
    for seed in seeds:
        if not 0 <= seed <= MAX_SEED:
            raise ServingError(f"the seed is {seed}; it must be 0 to {MAX_SEED}")
