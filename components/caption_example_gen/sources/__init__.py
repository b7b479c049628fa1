"""Reads captioned pictures, wherever they are.

A dataset has one of the forms in `forms`, and is on this machine, in an object store or on the
Hugging Face hub. Its form is recognised from its files.
"""

from __future__ import annotations

import hashlib
import json
import os
import posixpath
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace

from components.caption_example_gen.sources.archives import ArchiveFiles, archives_of
from components.caption_example_gen.sources.base import (
    DatasetError,
    DatasetSpec,
    Files,
    Row,
    Source,
    Unit,
)
from components.caption_example_gen.sources.card import asked_texts
from components.caption_example_gen.sources.files import ZIP_SUFFIX, FsspecFiles
from components.caption_example_gen.sources.form import Form, Found, Look, card_of
from components.caption_example_gen.sources.forms import FORMS
from components.caption_example_gen.sources.image_table import ImageTableSource
from storage.addresses import SecretInAddressError, check_address
from storage.withdrawn import read_list

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
"""A field of the card's head, beside `measures`."""

_HUB, _LOCAL = "hf://", "file://"
# A clone has this in place of large files if Git LFS is not installed.
_POINTER, _POINTER_BYTES = b"version https://git-lfs.github.com/spec/", 1024
# Zip files may be nested this deep; some are crafted to nest without end.
_NESTED = 3
_COMMIT = re.compile(f"{_HUB}datasets/(.+)@([0-9a-f]{{40}})")


def resolve_dataset(spec: DatasetSpec) -> DatasetSpec:
    """Finds out, once and for all, where a dataset is.

    In this order: `hf://datasets/ORG/NAME[@REVISION]` is on the hub; fsspec opens any other
    `scheme://`; a path that exists on this machine is that folder or tar file; a name that looks
    like `[ORG/]NAME[@REVISION]` is on the hub.

    Args:
        spec: The spec as the user gave it.

    Returns:
        The same with an absolute path or URL, or `hf://datasets/ORG/NAME@COMMIT`.

    Raises:
        DatasetError: The dataset does not exist, its address contains a secret, or the hub does
            not give access.
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
    # Local datasets do not need this, and it is slow to import.
    from components.caption_example_gen.sources.hub import HubFiles, parse_hub_id

    hub_id = parse_hub_id(dataset)
    if hub_id is not None:
        try:
            found = HubFiles.resolve(hub_id.repo_id, hub_id.revision)
        except DatasetError as error:
            if dataset.startswith(_HUB):
                raise
            raise DatasetError(
                f"there is no local folder or archive {dataset!r}, and on the hub: {error}"
            ) from error
        return replace(spec, dataset=f"{_HUB}datasets/{found.repo_id}@{found.commit}")
    raise DatasetError(
        f"dataset {dataset!r} does not exist: give a folder or an archive, local or gs://, or a "
        "dataset on the hub as ORG/NAME or ORG/NAME@REVISION"
    )


def revision_of(spec: DatasetSpec) -> str:
    """The commit of a resolved dataset on the hub; "" for any other dataset."""
    on_hub = _COMMIT.fullmatch(spec.dataset)
    return on_hub.group(2) if on_hub else ""


def open_dataset(spec: DatasetSpec) -> Source:
    """Opens a dataset and recognises its form from its files.

    Args:
        spec: The spec as the user gave it, or resolved.

    Raises:
        DatasetError: The dataset does not exist, cannot be read, has no known form or several, has
            no such config or split, or lacks a column.
    """
    return _opened(_files(resolve_dataset(spec).dataset), spec)


def _opened(files: Files, spec: DatasetSpec) -> Source:
    for _ in range(_NESTED):
        archives = archives_of(files.sizes())
        if not archives:
            break
        _check_fetched(files, archives)
        files = ArchiveFiles(files, archives)
    look = Look(files, spec)
    form, found, told = _told(look)
    _check_fetched(files, (*found.files[:1], *look.pictures[:1]))
    opened = form.open(look, found)
    look.forget_documents()
    if isinstance(opened, Files):
        # The requested form was that of the archive; its contents have another.
        asked = "" if spec.form == form.kind else spec.form
        return _opened(opened, replace(spec, form=asked))
    opened.give_captions(spec)
    unread = f"; unsupported files, skipped: {look.unread}" if look.unread else ""
    opened.taken_for = told + opened.remark + unread
    return opened


def _check_fetched(files: Files, paths: Iterable[str]) -> None:
    """Raises a `DatasetError` if a file is a pointer that Git LFS leaves in place of it."""
    for path in paths:
        if files.sizes()[path] < _POINTER_BYTES and files.read(path).startswith(_POINTER):
            raise DatasetError(
                f"{path} in dataset {files.shown!r} is a Git LFS pointer and not the file itself: "
                "install git-lfs and run git lfs pull in the clone of the dataset"
            )


def _told(look: Look) -> tuple[Form, Found, str]:
    """The form of a dataset, the files that show it, and one line that explains both to users."""
    seen = _seen(look)
    spec, shown = look.spec, look.files.shown
    if spec.form:
        return _as_asked(look, seen)
    kept = _unsettled(seen)
    if len(kept) > 1 and (spec.config or card_of(look.files)):
        # The card or config may select one of them.
        selected = look.select(tuple(look.paths)).files
        kept = _unsettled(_seen(Look(look.files, spec, selected))) or kept
    if len(kept) > 1:
        readings = ", or ".join(f"{form.shown}: {found.why}" for form, found in kept.items())
        flags = " or ".join(f"--dataset-form {form.kind}" for form in kept)
        raise DatasetError(
            f"dataset {shown!r} can be read in several ways, {readings}; choose one "
            f"with {flags}, or give a sub-folder with only one of them, or a config"
        )
    if not kept:
        if look.problems:
            raise look.problems[0]
        if packed := look.unread_archives:
            raise DatasetError(
                f"dataset {shown!r} has only archives of a kind that is not unpacked here, such as "
                f"{packed[0]}: unpack them in place"
            )
        kinds = ", ".join(form.shown for form in FORMS)
        hint = f" ({look.unread} cannot be read: save them as PNG or JPEG)" if look.unread else ""
        if packed := look.ending(ZIP_SUFFIX):
            hint = f" ({packed[0]} is inside more than {_NESTED} others: unpack them)"
        raise DatasetError(
            f"dataset {shown!r} has no supported form{hint}; supported are {kinds}: it has "
            f"{_shown_suffixes(look.files.sizes())}"
        )
    [(form, found)] = kept.items()
    if form.is_last and look.problems and not spec.captions_given:
        raise DatasetError(
            f"{look.problems[0]}; otherwise there is only {found.why}"
        ) from look.problems[0]
    others = [
        f"{other.kind} ({what.why})"
        for other, what in seen.items()
        if other not in kept and not other.is_last
    ]
    rest = f"; not for {', '.join(others)}, whose files are part of it" if others else ""
    return form, found, f"taken for {form.kind}: {found.why}{rest}"


def _seen(look: Look) -> dict[Form, Found]:
    """Every form that is recognised, in the order of the registry."""
    found = ((form, form.recognise(look)) for form in FORMS)
    return {form: what for form, what in found if what is not None}


def _unsettled(seen: Mapping[Form, Found]) -> dict[Form, Found]:
    """The forms whose files do not belong to another form."""
    kept: dict[Form, Found] = {}
    for form, found in seen.items():
        is_settled = any(form.kind in other.settles for other in kept)
        if not is_settled and not (form.is_last and kept):
            kept[form] = found
    return kept


def _as_asked(look: Look, seen: Mapping[Form, Found]) -> tuple[Form, Found, str]:
    for form, found in seen.items():
        if form.kind == look.spec.form:
            return form, found, f"taken for {form.kind}, as --dataset-form says: {found.why}"
    known = ", ".join(form.kind for form in FORMS)
    if look.spec.form not in {form.kind for form in FORMS}:
        raise DatasetError(f"there is no form {look.spec.form!r}: --dataset-form is one of {known}")
    there = ", ".join(f"{form.kind} ({found.why})" for form, found in seen.items()) or "no form"
    raise DatasetError(
        f"dataset {look.files.shown!r} does not have the form {look.spec.form!r}: it has {there}; "
        "set that with --dataset-form, or leave the flag out"
    )


def dataset_fingerprint(spec: DatasetSpec, source: Source | None = None) -> str:
    """Hashes a dataset by content.

    Args:
        spec: The dataset; the columns do not matter.
        source: The result of `open_dataset` for it, to avoid opening it again.

    Returns:
        SHA-256 (hex) over the files that are read, the choice of config and split, and the list of
        withdrawn rows. Neither modification times nor the location of a folder matter; for a
        dataset on the hub, the commit counts.

    Raises:
        DatasetError: See `open_dataset`; or a file cannot be read.
        WithdrawnError: The list of withdrawn rows cannot be used.
    """
    source = source or open_dataset(spec)
    # A record whose picture belongs to another split is not read, rather than set aside.
    others = source.left_out if isinstance(source, ImageTableSource) else ()
    content = [source.files.fingerprint(source.paths), spec.config, spec.split, others]
    if spec.withdrawn:
        content.append(read_list(spec.withdrawn).digest)
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def measures_of(source: Source) -> tuple[str, ...]:
    """The measures of drawn pictures that a dataset asks for; see `components.measures`.

    Raises:
        DatasetError: The card asks for something other than names, or cannot be read.
    """
    return asked_texts(card_of(source.files), "measures", source.files.shown)


def prompts_of(source: Source) -> tuple[str, ...]:
    """The prompts that a dataset asks to draw before and after fine-tuning; empty for none.

    Raises:
        DatasetError: The card asks for something other than texts, or cannot be read.
    """
    return asked_texts(card_of(source.files), PROMPTS_FIELD, source.files.shown)


def check_dataset(spec: DatasetSpec, source: Source | None = None) -> None:
    """Checks before a run that a dataset is usable, without reading all of it.

    Args:
        spec: The dataset.
        source: The result of `open_dataset` for it, to avoid opening it again.

    Raises:
        DatasetError: See `open_dataset`; or the dataset does not have two different pictures.
    """
    source = source or open_dataset(spec)
    seen: set[str] = set()
    num_rows = 0
    for unit in source.units():
        for row in source.read(unit, peek=True):
            num_rows += 1
            # The component sets aside rows without a picture.
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
    """The split of a picture; depends only on its bytes and the seed.

    If no picture falls into a split, that split gets one of the other: see `empty_split`.

    Args:
        image_id: SHA-256 (hex) of the picture's bytes.
        eval_fraction: Fraction of the pictures that are held out.
        seed: Decides which pictures are held out.

    Returns:
        `train` or `eval`.
    """
    return "eval" if place_of(image_id, seed) < eval_fraction else "train"


def place_of(image_id: str, seed: int) -> float:
    """A picture's pseudorandom place between 0 and 1; the lowest are held out."""
    digest = hashlib.sha256(f"{seed}:{image_id}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def one_picture_message(all_rows: str) -> str:
    """An error message of one line for a dataset with a single picture."""
    return (
        f"{all_rows} have the same picture: there must be at least two pictures, one to train on "
        "and one to hold out; add rows with other pictures"
    )


def _files(resolved: str) -> Files:
    on_hub = _COMMIT.fullmatch(resolved)
    if on_hub is None:
        return FsspecFiles(resolved)
    from components.caption_example_gen.sources.hub import HubFiles

    return HubFiles(on_hub.group(1), on_hub.group(2))


def _shown_suffixes(paths: Iterable[str]) -> str:
    counts = Counter(posixpath.splitext(path)[1] or posixpath.basename(path) for path in paths)
    shown = [f"{count} {suffix}" for suffix, count in counts.most_common(5)]
    return ", ".join(shown) + (", ..." if len(counts) > 5 else "") or "no files"
