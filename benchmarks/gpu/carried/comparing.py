"""How far the results of a device are from those of a CPU; needs only NumPy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

_ENDS = 10


def compare_losses(losses: Sequence[float], expected: Sequence[float]) -> dict[str, Any]:
    """How far losses are from a CPU's at each step, and how far both fall.

    The fall is from the mean of the first ten steps to the mean of the last ten.
    """
    ours, theirs = np.asarray(losses, np.float64), np.asarray(expected, np.float64)

    def fall(x: np.ndarray) -> float:
        return float(1.0 - x[-_ENDS:].mean() / x[:_ENDS].mean())

    return {
        "losses": [float(x) for x in ours],
        "deviations": [float(x) for x in np.abs(ours - theirs) / theirs],
        "fall": fall(ours),
        "expected_fall": fall(theirs),
    }


def compare_drawings(
    results: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]
) -> dict[str, Any]:
    """How far off latents are (norm of the difference over the norm) and pixels (in levels).

    Args:
        results: `latent`, float32 [B, h, w, 4], and `pixels`, uint8 [B, H, W, 3].
        expected: The same from a CPU.
    """
    ours, theirs = (
        {name: x[name].astype(np.float64) for name in ("latent", "pixels")}
        for x in (results, expected)
    )
    off = np.abs(ours["pixels"] - theirs["pixels"])
    difference = np.linalg.norm(ours["latent"] - theirs["latent"])
    return {
        "latent_deviation": float(difference / np.linalg.norm(theirs["latent"])),
        "mean_pixel_deviation": float(off.mean()),
        "largest_pixel_deviation": float(off.max()),
    }
