"""What every source of captioned pictures has in common.

Nothing under `sources` imports TFX, Beam or TensorFlow, so that a runner can look at a dataset at
once and a worker starts fast.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import BinaryIO

from storage.user_errors import UserError

PICTURE_SUFFIXES = (
    ".avif", ".bmp", ".gif", ".jp2", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff",
    ".webp",
)  # fmt: skip
"""How the files of pictures are called, in lower case."""


class DatasetError(UserError, ValueError):
    """A dataset that cannot be used; the message is one line."""


@dataclasses.dataclass(frozen=True)
class DatasetSpec:
    """Which captioned pictures.

    Attributes:
        dataset: Folder or archive, local or a URL; or a dataset of the Hugging Face hub.
        config: The dataset's configuration; "" for its default one.
        split: The dataset's own split to read, several joined by `+`, or `all`.
        image_column: Column with the pictures; "" to find it.
        caption_column: Column with the captions; "" to find it.
    """

    dataset: str
    config: str = ""
    split: str = "train"
    image_column: str = ""
    caption_column: str = ""


@dataclasses.dataclass(frozen=True)
class Unit:
    """A part of a dataset that one worker reads from front to back.

    Attributes:
        file: The file it is in, relative to the dataset; "" where it is no part of one file.
        start: Where it starts, as its source counts: a row group, a byte, a position in a list.
        first_row: Number of its first row in the file.
        num_rows: How many rows it has; `None` where only reading it tells.
    """

    file: str
    start: int
    first_row: int
    num_rows: int | None


@dataclasses.dataclass(frozen=True)
class Row:
    """One row as it stands in the dataset, unchecked.

    Attributes:
        file: The file it is from, relative to the dataset.
        number: The row's number in the file, from 0.
        image: The picture file's bytes; `None` where there are none.
        image_problem: Why there are none, for people; "" where the row just has no picture.
        captions: One or more. Each as UTF-8 (or what the row has in its place), or `None`.
    """

    file: str
    number: int
    image: bytes | None
    image_problem: str
    captions: tuple[bytes | None, ...]


class Files(abc.ABC):
    """Where the files of a dataset lie. Paths are relative, with `/`."""

    def __init__(self, shown: str) -> None:
        """Names the dataset in messages by `shown`."""
        self.shown = shown

    @abc.abstractmethod
    def sizes(self) -> Mapping[str, int]:
        """Path and size in bytes of every file that is not hidden, sorted by path.

        Raises:
            DatasetError: There is no such dataset, or it cannot be listed.
        """

    @abc.abstractmethod
    def open(self, path: str) -> BinaryIO:
        """Opens a file to be read whole; seekable.

        Raises:
            DatasetError: It cannot be opened, or is not what it should be.
            FileNotFoundError: There is no such file.
        """

    def peek(self, path: str) -> BinaryIO:
        """Opens a file to look at parts of it; like `open`, but may leave the rest where it is."""
        return self.open(path)

    # Most have nothing to do here.
    def fetch(self, paths: Iterable[str]) -> None:  # noqa: B027
        """Brings files to this machine in one go, where `open` would bring them one by one."""

    @abc.abstractmethod
    def fingerprint(self, paths: Iterable[str]) -> str:
        """SHA-256 (hex) that changes when the name or content of one of these files does."""


class Source(abc.ABC):
    """Captioned pictures of one kind.

    Attributes:
        kind: Name of the kind.
        files: Where they lie.
        image_column: Column that holds the pictures, or names them.
        caption_column: Column that holds the captions.
        paths: The files that are read, sorted.
        left_out: Files of the dataset that belong to other splits, sorted.
    """

    kind: str

    def __init__(
        self,
        files: Files,
        paths: tuple[str, ...],
        left_out: tuple[str, ...],
        image_column: str,
        caption_column: str,
    ) -> None:
        self.files = files
        self.paths = paths
        self.left_out = left_out
        self.image_column = image_column
        self.caption_column = caption_column

    @property
    def image_bytes(self) -> int:
        """About the size of all pictures; the number of shards follows from it."""
        sizes = self.files.sizes()
        return sum(sizes[path] for path in self.paths)

    @abc.abstractmethod
    def units(self) -> Iterator[Unit]:
        """The dataset in parts, in order.

        Raises:
            DatasetError: A file cannot be read or lacks a column.
        """

    @abc.abstractmethod
    def read(self, unit: Unit, *, peek: bool = False) -> Iterator[Row]:
        """Reads the rows of one part, few at a time.

        Args:
            unit: One of `units()`.
            peek: Whether the caller will stop after a few rows, so that files need not be
                fetched whole.

        Raises:
            DatasetError: A file cannot be read to its end.
        """


def is_picture(path: str) -> bool:
    """Whether a file is called like a picture."""
    return path.lower().endswith(PICTURE_SUFFIXES)


def is_hidden(path: str) -> bool:
    """Whether a relative path leads out of the dataset, or through something hidden."""
    return any(part.startswith(".") for part in path.split("/"))
