"""Plots metrics over runs."""

from __future__ import annotations

import os

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pipeline.lineage.comparing import Comparison
from pipeline.lineage.model import LineageError
from pipeline.lineage.text import clean

_FORMATS = (".png", ".svg", ".pdf")


def save_plot(comparison: Comparison, path: str) -> None:
    """Plots each metric over the runs, with marks on runs that were released.

    Raises:
        LineageError: There is nothing to draw, or the file cannot be written.
    """
    if os.path.splitext(path)[1].lower() not in _FORMATS:
        raise LineageError(
            f"{path} is not a picture format that can be written: use .png, .svg or .pdf"
        )
    if not comparison.rows:
        raise LineageError("there are no runs with metrics to draw")
    try:
        figure(comparison).savefig(path, dpi=150)
    except OSError as error:
        raise LineageError(f"{path} cannot be written: {error.strerror}") from None


def figure(comparison: Comparison) -> Figure:
    """Returns the figure that `save_plot` writes."""
    drawn = Figure(figsize=(9, 1.2 + 2.0 * len(comparison.metrics)), layout="constrained")
    axes = drawn.subplots(len(comparison.metrics), 1, sharex=True, squeeze=False)[:, 0]
    places = range(len(comparison.rows))
    for axis, name in zip(axes, comparison.metrics, strict=True):
        values = [row.run.metrics.get(name) for row in comparison.rows]
        known = [(i, v) for i, v in zip(places, values, strict=True) if v is not None]
        axis.plot(*zip(*known, strict=True), marker=".", color="#33658a")
        released = [(i, v) for i, v in known if comparison.rows[i].run.releases]
        if released:
            axis.plot(
                *zip(*released, strict=True), "o", color="#c1440e", label="released", zorder=3
            )
            axis.legend(loc="best", frameon=False)
        # A dollar sign in a name does not start mathematics.
        axis.set_ylabel(clean(name), parse_math=False)
        axis.grid(alpha=0.3)
    axes[-1].xaxis.set_major_locator(MaxNLocator(integer=True, nbins=10))
    axes[-1].set_xlabel("runs, earliest first")
    return drawn
