"""Shows how the pipeline would read a dataset, without changing anything.

python -m components.caption_example_gen.look PATH [dataset flags of the runner]
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TextIO

from components.caption_example_gen.sources import (
    DatasetSpec,
    Row,
    Source,
    open_dataset,
    resolve_dataset,
)
from components.caption_example_gen.sources.base import (
    CAPTIONS_FROM,
    LINES_EACH,
    LINES_JOINED,
    shown_path,
)
from storage.errors import one_line
from storage.flags import Command
from storage.images import ImageError, inspect_image
from storage.user_errors import UserError

_ROWS = 10
# Up to this size all rows are checked, which takes a second.
_SMALL_BYTES = 100 << 20
_CAPTION_CHARACTERS = 60
_FAILED = 2


def main(argv: Sequence[str] | None = None, out: TextIO | None = None) -> int:
    """Runs the command.

    Args:
        argv: The command line; `None` for the program's own.
        out: Where the answer goes; `None` for standard output.

    Returns:
        0; or 2 if the dataset cannot be read, with one line on standard error that says why.
    """
    arguments = command().parse_args(argv)
    try:
        spec = resolve_dataset(
            DatasetSpec(
                dataset=arguments.dataset,
                config=arguments.dataset_config,
                split=arguments.dataset_split,
                image_column=arguments.image_column,
                caption_column=arguments.caption_column,
                form=arguments.dataset_form,
                caption=arguments.caption,
                captions_from=arguments.captions_from,
                caption_lines=arguments.caption_lines,
            )
        )
        for line in _lines(open_dataset(spec), spec, arguments.rows):
            print(line, file=out)
    except (UserError, OSError) as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return _FAILED
    return 0


def command() -> Command:
    """The parser of the command line."""
    parser = Command(
        "components.caption_example_gen.look",
        "Shows how the pipeline would read a dataset, without changing anything.",
        [
            ((Path("data/creatures"),), ""),
            (("you/pictures@v2", "--caption-column", "caption"), "a dataset of the hub"),
        ],
    )
    parser.add_argument("dataset", help="folder, archive, gs:// URL or dataset on the hub")
    parser.add_argument("--rows", type=int, default=_ROWS, help="rows to show (default: 10)")
    parser.add_argument("--dataset-config", default="", help="configuration (subset)")
    parser.add_argument("--dataset-split", default="train", help="split to read, or all")
    parser.add_argument("--image-column", default="", help="column with the pictures")
    parser.add_argument("--caption-column", default="", help="column with the captions")
    parser.add_argument("--dataset-form", default="", help="form to read the files as")
    parser.add_argument("--caption", default="", help="caption of pictures that have none")
    parser.add_argument(
        "--captions-from",
        default="",
        choices=CAPTIONS_FROM,
        help="source of the captions of pictures that have none",
    )
    parser.add_argument(
        "--caption-lines",
        default=LINES_JOINED,
        choices=(LINES_JOINED, LINES_EACH),
        help="whether the lines of a caption file are one caption or one each",
    )
    return parser


def _lines(source: Source, spec: DatasetSpec, num_rows: int) -> Iterator[str]:
    yield spec.dataset
    yield f"  {source.taken_for}"
    columns = [
        f"{name} from {column!r}"
        for name, column in (
            ("pictures", source.image_column),
            ("captions", source.caption_column),
        )
        if column
    ]
    if columns:
        yield f"  {', '.join(columns)}"
    size = source.image_bytes / 2**20
    yield f"  reads {len(source.paths):,} files with {size:,.1f} MiB of pictures"
    if source.left_out:
        number, first = len(source.left_out), source.left_out[0]
        yield f"  leaves out {number:,} files of other splits, such as {first}"
    rows = (row for unit in source.units() for row in source.read(unit, peek=True))
    shown = list(itertools.islice(rows, num_rows))
    if num_rows:
        yield f"The first {len(shown)} rows:" if shown else "There are no rows."
    for row in shown:
        yield f"  {_picture(row)}  {_captions(row)}"
    if source.image_bytes > _SMALL_BYTES:
        yield "The other rows are checked when they are read."
        return
    number, bad = len(shown), [row for row in shown if _is_bad(row)]
    for row in rows:
        number += 1
        if _is_bad(row):
            bad.append(row)
            yield f"  {_picture(row)}  {_captions(row)}"
    yield f"{number:,} rows, of which {len(bad):,} would be set aside."


def _is_bad(row: Row) -> bool:
    try:
        inspect_image(row.image or b"")
        captions = [caption.decode("utf-8") for caption in row.captions if caption is not None]
    except (ImageError, UnicodeDecodeError):
        return True
    return not any(caption.strip() for caption in captions)


def _picture(row: Row) -> str:
    name = shown_path(row.path) or f"{row.file} row {row.number}"
    repeats = "" if row.repeats is None else f" x{row.repeats}"
    if row.image is None:
        return f"{name}: SET ASIDE, {row.image_problem or 'the row has no picture'}"
    try:
        facts = inspect_image(row.image)
    except ImageError as error:
        return f"{name}: SET ASIDE, {error}"
    return f"{name}{repeats} ({facts.format}, {facts.width} x {facts.height})"


def _captions(row: Row) -> str:
    return " | ".join(_caption(caption, row) for caption in row.captions)


def _caption(caption: bytes | None, row: Row) -> str:
    # A problem with the picture itself is shown before its captions.
    problem = f" ({row.image_problem})" if row.image is not None and row.image_problem else ""
    if caption is None:
        return f"no caption{problem}"
    try:
        blank = "" if caption.strip() else ": SET ASIDE, it is empty"
        return repr(_shortened(caption.decode("utf-8"))) + blank
    except UnicodeDecodeError:
        shown = repr(_shortened(caption.decode("utf-8", "replace")))
        return f"{shown}: SET ASIDE, {row.image_problem or 'it is not UTF-8 text'}"


def _shortened(text: str) -> str:
    return text if len(text) <= _CAPTION_CHARACTERS else f"{text[:_CAPTION_CHARACTERS]} ..."


if __name__ == "__main__":
    sys.exit(main())
