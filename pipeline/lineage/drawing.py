"""Draws steps and artifacts as a graph, for Graphviz and as SVG.

The SVG needs neither a program nor a script. Boxes are links, so that the keyboard reaches them,
and colours come from the style sheet of the page, so that dark and light both work.
"""

from __future__ import annotations

import collections
import dataclasses
import html
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence

from pipeline.lineage.model import (
    Artifact,
    Execution,
    Link,
    State,
    short_type,
    shown_seconds,
)
from pipeline.lineage.text import clean

_MAX_OF_A_KEY = 3
_WIDTH, _HEIGHT = 168, 46
_GAP_X, _GAP_Y = 18, 34
_DUMMY_WIDTH = 10
_MARGIN = 8
_SWEEPS = 8
_LABEL, _NOTE = 22, 26

_DOT_COLOURS = {
    State.COMPLETE: "#d5efd9",
    State.CACHED: "#d9e6f7",
    State.FAILED: "#f7d4d4",
    State.RUNNING: "#fbeec2",
    State.CANCELED: "#e4e4e4",
    State.INTERRUPTED: "#f7d4d4",
}


@dataclasses.dataclass(frozen=True)
class Node:
    """A box.

    Attributes:
        key: `step-<id>` or `artifact-<id>`.
        label: The first line.
        note: The second line.
        css: CSS classes: `step` or `artifact`, and the state.
        title: Text for a screen reader.
        state: State of a step; None for an artifact.
        target: Id of the execution or artifact; None for several artifacts in one box.
    """

    key: str
    label: str
    note: str
    css: str
    title: str
    state: State | None
    target: int | None


@dataclasses.dataclass(frozen=True)
class Drawing:
    """Boxes, and arrows as start key, end key and name of the input or output."""

    nodes: tuple[Node, ...]
    edges: tuple[tuple[str, str, str], ...]


def draw(
    executions: Sequence[Execution], links: Iterable[Link], artifacts: Mapping[int, Artifact]
) -> Drawing:
    """Builds the graph of some steps, their inputs and their outputs.

    Resolvers look at every artifact there is: their inputs are drawn only if one of these steps
    produced them. Of many artifacts under one name, only the first few are drawn.
    """
    steps = {e.id: e for e in executions}
    nodes = {f"step-{e.id}": _step_node(e) for e in executions}
    links = [link for link in links if link.execution_id in steps]
    resolvers = {k.execution_id for k in links if k.output and k.internal}
    resolvers |= {e.id for e in executions if short_type(e.type) == "Resolver"}
    left = {k.artifact_id for k in links if k.output and k.execution_id not in resolvers}
    by_key: dict[tuple[int, bool, str], list[Link]] = collections.defaultdict(list)
    for link in sorted(links, key=lambda k: (k.execution_id, k.output, k.key, k.index)):
        if link.execution_id not in resolvers or link.output or link.artifact_id in left:
            by_key[link.execution_id, link.output, link.key].append(link)
    edges: dict[tuple[str, str], str] = {}
    for (execution_id, output, key), several in by_key.items():
        shown = several[:_MAX_OF_A_KEY] if len(several) > _MAX_OF_A_KEY + 1 else several
        boxes = [_artifact_node(artifacts[link.artifact_id]) for link in shown]
        if hidden := len(several) - len(shown):
            boxes.append(_more_node(execution_id, key, hidden))
        for box in boxes:
            nodes.setdefault(box.key, box)
            step = f"step-{execution_id}"
            edges[(step, box.key) if output else (box.key, step)] = key
    return Drawing(tuple(nodes.values()), tuple((a, b, key) for (a, b), key in edges.items()))


def to_dot(drawing: Drawing, name: str) -> str:
    """Returns the graph in Graphviz's DOT language."""
    lines = [f"digraph {_dot(name)} {{", '  node [fontname="sans-serif", style="filled"];']
    for node in drawing.nodes:
        colour = _DOT_COLOURS.get(node.state, "#ffffff") if node.state else "#ffffff"
        shape = "box" if node.state else "note"
        label = _dot(f"{node.label}\n{node.note}" if node.note else node.label)
        lines.append(f'  "{node.key}" [label={label}, shape={shape}, fillcolor="{colour}"];')
    for start, end, key in drawing.edges:
        lines.append(f'  "{start}" -> "{end}" [label={_dot(key)}];')
    return "\n".join([*lines, "}"]) + "\n"


def to_svg(
    drawing: Drawing, title: str, link: Callable[[Node], str | None] = lambda node: None
) -> str:
    """Returns the graph as an SVG element, from top to bottom.

    Args:
        drawing: The graph.
        title: Text for a screen reader.
        link: Returns the link target of a box; None for no link.
    """
    if not drawing.nodes:
        return ""
    places, width, height, routes = _layout(drawing)
    parts = [
        f'<svg class="lineage" role="group" aria-label="{html.escape(title)}" '
        f'xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}">',
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
        'markerHeight="7" orient="auto"><path class="tip" d="M0 0 8 4 0 8z"/></marker></defs>',
        '<g aria-hidden="true">',
    ]
    for (start, end, key), points in zip(drawing.edges, routes, strict=True):
        (x, y), *others = points
        path = f"M{x} {y}"
        for ax, ay in others:
            middle = (y + ay) / 2
            path += f"C{x} {middle:g} {ax} {middle:g} {ax} {ay}"
            x, y = ax, ay
        hint = html.escape(clean(key))
        parts.append(
            f'<path class="edge" data-from="{start}" data-to="{end}" d="{path}" '
            f'marker-end="url(#tip)"><title>{hint}</title></path>'
        )
    parts.append("</g>")
    for node in drawing.nodes:
        x, y = places[node.key]
        name = html.escape(node.title)
        box = (
            f'<title>{name}</title><rect x="{x}" y="{y}" width="{_WIDTH}" height="{_HEIGHT}" '
            f'rx="{3 if node.state else 16}"/>'
            f'<text x="{x + _WIDTH / 2:g}" y="{y + 19}">{html.escape(_cut(node.label, _LABEL))}'
            f'</text><text class="note" x="{x + _WIDTH / 2:g}" y="{y + 35}">'
            f"{html.escape(_cut(node.note, _NOTE))}</text>"
        )
        target = link(node)
        if target is None:
            parts.append(f'<g class="{node.css}" role="img" aria-label="{name}">{box}</g>')
        else:
            parts.append(
                f'<a class="{node.css}" href="{html.escape(target)}" aria-label="{name}">{box}</a>'
            )
    return "\n".join([*parts, "</svg>"])


def _step_node(execution: Execution) -> Node:
    took = shown_seconds(execution.seconds)
    note = execution.state.value if not took else f"{execution.state.value}, {took}"
    return Node(
        f"step-{execution.id}",
        clean(execution.node),
        note,
        f"node step {execution.state.value}",
        clean(f"step {execution.node}: {note}"),
        execution.state,
        execution.id,
    )


def _artifact_node(artifact: Artifact) -> Node:
    kind = clean(short_type(artifact.type))
    return Node(
        f"artifact-{artifact.id}",
        kind,
        f"artifact {artifact.id}",
        f"node artifact {artifact.state.value.replace(' ', '-')}",
        f"artifact {artifact.id}, {kind}, {clean(artifact.shown_state)}",
        None,
        artifact.id,
    )


def _more_node(execution_id: int, key: str, number: int) -> Node:
    return Node(
        f"more-{execution_id}-{''.join(c if c.isalnum() else '-' for c in key)}",
        f"{number} more",
        clean(key),
        "node artifact more",
        f"{number} more artifacts of {clean(key)}",
        None,
        None,
    )


def _layout(
    drawing: Drawing,
) -> tuple[dict[str, tuple[int, int]], int, int, list[list[tuple[int, int]]]]:
    """Corners of the boxes, width and height of the whole, and the points of each arrow.

    Uses layers, as in Sugiyama, Tagawa and Toda (1981): a box is below everything that it came
    from, arrows over several layers get a place in each, and within a layer everything moves
    towards the mean of its neighbours.
    """
    ranks = _ranks([n.key for n in drawing.nodes], drawing.edges)
    layers: list[list[str]] = [[] for _ in range(max(ranks.values()) + 1)]
    for node in drawing.nodes:
        layers[ranks[node.key]].append(node.key)
    neighbours: dict[str, list[str]] = collections.defaultdict(list)
    chains = []
    for number, (start, end, _) in enumerate(drawing.edges):
        low, high = sorted((ranks[start], ranks[end]))
        middle = [f"dummy-{number}-{rank}" for rank in range(low + 1, high)]
        for rank, dummy in zip(range(low + 1, high), middle, strict=True):
            layers[rank].append(dummy)
        chain = [start, *(middle if ranks[start] <= ranks[end] else middle[::-1]), end]
        chains.append(chain)
        for a, b in itertools.pairwise(chain):
            neighbours[a].append(b)
            neighbours[b].append(a)
    centres = _centres(layers, neighbours)
    left = min(centres[k] - _width(k) / 2 for layer in layers for k in layer)
    row = {key: number for number, layer in enumerate(layers) for key in layer}

    def x(key: str) -> int:
        return round(centres[key] - left + _MARGIN)

    def y(key: str) -> int:
        return _MARGIN + row[key] * (_HEIGHT + _GAP_Y)

    routes = []
    for chain in chains:
        down = row[chain[0]] <= row[chain[-1]]
        points = [(x(chain[0]), y(chain[0]) + (_HEIGHT if down else 0))]
        for dummy in chain[1:-1]:
            points += [(x(dummy), y(dummy)), (x(dummy), y(dummy) + _HEIGHT)][:: 1 if down else -1]
        points.append((x(chain[-1]), y(chain[-1]) + (0 if down else _HEIGHT)))
        routes.append(points)
    places = {n.key: (x(n.key) - _WIDTH // 2, y(n.key)) for n in drawing.nodes}
    width = max(x(k) + _width(k) // 2 for layer in layers for k in layer) + _MARGIN
    return places, width, len(layers) * (_HEIGHT + _GAP_Y) - _GAP_Y + 2 * _MARGIN, routes


def _ranks(keys: Sequence[str], edges: Iterable[tuple[str, str, str]]) -> dict[str, int]:
    """Length of the longest path to each box from a box without inputs; cycles are cut open."""
    before: dict[str, list[str]] = collections.defaultdict(list)
    after: dict[str, list[str]] = collections.defaultdict(list)
    for start, end, _ in edges:
        before[end].append(start)
        after[start].append(end)
    missing = {key: len(before[key]) for key in keys}
    ranks = dict.fromkeys(keys, 0)
    waiting = collections.deque(key for key in keys if not missing[key])
    left = dict.fromkeys(keys)
    while left:
        if not waiting:
            waiting.append(next(iter(left)))
        key = waiting.popleft()
        if key not in left:
            continue
        del left[key]
        for follower in after[key]:
            if follower in left:
                ranks[follower] = max(ranks[follower], ranks[key] + 1)
                missing[follower] -= 1
                if missing[follower] <= 0:
                    waiting.append(follower)
    # A box without inputs is placed just above the first box that uses it.
    for key in keys:
        if not before[key] and after[key]:
            ranks[key] = max(0, min(ranks[f] for f in after[key]) - 1)
    return ranks


def _centres(layers: list[list[str]], neighbours: Mapping[str, Sequence[str]]) -> dict[str, float]:
    centres: dict[str, float] = {}
    for layer in layers:
        _spread(layer, dict.fromkeys(layer, 0.0), centres)
    row = {key: number for number, layer in enumerate(layers) for key in layer}
    for sweep in range(_SWEEPS):
        down = sweep % 2 == 0
        for number in range(len(layers)) if down else reversed(range(len(layers))):
            layer = layers[number]
            wanted = {}
            for key in layer:
                nearby = [
                    centres[n]
                    for n in neighbours.get(key, ())
                    if (row[n] < number if down else row[n] > number)
                ]
                wanted[key] = sum(nearby) / len(nearby) if nearby else centres[key]
            layer.sort(key=lambda key: (wanted[key], centres[key]))
            _spread(layer, wanted, centres)
    return centres


def _spread(layer: Sequence[str], wanted: Mapping[str, float], centres: dict[str, float]) -> None:
    """Places the boxes of a layer as near as possible to their wanted centres, without overlaps."""
    groups: list[tuple[list[str], float, float]] = []
    for key in layer:
        keys, width = [key], float(_width(key))
        offset = wanted[key] - width / 2
        # Boxes that would overlap move together, around the mean of their wanted centres.
        while groups and groups[-1][2] + groups[-1][1] + _GAP_X > offset:
            former, former_width, former_offset = groups.pop()
            weight = len(former) + len(keys)
            shifted = offset - former_width - _GAP_X
            offset = (former_offset * len(former) + shifted * len(keys)) / weight
            keys, width = former + keys, former_width + _GAP_X + width
        groups.append((keys, width, offset))
    for keys, _, offset in groups:
        for key in keys:
            centres[key] = offset + _width(key) / 2
            offset += _width(key) + _GAP_X


def _width(key: str) -> int:
    return _DUMMY_WIDTH if key.startswith("dummy-") else _WIDTH


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def _dot(text: str) -> str:
    lines = (clean(line).replace("\\", "\\\\").replace('"', '\\"') for line in text.split("\n"))
    return '"' + "\\n".join(lines) + '"'
