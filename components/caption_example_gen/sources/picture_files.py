"""Picture files with captions in files beside them, in the names of folders, or none."""

from __future__ import annotations

import dataclasses
import json
import posixpath
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain, islice

from components.caption_example_gen.sources import columns
from components.caption_example_gen.sources.base import (
    LINES_EACH,
    DatasetError,
    DatasetSpec,
    Files,
    Reader,
    Row,
    Source,
    StandIn,
    Unit,
    is_picture,
    repeats_of,
    shown_path,
)
from components.caption_example_gen.sources.encodings import complaint_about, utf8
from components.caption_example_gen.sources.form import Look, card_of, no_captions
from components.caption_example_gen.sources.listing import HELD, Paths
from components.caption_example_gen.sources.splits import names_configs
from components.caption_example_gen.sources.table_files import DOCUMENT_SUFFIX
from storage.errors import one_line

_UNIT_ROWS = 256
_NUMBER = re.compile(r"[-+]?[0-9]*\.?[0-9]+(?:[eE][-+]?[0-9]+)?")
_LOOK_AT = 16
# Names of text files in folders of pictures that are not captions.
_NO_CAPTIONS = frozenset(
    {
        "captions", "changelog", "classes", "cond_dropout", "config", "copying", "copyright",
        "credits", "dataset", "files", "flip_p", "info", "labels", "licence", "license", "list",
        "log", "metadata", "multiply", "note", "notes", "prompts", "readme", "requirements",
        "sample_prompts", "source", "sources", "tags", "test", "train", "trigger", "triggers",
        "urls", "val",
    }
)  # fmt: skip
# Suffixes of files that OneTrainer keeps beside a picture, with the same name.
_NO_PICTURES = ("-masklabel.png", "-condlabel.png")
# Folders of masks and the like, which are not training pictures; the last is ai-toolkit's.
_MASKS = frozenset({"mask", "masks", "_controls"})
# The settings that A1111 writes after a prompt.
_SETTINGS = re.compile(rb"\s*(?:\nNegative prompt: [^\0]*?)?\nSteps: \d+, Sampler: [^\0]*\Z")


@dataclasses.dataclass(frozen=True)
class CaptionFiles:
    """Where the captions of pictures are.

    Attributes:
        suffixes: Suffixes of the caption files, as they are written.
        key: The key of the caption in JSON; "" if the whole file is the caption.
        texts: The folder of the caption files, which mirrors `pictures`, with a slash at the end;
            both are empty if the caption files are beside the pictures.
        pictures: The folder of the pictures, with a slash at the end.
        is_anywhere: Whether there may be several such pairs of folders, such as `a/images/` and
            `a/captions/`, `b/images/` and `b/captions/`.
    """

    suffixes: tuple[str, ...] = ()
    key: str = ""
    texts: str = ""
    pictures: str = ""
    is_anywhere: bool = False

    def of(self, picture: str, sizes: Mapping[str, int]) -> str:
        """The caption file of a picture; "" if there is none."""
        return next(self.all_of(picture, sizes), "")

    def all_of(self, picture: str, sizes: Mapping[str, int]) -> Iterator[str]:
        """Every file that may be the caption file of a picture."""
        name = self._moved(picture, self.pictures, self.texts) if self.texts else picture
        if not name:
            return
        stem = posixpath.splitext(name)[0]
        for suffix in self.suffixes:
            for path in (stem + suffix, name + suffix):
                if path in sizes:
                    yield path

    def has_picture(self, path: str, look: Look) -> bool:
        """Whether a caption file has a picture."""
        if not self.texts:
            return look.is_beside_picture(path)
        name = self._moved(path, self.texts, self.pictures)
        return bool(name and look.picture_beside(name))

    def is_inside(self, path: str) -> bool:
        """Whether a file is in a folder of captions."""
        return bool(self._moved(path, self.texts, self.pictures))

    def _moved(self, path: str, start: str, to: str) -> str:
        """A path in folder `start`, moved to folder `to`; "" if it is not in `start`."""
        at = f"/{path}".rfind(f"/{start}") if self.is_anywhere else 0
        if at < 0 or not path.startswith(start, at):
            return ""
        return path[:at] + to + path[at + len(start) :]


def find_captions(look: Look, beside: Sequence[str], spec: DatasetSpec) -> CaptionFiles:
    """Finds the caption files beside pictures.

    Args:
        look: The dataset.
        beside: Its files beside pictures that may be caption files.
        spec: Names the suffix or a key of JSON, or leaves it to be found.

    Raises:
        DatasetError: A picture has several caption files, or the key cannot be determined.
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
        # The user gave captions to use instead.
        if spec.captions_given and not spec.caption_column:
            return CaptionFiles()
        raise
    return CaptionFiles(tuple(sorted(json_suffixes)), key)


def text_suffixes(look: Look, texts: Sequence[str], spec: DatasetSpec) -> tuple[str, ...]:
    """The suffixes of caption files without JSON, in a folder of their own.

    Args:
        look: The dataset.
        texts: The files.
        spec: Names the suffix, or leaves it to be found.

    Raises:
        DatasetError: A picture has several caption files, or none has the suffix that `spec` names.
    """
    by_name = _suffixes_of(texts)
    found = _text_suffixes(look, by_name, texts, spec)
    if not found:
        there = f"the files in its folder of captions are {', '.join('*.' + n for n in by_name)}"
        raise columns.missing("caption", spec.caption_column, shown=look.files.shown, there=there)
    return found


def _suffixes_of(paths: Sequence[str]) -> dict[str, set[str]]:
    """The suffixes of files as they are written, by their lower case without the dot."""
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
                    f"{shown_path(path)} and *.{name}: choose one with {choice}"
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
            texts[key] = texts.get(key, False) or columns.says_something(key, value)
            texts |= dict.fromkeys(columns.nested_names(key, value), True)
    there = f"the keys of {shown} are {', '.join(texts) or 'none'}"
    if spec.caption_column:
        if spec.caption_column not in texts:
            raise columns.missing(
                "caption", spec.caption_column, shown=look.files.shown, there=there
            )
        return spec.caption_column
    candidates = [key for key, fits in texts.items() if fits and "." not in key]
    if not columns.usually("caption", candidates):
        # Civitai's JSON has it in `meta.prompt`, beside names of all kinds.
        nested = [key for key in texts if "." in key]
        inside = [key for key in nested if columns.is_called_caption(key.rpartition(".")[2])]
        candidates = inside[:1] if len(inside) == 1 else candidates
    if not candidates:
        raise no_captions(look, f"the JSON files beside them have none, {there}")
    return columns.choose("caption", candidates, shown=look.files.shown, there=there)


def _json_values(content: bytes) -> Mapping[str, object]:
    text = utf8(content).decode("utf-8", "surrogateescape")
    values = json.loads(text, object_pairs_hook=columns.json_object)
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
    JSON, or empty. Neither this class nor its readers hold a list of all names.
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
            kind: Name of the form.
            captions: Where the captions are.
            repeats: Whether folders are called `10_name`.

        Raises:
            DatasetError: The config or split does not exist.
        """
        suffixes = tuple({suffix.lower() for suffix in captions.suffixes})
        texts = look.ending(*suffixes) if suffixes else ()
        masks = _masks(look, texts) if suffixes else frozenset()
        if masks:
            shown = ", ".join(map(shown_path, sorted(masks)[:3]))
            self.remark = f"; without the pictures in {shown}, which have no captions"

        def is_meant(picture: str) -> bool:
            is_label = picture.lower().endswith(_NO_PICTURES)
            return not (is_label or (masks and _folder(picture) in masks))

        everything = Paths(look.pictures, is_meant)
        is_chosen = _chosen(look, everything, texts, ignore_repeats=repeats)
        self._pictures = Paths(everything, is_chosen)
        folders = set(map(_folder, self._pictures))

        def is_beside(text: str) -> bool:
            is_inside = captions.is_inside(text) if captions.texts else _folder(text) in folders
            return is_inside and is_chosen(text)

        unpaired = [t for t in texts if is_beside(t) and not captions.has_picture(t, look)]
        # Caption files whose picture is missing.
        self._alone = tuple(path for path in unpaired if not _is_note(path))
        notes = frozenset(filter(_is_note, unpaired))

        def is_file(path: str) -> bool:
            return is_meant(path) if is_picture(path) else path.lower().endswith(suffixes)

        def is_read(path: str) -> bool:
            if not is_file(path):
                return False
            return is_chosen(path) if is_picture(path) else is_beside(path) and path not in notes

        files = Paths(look.paths, is_file)
        left_out = Paths(files, lambda path: not is_chosen(path))
        names = {suffix.lower().removeprefix(".") for suffix in captions.suffixes}
        super().__init__(
            look.files,
            Paths(look.paths, is_read),
            left_out if len(left_out) > HELD else tuple(left_out),
            "",
            captions.key or "+".join(sorted(names)),
        )
        self.kind = kind
        self._is_read = is_read
        self._captions = captions
        # Caption files beside pictures whose names differ only in case or encoding of accents.
        self._other_case = {
            picture: path
            for picture, path in (() if captions.texts else look.other_case.items())
            if path.endswith(captions.suffixes)
        }
        spec = look.spec
        self._reader = PictureReader(
            look.files,
            captions.suffixes,
            captions.key,
            spec.caption_lines,
            repeats=repeats,
            is_given=spec.captions_given,
        )

    @property
    def image_bytes(self) -> int:
        """See `Source.image_bytes`."""
        items = self.files.sizes().items()
        return sum(size for path, size in items if is_picture(path) and self._is_read(path))

    def units(self) -> Iterator[Unit]:
        """See `Source.units`; reads nothing."""
        rows = chain(map(self._files_of, self._pictures), (("", text, "") for text in self._alone))
        start = 0
        while names := tuple(islice(rows, _UNIT_ROWS)):
            yield Unit("", start, 0, len(names), names)
            start += len(names)
        if start == 0:
            raise DatasetError(f"dataset {self.files.shown!r} has no pictures in this split")

    def elsewhere(self) -> PictureReader | None:
        """See `Source.elsewhere`."""
        files = self.files.elsewhere()
        if files is None:
            return None
        return dataclasses.replace(self._reader, files=files, stand_in=self._stand_in)

    def _read(self, unit: Unit, *, peek: bool) -> Iterator[Row]:
        return self._reader.read(unit, peek=peek)

    def _files_of(self, picture: str) -> tuple[str, str, str]:
        """A picture, its caption file, and another file that may also be its caption file."""
        found = self._captions.all_of(picture, self.files.sizes())
        beside = next(found, "") or self._other_case.get(picture, "")
        return picture, beside, next(found, "")


@dataclasses.dataclass(frozen=True)
class PictureReader(Reader):
    """Reads pictures whose names are in the units.

    Attributes:
        files: The dataset's files.
        suffixes: See `CaptionFiles`.
        key: See `CaptionFiles`.
        lines: What the lines of a caption file are; see `DatasetSpec`.
        repeats: Whether folders are called `10_name`.
        is_given: Whether pictures without a caption get one.
        stand_in: Gives them one; `None` if the caller does.
    """

    files: Files
    suffixes: tuple[str, ...]
    key: str
    lines: str
    repeats: bool
    is_given: bool
    stand_in: StandIn | None = None

    def read(self, unit: Unit, *, peek: bool = False) -> Iterator[Row]:
        """See `Reader.read`."""
        rows = self._rows(unit, peek=peek)
        return rows if self.stand_in is None else map(self.stand_in.complete, rows)

    def _rows(self, unit: Unit, *, peek: bool) -> Iterator[Row]:
        wanted = (path for names in unit.names for path in names[:2] if path)
        contents = self.files.ahead(wanted, peek=peek)
        for picture, caption, second in unit.names:
            content = next(contents)()
            if picture:
                text = next(contents)() if caption else b""
                yield self._row(picture, content, caption, text, second)
            else:
                problem = f"no picture of the name of {shown_path(caption)!r} lies beside it"
                captions, _ = self._captions_in(content, caption)
                yield Row(shown_path(caption), 0, None, problem, captions)

    def _row(self, picture: str, image: bytes, beside: str, content: bytes, second: str) -> Row:
        captions: tuple[bytes | None, ...] = (None,)
        problem = ""
        if second:
            both = f"{shown_path(beside)} and {shown_path(second)}"
            problem = f"there are two captions for one picture, {both}: keep one of them"
        elif beside:
            captions, problem = self._captions_in(content, beside)
        elif self.suffixes:
            names = ", ".join(f"*{suffix}" for suffix in self.suffixes)
            problem = f"no caption file ({names}) of the picture's name lies beside it"
        repeats: int | None = None
        if self.repeats:
            repeats, name = _repeats_above(picture) or (1, "")
            if name and not self.is_given and not any(c and c.strip() for c in captions):
                captions, problem = (name.encode("utf-8", "surrogateescape"),), ""
        return Row(shown_path(picture), 0, image or None, problem, captions, picture, repeats)

    def _captions_in(self, content: bytes, path: str) -> tuple[tuple[bytes | None, ...], str]:
        """The captions in a file, and the problem with it, if any."""
        complaint = complaint_about(content, path)
        problem = f"{shown_path(path)} {complaint}" if complaint else ""
        if not self.key:
            return captions_in(content, self.lines), problem
        try:
            value = columns.value_at(_json_values(content), self.key)
            return columns.captions_of(value), problem
        except (ValueError, RecursionError) as error:
            return (None,), f"{shown_path(path)} cannot be read as JSON: {one_line(error)}"


def _folder(path: str) -> str:
    return path.rpartition("/")[0]


def _is_note(path: str) -> bool:
    """Whether a text file has a usual name of files that are not captions."""
    return posixpath.splitext(posixpath.basename(path))[0].lower() in _NO_CAPTIONS


def is_mask(picture: str) -> bool:
    """Whether a picture is in a folder of masks or the like."""
    return picture.rpartition("/")[0].rpartition("/")[2].lower() in _MASKS


def _masks(look: Look, texts: Sequence[str]) -> frozenset[str]:
    """The folders of masks and the like that have no captions."""
    called = {folder for folder in look.picture_folders if is_mask(f"{folder}/")}
    return frozenset(called.difference(path.rpartition("/")[0] for path in texts if called))


def are_numbers(look: Look, texts: Sequence[str]) -> bool:
    """Whether the first text files contain only numbers, like the labels of object detectors."""
    words = [
        word
        for path in texts[:_LOOK_AT]
        for word in utf8(look.files.read(path, peek=True)).decode("utf-8", "replace").split()
    ]
    return bool(words) and all(_NUMBER.fullmatch(word) for word in words)


def repeats_folders(look: Look) -> Counter[str]:
    """The folders called `10_name`, with the number of pictures in or below each."""
    found: Counter[str] = Counter()
    for folder, count in look.picture_folders.items():
        for part in folder.split("/"):
            if repeats_of(part) is not None:
                found[part] += count
    return found


def _repeats_above(picture: str) -> tuple[int, str] | None:
    """Repeats and name from the nearest folder above a picture that is called `10_name`."""
    for part in reversed(posixpath.dirname(picture).split("/")):
        found = repeats_of(part)
        if found is not None:
            return found[0], " ".join(found[1].replace("_", " ").split())
    return None


def _chosen(
    look: Look, pictures: Sequence[str], texts: Sequence[str], *, ignore_repeats: bool
) -> Callable[[str], bool]:
    """A test for the files of the split; a folder called `5_test subject` does not name one."""
    card, shown = card_of(look.files), look.files.shown
    # A card has patterns for files.
    if card is not None and names_configs(card, shown):
        selection = look.select([*pictures, *texts], by_folder_only=True)
        return frozenset(selection.files).__contains__
    # One file stands for all of its folder.
    plain: dict[str, set[str]] = {}
    for folder in dict.fromkeys(map(_folder, chain(pictures, texts))):
        parts = folder.split("/")
        if ignore_repeats and not look.spec.config:
            parts = ["_" if repeats_of(part) else part for part in parts]
        plain.setdefault(posixpath.join(*parts, "_"), set()).add(folder)
    try:
        selection = look.select(list(plain), by_folder_only=True)
    except DatasetError:
        # This error counts the files of other splits.
        look.select([*pictures, *texts], by_folder_only=True)
        raise
    folders = frozenset(chain.from_iterable(plain[each] for each in selection.files))
    return lambda path: _folder(path) in folders
