"""The report's charts: two as inline SVG for the page, one as PNG."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
from markupsafe import Markup
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from components.evaluator.results import Metric
from components.pages import svg

_BLUE = "#2563eb"
_GREY = "#8a9099"
_INK = "#202124"
_ORANGE = "#d97706"
_DPI = 144
# Smoothed over about a fifteenth of the curve.
_SMOOTHED_PART = 15

_WIDTH, _HEIGHT = 400, 230
_LEAST_LEFT, _RIGHT, _TOP, _BOTTOM = 42, 18, 12, 26
_LABEL_GAP = 6
_MAX_POINTS = 400
_CAP = 2.5


def intervals(
    series: Mapping[str, Sequence[tuple[float, Metric]]],
    high_x: float,
    label: str,
    *,
    zero_line: bool = False,
    as_percent: bool = False,
) -> Markup:
    """Draws values with their intervals over an axis that starts at zero.

    Args:
        series: Positions and values, by the class that colours them. Values that are not finite
            are left out.
        high_x: End of the axis.
        label: Description of the chart for users who cannot see it.
        zero_line: Whether the axis of values includes zero and has a line there.
        as_percent: Whether values are fractions to be written as percentages.
    """
    drawn = [m for points in series.values() for _, m in points if math.isfinite(m.value)]
    ends = [end for m in drawn for end in (m.value, m.lower, m.upper) if math.isfinite(end)]
    low, high = min([0.0, *ends]), max([0.0, *ends])
    plot = _Plot(0.0, high_x, low, high, "{:.0%}" if as_percent else "{:g}")
    parts = plot.axes()
    if zero_line:
        parts.append(svg.line("base", plot.left, plot.y(0.0), _WIDTH - _RIGHT, plot.y(0.0)))
    for number, (css, points) in enumerate(series.items()):
        # Side by side, so that none hides another.
        aside = 5 * (number - (len(series) - 1) / 2)
        for place, metric in points:
            if math.isfinite(metric.value):
                parts += _point(css, plot.x(place) + aside, metric, plot.y)
    return svg.chart(_WIDTH, _HEIGHT, label, parts)


def curve(
    steps: Sequence[float],
    values: Sequence[float],
    lines: Mapping[str, float],
    label: str,
    *,
    evaluations: Sequence[tuple[float, float]] = (),
    kept: float | None = None,
) -> Markup:
    """Draws a training curve, raw and smoothed, held-out losses, and values as horizontal lines.

    Args:
        steps: Steps in order; those whose value is not finite are left out.
        values: One value for each step.
        lines: Values by the class that colours them; values that are not finite are left out.
        label: Description of the chart for users who cannot see it.
        evaluations: Steps and their held-out losses; losses that are not finite are left out.
        kept: The evaluated step to mark.
    """
    pairs = [(s, v) for s, v in zip(steps, values, strict=True) if math.isfinite(v)]
    across = {css: value for css, value in lines.items() if math.isfinite(value)}
    scored = [(step, loss) for step, loss in evaluations if math.isfinite(loss)]
    found = [*(value for _, value in pairs), *across.values(), *(loss for _, loss in scored)]
    plot = _Plot(0.0, max([1.0, *steps]), 0.0, max([0.0, *found]), "{:g}")
    parts = plot.axes()
    if pairs:
        drawn = np.array(pairs)
        smooth = smoothed(drawn[:, 1])
        every = max(1, math.ceil(len(drawn) / _MAX_POINTS))
        for css, line in (("raw", drawn[:, 1]), ("smooth", smooth)):
            points = zip(drawn[::every, 0], line[::every], strict=True)
            parts.append(plot.polyline(css, points))
    if scored:
        parts.append(plot.polyline("held-out", scored))
    for step, loss in scored:
        if step == kept:
            parts += _point("kept", plot.x(step), Metric(loss), plot.y)
    for css, value in across.items():
        y = plot.y(value)
        parts.append(svg.line(css, plot.left, y, _WIDTH - _RIGHT, y))
    return svg.chart(_WIDTH, _HEIGHT, label, parts)


def loss_curve(
    history: Sequence[Mapping[str, float]],
    loss: float,
    loss_baseline: float,
    baseline: str,
    *,
    evaluations: Sequence[tuple[float, float]] = (),
    kept: float | None = None,
) -> bytes:
    """Draws training and held-out loss over the steps, and the judged losses as lines, as PNG.

    Args:
        history: Records with `step` and `loss`.
        loss: Held-out loss of the candidate; not drawn if NaN.
        loss_baseline: Held-out loss of the baseline; not drawn if NaN.
        baseline: Name of the baseline.
        evaluations: Steps and their held-out losses.
        kept: The evaluated step to mark.
    """
    # Not pyplot, whose state is global.
    figure = Figure(figsize=(8, 4.5), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e6e8eb", linewidth=0.8)
    axes.set_axisbelow(True)
    steps = np.array([record["step"] for record in history])
    losses = np.array([record["loss"] for record in history], np.float64)
    axes.plot(steps, losses, color=_BLUE, alpha=0.25, linewidth=1)
    axes.plot(steps, smoothed(losses), color=_BLUE, linewidth=2, label="training, smoothed")
    if evaluations:
        axes.plot(*zip(*evaluations, strict=True), color=_ORANGE, linewidth=2, label="held out")
    for step, value in evaluations:
        if step == kept:
            axes.plot(step, value, "o", color=_ORANGE, label=f"step {step:g}, kept")
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
    png = io.BytesIO()
    figure.savefig(png, format="png")
    return png.getvalue()


def smoothed(values: np.ndarray) -> np.ndarray:
    """Centred moving average whose window is cut off at the ends; float64 [N] to float64 [N]."""
    reach = len(values) // (2 * _SMOOTHED_PART)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    first = np.maximum(np.arange(len(values)) - reach, 0)
    end = np.minimum(np.arange(len(values)) + reach + 1, len(values))
    return (sums[end] - sums[first]) / (end - first)


class _Plot:
    """Maps values to positions on a chart."""

    def __init__(
        self, low_x: float, high_x: float, low_y: float, high_y: float, y_format: str
    ) -> None:
        self._low_x, self._high_x = low_x, high_x
        if high_y <= low_y:
            high_y = low_y + 1.0
        margin = 0.04 * (high_y - low_y)
        self._low_y = low_y - margin if low_y < 0 else low_y
        self._high_y = high_y + margin
        self._labels = {
            tick: y_format.format(tick) for tick in svg.ticks(self._low_y, self._high_y)
        }
        widest = max(map(svg.text_width, self._labels.values()), default=0.0)
        self.left = max(_LEAST_LEFT, widest + _LABEL_GAP)

    def x(self, value: float) -> float:
        share = (value - self._low_x) / (self._high_x - self._low_x)
        return self.left + share * (_WIDTH - self.left - _RIGHT)

    def y(self, value: float) -> float:
        share = (value - self._low_y) / (self._high_y - self._low_y)
        return _HEIGHT - _BOTTOM - share * (_HEIGHT - _TOP - _BOTTOM)

    def polyline(self, css: str, points: Iterable[tuple[float, float]]) -> Markup:
        """A line through points."""
        path = " ".join(f"{self.x(x):.1f},{self.y(y):.1f}" for x, y in points)
        return Markup('<polyline class="{}" points="{}"/>').format(css, path)

    def axes(self) -> list[Markup]:
        """Horizontal lines at round values, and the numbers of both axes."""
        parts = []
        for tick, words in self._labels.items():
            y = self.y(tick)
            parts.append(svg.line("grid", self.left, y, _WIDTH - _RIGHT, y))
            parts.append(
                Markup('<text class="axis" x="{}" y="{:.1f}" text-anchor="end">{}</text>').format(
                    self.left - _LABEL_GAP, y + 4, words
                )
            )
        base = _HEIGHT - _BOTTOM
        parts.append(svg.line("base", self.left, base, _WIDTH - _RIGHT, base))
        for tick in svg.ticks(self._low_x, self._high_x):
            parts.append(svg.text("axis", self.x(tick), _HEIGHT - 8, svg.short(tick), _WIDTH))
        return parts


def _point(css: str, x: float, metric: Metric, y: Callable[[float], float]) -> list[Markup]:
    parts = []
    words = f"{metric.value:.4f}"
    if math.isfinite(metric.lower) and math.isfinite(metric.upper):
        words += f" ({metric.lower:.4f} to {metric.upper:.4f})"
        low, high = y(metric.lower), y(metric.upper)
        parts.append(svg.line(css, x, low, x, high))
        parts += [svg.line(css, x - _CAP, end, x + _CAP, end) for end in (low, high)]
    circle = Markup('<circle class="{}" cx="{:.1f}" cy="{:.1f}" r="3">{}</circle>')
    title = Markup("<title>{}</title>").format(words)
    return [*parts, circle.format(css, x, y(metric.value), title)]
