"""What README and docs/ say that can be held against the code: links, and commands as typed."""

from __future__ import annotations

import ast
import functools
import importlib
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from docs import commands, outputs
from docs.outputs import PAGES
from pipeline import command_line

REPO_ROOT = Path(__file__).resolve().parents[1]
LINK = re.compile(r"\]\(([^)\s]+)\)|src=\"([^\"]+)\"")
MAKE_TARGETS = set(re.findall(r"^([a-z-]+):", (REPO_ROOT / "Makefile").read_text(), re.MULTILINE))
PARSERS = {
    module.removesuffix(".__main__").removesuffix(".cli"): module
    for group in commands.COMMANDS.values()
    for module in group
}
# What needs a cloud, the hub, a GPU, or other programs.
AWAY = re.compile(
    r"^docker |tensorflow_model_server|kubectl|gcloud|(?:gs|hf)://|bench-gpu|TF_CONFIG",
    re.MULTILINE,
)
# A form of what follows, not a command.
PLACEHOLDERS = ("...", "[", "|")


def anchors(page: Path) -> set[str]:
    """Names of a page's headings, as GitHub makes them."""
    found: list[str] = []
    fenced = False
    for line in page.read_text().splitlines():
        fenced ^= line.startswith("```")
        if line.startswith("#") and not fenced:
            text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", line.lstrip("# "))
            name = re.sub(r"[^\w\- ]", "", text.lower()).strip().replace(" ", "-")
            found.append(f"{name}-{found.count(name)}" if name in found else name)
    return set(found)


def typed(page: Path) -> Iterator[str]:
    """Every command in a page's blocks of a shell, without what is said behind it."""
    text = page.read_text()
    for block in re.findall(r"^```(?:sh|console)?\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            line = line.removeprefix("$ ").strip()
            if line.startswith((".venv/bin/python", "make ")):
                yield line


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_blank_is_left_to_fill_in(page: Path) -> None:
    assert not re.findall(r"@@|TODO|TBD", page.read_text())


def test_there_are_pages_and_commands() -> None:
    assert len(PAGES) > 15
    assert sum(len(list(typed(page))) for page in PAGES) > 80


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    for found in LINK.finditer(page.read_text()):
        link = found[1] or found[2]
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        if anchor and target.suffix == ".md":
            assert anchor in anchors(target), link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_is_understood(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPO_ROOT)
    for line in typed(page):
        words = shlex.split(line, comments=True)
        if any(placeholder in word for word in words for placeholder in PLACEHOLDERS):
            continue
        if words[0] == "make":
            targets = [word for word in words[1:] if "=" not in word]
            assert set(targets) <= MAKE_TARGETS, line
            continue
        script = words[1].removesuffix(".py") if words[1] != "-m" else words[2]
        if script not in PARSERS:
            continue
        arguments = words[2:] if words[1] != "-m" else words[3:]
        arguments = arguments[: arguments.index(">")] if ">" in arguments else arguments
        module = importlib.import_module(PARSERS[script])
        try:
            if hasattr(module, "_FLAGS"):
                command_line.parse(module.command(), module._FLAGS, arguments)
            else:
                module.command().parse_args(arguments)
        except (SystemExit, Exception) as error:
            if isinstance(error, SystemExit) and error.code == 0:
                continue
            pytest.fail(f"{line}: {error}")


@functools.cache
def said_by_the_code() -> str:
    """Every text in the code, one a line; what stands between values of a message is one, too."""
    files = subprocess.run(
        ["git", "ls-files", "*.py"], cwd=REPO_ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    texts = []
    for name in files:
        if not name.startswith(("tests/", "docs/")):
            for node in ast.walk(ast.parse((REPO_ROOT / name).read_text())):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    texts.append(" ".join(node.value.split()))
    return "\n".join(texts)


def threes(line: str) -> Iterator[str]:
    """Three words in a row, for all that stand in a line outside of quotes, values and paths."""
    for run in re.findall(
        r"(?<![\w/.<-])[a-z]+(?: [a-z]+)+(?![\w/.=>-])", re.sub(r"'[^']*'", "'", line)
    ):
        words = run.split()
        for at in range(len(words) - 2):
            yield " ".join(words[at : at + 3])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_output_says_where_it_comes_from(page: Path) -> None:
    for block in outputs.blocks(page):
        assert block.origin, f"{page.name}:{block.first_line}: {outputs.__doc__}"
        assert bool(block.detail) == (block.origin != "form"), block.first_line


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_messages_are_quoted_as_the_code_has_them(page: Path) -> None:
    for block in outputs.blocks(page):
        if block.origin == "seen":
            missing = [
                three
                for line in block.lines
                for three in threes(line)
                if three not in said_by_the_code()
            ]
            assert not missing, f"{page.name}:{block.first_line}"


SHOWN = ["$ list", "id  name", "...", " 7  seven", "...", "3 in all"]


def test_lines_are_left_out_where_they_were() -> None:
    printed = ["id  name", " 5  six", " 6  six", "12  seven", "13  eight", "14 in all"]
    assert outputs.shortened(SHOWN, printed) == [
        "$ list",
        "id  name",
        "...",
        "12  seven",
        "...",
        "14 in all",
    ]
    with pytest.raises(ValueError, match="7  seven"):
        outputs.shortened(SHOWN, ["id  name", "3 in all"])


def test_blocks_are_made_in_their_order_and_nothing_else_changes(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# Page\n\n<!-- first: echo one > file -->\n<!-- made by: cat file -->\n```\n$ cat file\n"
        "zero\nzero\n```\n\n```sh\ncat file\n```\n<!-- seen: on a GPU -->\n```\nfast\n```\n"
    )
    made = outputs.make(page, tmp_path)
    expected = page.read_text().replace("zero\nzero\n", "one\n").splitlines()
    assert made == expected


@pytest.mark.slow
def test_the_pages_show_what_a_run_prints(tmp_path: Path) -> None:
    run = tmp_path / "run"
    train = [sys.executable, "runner_local.py", "--output", str(run)]
    subprocess.run(train, cwd=REPO_ROOT, check=True)
    assert outputs.main(["--check", "--run", str(run)]) == 0


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_cannot_run_here_is_marked(page: Path) -> None:
    if page.name == "commands.md":  # written by the commands, of which each has its own tests
        return
    fenced = re.findall(r"([^\n]*)\n```sh\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
    for before, commands_ in fenced:
        if found := AWAY.search(commands_):
            assert before.startswith("<!-- not run here: "), found[0]
