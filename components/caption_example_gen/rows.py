"""Reads the rows of a unit and checks them.

This module imports neither Beam nor TensorFlow, so that a process that only checks rows starts
fast.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import hashlib
import json
import os
import pickle
import re
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, cast

import fsspec
import numpy as np

from components.caption_example_gen.captions import CaptionTemplate
from components.caption_example_gen.example_bytes import example_bytes
from components.caption_example_gen.sources import DatasetSpec, Row, Unit, open_dataset, split_of
from components.caption_example_gen.sources.base import Reader
from components.caption_example_gen.word_captions import WordCaptions
from storage.images import ImageError, ImageFacts, inspect_image
from storage.plain_text import plain
from storage.row_index import IndexedRow
from storage.withdrawn import WithdrawnList
from trainer.text.tokenizer import MAX_LENGTH, token_count

TRUNCATED, LEFT_RIGHT, ANIMATED = "captions_truncated", "captions_left_right", "images_animated"
"""Notes on a candidate."""
REPLACED = "captions_replaced"
"""Another note: the model learns a new word, and the caption lacked it."""

NEAR_DUPLICATES = KEEP_TOGETHER, KEEP_ONE, IGNORE = "keep_together", "keep_one", "ignore"
"""How pictures that are nearly the same are treated: all go to one split, only one is kept, or
they are not looked for."""

# These words are wrong for the mirror image of a picture.
_LEFT_RIGHT_WORDS = frozenset({"left", "right", "leftmost", "rightmost", "leftward", "rightward"})
_WORD = re.compile(r"\w+")
# A key beside the shards, whose names have a slash in them.
_SKETCHES = "sketches"

NOT_LISTED = 2**31 - 1
"""Stands for no entry of the list of withdrawn rows."""


@dataclasses.dataclass(frozen=True)
class CheckSettings:
    """Settings for checking rows.

    Attributes:
        spec: The dataset.
        eval_fraction: Fraction of the pictures that are held out.
        seed: Decides which pictures are held out.
        max_pixels: Larger pictures are rejected.
        max_aspect_ratio: Pictures whose sides differ by a larger factor are rejected.
        num_shards: Number of shards by split.
        spill_folder: Existing folder for files that are read again and then deleted.
        spill_bytes: A spill file ends after about this many bytes of examples.
        near_duplicates: One of `NEAR_DUPLICATES`; unless they are ignored, sketches are made.
        caption_template: Template for captions; see `CaptionTemplate.parse`.
        word_captions: How captions are treated if the model learns a new word; `None` if it does
            not.
        withdrawn: List of the rows to take out; `None` for none. It needs sketches, too.
        reader: Reads the rows; `None` to open the dataset for that.
    """

    spec: DatasetSpec
    eval_fraction: float
    seed: int
    max_pixels: int
    max_aspect_ratio: float
    num_shards: Mapping[str, int]
    spill_folder: str
    spill_bytes: int
    near_duplicates: str = IGNORE
    caption_template: str = ""
    word_captions: WordCaptions | None = None
    withdrawn: WithdrawnList | None = None
    reader: Reader | None = None

    @property
    def compares(self) -> bool:
        """Whether pictures are compared with one another."""
        return self.near_duplicates != IGNORE or self.withdrawn is not None


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A row that passed every check of its own; it may still be a duplicate."""

    id: str
    picture: str
    file: str
    row: int
    caption: str
    num_tokens: int
    notes: tuple[str, ...]
    example: bytes


@dataclasses.dataclass(frozen=True)
class Reject:
    """A line of the rejects file."""

    reason: str
    detail: str
    origin: str
    row: int
    caption: str | None

    def line(self) -> bytes:
        """As JSON, in UTF-8, with a line break."""
        return (json.dumps(dataclasses.asdict(self), ensure_ascii=False) + "\n").encode()


class Sketched(NamedTuple):
    """A picture with its sketch, which shows whether it is nearly the same as another.

    Attributes:
        picture: SHA-256 (hex) of its file.
        file: The file of the first row that has it.
        row: The number of that row.
        width: In pixels.
        height: In pixels.
        sketch: See `ImageFacts`.
        entry: The number of the entry that withdraws the picture; `NOT_LISTED` if none does.
    """

    picture: str
    file: str
    row: int
    width: int
    height: int
    sketch: bytes = b""
    entry: int = NOT_LISTED

    def first_of(self, other: Sketched) -> Sketched:
        """This row, with the entry that lists it or `other`, a later row of the same picture."""
        listed = min(self.entry, other.entry)
        return self if listed == self.entry else self._replace(entry=listed)


class Sketches(NamedTuple):
    """A column for each field of `Sketched`: columns of many pictures are faster to write and read.

    Attributes:
        pictures: All hashes, joined.
        files: One file for each picture.
        rows: int64 [N].
        sizes: int32 [N, 2], width and height.
        sketches: All sketches, joined.
        entries: int32 [N].
    """

    pictures: bytes
    files: list[str]
    rows: np.ndarray
    sizes: np.ndarray
    sketches: bytes
    entries: np.ndarray

    @classmethod
    def of(cls, sketched: Sequence[Sketched]) -> Sketches:
        """Combines one or more pictures."""
        pictures, files, rows, widths, heights, sketches, entries = zip(*sketched, strict=True)
        return cls(
            "".join(pictures).encode(),
            list(files),
            np.array(rows, np.int64),
            np.array([widths, heights], np.int32).T,
            b"".join(sketches),
            np.array(entries, np.int32),
        )


class Stretch(NamedTuple):
    """A part of a spill file: the pickled candidates of one shard, sketches, or a unit."""

    path: str
    offset: int
    length: int

    def read(self) -> list[Candidate]:
        """The candidates, in the order in which they were checked."""
        return cast(list[Candidate], self._read())

    def read_sketches(self) -> Sketches:
        """The sketches of the pictures in this file, one for each picture."""
        return cast(Sketches, self._read())

    def read_unit(self) -> Unit:
        """A unit with the names of its files."""
        return cast(Unit, self._read())

    def _read(self) -> object:
        with fsspec.open(self.path, "rb") as f:
            f.seek(self.offset)
            return pickle.loads(f.read(self.length))


@dataclasses.dataclass(frozen=True)
class Batch:
    """The outcome of checking a few rows.

    Attributes:
        spilled: By shard (see `shard_key`), the location of its candidates.
        rejects: The rejected rows.
        num_rows: The number of rows checked.
        sketches: Location of the sketches of the candidates' pictures; `None` if there are none.
    """

    spilled: Mapping[str, Stretch]
    rejects: Sequence[Reject]
    num_rows: int
    sketches: Stretch | None = None


@dataclasses.dataclass(frozen=True)
class _Problem:
    """Why a picture or a caption cannot be used."""

    reason: str
    detail: str


@dataclasses.dataclass(frozen=True)
class _Picture:
    """A picture that passed every check, and its share of an example."""

    id: str
    encoded: bytes
    facts: ImageFacts
    split: str


@dataclasses.dataclass(frozen=True)
class Unchecked:
    """A picture that this project made, and its caption, in the form of a dataset's rows.

    Attributes:
        indexed: The entry for the index of rows.
        example: The serialized tf.Example.
        left_right: Whether the caption says left or right.
    """

    indexed: IndexedRow
    example: bytes
    left_right: bool


def example_of(encoded: bytes, caption: str) -> Unchecked:
    """The row of a picture that is known to be good; raises `ImageError` if it is not."""
    facts = inspect_image(encoded)
    picture = _Picture(hashlib.sha256(encoded).hexdigest(), encoded, facts, split="")
    example_id = _example_id(picture, caption)
    words = _words(caption)
    return Unchecked(
        IndexedRow(example_id, picture.id, caption),
        _serialized(example_id, picture, caption, token_count(caption), words, None),
        _says_left_or_right(words),
    )


def shard_key(split: str, index: int) -> str:
    """Name of an output shard."""
    return f"{split}/{index}"


def shard_index(example_id: str, num_shards: int) -> int:
    """The output shard of an example, a range of ids: their order is as good as a shuffle."""
    return int(example_id[:8], 16) * num_shards >> 32


def spill(parts: Mapping[str, Any], folder: str) -> dict[str, Stretch]:
    """Pickles values into one new file of a folder; returns the location of each."""
    if not parts:
        return {}
    # Every attempt gets a new name: if a bundle is tried twice, only one file is referred to.
    path = os.path.join(folder, uuid.uuid4().hex)
    spilled: dict[str, Stretch] = {}
    with fsspec.open(path, "wb") as f:
        for name, value in parts.items():
            offset = f.tell()
            pickle.dump(value, f, pickle.HIGHEST_PROTOCOL)
            spilled[name] = Stretch(path, offset, f.tell() - offset)
    return spilled


def spill_units(units: Iterable[Unit], folder: str) -> Iterator[Unit | Stretch]:
    """Writes the units that have names into one new file, and gives their locations instead."""
    path = os.path.join(folder, uuid.uuid4().hex)
    with contextlib.ExitStack() as stack:
        f: Any = None
        for unit in units:
            if not unit.names:
                yield unit
                continue
            f = f or stack.enter_context(fsspec.open(path, "wb"))
            offset = f.tell()
            pickle.dump(unit, f, pickle.HIGHEST_PROTOCOL)
            yield Stretch(path, offset, f.tell() - offset)


class RowChecker:
    """Checks the rows of a dataset."""

    def __init__(self, settings: CheckSettings) -> None:
        """Opens the dataset, unless the settings have a reader.

        Raises:
            DatasetError: See `open_dataset`.
        """
        self._settings = settings
        self._reader = settings.reader or open_dataset(settings.spec)
        self._template = CaptionTemplate.parse(settings.caption_template)

    def check(self, unit: Unit | Stretch) -> Iterator[Batch]:
        """Checks the rows of a unit, each one once, in order.

        Args:
            unit: The unit, or its location.

        Raises:
            DatasetError: A file cannot be read to its end.
        """
        unit = unit.read_unit() if isinstance(unit, Stretch) else unit
        candidates: dict[str, list[Candidate]] = collections.defaultdict(list)
        sketches: dict[str, Sketched] = {}
        rejects: list[Reject] = []
        size = num_rows = 0
        for row in self._reader.read(unit):
            num_rows += 1
            for outcome in self._check(row):
                if isinstance(outcome, Reject):
                    rejects.append(outcome)
                    continue
                shard, candidate, sketched = outcome
                candidates[shard].append(candidate)
                size += len(candidate.example)
                if sketched.sketch:
                    former = sketches.get(sketched.picture, sketched)
                    sketches[sketched.picture] = former.first_of(sketched)
            if size > self._settings.spill_bytes:
                yield self._batch(candidates, sketches, rejects, num_rows)
                candidates.clear()
                sketches.clear()
                rejects, size, num_rows = [], 0, 0
        yield self._batch(candidates, sketches, rejects, num_rows)

    def _batch(
        self,
        candidates: Mapping[str, list[Candidate]],
        sketches: Mapping[str, Sketched],
        rejects: Sequence[Reject],
        num_rows: int,
    ) -> Batch:
        """Spills candidates and sketches."""
        parts: dict[str, Any] = dict(candidates)
        if sketches:
            parts[_SKETCHES] = Sketches.of(list(sketches.values()))
        spilled = spill(parts, self._settings.spill_folder)
        of_sketches = spilled.pop(_SKETCHES, None)
        return Batch(spilled, rejects, num_rows, of_sketches)

    def _check(self, row: Row) -> Iterator[Reject | tuple[str, Candidate, Sketched]]:
        """Checks a row; gives one outcome for each of its captions."""
        picture, words = self._checked_picture(row), self._settings.word_captions
        for raw in row.captions or (None,):
            caption = _checked_caption(raw, row.image_problem)
            if isinstance(caption, _Problem):
                yield _rejected(row, raw, caption)
            elif isinstance(picture, _Problem):
                yield _rejected(row, raw, picture)
            else:
                filled = self._template.fill(caption)
                with_word = words.caption(filled) if words else filled
                if with_word is None:
                    assert words is not None
                    detail = (
                        f"the caption does not have the word {words.word.token}: write it there, "
                        "or into dataset.caption_template, or set word.templates"
                    )
                    yield _rejected(row, raw, _Problem("caption_without_word", detail))
                    continue
                yield self._candidate(row, picture, with_word, caption, filled)

    def _checked_picture(self, row: Row) -> _Picture | _Problem:
        if row.image is None:
            return _Problem("image_missing", row.image_problem or "the row has no picture")
        try:
            facts = inspect_image(
                row.image,
                self._settings.max_pixels,
                with_sketch=self._settings.compares,
            )
        except ImageError as error:
            return _Problem(f"image_{error.reason}", str(error))
        ratio = facts.width / facts.height
        if max(ratio, 1 / ratio) > self._settings.max_aspect_ratio:
            return _Problem(
                "image_extreme_aspect_ratio",
                f"the picture is {facts.width} x {facts.height} pixels, more than "
                f"{self._settings.max_aspect_ratio:g} times as long as wide",
            )
        image_id = hashlib.sha256(row.image).hexdigest()
        split = split_of(image_id, self._settings.eval_fraction, self._settings.seed)
        return _Picture(id=image_id, encoded=row.image, facts=facts, split=split)

    def _candidate(
        self, row: Row, picture: _Picture, caption: str, own: str, filled: str
    ) -> tuple[str, Candidate, Sketched]:
        """A good row, with its final caption, the dataset's `own` and the `filled` template."""
        example_id = _example_id(picture, caption)
        withdrawn, entry = self._settings.withdrawn, NOT_LISTED
        if withdrawn is not None:
            found = withdrawn.find(picture.id, example_id, (own, filled, caption))
            entry = NOT_LISTED if found is None else found
        index = shard_index(example_id, self._settings.num_shards[picture.split])
        words = _words(caption)
        of_word = self._settings.word_captions
        num_tokens = token_count(caption, of_word.word if of_word else None)
        noted = {
            TRUNCATED: num_tokens > MAX_LENGTH,
            LEFT_RIGHT: _says_left_or_right(words),
            ANIMATED: picture.facts.animated,
            REPLACED: caption != filled,
        }
        facts = picture.facts
        sketched = Sketched(
            picture.id, row.file, row.number, facts.width, facts.height, facts.sketch, entry
        )
        candidate = Candidate(
            id=example_id,
            picture=picture.id,
            file=row.file,
            row=row.number,
            caption=caption,
            num_tokens=num_tokens,
            notes=tuple(name for name, holds in noted.items() if holds),
            example=_serialized(example_id, picture, caption, num_tokens, words, row.repeats),
        )
        return shard_key(picture.split, index), candidate, sketched


def _example_id(picture: _Picture, caption: str) -> str:
    return hashlib.sha256(f"{picture.id}{caption}".encode()).hexdigest()


def _words(caption: str) -> Sequence[str]:
    return _WORD.findall(caption.lower())


def _says_left_or_right(words: Sequence[str]) -> bool:
    return not _LEFT_RIGHT_WORDS.isdisjoint(words)


def _rejected(row: Row, caption: bytes | None, problem: _Problem) -> Reject:
    return Reject(
        reason=problem.reason,
        detail=problem.detail,
        origin=row.file,
        row=row.number,
        caption=None if caption is None else caption.decode("utf-8", "replace"),
    )


def _checked_caption(caption: bytes | None, image_problem: str) -> str | _Problem:
    if caption is None:
        return _Problem("caption_missing", image_problem or "the row has no caption")
    try:
        text = caption.decode("utf-8")
    except UnicodeDecodeError as error:
        detail = f"the caption is no UTF-8 text: {error}; encode it as UTF-8"
        return _Problem("caption_not_utf8", image_problem or detail)
    text = plain(text)
    if not text.strip():
        return _Problem("caption_blank", "the caption is empty or white space")
    return text


def _serialized(
    example_id: str,
    picture: _Picture,
    caption: str,
    num_tokens: int,
    words: Sequence[str],
    repeats: int | None,
) -> bytes:
    facts = picture.facts
    return example_bytes(
        {
            # Absent if the dataset does not give repeats.
            **({} if repeats is None else {"repeats": repeats}),
            "id": [example_id.encode()],
            "image/id": [picture.id.encode()],
            "image/encoded": [picture.encoded],
            "image/format": [facts.format.encode()],
            "image/height": facts.height,
            "image/width": facts.width,
            "image/aspect_ratio": facts.width / facts.height,
            "image/brightness": facts.brightness,
            "caption": [caption.encode()],
            "caption/num_tokens": num_tokens,
            "caption/words": [word.encode() for word in words],
        }
    )
