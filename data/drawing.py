"""Draws the creatures of the sample dataset.

A creature is a body outline with anchor points (where its face is, where wings and limbs grow), and
parts that are drawn at these anchors from back to front. All coordinates are fractions of the
picture's side, x to the right and y down. They are rounded to whole pixels of a supersampled canvas
before anything is drawn, so that pictures do not depend on how a machine rounds a sine.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from PIL import Image, ImageChops, ImageDraw

from data.colours import COLOURS, OUTLINE, Colour, shade

IMAGE_SIZE = 128
"""Height and width of a picture in pixels."""

SHAPES = ("round", "tall", "wide", "square", "pear-shaped", "spiky", "fluffy", "long")
EXPRESSIONS = ("smiling", "sleepy", "surprised", "grumpy")
FEATURES: dict[str, tuple[str, ...]] = {
    "head": ("horns", "ears", "crest", "antennae"),
    "skin": ("spots", "stripes", "belly"),
    "back": ("wings", "tail"),
}
"""Features by place; a creature has at most one in each place."""

Expression = Literal["smiling", "sleepy", "surprised", "grumpy"]

_SUPERSAMPLING = 3
_SIDE = IMAGE_SIZE * _SUPERSAMPLING
_LINE = 0.026
_WHITE: Colour = (255, 255, 255)
_MOUTH: Colour = (120, 32, 48)
_TONGUE: Colour = (240, 120, 130)

_Point = tuple[float, float]
_Points = Sequence[_Point]


@dataclasses.dataclass(frozen=True)
class Creature:
    """What a creature looks like.

    Attributes:
        shape: One of `SHAPES`.
        colour: Colour of its body, one of `data.colours.COLOURS`.
        features: One or two pairs of a feature and its colour, from different places.
        expression: One of `EXPRESSIONS`.
        num_eyes: 1, 2 or 3.
    """

    shape: str
    colour: str
    features: tuple[tuple[str, str], ...]
    expression: str
    num_eyes: int


@dataclasses.dataclass(frozen=True)
class _Body:
    """The outline of a body, and where parts are attached."""

    outline: list[_Point]
    face: _Point
    face_scale: float
    crown_x: float
    crown_half_width: float
    belly: tuple[float, float, float, float]
    shoulders: tuple[_Point, ...]
    hips: tuple[_Point, ...]
    wing_roots: tuple[_Point, ...]
    tail_root: _Point


def _superellipse(
    centre: _Point, radius_x: float, radius_y: float, exponent: float = 2.0, steps: int = 48
) -> list[_Point]:
    points = []
    for i in range(steps):
        angle = 2.0 * math.pi * i / steps
        cos, sin = math.cos(angle), math.sin(angle)
        x = math.copysign(abs(cos) ** (2.0 / exponent), cos) * radius_x
        y = math.copysign(abs(sin) ** (2.0 / exponent), sin) * radius_y
        points.append((centre[0] + x, centre[1] + y))
    return points


def _bezier(start: _Point, control: _Point, end: _Point, steps: int = 14) -> list[_Point]:
    points = []
    for i in range(steps + 1):
        t = i / steps
        a, b, c = (1 - t) ** 2, 2 * t * (1 - t), t * t
        points.append(
            (
                a * start[0] + b * control[0] + c * end[0],
                a * start[1] + b * control[1] + c * end[1],
            )
        )
    return points


def _band(path: Sequence[_Point], widths: Sequence[float]) -> list[_Point]:
    """Returns the outline of a band along `path`, `widths` wide at each point, with round ends."""
    line = np.asarray(path, dtype=np.float64)
    tangent = np.gradient(line, axis=0)
    tangent /= np.linalg.norm(tangent, axis=1, keepdims=True)
    half = np.asarray(widths, dtype=np.float64)[:, None] / 2.0
    normal = np.stack([-tangent[:, 1], tangent[:, 0]], axis=1)
    caps = []
    for at, direction in ((-1, 1.0), (0, -1.0)):
        angles = [math.pi * i / 12 for i in range(1, 12)]
        caps.append(
            [
                line[at]
                + half[at] * direction * (math.cos(a) * normal[at] + math.sin(a) * tangent[at])
                for a in angles
            ]
        )
    ring = [*(line + half * normal), *caps[0], *(line - half * normal)[::-1], *caps[1]]
    return [(float(x), float(y)) for x, y in ring]


def _symmetric(
    outline: list[_Point],
    *,
    face_y: float,
    face_scale: float,
    crown_half_width: float,
    shoulder: _Point,
    hip: _Point,
    belly: tuple[float, float, float],
    wing: _Point,
) -> _Body:
    """Returns a symmetric body; `_Point`s are offsets to the right of 0.5."""
    return _Body(
        outline=outline,
        face=(0.5, face_y),
        face_scale=face_scale,
        crown_x=0.5,
        crown_half_width=crown_half_width,
        belly=(0.5, *belly),
        shoulders=((0.5 - shoulder[0], shoulder[1]), (0.5 + shoulder[0], shoulder[1])),
        hips=((0.5 - hip[0], hip[1]), (0.5 + hip[0], hip[1])),
        wing_roots=((0.5 - wing[0], wing[1]), (0.5 + wing[0], wing[1])),
        tail_root=(0.5 + max(hip[0] + 0.04, shoulder[0] - 0.08), hip[1] - 0.07),
    )


def _round_body(rng: np.random.Generator) -> _Body:
    return _symmetric(
        _superellipse((0.5, 0.55), 0.29, 0.285),
        face_y=0.47,
        face_scale=1.0,
        crown_half_width=0.17,
        shoulder=(0.26, 0.6),
        hip=(0.13, 0.81),
        belly=(0.715, 0.16, 0.1),
        wing=(0.2, 0.5),
    )


def _tall_body(rng: np.random.Generator) -> _Body:
    return _symmetric(
        _superellipse((0.5, 0.525), 0.22, 0.335, 2.6),
        face_y=0.385,
        face_scale=1.0,
        crown_half_width=0.13,
        shoulder=(0.2, 0.58),
        hip=(0.09, 0.835),
        belly=(0.68, 0.125, 0.125),
        wing=(0.14, 0.52),
    )


def _wide_body(rng: np.random.Generator) -> _Body:
    return _symmetric(
        _superellipse((0.5, 0.59), 0.34, 0.22, 2.4),
        face_y=0.535,
        face_scale=1.0,
        crown_half_width=0.2,
        shoulder=(0.31, 0.62),
        hip=(0.19, 0.79),
        belly=(0.725, 0.2, 0.07),
        wing=(0.24, 0.46),
    )


def _square_body(rng: np.random.Generator) -> _Body:
    return _symmetric(
        _superellipse((0.5, 0.55), 0.265, 0.27, 7.0),
        face_y=0.45,
        face_scale=1.0,
        crown_half_width=0.19,
        shoulder=(0.255, 0.62),
        hip=(0.15, 0.81),
        belly=(0.7, 0.17, 0.09),
        wing=(0.19, 0.48),
    )


def _pear_body(rng: np.random.Generator) -> _Body:
    outline = []
    for i in range(48):
        angle = 2.0 * math.pi * i / 48
        y = math.sin(angle)
        width = 0.255 + 0.085 * math.tanh(1.7 * (y - 0.05))
        outline.append((0.5 + width * math.cos(angle), 0.525 + 0.335 * y))
    return _symmetric(
        outline,
        face_y=0.44,
        face_scale=1.0,
        crown_half_width=0.12,
        shoulder=(0.23, 0.56),
        hip=(0.15, 0.84),
        belly=(0.7, 0.18, 0.12),
        wing=(0.13, 0.48),
    )


def _spiky_body(rng: np.random.Generator) -> _Body:
    spikes = int(rng.integers(11, 14))
    outline = []
    for i in range(2 * spikes):
        angle = -math.pi / 2.0 + math.pi * i / spikes
        radius = 0.365 if i % 2 == 0 else 0.27
        outline.append((0.5 + radius * math.cos(angle), 0.55 + radius * math.sin(angle)))
    return _symmetric(
        outline,
        face_y=0.495,
        face_scale=1.0,
        crown_half_width=0.16,
        shoulder=(0.27, 0.62),
        hip=(0.12, 0.82),
        belly=(0.715, 0.13, 0.075),
        wing=(0.2, 0.48),
    )


def _fluffy_body(rng: np.random.Generator) -> _Body:
    tufts = int(rng.integers(9, 12))
    outline = []
    for i in range(tufts * 6):
        angle = -math.pi / 2.0 + 2.0 * math.pi * i / (tufts * 6)
        radius = 0.26 + 0.075 * abs(math.sin(tufts * (angle + math.pi / 2.0) / 2.0))
        outline.append((0.5 + radius * 1.03 * math.cos(angle), 0.55 + radius * math.sin(angle)))
    return _symmetric(
        outline,
        face_y=0.475,
        face_scale=1.0,
        crown_half_width=0.16,
        shoulder=(0.28, 0.62),
        hip=(0.13, 0.82),
        belly=(0.715, 0.15, 0.085),
        wing=(0.2, 0.48),
    )


def _long_body(rng: np.random.Generator) -> _Body:
    neck = _bezier((0.29, 0.4), (0.27, 0.7), (0.48, 0.7), steps=16)
    back = _bezier((0.48, 0.7), (0.68, 0.7), (0.86, 0.62), steps=14)
    path = [*neck, *back[1:]]
    widths = [0.4 - 0.25 * (i / (len(path) - 1)) ** 1.2 for i in range(len(path))]
    return _Body(
        outline=_band(path, widths),
        face=(0.29, 0.385),
        face_scale=1.0,
        crown_x=0.29,
        crown_half_width=0.13,
        belly=(0.31, 0.62, 0.12, 0.1),
        shoulders=((0.17, 0.6),),
        hips=((0.33, 0.81), (0.48, 0.81), (0.62, 0.77), (0.75, 0.73)),
        wing_roots=((0.52, 0.58), (0.56, 0.58)),
        tail_root=(0.88, 0.61),
    )


_BODIES = {
    "round": _round_body,
    "tall": _tall_body,
    "wide": _wide_body,
    "square": _square_body,
    "pear-shaped": _pear_body,
    "spiky": _spiky_body,
    "fluffy": _fluffy_body,
    "long": _long_body,
}


class _Picture:
    """The canvas, and the pose shared by everything on it."""

    def __init__(self, rng: np.random.Generator, background: Colour):
        self._image = Image.new("RGB", (_SIDE, _SIDE), background)
        self._draw = ImageDraw.Draw(self._image)
        self._mirror = -1.0 if rng.random() < 0.5 else 1.0
        self._turn = rng.uniform(-0.07, 0.07)
        self._scale_x = rng.uniform(0.93, 1.03)
        self._scale_y = rng.uniform(0.93, 1.03)
        self._shift = (rng.uniform(-0.02, 0.02), rng.uniform(-0.015, 0.015))

    def _pixels(self, points: _Points) -> list[tuple[int, int]]:
        cos, sin = math.cos(self._turn), math.sin(self._turn)
        result = []
        for x, y in points:
            x, y = (x - 0.5) * self._scale_x * self._mirror, (y - 0.54) * self._scale_y
            x, y = x * cos - y * sin, x * sin + y * cos
            result.append(
                (
                    round((x + 0.5 + self._shift[0]) * _SIDE),
                    round((y + 0.54 + self._shift[1]) * _SIDE),
                )
            )
        return result

    def polygon(self, points: _Points, fill: Colour, line: float = _LINE) -> None:
        """Fills a polygon; `line` is the width of its dark outline, 0 for none."""
        corners = self._pixels(points)
        self._draw.polygon(corners, fill=fill)
        if line:
            self._outline(corners, line)

    def _outline(self, corners: list[tuple[int, int]], line: float) -> None:
        width = max(1, round(line * _SIDE))
        self._draw.line([*corners, *corners[:2]], fill=OUTLINE, width=width, joint="curve")

    def path(self, points: _Points, width: float, fill: Colour = OUTLINE) -> None:
        """Draws an open curve with round ends."""
        pixels = self._pixels(points)
        thick = max(1, round(width * _SIDE))
        self._draw.line(pixels, fill=fill, width=thick, joint="curve")
        for x, y in (pixels[0], pixels[-1]):
            radius = thick / 2.0
            self._draw.ellipse([x - radius, y - radius, x + radius, y + radius], fill=fill)

    def limb(self, points: _Points, width: float, fill: Colour) -> None:
        """Draws a curve of `width` with an outline around it."""
        self.path(points, width + 2.0 * _LINE)
        self.path(points, width, fill)

    def disc(
        self,
        x: float,
        y: float,
        radius_x: float,
        radius_y: float,
        fill: Colour,
        line: float = _LINE,
    ) -> None:
        """Draws an ellipse, always upright: poses turn it too little to see."""
        ((centre_x, centre_y),) = self._pixels([(x, y)])
        half = line / 2.0
        wide = round((radius_x * self._scale_x + half) * _SIDE)
        high = round((radius_y * self._scale_y + half) * _SIDE)
        self._draw.ellipse(
            [centre_x - wide, centre_y - high, centre_x + wide, centre_y + high],
            fill=fill,
            outline=OUTLINE if line else None,
            width=round(line * _SIDE),
        )

    def body(
        self, outline: _Points, colour: Colour, marks: Sequence[tuple[_Points, Colour]]
    ) -> None:
        """Draws the body with `marks` clipped to it, a shadow and a highlight."""
        corners = self._pixels(outline)
        xs, ys = [x for x, _ in corners], [y for _, y in corners]
        left, top = min(xs), min(ys)
        box = (max(xs) + 1 - left, max(ys) + 1 - top)
        mask = Image.new("L", box, 0)
        ImageDraw.Draw(mask).polygon([(x - left, y - top) for x, y in corners], fill=255)
        skin = Image.new("RGB", box, colour)
        draw = ImageDraw.Draw(skin)
        for points, mark_colour in marks:
            local = [(x - left, y - top) for x, y in self._pixels(points)]
            draw.polygon(local, fill=mark_colour)
        shift = round(0.045 * _SIDE)
        lit = Image.new("L", box, 0)
        lit.paste(mask, (-shift, -shift))
        shadow = ImageChops.subtract(mask, lit).point([value * 38 // 255 for value in range(256)])
        skin.paste(OUTLINE, (0, 0), shadow)
        self._image.paste(skin, (left, top), mask)
        self._outline(corners, _LINE * 1.15)

    def finish(self) -> Image.Image:
        return self._image.reduce(_SUPERSAMPLING)


def _draw_wings(picture: _Picture, body: _Body, colour: Colour, rng: np.random.Generator) -> None:
    leathery = rng.random() < 0.5
    sides = (-1.0, 1.0) if body.shoulders[1:] else (-0.75, 0.85)
    for side, (x, y) in zip(sides, body.wing_roots, strict=True):
        if leathery:
            points = [(0.0, 0.0), (0.09, -0.2), (0.27, -0.27), (0.235, -0.15)]
            points += [(0.275, -0.07), (0.2, -0.04), (0.19, 0.05), (0.11, 0.03), (0.0, 0.11)]
            picture.polygon([(x + side * dx, y + dy) for dx, dy in points], colour)
            for dx, dy in ((0.235, -0.15), (0.2, -0.04)):
                picture.path([(x, y), (x + side * dx * 0.9, y + dy)], 0.012, shade(colour, 0.7))
            continue
        for dx, dy, length, width in ((0.12, 0.05, 0.12, 0.07), (0.13, -0.1, 0.16, 0.1)):
            angle = math.atan2(dy, dx)
            feather = []
            for u, v in _superellipse((0.0, 0.0), length, width, steps=36):
                feather.append(
                    (
                        x + side * (dx + u * math.cos(angle) - v * math.sin(angle)),
                        y + dy + u * math.sin(angle) + v * math.cos(angle),
                    )
                )
            picture.polygon(feather, colour)


def _draw_tail(picture: _Picture, body: _Body, colour: Colour, rng: np.random.Generator) -> None:
    x, y = body.tail_root
    style = int(rng.integers(3))
    if body.shoulders[1:]:
        end = (min(x + 0.25, 0.9), y - 0.12)
        path = _bezier((x - 0.06, y), (end[0], y + 0.1), end)
    else:
        end = (0.93, y - 0.24)
        path = _bezier((x - 0.04, y), (0.98, y - 0.02), end)
    picture.limb(path, 0.085, colour)
    if style == 0:
        picture.disc(*end, 0.08, 0.08, colour)
    elif style == 1:
        tip = [(0.0, -0.13), (0.105, 0.03), (0.0, 0.0), (-0.105, 0.03)]
        picture.polygon([(end[0] + dx, end[1] + dy) for dx, dy in tip], colour)
    else:
        tuft = [(-0.02, -0.14), (0.085, -0.045), (0.055, 0.05), (-0.055, 0.05), (-0.095, -0.035)]
        picture.polygon([(end[0] + dx, end[1] + dy) for dx, dy in tuft], colour)


def _draw_head(
    picture: _Picture, body: _Body, feature: str, colour: Colour, rng: np.random.Generator
) -> None:
    half = body.crown_half_width
    style = int(rng.integers(2))
    if feature == "crest":
        for at in (-1.0, 1.0, 0.0):
            base_x = body.crown_x + at * max(half * 0.75, 0.1)
            base_y = _top(body.outline, base_x) + 0.03
            height, lean = 0.185 - 0.03 * abs(at), at * 0.05
            if style:
                picture.disc(base_x + lean * 0.5, base_y - height * 0.4, 0.08, height * 0.6, colour)
                continue
            points = [(base_x - 0.1, base_y + 0.04), (base_x + lean, base_y - height)]
            picture.polygon([*points, (base_x + 0.1, base_y + 0.04)], colour)
        return
    for side in (-1.0, 1.0):
        root_x = body.crown_x + side * half * 0.8
        root_y = _top(body.outline, root_x) + 0.02
        if feature == "horns":
            tip = (root_x + side * (0.1 if style else -0.02), root_y - 0.18)
            outside = (root_x + side * 0.08, root_y + 0.05)
            inside = (root_x - side * 0.075, root_y + 0.02)
            outer = _bezier(outside, (root_x + side * 0.12, root_y - 0.09), tip)
            inner = _bezier(tip, (root_x - side * 0.01, root_y - 0.07), inside)
            picture.polygon([*outer, *inner], colour)
        elif feature == "ears":
            if style:
                points = [(-0.09, 0.04), (0.06, -0.19), (0.125, 0.1)]
                hollow = [(-0.02, 0.01), (0.052, -0.115), (0.08, 0.04)]
                picture.polygon([(root_x + side * dx, root_y + dy) for dx, dy in points], colour)
                picture.polygon(
                    [(root_x + side * dx, root_y + dy) for dx, dy in hollow],
                    shade(colour, 0.75),
                    0.0,
                )
            else:
                ear_x, ear_y = root_x + side * 0.055, root_y - 0.045
                picture.disc(ear_x, ear_y, 0.095, 0.105, colour)
                picture.disc(ear_x, ear_y, 0.05, 0.058, shade(colour, 0.75), 0.0)
        elif feature == "antennae":
            tip = (root_x + side * 0.05, max(root_y - 0.18, 0.085))
            control = (root_x - side * 0.03, root_y - 0.1)
            picture.path(_bezier((root_x - side * 0.03, root_y + 0.03), control, tip), 0.03)
            picture.disc(*tip, 0.052, 0.052, colour)


def _marks(
    body: _Body, feature: str, colour: Colour, rng: np.random.Generator
) -> list[tuple[_Points, Colour]]:
    """Returns the marks that a skin feature paints on the body."""
    if feature == "belly":
        x, y, radius_x, radius_y = body.belly
        return [(_superellipse((x, y), radius_x, radius_y, steps=40), colour)]
    xs, ys = [x for x, _ in body.outline], [y for _, y in body.outline]
    left, right, top, bottom = min(xs), max(xs), min(ys), max(ys)
    face_x, face_y = body.face
    marks: list[tuple[_Points, Colour]] = []
    if feature == "stripes":
        if not body.shoulders[1:]:
            for i in range(5):
                x = 0.43 + 0.105 * i
                marks.append(
                    ([(x, 0.4), (x + 0.045, 0.4), (x + 0.07, 1.0), (x + 0.02, 1.0)], colour)
                )
            return marks
        for row in np.arange(bottom - 0.085, top + 0.03, -0.108):
            if -0.16 < row - face_y < 0.13:
                continue
            upper = _bezier((left, row - 0.03), (0.5, row + 0.035), (right, row - 0.03))
            lower = [(x, y + 0.052) for x, y in reversed(upper)]
            marks.append(([*upper, *lower], colour))
        for y in (face_y - 0.06, face_y + 0.05):
            crossings = _crossings(body.outline, y)
            for edge, inwards in ((crossings[0], 1.0), (crossings[-1], -1.0)):
                tip = (edge + inwards * (0.1 if right - left > 0.5 else 0.07), y)
                edge -= inwards * 0.05
                marks.append(([(edge, y - 0.045), tip, (edge, y + 0.045)], colour))
        return marks
    placed: list[tuple[float, float, float]] = []
    for _ in range(400):
        if len(placed) == 7:
            break
        x, y = rng.uniform(left + 0.02, right - 0.02), rng.uniform(top + 0.02, bottom - 0.03)
        radius = rng.uniform(0.045, 0.065)
        near_face = abs(x - face_x) < 0.17 * body.face_scale and abs(y - face_y - 0.03) < 0.17
        crowded = any(math.hypot(x - a, y - b) < radius + r + 0.03 for a, b, r in placed)
        if near_face or crowded or not _inside(body.outline, x, y):
            continue
        placed.append((x, y, radius))
    return [(_superellipse((x, y), r, r, steps=28), colour) for x, y, r in placed]


def _crossings(outline: _Points, y: float) -> list[float]:
    """Returns where a polygon crosses the horizontal line at `y`, from left to right."""
    return sorted(
        (x1 - x0) * (y - y0) / (y1 - y0) + x0
        for (x0, y0), (x1, y1) in zip(outline, [*outline[1:], outline[0]], strict=True)
        if (y0 > y) != (y1 > y)
    )


def _top(outline: _Points, x: float) -> float:
    """Returns the y of the highest point of an outline around `x`."""
    turned = [(b, a) for a, b in outline]
    return min(_crossings(turned, x + offset)[0] for offset in (-0.03, 0.0, 0.03))


def _inside(outline: _Points, x: float, y: float) -> bool:
    """Returns whether a point is in a polygon (even-odd rule)."""
    return sum(crossing > x for crossing in _crossings(outline, y)) % 2 == 1


def _draw_limbs(
    picture: _Picture, body: _Body, colour: Colour, has_tail: bool, rng: np.random.Generator
) -> None:
    for x, y in body.hips:
        picture.limb([(x, y - 0.04), (x, y + 0.075)], 0.07, colour)
    if body.shoulders[1:]:
        for x, y in body.hips:
            side = -1.0 if x < 0.5 else 1.0
            picture.disc(x + side * 0.02, y + 0.095, 0.072, 0.042, colour)
    pose = int(rng.integers(3))
    for number, (x, y) in enumerate(body.shoulders):
        side = -1.0 if x < 0.5 else 1.0
        # A tail is on the right, and the arm there makes room for it.
        raised = pose == 1 or (pose == 2 and number == 0) or (has_tail and number == 1)
        drop = -0.14 if raised else 0.1
        hand = (x + side * 0.1, y + drop)
        picture.limb(_bezier((x, y), (x + side * 0.1, y), hand, steps=8), 0.062, colour)


def _draw_face(
    picture: _Picture, creature: Creature, body: _Body, colour: Colour, rng: np.random.Generator
) -> None:
    x, y = body.face
    scale = body.face_scale
    expression = creature.expression
    if creature.num_eyes == 1:
        eyes = [(0.0, -0.02, 0.1)]
    elif creature.num_eyes == 3:
        eyes = [(-0.12, 0.01, 0.066), (0.12, 0.01, 0.066), (0.0, -0.055, 0.068)]
    else:
        gap = rng.uniform(0.088, 0.1)
        eyes = [(-gap, 0.0, 0.08), (gap, 0.0, 0.08)]
    look_x, look_y = rng.uniform(-0.25, 0.25), rng.uniform(-0.1, 0.2)
    for dx, dy, radius in eyes:
        eye_x, eye_y, radius = x + dx * scale, y + dy * scale, radius * scale
        if expression == "surprised":
            radius *= 1.12
        picture.disc(eye_x, eye_y, radius, radius * 1.08, _WHITE, 0.018)
        pupil = radius * (0.42 if expression == "surprised" else 0.62)
        free = radius - pupil - 0.01
        pupil_x, pupil_y = eye_x + look_x * free, eye_y + look_y * free
        picture.disc(pupil_x, pupil_y, pupil, pupil * 1.08, OUTLINE, 0.0)
        glint = pupil * 0.36
        picture.disc(pupil_x - glint, pupil_y - glint * 1.2, glint, glint, _WHITE, 0.0)
        if expression == "sleepy":
            lid = _superellipse((eye_x, eye_y), radius, radius * 1.08, steps=40)[20:]
            picture.polygon(lid, shade(colour, 0.85), 0.018)
        elif expression == "grumpy":
            # Brows slope down towards the middle of the face; over a middle eye they are level.
            slant = 0.35 * math.copysign(radius, dx) if dx else 0.0
            left_x, right_x = eye_x - radius * 1.1, eye_x + radius * 1.1
            brow_y, lid_y = eye_y - radius * 0.85, eye_y - radius * 1.25
            brow = [(left_x, brow_y + slant), (right_x, brow_y - slant)]
            lid = [*brow, (right_x, lid_y), (left_x, lid_y)]
            picture.polygon(lid, colour, 0.0)
            picture.path(brow, 0.03)
    mouth_y = y + (0.125 if creature.num_eyes != 1 else 0.13) * scale
    if expression in ("smiling", "sleepy"):
        for side in (-1.0, 1.0):
            cheek_x = x + side * 0.165 * scale
            picture.disc(cheek_x, mouth_y - 0.03, 0.032, 0.022, _cheek(colour), 0.0)
    if expression == "smiling":
        if rng.random() < 0.6:
            lower = _superellipse((x, mouth_y - 0.02), 0.075 * scale, 0.075 * scale, steps=40)[:21]
            picture.polygon(lower, _MOUTH, 0.018)
            tongue = _superellipse((x, mouth_y + 0.022 * scale), 0.035, 0.022, steps=24)
            picture.polygon(tongue, _TONGUE, 0.0)
        else:
            half = 0.075 * scale
            smile = _bezier(
                (x - half, mouth_y - 0.01), (x, mouth_y + 0.09), (x + half, mouth_y - 0.01)
            )
            picture.path(smile, 0.026)
    elif expression == "surprised":
        picture.disc(x, mouth_y + 0.02, 0.036 * scale, 0.045 * scale, _MOUTH, 0.018)
    elif expression == "grumpy":
        half = 0.065 * scale
        frown = _bezier(
            (x - half, mouth_y + 0.035), (x, mouth_y - 0.035), (x + half, mouth_y + 0.035)
        )
        picture.path(frown, 0.026)
    else:
        picture.disc(x, mouth_y, 0.02, 0.016, _MOUTH, 0.012)


def _cheek(colour: Colour) -> Colour:
    """Returns a blush that is visible on skin of `colour`."""
    blush = (255, 120, 130)
    red, green, blue = (round(0.5 * a + 0.5 * b) for a, b in zip(colour, blush, strict=True))
    return red, green, blue


def draw_creature(creature: Creature, rng: np.random.Generator) -> Image.Image:
    """Draws a creature.

    Args:
        creature: What it looks like.
        rng: Decides the pose and all else that the description leaves open.

    Returns:
        An RGB picture, `IMAGE_SIZE` pixels high and wide.
    """
    names = tuple(COLOURS)
    tint = COLOURS[names[int(rng.integers(len(names)))]]
    picture = _Picture(rng, shade(tint, 1.0 + rng.uniform(0.84, 0.96)))
    body = _BODIES[creature.shape](rng)
    colour = shade(COLOURS[creature.colour], rng.uniform(0.97, 1.04))
    features = {name: COLOURS[value] for name, value in creature.features}

    if "wings" in features:
        _draw_wings(picture, body, features["wings"], rng)
    _draw_limbs(picture, body, colour, "tail" in features, rng)
    if "tail" in features:
        _draw_tail(picture, body, features["tail"], rng)
    for name in FEATURES["head"]:
        if name in features:
            _draw_head(picture, body, name, features[name], rng)
    marks = [
        mark
        for name in FEATURES["skin"]
        if name in features
        for mark in _marks(body, name, features[name], rng)
    ]
    picture.body(body.outline, colour, marks)
    _draw_face(picture, creature, body, colour, rng)
    return picture.finish()
