"""Where a picture ended up: rows of all recorded datasets, runs and releases.

Rows are first found by hash or caption, and then every row whose picture is nearly the same, by the
rule that ingestion uses for near duplicates. This reads the pictures themselves from the examples,
each picture once, however many datasets have it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, BinaryIO

import numpy as np

from pipeline.lineage import files, history
from pipeline.lineage.model import Artifact, ArtifactState, LineageError, Run
from pipeline.lineage.records import DAMAGED, read_records
from pipeline.lineage.store import Store
from storage import filesystem, images, row_index
from storage.images import SKETCH_SIDE, ImageError
from storage.models_config import named_versions
from storage.near_duplicates import resembling
from storage.plain_text import plain
from storage.withdrawn import CAPTION, PICTURE, ROW, Entry, WithdrawnList

TRAINED_ON, HELD_OUT = "train", "eval"
"""Splits."""

_MODEL = "Model"
_TEMPLATE, _FIELD = "caption_template", "{caption}"
# A dataset that was never finished does not count.
_RECORDED = (ArtifactState.LIVE, ArtifactState.DELETED, ArtifactState.MARKED_FOR_DELETION)
_RELEASES, _JSON = "releases", ".json"


@dataclasses.dataclass(frozen=True)
class AffectedRow:
    """A picture with one of its captions, in all datasets that have it.

    Attributes:
        id: SHA-256 (hex) of picture and caption.
        picture: SHA-256 (hex) of the picture's file.
        caption: The caption.
        entry: Number of the entry that names the row, or the picture that it resembles.
        near: SHA-256 (hex) of the named picture that the row's picture is nearly the same as; "" if
            the row itself is named.
        trained_on: Artifact ids of the datasets that have it in the training split.
        held_out: Artifact ids of the datasets in which it is held out.
    """

    id: str
    picture: str
    caption: str
    entry: int
    near: str
    trained_on: tuple[int, ...]
    held_out: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Rows:
    """The rows that were found in the datasets.

    Attributes:
        rows: The rows, named rows first.
        datasets: How many datasets were searched.
        unread: For each other dataset, by artifact id: why its rows are unknown.
        unseen: By artifact id: why pictures of a dataset cannot be compared. Its rows are found
            only by hash or caption.
    """

    rows: tuple[AffectedRow, ...]
    datasets: int
    unread: Mapping[int, str]
    unseen: Mapping[int, str]


@dataclasses.dataclass(frozen=True)
class Knowing:
    """What a model has learned from the rows that were found.

    Attributes:
        trained_on: Entries with a row that the model itself was trained on.
        before: Entries with a row that only a model it started from was trained on.
        held_out: Entries with held-out rows, which the model was evaluated on.
        unread: Ids of its datasets whose rows are unknown.
    """

    trained_on: frozenset[int]
    before: frozenset[int]
    held_out: frozenset[int]
    unread: tuple[int, ...]

    @property
    def known(self) -> frozenset[int]:
        """Entries that it has learned from, itself or through an earlier model."""
        return self.trained_on | self.before

    @property
    def how(self) -> str:
        """How the model knows the rows, in words; "" if there is nothing to say."""
        if self.trained_on:
            return "trained on it"
        if self.before:
            return "started from a model that was"
        if self.unread:
            return "unknown"
        return "held out" if self.held_out else ""


@dataclasses.dataclass(frozen=True)
class AffectedModel:
    """A model, and the run that made it.

    Attributes:
        artifact: The model.
        run: The run; None if the store does not say.
        how: See `Knowing`.
    """

    artifact: Artifact
    run: Run | None
    how: str


@dataclasses.dataclass(frozen=True)
class AffectedRelease:
    """A release.

    Attributes:
        version: Its version.
        artifact: The pushed model.
        run: The run that pushed it; None if the store does not say.
        how: See `Knowing`.
        served: Whether its serving directory serves it now; None if unknown.
    """

    version: str
    artifact: Artifact
    run: Run | None
    how: str
    served: bool | None


@dataclasses.dataclass(frozen=True)
class Affected:
    """Where a picture ended up.

    Attributes:
        asked_for: What was looked for, in words.
        found: The rows.
        models: The models that were trained or evaluated on the rows, and their runs.
        releases: The releases of these models.
        served: The version that is served now, by serving directory; None if unknown.
    """

    asked_for: str
    found: Rows
    models: tuple[AffectedModel, ...]
    releases: tuple[AffectedRelease, ...]
    served: Mapping[str, str | None]

    @property
    def lines(self) -> tuple[str, ...]:
        """The lines that `dataset.withdrawn` needs, without the reasons."""
        return tuple(dict.fromkeys(f"{PICTURE}:{row.picture}" for row in self.found.rows))


def affected(
    store: Store,
    roots: Sequence[str],
    *,
    picture: tuple[str, bytes] | None = None,
    sha256: str = "",
    caption: str = "",
) -> Affected:
    """Finds where a picture ended up. Give one of `picture`, `sha256` and `caption`.

    Args:
        store: Where to look.
        roots: Folders whose files may be read.
        picture: Name and contents of a picture file. No dataset needs to have this file: pictures
            that are nearly the same are found.
        sha256: Hash (hex) of a picture file or of a row.
        caption: A caption.

    Raises:
        LineageError: No dataset has it, or the given value is not a picture or a hash.
    """
    shown: dict[str, bytes] = {}
    if picture is not None:
        name, contents = picture
        digest = hashlib.sha256(contents).hexdigest()
        shown[digest] = contents
        asked_for = f"the picture {name} (SHA-256 {digest[:12]}...)"
        entries = [Entry(PICTURE, digest, "", 1)]
    elif sha256:
        digest = sha256.strip().lower().removeprefix(f"{PICTURE}:")
        if not history.DIGEST.fullmatch(digest):
            raise LineageError(
                f"{sha256!r} is not a SHA-256: give its 64 digits, as `sha256sum` or `known` print "
                "them"
            )
        asked_for = f"a picture or a row with SHA-256 {digest[:12]}..."
        entries = [Entry(PICTURE, digest, "", 1), Entry(ROW, digest, "", 1)]
    else:
        asked_for = f"the caption {caption!r}"
        entries = [Entry(CAPTION, plain(caption).strip(), "", 1)]
    found = find_rows(store, WithdrawnList(tuple(entries)), roots, shown)
    if not found.rows:
        untold = f"; the rows of {_numbers(found.unread)} are unknown" if found.unread else ""
        unseen = (
            f"; near duplicates cannot be found in {_numbers(found.unseen)}" if found.unseen else ""
        )
        raise LineageError(
            f"none of the {found.datasets} datasets that are recorded in {store.name} and still "
            f"available has {asked_for}, or nearly the same{untold}{unseen}"
        )
    return Affected(
        asked_for,
        found,
        tuple(_models(store, found)),
        *_releases(store, found, roots),
    )


def find_rows(
    store: Store,
    listed: WithdrawnList,
    roots: Sequence[str],
    shown: Mapping[str, bytes] | None = None,
) -> Rows:
    """Finds the rows of all recorded datasets that a list names, or that resemble named pictures.

    Args:
        store: Where to look.
        listed: What to look for.
        roots: Folders whose files may be read.
        shown: Picture files by SHA-256 (hex). No dataset needs to have them.

    Raises:
        LineageError: One of `shown` is not a picture.
    """
    with tempfile.TemporaryFile() as file:
        return _found(store, listed, roots, shown or {}, _Sketches(file))


def _found(
    store: Store,
    listed: WithdrawnList,
    roots: Sequence[str],
    shown: Mapping[str, bytes],
    sketches: _Sketches,
) -> Rows:
    named: dict[str, int] = {}
    for digest, contents in shown.items():
        try:
            sketches.add(digest, contents)
        except ImageError as error:
            raise LineageError(f"the picture cannot be read: {error}") from None
        named[digest] = _entry(listed, digest)
    unread: dict[int, str] = {}
    unseen: dict[int, str] = {}
    read: list[tuple[Artifact, list[tuple[str, row_index.IndexedRow]]]] = []
    for dataset in history.datasets(store):
        if dataset.state not in _RECORDED:
            continue
        try:
            rows = list(_rows(history.index_of(dataset, roots)))
        except (LineageError, OSError, ValueError, TypeError) as error:
            unread[dataset.id] = str(error)
            continue
        read.append((dataset, rows))
        for _, row in rows:
            captions = _captions(row.caption, dataset)
            if (entry := listed.find(row.picture, row.id, captions)) is not None:
                named[row.picture] = min(entry, named.get(row.picture, entry))
    if named:
        for dataset, rows in read:
            missing = {row.picture for _, row in rows} - sketches.pictures
            if missing and (why := sketches.read(dataset, roots, missing)):
                unseen[dataset.id] = why
    near = sketches.resembling(named)
    found: dict[str, AffectedRow] = {}
    for dataset, rows in read:
        for split, row in rows:
            first = near.get(row.picture)
            entry = named.get(row.picture, None if first is None else named[first])
            if entry is None:
                continue
            near_to = "" if row.picture in named else first or ""
            former = found.get(row.id) or AffectedRow(
                row.id, row.picture, row.caption, entry, near_to, (), ()
            )
            found[row.id] = (
                dataclasses.replace(former, trained_on=(*former.trained_on, dataset.id))
                if split == TRAINED_ON
                else dataclasses.replace(former, held_out=(*former.held_out, dataset.id))
            )
    ordered = sorted(found.values(), key=lambda row: (row.entry, row.near, row.id))
    return Rows(tuple(ordered), len(read), unread, unseen)


def knowing(store: Store, artifact: Artifact, found: Rows) -> Knowing:
    """What a model or a release has learned from rows.

    Args:
        store: Where to look.
        artifact: The model or the pushed model.
        found: The rows.
    """
    entries: dict[str, set[int]] = {name: set() for name in ("own", "before", "held_out")}
    unread = []
    for number, dataset in enumerate(history.all_examples_of(store, artifact)):
        if dataset.id in found.unread:
            unread.append(dataset.id)
        for row in found.rows:
            if dataset.id in row.trained_on:
                entries["before" if number else "own"].add(row.entry)
            if dataset.id in row.held_out and not number:
                entries["held_out"].add(row.entry)
    own, before, held_out = (frozenset(several) for several in entries.values())
    return Knowing(own, before - own, held_out, tuple(unread))


def _models(store: Store, found: Rows) -> Iterator[AffectedModel]:
    for model in store.artifacts(store.artifacts_of_type(_MODEL)):
        maker = store.graph.maker(model.id)
        # An importer's model was made in another run, or elsewhere.
        if maker is None or not store.graph.inputs(maker):
            continue
        if how := knowing(store, model, found).how:
            run_id = store.run_of.get(maker)
            yield AffectedModel(model, store.runs([run_id])[0] if run_id is not None else None, how)


def _releases(
    store: Store, found: Rows, roots: Sequence[str]
) -> tuple[tuple[AffectedRelease, ...], dict[str, str | None]]:
    try:
        pushed = history.released(store)
    except LineageError:
        return (), {}
    runs = history.makers(store)
    served: dict[str, str | None] = {}
    releases = []
    for version, artifact in pushed.items():
        place = str(artifact.properties.get("pushed_destination", ""))
        if place not in served:
            served[place] = _served(place, roots)
        if how := knowing(store, artifact, found).how:
            now = served[place]
            is_served = None if now is None else now == version
            releases.append(AffectedRelease(version, artifact, runs.get(version), how, is_served))
    return tuple(releases), served


def _served(serving_dir: str, roots: Sequence[str]) -> str | None:
    """The version that is served now, as in `serving.releases.current_version`."""
    try:
        if filesystem.is_remote(serving_dir):
            files.check_remote(serving_dir, roots)
        elif not files.is_inside(serving_dir, roots):
            return None
        try:
            named = named_versions(serving_dir)
        except FileNotFoundError:
            listed = filesystem.list_folder(filesystem.join(serving_dir, _RELEASES))
            numbers = (name.removesuffix(_JSON) for name in listed if name.endswith(_JSON))
            named = [int(number) for number in numbers if number.isdecimal()]
    except (LineageError, OSError):
        return None
    return str(max(named)) if named else None


def _rows(folder: str) -> Iterator[tuple[str, row_index.IndexedRow]]:
    for split in (TRAINED_ON, HELD_OUT):
        for row in row_index.read_rows(folder, split):
            yield split, row


def _captions(caption: str, dataset: Artifact) -> Iterator[str]:
    """A row's caption, with and without the dataset's caption template."""
    yield caption
    template = dataset.properties.get(_TEMPLATE)
    if isinstance(template, str) and _FIELD in template:
        before, after = (
            part.replace("{{", "{").replace("}}", "}") for part in template.split(_FIELD, 1)
        )
        if caption.startswith(before) and caption.endswith(after):
            yield caption[len(before) : len(caption) - len(after)]


def _entry(listed: WithdrawnList, digest: str) -> int:
    found = listed.find(digest, digest, ())
    assert found is not None, "what is shown is on the list"
    return found


def _numbers(datasets: Iterable[int]) -> str:
    return " and ".join(f"artifact {number}" for number in datasets)


class _Sketches:
    """Sketches of pictures, kept in a file because there may be many."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._positions: dict[str, int] = {}
        self._aspects: list[float] = []

    @property
    def pictures(self) -> set[str]:
        """Hashes of the pictures that have a sketch."""
        return set(self._positions)

    def add(self, digest: str, contents: bytes) -> None:
        """Adds the sketch of a picture; raises an `ImageError` if it cannot be read."""
        facts = images.inspect_image(contents, with_sketch=True)
        self._positions[digest] = len(self._aspects)
        self._aspects.append(facts.width / facts.height)
        self._file.write(facts.sketch)

    def read(self, dataset: Artifact, roots: Sequence[str], wanted: set[str]) -> str:
        """Adds pictures of a dataset; returns why that is not possible, "" if it is."""
        try:
            folder = files.place_of(dataset, roots)
            for name in filesystem.files_below(folder):
                if name.startswith("Split-") and name.endswith(".gz"):
                    for features in read_records(filesystem.join(folder, name)):
                        digest = _bytes(features, "image/id").decode()
                        if digest in wanted and digest not in self._positions:
                            self.add(digest, _bytes(features, "image/encoded"))
        except (LineageError, ImageError, *DAMAGED) as error:
            return f"its pictures cannot be read: {error}"
        return "" if wanted <= self.pictures else "some of its pictures are gone"

    def resembling(self, named: Mapping[str, int]) -> dict[str, str]:
        """Maps each picture that is nearly the same as a named one to the named one, by hash."""
        names = list(self._positions)
        wanted = [self._positions[digest] for digest in named if digest in self._positions]
        if not wanted:
            return {}
        self._file.flush()
        shape = (len(names), SKETCH_SIDE, SKETCH_SIDE, 3)
        sketches = np.memmap(self._file, np.uint8, "r", shape=shape)
        found = resembling(sketches, np.array(self._aspects), wanted)
        return {names[other]: names[first] for other, first in found.items()}


def _bytes(features: Mapping[str, Any], name: str) -> bytes:
    value: bytes = features[name].bytes_list.value[0]
    return value
