"""The part of the command line that says what drawn pictures say of themselves."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence

import numpy as np

from serving import png
from storage import picture_marks
from storage.picture_marks import Marks


@dataclasses.dataclass(frozen=True)
class Marking:
    """Whether, and with what, pictures are marked.

    Attributes:
        metadata: Whether they are.
        prompt: Whether their marks have the prompts.
    """

    metadata: bool = True
    prompt: bool = True

    def encode(self, pixels: np.ndarray, pictures: Sequence[Marks], columns: int = 1) -> bytes:
        """A PNG file; see `storage.picture_marks.encode`."""
        if not self.metadata:
            return png.encode(pixels)
        told = pictures if self.prompt else [marks.without_prompt for marks in pictures]
        return picture_marks.encode(pixels, told, columns)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds `--no-metadata` and `--no-prompt-in-metadata`."""
    parser.add_argument(
        "--no-metadata",
        action="store_true",
        help="write into pictures neither what was asked for nor which release drew them",
    )
    parser.add_argument(
        "--no-prompt-in-metadata",
        action="store_true",
        help="write it without the prompts",
    )


def of(arguments: argparse.Namespace) -> Marking:
    """What was asked for."""
    return Marking(not arguments.no_metadata, not arguments.no_prompt_in_metadata)
