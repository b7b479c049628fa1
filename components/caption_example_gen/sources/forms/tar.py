"""Tar files: WebDataset shards, the Keras example's archive, or a packed folder of any form."""

from __future__ import annotations

import posixpath

from components.caption_example_gen.sources.archives import ArchiveFiles
from components.caption_example_gen.sources.base import (
    DatasetError,
    DatasetSpec,
    Files,
    Source,
    repeats_of,
)
from components.caption_example_gen.sources.files import TAR_SUFFIXES
from components.caption_example_gen.sources.form import Form, Found, Look, counted
from components.caption_example_gen.sources.forms.keras_archive import KerasArchiveSource
from components.caption_example_gen.sources.forms.keras_folder import TABLE as KERAS_TABLE
from components.caption_example_gen.sources.forms.webdataset import (
    WebDatasetSource,
    first_samples,
    is_usable,
)


class Tar(Form):
    """Files that end in `.tar`, or in that with a compression, such as `.tar.gz` or `.tgz`."""

    kind = "tar"
    shown = f"tar files ({', '.join('*' + suffix for suffix in TAR_SUFFIXES)})"

    def recognise(self, look: Look) -> Found | None:
        """See `Form.recognise`."""
        found = look.ending(*TAR_SUFFIXES)
        return Found(found, counted(len(found), "tar file")) if found else None

    def open(self, look: Look, found: Found) -> Source | Files:
        """See `Form.open`; the first archive decides the form of all."""
        chosen = look.select(found.files)
        source = _open(look.files, chosen.files, chosen.left_out, look.spec)
        return source or ArchiveFiles(look.files, chosen.files)


def _open(
    files: Files, tars: tuple[str, ...], left_out: tuple[str, ...], spec: DatasetSpec
) -> Source | None:
    """Recognises the form of a dataset's archives from the first one.

    Args:
        files: The dataset's files.
        tars: Its archives to read, at least one.
        left_out: The archives of other splits.
        spec: The user's request.

    Returns:
        The source; `None` for packed folders, which are neither shards of samples nor the
        archive of the Keras example.

    Raises:
        DatasetError: The first archive cannot be read, is empty, or lacks a column.
    """
    samples = first_samples(files, tars[0], peek=True, stop_at=KERAS_TABLE)
    if samples is not None and not any(map(is_usable, samples)):
        samples = first_samples(files, tars[0], peek=False, stop_at=KERAS_TABLE)
    if samples is None:
        return KerasArchiveSource.open(files, tars, left_out, spec)
    if not samples:
        raise DatasetError(f"{tars[0]} in dataset {files.shown!r} has no files")
    folders = {part for sample in samples for part in posixpath.dirname(sample.key).split("/")}
    asked = spec.caption_column.lower().removeprefix(".")
    is_readable = any(is_usable(sample) or asked in sample.fields for sample in samples)
    if not is_readable or any(repeats_of(folder) for folder in folders):
        return None
    return WebDatasetSource.open(files, tars, left_out, spec, samples)
