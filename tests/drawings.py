"""Drawings that no other is like, and copies of them in other forms."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping

import numpy as np
from PIL import Image, ImageDraw


def drawing(seed: int) -> Image.Image:
    """A few shapes on a ground, none like another's."""
    rng = np.random.default_rng(seed)
    image = Image.new("RGB", (120, 96), tuple(rng.integers(0, 256, 3).tolist()))
    draw = ImageDraw.Draw(image)
    for _ in range(6):
        x, y = rng.integers(0, 90, 2).tolist()
        w, h = rng.integers(12, 60, 2).tolist()
        shape = draw.ellipse if rng.integers(2) else draw.rectangle
        shape((x, y, x + w, y + h), fill=tuple(rng.integers(0, 256, 3).tolist()))
    return image


def saved(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    """The picture's file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


COPIES: Mapping[str, Callable[[Image.Image], bytes]] = {
    "half the size": lambda image: saved(image.resize((60, 48), Image.Resampling.LANCZOS)),
    "as a JPEG": lambda image: saved(image, "JPEG", quality=70),
    "mirrored": lambda image: saved(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)),
    "as a WebP, cut": lambda image: saved(image.crop((3, 3, 117, 93)), "WEBP", quality=85),
}
"""What becomes of a picture on its way."""
