"""What every source of captioned pictures has in common.

Nothing under `sources` imports TFX, Beam or TensorFlow, so that a runner can look at a dataset at
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
"""How the files of pictures are called, in lower case."""
UNREAD_PICTURE_SUFFIXES = (
    ".arw", ".avi", ".cr2", ".cr3", ".dng", ".exr", ".hdr", ".jxl", ".kra", ".mkv", ".mov", ".mp4",
    ".nef", ".orf", ".psd", ".raf", ".rw2", ".svg", ".tga", ".webm", ".xcf",
)  # fmt: skip
"""How pictures and films are called that nothing here reads, in lower case."""
CAPTIONS_FROM = FROM_FOLDER, FROM_FILE_NAME, FROM_PARAMETERS = "folder", "file_name", "parameters"
"""What may stand in for captions: names, or the prompt that is written into a picture."""
LINES_JOINED, LINES_EACH = "joined", "each"
"""What the lines of a caption's file are."""
CAPTION_NUMBER = re.compile(r"#\d+$")
"""What Flickr8k has behind a picture's name, for each of its captions."""

# A dot in front, or what file managers and network drives leave behind without one.
_HIDDEN = re.compile(
    r"(?:^|/)(?:\.|(?:__macosx|thumbs\.db|desktop\.ini|@eadir|#recycle|\$recycle\.bin)(?:/|$))",
    re.IGNORECASE,
)
# The number at the end of a name that tells files apart: "a red car (2)", "a_red_car_003".
_COUNTER = re.compile(r"[\s_-]*\(\d+\)$|[\s_-]+\d+$")
# What Midjourney puts there instead, behind its parameters: "a_red_car_--ar_32_<UUID>_0".
_UUID = re.compile(
    r"(?:[\s_]+--[a-z].*)?[\s_-]*[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}(?:_\d+)?$"
)
_REPEATS = re.compile(r"([1-9]\d{0,2})_(.+)")


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
        form: What the dataset's files are taken for, the `kind` of a form; "" to tell from them.
        caption: The caption of pictures that have none; "" for nothing of the kind.
        captions_from: One of `CAPTIONS_FROM`, of which the captions of pictures are made that have
            none; "" for nothing of the kind.
        caption_lines: `LINES_JOINED`, or `LINES_EACH` where every line of a caption's file is a
            caption.
        withdrawn: File that lists what is taken out; "" for nothing.
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
        file: The file it is in, relative to the dataset; "" where it is no part of one file.
        start: Where it starts, as its source counts: a row group, a byte, a position in a list.
        first_row: Number of its first row in the file.
        num_rows: How many rows it has; `None` where only reading it tells.
        names: Of each row, where it is made of files, these: the picture, the one with its caption,
            and another one that claims to be that; each may be "".
    """

    file: str
    start: int
    first_row: int
    num_rows: int | None
    names: tuple[tuple[str, str, str], ...] = ()


@dataclasses.dataclass(frozen=True)
class Row:
    """One row as it stands in the dataset, unchecked.

    Attributes:
        file: The file it is from, relative to the dataset.
        number: The row's number in the file, from 0.
        image: The picture file's bytes; `None` where there are none.
        image_problem: Why there are none, or what is wrong with the caption's file, for people; ""
            where the row just has no picture or caption.
        captions: One or more. Each as UTF-8 (or what the row has in its place), or `None`.
        path: The picture's own path, where it has one.
        repeats: How often an epoch sees the picture; `None` where the dataset does not say.
    """

    file: str
    number: int
    image: bytes | None
    image_problem: str
    captions: tuple[bytes | None, ...]
    path: str = ""
    repeats: int | None = None


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

    def read(self, path: str, *, peek: bool = False) -> bytes:
        """Reads a file whole.

        Args:
            path: Its path.
            peek: Whether it need not be fetched first.

        Raises:
            DatasetError: It cannot be read, or is not what it should be.
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
        """Reads files one after the other, or some of them at the same time where that is faster.

        Args:
            paths: Their paths; asked for as they are needed.
            peek: Whether they need not be fetched first.

        Yields:
            For each, in order, what gives its content or raises what `read` does.
        """
        return (functools.partial(self.read, path, peek=peek) for path in paths)

    def elsewhere(self) -> Files | None:
        """The same files for another process, which may open those whose names it is told.

        It can be pickled and lists nothing; `None` where that cannot be had.
        """
        return None

    # Most have nothing to do here.
    def fetch(self, paths: Iterable[str]) -> None:  # noqa: B027
        """Brings files to this machine in one go, where `open` would bring them one by one."""

    @abc.abstractmethod
    def fingerprint(self, paths: Iterable[str]) -> str:
        """SHA-256 (hex) that changes when the name or content of one of these files does."""


class Reader(abc.ABC):
    """What reads the rows of a dataset, whose parts are known."""

    @abc.abstractmethod
    def read(self, unit: Unit, *, peek: bool = False) -> Iterator[Row]:
        """Reads the rows of one part, few at a time.

        Args:
            unit: One of the dataset's.
            peek: Whether the caller will stop after a few rows, so that files need not be
                fetched whole.

        Raises:
            DatasetError: A file cannot be read to its end.
        """


class Source(Reader):
    """Captioned pictures of one kind.

    Attributes:
        kind: Name of the kind.
        files: Where they lie.
        image_column: Column that holds the pictures, or names them.
        caption_column: Column that holds the captions.
        paths: The files that are read, sorted.
        left_out: Files of the dataset that belong to other splits, sorted.
        taken_for: What the dataset was taken for and why, one line for people.
        remark: What else they should know of how it is read; goes to the end of that line.
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
        """About the size of all pictures; the number of shards follows from it."""
        sizes = self.files.sizes()
        return sum(sizes[path] for path in self.paths)

    @abc.abstractmethod
    def units(self) -> Iterator[Unit]:
        """The dataset in parts, in order.

        Raises:
            DatasetError: A file cannot be read or lacks a column.
        """

    def read(self, unit: Unit, *, peek: bool = False) -> Iterator[Row]:
        """See `Reader.read`."""
        rows = self._read(unit, peek=peek)
        return rows if self._stand_in is None else map(self._stand_in.complete, rows)

    def elsewhere(self) -> Reader | None:
        """What reads its units in another process, which need not open the dataset for that.

        It can be pickled; `None` where the dataset must be opened there.
        """
        return None

    @abc.abstractmethod
    def _read(self, unit: Unit, *, peek: bool) -> Iterator[Row]:
        """As `read`, with the captions that the dataset itself has."""

    def give_captions(self, spec: DatasetSpec) -> None:
        """Gives pictures that have no caption the one that a user asked for."""
        if spec.captions_given:
            self._stand_in = StandIn(spec.caption, spec.captions_from)


@dataclasses.dataclass(frozen=True)
class StandIn:
    """Captions for pictures that have none.

    Attributes:
        caption: One for all of them.
        captions_from: Where it is "": one of `CAPTIONS_FROM`.
    """

    caption: str
    captions_from: str

    def complete(self, row: Row) -> Row:
        """The row with a caption, if it has a picture and no caption."""
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
    """What the name of a picture's folder or file says; "" where it says nothing.

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

    Neither years nor numbers with leading zeros are meant like that.
    """
    found = _REPEATS.fullmatch(folder)
    return None if found is None else (int(found[1]), found[2].strip())


def is_picture(path: str) -> bool:
    """Whether a file is called like a picture."""
    return path.lower().endswith(PICTURE_SUFFIXES)


def names_picture(text: str) -> bool:
    """Whether a text is a picture's name, perhaps with the number of its caption: `1.jpg#0`."""
    return is_picture(CAPTION_NUMBER.sub("", text))


def folded(path: str) -> str:
    """A path as it is where neither the case of letters nor the form of accents matters."""
    return (path if path.isascii() else unicodedata.normalize("NFC", path)).lower()


def is_hidden(path: str) -> bool:
    """Whether a relative path leads out of the dataset, or through what is no part of it."""
    return _HIDDEN.search(path) is not None


def shown_path(path: str) -> str:
    """A path that can be written as UTF-8."""
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
