"""Small charts as inline SVG; their colours come from the page's style sheet."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from markupsafe import Markup

_WIDTH, _HEIGHT = 360, 150
_LEFT, _RIGHT, _TOP, _BOTTOM = 8, 8, 22, 22
_TICKS = 5
_MIN_BAR = 2.0
_CHARACTER = 5.6


@dataclasses.dataclass(frozen=True)
class Bin:
    """One bin of a histogram; TFDV interpolates, so that a count need not be whole."""

    low: float
    high: float
    count: float


@dataclasses.dataclass(frozen=True)
class Mark:
    """A line across a histogram."""

    value: float
    label: str


def histogram(
    bins: Sequence[Bin], low: float, high: float, label: str, mark: Mark | None = None
) -> Markup:
    """Draws a histogram whose highest bar is as high as the chart.

    Args:
        bins: In their order; they may be of no width.
        low: Where the axis starts.
        high: Where it ends; not below `low`.
        label: Says what the chart shows, to those who do not see it.
        mark: Drawn where the axis reaches it, and else said at the side.
    """
    if high <= low:
        low, high = low - 0.5, high + 0.5
    total = sum(b.count for b in bins) or 1.0
    peak = max((b.count for b in bins), default=0.0) or 1.0
    base = _HEIGHT - _BOTTOM

    def x_of(value: float) -> float:
        return _LEFT + (value - low) / (high - low) * (_WIDTH - _LEFT - _RIGHT)

    # Opposite the mark's label.
    at_left = mark is None or mark.value > (low + high) / 2
    share = f"highest bar: {peak / total:.0%}"
    parts = [_text("axis", 0 if at_left else _WIDTH, 12, share)]
    for b in bins:
        # Interpolation leaves a trace in bins that no value falls into.
        if b.count < 0.5:
            continue
        left, right = x_of(b.low), x_of(b.high)
        width = max(right - left - 1, _MIN_BAR)
        height = b.count / peak * (base - _TOP)
        parts.append(
            Markup(
                '<rect class="bar" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}">'
                "<title>{} to {}: about {:,.0f} ({:.1%})</title></rect>"
            ).format(
                (left + right - width) / 2,
                base - height,
                width,
                height,
                short(b.low),
                short(b.high),
                b.count,
                b.count / total,
            )
        )
    parts.append(
        Markup('<line class="base" x1="{}" y1="{}" x2="{}" y2="{}"/>').format(
            _LEFT, base, _WIDTH - _RIGHT, base
        )
    )
    for tick in ticks(low, high):
        parts.append(_text("axis", x_of(tick), _HEIGHT - 6, short(tick)))
    if mark is not None and low <= mark.value <= high:
        x = x_of(mark.value)
        parts.append(
            Markup('<line class="mark" x1="{0:.1f}" y1="{1}" x2="{0:.1f}" y2="{2}"/>').format(
                x, _TOP - 6, base
            )
        )
        parts.append(_text("mark", x, 12, mark.label))
    elif mark is not None:
        arrow = f"{mark.label} →" if mark.value > high else f"← {mark.label}"
        parts.append(_text("mark", _WIDTH if mark.value > high else 0, 12, arrow))
    return Markup(
        '<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>'
    ).format(_WIDTH, _HEIGHT, label, Markup("").join(parts))


def share_bar(fraction: float) -> Markup:
    """A horizontal bar as wide as its place, filled from the left up to `fraction`."""
    return Markup(
        '<svg class="share" viewBox="0 0 100 1" preserveAspectRatio="none" aria-hidden="true">'
        '<rect class="bar" width="{:.2f}" height="1"/></svg>'
    ).format(100 * min(max(fraction, 0.0), 1.0))


def ticks(low: float, high: float) -> list[float]:
    """Round numbers from `low` to `high`, up to about five; `low` must be below `high`."""
    rough = (high - low) / _TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def short(value: float) -> str:
    """A number as people write it: `1,024`, `0.25`, `12.5`."""
    if value == int(value):
        return f"{int(value):,}"
    digits = 1 if abs(value) >= 100 else 2
    return f"{value:,.{digits}f}".rstrip("0").rstrip(".")


def _text(css: str, x: float, y: float, text: str) -> Markup:
    """Text with its middle at `x`, moved so that it stays inside of the chart."""
    half = len(text) * _CHARACTER / 2
    middle = min(max(x, half), _WIDTH - half)
    return Markup('<text class="{}" x="{:.1f}" y="{}" text-anchor="middle">{}</text>').format(
        css, middle, y, text
    )
