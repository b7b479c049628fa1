"""One picture that shows prompts drawn by two models, side by side."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from matplotlib import font_manager
from PIL import Image, ImageDraw, ImageFont

_SMALL_CELL = 192
_LARGE_CELL = 256
_MARGIN = 36
_PAIR_GAP = 36
_PICTURE_GAP = 6
_TITLE_SIZE = 22
_TEXT_SIZE = 14
_LINE = 19
_MAX_CAPTION_LINES = 3
_INK = (32, 33, 36)
_GREY = (110, 114, 120)
_PAPER = (255, 255, 255)


@dataclasses.dataclass(frozen=True)
class Pair:
    """One prompt, drawn before and after fine-tuning.

    Attributes:
        prompt: The prompt that was drawn.
        before: uint8 [H, W, 3].
        after: uint8 [H, W, 3].
    """

    prompt: str
    before: np.ndarray
    after: np.ndarray


def before_after(
    pairs: Sequence[Pair], title: str, subtitle: str, before: str = "base weights"
) -> Image.Image:
    """Lays out pairs in a grid, each above its prompt, with `before` as a heading.

    Small pictures are magnified pixel by pixel, without smoothing.
    """
    cell = _LARGE_CELL if pairs[0].before.shape[0] > _SMALL_CELL else _SMALL_CELL
    pair_width = 2 * cell + _PICTURE_GAP
    columns = 1 if len(pairs) < 3 else 2 if len(pairs) < 15 else 3
    title_font, font, bold = _font(_TITLE_SIZE, bold=True), _font(_TEXT_SIZE), _font(13, bold=True)
    captions = [_wrapped(pair.prompt, font, pair_width) for pair in pairs]
    rows = [range(i, min(i + columns, len(pairs))) for i in range(0, len(pairs), columns)]
    heights = [cell + 14 + _LINE * max(len(captions[i]) for i in row) + 22 for row in rows]
    heading = _wrapped(subtitle, font, columns * (pair_width + _PAIR_GAP) - _PAIR_GAP)

    top = _MARGIN + _TITLE_SIZE + 14 + _LINE * len(heading) + 20
    width = 2 * _MARGIN + columns * pair_width + (columns - 1) * _PAIR_GAP
    sheet = Image.new("RGB", (width, top + 24 + sum(heights) + _MARGIN - 22), _PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((_MARGIN, _MARGIN - 6), title, fill=_INK, font=title_font)
    for number, line in enumerate(heading):
        position = (_MARGIN, _MARGIN + _TITLE_SIZE + 10 + _LINE * number)
        draw.text(position, line, fill=_GREY, font=font)

    y = top
    for column in range(columns):
        x = _MARGIN + column * (pair_width + _PAIR_GAP)
        draw.text((x, y), before, fill=_GREY, font=bold)
        draw.text((x + cell + _PICTURE_GAP, y), "fine-tuned", fill=_INK, font=bold)
    y += 24
    for row, height in zip(rows, heights, strict=True):
        for column, index in enumerate(row):
            x = _MARGIN + column * (pair_width + _PAIR_GAP)
            sheet.paste(_scaled(pairs[index].before, cell), (x, y))
            sheet.paste(_scaled(pairs[index].after, cell), (x + cell + _PICTURE_GAP, y))
            for number, line in enumerate(captions[index]):
                draw.text((x, y + cell + 10 + _LINE * number), line, fill=_INK, font=font)
        y += height
    return sheet


def _scaled(picture: np.ndarray, cell: int) -> Image.Image:
    image = Image.fromarray(picture)
    larger = cell > max(image.size)
    return image.resize(
        (cell, cell), Image.Resampling.NEAREST if larger else Image.Resampling.LANCZOS
    )


def _font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    # Comes with matplotlib, and so exists on every machine.
    properties = font_manager.FontProperties("DejaVu Sans", weight="bold" if bold else "normal")
    return ImageFont.truetype(font_manager.findfont(properties), size)


def _wrapped(text: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """Breaks text into lines at most `width` pixels wide; text that is cut ends in an ellipsis."""
    lines = [""]
    for word in " ".join(text.split()).split(" "):
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines += [word] if lines[-1] else []
            lines[-1] = word
    shown = [_cut(line, font, width) for line in lines[:_MAX_CAPTION_LINES]]
    if len(lines) > _MAX_CAPTION_LINES:
        shown[-1] = _cut(shown[-1] + " …", font, width)
    return shown


def _cut(line: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    if font.getlength(line) <= width:
        return line
    while font.getlength(line + "…") > width:
        line = line[:-1]
    return line + "…"
