"""Small charts as inline SVG; their colours come from the page's style sheet."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from markupsafe import Markup

from components.pages.svg import chart, line, short, text, ticks

_WIDTH, _HEIGHT = 360, 150
_LEFT, _RIGHT, _TOP, _BOTTOM = 8, 8, 22, 22
_MIN_BAR = 2.0


@dataclasses.dataclass(frozen=True)
class Bin:
    """One bin of a histogram; TFDV interpolates, so a count need not be whole."""

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
        bins: Bins in order; their width may be zero.
        low: Start of the axis.
        high: End of the axis; not below `low`.
        label: Description of the chart for users who cannot see it.
        mark: Drawn if it is on the axis, and otherwise named at the side.
    """
    # Between pixels there is nothing to label.
    marked = [low] if high <= low else ticks(low, high)
    if high <= low:
        low, high = low - 0.5, high + 0.5
    total = sum(b.count for b in bins) or 1.0
    peak = max((b.count for b in bins), default=0.0) or 1.0
    base = _HEIGHT - _BOTTOM

    def x_of(value: float) -> float:
        return _LEFT + (value - low) / (high - low) * (_WIDTH - _LEFT - _RIGHT)

    # On the other side than the label of the mark.
    at_left = mark is None or mark.value > (low + high) / 2
    share = f"highest bar: {peak / total:.0%}"
    parts = [text("axis", 0 if at_left else _WIDTH, 12, share, _WIDTH)]
    for b in bins:
        # Interpolation leaves a small count in bins without values.
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
    parts.append(line("base", _LEFT, base, _WIDTH - _RIGHT, base))
    for tick in marked:
        parts.append(text("axis", x_of(tick), _HEIGHT - 6, short(tick), _WIDTH))
    if mark is not None and low <= mark.value <= high:
        x = x_of(mark.value)
        parts.append(line("mark", x, _TOP - 6, x, base))
        parts.append(text("mark", x, 12, mark.label, _WIDTH))
    elif mark is not None:
        arrow = f"{mark.label} →" if mark.value > high else f"← {mark.label}"
        parts.append(text("mark", _WIDTH if mark.value > high else 0, 12, arrow, _WIDTH))
    return chart(_WIDTH, _HEIGHT, label, parts)
