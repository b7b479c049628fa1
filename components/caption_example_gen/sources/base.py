"""The base classes of every source of captioned pictures.

Nothing under `sources` imports TFX, Beam or TensorFlow, so that a runner can inspect a dataset at
once and a worker starts fast.
"""

from __future__ import annotations

import abc
import dataclasses
import functools
import posixpath
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import BinaryIO

from components.caption_example_gen.sources.written_prompts import prompt_in
from storage.errors import one_line
from storage.user_errors import UserError

PICTURE_SUFFIXES = (
    ".avif", ".bmp", ".gif", ".heic", ".heif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".pgm",
    ".png", ".ppm", ".tif", ".tiff", ".webp",
)  # fmt: skip
"""Suffixes of picture files, in lower case."""
UNREAD_PICTURE_SUFFIXES = (
    ".arw", ".avi", ".cr2", ".cr3", ".dng", ".exr", ".hdr", ".jxl", ".kra", ".mkv", ".mov", ".mp4",
    ".nef", ".orf", ".psd", ".raf", ".rw2", ".svg", ".tga", ".webm", ".xcf",
)  # fmt: skip
"""Suffixes of unsupported pictures and films, in lower case."""
CAPTIONS_FROM = FROM_FOLDER, FROM_FILE_NAME, FROM_PARAMETERS = "folder", "file_name", "parameters"
"""Sources of missing captions: names, or the prompt that is written into a picture."""
LINES_JOINED, LINES_EACH = "joined", "each"
"""Whether the lines of a caption file are one caption, or a caption each."""
CAPTION_NUMBER = re.compile(r"#\d+$")
"""The number of a caption that Flickr8k writes after the name of its picture."""

# Dotfiles, and what file managers and network drives leave behind without a leading dot.
_HIDDEN = re.compile(
    r"(?:^|/)(?:\.|(?:__macosx|thumbs\.db|desktop\.ini|@eadir|#recycle|\$recycle\.bin)(?:/|$))",
    re.IGNORECASE,
)
# The number at the end of a name that distinguishes files: "a red car (2)", "a_red_car_003".
_COUNTER = re.compile(r"[\s_-]*\(\d+\)$|[\s_-]+\d+$")
# Midjourney has a UUID there instead, after its parameters: "a_red_car_--ar_32_<UUID>_0".
_UUID = re.compile(
    r"(?:[\s_]+--[a-z].*)?[\s_-]*[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}(?:_\d+)?$"
)
_REPEATS = re.compile(r"([1-9]\d{0,2})_(.+)")


class DatasetError(UserError, ValueError):
    """A dataset that cannot be used; the message is one line."""


@dataclasses.dataclass(frozen=True)
class DatasetSpec:
    """The captioned pictures to read.

    Attributes:
        dataset: Folder or archive, local or a URL; or a dataset on the Hugging Face hub.
        config: Configuration of the dataset; "" for its default.
        split: The dataset's own split to read, several joined by `+`, or `all`.
        image_column: Column with the pictures; "" to find it.
        caption_column: Column with the captions; "" to find it.
        form: How the dataset's files are read: the `kind` of a form; "" to recognise it from them.
        caption: Caption of pictures that have none; "" for none.
        captions_from: Source of the captions of pictures that have none, one of `CAPTIONS_FROM`;
            "" for none.
        caption_lines: `LINES_JOINED`, or `LINES_EACH` if every line of a caption file is a caption.
        withdrawn: File that lists the rows to take out; "" for none.
    """

    dataset: str
    config: str = ""
    split: str = "train"
    image_column: str = ""
    caption_column: str = ""
    form: str = ""
    caption: str = ""
    captions_from: str = ""
    caption_lines: str = LINES_JOINED
    withdrawn: str = ""

    @property
    def captions_given(self) -> bool:
        """Whether pictures without a caption get one."""
        return bool(self.caption or self.captions_from)


@dataclasses.dataclass(frozen=True)
class Unit:
    """A part of a dataset that one worker reads from front to back.

    Attributes:
        file: The file it is in, relative to the dataset; "" if it is not part of a single file.
        start: Where it starts, as its source counts: a row group, a byte, a position in a list.
        first_row: Number of its first row in the file.
        num_rows: Number of its rows; `None` if it is known only after reading.
        names: If rows are made of files, for each row: the picture, its caption file, and another
            file that may also be its caption file; each may be "".
    """

    file: str
    start: int
    first_row: int
    num_rows: int | None
    names: tuple[tuple[str, str, str], ...] = ()


@dataclasses.dataclass(frozen=True)
class Row:
    """One row as it is in the dataset, unchecked.

    Attributes:
        file: The file it is from, relative to the dataset.
        number: The row's number in the file, from 0.
        image: The picture file's bytes; `None` if there are none.
        image_problem: Why there are none, or what is wrong with the caption file, for users; ""
            if the row just has no picture or caption.
        captions: One or more, each in UTF-8 (or whatever bytes the row has instead), or `None`.
        path: The picture's own path, if it has one.
        repeats: How often an epoch sees the picture; `None` if the dataset does not say.
    """

    file: str
    number: int
    image: bytes | None
    image_problem: str
    captions: tuple[bytes | None, ...]
    path: str = ""
    repeats: int | None = None


class Files(abc.ABC):
    """The files of a dataset. Paths are relative, with `/`."""

    def __init__(self, shown: str) -> None:
        """Sets the name of the dataset in messages to `shown`."""
        self.shown = shown

    @abc.abstractmethod
    def sizes(self) -> Mapping[str, int]:
        """Path and size in bytes of every file that is not hidden, sorted by path.

        Raises:
            DatasetError: The dataset does not exist or cannot be listed.
        """

    @abc.abstractmethod
    def open(self, path: str) -> BinaryIO:
        """Opens a file to be read whole; seekable.

        Raises:
            DatasetError: The file cannot be opened, or is not what it should be.
            FileNotFoundError: There is no such file.
        """

    def peek(self, path: str) -> BinaryIO:
        """Opens a file to read parts of it; like `open`, but need not fetch the rest."""
        return self.open(path)

    def read(self, path: str, *, peek: bool = False) -> bytes:
        """Reads a whole file.

        Args:
            path: The file's path.
            peek: Whether it need not be fetched first.

        Raises:
            DatasetError: The file cannot be read, or is not what it should be.
            FileNotFoundError: There is no such file.
        """
        with self.peek(path) if peek else self.open(path) as f:
            try:
                return f.read()
            except OSError as error:
                raise DatasetError(
                    f"{path} in dataset {self.shown!r} cannot be read: {one_line(error)}"
                ) from error

    def ahead(self, paths: Iterable[str], *, peek: bool = False) -> Iterator[Callable[[], bytes]]:
        """Reads files one after the other, or several at the same time if that is faster.

        Args:
            paths: The files' paths; consumed as needed.
            peek: Whether the files need not be fetched first.

        Yields:
            For each file, in order, a function that returns its content or raises as `read` does.
        """
        return (functools.partial(self.read, path, peek=peek) for path in paths)

    def elsewhere(self) -> Files | None:
        """The same files for another process, which may open any whose name it is given.

        The result can be pickled and lists nothing; `None` if that is not possible.
        """
        return None

    # Most subclasses have nothing to do here.
    def fetch(self, paths: Iterable[str]) -> None:  # noqa: B027
        """Fetches files to this machine in one go if `open` would fetch them one by one."""

    @abc.abstractmethod
    def fingerprint(self, paths: Iterable[str]) -> str:
        """SHA-256 (hex) that changes when the name or content of one of these files does."""


class Reader(abc.ABC):
    """Reads the rows of a dataset whose units are known."""

    @abc.abstractmethod
    def read(self, unit: Unit, *, peek: bool = False) -> Iterator[Row]:
        """Reads the rows of one unit, a few at a time.

        Args:
            unit: A unit of the dataset.
            peek: Whether the caller will stop after a few rows, so that files need not be
                fetched whole.

        Raises:
            DatasetError: A file cannot be read to its end.
        """


class Source(Reader):
    """A dataset of captioned pictures in one form.

    Attributes:
        kind: Name of the form.
        files: The dataset's files.
        image_column: Column that holds the pictures, or names them.
        caption_column: Column that holds the captions.
        paths: The files that are read, sorted.
        left_out: Files of the dataset that belong to other splits, sorted.
        taken_for: What the dataset was taken for and why, one line for users.
        remark: What else users should know of how it is read; ends that line.
    """

    kind: str
    taken_for: str = ""
    remark: str = ""

    def __init__(
        self,
        files: Files,
        paths: Sequence[str],
        left_out: Sequence[str],
        image_column: str,
        caption_column: str,
    ) -> None:
        self.files = files
        self.paths = paths
        self.left_out = left_out
        self.image_column = image_column
        self.caption_column = caption_column
        self._stand_in: StandIn | None = None

    @property
    def image_bytes(self) -> int:
        """Approximate size of all pictures; determines the number of shards."""
        sizes = self.files.sizes()
        return sum(sizes[path] for path in self.paths)

    @abc.abstractmethod
    def units(self) -> Iterator[Unit]:
        """The units of the dataset, in order.

        Raises:
            DatasetError: A file cannot be read or lacks a column.
        """

    def read(self, unit: Unit, *, peek: bool = False) -> Iterator[Row]:
        """See `Reader.read`."""
        rows = self._read(unit, peek=peek)
        return rows if self._stand_in is None else map(self._stand_in.complete, rows)

    def elsewhere(self) -> Reader | None:
        """A reader of its units for another process, which need not open the dataset.

        It can be pickled; `None` if the other process must open the dataset.
        """
        return None

    @abc.abstractmethod
    def _read(self, unit: Unit, *, peek: bool) -> Iterator[Row]:
        """Like `read`, with only the captions that the dataset itself has."""

    def give_captions(self, spec: DatasetSpec) -> None:
        """Gives pictures without a caption the one that the user requested."""
        if spec.captions_given:
            self._stand_in = StandIn(spec.caption, spec.captions_from)


@dataclasses.dataclass(frozen=True)
class StandIn:
    """Captions for pictures that have none.

    Attributes:
        caption: One for all pictures.
        captions_from: One of `CAPTIONS_FROM`, for an empty `caption`.
    """

    caption: str
    captions_from: str

    def complete(self, row: Row) -> Row:
        """Adds a caption to a row that has a picture and no caption."""
        if row.image is None or any(caption and caption.strip() for caption in row.captions):
            return row
        if self.captions_from == FROM_PARAMETERS and not self.caption:
            try:
                caption = prompt_in(row.image)
            except ValueError as error:
                problem = "; ".join(filter(None, [row.image_problem, str(error)]))
                return dataclasses.replace(row, captions=(None,), image_problem=problem)
        else:
            caption = self.caption or name_as_caption(row.path, self.captions_from)
        return dataclasses.replace(row, captions=(caption.encode(),)) if caption else row


def name_as_caption(path: str, part: str) -> str:
    """The words in the name of a picture's folder or file; "" if there are none.

    Args:
        path: The picture's path.
        part: `FROM_FOLDER` or `FROM_FILE_NAME`.
    """
    if part == FROM_FILE_NAME:
        words = posixpath.splitext(posixpath.basename(path))[0]
        words = _UUID.sub("", words) if _UUID.search(words) else _COUNTER.sub("", words)
    else:
        words = posixpath.basename(posixpath.dirname(path))
        if (repeats := repeats_of(words)) is not None:
            words = repeats[1]
    text = " ".join(words.replace("_", " ").split())
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def repeats_of(folder: str) -> tuple[int, str] | None:
    """How often an epoch sees the pictures of a folder called `10_name`, and the name.

    Years and numbers with leading zeros do not count as repeats.
    """
    found = _REPEATS.fullmatch(folder)
    return None if found is None else (int(found[1]), found[2].strip())


def is_picture(path: str) -> bool:
    """Whether a file has the suffix of a picture."""
    return path.lower().endswith(PICTURE_SUFFIXES)


def names_picture(text: str) -> bool:
    """Whether a text is the name of a picture, perhaps with a caption number: `1.jpg#0`."""
    return is_picture(CAPTION_NUMBER.sub("", text))


def folded(path: str) -> str:
    """A path in a form that ignores the case of letters and the encoding of accents."""
    return (path if path.isascii() else unicodedata.normalize("NFC", path)).lower()


def is_hidden(path: str) -> bool:
    """Whether a relative path leads out of the dataset, or through hidden folders or files."""
    return _HIDDEN.search(path) is not None


def shown_path(path: str) -> str:
    """A path with only characters that can be written as UTF-8."""
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
