"""Answers as HTML: the content of pages, for the browser and for files.

Templates escape everything that comes from a store; the SVG of drawings is made here.
"""

from __future__ import annotations

import base64
import dataclasses
import functools
import html
import itertools
import mimetypes
import operator
import urllib.parse
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from pipeline.lineage import comparing, drawing, files, text, tracing
from pipeline.lineage.affected import Affected
from pipeline.lineage.history import history as releases_over_time
from pipeline.lineage.history import makers
from pipeline.lineage.metric_notes import metric_notes
from pipeline.lineage.model import (
    Artifact,
    RunStatus,
    headline_metrics,
    short_type,
    shown_seconds,
    shown_time,
    shown_value,
)
from pipeline.lineage.sorting import sorted_runs, version_order
from pipeline.lineage.store import Store
from pipeline.lineage.whence import Whence

RUNS_A_PAGE = 100

_TEMPLATES = Path(__file__).with_name("templates")
_MAX_EMBEDDED = 4 << 20
# Artifact types whose files are shown beside a trace or run.
_SHOWN_TYPES = ("EvaluationReport", "DatasetReport", "WithdrawnReport")
_RELEASES_SIDE_BY_SIDE = 8


class Urls:
    """Link targets: the pages in a browser."""

    def runs(self) -> str:
        """The list of runs."""
        return "/"

    def run(self, run_id: int) -> str:
        """A run."""
        return f"/run/{run_id}"

    def step(self, execution_id: int) -> str:
        """A step of a run."""
        return f"/step/{execution_id}"

    def artifact(self, artifact_id: int) -> str:
        """An artifact."""
        return f"/artifact/{artifact_id}"

    def trace(self, artifact_id: int) -> str:
        """What made an artifact."""
        return f"/trace/{artifact_id}"

    def release(self, version: str) -> str:
        """What made a release."""
        return f"/release/{urllib.parse.quote(version, safe='')}"

    def diff(self, first: int | None = None, second: int | None = None) -> str:
        """Two runs side by side; without runs, the form to choose them."""
        return "/diff" if first is None else f"/diff?first={first}&second={second}"

    def impact(self, what: str = "") -> str:
        """What something touched."""
        return f"/impact?what={urllib.parse.quote(what)}" if what else "/impact"

    def compare(self) -> str:
        """Metrics over runs."""
        return "/compare"

    def affected(self, what: str = "") -> str:
        """Where a picture with this hash or caption ended up."""
        return f"/affected?what={urllib.parse.quote(what)}" if what else "/affected"

    def history(self) -> str:
        """All releases."""
        return "/history"

    def file(self, artifact: Artifact, file: files.File) -> str:
        """A file of an artifact."""
        return f"/files/{artifact.id}/{urllib.parse.quote(file.name)}"


class FileUrls(Urls):
    """Link targets within one file; anything that is not in it links to its top."""

    def __init__(self) -> None:
        """Starts without any targets."""
        self._places: set[str] = set()

    def add(self, kind: str, number: int) -> str:
        """Adds a target; returns its name."""
        self._places.add(f"{kind}-{number}")
        return f"{kind}-{number}"

    def _place(self, name: str) -> str:
        return f"#{name}" if name in self._places else "#top"

    def runs(self) -> str:
        """See `Urls`."""
        return "#top"

    def run(self, run_id: int) -> str:
        """See `Urls`."""
        return self._place(f"run-{run_id}")

    def step(self, execution_id: int) -> str:
        """See `Urls`."""
        return self._place(f"step-{execution_id}")

    def artifact(self, artifact_id: int) -> str:
        """See `Urls`."""
        return self._place(f"artifact-{artifact_id}")

    def trace(self, artifact_id: int) -> str:
        """See `Urls`."""
        return self._place(f"artifact-{artifact_id}")

    def release(self, version: str) -> str:
        """See `Urls`."""
        return "#top"

    def diff(self, first: int | None = None, second: int | None = None) -> str:
        """See `Urls`."""
        return "#top"

    def impact(self, what: str = "") -> str:
        """See `Urls`."""
        return "#top"

    def affected(self, what: str = "") -> str:
        """See `Urls`."""
        return "#top"

    def compare(self) -> str:
        """See `Urls`."""
        return "#top"

    def file(self, artifact: Artifact, file: files.File) -> str:
        """The picture itself, as a data URL; for other files, the top of the page."""
        kind = mimetypes.guess_type(file.name)[0]
        if not file.name.lower().endswith(files.PICTURES) or file.size > _MAX_EMBEDDED:
            return "#top"
        return f"data:{kind};base64,{base64.b64encode(file.path.read_bytes()).decode()}"


@dataclasses.dataclass(frozen=True)
class RunsView:
    """How the list of runs is shown, as given in its address.

    Attributes:
        match: Only runs with this text in their name.
        status: Only runs with this status.
        pipeline: Only runs of this pipeline.
        sort: Column or metric; with a leading `-`, largest first.
        page: Number of the page, from 1.
    """

    match: str = ""
    status: str = ""
    pipeline: str = ""
    sort: str = "-started"
    page: int = 1
    total: int = 0
    pipelines: tuple[str, ...] = ()

    @property
    def statuses(self) -> list[str]:
        """All statuses there are."""
        return [status.value for status in RunStatus]

    @property
    def pages(self) -> int:
        """How many pages there are."""
        return max(1, -(-self.total // RUNS_A_PAGE))

    def sorted_by(self, key: str) -> str:
        """The address of the list sorted by a column; reversed if it is sorted by it already."""
        return self._address(f"-{key}" if self.sort == key else key, 1)

    def on_page(self, page: int) -> str:
        """The address of another page."""
        return self._address(self.sort, page)

    def _address(self, sort: str, page: int) -> str:
        query = {
            "match": self.match,
            "status": self.status,
            "pipeline": self.pipeline,
            "sort": sort,
            "page": str(page) if page > 1 else "",
        }
        return "/?" + urllib.parse.urlencode({k: v for k, v in query.items() if v})


class Pages:
    """The pages of one store."""

    def __init__(self, store: Store, urls: Urls, roots: Sequence[str] = ()) -> None:
        """Shows what is in `store`.

        Args:
            store: What to show.
            urls: The link targets.
            roots: Folders whose files may be shown.
        """
        self._store, self._urls, self._roots = store, urls, roots

    def runs(self, view: RunsView) -> str:
        """The list of runs.

        Raises:
            LineageError: There is no such column.
        """
        everything = self._store.runs()
        runs = [
            run
            for run in everything
            if view.match.casefold() in run.name.casefold()
            and view.status in ("", run.status.value)
            and view.pipeline in ("", run.pipeline)
        ]
        metrics = headline_metrics(runs)
        # A column that only other runs have cannot sort these.
        if view.sort.removeprefix("-") in set(headline_metrics(everything)) - set(metrics):
            view = dataclasses.replace(view, sort="-started")
        runs = sorted_runs(runs, view.sort)
        view = dataclasses.replace(
            view,
            total=len(runs),
            pipelines=tuple(sorted({run.pipeline for run in everything})),
        )
        view = dataclasses.replace(view, page=min(max(1, view.page), view.pages))
        start = (view.page - 1) * RUNS_A_PAGE
        return self._render("runs_page", runs[start : start + RUNS_A_PAGE], metrics, view=view)

    def run(self, text_of_run: str) -> str:
        """A run, as for `Store.find_run`.

        Raises:
            LineageError: There is no such run.
        """
        run = self._store.find_run(text_of_run)
        steps = self._store.steps(run.id)
        links = self._store.links(executions=[e.id for e in steps])
        artifacts = {a.id: a for a in self._store.artifacts(k.artifact_id for k in links)}
        svg = self._svg(drawing.draw(steps, links, artifacts), f"Graph of run {run.name}")
        return self._render("run_page", run, steps, links, artifacts, svg)

    def step(self, execution_id: int) -> str:
        """A step.

        Raises:
            LineageError: There is no step with this id.
        """
        step = self._store.execution(execution_id)
        links = self._store.links(executions=[step.id])
        artifacts = {a.id: a for a in self._store.artifacts(k.artifact_id for k in links)}
        why = comparing.why_execution(self._store, step, self._roots)
        return self._render("step_page", step, why.run, links, artifacts, why)

    def artifact(self, artifact_id: int) -> str:
        """An artifact.

        Raises:
            LineageError: There is no artifact with this id.
        """
        artifact = self._store.artifact(artifact_id)
        links = self._store.links(artifacts=[artifact.id])
        executions = {e.id: e for e in self._store.executions(k.execution_id for k in links)}
        maker = executions.get(self._store.graph.maker(artifact.id) or -1)
        return self._render(
            "artifact_page",
            artifact,
            maker,
            tracing.standing(self._store, artifact.id),
            links,
            executions,
            self._folder(artifact),
        )

    def trace(self, what: str) -> str:
        """What made a release or an artifact, as for `tracing.find_artifact`.

        Raises:
            LineageError: There is no such release or artifact.
        """
        trace = tracing.trace(self._store, what, self._roots)
        steps = [step.execution for step in trace.steps]
        links = [link for step in trace.steps for link in step.links]
        svg = self._svg(drawing.draw(steps, links, trace.artifacts), "Graph of what made it")
        folders = []
        shown = [a for a in trace.artifacts.values() if short_type(a.type) in _SHOWN_TYPES]
        for artifact in sorted(shown, key=lambda a: _SHOWN_TYPES.index(short_type(a.type))):
            folder = self._folder(artifact)
            if folder["files"] or folder["pictures"]:
                folders.append((short_type(artifact.type), folder))
        return self._render("trace_page", trace, svg, folders, self._since_before(trace))

    def _since_before(self, trace: tracing.Trace) -> tuple[str, comparing.Diff] | None:
        """The release before this one, and how the runs that made the two differ."""
        if trace.release is None or trace.run is None:
            return None
        made = makers(self._store)
        earlier = [v for v in made if version_order(v) < version_order(trace.release)]
        if not earlier:
            return None
        before = max(earlier, key=version_order)
        return before, comparing.diff_runs(self._store, made[before].id, trace.run.id, self._roots)

    def history(self) -> str:
        """All releases, and what the latest releases draw for the same prompts.

        Raises:
            LineageError: There is no release.
        """
        found = releases_over_time(self._store, self._roots)
        releases = found.releases
        shown = [release for release in releases if release.pictures][-_RELEASES_SIDE_BY_SIDE:]
        drawn = {
            (release.version, each.prompt): self._urls.file(each.model_run, each.file)
            for release in shown
            for each in release.pictures
        }
        prompts = list(dict.fromkeys(each.prompt for r in shown for each in r.pictures))
        return self._render("history_page", releases, found.note, shown, prompts, drawn)

    def whence(self, found: Whence) -> str:
        """Where a picture comes from."""
        lines = [line for marks in found.marks for line in text.drawn_lines(marks)]
        return self._render("whence_answer", found, lines)

    def impact(self, what: str) -> str:
        """What something touched, as for `tracing.impact`; if `what` is empty, only the form.

        Raises:
            LineageError: Nothing has this name.
        """
        impact = tracing.impact(self._store, what, self._roots) if what else None
        metrics = headline_metrics(impact.runs) if impact else []
        return self._render("impact_page", impact, what, metrics)

    def affected(self, found: Affected) -> str:
        """Where a picture ended up: a part of a page."""
        return self._render("affected_answer", found, text.served_rows(found))

    def diff(self, first: str, second: str) -> str:
        """Two runs side by side.

        Raises:
            LineageError: There is no such run.
        """
        return self._render("diff_page", comparing.diff(self._store, first, second, self._roots))

    def compare(self, settings: Sequence[str]) -> str:
        """Metrics over runs.

        Raises:
            LineageError: There is no such setting.
        """
        comparison = comparing.compare(self._store, settings=settings)
        charts = [
            (name, Markup(chart(name, comparison, self._urls.run))) for name in comparison.metrics
        ]
        return self._render("compare_page", comparison, charts)

    def error(self, message: str) -> str:
        """The page for a question that cannot be answered."""
        return error_page(message, self._urls)

    def _folder(self, artifact: Artifact) -> dict[str, Any]:
        folder = files.list_files(artifact, self._roots)
        shown: list[dict[str, Any]] = [
            {"name": f.name, "size": f.size, "url": self._urls.file(artifact, f)}
            for f in folder.files
        ]
        return {
            "refusal": folder.refusal,
            "more": folder.more,
            "pictures": [f for f in shown if f["name"].lower().endswith(files.PICTURES)],
            "files": [f for f in shown if not f["name"].lower().endswith(files.PICTURES)],
        }

    def _svg(self, drawn: drawing.Drawing, title: str) -> Markup:
        def link(node: drawing.Node) -> str | None:
            if node.target is None:
                return None
            return (self._urls.step if node.state else self._urls.artifact)(node.target)

        return Markup(drawing.to_svg(drawn, title, link))

    def _render(self, macro: str, *arguments: Any, view: RunsView | None = None) -> str:
        return _rendered(macro, self._urls, *arguments, view=view)


def error_page(message: str, urls: Urls) -> str:
    """The page for a question that cannot be answered."""
    return _rendered("error_page", urls, message)


def affected_form(what: str, urls: Urls) -> str:
    """The form for a hash or a caption."""
    return _rendered("affected_form", urls, what)


def style() -> str:
    """The style sheet of all pages."""
    return (_TEMPLATES / "style.css").read_text()


def live_script() -> str:
    """The script that keeps the reader's place when the content of a page changes."""
    return (_TEMPLATES / "live.js").read_text()


def whole_file(title: str, content: str) -> str:
    """A page in one file: no script, nothing to load, dark if the system is dark."""
    css = style()
    begin, end = css.index("/* dark */"), css.index("/* end of dark */")
    dark = css[begin:end].replace(".body--dark ", "").removeprefix("/* dark */")
    css = f"{css[:begin]}@media (prefers-color-scheme: dark) {{{dark}}}{css[end:]}"
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
        "img-src data:; style-src 'unsafe-inline'\">\n"
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta name="color-scheme" content="light dark">\n<title>{html.escape(text.clean(title))}'
        f"</title>\n<style>\nhtml {{ color-scheme: light dark; }} body {{ margin: 0; }}\n{css}"
        f'</style>\n</head>\n<body>\n<main id="top" class="lineage-page">\n{content}\n</main>\n'
        "</body>\n</html>\n"
    )


def chart(
    name: str, comparison: comparing.Comparison, url: Callable[[int], str] | None = None
) -> str:
    """A metric over runs as SVG; every point is a link to its run."""
    known = [
        (place, row.run, row.run.metrics[name])
        for place, row in enumerate(comparison.rows)
        if name in row.run.metrics
    ]
    if not known:
        return ""
    width, height, left, bottom = 900, 200, 80, 170
    low, high = min(v for _, _, v in known), max(v for _, _, v in known)
    span = high - low or 1.0
    step = (width - left - 20) / max(1, len(comparison.rows) - 1)
    points = [(left + i * step, 20 + (high - v) / span * (bottom - 20), r, v) for i, r, v in known]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y, _, _ in points)
    parts = [
        f'<svg class="chart" role="group" aria-label="{html.escape(text.clean(name))} over runs" '
        f'xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}">',
        f'<line class="axis" x1="{left}" y1="{bottom}" x2="{width - 20}" y2="{bottom}"/>',
        f'<line class="axis" x1="{left}" y1="20" x2="{width - 20}" y2="20"/>',
        f'<text x="{left - 8}" y="24" text-anchor="end">{shown_value(high)}</text>',
        f'<text x="{left - 8}" y="{bottom + 4}" text-anchor="end">{shown_value(low)}</text>',
        f'<text x="{left}" y="{height - 8}">earliest</text>',
        f'<text x="{width - 20}" y="{height - 8}" text-anchor="end">latest</text>',
        f'<polyline class="line" points="{line}"/>',
    ]
    for x, y, run, value in points:
        released = f", release {', '.join(run.releases)}" if run.releases else ""
        title = html.escape(text.clean(f"{run.name}: {shown_value(value)}{released}"))
        css, radius = ("released", 5) if run.releases else ("dot", 3.5)
        dot = (
            f'<circle class="{css}" cx="{x:.1f}" cy="{y:.1f}" r="{radius}">'
            f"<title>{title}</title></circle>"
        )
        # Hundreds of points in the tab order would be in the way of keyboard users.
        tab = ' tabindex="-1"' if len(points) > 50 else ""
        target = html.escape(url(run.id)) if url else None
        parts.append(
            f'<a href="{target}" aria-label="{title}"{tab}>{dot}</a>' if target is not None else dot
        )
    return "\n".join([*parts, "</svg>"])


def _rendered(macro: str, urls: Urls, *arguments: Any, view: RunsView | None = None) -> str:
    module: Any = (
        _environment().get_template("pages.html").make_module({"urls": urls, "view": view})
    )
    return str(getattr(module, macro)(*arguments))


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {
        "clean": lambda value: text.clean(str(value)),
        "clean_lines": lambda value: "\n".join(map(text.clean, str(value).splitlines())),
        "shown": shown_value,
        "short": short_type,
        "time": shown_time,
        "duration": shown_seconds,
        "counted": text.counted,
        "change": text.change,
        "groupby_kept": _grouped,
    }
    environment.globals |= {"metric_notes": metric_notes, "headline_metrics": headline_metrics}
    return environment


def _grouped(items: Iterable[Any], attribute: str) -> Iterator[tuple[Any, list[Any]]]:
    """Groups of neighbours with the same attribute; Jinja's own `groupby` sorts them."""
    for key, group in itertools.groupby(items, key=operator.attrgetter(attribute)):
        yield key, list(group)
