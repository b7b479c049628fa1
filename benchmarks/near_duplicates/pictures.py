"""Sets of different pictures, and variants of pictures as they occur in practice."""

from __future__ import annotations

import colorsys
import io
from collections.abc import Callable, Mapping
from pathlib import Path

import matplotlib
import numpy as np
import pyarrow.parquet as pq
from PIL import Image, ImageDraw, ImageOps

from benchmarks.processes import ROOT

_PATCH = 128


def creatures() -> list[Image.Image]:
    """The sample dataset: drawings of 128 pixels, many of them very similar."""
    paths = sorted((ROOT / "data" / "creatures" / "data").glob("*.parquet"))
    rows = (row for path in paths for row in pq.read_table(path).column("image").to_pylist())
    return [Image.open(io.BytesIO(row["bytes"])).convert("RGB") for row in rows]


def photograph() -> list[Image.Image]:
    """Parts of matplotlib's photograph, each at twice its size."""
    path = Path(matplotlib.get_data_path(), "sample_data", "grace_hopper.jpg")
    with Image.open(path) as image:
        whole = image.convert("RGB")
    return [
        whole.crop((x, y, x + _PATCH, y + _PATCH)).resize((2 * _PATCH,) * 2, Image.LANCZOS)
        for y in range(0, whole.height - _PATCH + 1, _PATCH // 2)
        for x in range(0, whole.width - _PATCH + 1, _PATCH // 2)
    ]


def soft(count: int = 300) -> list[Image.Image]:
    """Soft shapes of many colours, with grain."""
    pictures = []
    for i in range(count):
        rng = np.random.default_rng([0, i])
        coarse = Image.fromarray(rng.integers(0, 256, (9, 9, 3), np.uint8))
        pixels = np.asarray(coarse.resize((256, 256), Image.BICUBIC), np.int16)
        grained = (pixels + rng.normal(0, 9, (256, 256, 1))).clip(0, 255)
        pictures.append(Image.fromarray(grained.astype(np.uint8)))
    return pictures


def sprites(count: int = 200, size: int = 64) -> list[Image.Image]:
    """One sprite in as many colours, all around the colour wheel."""
    pictures = []
    for i in range(count):
        colour = tuple(round(255 * value) for value in colorsys.hsv_to_rgb(i / count, 1, 1))
        image = Image.new("RGB", (size, size), "white")
        draw = ImageDraw.Draw(image)
        draw.ellipse((size * 0.2, size * 0.25, size * 0.8, size * 0.85), fill=colour)
        draw.rectangle((size * 0.45, size * 0.1, size * 0.55, size * 0.3), fill=colour)
        for left in (0.35, 0.58):
            draw.ellipse((size * left, size * 0.4, size * (left + 0.07), size * 0.47), fill="black")
        pictures.append(image)
    return pictures


def pixel_art(count: int = 300) -> list[Image.Image]:
    """Symmetric figures of 16 x 16 squares, each in one colour on black."""
    pictures = []
    for i in range(count):
        rng = np.random.default_rng([3, i])
        half = rng.random((16, 8)) < 0.5
        figure = np.concatenate([half, half[:, ::-1]], 1)
        pixels = np.where(figure[..., None], rng.integers(40, 256, 3), 0).astype(np.uint8)
        pictures.append(Image.fromarray(pixels).resize((64, 64), Image.NEAREST))
    return pictures


def near_white(count: int = 300, size: int = 512) -> list[Image.Image]:
    """Nearly white pictures: pages of small print, and sheets with three faint strokes."""
    pictures = []
    for i in range(count):
        rng = np.random.default_rng([5, i])
        image = Image.new("RGB", (size, size), (252, 252, 252))
        draw = ImageDraw.Draw(image)
        if i % 2:
            for y in range(40, size - 40, 16):
                x = 40
                while x < size - 40:
                    width = int(rng.integers(8, 50))
                    draw.rectangle((x, y, min(x + width, size - 40), y + 6), fill=(60, 60, 60))
                    x += width + 8
        else:
            for _ in range(3):
                ends = rng.integers(30, size - 30, 4).tolist()
                draw.line(ends, fill=tuple(rng.integers(180, 250, 3).tolist()), width=3)
        pictures.append(image)
    return pictures


SETS: Mapping[str, Callable[[], list[Image.Image]]] = {
    "sample dataset": creatures,
    "photograph, parts": photograph,
    "soft shapes": soft,
    "sprites, 200 colours": sprites,
    "pixel art": pixel_art,
    "near white": near_white,
}
"""Sets in which no picture is a near duplicate of another."""


def encoded(image: Image.Image, kind: str = "PNG", **options: int) -> bytes:
    """The picture as a file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _scaled(image: Image.Image, factor: float) -> Image.Image:
    size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
    return image.resize(size, Image.LANCZOS)


def _bordered(image: Image.Image, fraction: float, colour: str) -> Image.Image:
    return ImageOps.expand(image, max(1, round(min(image.size) * fraction)), fill=colour)


def _cropped(
    image: Image.Image, left: float, top: float, right: float, bottom: float
) -> Image.Image:
    width, height = image.size
    return image.crop(
        (
            round(width * left),
            round(height * top),
            round(width * (1 - right)),
            round(height * (1 - bottom)),
        )
    )


VARIANTS: Mapping[str, Callable[[Image.Image], bytes]] = {
    "half the size": lambda image: encoded(_scaled(image, 0.5)),
    "twice the size": lambda image: encoded(_scaled(image, 2)),
    "a third of the size": lambda image: encoded(_scaled(image, 1 / 3)),
    "JPEG, quality 90": lambda image: encoded(image, "JPEG", quality=90),
    "JPEG, quality 75": lambda image: encoded(image, "JPEG", quality=75),
    "JPEG, quality 50": lambda image: encoded(image, "JPEG", quality=50),
    "JPEG, quality 30": lambda image: encoded(image, "JPEG", quality=30),
    "JPEG, quality 10": lambda image: encoded(image, "JPEG", quality=10),
    "WebP, quality 50": lambda image: encoded(image, "WEBP", quality=50),
    "mirrored": lambda image: encoded(ImageOps.mirror(image)),
    "mirrored, JPEG, quality 60": lambda image: encoded(ImageOps.mirror(image), "JPEG", quality=60),
    "white border, 2 %": lambda image: encoded(_bordered(image, 0.02, "white")),
    "black border, 5 %": lambda image: encoded(_bordered(image, 0.05, "black")),
    "white border, 10 %": lambda image: encoded(_bordered(image, 0.1, "white")),
    "red border, 15 %": lambda image: encoded(_bordered(image, 0.15, "red")),
    "letterbox": lambda image: encoded(
        ImageOps.expand(image, (0, image.height // 6), fill="black")
    ),
    "crop, 2 % of every side": lambda image: encoded(_cropped(image, 0.02, 0.02, 0.02, 0.02)),
    "crop, 5 % of every side": lambda image: encoded(_cropped(image, 0.05, 0.05, 0.05, 0.05)),
    "crop, 5 % of two sides": lambda image: encoded(_cropped(image, 0.05, 0.05, 0, 0)),
    "crop, 10 % of one side": lambda image: encoded(_cropped(image, 0.1, 0, 0, 0)),
    "crop, 10 % of every side": lambda image: encoded(_cropped(image, 0.1, 0.1, 0.1, 0.1)),
    "mirrored, crop 3 %, JPEG, quality 70": lambda image: encoded(
        ImageOps.mirror(_cropped(image, 0.03, 0.03, 0.03, 0.03)), "JPEG", quality=70
    ),
}
"""Variants that are still the same picture."""
