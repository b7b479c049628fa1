"""WebDataset shards: tar files of samples, each of which is several files of the same name."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import posixpath
from collections import Counter
from collections.abc import Generator, Iterable, Iterator
from typing import Any

from components.caption_example_gen.sources import columns
from components.caption_example_gen.sources.base import (
    PICTURE_SUFFIXES,
    DatasetError,
    DatasetSpec,
    Files,
    Row,
    Source,
    Unit,
    shown_path,
)
from components.caption_example_gen.sources.encodings import complaint_about
from components.caption_example_gen.sources.picture_files import captions_in
from components.caption_example_gen.sources.tars import Member, members_of
from storage.errors import one_line

# Samples that are inspected to recognise the kind of archive and to find the caption.
_LOOK_AT = 16
_TEXT, _JSON, _CLASS = "txt", "json", "cls"
_PICTURES = frozenset(suffix.removeprefix(".") for suffix in PICTURE_SUFFIXES)
# Suffixes of captions, best first; `x.txt` comes after them.
_TEXTS = (_TEXT, "caption", "prompt", "text")
# The part before `.txt` or `.png` in compound suffixes, best first.
_IMAGE_NAMES, _CAPTION_NAMES = (
    ("image", "img", "picture", "jpg", "png"),
    ("caption", "text", "prompt"),
)
# The most bytes in memory for files that wait for others of their sample.
_WAITING_BYTES = 512 << 20


class WebDatasetSource(Source):
    """Tar shards of samples, each several files of the same name. A unit is a shard.

    The files may be in any order, such as when `tar` packs a folder; if the files of a sample are
    adjacent, as in WebDataset's own shards, only one sample is in memory at a time.

    `image_column` is the suffix of the pictures, or "" for any picture; `caption_column` is
    the suffix of captions, such as `txt`, or a key of the samples' JSON.
    """

    kind = "webdataset"

    def __init__(
        self,
        files: Files,
        shards: tuple[str, ...],
        left_out: tuple[str, ...],
        image: str,
        caption: str,
        *,
        is_key: bool,
        lines: str,
    ) -> None:
        """Use `open`."""
        super().__init__(files, shards, left_out, image, caption)
        self._suffix = _JSON if is_key else caption
        self._lines = lines
        if not image:
            self._pictures = _PICTURES
        elif image.rpartition(".")[2] in _PICTURES:
            self._pictures = frozenset({image})
        else:
            self._pictures = frozenset(f"{image}.{suffix}" for suffix in _PICTURES)

    @classmethod
    def open(
        cls,
        files: Files,
        shards: tuple[str, ...],
        left_out: tuple[str, ...],
        spec: DatasetSpec,
        samples: list[Sample],
    ) -> WebDatasetSource:
        """Finds the caption by the first samples.

        Args:
            files: The dataset's files.
            shards: Its shards to read.
            left_out: The shards of other splits.
            spec: The user's request.
            samples: The first samples.

        Raises:
            DatasetError: No sample has the requested picture or caption, or the choice is
                ambiguous.
        """
        shown = files.shown
        suffixes = sorted({suffix for sample in samples for suffix in sample.fields})
        keys: dict[str, bool] = {}
        for sample in samples:
            for key, value in _json_values(sample).items():
                keys[key] = keys.get(key, False) or columns.says_something(key, value)
        there = f"the files of the first samples in {shards[0]} are *.{', *.'.join(suffixes)}"
        if keys:
            there += f", the keys of the JSON {', '.join(keys)}"
        image = spec.image_column.lower().removeprefix(".")
        names = [suffix.rpartition(".")[0] for suffix in suffixes if _is_image(suffix)]
        if image and image not in (*suffixes, *names):
            raise columns.missing("image", spec.image_column, shown=shown, there=there)
        if not image and not _PICTURES.intersection(suffixes):
            image = _chosen("image", dict.fromkeys(names), _IMAGE_NAMES, shown, there)
        caption = spec.caption_column
        suffix = caption.lower().removeprefix(".")
        if suffix in suffixes and suffix != _JSON and suffix not in _PICTURES:
            return cls(
                files, shards, left_out, image, suffix, is_key=False, lines=spec.caption_lines
            )
        if caption and caption.partition(".")[0] not in keys:
            raise columns.missing("caption", caption, shown=shown, there=there)
        if not caption:
            compound = [s for s in suffixes if s.endswith(f".{_TEXT}")]
            texts = [name for name in _TEXTS if name in suffixes]
            if any(len(sample.fields.keys() & set(texts)) > 1 for sample in samples):
                raise columns.several("caption", texts, shown=shown)
            texts = texts[:1]
            if not texts and compound:
                best = tuple(f"{name}.{_TEXT}" for name in _CAPTION_NAMES)
                texts = [_chosen("caption", dict.fromkeys(compound), best, shown, there)]
            candidates = [key for key, fits in keys.items() if fits]
            if not texts and not candidates and _CLASS in suffixes:
                texts = [_CLASS]
            if texts:
                return cls(
                    files, shards, left_out, image, texts[0], is_key=False, lines=spec.caption_lines
                )
            caption = columns.choose("caption", candidates, shown=shown, there=there)
        return cls(files, shards, left_out, image, caption, is_key=True, lines=spec.caption_lines)

    def units(self) -> Iterator[Unit]:
        """See `Source.units`; reads nothing."""
        return (Unit(path, 0, 0, None) for path in self.paths)

    def _read(self, unit: Unit, *, peek: bool) -> Iterator[Row]:
        gatherer = _Gatherer(self.files, unit.file, self._pictures, self._suffix, peek=peek)
        with contextlib.closing(gatherer.samples()) as samples:
            for number, sample in enumerate(samples):
                image, problem = self._image(sample)
                try:
                    captions = self._captions(sample)
                except ValueError as error:
                    image, problem, captions = None, str(error), (sample.fields[_JSON],)
                else:
                    problem = problem or self._complaint(unit.file, sample)
                yield Row(unit.file, number, image, problem, captions, sample.key)

    def _image(self, sample: Sample) -> tuple[bytes | None, str]:
        suffixes = [suffix for suffix in sample.fields if suffix in self._pictures]
        key = shown_path(sample.key)
        if not suffixes:
            there = ", ".join(shown_path(suffix) for suffix in sample.fields)
            return None, f"the sample {key!r} has no picture, only {there}"
        if len(suffixes) > 1:
            return None, (
                f"the sample {key!r} has several pictures, {', '.join(suffixes)}: name one of them "
                "with --image-column"
            )
        if suffixes[0] in sample.links:
            return None, f"the picture of sample {key!r} is a link to another file"
        return sample.fields[suffixes[0]] or None, ""

    def _complaint(self, shard: str, sample: Sample) -> str:
        """The problem with the encoding of the caption file; "" if there is none."""
        path = f"{shard}/{sample.key}.{self._suffix}"
        complaint = complaint_about(sample.fields.get(self._suffix) or b"", path)
        return f"{shown_path(path)} {complaint}" if complaint else ""

    def _captions(self, sample: Sample) -> tuple[bytes | None, ...]:
        if self._suffix != _JSON:
            text = sample.fields.get(self._suffix)
            return (None,) if text is None else captions_in(text, self._lines)
        content = sample.fields.get(_JSON)
        if content is None:
            return (None,)
        try:
            decoded = content.decode("utf-8", "surrogateescape")
            values = json.loads(decoded, object_pairs_hook=columns.json_object)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"the sample's JSON cannot be read: {one_line(error)}") from error
        if not isinstance(values, dict):
            raise ValueError("the sample's JSON is no object")
        return columns.captions_of(columns.value_at(values, self.caption_column))


@dataclasses.dataclass
class Sample:
    """Files that have the same name.

    Attributes:
        key: Their path up to the first dot of the last part.
        fields: By the rest of their names, in lower case: the content, `None` if not requested.
        links: Keys of `fields` that are links, whose content is elsewhere.
    """

    key: str
    fields: dict[str, bytes | None] = dataclasses.field(default_factory=dict)
    links: set[str] = dataclasses.field(default_factory=set)

    def has(self, pictures: frozenset[str], captions: frozenset[str]) -> bool:
        """Whether it has one of each."""
        return not (pictures.isdisjoint(self.fields) or captions.isdisjoint(self.fields))


def first_samples(files: Files, tar: str, *, peek: bool, stop_at: str) -> list[Sample] | None:
    """The samples up to the first few that have picture and caption.

    They have no content, except for some JSON, which has the names of columns.

    Args:
        files: The dataset's files.
        tar: The archive.
        peek: Whether to give up if the first few names have neither.
        stop_at: Name of a file that never occurs in such archives.

    Returns:
        The samples; `None` if there is such a file.

    Raises:
        DatasetError: The archive cannot be read.
    """
    samples: dict[str, Sample] = {}
    usable: set[str] = set()
    num_looked_at, last = 0, ""
    with contextlib.closing(members_of(files, tar, peek=peek)) as members:
        for member in members:
            if posixpath.basename(member.path) == stop_at and not member.is_link:
                return None
            is_enough = len(usable if usable or not peek else samples) == _LOOK_AT
            if member.key != last and is_enough:
                break
            last = member.key
            sample = samples.setdefault(member.key, Sample(member.key))
            content = None
            is_looked_at = member.suffix in (_JSON, _CLASS) and num_looked_at < 2 * _LOOK_AT
            if is_looked_at and not member.is_link:
                content, num_looked_at = member.content(), num_looked_at + 1
            sample.fields[member.suffix] = content
            if is_usable(sample):
                usable.add(sample.key)
    return list(samples.values())


def is_usable(sample: Sample) -> bool:
    """Whether a sample has a picture, and a caption or something that could be one."""
    if not any(map(_is_image, sample.fields)):
        return False
    return (
        any(suffix in _TEXTS or suffix.endswith(f".{_TEXT}") for suffix in sample.fields)
        or any(columns.says_something(*item) for item in _json_values(sample).items())
        or _names_class(sample)
    )


def _names_class(sample: Sample) -> bool:
    """Whether its class is a word; the usual number is only a caption if the user says so."""
    name = (sample.fields.get(_CLASS) or b"").strip()
    return bool(name) and not name.isdigit()


def _is_image(suffix: str) -> bool:
    return suffix.rpartition(".")[2] in _PICTURES


def _chosen(
    role: columns.Role, names: Iterable[str], best: tuple[str, ...], shown: str, there: str
) -> str:
    """The only name, or the best of several."""
    found = list(names)
    usual = [name for name in best if name in found]
    return columns.choose(role, usual[:1] or found, shown=shown, there=there)


class _Gatherer:
    """Assembles the samples of an archive, whatever the order of their files.

    A sample is complete once it has picture and caption and another name follows. The first time
    that one of these is missing, all names in the archive are counted, and from then on a sample
    is complete with the last of its files.
    """

    def __init__(
        self, files: Files, tar: str, pictures: frozenset[str], caption: str, *, peek: bool
    ) -> None:
        """Reads nothing yet.

        Args:
            files: The dataset's files.
            tar: The archive.
            pictures: Suffixes of pictures. Only the content of pictures and captions is read.
            caption: Suffix of captions.
            peek: Whether the caller will stop after a few samples. In that case incomplete samples
                wait, and nothing is counted.
        """
        self._files, self._tar, self._peek = files, tar, peek
        self._pictures, self._captions = pictures, frozenset({caption})
        self._waiting: dict[str, list[Sample]] = {}
        self._waiting_bytes = 0
        self._seen: Counter[str] = Counter()
        # Number of files of each key; `None` if not counted.
        self._there: Counter[str] | None = None

    def samples(self) -> Generator[Sample, None, None]:
        """The samples, in the order in which they become complete.

        Raises:
            DatasetError: The archive cannot be read, or too many bytes would have to wait.
        """
        last = ""
        with contextlib.closing(members_of(self._files, self._tar, peek=self._peek)) as members:
            for member in members:
                if member.key != last and last in self._waiting:
                    yield from self._left(last)
                last = member.key
                self._take(member)
        for key in list(self._waiting):
            yield from self._release(key)

    def _take(self, member: Member) -> None:
        key, suffix = member.key, member.suffix
        is_wanted = suffix in self._pictures | self._captions
        is_late = self._seen[key] > 0 and key not in self._waiting
        self._seen[key] += 1
        # The sample was complete without this file.
        if is_late and not is_wanted:
            return
        samples = self._waiting.setdefault(key, [])
        sample = next((sample for sample in samples if suffix not in sample.fields), None)
        # If the suffix occurs again, another sample happens to have the same name.
        if sample is None:
            sample = Sample(key)
            samples.append(sample)
        content = member.content() if is_wanted and not member.is_link else None
        sample.fields[suffix] = content
        self._waiting_bytes += len(content or b"")
        if member.is_link:
            sample.links.add(suffix)

    def _left(self, key: str) -> Iterator[Sample]:
        """The samples that are complete now that another name follows."""
        if self._there is None and not self._peek and not self._is_complete(key):
            self._there = self._count()
        if self._is_complete(key):
            yield from self._release(key)
        if self._waiting_bytes <= _WAITING_BYTES:
            return
        if self._there is None:
            self._there = self._count()
            for waiting in filter(self._is_complete, list(self._waiting)):
                yield from self._release(waiting)
        if self._waiting_bytes > _WAITING_BYTES:
            raise self._too_far_apart()

    def _is_complete(self, key: str) -> bool:
        if self._there is not None:
            return self._seen[key] == self._there[key]
        return all(sample.has(self._pictures, self._captions) for sample in self._waiting[key])

    def _release(self, key: str) -> Iterator[Sample]:
        samples = self._waiting.pop(key)
        contents = (content for sample in samples for content in sample.fields.values())
        self._waiting_bytes -= sum(len(content or b"") for content in contents)
        yield from samples

    def _count(self) -> Counter[str]:
        with contextlib.closing(members_of(self._files, self._tar)) as members:
            return Counter(member.key for member in members)

    def _too_far_apart(self) -> DatasetError:
        key, [sample, *_] = next(iter(self._waiting.items()))
        return DatasetError(
            f"{self._tar} in dataset {self._files.shown!r} has the files of a sample too far "
            f"apart: {len(self._waiting):,} samples, such as {shown_path(key)!r} with only "
            f"{', '.join(map(shown_path, sample.fields))} so far, wait for their other files, "
            f"and more than {_WAITING_BYTES >> 20} MB would have to stay in memory; pack "
            "it in the order of names: tar --sort=name -cf NAME.tar FOLDER (GNU tar)"
        )


def _json_values(sample: Sample) -> dict[str, Any]:
    try:
        values = json.loads(sample.fields.get(_JSON) or b"{}")
    except (ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}
