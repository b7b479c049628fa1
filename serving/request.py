"""What a request for a picture may contain."""

from __future__ import annotations

import math
from collections.abc import Sequence

from serving.errors import ServingError
from storage.plain_text import is_blank, plain

MAX_TOKENS = 77
"""The tokens of a prompt that the text encoder reads; two of them are its start and end."""

MAX_STEPS = 1000
"""Stable Diffusion's number of timesteps: more sampling steps would repeat some."""

SAMPLERS = ("ddim", "dpmpp_2m", "euler_a")
"""The samplers that can draw a picture."""

DEFAULT_SAMPLER = "ddim"
"""The sampler of older releases, which take no other."""

MAX_SIDE = 16_384
"""The largest height or width, in pixels; memory runs out earlier."""

MAX_SEED = 2**64 - 1
"""The largest seed that fits into the two 32-bit integers of a TensorFlow seed."""


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
    """Checks the numbers of a request, and its sampler; None is always valid.

    Raises:
        ServingError: A number is out of range, or there is no such sampler.
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
    """Checks that the networks can draw a size, in pixels; None is always valid.

    Raises:
        ServingError: A side is not a multiple.
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
        ServingError: There is no prompt, or one has no visible characters.
    """
    if not prompts:
        raise ServingError("there is no prompt; give at least one")
    for number, prompt in enumerate(prompts, start=1):
        if is_blank(prompt):
            one = len(prompts) == 1
            raise ServingError(
                f"{'there is no prompt' if one else f'prompt {number} of {len(prompts)} is empty'}"
                "; say what to draw (for a picture of nothing in particular, use any prompt with a "
                "guidance scale of 0)"
            )


def may_be_cut(prompt: str) -> bool:
    """Whether a prompt could have more than `MAX_TOKENS`: a token is a byte or more."""
    return len(plain(prompt).lower().encode()) > MAX_TOKENS - 2


def cut_note(prompt: str, cut: str | None) -> str:
    """The note to a user whose prompt is cut.

    Args:
        prompt: The prompt as given.
        cut: The words of the prompt that are not read; `None` if unknown.
    """
    if cut is None:
        return (
            f"{prompt!r} may be longer than the {MAX_TOKENS} tokens that the text encoder reads; "
            "its end may have no effect: this release is too old to say which words are cut"
        )
    return (
        f"{prompt!r} is longer than the {MAX_TOKENS} tokens that the text encoder reads; this part "
        f"is cut off and has no effect: {cut!r}"
    )
