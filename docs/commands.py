"""Writes docs/commands.md from the commands themselves: `make commands`."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

from storage.flags import DONE, FAILED, MISTAKE, Command, Words

_WIDTH = 76
_PAGE = Path(__file__).with_name("commands.md")
COMMANDS = {
    "Running": ("runner_local", "runner_vertex", "pipeline.train", "pipeline.clean"),
    "Asking": ("pipeline.lineage.cli", "pipeline.reproduce", "components.caption_example_gen.look"),
    "Drawing and serving": (
        "serving.generate",
        "serving.playground",
        "serving.releases.__main__",
        "serving.publish",
        "serving.pull",
        "serving.redraw",
    ),
    "Weights": ("trainer.diffusers_export", "trainer.pretrain"),
}
_HEAD = f"""\
# Commands

`--help` lists a command's flags, and `--version` prints its version (`-V` if `--version` names a
release). All commands exit with the same statuses: {DONE}, done; {FAILED}, it failed, or the answer
is no; {MISTAKE}, the command, a setting or what they name is wrong, and nothing was started; 130,
it was interrupted. `make help` lists the targets of `make`. To complete flags in bash and zsh:

```sh
eval "$(.venv/bin/activate-global-python-argcomplete --dest=-)"
```

*Written by `make commands` from the commands themselves.*
"""


def page() -> str:
    """The page."""
    parts = [_HEAD]
    for title, modules in COMMANDS.items():
        parts.append(f"\n## {title}\n")
        for module in modules:
            command: Command = importlib.import_module(module).command()
            parts.append(f"\n### `{command.prog.removeprefix('python ').removeprefix('-m ')}`\n\n")
            parts.append(f"{_paragraph(command.description or '')}\n\n```sh\n")
            parts += [f"{line}\n" for line in _lines(command)]
            parts.append("```\n")
    return "".join(parts)


def _paragraph(text: str) -> str:
    return " ".join(text.split())


def _lines(command: Command) -> Iterator[str]:
    typed = [_typed(command, words) for words, _ in command.examples]
    width = min(_WIDTH, max(map(len, typed)))
    for line, (_, what) in zip(typed, command.examples, strict=True):
        yield f"{line:<{width}}  # {what}" if what else line


def _typed(command: Command, words: Words) -> str:
    python, *rest = command.command_line(words).split(" ")
    return " ".join([".venv/bin/python", *rest]) if "python" in python else " ".join(rest)


def main(argv: list[str] | None = None) -> int:
    """Writes the page; with `--check`, returns 1 if it differs."""
    parser = argparse.ArgumentParser(prog="python -m docs.commands", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail if it differs")
    if not parser.parse_args(argv).check:
        _PAGE.write_text(page())
    elif not _PAGE.is_file() or _PAGE.read_text() != page():
        print(f"{_PAGE} is out of date: make commands", file=sys.stderr)
        return FAILED
    return DONE


if __name__ == "__main__":
    sys.exit(main())
