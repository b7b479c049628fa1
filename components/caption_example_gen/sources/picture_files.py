"""Picture files whose captions lie beside them, in the names of folders, or nowhere."""

from __future__ import annotations

import dataclasses
import json
import posixpath
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice

from components.caption_example_gen.sources import columns
from components.caption_example_gen.sources.base import (
    LINES_EACH,
    DatasetError,
    DatasetSpec,
    Row,
    Source,
    Unit,
    is_picture,
    repeats_of,
    shown_path,
)
from components.caption_example_gen.sources.encodings import complaint_about, utf8
from components.caption_example_gen.sources.form import Look, card_of, no_captions
from components.caption_example_gen.sources.splits import Selection
from components.caption_example_gen.sources.table_files import DOCUMENT_SUFFIX
from storage.errors import one_line

_UNIT_ROWS = 256
_NUMBER = re.compile(r"[-+]?[0-9]*\.?[0-9]+(?:[eE][-+]?[0-9]+)?")
_LOOK_AT = 16
# Names of text files that lie in folders of pictures and are no captions.
_NO_CAPTIONS = frozenset(
    {
        "captions", "changelog", "classes", "cond_dropout", "config", "copying", "copyright",
        "credits", "dataset", "files", "flip_p", "info", "labels", "licence", "license", "list",
        "log", "metadata", "multiply", "note", "notes", "prompts", "readme", "requirements",
        "sample_prompts", "source", "sources", "tags", "test", "train", "trigger", "triggers",
        "urls", "val",
    }
)  # fmt: skip
# What OneTrainer keeps beside a picture, to be called like it.
_NO_PICTURES = ("-masklabel.png", "-condlabel.png")
# Folders of what belongs to pictures and is none to train on; the last is ai-toolkit's.
_MASKS = frozenset({"mask", "masks", "_controls"})
# What A1111 writes behind a prompt.
_SETTINGS = re.compile(rb"\s*(?:\nNegative prompt: [^\0]*?)?\nSteps: \d+, Sampler: [^\0]*\Z")


@dataclasses.dataclass(frozen=True)
class CaptionFiles:
    """Which files have the captions.

    Attributes:
        suffixes: Theirs, as they are written.
        key: The key under which JSON has a caption; "" where files are captions.
        texts: The folder that they lie in, in the same order as the pictures lie in `pictures`;
            both are empty, with a slash at their end otherwise, where they lie beside these.
        pictures: The folder of the pictures.
        is_anywhere: Whether there may be several such pairs of folders, as `a/images/` and
            `a/captions/`, `b/images/` and `b/captions/`.
    """

    suffixes: tuple[str, ...] = ()
    key: str = ""
    texts: str = ""
    pictures: str = ""
    is_anywhere: bool = False

    def of(self, picture: str, sizes: Mapping[str, int]) -> str:
        """The file with a picture's caption; "" where there is none."""
        name = self._moved(picture, self.pictures, self.texts) if self.texts else picture
        if not name:
            return ""
        stem = posixpath.splitext(name)[0]
        for suffix in self.suffixes:
            for path in (stem + suffix, name + suffix):
                if path in sizes:
                    return path
        return ""

    def has_picture(self, path: str, look: Look) -> bool:
        """Whether a caption's file has a picture."""
        if not self.texts:
            return path in look.beside_pictures
        name = self._moved(path, self.texts, self.pictures)
        return bool(name and look.picture_beside(name))

    def is_inside(self, path: str) -> bool:
        """Whether a file lies in a folder of captions."""
        return bool(self._moved(path, self.texts, self.pictures))

    def _moved(self, path: str, start: str, to: str) -> str:
        """A path in one of the two folders as it would be in the other; "" where it is in none."""
        at = f"/{path}".rfind(f"/{start}") if self.is_anywhere else 0
        if at < 0 or not path.startswith(start, at):
            return ""
        return path[:at] + to + path[at + len(start) :]


def find_captions(look: Look, beside: Sequence[str], spec: DatasetSpec) -> CaptionFiles:
    """Finds out which files beside pictures have the captions.

    Args:
        look: The dataset.
        beside: Its files beside pictures that may.
        spec: Names the suffix, or a key of JSON, or leaves it to be found.

    Raises:
        DatasetError: There are several for one picture, or a key cannot be told.
    """
    by_name = _suffixes_of(beside)
    json_suffixes = by_name.pop(DOCUMENT_SUFFIX.removeprefix("."), set())
    found = _text_suffixes(look, by_name, beside, spec)
    if found:
        return CaptionFiles(found)
    there = f"the files beside its pictures are {', '.join('*.' + name for name in by_name)}"
    if not json_suffixes:
        raise columns.missing("caption", spec.caption_column, shown=look.files.shown, there=there)
    try:
        key = _json_key(look, beside, spec)
    except DatasetError:
        # It is said what stands in for them.
        if spec.captions_given and not spec.caption_column:
            return CaptionFiles()
        raise
    return CaptionFiles(tuple(sorted(json_suffixes)), key)


def text_suffixes(look: Look, texts: Sequence[str], spec: DatasetSpec) -> tuple[str, ...]:
    """The suffixes of files that are captions as a whole, which lie in a folder of their own.

    Args:
        look: The dataset.
        texts: The files.
        spec: Names the suffix, or leaves it to be found.

    Raises:
        DatasetError: There are several for one picture, or none of the suffix that is named.
    """
    by_name = _suffixes_of(texts)
    found = _text_suffixes(look, by_name, texts, spec)
    if not found:
        there = f"the files in its folder of captions are {', '.join('*.' + n for n in by_name)}"
        raise columns.missing("caption", spec.caption_column, shown=look.files.shown, there=there)
    return found


def _suffixes_of(paths: Sequence[str]) -> dict[str, set[str]]:
    """The suffixes of files as they are written, by how they are called."""
    by_name: dict[str, set[str]] = {}
    for path in paths:
        suffix = posixpath.splitext(path)[1]
        by_name.setdefault(suffix.lower().removeprefix("."), set()).add(suffix)
    return by_name


def _text_suffixes(
    look: Look, by_name: Mapping[str, set[str]], texts: Sequence[str], spec: DatasetSpec
) -> tuple[str, ...]:
    asked = spec.caption_column.lower().removeprefix(".")
    if asked in by_name:
        return tuple(sorted(by_name[asked]))
    if spec.caption_column:
        return ()
    if len(by_name) > 1:
        _check_one_each(look, by_name, texts)
    return tuple(sorted(set().union(*by_name.values())))


def _check_one_each(look: Look, by_name: Mapping[str, set[str]], texts: Sequence[str]) -> None:
    sizes = look.files.sizes()
    for path in texts:
        stem, own = posixpath.splitext(path)
        for name, suffixes in by_name.items():
            if own.lower() != f".{name}" and any(stem + suffix in sizes for suffix in suffixes):
                choice = " or ".join(f"--caption-column {each}" for each in sorted(by_name))
                raise DatasetError(
                    f"dataset {look.files.shown!r} has two captions for one picture, "
                    f"{shown_path(path)} and *.{name}: say which with {choice}"
                )


def _json_key(look: Look, beside: Sequence[str], spec: DatasetSpec) -> str:
    texts: dict[str, bool] = {}
    shown = ""
    documents = (path for path in beside if path.lower().endswith(DOCUMENT_SUFFIX))
    for path in islice(documents, _LOOK_AT):
        shown = shown or shown_path(path)
        try:
            values = _json_values(look.files.read(path, peek=True))
        except ValueError:
            continue
        for key, value in values.items():
            texts[key] = texts.get(key, False) or _says_something(key, value)
            texts |= dict.fromkeys(columns.nested_names(key, value), True)
    there = f"the keys of {shown} are {', '.join(texts) or 'none'}"
    if spec.caption_column:
        if spec.caption_column not in texts:
            raise columns.missing(
                "caption", spec.caption_column, shown=look.files.shown, there=there
            )
        return spec.caption_column
    candidates = [key for key, fits in texts.items() if fits and "." not in key]
    if not candidates:
        raise no_captions(look, f"the JSON beside them has none, {there}")
    return columns.choose("caption", candidates, shown=look.files.shown, there=there)


def _says_something(key: str, value: object) -> bool:
    """Whether a value of JSON beside a picture can be its caption."""
    if not columns.is_text(value) or key.lower() in columns.NO_CAPTIONS:
        return False
    if not isinstance(value, str):
        return True
    is_name = columns.is_url(value) or columns.looks_like_picture(value)
    return not (is_name or value.strip().isdigit() or not value.strip())


def _json_values(content: bytes) -> Mapping[str, object]:
    values = json.loads(utf8(content).decode("utf-8", "surrogateescape"))
    if not isinstance(values, dict):
        raise ValueError("it is no object")
    return values


def captions_in(content: bytes, lines: str) -> tuple[bytes | None, ...]:
    """The captions in a text file: one, or one for every line that is not empty."""
    text = utf8(content)
    if b"\nSteps: " in text:
        text = _SETTINGS.sub(b"", text)
    if lines != LINES_EACH:
        return (text.rstrip(b"\r\n"),)
    each = tuple(line.strip() for line in text.splitlines())
    return tuple(filter(None, each)) or (b"",)


class PictureFilesSource(Source):
    """Pictures at any depth. A unit is a few of them, in the order of their names.

    `image_column` is empty; `caption_column` is the suffix of the caption files, a key of their
    JSON, or empty.
    """

    def __init__(
        self,
        look: Look,
        kind: str,
        captions: CaptionFiles,
        *,
        repeats: bool = False,
    ) -> None:
        """Chooses the files of the split.

        Args:
            look: The dataset.
            kind: What the source is called.
            captions: Which files have the captions.
            repeats: Whether folders are called `10_name`.

        Raises:
            DatasetError: There is no such config or split.
        """
        suffixes = tuple({suffix.lower() for suffix in captions.suffixes})
        texts = look.ending(*suffixes) if suffixes else ()
        pictures = [p for p in look.pictures if not p.lower().endswith(_NO_PICTURES)]
        masks = _masks(look, texts) if suffixes else frozenset()
        if masks:
            pictures = [path for path in pictures if path.rpartition("/")[0] not in masks]
            shown = ", ".join(map(shown_path, sorted(masks)[:3]))
            self.remark = f"; without the pictures of {shown}, where there are no captions"
        selection = _select(look, [*pictures, *texts], ignore_repeats=repeats)
        chosen = frozenset(selection.files)
        self._pictures = [path for path in pictures if path in chosen]
        folders = {path.rpartition("/")[0] for path in self._pictures}
        beside = [
            path
            for path in texts
            if path in chosen
            and (captions.is_inside(path) if captions.texts else path.rpartition("/")[0] in folders)
        ]
        # Captions whose picture is missing.
        alone = [
            path
            for path in beside
            if not captions.has_picture(path, look)
            and posixpath.splitext(posixpath.basename(path))[0].lower() not in _NO_CAPTIONS
        ]
        self._rows = [*self._pictures, *alone]
        read = [*alone, *(path for path in beside if captions.has_picture(path, look))]
        names = {suffix.lower().removeprefix(".") for suffix in captions.suffixes}
        super().__init__(
            look.files,
            tuple(sorted([*self._pictures, *read])),
            selection.left_out,
            "",
            captions.key or "+".join(sorted(names)),
        )
        self.kind = kind
        self._captions = captions
        # Where the captions lie beside pictures, and those that differ in the case of letters.
        self._other_case = {
            picture: path
            for picture, path in (() if captions.texts else look.other_case.items())
            if path.endswith(captions.suffixes)
        }
        self._repeats = repeats
        self._lines = look.spec.caption_lines
        self._is_given = look.spec.captions_given

    @property
    def image_bytes(self) -> int:
        """See `Source.image_bytes`."""
        sizes = self.files.sizes()
        return sum(sizes[path] for path in self._pictures)

    def units(self) -> Iterator[Unit]:
        """See `Source.units`; reads nothing."""
        total = len(self._rows)
        if total == 0:
            raise DatasetError(f"dataset {self.files.shown!r} has no pictures in this split")
        for start in range(0, total, _UNIT_ROWS):
            yield Unit("", start, 0, min(_UNIT_ROWS, total - start))

    def _read(self, unit: Unit, *, peek: bool) -> Iterator[Row]:
        chosen = self._rows[unit.start : unit.start + (unit.num_rows or 0)]
        sizes = self.files.sizes()
        # Of each row its picture and the file of its caption; of one without a picture the latter.
        beside = [self._caption_of(path, sizes) if is_picture(path) else "" for path in chosen]
        wanted = (p for pair in zip(chosen, beside, strict=True) for p in pair if p)
        contents = self.files.ahead(wanted, peek=peek)
        for path, caption in zip(chosen, beside, strict=True):
            content = next(contents)()
            if not is_picture(path):
                problem = f"no picture of the name of {shown_path(path)!r} lies beside it"
                captions, _ = self._captions_in(content, path)
                yield Row(shown_path(path), 0, None, problem, captions)
            else:
                yield self._row(path, content, caption, next(contents)() if caption else b"")

    def _caption_of(self, picture: str, sizes: Mapping[str, int]) -> str:
        """The file with a picture's caption; "" where there is none."""
        return self._captions.of(picture, sizes) or self._other_case.get(picture, "")

    def _row(self, picture: str, image: bytes, beside: str, content: bytes) -> Row:
        captions: tuple[bytes | None, ...] = (None,)
        problem = ""
        second = picture + beside[beside.rfind(".") :] if beside else ""
        if second != beside and second in self.files.sizes() and not self._captions.texts:
            both = f"{shown_path(beside)} and {shown_path(second)}"
            problem = f"there are two captions for one picture, {both}: keep one of them"
        elif beside:
            captions, problem = self._captions_in(content, beside)
        elif self._captions.suffixes:
            names = ", ".join(f"*{suffix}" for suffix in self._captions.suffixes)
            problem = f"no caption file ({names}) of the picture's name lies beside it"
        repeats: int | None = None
        if self._repeats:
            repeats, name = _repeats_above(picture) or (1, "")
            if name and not self._is_given and not any(c and c.strip() for c in captions):
                captions, problem = (name.encode("utf-8", "surrogateescape"),), ""
        return Row(shown_path(picture), 0, image or None, problem, captions, picture, repeats)

    def _captions_in(self, content: bytes, path: str) -> tuple[tuple[bytes | None, ...], str]:
        """The captions in a file, and what is wrong with it."""
        complaint = complaint_about(content, path)
        problem = f"{shown_path(path)} {complaint}" if complaint else ""
        if not self._captions.key:
            return captions_in(content, self._lines), problem
        try:
            value = columns.value_at(_json_values(content), self._captions.key)
            return columns.captions_of(value), problem
        except (ValueError, RecursionError) as error:
            return (None,), f"{shown_path(path)} cannot be read as JSON: {one_line(error)}"


def is_mask(picture: str) -> bool:
    """Whether a picture lies in a folder of masks and the like."""
    return picture.rpartition("/")[0].rpartition("/")[2].lower() in _MASKS


def _masks(look: Look, texts: Sequence[str]) -> frozenset[str]:
    """The folders of masks and the like, which have no captions."""
    called = {folder for folder in look.picture_folders if is_mask(f"{folder}/")}
    return frozenset(called.difference(path.rpartition("/")[0] for path in texts if called))


def are_numbers(look: Look, texts: Sequence[str]) -> bool:
    """Whether the first of some text files hold numbers alone, as object detectors' labels do."""
    words = [
        word
        for path in texts[:_LOOK_AT]
        for word in utf8(look.files.read(path, peek=True)).decode("utf-8", "replace").split()
    ]
    return bool(words) and all(_NUMBER.fullmatch(word) for word in words)


def repeats_folders(look: Look) -> Counter[str]:
    """The folders called `10_name` that pictures lie in or below, with the number of these."""
    found: Counter[str] = Counter()
    for folder, count in look.picture_folders.items():
        for part in folder.split("/"):
            if repeats_of(part) is not None:
                found[part] += count
    return found


def _repeats_above(picture: str) -> tuple[int, str] | None:
    """How often an epoch sees a picture, by the nearest folder above it that says so."""
    for part in reversed(posixpath.dirname(picture).split("/")):
        found = repeats_of(part)
        if found is not None:
            return found[0], " ".join(found[1].replace("_", " ").split())
    return None


def _select(look: Look, paths: Sequence[str], *, ignore_repeats: bool) -> Selection:
    """The files of the split; that a folder is called `5_test subject` says nothing of splits."""
    # The patterns of a card are of files.
    if card_of(look.files) is not None:
        return look.select(paths, by_folder_only=True)
    by_folder: dict[str, list[str]] = {}
    for path in paths:
        by_folder.setdefault(path.rpartition("/")[0], []).append(path)
    # A file for each folder, for all of it.
    plain: dict[str, list[str]] = {}
    for folder, inside in by_folder.items():
        parts = folder.split("/")
        if ignore_repeats and not look.spec.config:
            parts = ["_" if repeats_of(part) else part for part in parts]
        plain.setdefault(posixpath.join(*parts, "_"), []).extend(inside)
    try:
        selection = look.select(list(plain), by_folder_only=True)
    except DatasetError:
        # The error says how many files there are of other splits.
        look.select(paths, by_folder_only=True)
        raise
    return Selection(
        tuple(sorted(path for each in selection.files for path in plain[each])),
        tuple(sorted(path for each in selection.left_out for path in plain[each])),
        selection.config,
    )
