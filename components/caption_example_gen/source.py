"""Where captioned pictures come from: a folder of Parquet files in the hub's schema.

Imports neither TFX nor Beam nor TensorFlow, so that a runner can look at the dataset at once.
"""

from __future__ import annotations

import dataclasses
import hashlib
import posixpath
from collections.abc import Iterable, Iterator
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

_PARQUET_SUFFIX = ".parquet"
# Rows may name a picture's file in place of holding its bytes.
_PICTURE_SUFFIXES = (
    ".avif", ".bmp", ".gif", ".jp2", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff",
    ".webp",
)  # fmt: skip
_CHUNK_BYTES = 1 << 20
# Rows held at a time; column chunks are read in buffers of _CHUNK_BYTES, so that memory does not
# grow with the size of a row group.
_BATCH_ROWS = 16


class DatasetError(ValueError):
    """A dataset that cannot be used; the message is one line."""


@dataclasses.dataclass(frozen=True)
class RowGroup:
    """A part of a dataset that one worker reads.

    Attributes:
        file: Path of the Parquet file, relative to the dataset.
        index: The row group's number in the file.
        first_row: Number of its first row in the file.
        num_rows: How many rows it has.
    """

    file: str
    index: int
    first_row: int
    num_rows: int


@dataclasses.dataclass(frozen=True)
class Row:
    """One row as it stands in the dataset, unchecked.

    Attributes:
        file: Path of the Parquet file, relative to the dataset.
        number: The row's number in the file, from 0.
        image: The picture file's bytes, or `None`.
        image_path: Where the row names a file in place of holding the bytes, its path.
        caption: UTF-8, or what the row has in its place; or `None`.
    """

    file: str
    number: int
    image: bytes | None
    image_path: str | None
    caption: bytes | None


@dataclasses.dataclass(frozen=True)
class DatasetSummary:
    """What the footers of a dataset's files say.

    Attributes:
        row_groups: In the order of files and rows.
        num_rows: Rows in all of them.
        image_bytes: Size of the pictures, in the Parquet files and beside them.
    """

    row_groups: tuple[RowGroup, ...]
    num_rows: int
    image_bytes: int


class ParquetFolder:
    """A folder, local or of any file system that fsspec opens, with Parquet files at any depth."""

    def __init__(self, dataset: str, image_column: str, caption_column: str) -> None:
        """Opens the folder.

        Args:
            dataset: Its path or URL.
            image_column: Column with the pictures: a struct of `bytes` and perhaps `path`, or
                plain binary.
            caption_column: Column with the captions: string, or binary that holds UTF-8.

        Raises:
            DatasetError: Its file system cannot be opened.
        """
        self._dataset = dataset
        self._image_column = image_column
        self._caption_column = caption_column
        self._fs, self._root = _open_file_system(dataset)

    def summary(self) -> DatasetSummary:
        """Reads every file's footer.

        Raises:
            DatasetError: There is no such folder, it has no Parquet file, no row, or a file that
                cannot be read or lacks one of the two columns.
        """
        row_groups: list[RowGroup] = []
        files = self._list_files()
        image_bytes = sum(size for file, size in files.items() if _is_picture(file))
        for file in _parquet_files(self._dataset, files):
            with self._open(file) as f:
                parquet = self._parquet(file, f)
                self._check_columns(file, parquet.schema_arrow)
                first_row = 0
                for index in range(parquet.num_row_groups):
                    group = parquet.metadata.row_group(index)
                    row_groups.append(RowGroup(file, index, first_row, group.num_rows))
                    first_row += group.num_rows
                    for position in range(group.num_columns):
                        column = group.column(position)
                        if column.path_in_schema.split(".")[0] == self._image_column:
                            image_bytes += column.total_uncompressed_size
        num_rows = sum(group.num_rows for group in row_groups)
        if num_rows == 0:
            raise DatasetError(
                f"dataset {self._dataset!r} has no rows: its Parquet files are empty"
            )
        return DatasetSummary(tuple(row_groups), num_rows, image_bytes)

    def read(self, row_group: RowGroup) -> Iterator[Row]:
        """Reads the rows of one row group, a few at a time.

        Raises:
            DatasetError: The file cannot be read.
        """
        with self._open(row_group.file) as f:
            number = row_group.first_row
            try:
                for batch in self._parquet(row_group.file, f).iter_batches(
                    batch_size=_BATCH_ROWS,
                    row_groups=[row_group.index],
                    columns=[self._image_column, self._caption_column],
                    use_threads=False,
                ):
                    images, paths = _image_columns(batch.column(self._image_column))
                    captions = _as_binary(batch.column(self._caption_column))
                    for image, path, caption in zip(images, paths, captions, strict=True):
                        name = path.as_py()
                        yield Row(
                            file=row_group.file,
                            number=number,
                            image=image.as_py(),
                            image_path=None if name is None else name.decode("utf-8", "replace"),
                            caption=caption.as_py(),
                        )
                        number += 1
            except pa.ArrowException as error:
                raise self._unreadable(row_group.file, error) from error

    def picture(self, row: Row) -> bytes | None:
        """The picture file's bytes, from the row or from the file that it names; or `None`.

        Raises:
            ValueError: The path leads out of the folder, into a hidden one, or is not called like
                a picture: the fingerprint does not cover such files.
            FileNotFoundError: There is no such file.
        """
        if row.image or not row.image_path:
            return row.image or None
        path = posixpath.normpath(row.image_path.replace("\\", "/"))
        if path.startswith("/") or _is_hidden(path) or "://" in row.image_path:
            raise ValueError(
                f"the path {row.image_path!r} leads out of the dataset's folder or is hidden"
            )
        if not _is_picture(path):
            raise ValueError(f"{row.image_path!r} is not called like a picture")
        content: bytes = self._fs.cat_file(posixpath.join(self._root, path))
        return content

    def fingerprint(self) -> str:
        """See `dataset_fingerprint`."""
        files = self._list_files()
        _parquet_files(self._dataset, files)
        digest = hashlib.sha256()
        for file in sorted(files):
            size, content = 0, hashlib.sha256()
            with self._open(file) as f:
                while chunk := f.read(_CHUNK_BYTES):
                    size += len(chunk)
                    content.update(chunk)
            digest.update(f"{file}\0{size}\0{content.hexdigest()}\n".encode())
        return digest.hexdigest()

    def _list_files(self) -> dict[str, int]:
        """Relative paths and sizes of the Parquet files and pictures; hidden ones left out."""
        given = f"dataset {self._dataset!r}"
        try:
            if self._fs.isfile(self._root):
                raise DatasetError(
                    f"{given} is a file: give the folder that its Parquet files lie in"
                )
            if not self._fs.isdir(self._root):
                raise DatasetError(
                    f"{given} does not exist: give a folder with Parquet files, local or gs://"
                )
            found = self._fs.find(self._root, detail=True)
        except (OSError, ValueError) as error:
            if isinstance(error, DatasetError):
                raise
            raise DatasetError(f"{given} cannot be listed: {_one_line(error)}") from error
        root = self._root.rstrip("/") + "/"
        sizes = {path[len(root) :]: int(info["size"]) for path, info in sorted(found.items())}
        return {
            path: size
            for path, size in sizes.items()
            if not _is_hidden(path)
            and (path.lower().endswith(_PARQUET_SUFFIX) or _is_picture(path))
        }

    def _open(self, file: str) -> Any:
        try:
            return self._fs.open(posixpath.join(self._root, file), "rb")
        except OSError as error:
            raise self._unreadable(file, error) from error

    def _parquet(self, file: str, f: Any) -> pq.ParquetFile:
        try:
            return pq.ParquetFile(f, buffer_size=_CHUNK_BYTES)
        except (pa.ArrowException, OSError) as error:
            raise self._unreadable(file, error) from error

    def _unreadable(self, file: str, error: Exception) -> DatasetError:
        return DatasetError(
            f"{file} in dataset {self._dataset!r} cannot be read: {_one_line(error)}"
        )

    def _check_columns(self, file: str, schema: pa.Schema) -> None:
        shown = ", ".join(f"{field.name} ({_shown_type(field.type)})" for field in schema)
        wanted = (
            (
                "image",
                self._image_column,
                _is_image_type,
                "a struct with binary `bytes`, or plain binary",
            ),
            ("caption", self._caption_column, _is_caption_type, "text"),
        )
        for role, name, fits, allowed in wanted:
            there = f"the columns of {file} are {shown or 'none'}"
            position = schema.get_field_index(name)
            if position < 0:
                raise DatasetError(
                    f"dataset {self._dataset!r} has no {role} column {name!r}: {there}; name the "
                    f"right one as {role}_column"
                )
            if not fits(schema.field(position).type):
                raise DatasetError(
                    f"the {role} column {name!r} of dataset {self._dataset!r} must hold {allowed}: "
                    f"{there}"
                )


def dataset_fingerprint(dataset: str) -> str:
    """Hashes a dataset by content.

    Args:
        dataset: Path or URL of its folder.

    Returns:
        SHA-256 (hex) over the relative names, sizes and bytes of its Parquet files and pictures.
        Neither the time of a change nor the place of the folder matters.

    Raises:
        DatasetError: There is no such folder, or it has no Parquet file, or one cannot be read.
    """
    return ParquetFolder(dataset, "", "").fingerprint()


def check_dataset(
    dataset: str, *, image_column: str, caption_column: str, eval_fraction: float, seed: int
) -> None:
    """Finds out before a run whether a dataset has what it needs, without reading all of it.

    Args:
        dataset: Path or URL of its folder.
        image_column: See `ParquetFolder`.
        caption_column: See `ParquetFolder`.
        eval_fraction: Fraction of the pictures that are held out.
        seed: Decides which.

    Raises:
        DatasetError: See `ParquetFolder.summary`; or one of the splits would be empty.
    """
    folder = ParquetFolder(dataset, image_column, caption_column)
    summary = folder.summary()
    seen: set[str] = set()
    for row_group in summary.row_groups:
        for row in folder.read(row_group):
            try:
                image = folder.picture(row)
            except (FileNotFoundError, ValueError):
                # The component sets such rows aside.
                continue
            if image:
                seen.add(split_of(image, eval_fraction, seed))
            if len(seen) == 2:
                return
    if not seen:
        raise DatasetError(
            f"none of the {summary.num_rows} rows of dataset {dataset!r} has a picture in column "
            f"{image_column!r}"
        )
    [only] = seen
    raise DatasetError(
        empty_split_message(
            "eval" if only == "train" else "train",
            f"all {summary.num_rows} rows of dataset {dataset!r} fall",
            only,
            eval_fraction,
            seed,
        )
    )


def split_of(image: bytes, eval_fraction: float, seed: int) -> str:
    """The split of a picture, `train` or `eval`; depends on its bytes and the seed alone."""
    digest = hashlib.sha256(f"{seed}:".encode() + image).digest()
    return "eval" if int.from_bytes(digest[:8], "big") / 2**64 < eval_fraction else "train"


def empty_split_message(
    empty: str, all_rows_fall: str, only: str, eval_fraction: float, seed: int
) -> str:
    """One line for the user whose split is empty."""
    change = "a smaller" if empty == "train" else "a larger"
    return (
        f"the {empty} split would be empty: {all_rows_fall} into {only} with eval_fraction "
        f"{eval_fraction:g} and seed {seed}; set {change} eval_fraction, another seed, or add rows"
    )


def _open_file_system(dataset: str) -> tuple[Any, str]:
    try:
        fs, root = fsspec.core.url_to_fs(dataset)
    except ImportError as error:
        raise DatasetError(
            f"dataset {dataset!r} needs another package to be opened: {_one_line(error)}"
        ) from error
    except ValueError as error:
        raise DatasetError(
            f"dataset {dataset!r} is no path or URL that can be opened: {_one_line(error)}; give "
            "a folder with Parquet files, local or gs://"
        ) from error
    return fs, root


def _parquet_files(dataset: str, files: Iterable[str]) -> list[str]:
    parquet = [file for file in files if file.lower().endswith(_PARQUET_SUFFIX)]
    if not parquet:
        raise DatasetError(
            f"dataset {dataset!r} has no Parquet file, in no sub-folder either: give a folder "
            f"with files called *{_PARQUET_SUFFIX}"
        )
    return parquet


def _is_picture(path: str) -> bool:
    return path.lower().endswith(_PICTURE_SUFFIXES)


def _is_hidden(path: str) -> bool:
    return any(part.startswith(".") for part in path.split("/"))


def _is_binary(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _is_image_type(kind: pa.DataType) -> bool:
    if not pa.types.is_struct(kind):
        return _is_binary(kind)
    position = kind.get_field_index("bytes")
    return position >= 0 and _is_binary(kind[position].type)


def _is_caption_type(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or _is_binary(kind)


def _image_columns(column: pa.Array) -> tuple[pa.Array, pa.Array]:
    """A picture column's bytes and paths, both binary."""
    nothing = pa.nulls(len(column), pa.binary())
    if not pa.types.is_struct(column.type):
        return column, nothing
    # Unlike `field`, `flatten` makes the children of a missing struct missing.
    children = dict(zip((field.name for field in column.type), column.flatten(), strict=True))
    path = children.get("path")
    return children["bytes"], _as_binary(path) if path is not None else nothing


def _as_binary(column: pa.Array) -> pa.Array:
    """Text as its bytes, which may turn out not to be UTF-8; reading them as text would fail."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_large_string(column.type):
        return column.cast(pa.large_binary())
    return column if _is_binary(column.type) else column.cast(pa.binary())


def _shown_type(kind: pa.DataType) -> str:
    if pa.types.is_struct(kind):
        return "struct of " + ", ".join(field.name for field in kind)
    return str(kind)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
