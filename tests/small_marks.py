"""What a small picture says of itself."""

from __future__ import annotations

import dataclasses
from typing import Any

from storage.picture_marks import Marks

_MARKS = Marks(
    prompt="a cat",
    negative_prompt="",
    num_steps=2,
    sampler="ddim",
    guidance_scale=4.0,
    seed=7,
    height=8,
    width=8,
    release=1,
)


def small_marks(**changes: Any) -> Marks:
    """Those of a picture of a cat that release 1 drew, with changes."""
    return dataclasses.replace(_MARKS, **changes)
