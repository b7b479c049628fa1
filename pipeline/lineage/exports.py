"""Exports runs and traces for other programs."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.lineage import drawing, pages, tracing
from pipeline.lineage.model import LineageError
from pipeline.lineage.store import Store

ALL = "all"


def export(store: Store, what: str, form: str, roots: Sequence[str] = ()) -> str:
    """Returns a run, a trace or all runs in the given format.

    Args:
        store: Where to look.
        what: A run, as for `Store.find_run`; `release:3` or `artifact:41` for its trace; or `all`.
        form: `openlineage`, `dot` or `html`.
        roots: Folders whose pictures may be put into a page.

    Raises:
        LineageError: There is no such run or artifact, or it does not support this format.
    """
    if form == "openlineage":
        from pipeline.lineage import openlineage

        return openlineage.lines(store, _run_ids(store, what))
    if form == "html":
        return _page(store, what, roots)
    if what == ALL:
        raise LineageError("a graph of all runs is too large to read: give one run or artifact")
    if _is_artifact(what):
        trace = tracing.trace(store, what)
        steps = [step.execution for step in trace.steps]
        links = [link for step in trace.steps for link in step.links]
        return drawing.to_dot(drawing.draw(steps, links, trace.artifacts), what)
    run = store.find_run(what)
    steps = store.steps(run.id)
    links = store.links(executions=[e.id for e in steps])
    artifacts = {a.id: a for a in store.artifacts(link.artifact_id for link in links)}
    return drawing.to_dot(drawing.draw(steps, links, artifacts), run.name)


def _run_ids(store: Store, what: str) -> list[int]:
    if what == ALL:
        return sorted(store.run_ids())
    if _is_artifact(what):
        run_ids = {step.execution.run_id for step in tracing.trace(store, what).steps}
        return sorted(i for i in run_ids if i is not None)
    return [store.find_run_id(what)]


def _page(store: Store, what: str, roots: Sequence[str]) -> str:
    urls = pages.FileUrls()
    shown = pages.Pages(store, urls, roots)
    if what == ALL:
        return pages.whole_file("Metrics over runs", shown.compare(()))
    if _is_artifact(what):
        trace = tracing.trace(store, what)
        title = f"Release {trace.release}" if trace.release else f"Artifact {trace.subject.id}"
        steps, artifacts = [step.execution.id for step in trace.steps], list(trace.artifacts)
    else:
        run = store.find_run(what)
        title = f"Run {run.name}"
        urls.add("run", run.id)
        steps = store.step_ids(run.id)
        artifacts = sorted({link.artifact_id for link in store.links(executions=steps)})
    places = [urls.add("step", i) for i in steps] + [urls.add("artifact", i) for i in artifacts]
    first = shown.trace(what) if _is_artifact(what) else shown.run(str(run.id))
    contents = [first if _is_artifact(what) else f'<section id="run-{run.id}">{first}</section>']
    details = [*map(shown.step, steps), *map(shown.artifact, artifacts)]
    for place, content in zip(places, details, strict=True):
        contents.append(f'<section id="{place}">\n{content}\n</section>')
    return pages.whole_file(title, "\n".join(contents))


def _is_artifact(what: str) -> bool:
    return what.startswith(("release:", "artifact:"))
