"""Pictures in tar files: WebDataset shards, and the archive of the Keras example.

Archives are read as streams, member by member, so that neither their size nor their compression
matters.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gzip
import io
import json
import posixpath
import tarfile
import zlib
from collections import Counter
from collections.abc import Generator, Iterable, Iterator
from typing import IO, Any, cast

from components.caption_example_gen.sources import columns
from components.caption_example_gen.sources.base import (
    PICTURE_SUFFIXES,
    DatasetError,
    DatasetSpec,
    Files,
    Row,
    Source,
    Unit,
    is_hidden,
    is_picture,
    repeats_of,
    shown_path,
)
from components.caption_example_gen.sources.forms.keras_folder import IMAGE_COLUMN as KERAS_IMAGE
from components.caption_example_gen.sources.forms.keras_folder import TABLE as KERAS_TABLE
from components.caption_example_gen.sources.image_table import UNNAMED, Table, find_table
from components.caption_example_gen.sources.picture_files import captions_in
from components.caption_example_gen.sources.table_files import Record, read_records
from storage.errors import one_line

_GZIP_MAGIC = b"\x1f\x8b"
# Samples that are looked at to tell the two kinds and to find the caption.
_LOOK_AT = 16
_TEXT, _JSON, _CLASS = "txt", "json", "cls"
_PICTURES = frozenset(suffix.removeprefix(".") for suffix in PICTURE_SUFFIXES)
# Suffixes of captions, best first; `x.txt` comes after them.
_TEXTS = (_TEXT, "caption", "prompt", "text")
# What comes before `.txt` or `.png` in compound suffixes, best first.
_IMAGE_NAMES, _CAPTION_NAMES = (
    ("image", "img", "picture", "jpg", "png"),
    ("caption", "text", "prompt"),
)
_REST_BYTES = 1 << 16
# The most that files may hold which wait for others of their sample.
_WAITING_BYTES = 512 << 20


def open_tars(
    files: Files, tars: tuple[str, ...], left_out: tuple[str, ...], spec: DatasetSpec
) -> Source | None:
    """Tells what the archives of a dataset are by the first one.

    Args:
        files: Where the dataset lies.
        tars: Its archives to read, one at least.
        left_out: Those of other splits.
        spec: What the user asked for.

    Returns:
        `None` where it is neither shards of samples nor the Keras example's: a packed folder.

    Raises:
        DatasetError: The first one cannot be read, is empty, or lacks a column.
    """
    samples = _first_samples(files, tars[0], peek=True)
    if samples is not None and not any(map(_is_usable, samples)):
        samples = _first_samples(files, tars[0], peek=False)
    if samples is None:
        return KerasArchiveSource.open(files, tars, left_out, spec)
    if not samples:
        raise DatasetError(f"{tars[0]} in dataset {files.shown!r} has no files in it")
    folders = {part for sample in samples for part in posixpath.dirname(sample.key).split("/")}
    asked = spec.caption_column.lower().removeprefix(".")
    is_usable = any(_is_usable(sample) or asked in sample.fields for sample in samples)
    if not is_usable or any(repeats_of(folder) for folder in folders):
        return None
    return WebDatasetSource.open(files, tars, left_out, spec, samples)


class WebDatasetSource(Source):
    """Tar shards of samples, each of several files with one name. A unit is a shard.

    Its files may come in any order, as `tar` takes them from a folder; what lies side by side, as
    in WebDataset's own shards, is in memory for one sample at a time.

    `image_column` is the pictures' suffix, or "" for that of any picture; `caption_column` is
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
        samples: list[_Sample],
    ) -> WebDatasetSource:
        """Finds the caption by the first samples.

        Args:
            files: Where the dataset lies.
            shards: Its shards to read.
            left_out: Those of other splits.
            spec: What the user asked for.
            samples: The first ones.

        Raises:
            DatasetError: None has the picture or caption asked for, or they cannot be told.
        """
        shown = files.shown
        suffixes = sorted({suffix for sample in samples for suffix in sample.fields})
        keys: dict[str, bool] = {}
        for sample in samples:
            for key, value in _json_values(sample).items():
                keys[key] = keys.get(key, False) or columns.is_text(value)
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
            texts = [name for name in _TEXTS if name in suffixes][:1]
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
                yield Row(unit.file, number, image, problem, captions, sample.key)

    def _image(self, sample: _Sample) -> tuple[bytes | None, str]:
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

    def _captions(self, sample: _Sample) -> tuple[bytes | None, ...]:
        if self._suffix != _JSON:
            text = sample.fields.get(self._suffix)
            return (None,) if text is None else captions_in(text, self._lines)
        content = sample.fields.get(_JSON)
        if content is None:
            return (None,)
        try:
            values = json.loads(content.decode("utf-8", "surrogateescape"))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"the sample's JSON cannot be read: {one_line(error)}") from error
        if not isinstance(values, dict):
            raise ValueError("the sample's JSON is no object")
        return columns.captions_of(columns.value_at(values, self.caption_column))


class KerasArchiveSource(Source):
    """Archives with pictures and a `data.csv`. A unit is an archive; its table is held whole."""

    kind = "keras-archive"

    def __init__(
        self, files: Files, paths: tuple[str, ...], left_out: tuple[str, ...], table: Table
    ) -> None:
        """Use `open`."""
        super().__init__(files, paths, left_out, table.image_column, table.caption_column)
        self._table = table

    @classmethod
    def open(
        cls, files: Files, tars: tuple[str, ...], left_out: tuple[str, ...], spec: DatasetSpec
    ) -> KerasArchiveSource:
        """Finds the columns by the first archive.

        Args:
            files: Where the dataset lies.
            tars: Its archives to read.
            left_out: Those of other splits.
            spec: What the user asked for.

        Raises:
            DatasetError: It cannot be read, or a column cannot be found.
        """
        with contextlib.closing(_members(files, tars[0])) as members:
            path, content = next(
                (member.path, member.content()) for member in members if member.is_table
            )
        records = _table_records(files, tars[0], path, content)
        table = find_table(
            [(f"{tars[0]}/{path}", records)], spec, shown=files.shown, usual=KERAS_IMAGE
        )
        return cls(files, tars, left_out, table)

    def units(self) -> Iterator[Unit]:
        """See `Source.units`; reads nothing."""
        return (Unit(path, 0, 0, None) for path in self.paths)

    def _read(self, unit: Unit, *, peek: bool) -> Iterator[Row]:
        """Goes through the archive twice, as the table may come last."""
        del peek  # Looking through it in parts would take longer than fetching it.
        named: dict[str, list[Record]] = {}
        for record, path, problem in self._records(unit.file):
            if path:
                named.setdefault(path, []).append(record)
            elif not problem:
                yield self._embedded(record, unit.file)
            else:
                yield self._table.row(record, unit.file, None, problem)
        with contextlib.closing(_members(self.files, unit.file)) as members:
            for member in members:
                if not is_picture(member.path):
                    continue
                if member.path not in named:
                    origin = shown_path(f"{unit.file}/{member.path}")
                    yield Row(origin, 0, None, UNNAMED, (None,))
                    continue
                image, problem = (
                    (None, f"{shown_path(member.path)!r} is a link to another file")
                    if member.is_link
                    else (member.content() or None, "")
                )
                for record in named[member.path]:
                    yield self._table.row(record, unit.file, image, problem, member.path)

    def _embedded(self, record: Record, file: str) -> Row:
        try:
            image = columns.decoded(self._table.value(record)) or None
            return self._table.row(record, file, image, "")
        except ValueError as error:
            return self._table.row(record, file, None, str(error))

    def _records(self, tar: str) -> Iterator[tuple[Record, str, str]]:
        """All records of an archive's table; of each its picture's path or a problem."""
        pictures: set[str] = set()
        tables: dict[str, bytes] = {}
        with contextlib.closing(_members(self.files, tar)) as members:
            for member in members:
                if member.is_table:
                    tables[member.path] = member.content()
                elif is_picture(member.path):
                    pictures.add(member.path)
        if len(tables) != 1:
            raise DatasetError(
                f"{tar} in dataset {self.files.shown!r} must have one {KERAS_TABLE} in it, it has "
                f"{', '.join(tables) or 'none'}"
            )
        [(path, content)] = tables.items()
        folder = posixpath.dirname(path)
        records = list(_table_records(self.files, tar, path, content))
        names = columns.Pictures(pictures)
        prefix = self._table.prefix(records, path, names)
        for record in records:
            try:
                yield record, self._table.picture(record, folder, names, prefix), ""
            except ValueError as error:
                yield record, "", str(error)


@dataclasses.dataclass
class _Sample:
    """Files that have a name in common.

    Attributes:
        key: Their path up to the first dot of the last part.
        fields: By the rest of their names, in lower case: the content, `None` if not asked for.
        links: Which of them are links, whose content is elsewhere.
    """

    key: str
    fields: dict[str, bytes | None] = dataclasses.field(default_factory=dict)
    links: set[str] = dataclasses.field(default_factory=set)

    def has(self, pictures: frozenset[str], captions: frozenset[str]) -> bool:
        """Whether it has one of each."""
        return not (pictures.isdisjoint(self.fields) or captions.isdisjoint(self.fields))


def _first_samples(files: Files, tar: str, *, peek: bool) -> list[_Sample] | None:
    """The samples up to the first few that have picture and caption; `None` in Keras's archive.

    Of their content there is only some JSON, which has the names of columns.

    Args:
        files: Where the dataset lies.
        tar: The archive.
        peek: Whether to give up where the first few names have nothing of the kind.
    """
    samples: dict[str, _Sample] = {}
    usable: set[str] = set()
    num_looked_at, last = 0, ""
    with contextlib.closing(_members(files, tar, peek=peek)) as members:
        for member in members:
            if member.is_table:
                return None
            is_enough = len(usable if usable or not peek else samples) == _LOOK_AT
            if member.key != last and is_enough:
                break
            last = member.key
            sample = samples.setdefault(member.key, _Sample(member.key))
            content = None
            is_looked_at = member.suffix in (_JSON, _CLASS) and num_looked_at < 2 * _LOOK_AT
            if is_looked_at and not member.is_link:
                content, num_looked_at = member.content(), num_looked_at + 1
            sample.fields[member.suffix] = content
            if _is_usable(sample):
                usable.add(sample.key)
    return list(samples.values())


def _is_usable(sample: _Sample) -> bool:
    """Whether it has a picture, and a caption or what could be one."""
    if not any(map(_is_image, sample.fields)):
        return False
    return (
        any(suffix in _TEXTS or suffix.endswith(f".{_TEXT}") for suffix in sample.fields)
        or any(map(columns.is_text, _json_values(sample).values()))
        or _names_class(sample)
    )


def _names_class(sample: _Sample) -> bool:
    """Whether its class is a word; the usual number is no caption unless a user says so."""
    name = (sample.fields.get(_CLASS) or b"").strip()
    return bool(name) and not name.isdigit()


def _is_image(suffix: str) -> bool:
    return suffix.rpartition(".")[2] in _PICTURES


def _chosen(
    role: columns.Role, names: Iterable[str], best: tuple[str, ...], shown: str, there: str
) -> str:
    """The only one of some names, or of several the best."""
    found = list(names)
    usual = [name for name in best if name in found]
    return columns.choose(role, usual[:1] or found, shown=shown, there=there)


class _Gatherer:
    """Puts the samples of an archive together, in whatever order their files come.

    A sample is complete once another name follows and it has picture and caption. The first time
    that one of these is missing, all names in the archive are counted, and a sample is complete
    with the last of its files.
    """

    def __init__(
        self, files: Files, tar: str, pictures: frozenset[str], caption: str, *, peek: bool
    ) -> None:
        """Reads nothing yet.

        Args:
            files: Where the dataset lies.
            tar: The archive.
            pictures: Suffixes of pictures. Their content is wanted, and that of captions.
            caption: Suffix of captions.
            peek: Whether the caller will stop after a few samples. What has no picture or caption
                waits for one, then, and nothing is counted.
        """
        self._files, self._tar, self._peek = files, tar, peek
        self._pictures, self._captions = pictures, frozenset({caption})
        self._waiting: dict[str, list[_Sample]] = {}
        self._waiting_bytes = 0
        self._seen: Counter[str] = Counter()
        # Of each key, how many files there are; `None` if not counted.
        self._there: Counter[str] | None = None

    def samples(self) -> Generator[_Sample, None, None]:
        """The samples, in the order in which they are complete.

        Raises:
            DatasetError: The archive cannot be read, or too much would have to wait.
        """
        last = ""
        with contextlib.closing(_members(self._files, self._tar, peek=self._peek)) as members:
            for member in members:
                if member.key != last and last in self._waiting:
                    yield from self._left(last)
                last = member.key
                self._take(member)
        for key in list(self._waiting):
            yield from self._release(key)

    def _take(self, member: _Member) -> None:
        key, suffix = member.key, member.suffix
        is_wanted = suffix in self._pictures | self._captions
        is_late = self._seen[key] > 0 and key not in self._waiting
        self._seen[key] += 1
        # Its sample did without it.
        if is_late and not is_wanted:
            return
        samples = self._waiting.setdefault(key, [])
        sample = next((sample for sample in samples if suffix not in sample.fields), None)
        # The same suffix again: another sample happens to have the same name.
        if sample is None:
            sample = _Sample(key)
            samples.append(sample)
        content = member.content() if is_wanted and not member.is_link else None
        sample.fields[suffix] = content
        self._waiting_bytes += len(content or b"")
        if member.is_link:
            sample.links.add(suffix)

    def _left(self, key: str) -> Iterator[_Sample]:
        """What is complete, now that another name follows."""
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

    def _release(self, key: str) -> Iterator[_Sample]:
        samples = self._waiting.pop(key)
        contents = (content for sample in samples for content in sample.fields.values())
        self._waiting_bytes -= sum(len(content or b"") for content in contents)
        yield from samples

    def _count(self) -> Counter[str]:
        with contextlib.closing(_members(self._files, self._tar)) as members:
            return Counter(member.key for member in members)

    def _too_far_apart(self) -> DatasetError:
        key, [sample, *_] = next(iter(self._waiting.items()))
        return DatasetError(
            f"{self._tar} in dataset {self._files.shown!r} has the files of a sample too far from "
            f"each other: {len(self._waiting):,} samples, such as {shown_path(key)!r} of which "
            f"only {', '.join(map(shown_path, sample.fields))} has come, wait for the rest of "
            f"theirs, and more than {_WAITING_BYTES >> 20} MB would have to stay in memory; pack "
            "it in the order of names: tar --sort=name -cf NAME.tar FOLDER (GNU tar)"
        )


def _json_values(sample: _Sample) -> dict[str, Any]:
    try:
        values = json.loads(sample.fields.get(_JSON) or b"{}")
    except (ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}


def _table_records(files: Files, tar: str, path: str, content: bytes) -> Iterator[Record]:
    return read_records(io.BytesIO(content), f"{tar}/{path}", files.shown)


@dataclasses.dataclass(frozen=True)
class _Member:
    """A file in an archive; its content can be had until the next one is asked for."""

    path: str
    info: tarfile.TarInfo
    archive: _Archive

    @property
    def key(self) -> str:
        """The path up to the first dot of its last part."""
        folder, name = posixpath.split(self.path)
        return posixpath.join(folder, name.partition(".")[0])

    @property
    def suffix(self) -> str:
        """What follows that dot, in lower case."""
        return posixpath.basename(self.path).partition(".")[2].lower()

    @property
    def is_link(self) -> bool:
        return self.info.islnk() or self.info.issym()

    @property
    def is_table(self) -> bool:
        return posixpath.basename(self.path) == KERAS_TABLE and not self.is_link

    def content(self) -> bytes:
        return self.archive.content(self.info)


def _members(files: Files, tar: str, *, peek: bool = False) -> Generator[_Member, None, None]:
    """The files in an archive that are not hidden; see `_Archive` for what it raises."""
    with files.peek(tar) if peek else files.open(tar) as f:
        archive = _Archive(files, tar, f)
        while (info := archive.next()) is not None:
            path = posixpath.normpath(info.name)
            if (info.isreg() or info.islnk() or info.issym()) and not is_hidden(path):
                yield _Member(path, info, archive)


class _Archive:
    """A tar file that is read once from front to back; raises `DatasetError` if it is damaged."""

    def __init__(self, files: Files, path: str, f: IO[bytes]) -> None:
        self._where = f"{path} in dataset {files.shown!r}"
        self._count = 0
        self._last = ""
        with self._checked():
            magic = f.read(len(_GZIP_MAGIC))
            f.seek(0)
            # Unlike tarfile, gzip notices a missing end and a wrong checksum.
            self._stream = cast(IO[bytes], gzip.GzipFile(fileobj=f)) if magic == _GZIP_MAGIC else f
            # Its list of members is no part of its documented interface.
            self._tar: Any = tarfile.open(  # noqa: SIM115
                fileobj=self._stream,
                mode="r|",
                tarinfo=_TarInfo,
                encoding="utf-8",
                errors="surrogateescape",
            )

    def next(self) -> tarfile.TarInfo | None:
        """The next member; `None` after the last."""
        # tarfile has looked for the first one already, and cannot look again.
        is_empty = self._count == 0 and not self._tar.members
        with self._checked():
            info: tarfile.TarInfo | None = None if is_empty else self._tar.next()
            if info is None:
                self._check_rest()
            else:
                self._count += 1
                self._last = info.name
        # It keeps all members otherwise.
        self._tar.members.clear()
        return info

    def content(self, info: tarfile.TarInfo) -> bytes:
        """The member's content."""
        with self._checked():
            f = self._tar.extractfile(info)
            return b"" if f is None else f.read()

    def _check_rest(self) -> None:
        """Reads what follows the end, which also makes gzip compare its checksum."""
        rest = cast(IO[bytes], self._tar.fileobj)
        while chunk := rest.read(_REST_BYTES):
            if chunk.strip(b"\0"):
                raise tarfile.ReadError("more follows after its end: are these several archives?")

    @contextlib.contextmanager
    def _checked(self) -> Iterator[None]:
        try:
            yield
        except (tarfile.TarError, zlib.error, EOFError, OSError) as error:
            how_far = (
                f" on after {self._count} files, the last {shown_path(self._last)!r}"
                if self._count
                else ""
            )
            raise DatasetError(
                f"{self._where} cannot be read{how_far}: {one_line(error)}"
            ) from error


class _TarInfo(tarfile.TarInfo):
    """A member; where there should be one and is not, tarfile would take that for the end."""

    @classmethod
    def fromtarfile(cls, tarfile_: tarfile.TarFile) -> _TarInfo:  # type: ignore[override]
        try:
            return cast(_TarInfo, super().fromtarfile(tarfile_))
        except tarfile.HeaderError as error:
            # Two blocks of zeros, as it should be.
            if type(error).__name__ == "EOFHeaderError":
                raise
            raise tarfile.ReadError(f"{one_line(error)}: it is cut off or damaged") from error
