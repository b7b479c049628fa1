"""Makes the output blocks of README.md and docs/ again: `make docs`.

An output block is a fenced block without a language. A comment in the line before it says where it
comes from:

    <!-- made by: COMMAND -->   run here, in the order of the page; a block's own `$ ` line stays
    <!-- seen: WHERE -->        copied from a place that this command cannot reach, such as a cloud
    <!-- form -->               no output: a diagram, or the contents of a file

`<!-- first: COMMAND -->` before these runs a command whose output is not shown. A line `...` in a
block stands for omitted lines: the number of lines before the first and after the last `...` stays
the same, and a part between two of them begins where a line like its first one is printed.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import difflib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from storage.flags import DONE, FAILED

CHECKOUT = Path(__file__).resolve().parents[1]
PAGES = (CHECKOUT / "README.md", CHECKOUT / "CONTRIBUTING.md", *sorted(CHECKOUT.glob("docs/*.md")))
SHOWN_CHECKOUT = "/home/me/fine-tune"
_FENCE = "```"
_LEFT_OUT = "..."
_MARK = re.compile(r"<!-- (first|made by|seen|form)(?:: (.+))? -->")
_NOISE = re.compile(
    r"^(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d+: [EWI] |WARNING|To enable the following)"
)
_CHANGING = re.compile(r"[0-9a-f]{8,}|\d[\d.,:T-]*|\b(?:[KMG]?B|s|min|h|hours?)\b")


@dataclasses.dataclass(frozen=True)
class Block:
    """An output block.

    Attributes:
        page: The file.
        first_line: Index of its first line in the page, below the fence.
        lines: The lines that it shows.
        origin: "made by", "seen" or "form"; "" if there is no comment.
        detail: The detail in the comment: the command, or where it was seen.
        before: Commands to run before it.
    """

    page: Path
    first_line: int
    lines: tuple[str, ...]
    origin: str
    detail: str
    before: tuple[str, ...]


def blocks(page: Path) -> Iterator[Block]:
    """The output blocks of a page, from top to bottom."""
    lines = page.read_text().splitlines()
    before: list[str] = []
    origin = detail = ""
    start, language = None, ""
    for number, line in enumerate(lines):
        if start is None and (mark := _MARK.fullmatch(line)):
            if mark[1] == "first":
                before.append(mark[2])
            else:
                origin, detail = mark[1], mark[2] or ""
        elif start is None and line.startswith(_FENCE):
            start, language = number + 1, line.removeprefix(_FENCE)
        elif start is not None and line == _FENCE:
            if not language:
                shown = tuple(lines[start:number])
                yield Block(page, start, shown, origin, detail, tuple(before))
                before, origin, detail = [], "", ""
            start = None


def shortened(shown: Sequence[str], printed: Sequence[str]) -> list[str]:
    """The printed lines, without the lines that `shown` leaves out.

    Raises:
        ValueError: If a part between two omissions begins with a line that is not printed.
    """
    prompt = [line for line in shown[:1] if line.startswith("$ ")]
    parts: list[list[str]] = [[]]
    for line in shown[len(prompt) :]:
        if line == _LEFT_OUT:
            parts.append([])
        else:
            parts[-1].append(line)
    if len(parts) == 1:
        return [*prompt, *printed]
    head, *middle, tail = parts
    result = [*prompt, *printed[: len(head)]]
    at = len(head)
    for part in middle:
        like = [i for i in range(at, len(printed)) if unchanging(printed[i]) == unchanging(part[0])]
        if not like:
            raise ValueError(f"no line like {part[0]!r} is printed")
        at = like[0] + len(part)
        result += [_LEFT_OUT, *printed[like[0] : at]]
    return [*result, _LEFT_OUT, *(printed[-len(tail) :] if tail else [])]


def unchanging(line: str) -> str:
    """A line without the parts that differ between two runs: numbers, times, hashes and widths."""
    return re.sub(r"[\s-]+", " ", _CHANGING.sub("#", line)).strip()


def output(command: str, folder: Path, check: bool = False) -> list[str]:
    """The output of a command in `folder`, both streams, with another name for the checkout.

    Raises:
        RuntimeError: If `check` is set and the command fails.
    """
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "COLUMNS": "100", "NO_COLOR": "1"}
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if check and done.returncode:
        raise RuntimeError(f"{command}\nended with status {done.returncode}:\n{done.stdout}")
    text = done.stdout.replace(str(folder.resolve()), SHOWN_CHECKOUT).replace(
        str(CHECKOUT), SHOWN_CHECKOUT
    )
    lines = [line.rstrip() for line in text.splitlines() if not _NOISE.match(line)]
    while lines and not lines[-1]:
        del lines[-1]
    return lines


@contextlib.contextmanager
def workspace(run: Path) -> Iterator[Path]:
    """A folder like the checkout, whose `runs/default` is a copy of a finished run."""
    with tempfile.TemporaryDirectory(prefix="docs-") as name:
        folder = Path(name)
        for entry in CHECKOUT.iterdir():
            if entry.name not in ("runs", ".git"):
                (folder / entry.name).symlink_to(entry)
        shutil.copytree(run, folder / "runs/default")
        yield folder


def make(page: Path, folder: Path) -> list[str]:
    """The lines of a page, with every block made again if possible."""
    lines = page.read_text().splitlines()
    moved = 0
    for block in blocks(page):
        if block.origin != "made by":
            continue
        for command in block.before:
            output(command, folder, check=True)
        made = shortened(block.lines, output(block.detail, folder))
        start = block.first_line + moved
        lines[start : start + len(block.lines)] = made
        moved += len(made) - len(block.lines)
    return lines


def main(argv: list[str] | None = None) -> int:
    """Writes the pages; with `--check`, shows what would be different, and returns 1."""
    parser = argparse.ArgumentParser(prog="python -m docs.outputs", description=__doc__)
    parser.add_argument("--run", type=Path, default=Path("runs/default"), help="(%(default)s)")
    parser.add_argument(
        "--check", action="store_true", help="write nothing; fail if words would differ"
    )
    parser.add_argument("pages", nargs="*", type=Path, help="(all)")
    options = parser.parse_args(argv)
    if not (options.run / "metadata.sqlite").is_file():
        parser.error(f"{options.run} has no finished run: make run")
    status = DONE
    for page in [path.resolve() for path in options.pages] or PAGES:
        if not any(block.origin == "made by" for block in blocks(page)):
            continue
        with workspace(options.run) as folder:
            made = make(page, folder)
        if not options.check:
            page.write_text("\n".join(made) + "\n")
            continue
        different = difflib.unified_diff(
            [unchanging(line) for line in page.read_text().splitlines()],
            [unchanging(line) for line in made],
            page.name,
            "made again",
            n=0,
            lineterm="",
        )
        for line in different:
            print(line, file=sys.stderr)
            status = FAILED
    return status


if __name__ == "__main__":
    sys.exit(main())
