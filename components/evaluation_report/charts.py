"""The report's two charts, as PNG."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

_BLUE = "#2563eb"
_GREY = "#8a9099"
_INK = "#202124"
_DPI = 144
# Smoothed over about a fifteenth of the curve.
_SMOOTHED_PART = 15


def loss_curve(
    history: Sequence[Mapping[str, float]], loss: float, loss_baseline: float, baseline: str
) -> bytes:
    """Draws the training loss over the steps, and the held-out losses as lines across.

    Args:
        history: Records with `step` and `loss`.
        loss: Held-out loss of the candidate; not drawn if NaN.
        loss_baseline: Held-out loss of the baseline; not drawn if NaN.
        baseline: What the baseline is called.
    """
    figure, axes = _figure()
    steps = np.array([record["step"] for record in history])
    losses = np.array([record["loss"] for record in history], np.float64)
    axes.plot(steps, losses, color=_BLUE, alpha=0.25, linewidth=1)
    axes.plot(steps, smoothed(losses), color=_BLUE, linewidth=2, label="training, smoothed")
    for value, name, color, style in (
        (loss_baseline, f"held-out, {baseline}", _GREY, "--"),
        (loss, "held-out, fine-tuned", _INK, "-"),
    ):
        if math.isfinite(value):
            label = f"{name}: {value:.4f}"
            axes.axhline(value, color=color, linestyle=style, linewidth=1.5, label=label)
    axes.set_xlabel("step")
    axes.set_ylabel("loss (mean squared error of the noise)")
    axes.set_title("Fine-tuning", loc="left", color=_INK, fontweight="bold")
    axes.set_xlim(left=0)
    axes.legend(frameon=False)
    return _png(figure)


def loss_by_timestep(buckets: Sequence[Mapping[str, Any]], baseline: str) -> bytes:
    """Draws the held-out losses of the strata of timesteps.

    Args:
        buckets: `timesteps`, `loss` and `loss_baseline` of each stratum, in their order.
        baseline: What the baseline is called.
    """
    figure, axes = _figure()
    positions = np.arange(len(buckets))
    width = 0.4
    for offset, key, label, color in (
        (-width / 2, "loss_baseline", baseline, _GREY),
        (width / 2, "loss", "fine-tuned", _BLUE),
    ):
        heights = [bucket[key] for bucket in buckets]
        axes.bar(positions + offset, heights, width, color=color, label=label)
    every = max(1, math.ceil(len(buckets) / 12))
    axes.set_xticks(positions[::every], [bucket["timesteps"] for bucket in buckets][::every])
    axes.tick_params(axis="x", labelsize=8)
    axes.set_xlabel("timestep (0: hardly any noise, 999: nothing but noise)")
    axes.set_ylabel("held-out loss (mean squared error of the noise)")
    axes.set_title("Held-out loss by timestep", loc="left", color=_INK, fontweight="bold")
    axes.legend(frameon=False)
    return _png(figure)


def smoothed(values: np.ndarray) -> np.ndarray:
    """Centred moving average whose window is cut off at the ends; float64 [N] to float64 [N]."""
    reach = len(values) // (2 * _SMOOTHED_PART)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    first = np.maximum(np.arange(len(values)) - reach, 0)
    end = np.minimum(np.arange(len(values)) + reach + 1, len(values))
    return (sums[end] - sums[first]) / (end - first)


def _figure() -> tuple[Figure, Axes]:
    # Not pyplot, whose state is global.
    figure = Figure(figsize=(8, 4.5), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e6e8eb", linewidth=0.8)
    axes.set_axisbelow(True)
    return figure, axes


def _png(figure: Figure) -> bytes:
    png = io.BytesIO()
    figure.savefig(png, format="png")
    return png.getvalue()
