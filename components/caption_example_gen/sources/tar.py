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
from collections.abc import Generator, Iterator
from itertools import islice
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
)
from components.caption_example_gen.sources.image_table import (
    KERAS_TABLE,
    UNNAMED,
    Record,
    Table,
    find_table,
    is_keras_table,
    read_records,
    shown_path,
)
from storage.errors import one_line

_GZIP_MAGIC = b"\x1f\x8b"
# Samples that are looked at to tell the two kinds and to find the caption.
_LOOK_AT = 16
_TEXT, _JSON = "txt", "json"
_PICTURES = frozenset(suffix.removeprefix(".") for suffix in PICTURE_SUFFIXES)
_REST_BYTES = 1 << 16


def open_tars(
    files: Files, tars: tuple[str, ...], left_out: tuple[str, ...], spec: DatasetSpec
) -> Source:
    """Tells what the archives of a dataset are by the first one.

    Args:
        files: Where the dataset lies.
        tars: Its archives to read, one at least.
        left_out: Those of other splits.
        spec: What the user asked for.

    Raises:
        DatasetError: The first one cannot be read, is of neither kind, or lacks a column.
    """
    samples: list[_Sample] = []
    with contextlib.closing(_samples(files, tars[0], {_TEXT, _JSON}, peek=True)) as found:
        for sample in islice(found, _LOOK_AT):
            if is_keras_table(f"{sample.key}.csv") and "csv" in sample.fields:
                return KerasArchiveSource.open(files, tars, left_out, spec)
            samples.append(sample)
    captioned = any(sample.fields.keys() & {_TEXT, _JSON} for sample in samples)
    # Only an archive without captions up to here is worth a look at all of its names.
    if not captioned and _has_keras_table(files, tars[0]):
        return KerasArchiveSource.open(files, tars, left_out, spec)
    return WebDatasetSource.open(files, tars, left_out, spec, samples)


class WebDatasetSource(Source):
    """Tar shards with the files of a sample next to each other. A unit is a shard.

    `image_column` is the pictures' suffix, or "" for that of any picture; `caption_column` is
    `txt`, or a key of the samples' JSON.
    """

    kind = "webdataset"

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
            DatasetError: There is none, or none has a picture or caption.
        """
        shown = files.shown
        if not samples:
            raise DatasetError(f"{shards[0]} in dataset {shown!r} has no files in it")
        suffixes = sorted({suffix for sample in samples for suffix in sample.fields})
        keys: dict[str, bool] = {}
        for sample in samples:
            for key, value in _json_values(sample).items():
                keys[key] = keys.get(key, False) or columns.is_text(value)
        there = f"the files of the first samples in {shards[0]} are *.{', *.'.join(suffixes)}"
        if keys:
            there += f", the keys of the JSON {', '.join(keys)}"
        image = spec.image_column.lower().removeprefix(".")
        if image and image not in suffixes:
            raise columns.missing("image", spec.image_column, shown=shown, there=there)
        if not image and not _PICTURES.intersection(suffixes):
            raise DatasetError(f"dataset {shown!r} has no image column: {there}")
        caption = spec.caption_column
        if caption.removeprefix(".") == _TEXT and _TEXT in suffixes:
            caption = _TEXT
        elif caption and caption not in keys:
            raise columns.missing("caption", caption, shown=shown, there=there)
        if not caption:
            candidates = [key for key, fits in keys.items() if fits]
            caption = columns.choose(
                "caption",
                [_TEXT] if _TEXT in suffixes else candidates,
                shown=shown,
                there=there,
            )
        return cls(files, shards, left_out, image, caption)

    def units(self) -> Iterator[Unit]:
        """See `Source.units`; reads nothing."""
        return (Unit(path, 0, 0, None) for path in self.paths)

    def read(self, unit: Unit, *, peek: bool = False) -> Iterator[Row]:
        """See `Source.read`."""
        caption = _TEXT if self.caption_column == _TEXT else _JSON
        pictures = {self.image_column} if self.image_column else _PICTURES
        samples = _samples(self.files, unit.file, {caption, *pictures}, peek=peek)
        with contextlib.closing(samples):
            for number, sample in enumerate(samples):
                image, problem = self._image(sample, pictures)
                try:
                    captions = self._captions(sample)
                except ValueError as error:
                    image, problem, captions = None, str(error), (sample.fields[_JSON],)
                yield Row(unit.file, number, image, problem, captions)

    def _image(
        self, sample: _Sample, pictures: set[str] | frozenset[str]
    ) -> tuple[bytes | None, str]:
        suffixes = [suffix for suffix in sample.fields if suffix in pictures]
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
        if self.caption_column == _TEXT:
            text = sample.fields.get(_TEXT)
            return (None if text is None else text.rstrip(b"\r\n"),)
        content = sample.fields.get(_JSON)
        if content is None:
            return (None,)
        try:
            values = json.loads(content.decode("utf-8", "surrogateescape"))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"the sample's JSON cannot be read: {one_line(error)}") from error
        if not isinstance(values, dict):
            raise ValueError("the sample's JSON is no object")
        return columns.captions_of(values.get(self.caption_column))


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
        table = find_table([(f"{tars[0]}/{path}", records)], spec, shown=files.shown, keras=True)
        return cls(files, tars, left_out, table)

    def units(self) -> Iterator[Unit]:
        """See `Source.units`; reads nothing."""
        return (Unit(path, 0, 0, None) for path in self.paths)

    def read(self, unit: Unit, *, peek: bool = False) -> Iterator[Row]:
        """See `Source.read`; goes through the archive twice, as the table may come last."""
        del peek  # Looking through it in parts would take longer than fetching it.
        named: dict[str, list[Record]] = {}
        for record, path, problem in self._records(unit.file):
            if path:
                named.setdefault(path, []).append(record)
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
                    yield self._table.row(record, unit.file, image, problem)

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
        prefix = self._table.prefix(records, folder, pictures)
        for record in records:
            try:
                yield record, self._table.picture(record, folder, pictures, prefix), ""
            except ValueError as error:
                yield record, "", str(error)


@dataclasses.dataclass
class _Sample:
    """Files next to each other that have a name in common.

    Attributes:
        key: Their path up to the first dot of the last part.
        fields: By the rest of their names, in lower case: the content, `None` if not asked for.
        links: Which of them are links, whose content is elsewhere.
    """

    key: str
    fields: dict[str, bytes | None] = dataclasses.field(default_factory=dict)
    links: set[str] = dataclasses.field(default_factory=set)


def _samples(
    files: Files, tar: str, wanted: set[str], *, peek: bool = False
) -> Generator[_Sample, None, None]:
    sample: _Sample | None = None
    with contextlib.closing(_members(files, tar, peek=peek)) as members:
        for member in members:
            folder, name = posixpath.split(member.path)
            stem, _, suffix = name.partition(".")
            key, suffix = posixpath.join(folder, stem), suffix.lower()
            # The same suffix again: the next sample happens to have the same name.
            if sample is not None and (sample.key != key or suffix in sample.fields):
                yield sample
                sample = None
            sample = sample or _Sample(key)
            content = member.content() if suffix in wanted and not member.is_link else None
            sample.fields[suffix] = content
            if member.is_link:
                sample.links.add(suffix)
    if sample is not None:
        yield sample


def _json_values(sample: _Sample) -> dict[str, Any]:
    try:
        values = json.loads(sample.fields.get(_JSON) or b"{}")
    except (ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}


def _has_keras_table(files: Files, tar: str) -> bool:
    with contextlib.closing(_members(files, tar)) as members:
        return any(member.is_table for member in members)


def _table_records(files: Files, tar: str, path: str, content: bytes) -> Iterator[Record]:
    return read_records(io.BytesIO(content), f"{tar}/{path}", files.shown)


@dataclasses.dataclass(frozen=True)
class _Member:
    """A file in an archive; its content can be had until the next one is asked for."""

    path: str
    info: tarfile.TarInfo
    archive: _Archive

    @property
    def is_link(self) -> bool:
        return self.info.islnk() or self.info.issym()

    @property
    def is_table(self) -> bool:
        return is_keras_table(self.path) and not self.is_link

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
