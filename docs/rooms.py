"""Draws the rooms of this project and what they import: `python -m docs.rooms`, or `make rooms`."""

from __future__ import annotations

import argparse
import collections
import sys
from collections.abc import Mapping
from pathlib import Path

import grimp

from pipeline.lineage.drawing import Drawing, Node, to_svg

_PICTURE = Path(__file__).parent / "images" / "rooms.svg"
_PACKAGES = ("components", "data", "pipeline", "serving", "storage", "trainer")
# Besides the rooms of trainer/; a module in no room belongs to its package.
_ROOMS = ("pipeline.lineage",)
# The names that trainer/ gives a notebook, and the commands, which hold only a call.
_NO_ROOM = ("trainer", "trainer.diffusers_export", "trainer.pretrain")
# Libraries that a room knows: worth a word in its box.
_LIBRARIES = {"tfx": "TFX", "apache_beam": "Beam", "keras_cv": "KerasCV", "keras": "Keras"}
_STYLE = """<style>
text { font-family: sans-serif; font-size: 13px; font-weight: 600; text-anchor: middle }
text { fill: #1f2328 }
.note { font-size: 11px; font-weight: 400; fill: #59636e }
rect { fill: #f6f8fa; stroke: #818b98 }
.trainer rect { fill: #ddf4ff }
.edge { fill: none; stroke: #818b98 }
.tip { fill: #818b98 }
@media (prefers-color-scheme: dark) {
  text { fill: #f0f6fc }
  .note { fill: #9198a1 }
  rect { fill: #212830 }
  .trainer rect { fill: #12304f }
}
</style>"""


def picture() -> str:
    """The rooms as SVG: importing rooms above, imported rooms below.

    An import that is also reached another way gets no arrow.
    """
    graph = grimp.build_graph(*_PACKAGES, include_external_packages=True, cache_dir=None)
    below: dict[str, set[str]] = collections.defaultdict(set)
    libraries: dict[str, set[str]] = collections.defaultdict(set)
    for module in graph.modules:
        room = _room(module)
        if room is None:
            continue
        below[room] |= set()
        for imported in graph.find_modules_directly_imported_by(module):
            if imported in _LIBRARIES:
                libraries[room].add(imported)
            elif (other := _room(imported)) not in (None, room):
                below[room].add(other)
    nodes = tuple(
        _node(room, not graph.find_children(room), libraries[room]) for room in sorted(below)
    )
    edges = tuple(
        (room, other, "") for room in sorted(below) for other in sorted(_direct(room, below))
    )
    svg = to_svg(Drawing(nodes, edges), "The rooms of this project and what they import")
    start, end, rest = svg.partition(">")
    return f"{start}{end}\n{_STYLE}{rest}\n"


def _room(module: str) -> str | None:
    package, _, inside = module.partition(".")
    if package not in _PACKAGES or module in _NO_ROOM:
        return None
    room = f"{package}.{inside.partition('.')[0]}"
    return room if package == "trainer" or room in _ROOMS else package


def _node(room: str, is_file: bool, libraries: set[str]) -> Node:
    package, _, name = room.partition(".")
    known = ", ".join(word for module, word in _LIBRARIES.items() if module in libraries)
    label = f"{name or package}.py" if is_file else f"{name or package}/"
    note = ": ".join(filter(None, (package if name else "", known)))
    return Node(room, label, note, f"node {package}", f"{label} {note}", None, None)


def _direct(room: str, below: Mapping[str, set[str]]) -> set[str]:
    """The rooms that it imports and does not reach another way."""
    return {
        other
        for other in below[room]
        if not any(other in _reached(way, below) for way in below[room] - {other})
    }


def _reached(room: str, below: Mapping[str, set[str]]) -> set[str]:
    found: set[str] = set()
    left = [room]
    while left:
        new = below[left.pop()] - found
        found |= new
        left += new
    return found


def main() -> int:
    """Writes the picture, or says that it is out of date."""
    parser = argparse.ArgumentParser(prog="python -m docs.rooms", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail if it differs")
    if not parser.parse_args().check:
        _PICTURE.write_text(picture())
    elif not _PICTURE.is_file() or _PICTURE.read_text() != picture():
        print(f"{_PICTURE} is out of date: make rooms", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
