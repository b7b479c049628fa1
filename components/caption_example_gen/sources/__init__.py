"""Captioned pictures from wherever they are.

A dataset is kept in one of the forms in `forms`; it lies on this machine, in an object store or on
the Hugging Face hub. What it is is told from its files.
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
"""Of a card's head, beside `measures`."""

_HUB, _LOCAL = "hf://", "file://"
# What a clone has in the place of large files, where Git LFS is not installed.
_POINTER, _POINTER_BYTES = b"version https://git-lfs.github.com/spec/", 1024
# So many zip files may lie in one another; some are made to have no end.
_NESTED = 3
_COMMIT = re.compile(f"{_HUB}datasets/(.+)@([0-9a-f]{{40}})")


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
        # What is in an archive has another form, which nobody asked for.
        asked = "" if spec.form == form.kind else spec.form
        return _opened(opened, replace(spec, form=asked))
    opened.give_captions(spec)
    unread = f"; not read, and not missed: {look.unread}" if look.unread else ""
    opened.taken_for = told + opened.remark + unread
    return opened


def _check_fetched(files: Files, paths: Iterable[str]) -> None:
    """Sees to it that files are what they are called, and not what Git leaves for large ones."""
    for path in paths:
        if files.sizes()[path] < _POINTER_BYTES and files.read(path).startswith(_POINTER):
            raise DatasetError(
                f"{path} in dataset {files.shown!r} is a pointer of Git LFS and not the file: "
                "install git-lfs and run git lfs pull where the dataset was cloned"
            )


def _told(look: Look) -> tuple[Form, Found, str]:
    """What a dataset is: its form, the files that tell it, and that in a line for people."""
    seen = _seen(look)
    spec, shown = look.spec, look.files.shown
    if spec.form:
        return _as_asked(look, seen)
    kept = _unsettled(seen)
    if len(kept) > 1 and (spec.config or card_of(look.files)):
        # A card or the config may point at one of them.
        selected = look.select(tuple(look.paths)).files
        kept = _unsettled(_seen(Look(look.files, spec, selected))) or kept
    if len(kept) > 1:
        readings = ", or ".join(f"{form.shown}: {found.why}" for form, found in kept.items())
        flags = " or ".join(f"--dataset-form {form.kind}" for form in kept)
        raise DatasetError(
            f"dataset {shown!r} has several kinds of datasets in it, {readings}; say which it is "
            f"with {flags}, or give a sub-folder with one of them, or a config"
        )
    if not kept:
        if look.problems:
            raise look.problems[0]
        if packed := look.unread_archives:
            raise DatasetError(
                f"dataset {shown!r} has nothing but archives that are not unpacked here, such as "
                f"{packed[0]}: unpack them where they lie"
            )
        kinds = ", ".join(form.shown for form in FORMS)
        hint = f" ({look.unread} cannot be read: save them as PNG or JPEG)" if look.unread else ""
        if packed := look.ending(ZIP_SUFFIX):
            hint = f" ({packed[0]} lies in more than {_NESTED} others: unpack them)"
        raise DatasetError(
            f"dataset {shown!r} has none of what is understood{hint}, which is {kinds}: it has "
            f"{_shown_suffixes(look.files.sizes())}"
        )
    [(form, found)] = kept.items()
    if form.is_last and look.problems and not spec.captions_given:
        raise DatasetError(
            f"{look.problems[0]}; without that, there is nothing but {found.why}"
        ) from look.problems[0]
    others = [
        f"{other.kind} ({what.why})"
        for other, what in seen.items()
        if other not in kept and not other.is_last
    ]
    rest = f"; not for {', '.join(others)}, whose files are a part of that" if others else ""
    return form, found, f"taken for {form.kind}: {found.why}{rest}"


def _seen(look: Look) -> dict[Form, Found]:
    """Every form that is recognised, in the order of the registry."""
    found = ((form, form.recognise(look)) for form in FORMS)
    return {form: what for form, what in found if what is not None}


def _unsettled(seen: Mapping[Form, Found]) -> dict[Form, Found]:
    """Without forms whose files are a part of another one's."""
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
        f"dataset {look.files.shown!r} has nothing of the form {look.spec.form!r}: {there} is seen "
        "in it; name that with --dataset-form, or leave the flag out"
    )


def dataset_fingerprint(spec: DatasetSpec, source: Source | None = None) -> str:
    """Hashes a dataset by content.

    Args:
        spec: Which one; the columns do not matter.
        source: What `open_dataset` gave for it, which is then not looked for again.

    Returns:
        SHA-256 (hex) over the files that are read, the choice of config and split, and what is
        withdrawn. Neither the time of a change nor the place of a folder matters; of a dataset of
        the hub, it is the commit that counts.

    Raises:
        DatasetError: See `open_dataset`; or a file cannot be read.
        WithdrawnError: The list of what is withdrawn cannot be used.
    """
    source = source or open_dataset(spec)
    # A record is not read, rather than set aside, when its picture belongs to another split.
    others = source.left_out if isinstance(source, ImageTableSource) else ()
    content = [source.files.fingerprint(source.paths), spec.config, spec.split, others]
    if spec.withdrawn:
        content.append(read_list(spec.withdrawn).digest)
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def measures_of(source: Source) -> tuple[str, ...]:
    """The measures of drawn pictures that a dataset asks for; see `components.measures`.

    Raises:
        DatasetError: Its card asks for something else than names, or cannot be read.
    """
    return asked_texts(card_of(source.files), "measures", source.files.shown)


def prompts_of(source: Source) -> tuple[str, ...]:
    """What a dataset asks to be drawn before and after fine-tuning; empty for nothing.

    Raises:
        DatasetError: Its card asks for something else than texts, or cannot be read.
    """
    return asked_texts(card_of(source.files), PROMPTS_FIELD, source.files.shown)


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


def _shown_suffixes(paths: Iterable[str]) -> str:
    counts = Counter(posixpath.splitext(path)[1] or posixpath.basename(path) for path in paths)
    shown = [f"{count} {suffix}" for suffix, count in counts.most_common(5)]
    return ", ".join(shown) + (", ..." if len(counts) > 5 else "") or "no files"
