"""The base class of dataset forms, which recognise their files and open them."""

from __future__ import annotations

import abc
import posixpath
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

from components.caption_example_gen.sources.base import (
    PICTURE_SUFFIXES,
    UNREAD_PICTURE_SUFFIXES,
    DatasetError,
    DatasetSpec,
    Files,
    Source,
    folded,
    is_picture,
)
from components.caption_example_gen.sources.card import CARD_NAME
from components.caption_example_gen.sources.files import UNREAD_SUFFIXES
from components.caption_example_gen.sources.listing import HELD, Paths
from components.caption_example_gen.sources.splits import Selection, are_of_one_split, select_files
from components.caption_example_gen.sources.table_files import (
    DOCUMENT_SUFFIX,
    GLANCE,
    parse_document,
)

TEXT_SUFFIXES = (".txt", ".caption", ".prompt")
"""Suffixes of text files with a caption, in lower case."""
CAPTION_SUFFIXES = (*TEXT_SUFFIXES, DOCUMENT_SUFFIX)
"""The same, with the suffix of documents that have the caption under some key."""
_CASES = tuple(case(suffix) for suffix in CAPTION_SUFFIXES for case in (str.lower, str.upper))

# COCO annotations without captions, which may have gigabytes of polygons; and the metadata files
# that SimpleTuner writes about pictures.
_NO_CAPTIONS = (
    "instances_", "person_keypoints_", "stuff_", "panoptic_", "image_info_",
    "aspect_ratio_bucket_",
)  # fmt: skip
_STATS = "_stats.json"
_OF_LIBRARIES = frozenset(
    {"state.json", "dataset_info.json", "dataset_infos.json", "dataset_dict.json", "config.json"}
)


class Found(NamedTuple):
    """The files by which a form recognises a dataset.

    Attributes:
        files: The files, at least one.
        why: What they are, for users: "3 Parquet files".
    """

    files: Sequence[str]
    why: str


class _Names(NamedTuple):
    """Counts from one pass over the names of the files.

    Attributes:
        suffixes: All suffixes, in lower case.
        picture_suffixes: Suffixes of pictures, as they are written, the most frequent first.
        picture_folders: The folders of pictures.
    """

    suffixes: Counter[str]
    picture_suffixes: tuple[str, ...]
    picture_folders: Counter[str]


class Look:
    """The files of a dataset, listed once for all forms."""

    def __init__(self, files: Files, spec: DatasetSpec, paths: Sequence[str] | None = None) -> None:
        """Lists the files.

        Args:
            files: The dataset's files.
            spec: The user's request.
            paths: The files to look at; `None` for all.
        """
        self.files = files
        self.spec = spec
        self.paths: Collection[str] = files.sizes() if paths is None else tuple(paths)
        """The files to look at, sorted."""
        self.problems: list[DatasetError] = []
        """Why files that may belong to some form could not be read."""
        self._documents: dict[str, Any] = {}
        self._endings: dict[tuple[str, ...], Sequence[str]] = {}
        self._there = files.sizes() if paths is None else frozenset(paths)

    @cached_property
    def pictures(self) -> Sequence[str]:
        """Files with the suffix of a picture, sorted."""
        return self._few(is_picture, self.picture_folders.total())

    @property
    def picture_suffixes(self) -> tuple[str, ...]:
        """Suffixes of pictures as they are written, the most frequent first."""
        return self._names.picture_suffixes

    @property
    def picture_folders(self) -> Counter[str]:
        """The folders that contain pictures, with the number of pictures in each."""
        return self._names.picture_folders

    @cached_property
    def beside_pictures(self) -> Sequence[str]:
        """Caption files beside a picture of the same name, sorted."""
        return Paths(self.ending(*CAPTION_SUFFIXES), self.is_beside_picture)

    def is_beside_picture(self, path: str) -> bool:
        """Whether a file with the suffix of a caption is one of `beside_pictures`."""
        return path not in self._alone or path in self._of_other_case

    @cached_property
    def other_case(self) -> Mapping[str, str]:
        """Caption file by picture, if their names differ only in case or encoding of accents."""
        # Windows and macOS ignore the case and the encoding of accents.
        left = {folded(posixpath.splitext(path)[0]): path for path in sorted(self._alone)}
        found: dict[str, str] = {}
        for picture in self.pictures if left else ():
            stem = posixpath.splitext(picture)[0]
            path = left.get(folded(stem)) or left.get(folded(picture))
            if path and not any(
                name + s in self._there for name in (stem, picture) for s in _CASES
            ):
                found[picture] = path
        return found

    @cached_property
    def _of_other_case(self) -> frozenset[str]:
        return frozenset(self.other_case.values())

    @cached_property
    def _alone(self) -> frozenset[str]:
        """Files with the suffix of a caption and not exactly the name of a picture."""
        texts = self.ending(*CAPTION_SUFFIXES)
        return frozenset(path for path in texts if not self.picture_beside(path))

    @property
    def unread_archives(self) -> Sequence[str]:
        """Archives of unsupported kinds."""
        return self.ending(*UNREAD_SUFFIXES)

    @property
    def unread(self) -> str:
        """Number of unsupported pictures, films and archives, for users: "2 .psd, 1 .rar"."""
        counts = {s: self._names.suffixes[s] for s in (*UNREAD_PICTURE_SUFFIXES, *UNREAD_SUFFIXES)}
        return ", ".join(f"{count:,} {suffix}" for suffix, count in counts.items() if count)

    def ending(self, *suffixes: str) -> Sequence[str]:
        """Files with one of these suffixes, none of a picture, in any case; sorted."""
        if suffixes not in self._endings:
            last = {suffix[suffix.rfind(".") :] for suffix in suffixes}
            count = sum(self._names.suffixes[suffix] for suffix in last)
            self._endings[suffixes] = self._few(lambda path: path.lower().endswith(suffixes), count)
        return self._endings[suffixes]

    def _few(self, holds: Callable[[str], bool], count: int) -> Sequence[str]:
        """The files that `holds` accepts, held in memory if `count` is small."""
        found = Paths(self.paths if count else (), holds)
        return found if count > HELD else tuple(found)

    @cached_property
    def _names(self) -> _Names:
        suffixes: Counter[str] = Counter()
        written: Counter[str] = Counter()
        folders: Counter[str] = Counter()
        for path in self.paths:
            folder, _, name = path.rpartition("/")
            suffix = name[name.rfind(".") :] if "." in name else ""
            suffixes[suffix.lower()] += 1
            if suffix.lower() in PICTURE_SUFFIXES:
                written[suffix] += 1
                folders[folder] += 1
        return _Names(suffixes, tuple(suffix for suffix, _ in written.most_common()), folders)

    def picture_beside(self, path: str) -> str:
        """The picture with the same name as a file, or the same name up to the suffix; or ""."""
        stem = posixpath.splitext(path)[0]
        sizes = self.files.sizes()
        if is_picture(stem) and stem in sizes:
            return stem
        found = (stem + suffix for suffix in self.picture_suffixes)
        return next((picture for picture in found if picture in sizes), "")

    def documents(self) -> Iterator[tuple[str, Any]]:
        """JSON documents that may have records, with their content, each parsed once.

        Documents beside pictures, which describe only these, and those of libraries are left out.
        A wrong encoding is not an error yet: the code that reads a document as a table reports it.
        """
        for path in self.ending(DOCUMENT_SUFFIX):
            name = posixpath.basename(path).lower()
            if name.startswith(_NO_CAPTIONS) or name.endswith(_STATS) or name in _OF_LIBRARIES:
                continue
            if path not in self._documents:
                if self.is_beside_picture(path):
                    continue
                try:
                    content = self.files.read(path)
                    self._documents[path] = parse_document(content, path, self.files.shown, GLANCE)
                except DatasetError as error:
                    self.problems.append(error)
                    self._documents[path] = None
            yield path, self._documents[path]

    def forget_documents(self) -> None:
        """Frees the parsed documents, which may be as large as all captions of the dataset."""
        self._documents.clear()

    def select(
        self, paths: Sequence[str], *, split: str = "", by_folder_only: bool = False
    ) -> Selection:
        """The files of the requested config and split; see `splits.select_files`."""
        return select_files(
            paths,
            card=card_of(self.files),
            config=self.spec.config,
            split=split or self.spec.split,
            shown=self.files.shown,
            by_folder_only=by_folder_only,
        )

    def are_of_one_split(self, paths: Sequence[str]) -> bool:
        """Whether files of the requested config are of one split; see `splits.are_of_one_split`."""
        card, config = card_of(self.files), self.spec.config
        return are_of_one_split(paths, card=card, config=config, shown=self.files.shown)


class Form(abc.ABC):
    """One way to store captioned pictures.

    Attributes:
        kind: Its name, as `--dataset-form` takes it.
        shown: What it is, for users: "Parquet files (*.parquet)".
        settles: Kinds of other forms whose files are part of this one if both are recognised.
        is_last: Whether it applies only if no other form is recognised.
    """

    kind: str
    shown: str
    settles: frozenset[str] = frozenset()
    is_last: bool = False

    @abc.abstractmethod
    def recognise(self, look: Look) -> Found | None:
        """Looks for files of this form; reads few, if any.

        Raises:
            DatasetError: A file cannot be read.
        """

    @abc.abstractmethod
    def open(self, look: Look, found: Found) -> Source | Files:
        """Opens the config and split that the user asked for.

        Returns:
            The source that reads it; or files to look into again, if it was an archive of another
            form.

        Raises:
            DatasetError: A file cannot be read, there is no such config or split, or a column
                cannot be found.
        """


def card_of(files: Files) -> str | None:
    """The text of a dataset's card, if there is one."""
    if CARD_NAME not in files.sizes():
        return None
    return files.read(CARD_NAME).decode("utf-8", "replace")


def counted(number: int, what: str) -> str:
    """A number with its noun: "1 tar file", "2 tar files"."""
    return f"{number:,} {what}{'s' * (number != 1)}"


def no_captions(look: Look, what: str) -> DatasetError:
    """The error for pictures without captions, which offers ways to get captions."""
    return DatasetError(
        f"dataset {look.files.shown!r} has pictures but no captions: {what}; give one for all of "
        'them (--caption "a photo of sks dog"), use the names of their folders (--captions-from '
        "folder) or of the files (--captions-from file_name), or the prompts that A1111 or ComfyUI "
        "wrote into them (--captions-from parameters), or put a caption file of the same name "
        "beside each (1.jpg, 1.txt)"
    )
