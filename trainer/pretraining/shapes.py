"""Captioned drawings of shapes and everyday objects: a part of the training data of tiny.

The pictures share their colours and their flat, outlined style with the sample dataset, but not its
content: fine-tuning on creatures is a change of domain. Every picture depends only on
`(seed, index)`, so a training job can draw any of them at any time, in any order.

A thing is a list of filled polygons in a unit square (x right, y down, both from -1 to 1); turning,
scaling and moving it is arithmetic on points. It is drawn at four times the size and averaged down.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image, ImageChops, ImageDraw

from data.colours import COLOURS, DETAIL_COLOURS, OUTLINE, Colour, shade, with_article

_SUPERSAMPLING = 4
_Points = list[tuple[float, float]]


@dataclasses.dataclass(frozen=True)
class _Part:
    """One polygon of a thing.

    Attributes:
        points: Its corners.
        role: Its colour: "main", "main_dark", "second", "dark", "light" or "shine"; a "line" is an
            open path, not a polygon.
        band: Whether the points are the outer and then the inner edge of a closed band. The edges
            are outlined separately, so that no seam shows where they meet.
    """

    points: _Points
    role: str = "main"
    band: bool = False


@dataclasses.dataclass(frozen=True)
class _Kind:
    """A kind of thing.

    Attributes:
        noun: Its name in captions.
        build: Draws one in the unit square.
        detail: The words for the part that always has the second colour, if any.
        pattern: Whether it can have a pattern in the second colour.
        hollow: Whether it is a thin band that only takes spots and stripes.
        max_turn: The largest angle that it is turned by, in radians.
    """

    noun: str
    build: Callable[[np.random.Generator], list[_Part]]
    detail: str = ""
    pattern: bool = True
    hollow: bool = False
    max_turn: float = 0.25


def _oval(
    centre_x: float = 0.0,
    centre_y: float = 0.0,
    radius_x: float = 1.0,
    radius_y: float | None = None,
    start: float = 0.0,
    end: float = 2.0 * math.pi,
    steps: int = 40,
) -> _Points:
    radius_y = radius_x if radius_y is None else radius_y
    angles = [start + (end - start) * step / steps for step in range(steps + 1)]
    return [(centre_x + radius_x * math.cos(a), centre_y + radius_y * math.sin(a)) for a in angles]


def _box(left: float, top: float, right: float, bottom: float) -> _Points:
    return [(left, top), (right, top), (right, bottom), (left, bottom)]


def _regular(corners: int, start: float = -math.pi / 2.0) -> _Points:
    step = 2.0 * math.pi / corners
    return [(math.cos(start + i * step), math.sin(start + i * step)) for i in range(corners)]


def _star_points(tips: int, inner: float) -> _Points:
    points = []
    for i in range(2 * tips):
        radius = 1.0 if i % 2 == 0 else inner
        angle = -math.pi / 2.0 + i * math.pi / tips
        points.append((radius * math.cos(angle), radius * math.sin(angle)))
    return points


def _thick(points: Sequence[tuple[float, float]], width: float) -> _Points:
    """Returns the outline of a band of `width` along an open curve."""
    path = np.asarray(points, dtype=np.float64)
    tangent = np.gradient(path, axis=0)
    tangent /= np.maximum(np.linalg.norm(tangent, axis=1, keepdims=True), 1e-9)
    normal = np.stack([-tangent[:, 1], tangent[:, 0]], axis=1) * (width / 2.0)
    return [(float(x), float(y)) for x, y in np.concatenate([path + normal, (path - normal)[::-1]])]


def _circle(rng: np.random.Generator) -> list[_Part]:
    return [_Part(_oval())]


def _ellipse(rng: np.random.Generator) -> list[_Part]:
    return [_Part(_oval(radius_x=1.0, radius_y=rng.uniform(0.5, 0.7)))]


def _square(rng: np.random.Generator) -> list[_Part]:
    return [_Part(_box(-0.85, -0.85, 0.85, 0.85))]


def _tall_rectangle(rng: np.random.Generator) -> list[_Part]:
    return [_Part(_box(-rng.uniform(0.4, 0.55), -1.0, rng.uniform(0.4, 0.55), 1.0))]


def _long_rectangle(rng: np.random.Generator) -> list[_Part]:
    return [_Part(_box(-1.0, -rng.uniform(0.3, 0.45), 1.0, rng.uniform(0.3, 0.45)))]


def _triangle(rng: np.random.Generator) -> list[_Part]:
    return [_Part([(0.0, -0.95), (0.98, 0.75), (-0.98, 0.75)])]


def _hexagon(rng: np.random.Generator) -> list[_Part]:
    return [_Part(_regular(6))]


def _diamond(rng: np.random.Generator) -> list[_Part]:
    half = rng.uniform(0.6, 0.8)
    return [_Part([(0.0, -1.0), (half, 0.0), (0.0, 1.0), (-half, 0.0)])]


def _star(rng: np.random.Generator) -> list[_Part]:
    return [_Part(_star_points(int(rng.integers(5, 8)), rng.uniform(0.42, 0.58)))]


def _heart(rng: np.random.Generator) -> list[_Part]:
    angles = [2.0 * math.pi * i / 44 for i in range(44)]
    return [
        _Part(
            [
                (
                    math.sin(a) ** 3,
                    -(
                        13 * math.cos(a)
                        - 5 * math.cos(2 * a)
                        - 2 * math.cos(3 * a)
                        - math.cos(4 * a)
                    )
                    / 16.0,
                )
                for a in angles
            ]
        )
    ]


def _ring(rng: np.random.Generator) -> list[_Part]:
    return [_Part(_thick(_oval(radius_x=0.78, steps=60), rng.uniform(0.35, 0.45)), band=True)]


def _cross(rng: np.random.Generator) -> list[_Part]:
    a = rng.uniform(0.28, 0.4)
    return [
        _Part(
            [
                *((-a, -1.0), (a, -1.0), (a, -a), (1.0, -a), (1.0, a), (a, a)),
                *((a, 1.0), (-a, 1.0), (-a, a), (-1.0, a), (-1.0, -a), (-a, -a)),
            ]
        )
    ]


def _moon(rng: np.random.Generator) -> list[_Part]:
    outer = _oval(radius_x=1.0, start=math.radians(50), end=math.radians(310))
    (tip_x, tip_y) = outer[-1]
    shift = rng.uniform(0.35, 0.5)
    radius = math.hypot(tip_x - shift, tip_y)
    angle = math.atan2(tip_y, tip_x - shift) % (2.0 * math.pi)
    inner = _oval(shift, 0.0, radius, start=angle, end=2.0 * math.pi - angle)
    return [_Part(outer + inner[1:-1])]


def _blob(rng: np.random.Generator) -> list[_Part]:
    amplitudes = rng.uniform(0.0, 0.16, size=4)
    phases = rng.uniform(0.0, 2.0 * math.pi, size=4)
    points = []
    for i in range(48):
        angle = 2.0 * math.pi * i / 48
        waves = [
            a * math.cos((k + 2) * angle + p)
            for k, (a, p) in enumerate(zip(amplitudes, phases, strict=True))
        ]
        radius = 0.8 * (1.0 + sum(waves))
        points.append((radius * math.cos(angle), radius * math.sin(angle)))
    return [_Part(points)]


def _jagged(rng: np.random.Generator) -> list[_Part]:
    corners = int(rng.integers(7, 11))
    radii = rng.uniform(0.55, 1.0, size=corners)
    angles = [2.0 * math.pi * i / corners for i in range(corners)]
    return [_Part([(r * math.cos(a), r * math.sin(a)) for r, a in zip(radii, angles, strict=True)])]


def _wave(rng: np.random.Generator) -> list[_Part]:
    turns, height = rng.uniform(1.0, 2.2), rng.uniform(0.25, 0.45)
    path = [
        (-1.0 + i / 20.0, height * math.sin(turns * 2.0 * math.pi * i / 40.0)) for i in range(41)
    ]
    return [_Part(_thick(path, rng.uniform(0.16, 0.34)))]


def _zigzag(rng: np.random.Generator) -> list[_Part]:
    corners = int(rng.integers(4, 7))
    path = [(-1.0 + 2.0 * i / corners, 0.3 * (-1) ** i) for i in range(corners + 1)]
    width = rng.uniform(0.2, 0.3)
    upper = [(x, y - width) for x, y in path]
    return [_Part(upper + [(x, y + width) for x, y in reversed(path)])]


def _arc(rng: np.random.Generator) -> list[_Part]:
    path = _oval(0.0, 0.4, 0.85, start=math.pi, end=2.0 * math.pi)
    return [_Part(_thick(path, rng.uniform(0.2, 0.45)))]


def _flower(rng: np.random.Generator) -> list[_Part]:
    petals = int(rng.integers(5, 8))
    parts = []
    for i in range(petals):
        angle = 2.0 * math.pi * i / petals
        parts.append(_Part(_oval(0.6 * math.cos(angle), 0.6 * math.sin(angle), 0.38)))
    return [*parts, _Part(_oval(radius_x=0.36), "second")]


def _leaf(rng: np.random.Generator) -> list[_Part]:
    half = rng.uniform(0.42, 0.6)
    xs = [i / 16.0 * 2.0 - 1.0 for i in range(17)]
    side = [(x, half * (1.0 - x * x)) for x in xs]
    veins = [_Part([(-1.0, 0.0), (0.8, 0.0)], "line")]
    for x in (-0.4, 0.0, 0.4):
        veins.append(_Part([(x, 0.0), (x + 0.25, half * 0.55)], "line"))
        veins.append(_Part([(x, 0.0), (x + 0.25, -half * 0.55)], "line"))
    stem = _Part(_box(-1.25, -0.05, -0.9, 0.05), "second")
    return [stem, _Part(side + [(x, -y) for x, y in reversed(side)]), *veins]


def _house(rng: np.random.Generator) -> list[_Part]:
    door = rng.uniform(-0.35, 0.35)
    return [
        _Part(_box(-0.75, -0.2, 0.75, 0.95)),
        _Part([(-1.0, -0.2), (0.0, -1.0), (1.0, -0.2)], "main_dark"),
        _Part(_box(door - 0.2, 0.3, door + 0.2, 0.95), "second"),
        _Part(_box(-0.6, -0.05, -0.28, 0.2), "light"),
        _Part(_box(0.28, -0.05, 0.6, 0.2), "light"),
    ]


def _roofed_house(rng: np.random.Generator) -> list[_Part]:
    return [
        _Part(_box(0.35, -0.95, 0.6, -0.3), "main_dark"),
        _Part(_box(-0.75, -0.2, 0.75, 0.95)),
        _Part([(-1.0, -0.2), (0.0, -1.0), (1.0, -0.2)], "second"),
        _Part(_box(-0.5, 0.1, -0.1, 0.45), "light"),
        _Part(_box(0.2, 0.25, 0.55, 0.95), "dark"),
    ]


def _cup(rng: np.random.Generator) -> list[_Part]:
    handle = _thick(_oval(0.55, 0.0, 0.38, start=-1.5, end=1.5), 0.17)
    return [
        _Part(handle, "second"),
        _Part([(-0.85, -0.75), (0.62, -0.75), (0.5, 0.85), (-0.7, 0.85)]),
        _Part(_oval(-0.115, -0.75, 0.735, 0.16), "main_dark"),
    ]


def _balloon(rng: np.random.Generator) -> list[_Part]:
    sway = rng.uniform(-0.2, 0.2)
    string = [(sway * math.sin(i / 3.0), 0.55 + i * 0.055) for i in range(11)]
    return [
        _Part(_thick(string, 0.08), "second"),
        _Part([(0.0, 0.4), (0.13, 0.6), (-0.13, 0.6)]),
        _Part(_oval(0.0, -0.3, 0.62, 0.72)),
        _Part(_oval(-0.22, -0.55, 0.13, 0.18), "shine"),
    ]


def _key(rng: np.random.Generator) -> list[_Part]:
    return [
        _Part(_box(-0.3, -0.12, 1.0, 0.12)),
        _Part(_box(0.55, 0.0, 0.7, 0.42)),
        _Part(_box(0.85, 0.0, 1.0, 0.36)),
        _Part(_thick(_oval(-0.55, 0.0, 0.32, steps=36), 0.24), band=True),
    ]


def _umbrella(rng: np.random.Generator) -> list[_Part]:
    bend = _oval(0.16, 0.72, 0.16, start=math.pi, end=0.0, steps=12)
    hook = [(0.0, -0.2), (0.0, 0.3), (0.0, 0.72), *bend]
    dome = _oval(0.0, 0.0, 1.0, 0.85, start=math.pi, end=2.0 * math.pi)
    rim = []
    for centre in (0.75, 0.25, -0.25, -0.75):
        rim += _oval(centre, 0.0, 0.25, 0.13, start=0.0, end=-math.pi, steps=8)
    ribs = [_Part([(0.0, -0.85), (x, -0.02)], "line") for x in (-0.5, 0.0, 0.5)]
    return [_Part(_thick(hook, 0.11), "second"), _Part(dome + rim), *ribs]


def _tree(rng: np.random.Generator) -> list[_Part]:
    trunk = _Part(_box(-0.15, 0.1, 0.15, 1.0), "second")
    if rng.random() < 0.5:
        crown = [
            _Part(_oval(-0.4, -0.15, 0.42)),
            _Part(_oval(0.4, -0.15, 0.42)),
            _Part(_oval(0.0, -0.45, 0.52)),
        ]
    else:
        crown = [
            _Part([(0.0, -0.35), (0.7, 0.5), (-0.7, 0.5)]),
            _Part([(0.0, -1.0), (0.55, 0.0), (-0.55, 0.0)]),
        ]
    return [trunk, *crown]


def _car(rng: np.random.Generator) -> list[_Part]:
    return [
        _Part([(-0.6, -0.05), (-0.4, -0.55), (0.35, -0.55), (0.62, -0.05)]),
        _Part(_box(-1.0, -0.08, 1.0, 0.4)),
        _Part([(-0.42, -0.08), (-0.3, -0.42), (0.0, -0.42), (0.0, -0.08)], "light"),
        _Part([(0.1, -0.08), (0.1, -0.42), (0.28, -0.42), (0.44, -0.08)], "light"),
        _Part(_oval(-0.52, 0.42, 0.26), "second"),
        _Part(_oval(0.52, 0.42, 0.26), "second"),
        _Part(_oval(-0.52, 0.42, 0.1), "light"),
        _Part(_oval(0.52, 0.42, 0.1), "light"),
    ]


def _book(rng: np.random.Generator) -> list[_Part]:
    return [
        _Part([(-0.7, -0.95), (0.85, -0.95), (0.85, 0.95), (-0.7, 0.95)]),
        _Part(_box(-0.7, 0.72, 0.78, 0.88), "light"),
        _Part(_box(-0.7, -0.95, -0.45, 0.95), "second"),
        _Part([(-0.2, -0.5), (0.6, -0.5)], "line"),
        _Part([(-0.2, -0.25), (0.6, -0.25)], "line"),
    ]


def _target(rng: np.random.Generator) -> list[_Part]:
    return [
        _Part(_oval()),
        _Part(_oval(radius_x=0.68), "second"),
        _Part(_oval(radius_x=0.36)),
    ]


def _button(rng: np.random.Generator) -> list[_Part]:
    holes = [(-0.27, -0.27), (0.27, -0.27), (-0.27, 0.27), (0.27, 0.27)]
    return [
        _Part(_oval()),
        _Part(_oval(radius_x=0.72), "main_dark"),
        *[_Part(_oval(x, y, 0.14), "second") for x, y in holes],
    ]


def _hat(rng: np.random.Generator) -> list[_Part]:
    return [
        _Part([(-0.5, 0.45), (-0.55, -0.75), (0.55, -0.75), (0.5, 0.45)]),
        _Part([(-0.53, 0.1), (0.53, 0.1), (0.5, 0.45), (-0.5, 0.45)], "second"),
        _Part(_oval(0.0, 0.5, 1.0, 0.2)),
    ]


def _bottle(rng: np.random.Generator) -> list[_Part]:
    body = [(-0.2, -0.7), (0.2, -0.7), (0.2, -0.35), (0.45, -0.1), (0.45, 1.0)]
    body += [(-x, y) for x, y in reversed(body)]
    return [
        _Part(body),
        _Part(_box(-0.24, -0.98, 0.24, -0.7), "second"),
        _Part(_box(-0.45, 0.2, 0.45, 0.65), "light"),
    ]


def _boat(rng: np.random.Generator) -> list[_Part]:
    return [
        _Part(_box(-0.06, -1.0, 0.04, 0.4), "dark"),
        _Part([(0.06, -0.95), (0.75, 0.2), (0.06, 0.2)], "second"),
        _Part([(-0.1, -0.7), (-0.6, 0.2), (-0.1, 0.2)], "second"),
        _Part([(-1.0, 0.35), (1.0, 0.35), (0.65, 0.9), (-0.65, 0.9)]),
    ]


def _gift(rng: np.random.Generator) -> list[_Part]:
    return [
        _Part(_box(-0.8, -0.4, 0.8, 0.95)),
        _Part(_box(-0.9, -0.55, 0.9, -0.2)),
        _Part(_box(-0.15, -0.55, 0.15, 0.95), "second"),
        _Part(_oval(-0.28, -0.75, 0.28, 0.2), "second"),
        _Part(_oval(0.28, -0.75, 0.28, 0.2), "second"),
    ]


_SHAPES = (
    _Kind("circle", _circle),
    _Kind("ball", _circle),
    _Kind("oval", _ellipse),
    _Kind("square", _square, max_turn=0.5),
    _Kind("tall rectangle", _tall_rectangle),
    _Kind("long rectangle", _long_rectangle),
    _Kind("triangle", _triangle, max_turn=0.4),
    _Kind("hexagon", _hexagon, max_turn=0.5),
    _Kind("diamond", _diamond),
    _Kind("star", _star, max_turn=0.4),
    _Kind("heart", _heart),
    _Kind("ring", _ring, hollow=True),
    _Kind("cross", _cross, max_turn=0.4),
    _Kind("crescent moon", _moon, hollow=True, max_turn=0.8),
    _Kind("blob", _blob, max_turn=3.0),
    _Kind("jagged shape", _jagged, max_turn=3.0),
    _Kind("wavy line", _wave, pattern=False, max_turn=1.2),
    _Kind("zigzag line", _zigzag, pattern=False, max_turn=1.2),
    _Kind("arch", _arc, pattern=False),
)
_OBJECTS = (
    _Kind("flower", _flower, "with {a} middle", pattern=False),
    _Kind("leaf", _leaf, "with {a} stem", pattern=False, max_turn=1.0),
    _Kind("house", _house, "with {a} door", max_turn=0.08),
    _Kind("house", _roofed_house, "with {a} roof", max_turn=0.08),
    _Kind("cup", _cup, "with {a} handle"),
    _Kind("balloon", _balloon, "with {a} string"),
    _Kind("key", _key, pattern=False, max_turn=0.8),
    _Kind("umbrella", _umbrella, "with {a} handle", pattern=False),
    _Kind("tree", _tree, "with {a} trunk", max_turn=0.1),
    _Kind("car", _car, "with {} wheels", max_turn=0.15),
    _Kind("book", _book, "with {a} back", pattern=False),
    _Kind("target", _target, "with {a} ring", pattern=False),
    _Kind("button", _button, "with {} holes", pattern=False),
    _Kind("hat", _hat, "with {a} band"),
    _Kind("bottle", _bottle, "with {a} cap"),
    _Kind("boat", _boat, "with {} sails"),
    _Kind("gift box", _gift, "with {a} ribbon", pattern=False),
)
_PATTERNS = ("spots", "stripes", "border", "half", "dot")
_PATTERN_WORDS = {
    "spots": "with {} spots",
    "stripes": "with {} stripes",
    "border": "with {a} border",
    "dot": "with {a} dot in the middle",
    "half": "with {a} bottom",
}
_OPENINGS = (
    *("a drawing of ",) * 5,
    *("a picture of ",) * 2,
    "an illustration of ",
    "a simple drawing of ",
    "",
    "",
)
_COUNT_WORDS = {2: "two", 3: "three", 4: "four"}


def _pick(rng: np.random.Generator, options: Sequence[str]) -> str:
    return options[int(rng.integers(len(options)))]


class _Canvas:
    """A supersampled picture with the settings that all its things share."""

    def __init__(self, rng: np.random.Generator, size: int):
        self._rng = rng
        self._side = size * _SUPERSAMPLING
        self._size = size
        tint = rng.random()
        if tint < 0.35:
            background = (255, 255, 255)
        else:
            names = tuple(COLOURS)
            background = shade(COLOURS[_pick(rng, names)], 1.0 + rng.uniform(0.8, 0.95))
        self._image = Image.new("RGB", (self._side, self._side), background)
        self._draw = ImageDraw.Draw(self._image)
        outlined = rng.random() < 0.7
        self._line_width = round(self._side * rng.uniform(0.012, 0.04)) if outlined else 0
        self._shaded = rng.random() < 0.4

    def _colour(self, name: str) -> Colour:
        base = COLOURS.get(name) or DETAIL_COLOURS[name]
        return shade(base, self._rng.uniform(0.95, 1.05))

    def place(
        self,
        kind: _Kind,
        main: str,
        second: str,
        pattern: str,
        centre: tuple[float, float],
        radius: float,
    ) -> None:
        """Draws a thing; `centre` and `radius` are fractions of the picture's side."""
        rng = self._rng
        turn = rng.uniform(-kind.max_turn, kind.max_turn)
        cos, sin = math.cos(turn) * radius, math.sin(turn) * radius
        mirror = -1.0 if rng.random() < 0.5 else 1.0
        main_colour, second_colour = self._colour(main), self._colour(second)
        fills = {
            "main": main_colour,
            "main_dark": shade(main_colour, 0.8),
            "second": second_colour,
            "dark": OUTLINE,
            "light": (238, 244, 250),
            "shine": shade(main_colour, 1.5),
        }

        def to_pixels(points: _Points) -> list[tuple[int, int]]:
            return [
                (
                    round((centre[0] + mirror * x * cos - y * sin) * self._side),
                    round((centre[1] + mirror * x * sin + y * cos) * self._side),
                )
                for x, y in points
            ]

        for part in kind.build(rng):
            points = to_pixels(part.points)
            if part.role == "line":
                width = max(self._line_width // 2, self._side // 90)
                self._draw.line(points, fill=shade(main_colour, 0.55), width=width)
                continue
            decorated = part.role == "main" and (pattern or self._shaded)
            if decorated:
                self._fill_decorated(points, main_colour, second_colour, pattern)
            else:
                self._draw.polygon(points, fill=fills[part.role])
            if self._line_width and part.role != "shine":
                # A thick line around a small thing would leave nothing of its colour.
                width = min(self._line_width, round(self._side * radius * 0.1))
                edges = [points]
                if part.band:
                    edges = [points[: len(points) // 2], points[len(points) // 2 :]]
                for edge in edges:
                    self._draw.line([*edge, *edge[:2]], fill=OUTLINE, width=width, joint="curve")

    def _fill_decorated(
        self, points: list[tuple[int, int]], main: Colour, second: Colour, pattern: str
    ) -> None:
        rng = self._rng
        xs, ys = [x for x, _ in points], [y for _, y in points]
        left, top, right, bottom = min(xs), min(ys), max(xs) + 1, max(ys) + 1
        width, height = right - left, bottom - top
        local = [(x - left, y - top) for x, y in points]
        mask = Image.new("L", (width, height), 0)
        ImageDraw.Draw(mask).polygon(local, fill=255)
        fill = Image.new("RGB", (width, height), main)
        draw = ImageDraw.Draw(fill)
        extent = max(width, height)
        if self._shaded:
            shift = max(2, round(extent * 0.12))
            lit = ImageChops.offset(mask, -shift, -shift)
            lit.paste(0, (width - shift, 0, width, height))
            lit.paste(0, (0, height - shift, width, height))
            fill.paste(shade(main, 0.82), (0, 0), ImageChops.invert(lit))
        if pattern == "spots":
            radius = extent * rng.uniform(0.06, 0.1)
            step = radius * rng.uniform(3.0, 3.8)
            for row in range(math.ceil(height / step) + 1):
                for column in range(math.ceil(width / step) + 1):
                    x = (column + 0.5 * (row % 2)) * step + rng.uniform(-0.2, 0.2) * step
                    y = row * step * 0.9 + rng.uniform(-0.2, 0.2) * step
                    draw.ellipse([x - radius, y - radius, x + radius, y + radius], fill=second)
        elif pattern == "stripes":
            step = extent * rng.uniform(0.22, 0.32)
            lean = rng.choice([0.0, 0.0, 1.0, -1.0]) * extent
            upright = rng.random() < 0.5
            line = round(step * rng.uniform(0.38, 0.5))
            for i in range(-4, 10):
                at = step * (i + 0.4)
                ends = [(at - lean, -extent), (at + 2 * lean, 2 * extent)]
                if not upright:
                    ends = [(y, x) for x, y in ends]
                draw.line(ends, fill=second, width=line)
        elif pattern == "border":
            draw.line(
                [*local, local[0], local[1]], fill=second, width=round(extent * 0.16), joint="curve"
            )
        elif pattern == "dot":
            radius = extent * rng.uniform(0.14, 0.2)
            x, y = sum(xs) / len(xs) - left, sum(ys) / len(ys) - top
            draw.ellipse([x - radius, y - radius, x + radius, y + radius], fill=second)
        elif pattern == "half":
            draw.rectangle([0, height * rng.uniform(0.5, 0.65), width, height], fill=second)
        self._image.paste(fill, (left, top), mask)

    def finish(self) -> np.ndarray:
        small = self._image.reduce(_SUPERSAMPLING)
        return np.asarray(small, dtype=np.uint8)


def _name_second(words: str, colour: str) -> str:
    return words.format(colour, a=with_article(colour))


def _choose(rng: np.random.Generator) -> _Kind:
    kinds = _SHAPES if rng.random() < 0.55 else _OBJECTS
    return kinds[int(rng.integers(len(kinds)))]


def _choose_colours(rng: np.random.Generator) -> tuple[str, str]:
    names = tuple(COLOURS)
    main = _pick(rng, names)
    others = [name for name in (*names, *DETAIL_COLOURS) if name != main]
    return main, _pick(rng, others)


def _decoration(
    rng: np.random.Generator, kind: _Kind, second: str, chance: float
) -> tuple[str, str]:
    """Returns the pattern to draw ("" for none) and the words that name the second colour."""
    if kind.detail:
        return "", _name_second(kind.detail, second)
    if kind.pattern and rng.random() < chance:
        pattern = _pick(rng, _PATTERNS[:2] if kind.hollow else _PATTERNS)
        return pattern, _name_second(_PATTERN_WORDS[pattern], second)
    return "", ""


def _one(rng: np.random.Generator, canvas: _Canvas) -> str:
    kind = _choose(rng)
    main, second = _choose_colours(rng)
    pattern, decoration = _decoration(rng, kind, second, 0.6)
    radius = rng.uniform(0.18, 0.44)
    slack = max(0.5 - radius * 1.08, 0.0)
    x, y = rng.uniform(-slack, slack, size=2)
    canvas.place(kind, main, second, pattern, (0.5 + x, 0.5 + y), radius)

    words = f"{main} {kind.noun}"
    if radius < 0.24 and rng.random() < 0.75:
        words = f"small {words}"
    elif radius > 0.36 and rng.random() < 0.5:
        words = f"{_pick(rng, ('big', 'large'))} {words}"
    caption = with_article(words)
    if decoration and (not kind.detail or rng.random() < 0.8):
        caption = f"{caption} {decoration}"
    if rng.random() < 0.7:
        if x < -0.12 and abs(x) >= abs(y):
            caption = f"{caption} on the left"
        elif x > 0.12 and abs(x) >= abs(y):
            caption = f"{caption} on the right"
        elif y < -0.12 and abs(y) > abs(x):
            caption = f"{caption} at the top"
        elif y > 0.12 and abs(y) > abs(x):
            caption = f"{caption} at the bottom"
    return caption


def _two(rng: np.random.Generator, canvas: _Canvas) -> str:
    side_by_side = rng.random() < 0.65
    names = []
    for place in (-1.0, 1.0):
        kind = _choose(rng)
        main, second = _choose_colours(rng)
        pattern, decoration = _decoration(rng, kind, second, 0.25)
        along, across = 0.5 + place * rng.uniform(0.22, 0.25), 0.5 + rng.uniform(-0.15, 0.15)
        centre = (along, across) if side_by_side else (across, along)
        canvas.place(kind, main, second, pattern, centre, rng.uniform(0.15, 0.22))
        name = with_article(f"{main} {kind.noun}")
        if decoration and (pattern or rng.random() < 0.3):
            name = f"{name} {decoration}"
        names.append(name)
    joints = ("and", "and", "next to") if side_by_side else ("and", "above", "over")
    return f"{names[0]} {_pick(rng, joints)} {names[1]}"


def _plural(noun: str) -> str:
    if noun == "leaf":
        return "leaves"
    return f"{noun}es" if noun.endswith(("x", "ss", "ch")) else f"{noun}s"


def _several(rng: np.random.Generator, canvas: _Canvas) -> str:
    kind = _choose(rng)
    main, second = _choose_colours(rng)
    pattern, decoration = _decoration(rng, kind, second, 0.3)
    count = int(rng.integers(2, 5))
    corners = [(0.27, 0.27), (0.73, 0.73), (0.73, 0.27), (0.27, 0.73)]
    for i in range(count):
        x, y = corners[i]
        centre = (x + rng.uniform(-0.05, 0.05), y + rng.uniform(-0.05, 0.05))
        canvas.place(kind, main, second, pattern, centre, rng.uniform(0.13, 0.19))
    caption = f"{_COUNT_WORDS[count]} {main} {_plural(kind.noun)}"
    return f"{caption} {decoration}" if pattern else caption


def draw(seed: int, index: int, size: int = 64) -> tuple[np.ndarray, str]:
    """Draws one picture of the base domain.

    Args:
        seed: Names the collection.
        index: Names the picture in it.
        size: Height and width in pixels.

    Returns:
        The picture, uint8 [size, size, 3], sRGB, and the caption that describes it.

    Raises:
        ValueError: If `size` is under 16 or a number is negative.
    """
    if size < 16:
        raise ValueError(f"Picture size {size} is too small to draw on; use 16 pixels or more.")
    if seed < 0 or index < 0:
        raise ValueError(f"seed {seed} and index {index} must both be 0 or more.")
    rng = np.random.default_rng([seed, index])
    canvas = _Canvas(rng, size)
    layout = rng.random()
    if layout < 0.68:
        subject = _one(rng, canvas)
    elif layout < 0.88:
        subject = _two(rng, canvas)
    else:
        subject = _several(rng, canvas)
    return canvas.finish(), f"{_pick(rng, _OPENINGS)}{subject}"


def generate(count: int, seed: int, size: int = 64) -> tuple[np.ndarray, list[str]]:
    """Draws the first `count` pictures of the collection that `seed` names.

    Args:
        count: Number of pictures.
        seed: Names the collection.
        size: Height and width in pixels.

    Returns:
        The pictures, uint8 [count, size, size, 3], and their captions.

    Raises:
        ValueError: As for `draw`, or if `count` is negative.
    """
    if count < 0:
        raise ValueError(f"Cannot draw {count} pictures; give 0 or more.")
    pictures = np.empty((count, size, size, 3), dtype=np.uint8)
    captions = []
    for index in range(count):
        pictures[index], caption = draw(seed, index, size)
        captions.append(caption)
    return pictures, captions
