"""Draws a marked picture again, and compares: `python -m serving.redraw picture.png`.

A picture carries the request that it was drawn for (see `storage.picture_marks`). The same request
to the same release gives the same pixels on the same kind of machine, and nearly the same pixels on
another.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from serving import seals, which_models
from serving.client import Generator
from serving.errors import ServingError, check_place
from storage import filesystem
from storage.flags import Command, report
from storage.picture_marks import (
    Marks,
    MarksError,
    difference_in_words,
    digest_of_pixels,
    pixels_of,
    read,
)

_NOT_THE_SAME = 1


@dataclasses.dataclass(frozen=True)
class Redrawn:
    """How far a picture is from the one that its marks give.

    Attributes:
        prompt: What was drawn.
        seed: The seed that it was drawn with.
        mean: Mean of the absolute differences, in steps of 255.
        most: The largest absolute difference.
    """

    prompt: str
    seed: int
    mean: float
    most: int


def redraw(
    pixels: np.ndarray,
    pictures: Sequence[Marks],
    columns: int,
    load: Callable[[], Generator],
    *,
    image: np.ndarray | None = None,
    mask: np.ndarray | None = None,
) -> list[Redrawn]:
    """Draws pictures again by their marks, and compares.

    Args:
        pixels: uint8 [H, W, 3], one picture or a grid of several.
        pictures: The marks of each picture, row by row.
        columns: How many pictures are side by side.
        load: Gives the models to draw with; not called if the pictures cannot be drawn.
        image: The picture that they were drawn from, if any, uint8 [H, W, 3].
        mask: The mask of that picture, if there was one, bool [H, W].

    Raises:
        ServingError: A prompt is not in the marks, the picture or mask that was drawn from is
            missing or a different one, or drawing fails.
    """
    for marks in pictures:
        _check(marks, image, mask)
    generator, found = load(), []
    for index, marks in enumerate(pictures):
        [drawn] = generator.generate(
            [marks.prompt or ""],
            marks.negative_prompt,
            num_steps=marks.num_steps,
            guidance_scale=marks.guidance_scale,
            sampler=marks.sampler,
            seed=marks.seed,
            height=marks.height,
            width=marks.width,
            image=image,
            strength=marks.strength,
            mask=mask,
        )
        row, column = divmod(index, columns)
        top, left = row * marks.height, column * marks.width
        there = pixels[top : top + marks.height, left : left + marks.width]
        if there.shape != drawn.shape:
            height, width, _ = pixels.shape
            raise ServingError(
                f"the picture is {width} x {height} pixels, but its marks are of {marks.width} x "
                f"{marks.height}: it was scaled or cropped since, and cannot be compared"
            )
        difference = np.abs(there.astype(np.int16) - drawn)
        found.append(
            Redrawn(marks.prompt or "", marks.seed, float(difference.mean()), int(difference.max()))
        )
    return found


def _check(marks: Marks, image: np.ndarray | None, mask: np.ndarray | None) -> None:
    if marks.prompt is None:
        raise ServingError("its marks do not include the prompt: it cannot be drawn again")
    for what, flag, digest, given in (
        ("picture", "--image", marks.image_sha256, image),
        ("mask", "--mask", marks.mask_sha256, mask),
    ):
        if digest is None and given is not None:
            raise ServingError(f"it was drawn without a {what}: leave {flag} out")
        if digest is not None and given is None:
            raise ServingError(f"it was drawn from a {what}: give that with {flag}")
        if given is not None and digest_of_pixels(given) != digest:
            raise ServingError(f"the {what} given with {flag} is not the one it was drawn from")


def command() -> Command:
    """The parser of the command line."""
    parser = Command(
        "serving.redraw",
        "Draws a marked picture again by its marks, and compares.",
        [((Path("drawing.png"),), "")],
        failed="the pixels differ",
        takes_version=True,
    )
    parser.add_argument("picture", help="a PNG file that this project drew")
    parser.add_argument("--image", metavar="FILE", help="the picture that it was drawn from")
    parser.add_argument("--mask", metavar="FILE", help="the mask that it was drawn with")
    parser.add_argument("--json", action="store_true", help="answer in JSON")
    which_models.add_arguments(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns its exit status."""
    arguments = command().parse_args(argv)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    try:
        found = _redraw(arguments)
    except (ServingError, MarksError, OSError) as error:
        return report(error)
    if arguments.json:
        print(json.dumps([dataclasses.asdict(one) for one in found]))
    else:
        for one in found:
            print(f"{one.prompt!r}, seed {one.seed}: {difference_in_words(one.mean, one.most)}")
    return _NOT_THE_SAME if any(one.most for one in found) else 0


def _redraw(arguments: argparse.Namespace) -> list[Redrawn]:
    check_place(arguments.picture)
    contents = filesystem.read_bytes(arguments.picture)
    marked = read(contents)
    if not marked.pictures:
        raise ServingError(f"{arguments.picture} carries no marks that say what drew it")
    if arguments.version is None and arguments.model is None:
        arguments.version = marked.pictures[0].release
    release = which_models.check(arguments)
    if release is not None:
        release.check_complete()
    from serving.pictures import read_mask, read_picture

    image = None if arguments.image is None else read_picture(arguments.image)
    mask = None if arguments.mask is None else read_mask(arguments.mask)
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    load = functools.partial(
        Generator,
        which_models.address(arguments),
        arguments.version,
        memory_limit_bytes=which_models.memory_limit_bytes(arguments),
        verification=seals.of(arguments),
    )
    return redraw(
        pixels_of(contents), marked.pictures, marked.columns, load, image=image, mask=mask
    )


if __name__ == "__main__":
    sys.exit(main())
