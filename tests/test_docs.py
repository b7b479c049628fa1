"""What README and docs/ say that can be held against the code: links, and commands as typed."""

from __future__ import annotations

import importlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from docs import commands
from pipeline import command_line

REPO_ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(
    page
    for page in (
        REPO_ROOT / "README.md",
        REPO_ROOT / "CONTRIBUTING.md",
        *(REPO_ROOT / "docs").glob("*.md"),
    )
)
LINK = re.compile(r"\]\(([^)\s]+)\)|src=\"([^\"]+)\"")
MAKE_TARGETS = set(re.findall(r"^([a-z-]+):", (REPO_ROOT / "Makefile").read_text(), re.MULTILINE))
PARSERS = {
    module.removesuffix(".__main__").removesuffix(".cli"): module
    for group in commands.COMMANDS.values()
    for module in group
}
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
