"""What the command lines of all commands share."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from storage.addresses import redacted
from storage.commands import module_command, script_command
from storage.user_errors import FailedError, UserError
from storage.version import version_text

DONE, FAILED, MISTAKE = 0, 1, 2
"""Exit statuses of every command: it is done; it failed; or it was not started, because the
command, a setting, or something that they name is wrong."""

Words = Sequence[str | Path]


class Parser(argparse.ArgumentParser):
    """A parser that says in one line what is wrong with a command, without the usage."""

    def error(self, message: str) -> NoReturn:
        """Ends the program."""
        self.exit(MISTAKE, f"error: {redacted(message)} (see --help)\n")


class Command(Parser):
    """The parser of a command; its help ends with examples and exit statuses.

    Attributes:
        examples: Command lines without the program, each with what it does; "" if that is obvious.
    """

    def __init__(
        self,
        program: str,
        description: str,
        examples: Sequence[tuple[Words, str]] = (),
        *,
        notes: str = "",
        failed: str = "it failed",
        takes_version: bool = False,
        **given: Any,
    ) -> None:
        """Makes the parser, with the flags `--help` and `--version` (`-V`).

        Args:
            program: A module of this project, such as `serving.pull`, or a script in the checkout.
            description: What the command does.
            examples: See the class.
            notes: Paragraphs between the examples and the exit statuses.
            failed: What the exit status 1 means here.
            takes_version: Whether the command's own `--version` names a release, so that only `-V`
                shows the version.
            **given: Arguments for `argparse.ArgumentParser`.
        """
        self.examples = tuple(examples)
        self._program = program
        is_script = program.endswith(".py")
        lines = []
        if self.examples:
            lines = ["examples:", *self._example_lines(), ""]
        if notes:
            lines += [notes, ""]
        lines.append(
            f"exit status: {DONE} done, {FAILED} {failed}, {MISTAKE} a mistake in the command or a "
            "setting\n(nothing was started), 130 interrupted by Ctrl-C"
        )
        super().__init__(
            prog=program if is_script else f"python -m {program}",
            description=description,
            epilog="\n".join(lines),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
            **given,
        )
        self.add_argument(
            "-V",
            *(() if takes_version else ("--version",)),
            action=_Version,
            help="show version, commit and packages, then exit",
        )

    def parse_args(self, *arguments: Any, **given: Any) -> Any:
        """See `argparse.ArgumentParser`."""
        tell_shell(self)
        return super().parse_args(*arguments, **given)

    def command_line(self, words: Words) -> str:
        """The command line of an example, as it is typed."""
        if self._program.endswith(".py"):
            return script_command(self._program, *map(str, words))
        return module_command(self._program, *words)

    def _example_lines(self) -> list[str]:
        lines = []
        for words, what in self.examples:
            lines.append(f"  {self.command_line(words)}")
            if what:
                lines.append(f"      {what}")
        return lines


class _Version(argparse.Action):
    def __init__(self, option_strings: Sequence[str], dest: str, help: str) -> None:
        super().__init__(
            option_strings, dest=argparse.SUPPRESS, default=argparse.SUPPRESS, nargs=0, help=help
        )

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        print(version_text())
        parser.exit(DONE)


def report(error: Exception) -> int:
    """Prints the error that ended a command in one line, and returns the exit status."""
    print(f"error: {error}", file=sys.stderr)
    is_mistake = isinstance(error, (UserError, ValueError)) and not isinstance(error, FailedError)
    return MISTAKE if is_mistake else FAILED


def tell_shell(parser: argparse.ArgumentParser) -> None:
    """Answers a shell's request for completions and ends the program; otherwise does nothing."""
    if "_ARGCOMPLETE" in os.environ:
        # serving/ needs only TensorFlow and Pillow.
        with contextlib.suppress(ImportError):
            import argcomplete

            argcomplete.autocomplete(parser)


def positive_number(text: str) -> int:
    """For argparse's `type`: a whole number, 1 or more."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("it must be 1 or more")
    return number
