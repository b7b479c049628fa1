"""Parts of small charts as inline SVG; their colours come from the page's style sheet."""

from __future__ import annotations

import math

from markupsafe import Markup

_TICKS = 5
# The width of a digit at 12 pixels in the widest common font.
_CHARACTER = 7.7


def chart(width: float, height: float, label: str, parts: list[Markup]) -> Markup:
    """Puts a chart together.

    Args:
        width: Width in coordinates.
        height: Height in coordinates.
        label: Description of the chart for users who cannot see it.
        parts: Elements of the chart, from back to front.
    """
    return Markup(
        '<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>'
    ).format(width, height, label, Markup("").join(parts))


def line(css: str, x: float, y: float, other_x: float, other_y: float) -> Markup:
    """A straight line."""
    return Markup('<line class="{}" x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}"/>').format(
        css, x, y, other_x, other_y
    )


def text(css: str, x: float, y: float, words: str, width: float) -> Markup:
    """Text centred at `x`, or aligned with one of the ends, 0 and `width`, if it might cross it.

    Only the browser knows how wide the text is, so text near an end starts at that end.
    """
    half = text_width(words) / 2
    anchor, place = "middle", x
    if x < half:
        anchor, place = "start", 0.0
    elif x > width - half:
        anchor, place = "end", width
    return Markup('<text class="{}" x="{:.1f}" y="{:.0f}" text-anchor="{}">{}</text>').format(
        css, place, y, anchor, words
    )


def text_width(words: str) -> float:
    """The maximum width of a text."""
    return len(words) * _CHARACTER


def share_bar(fraction: float) -> Markup:
    """A horizontal bar as wide as its container, filled from the left up to `fraction`."""
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
    """A number in its usual notation: `1,024`, `0.25`, `12.5`."""
    if value == int(value):
        return f"{int(value):,}"
    digits = 1 if abs(value) >= 100 else 2
    return f"{value:,.{digits}f}".rstrip("0").rstrip(".")
