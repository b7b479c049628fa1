"""PNG files, by TensorFlow if it is already imported, else by Pillow."""

from __future__ import annotations

import io
import sys

import numpy as np


def encode(pixels: np.ndarray) -> bytes:
    """A PNG file of pixels, uint8 [H, W, 3]."""
    if "tensorflow" in sys.modules:
        return bytes(sys.modules["tensorflow"].io.encode_png(pixels).numpy())
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def decode(contents: bytes) -> np.ndarray:
    """The pixels of a PNG file, uint8 [H, W, 3]."""
    if "tensorflow" in sys.modules:
        pixels: np.ndarray = sys.modules["tensorflow"].io.decode_png(contents, channels=3).numpy()
        return pixels
    from PIL import Image

    with Image.open(io.BytesIO(contents)) as image:
        return np.asarray(image.convert("RGB"))
