"""What all commands have in common."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from docs import commands
from storage.flags import Command
from storage.made_with import git_commit
from storage.version import VERSION

REPO_ROOT = Path(__file__).resolve().parents[1]
MODULES = [module for group in commands.COMMANDS.values() for module in group]


@pytest.fixture(params=MODULES)
def command(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Command:
    monkeypatch.chdir(REPO_ROOT)
    made: Command = importlib.import_module(request.param).command()
    return made


def test_the_page_of_all_commands_is_what_they_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPO_ROOT)
    assert (REPO_ROOT / "docs" / "commands.md").read_text() == commands.page(), "make commands"


def test_every_example_is_understood(command: Command) -> None:
    assert command.examples
    for words, _ in command.examples:
        command.parse_args([str(word) for word in words])


def test_each_says_what_it_is_and_how_it_ends(
    command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        command.parse_args(["-V"])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert said.startswith(f"{VERSION}, ")
    assert (git_commit() or "no git")[:10] in said
    assert "tensorflow 2." in said
    help_text = command.format_help()
    assert "exit status: 0 done, 1 " in help_text
    assert "examples:" in help_text


def test_a_mistake_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        Command("serving.pull", "Pulls.").parse_args(["--nonsense"])
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert error == "error: unrecognized arguments: --nonsense (see --help)\n"


def test_a_shell_is_told_which_flags_there_are(tmp_path: Path) -> None:
    line = "python runner_local.py --pre"
    completed = tmp_path / "completed"
    asked = {
        "_ARGCOMPLETE": "2",
        "_ARGCOMPLETE_IFS": "\n",
        "_ARGCOMPLETE_STDOUT_FILENAME": str(completed),
        "COMP_LINE": line,
        "COMP_POINT": str(len(line)),
        "COMP_TYPE": "",
    }
    subprocess.run(
        [sys.executable, "runner_local.py"], cwd=REPO_ROOT, env={**os.environ, **asked}, check=True
    )
    assert [word.strip() for word in completed.read_text().splitlines()] == [
        "--preset",
        "--precision",
    ]
