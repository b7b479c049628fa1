"""Captioned pictures from wherever they are.

A dataset is a folder of Parquet files, an image folder, the Keras example's folder or archive, or
WebDataset shards; it lies on this machine, in an object store or on the Hugging Face hub. What it
is is told from its files.
"""

from __future__ import annotations

import hashlib
import json
import os
import posixpath
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from components.caption_example_gen.sources.base import (
    DatasetError,
    DatasetSpec,
    Files,
    Row,
    Source,
    Unit,
    is_picture,
)
from components.caption_example_gen.sources.card import CARD_NAME, asked_texts
from components.caption_example_gen.sources.files import TAR_SUFFIXES, FsspecFiles, read_whole
from components.caption_example_gen.sources.image_table import (
    HUB_TABLES,
    KERAS_TABLE,
    ImageTableSource,
    is_keras_table,
    is_table,
)
from components.caption_example_gen.sources.parquet import PARQUET_SUFFIX, ParquetSource
from components.caption_example_gen.sources.splits import Selection, select_files
from components.caption_example_gen.sources.tar import open_tars
from storage.addresses import SecretInAddressError, check_address

__all__ = [
    "PROMPTS_FIELD",
    "DatasetError",
    "DatasetSpec",
    "Row",
    "Source",
    "Unit",
    "check_dataset",
    "dataset_fingerprint",
    "measures_of",
    "one_picture_message",
    "open_dataset",
    "place_of",
    "prompts_of",
    "resolve_dataset",
    "revision_of",
    "split_of",
]

PROMPTS_FIELD = "validation_prompts"
"""Of a card's head, beside `measures`."""

_HUB, _LOCAL = "hf://", "file://"
_COMMIT = re.compile(f"{_HUB}datasets/(.+)@([0-9a-f]{{40}})")
# What the files of a dataset can be, as the user is told.
_PARQUET = f"Parquet files (*{PARQUET_SUFFIX})"
_IMAGE_FOLDER = f"image folders ({' or '.join(HUB_TABLES)})"
_KERAS = f"the Keras example's folder ({KERAS_TABLE})"
_TARS = f"tar files ({', '.join('*' + suffix for suffix in TAR_SUFFIXES)})"
_KINDS = (_PARQUET, _IMAGE_FOLDER, _KERAS, _TARS)


def resolve_dataset(spec: DatasetSpec) -> DatasetSpec:
    """Finds out where a dataset is, once and for all.

    In this order: `hf://datasets/ORG/NAME[@REVISION]` is on the hub, any other `scheme://` is
    what fsspec opens; what exists on this machine is that folder or tar file; what looks like
    `[ORG/]NAME[@REVISION]` is on the hub.

    Args:
        spec: As the user gave it.

    Returns:
        The same with an absolute path or URL, or `hf://datasets/ORG/NAME@COMMIT`.

    Raises:
        DatasetError: It is nowhere, the address has a secret in it, or the hub does not give it
            out.
    """
    dataset = spec.dataset
    try:
        check_address(dataset)
    except SecretInAddressError as error:
        raise DatasetError(str(error)) from None
    if _COMMIT.fullmatch(dataset):
        return spec
    if "://" in dataset and not dataset.startswith(_HUB):
        is_local = dataset.startswith(_LOCAL)
        url = dataset.removeprefix(_LOCAL) if is_local else dataset
        return replace(spec, dataset=re.sub("(?<=[^:/])/+$", "", url))
    path = os.path.abspath(os.path.expanduser(dataset))
    if dataset and os.path.exists(path):
        return replace(spec, dataset=path)
    # Not needed for a dataset that is here, and not quick to import.
    from components.caption_example_gen.sources.hub import HubFiles, parse_hub_id

    hub_id = parse_hub_id(dataset)
    if hub_id is not None:
        try:
            found = HubFiles.resolve(hub_id.repo_id, hub_id.revision)
        except DatasetError as error:
            if dataset.startswith(_HUB):
                raise
            raise DatasetError(
                f"there is no folder or tar file {dataset!r} here, and on the hub: {error}"
            ) from error
        return replace(spec, dataset=f"{_HUB}datasets/{found.repo_id}@{found.commit}")
    raise DatasetError(
        f"dataset {dataset!r} does not exist: give a folder or a tar file, local or gs://, or a "
        "dataset of the hub as ORG/NAME or ORG/NAME@REVISION"
    )


def revision_of(spec: DatasetSpec) -> str:
    """The commit of a resolved dataset of the hub; "" for any other dataset."""
    on_hub = _COMMIT.fullmatch(spec.dataset)
    return on_hub.group(2) if on_hub else ""


def open_dataset(spec: DatasetSpec) -> Source:
    """Opens a dataset; what it is is told from its files.

    Args:
        spec: As the user gave it, or resolved.

    Raises:
        DatasetError: It is nowhere, cannot be read, is of no known kind or of several, has no such
            config or split, or lacks a column.
    """
    files = _files(resolve_dataset(spec).dataset)
    by_kind = _by_kind(files.sizes())
    if not by_kind:
        raise DatasetError(
            f"dataset {files.shown!r} has none of what is understood, which is "
            f"{', '.join(_KINDS)}: it has {_shown_suffixes(files.sizes())}"
        )
    if len(by_kind) > 1:
        # A card or the config may point at one of them.
        every = sorted(path for paths in by_kind.values() for path in paths)
        by_kind = _by_kind(_select(files, every, spec).files)
    if len(by_kind) != 1:
        raise DatasetError(
            f"dataset {files.shown!r} has several kinds of datasets in it, {', '.join(by_kind)}: "
            "give a sub-folder with one of them, or a config"
        )
    [(kind, paths)] = by_kind.items()
    if kind in (_IMAGE_FOLDER, _KERAS):
        return _open_tables(files, paths, spec)
    selection = _select(files, paths, spec)
    chosen = (files, tuple(sorted(selection.files)), tuple(sorted(selection.left_out)), spec)
    return ParquetSource.open(*chosen) if kind == _PARQUET else open_tars(*chosen)


def dataset_fingerprint(spec: DatasetSpec, source: Source | None = None) -> str:
    """Hashes a dataset by content.

    Args:
        spec: Which one; the columns do not matter.
        source: What `open_dataset` gave for it, which is then not looked for again.

    Returns:
        SHA-256 (hex) over the files that are read and the choice of config and split. Neither the
        time of a change nor the place of a folder matters; of a dataset of the hub, it is the
        commit that counts.

    Raises:
        DatasetError: See `open_dataset`; or a file cannot be read.
    """
    source = source or open_dataset(spec)
    # A record is not read, rather than set aside, when its picture belongs to another split.
    others = source.left_out if isinstance(source, ImageTableSource) else ()
    content = [source.files.fingerprint(source.paths), spec.config, spec.split, others]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def measures_of(source: Source) -> tuple[str, ...]:
    """The measures of drawn pictures that a dataset asks for; see `components.measures`.

    Raises:
        DatasetError: Its card asks for something else than names, or cannot be read.
    """
    return asked_texts(_card(source.files), "measures", source.files.shown)


def prompts_of(source: Source) -> tuple[str, ...]:
    """What a dataset asks to be drawn before and after fine-tuning; empty for nothing.

    Raises:
        DatasetError: Its card asks for something else than texts, or cannot be read.
    """
    return asked_texts(_card(source.files), PROMPTS_FIELD, source.files.shown)


def check_dataset(spec: DatasetSpec, source: Source | None = None) -> None:
    """Finds out before a run whether a dataset has what it needs, without reading all of it.

    Args:
        spec: Which one.
        source: What `open_dataset` gave for it, which is then not looked for again.

    Raises:
        DatasetError: See `open_dataset`; or it has no two different pictures.
    """
    source = source or open_dataset(spec)
    seen: set[str] = set()
    num_rows = 0
    for unit in source.units():
        for row in source.read(unit, peek=True):
            num_rows += 1
            # The component sets rows without a picture aside.
            if row.image:
                seen.add(hashlib.sha256(row.image).hexdigest())
            if len(seen) == 2:
                return
    if not seen:
        raise DatasetError(
            f"none of the {num_rows} rows of dataset {spec.dataset!r} has a picture"
            + (f" in column {source.image_column!r}" if source.image_column else "")
        )
    raise DatasetError(one_picture_message(f"all {num_rows} rows of dataset {spec.dataset!r}"))


def split_of(image_id: str, eval_fraction: float, seed: int) -> str:
    """The split of a picture; depends on its bytes and the seed alone.

    Where no picture falls into one of them, that one gets another's: `empty_split` says which.

    Args:
        image_id: SHA-256 (hex) of the picture's bytes.
        eval_fraction: Fraction of the pictures that are held out.
        seed: Decides which.

    Returns:
        `train` or `eval`.
    """
    return "eval" if place_of(image_id, seed) < eval_fraction else "train"


def place_of(image_id: str, seed: int) -> float:
    """A picture's place between 0 and 1, as good as random; those in front are held out."""
    digest = hashlib.sha256(f"{seed}:{image_id}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def one_picture_message(all_rows: str) -> str:
    """One line for the user who has a single picture."""
    return (
        f"{all_rows} have one and the same picture: there must be two or more, one to train on and "
        "one to hold out; add rows with others"
    )


def _files(resolved: str) -> Files:
    on_hub = _COMMIT.fullmatch(resolved)
    if on_hub is None:
        return FsspecFiles(resolved)
    from components.caption_example_gen.sources.hub import HubFiles

    return HubFiles(on_hub.group(1), on_hub.group(2))


def _open_tables(files: Files, tables: Sequence[str], spec: DatasetSpec) -> ImageTableSource:
    pictures = [path for path in files.sizes() if is_picture(path)]
    selection = _select(files, [*tables, *pictures], spec, by_folder_only=True)
    chosen = frozenset(selection.files)
    # A card may name the tables alone.
    chosen_pictures = [path for path in pictures if path in chosen] or pictures
    # A table belongs to every split that has a picture in its folder or below.
    folders = {
        above
        for folder in {posixpath.dirname(picture) for picture in chosen_pictures}
        for above in (folder, *_folders_above(folder))
    }
    chosen_tables = [
        path for path in tables if path in chosen or posixpath.dirname(path) in folders
    ] or tables
    read = {*chosen_tables, *chosen_pictures}
    left_out = tuple(path for path in selection.left_out if path not in read)
    return ImageTableSource.open(
        files, tuple(chosen_tables), tuple(chosen_pictures), left_out, spec
    )


def _folders_above(path: str) -> Iterator[str]:
    while path:
        path = posixpath.dirname(path)
        yield path


def _select(
    files: Files, paths: Sequence[str], spec: DatasetSpec, *, by_folder_only: bool = False
) -> Selection:
    return select_files(
        paths,
        card=_card(files),
        config=spec.config,
        split=spec.split,
        shown=files.shown,
        by_folder_only=by_folder_only,
    )


def _card(files: Files) -> str | None:
    if CARD_NAME not in files.sizes():
        return None
    return read_whole(files, CARD_NAME).decode("utf-8", "replace")


def _by_kind(paths: Iterable[str]) -> dict[str, list[str]]:
    """The files that tell what a dataset is, by what it would be."""
    found: dict[str, list[str]] = {}
    for path in paths:
        name = path.lower()
        if name.endswith(PARQUET_SUFFIX):
            found.setdefault(_PARQUET, []).append(path)
        elif is_table(path):
            found.setdefault(_KERAS if is_keras_table(path) else _IMAGE_FOLDER, []).append(path)
        elif name.endswith(TAR_SUFFIXES):
            found.setdefault(_TARS, []).append(path)
    return found


def _shown_suffixes(paths: Iterable[str]) -> str:
    counts = Counter(posixpath.splitext(path)[1] or posixpath.basename(path) for path in paths)
    shown = [f"{count} {suffix}" for suffix, count in counts.most_common(5)]
    return ", ".join(shown) + (", ..." if len(counts) > 5 else "") or "no files"
