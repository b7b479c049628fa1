"""The commands of `python -m pipeline.lineage`."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pipeline.lineage import affected as affecting
from pipeline.lineage import comparing, history, text, tracing
from pipeline.lineage import whence as origins
from pipeline.lineage.locations import DEFAULT_PORT, DEFAULT_STORE, Location, locate
from pipeline.lineage.model import LineageError, RunStatus
from pipeline.lineage.sorting import sorted_runs
from pipeline.lineage.store import Store
from storage.addresses import redacted
from storage.flags import FAILED, Command, Parser, positive_number

_DESCRIPTION = """\
Answers questions about the runs recorded in ML Metadata: what made this model, what did this
dataset touch, what differs between two runs, why was this step executed. Never writes."""

_EXAMPLES = (
    ("runs",),
    ("trace", "release:1"),
    ("impact", "data/creatures"),
    ("diff", "12", "latest"),
    ("why", "Trainer", "--run", "latest"),
    ("history",),
    ("added", "1", "3"),
    ("known", Path("dragon.png")),
    ("affected", "--picture", Path("dragon.png")),
    ("whence", Path("drawing.png")),
    ("compare", "--metric", "loss", "--setting", "learning_rate", "--plot", Path("losses.png")),
    ("export", "latest", "--format", "html", "--out", Path("run.html")),
    ("serve",),
)

_NOTES = """\
RUN is an id, a name, the start of a name or `latest`. ARTIFACT is `release:3`, `artifact:41`, a
path or URL, or `latest`; a bare number is a release if there is one, else an artifact."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line `argv`; returns the exit status."""
    arguments = command().parse_args(argv)
    try:
        location = locate(arguments.store)
        if arguments.command == "serve":
            return _serve(location, arguments)
        with location.open() as store:
            answer, shown = arguments.answer(store, arguments)
            output = _json(answer) if arguments.json else shown()
        _write(output)
    except LineageError as error:
        print(f"error: {text.clean(redacted(str(error)))}", file=sys.stderr)
        return FAILED
    except BrokenPipeError:
        # The reader, such as `head`, has seen enough; Python would complain when it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        return 130
    return 0


_Answer = tuple[Any, Callable[[], str]]


def _runs(store: Store, arguments: argparse.Namespace) -> _Answer:
    runs = [
        run
        for run in store.runs()
        if (arguments.status is None or run.status.value == arguments.status)
        and (arguments.match is None or arguments.match.casefold() in run.name.casefold())
        and (arguments.pipeline is None or run.pipeline == arguments.pipeline)
    ]
    if arguments.sort is not None:
        runs = sorted_runs(runs, f"{'-' if arguments.reverse else ''}{arguments.sort}")
    elif arguments.reverse:
        runs.reverse()
    if arguments.limit is not None:
        runs = runs[: arguments.limit]
    return {"runs": runs}, lambda: text.runs_text(runs, _terminal_width(arguments))


def _run(store: Store, arguments: argparse.Namespace) -> _Answer:
    run = store.find_run(arguments.run)
    steps = store.steps(run.id)
    links = store.links(executions=[e.id for e in steps])
    artifacts = {a.id: a for a in store.artifacts(link.artifact_id for link in links)}
    answer = {
        "run": run,
        "steps": [
            {
                **text.jsonable(step),
                "links": [link for link in links if link.execution_id == step.id],
            }
            for step in steps
        ],
        "artifacts": list(artifacts.values()),
    }
    return answer, lambda: text.run_text(run, steps, links, artifacts)


def _artifact(store: Store, arguments: argparse.Namespace) -> _Answer:
    artifact = tracing.find_artifact(store, arguments.artifact)
    links = store.links(artifacts=[artifact.id])
    executions = {e.id: e for e in store.executions(link.execution_id for link in links)}
    standing = tracing.standing(store, artifact.id)
    answer = {
        "artifact": artifact,
        "links": links,
        "steps": list(executions.values()),
        **{"run": standing.run, "datasets": standing.datasets, "releases": standing.releases},
    }
    return answer, lambda: text.artifact_text(artifact, links, executions, standing)


def _trace(store: Store, arguments: argparse.Namespace) -> _Answer:
    trace = tracing.trace(store, arguments.artifact, _roots(arguments))
    return trace, lambda: text.trace_text(trace)


def _impact(store: Store, arguments: argparse.Namespace) -> _Answer:
    impact = tracing.impact(store, arguments.what, _roots(arguments))
    return impact, lambda: text.impact_text(impact, _terminal_width(arguments))


def _diff(store: Store, arguments: argparse.Namespace) -> _Answer:
    diff = comparing.diff(store, arguments.first, arguments.second, _roots(arguments))
    return diff, lambda: text.diff_text(diff)


def _why(store: Store, arguments: argparse.Namespace) -> _Answer:
    why = comparing.why(store, arguments.step, arguments.run, _roots(arguments))
    return why, lambda: text.why_text(why)


def _compare(store: Store, arguments: argparse.Namespace) -> _Answer:
    comparison = comparing.compare(store, arguments.runs, arguments.metric, arguments.setting)
    if arguments.plot is not None:
        from pipeline.lineage.plots import save_plot

        save_plot(comparison, arguments.plot)
    return comparison, lambda: text.comparison_text(
        comparison, _terminal_width(arguments), arguments.metric
    )


def _history(store: Store, arguments: argparse.Namespace) -> _Answer:
    found = history.history(store, _roots(arguments))
    answer = {"releases": found.releases, "fixed_examples": found.fixed_examples}
    return answer, lambda: text.history_text(found, _terminal_width(arguments))


def _added(store: Store, arguments: argparse.Namespace) -> _Answer:
    changes = history.added(store, arguments.first, arguments.second, _roots(arguments))
    return changes, lambda: text.row_changes_text(changes)


def _known(store: Store, arguments: argparse.Namespace) -> _Answer:
    known = history.known(store, arguments.what, _roots(arguments))
    return known, lambda: text.known_text(known)


def _affected(store: Store, arguments: argparse.Namespace) -> _Answer:
    name = arguments.picture
    found = affecting.affected(
        store,
        _roots(arguments),
        picture=None if name is None else (name, origins.read_picture(name)),
        sha256=arguments.sha256 or "",
        caption=arguments.caption or "",
    )
    answer = {**text.jsonable(found), "lines": found.lines}
    return answer, lambda: text.affected_text(found, _terminal_width(arguments))


def _whence(store: Store, arguments: argparse.Namespace) -> _Answer:
    contents = origins.read_picture(arguments.picture)
    found = origins.whence(store, arguments.picture, contents, _roots(arguments))
    if arguments.verify:
        found = found.with_check(
            origins.drawn_again(found, arguments.picture, arguments.image, arguments.mask)
        )
    return found, lambda: text.whence_text(found)


def _export(store: Store, arguments: argparse.Namespace) -> _Answer:
    from pipeline.lineage import exports

    content = exports.export(store, arguments.what, arguments.format, _roots(arguments))
    if arguments.out is None:
        return {"format": arguments.format, "content": content}, lambda: content.rstrip("\n")
    try:
        with open(arguments.out, "w", encoding="utf-8") as file:
            file.write(content)
    except OSError as error:
        raise LineageError(f"{arguments.out} cannot be written: {error.strerror}") from None
    answer = {"format": arguments.format, "out": arguments.out, "bytes": len(content.encode())}
    return answer, lambda: f"wrote {arguments.out}"


def _terminal_width(arguments: argparse.Namespace) -> int | None:
    return None if arguments.all else shutil.get_terminal_size().columns


def _roots(arguments: argparse.Namespace) -> list[str]:
    return locate(arguments.store).roots + arguments.files


def _serve(location: Location, arguments: argparse.Namespace) -> int:
    # A store that cannot be read must fail before anything is served.
    with location.open():
        pass
    from storage import local_pages

    try:
        listener = local_pages.listen(local_pages.HOST, arguments.port, "lineage")
    except local_pages.AddressError as error:
        raise LineageError(str(error)) from None
    from pipeline.lineage.web import app

    return app.serve(location, listener, _roots(arguments), arguments.open)


def _shared(store: str, in_json: bool | str) -> Parser:
    shared = Parser(add_help=False)
    shared.add_argument(
        "--store",
        metavar="WHERE",
        default=store,
        help="a run's output folder, a SQLite file, mysql://USER@HOST/DATABASE?password_env=NAME "
        f"or vertex://PROJECT/LOCATION (default: {DEFAULT_STORE})",
    )
    shared.add_argument("--json", action="store_true", default=in_json, help="answer in JSON")
    return shared


def command() -> Command:
    """The parser of the command line."""
    parser = Command(
        "pipeline.lineage",
        _DESCRIPTION,
        [(words, "") for words in _EXAMPLES],
        notes=_NOTES,
        failed="there is no answer (one line says why)",
        parents=[_shared(DEFAULT_STORE, False)],
    )
    # A flag given before the command applies unless it is given again after it.
    later = _shared(argparse.SUPPRESS, argparse.SUPPRESS)
    commands = parser.add_subparsers(
        dest="command",
        required=True,
        metavar="COMMAND",
        parser_class=Parser,
    )

    def add(
        name: str, help_text: str, answer: Callable[..., _Answer] | None = None
    ) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=help_text, description=help_text, parents=[later])
        added.set_defaults(answer=answer)
        return added

    runs = add("runs", "all runs, with status and metrics, latest first", _runs)
    runs.add_argument("--status", choices=[s.value for s in RunStatus], help="only these runs")
    runs.add_argument("--match", metavar="TEXT", help="only runs with this text in their name")
    runs.add_argument("--pipeline", metavar="NAME", help="only runs of this pipeline")
    runs.add_argument(
        "--sort", metavar="COLUMN", help="sort by this column or metric, smallest first"
    )
    runs.add_argument("--reverse", action="store_true", help="reverse the order")
    runs.add_argument("--limit", metavar="N", type=positive_number, help="only the first N runs")
    add("run", "a run: its steps, their settings, inputs and outputs", _run).add_argument(
        "run", metavar="RUN"
    )
    add("artifact", "an artifact: its properties and who used it", _artifact).add_argument(
        "artifact", metavar="ARTIFACT"
    )
    trace = add("trace", "everything that made a release or an artifact", _trace)
    trace.add_argument("artifact", metavar="RELEASE|ARTIFACT")
    impact = add(
        "impact", "every run, model and release that a dataset or an artifact touched", _impact
    )
    impact.add_argument("what", metavar="DATASET|ARTIFACT")
    diff = add("diff", "two runs side by side: settings, data, code, metrics", _diff)
    diff.add_argument("first", metavar="RUN")
    diff.add_argument("second", metavar="RUN")
    why = add("why", "why a step was executed or taken from the cache", _why)
    why.add_argument("step", metavar="STEP", help="a name, such as Trainer, or an id")
    why.add_argument("--run", metavar="RUN", help="the run (default: the latest)")
    compare = add("compare", "metrics over runs", _compare)
    compare.add_argument("runs", metavar="RUN", nargs="*", help="default: all runs with metrics")
    compare.add_argument("--metric", metavar="NAME", action="append", default=[])
    compare.add_argument(
        "--setting", metavar="NAME", action="append", default=[], help="show it beside the metrics"
    )
    compare.add_argument("--plot", metavar="FILE", help="write a picture: .png, .svg or .pdf")
    releases = add("history", "all releases: loss, data added, drift, time and size", _history)
    added = add("added", "what was added to the dataset between two releases", _added)
    added.add_argument("first", metavar="RELEASE")
    added.add_argument("second", metavar="RELEASE")
    known = add(
        "known",
        "which releases were trained on a picture or a caption, first release first",
        _known,
    )
    known.add_argument(
        "what",
        metavar="PICTURE|SHA256|CAPTION",
        help="a picture file exactly as in the dataset, its hash, the hash of a row, or a caption",
    )
    affected = add(
        "affected",
        "where a picture ended up: rows (near duplicates too), runs, releases",
        _affected,
    )
    which = affected.add_mutually_exclusive_group(required=True)
    which.add_argument(
        "--picture", metavar="FILE", help="a picture; it may have been edited or converted"
    )
    which.add_argument("--sha256", metavar="HASH", help="hash of a picture file or of a row")
    which.add_argument("--caption", metavar="TEXT", help="a caption")
    whence = add("whence", "what drew a picture, from the record inside the file", _whence)
    whence.add_argument("picture", metavar="PICTURE", help="a PNG file that this project drew")
    whence.add_argument(
        "--verify", action="store_true", help="draw it again and compare (needs TensorFlow)"
    )
    whence.add_argument(
        "--image", metavar="FILE", help="the picture it was drawn from, for --verify"
    )
    whence.add_argument("--mask", metavar="FILE", help="the mask for --image, for --verify")
    export = add("export", "a run or an artifact's trace for other programs", _export)
    export.add_argument(
        "what", metavar="RUN|ARTIFACT", nargs="?", default="latest", help="or `all` for all runs"
    )
    export.add_argument(
        "--format",
        choices=["openlineage", "dot", "html"],
        default="openlineage",
        help="OpenLineage events, one per line; Graphviz; a page in one file "
        "(default: %(default)s)",
    )
    export.add_argument("--out", metavar="FILE", help="write to this file (default: the terminal)")
    serve = add("serve", "the lineage as pages in a browser, on this machine")
    for wide in (runs, impact, compare, releases, affected):
        wide.add_argument(
            "--all", action="store_true", help="show every column, whatever the terminal's width"
        )
    for showing in (
        trace, impact, diff, why, releases, added, known, affected, whence, export, serve
    ):  # fmt: skip
        showing.add_argument(
            "--files",
            metavar="FOLDER",
            action="append",
            default=[],
            help="a further folder whose files may be read, or gs://BUCKET/FOLDER; the store's own "
            "folder always may",
        )
    serve.add_argument("--port", metavar="N", type=_port, default=DEFAULT_PORT)
    serve.add_argument("--open", action="store_true", help="open a browser window")
    return parser


def _port(value: str) -> int:
    from storage.local_pages import port_number

    return port_number(value)


def _json(answer: Any) -> str:
    return json.dumps(text.jsonable(answer), indent=2, ensure_ascii=False, allow_nan=False)


def _write(output: str) -> None:
    # A terminal or pipe that cannot show a character gets an escape.
    data = (output + "\n").encode(sys.stdout.encoding or "utf-8", "backslashreplace")
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()
