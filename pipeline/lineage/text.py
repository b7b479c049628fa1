"""Answers as text: tables for people, JSON for programs.

Anybody may have written the text in a store, so control characters are shown, never sent to the
terminal.
"""

from __future__ import annotations

import dataclasses
import datetime
import enum
import math
import textwrap
import unicodedata
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.lineage.affected import Affected
from pipeline.lineage.comparing import Comparison, Diff, Difference, Why
from pipeline.lineage.history import Known, Releases
from pipeline.lineage.model import (
    LOSS,
    Artifact,
    Execution,
    Link,
    Run,
    State,
    headline_metrics,
    short_type,
    shown_seconds,
    shown_time,
    shown_value,
)
from pipeline.lineage.row_changes import ADDED, REMOVED, RowChanges
from pipeline.lineage.tracing import BEFORE, COMPARED, Impact, Standing, Touched, Trace
from pipeline.lineage.whence import Whence
from storage.picture_marks import Marks

_MAX_CELL = 60
_MAX_NAME = 40
_SHORT_CAPTION = 30
_BAR = 24
# Categories of characters that move the cursor, or hide or reorder what is around them.
_HIDDEN = ("Cc", "Cf", "Cs", "Co", "Zl", "Zp")


def clean(text: str) -> str:
    """`text` with its control characters shown as escapes."""
    if text.isprintable():
        return text
    return "".join(
        c
        if unicodedata.category(c) not in _HIDDEN
        else c.encode("unicode_escape", "backslashreplace").decode()
        for c in text
    )


def cut(text: str, width: int = _MAX_CELL) -> str:
    """`text`, cleaned, on one line of at most `width` columns."""
    line = clean(text)
    if _width(line) <= width:
        return line
    while _width(line) > width - 3:
        line = line[: max(width - 3, 0)] if len(line) > width - 3 else line[:-1]
    return line + "..."


def table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Aligned columns; columns of numbers are right-aligned."""
    cells = [[clean(cell) for cell in row] for row in rows]
    headers = [clean(header) for header in headers]
    columns = list(zip(*cells, strict=True)) if cells else [()] * len(headers)
    widths = [
        max(_width(h), *map(_width, column), 0) for h, column in zip(headers, columns, strict=True)
    ]
    numeric = [bool(any(c)) and all(_is_number(x) for x in c if x) for c in columns]

    def line(row: Sequence[str]) -> str:
        padded = []
        for cell, width, right in zip(row, widths, numeric, strict=True):
            space = " " * (width - _width(cell))
            padded.append(space + cell if right else cell + space)
        return "  ".join(padded).rstrip()

    return "\n".join([line(headers), line(["-" * w for w in widths]), *map(line, cells)])


def jsonable(value: Any) -> Any:
    """`value` for strict JSON: times in ISO 8601 with durations beside them, no NaN."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {
            field.name: _json_field(field.name, getattr(value, field.name))
            for field in dataclasses.fields(value)
        }
        if isinstance(value, (Run, Execution)):
            fields["seconds"] = value.seconds
        return fields
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {str(k): jsonable(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [jsonable(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def fitted_table(
    headers: Sequence[str],
    rows: Iterable[Sequence[str]],
    width: int | None,
    kept: Collection[str] = (),
) -> str:
    """A table of the columns that fit, in order, with the names of the others below it.

    Args:
        headers: Names of the columns, most important first.
        rows: The cells.
        width: Width of the terminal; None for all columns.
        kept: Columns that are always shown, besides the first two.
    """
    rows = list(rows)
    if width is None:
        return table(headers, rows)
    shown, used = [], 0
    for place, header in enumerate(headers):
        wide = max(_width(clean(text)) for text in (header, *(row[place] for row in rows)))
        if place < 2 or header in kept or used + 2 + wide <= width:
            shown.append(place)
            used += wide + (2 if used else 0)
    fitted = table([headers[i] for i in shown], [[row[i] for i in shown] for row in rows])
    left_out = [clean(header) for i, header in enumerate(headers) if i not in shown]
    if not left_out:
        return fitted
    note = f"not shown, for want of width: {', '.join(left_out)} (--all shows every column)"
    return f"{fitted}\n\n{textwrap.fill(note, width)}"


def runs_text(runs: Sequence[Run], width: int | None = None) -> str:
    """The list of runs; see `fitted_table`."""
    if not runs:
        return "no runs"
    metrics = [name for name in headline_metrics(runs) if name != LOSS]
    rows = [
        [
            str(run.id),
            ", ".join(run.releases),
            run.shown_blessing,
            shown_value(run.metrics.get(LOSS)),
            run.shown_change,
            run.status.value,
            cut(run.name, _name_width(width)),
            shown_seconds(run.seconds),
            shown_time(run.started),
            *(shown_value(run.metrics.get(name)) for name in metrics),
            counted(run.steps),
        ]
        for run in runs
    ]
    first = ["id", "release", "blessed", LOSS, "change", "status", "run", "took", "started"]
    return fitted_table([*first, *metrics, "steps"], rows, width)


def run_text(
    run: Run, steps: Sequence[Execution], links: Sequence[Link], artifacts: Mapping[int, Artifact]
) -> str:
    """A run and its steps, with their settings, inputs and outputs."""
    blocks = [
        pairs(
            [
                ("run", f"{run.name} (id {run.id})"),
                ("pipeline", run.pipeline),
                ("status", run.status.value),
                ("started", shown_time(run.started)),
                ("took", shown_seconds(run.seconds)),
                *((name, shown_value(value)) for name, value in run.metrics.items()),
                ("blessed", run.shown_blessing),
                ("releases", ", ".join(run.releases)),
                *(
                    (step.state.value, f"{step.node}: {step.error.splitlines()[0]}")
                    for step in steps
                    if step.error.strip()
                ),
            ]
        ),
        table(
            ["id", "step", "state", "took"],
            [[str(e.id), e.node, e.state.value, shown_seconds(e.seconds)] for e in steps],
        ),
    ]
    for execution in steps:
        mine = [link for link in links if link.execution_id == execution.id]
        lines = [f"{clean(execution.node)} (step {execution.id}, {execution.state.value})"]
        if execution.error:
            lines += [f"  error  {clean(line)}" for line in execution.error.splitlines()]
        for link in sorted(mine, key=lambda k: (k.output, k.key, k.index)):
            lines.append(f"  {'->' if link.output else '<-'} {_linked(link, artifacts)}")
        if execution.settings:
            lines.append(pairs([(k, shown_value(v)) for k, v in execution.settings.items()], "  "))
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def artifact_text(
    artifact: Artifact,
    links: Sequence[Link],
    executions: Mapping[int, Execution],
    standing: Standing,
) -> str:
    """An artifact, its properties, and the steps that made and used it."""
    lines = [
        pairs(
            [
                ("artifact", str(artifact.id)),
                ("type", artifact.type),
                ("name", artifact.name),
                ("state", artifact.shown_state),
                ("uri", artifact.uri),
                ("created", shown_time(artifact.created)),
                ("run", f"{standing.run.name} (id {standing.run.id})" if standing.run else ""),
                ("dataset", ", ".join(standing.datasets)),
                ("releases", ", ".join(standing.releases)),
            ]
        )
    ]
    if artifact.properties:
        lines.append(pairs([(k, shown_value(v)) for k, v in artifact.properties.items()], "  "))
    rows = [
        [
            "output of" if link.output else "input of",
            str(link.execution_id),
            executions[link.execution_id].node,
            executions[link.execution_id].state.value,
            link.key,
        ]
        for link in links
    ]
    if rows:
        lines.append(table(["", "id", "step", "state", "as"], rows))
    return "\n\n".join(lines)


def trace_text(trace: Trace) -> str:
    """What made an artifact."""
    subject = trace.subject
    what = (
        f"release {trace.release}, artifact {subject.id}"
        if trace.release
        else (f"artifact {subject.id}")
    )
    head = [("traced", f"{what} ({subject.type})"), ("uri", subject.uri)]
    if subject.removed:
        head.append(("state", subject.shown_state))
    if trace.run:
        head.append(("run", f"{trace.run.name} (id {trace.run.id})"))
    blocks = [pairs(head)]
    for section in dict.fromkeys(fact.section for fact in trace.facts):
        rows = [
            [
                f"  {fact.name}",
                cut(shown_value(fact.value), 78),
                fact.step,
                f"artifact {fact.artifact_id}" if fact.artifact_id else f"step {fact.execution_id}",
            ]
            for fact in trace.facts
            if fact.section == section
        ]
        blocks.append("\n".join([section, *columns(rows)]))
    steps = [
        [
            str(step.execution.id),
            step.execution.node,
            step.role,
            step.execution.state.value,
            _ids(link for link in step.links if not link.output),
            _ids(link for link in step.links if link.output),
        ]
        for step in trace.steps
    ]
    blocks.append(table(["id", "step", "role", "state", "inputs", "outputs"], steps))
    if any(step.role == BEFORE for step in trace.steps):
        blocks.append(f"Steps with the role `{BEFORE}` made the models that training started from.")
    if any(step.role == COMPARED for step in trace.steps):
        blocks.append(
            "Steps with the role `baseline` made the model that the evaluation compared it with."
        )
    if removed := [artifact for artifact in trace.artifacts.values() if artifact.removed]:
        rows = [[str(a.id), short_type(a.type), a.removed] for a in sorted(removed, key=_by_id)]
        blocks.append(table(["artifact", "type", "removed on"], rows))
    return "\n\n".join(blocks)


def impact_text(impact: Impact, width: int | None = None) -> str:
    """What something touched; see `fitted_table`."""
    made = [r for r in impact.releases if r.made_of]
    blocks = [
        "\n".join(["found as", *(f"  {clean(line)}" for line in impact.matched)]),
        f"{len(impact.runs)} runs, {len(impact.models)} models, {len(impact.releases)} releases "
        f"({len(made)} made of it, {len(impact.releases) - len(made)} compared with what was)",
    ]
    for title, several in (("releases", impact.releases), ("models", impact.models)):
        if several:
            blocks.append(
                f"{title}\n"
                + fitted_table(
                    ["artifact", "release", "how", "run", "status", "uri"],
                    (_touched(touched, width) for touched in several),
                    width,
                )
            )
    if impact.runs:
        blocks.append("runs\n" + runs_text(impact.runs, width))
    counted_types = [[short_type(kind), str(n)] for kind, n in impact.artifacts.items()]
    blocks.append("artifacts, including itself\n" + table(["type", "number"], counted_types))
    return "\n\n".join(blocks)


def diff_text(diff: Diff) -> str:
    """Two runs side by side."""
    blocks = [
        pairs(
            [
                (name, f"{run.name} (id {run.id}), {run.status.value}, {shown_time(run.started)}")
                for name, run in (("first", diff.first), ("second", diff.second))
            ]
        )
    ]
    for section in dict.fromkeys(d.section for d in diff.differences):
        rows = [
            [d.step, d.name, *_where_they_differ(d), change(d)]
            for d in diff.differences
            if d.section == section
        ]
        blocks.append(f"{section}\n" + table(["step", "what", "first", "second", "change"], rows))
    same = f"{diff.equal} settings, facts and metrics are the same"
    blocks.append(same if diff.differences else f"Nothing differs: {same}")
    return "\n\n".join(blocks)


def history_text(found: Releases, width: int | None = None) -> str:
    """All releases; see `fitted_table`."""
    rows = []
    for release in found.releases:
        run, changes = release.run, release.changes
        loss = None if run is None else run.metrics.get(LOSS)
        rows.append(
            [
                release.version,
                shown_time(release.artifact.created),
                shown_value(loss),
                "" if run is None else run.shown_change,
                shown_value(release.fixed_loss),
                "" if release.rows is None else f"{release.rows:,}",
                *(
                    "" if changes is None else f"{changes.number(kind):,}"
                    for kind in (ADDED, REMOVED)
                ),
                cut(release.drift or "", _MAX_NAME),
                "" if run is None else shown_seconds(run.seconds),
                "" if release.size is None else f"{release.size / 1e6:,.0f} MB",
                "" if run is None else cut(run.name, _MAX_NAME),
            ]
        )
    headers = [
        "release", "pushed", LOSS, "change", "fixed loss", "rows", ADDED, REMOVED, "drift", "took",
        "size", "run",
    ]  # fmt: skip
    return f"{fitted_table(headers, rows, width)}\n\n{found.note}"


def row_changes_text(changes: RowChanges) -> str:
    """What differs between two datasets, row by row."""
    lines = [f"{changes.summary}; before, there were {changes.rows_before:,} rows"]
    for change in changes.changes:
        sides = [clean(side) for side in (change.before, change.now) if side is not None]
        lines.append(f"  {change.kind}: {' -> '.join(sides)}")
    return "\n".join(lines)


def known_text(known: Known) -> str:
    """Which releases know a picture or a caption, in words."""
    rows = [("looked for", known.asked_for)]
    rows += [("caption", caption) for caption in known.captions]
    if known.trained_on:
        rows.append(("first known to", f"release {known.trained_on[0]}"))
        rows.append(("trained on by", ", ".join(known.trained_on)))
    if known.held_out:
        rows.append(("held out for", ", ".join(known.held_out)))
    if known.unknown:
        rows.append(("unknown for", ", ".join(known.unknown)))
    return pairs(rows)


def affected_text(affected: Affected, width: int | None = None) -> str:
    """Where a picture ended up; see `fitted_table`."""
    found = affected.found
    several = [
        (
            "rows",
            ["row", "how", "caption", "trained on in", "held out in", "picture"],
            [
                [
                    row.id[:12],
                    nearness(row.near),
                    row.caption if width is None else cut(row.caption, _SHORT_CAPTION),
                    *(", ".join(map(str, ids)) for ids in (row.trained_on, row.held_out)),
                    row.picture[:12],
                ]
                for row in found.rows
            ],
        ),
        (
            "runs and models",
            ["run", "how", "model"],
            [
                ["unknown" if m.run is None else m.run.name, m.how, f"artifact {m.artifact.id}"]
                for m in affected.models
            ],
        ),
        (
            "releases",
            ["release", "how", "served now", "run"],
            [
                [r.version, r.how, in_words(r.served), "unknown" if r.run is None else r.run.name]
                for r in affected.releases
            ],
        ),
    ]
    blocks = [pairs([("looked for", affected.asked_for), *served_rows(affected)])]
    for title, headers, cells in several:
        shown = fitted_table(headers, cells, width) if cells else "none"
        blocks.append(f"{title}\n{shown}")
    blocks += [
        f"{said}\n"
        + "\n".join(f"  artifact {number}: {clean(why)}" for number, why in which.items())
        for said, which in (
            ("datasets whose rows are unknown", found.unread),
            ("datasets in which near duplicates cannot be found", found.unseen),
        )
        if which
    ]
    blocks.append(
        "to withdraw it, add to the file of dataset.withdrawn\n"
        + "\n".join(f"{line} # REASON" for line in affected.lines)
    )
    return "\n\n".join(blocks)


def served_rows(affected: Affected) -> list[tuple[str, str]]:
    """What is served now, as names and values."""
    knowing = {r.version for r in affected.releases if r.served and r.how != "held out"}
    rows = []
    for place, version in affected.served.items():
        if version is None:
            said = f"unknown: {place} is not available"
        else:
            knows = "is listed below" if version in knowing else "is not listed below"
            said = f"release {version}, which {knows}"
        rows.append(("served now", said))
    return rows


def nearness(near: str) -> str:
    """How a row was found, in words."""
    return f"nearly {near[:12]}" if near else "itself"


def in_words(holds: bool | None) -> str:
    """Yes, no, or unknown."""
    return "unknown" if holds is None else "yes" if holds else "no"


def whence_text(found: Whence) -> str:
    """Where a picture comes from."""
    words = {True: "yes", False: "NO", None: "unknown"}
    blocks = [
        pairs(
            [
                ("picture", found.picture),
                *(("drawn", line) for marks in found.marks for line in drawn_lines(marks)),
            ]
        ),
        "\n".join(
            [
                "checked",
                *columns([[f"  {c.name}", words[c.holds], c.said] for c in found.checks]),
            ]
        ),
        trace_text(found.trace),
    ]
    return "\n\n".join(blocks)


def drawn_lines(marks: Marks) -> list[str]:
    """The request that a picture was drawn from, in words."""
    prompt = "a prompt that is not recorded" if marks.prompt is None else repr(marks.prompt)
    without = f", without {marks.negative_prompt!r}" if marks.negative_prompt else ""
    source = (
        f", from a picture at strength {marks.strength:g}" if marks.strength is not None else ""
    )
    return [
        f"{prompt}{without}",
        f"seed {marks.seed}, {marks.num_steps} steps of {marks.sampler}, guidance "
        f"{marks.guidance_scale:g}, {marks.width} x {marks.height} pixels{source}",
    ]


def why_text(why: Why) -> str:
    """Why a step was executed or not."""
    execution = why.execution
    rows = [
        ("step", f"{execution.node} (step {execution.id}, {execution.state.value})"),
        ("run", f"{why.run.name} (id {why.run.id})" if why.run else ""),
        ("cache", why.verdict),
        ("why", why.explanation),
    ]
    if why.earlier is not None:
        label = "taken from" if why.verdict == "hit" else "compared with"
        run = f" of run {why.earlier_run.name}" if why.earlier_run else ""
        rows.append((label, f"step {why.earlier.id}{run}"))
    blocks = [pairs(rows)]
    if execution.error.strip():
        ended = "interrupted" if execution.state is State.INTERRUPTED else "failed"
        lines = [f"  {clean(line)}" for line in execution.error.splitlines()]
        blocks.append("\n".join([ended, *lines]))
    if why.causes:
        blocks.append(
            table(
                ["step", "what", "name", "before", "now"],
                [
                    [
                        "  " * cause.depth + cause.step,
                        cause.kind,
                        cause.name,
                        cut(shown_value(cause.before)),
                        cut(shown_value(cause.now)),
                    ]
                    for cause in why.causes
                ],
            )
        )
    return "\n\n".join(blocks)


def comparison_text(
    comparison: Comparison, width: int | None = None, kept: Sequence[str] = ()
) -> str:
    """Metrics over runs, the first metric as bars; see `fitted_table`."""
    if not comparison.rows:
        return "no runs with metrics"
    metrics = list(comparison.metrics)
    first = metrics[0] if metrics else None
    values = [row.run.metrics.get(first) for row in comparison.rows] if first else []
    known = [v for v in values if v is not None]
    rows = []
    for row in comparison.rows:
        value = row.run.metrics.get(first) if first else None
        rows.append(
            [
                str(row.run.id),
                cut(row.run.name, _name_width(width)),
                row.run.status.value,
                *(shown_value(row.settings.get(name)) for name in comparison.settings),
                *(shown_value(row.run.metrics.get(name)) for name in metrics),
                ", ".join(row.run.releases),
                bar(value, known),
            ]
        )
    headers = ["id", "run", "status", *comparison.settings, *metrics, "release", "bar"]
    return fitted_table(headers, rows, width, (*comparison.settings, *kept))


def change(difference: Difference) -> str:
    """The change between two numbers in per cent."""
    first, second = difference.first, difference.second
    if not isinstance(first, (int, float)) or not isinstance(second, (int, float)):
        return ""
    if isinstance(first, bool) or not first or not math.isfinite(second / first):
        return ""
    return f"{100 * (second / first - 1):+.1f} %"


def bar(value: float | None, values: Sequence[float]) -> str:
    """`value` as a bar on a scale that spans 0 and all `values`."""
    if value is None:
        return ""
    low, high = min(0.0, *values), max(0.0, *values)
    return "#" * round(_BAR * (value - low) / (high - low)) if high > low else ""


def counted(steps: Mapping[str, int]) -> str:
    """Numbers of steps by state, such as `8 complete, 3 cached`."""
    return ", ".join(f"{n} {state}" for state, n in sorted(steps.items(), key=lambda s: -s[1]))


def pairs(rows: Iterable[tuple[str, str]], indent: str = "") -> str:
    """Aligned names and values; names without a value are left out."""
    kept = [(clean(name), clean(value)) for name, value in rows if value != ""]
    width = max((_width(name) for name, _ in kept), default=0)
    return "\n".join(f"{indent}{name}{' ' * (width - _width(name))}  {v}" for name, v in kept)


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Aligned rows without a header."""
    return table([""] * len(rows[0]), rows).split("\n")[2:] if rows else []


def _json_field(name: str, value: Any) -> Any:
    if name in ("started", "ended", "created") and isinstance(value, int):
        try:
            moment = datetime.datetime.fromtimestamp(value / 1000, datetime.timezone.utc)
        except (OverflowError, OSError, ValueError):
            return value
        return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return jsonable(value)


def _where_they_differ(difference: Difference) -> tuple[str, str]:
    """Both values; long values are cut around the first character that differs."""
    values = shown_value(difference.first), shown_value(difference.second)
    pairs_of = enumerate(zip(*values, strict=False))
    same = next((i for i, (a, b) in pairs_of if a != b), min(map(len, values)))
    if max(map(len, values)) <= _MAX_CELL or same < _MAX_CELL // 2:
        return cut(values[0]), cut(values[1])
    first, second = (f"...{v[same - _MAX_CELL // 4 :]}" for v in values)
    return cut(first), cut(second)


def _name_width(width: int | None) -> int:
    """How much of a run's name to show; at 80 columns, the whole timestamp of a local run."""
    return _MAX_NAME if width is None else max(12, min(_MAX_NAME, width - 54))


def _touched(touched: Touched, width: int | None) -> list[str]:
    run = touched.run
    return [
        str(touched.artifact.id),
        touched.version or "",
        "made of it" if touched.made_of else "compared",
        cut(run.name, _name_width(width)) if run else "",
        run.status.value if run else "",
        cut(touched.artifact.uri),
    ]


def _by_id(artifact: Artifact) -> int:
    return artifact.id


def _linked(link: Link, artifacts: Mapping[int, Artifact]) -> str:
    artifact = artifacts[link.artifact_id]
    key = f"{link.key}[{link.index}]" if link.index else link.key
    gone = f" ({artifact.shown_state})" if artifact.removed else ""
    return clean(
        f"{key}: artifact {artifact.id} {short_type(artifact.type)} {artifact.uri}".rstrip() + gone
    )


def _ids(links: Iterable[Link], most: int = 4) -> str:
    named = [f"{link.key} {link.artifact_id}" for link in links]
    more = f" and {len(named) - most} more" if len(named) > most else ""
    return ", ".join(named[:most]) + more


def _width(text: str) -> int:
    """Columns in a terminal: wide characters take two, combining characters none."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1
        for c in text
    )


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
