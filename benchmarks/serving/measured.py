"""What is measured for every way to draw, and how."""

from __future__ import annotations

import json
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

PROMPT = "a drawing of a round blue creature with horns"
NUM_STEPS = 20
GUIDANCE_SCALE = 7.5
VERSION = 1

Draw = Callable[[int], np.ndarray]
"""Draws a number of pictures; returns their pixels, uint8 [B, H, W, 3]."""


class Arguments(NamedTuple):
    """The command line: preset, size of the pictures, folder of the models, how many to draw."""

    preset: str
    image_size: int
    folder: Path
    pictures: int


def arguments() -> Arguments:
    """Reads the command line."""
    preset, size, folder, pictures = sys.argv[1:]
    return Arguments(preset, int(size), Path(folder), int(pictures))


def measure(load: Callable[[], Draw], image_size: int, pictures: int) -> None:
    """Measures and prints one line of JSON."""
    since = time.monotonic()
    draw = load()
    result = {"load_seconds": time.monotonic() - since, "first_seconds": _seconds(draw, 1)}
    assert draw(1).shape == (1, image_size, image_size, 3)
    result["one_seconds"] = statistics.median(_seconds(draw, 1) for _ in range(pictures))
    # Another batch size may need new preparation.
    _seconds(draw, 4)
    result["four_seconds"] = statistics.median(_seconds(draw, 4) for _ in range(pictures))
    result["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print()
    print(json.dumps(result))


def _seconds(draw: Draw, count: int) -> float:
    since = time.monotonic()
    pixels = draw(count)
    assert pixels.dtype == np.uint8
    assert len(pixels) == count
    return time.monotonic() - since
