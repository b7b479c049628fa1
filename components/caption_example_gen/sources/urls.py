"""Recognises tables with the URLs of pictures, which img2dataset can fetch."""

from __future__ import annotations

import posixpath
import shlex
from collections.abc import Sequence

from components.caption_example_gen.sources.base import DatasetError

_URL_COLUMNS = ("url", "image_url", "img_url", "link", "image_link", "src")
_CAPTION_COLUMNS = ("caption", "text", "title", "alt", "description", "prompt")
# Names of img2dataset's input formats.
_INPUT_FORMATS = {".parquet": "parquet", ".csv": "csv", ".tsv": "tsv", ".json": "json",
                  ".jsonl": "jsonl"}  # fmt: skip


def called_like_urls(columns: Sequence[str]) -> list[str]:
    """The first column with a usual name of URLs, if any."""
    found = _called(_URL_COLUMNS, columns)
    return [] if found is None else [found]


def url_error(
    shown: str, file: str, urls: Sequence[str], texts: Sequence[str]
) -> DatasetError | None:
    """The error for a table that has URLs instead of pictures.

    Args:
        shown: Name of the dataset.
        file: The table.
        urls: Its columns with URLs.
        texts: Its columns that may hold captions.

    Returns:
        The error; `None` if there are no URLs.
    """
    if not urls:
        return None
    url = _called(_URL_COLUMNS, urls) or urls[0]
    caption = _called(_CAPTION_COLUMNS, [text for text in texts if text != url])
    input_format = _INPUT_FORMATS.get(posixpath.splitext(file)[1].lower(), "csv")
    words = [
        "img2dataset", "--url_list", file, "--input_format", input_format, "--url_col", url,
        *(["--caption_col", caption] if caption else []),
        "--output_format", "webdataset", "--output_folder", "pictures",
        "--resize_mode", "keep_ratio", "--image_size", "512",
    ]  # fmt: skip
    return DatasetError(
        f"dataset {shown!r} has the URLs of pictures in column {url!r} of {file}, but not the "
        f"pictures: fetch them with img2dataset (pip install img2dataset), and give the folder "
        f"that it makes: {shlex.join(words)}"
    )


def _called(names: Sequence[str], columns: Sequence[str]) -> str | None:
    lower = {column.lower(): column for column in reversed(columns)}
    return next((lower[name] for name in names if name in lower), None)
