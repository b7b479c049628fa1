"""What a picture can be asked for with."""

from __future__ import annotations

import math
from collections.abc import Sequence

from serving.errors import ServingError
from storage.plain_text import is_blank, plain

MAX_TOKENS = 77
"""The tokens that the text encoder reads of a prompt, two of which are its start and its end."""

MAX_STEPS = 1000
"""Stable Diffusion's number of timesteps: more sampling steps would repeat some."""

SAMPLERS = ("ddim", "dpmpp_2m", "euler_a")
"""How a picture can be drawn."""

DEFAULT_SAMPLER = "ddim"
"""What releases of former versions draw with, which take no other."""

MAX_SIDE = 16_384
"""The most pixels of a height or width; memory ends before."""

MAX_SEED = 2**64 - 1
"""The most that fits the two 32-bit integers of a TensorFlow seed."""


def check_request(
    *,
    num_steps: int | None,
    guidance_scale: float | None,
    seeds: Sequence[int],
    sampler: str | None = None,
    height: int | None = None,
    width: int | None = None,
    strength: float | None = None,
) -> None:
    """Checks the numbers of a request, and its sampler; None is always right.

    Raises:
        ServingError: One is out of range, or there is no such sampler.
    """
    for name, side in (("height", height), ("width", width)):
        if side is not None and not 1 <= side <= MAX_SIDE:
            raise ServingError(f"the {name} is {side}; it must be 1 to {MAX_SIDE} pixels")
    if sampler is not None and sampler not in SAMPLERS:
        raise ServingError(f"the sampler is {sampler!r}; it must be one of {', '.join(SAMPLERS)}")
    if num_steps is not None and not 1 <= num_steps <= MAX_STEPS:
        raise ServingError(f"the number of steps is {num_steps}; it must be 1 to {MAX_STEPS}")
    if guidance_scale is not None and not 0 <= guidance_scale < math.inf:
        raise ServingError(f"the guidance scale is {guidance_scale}; it must be 0 or more")
    if strength is not None and not 0 <= strength <= 1:
        raise ServingError(f"the strength is {strength}; it must be 0 to 1")
    for seed in seeds:
        if not 0 <= seed <= MAX_SEED:
            raise ServingError(f"the seed is {seed}; it must be 0 to {MAX_SEED}")


def check_multiples(height: int | None, width: int | None, multiple: int) -> None:
    """Checks a size, in pixels, against what the networks can draw; None is always right.

    Raises:
        ServingError: A side is none of the multiples.
    """
    for name, side in (("height", height), ("width", width)):
        if side is not None and side % multiple:
            nearest = max(1, round(side / multiple)) * multiple
            raise ServingError(
                f"the {name} is {side}; it must be a multiple of {multiple}, for example {nearest}"
            )


def check_prompts(prompts: Sequence[str]) -> None:
    """Checks that each prompt says something.

    Raises:
        ServingError: There is none, or one has nothing in it that can be seen.
    """
    if not prompts:
        raise ServingError("there is no prompt; give at least one")
    for number, prompt in enumerate(prompts, start=1):
        if is_blank(prompt):
            one = len(prompts) == 1
            raise ServingError(
                f"{'there is no prompt' if one else f'prompt {number} of {len(prompts)} is empty'}"
                "; say what to draw (any prompt with a guidance scale of 0 draws nothing in "
                "particular)"
            )


def may_be_cut(prompt: str) -> bool:
    """Whether a prompt could have more than `MAX_TOKENS`: a token is a byte or more."""
    return len(plain(prompt).lower().encode()) > MAX_TOKENS - 2


def cut_note(prompt: str, cut: str | None) -> str:
    """What to tell a user whose prompt is cut.

    Args:
        prompt: As it was given.
        cut: The words of it that are not read; `None` where nobody can tell.
    """
    if cut is None:
        return (
            f"{prompt!r} may be longer than the {MAX_TOKENS} tokens that the text encoder reads, "
            "and its end without effect: this release is too old to say which words are cut"
        )
    return (
        f"{prompt!r} is longer than the {MAX_TOKENS} tokens that the text encoder reads; cut off, "
        f"and without effect, is {cut!r}"
    )
