"""What recorded models know of what is withdrawn, looked up before anything starts.

A run that starts from a model which knows it would hand it on: it is refused unless it is asked
for. That nobody can tell what a model was trained on is no reason to take it for one that does not.
"""

from __future__ import annotations

import contextlib
import os
import urllib.parse
from collections.abc import Iterable, Iterator, Sequence

from pipeline.config import ConfigError, RunConfig
from pipeline.lineage import LineageError, Store, database, locate
from pipeline.lineage.affected import Knowing, Rows, find_rows, knowing
from pipeline.lineage.history import model_of, released
from pipeline.lineage.locations import DATABASE_NAME
from pipeline.lineage.model import CONTENT_DIGEST, Artifact
from pipeline.starting import Start
from pipeline.vertex.config import VertexConfig
from storage.withdrawn import Entry, KnowingRelease, KnownBy, read_list

_MODEL = "Model"
_SHOWN = 3
_UNKNOWN = "nobody can tell here what it was trained on"


def look_up(
    config: RunConfig, start: Start | None, place: str, roots: Sequence[str]
) -> KnownBy | None:
    """Which releases know what is withdrawn; `None` where nothing is.

    Args:
        config: All settings, resolved.
        start: What training starts from; `None`: the base weights.
        place: Where the lineage is: an output folder, or as `vertex_place` says; "" where there is
            none.
        roots: Folders whose files may be read.

    Raises:
        ConfigError: Training starts from a model that knows it, or of which that cannot be told,
            and `model.allow_withdrawn` is not set.
    """
    if config.dataset.withdrawn is None:
        return None
    entries = read_list(config.dataset.withdrawn).entries
    try:
        if not place:
            raise LineageError("there is no lineage to ask here")
        if os.path.isdir(place) and not os.path.exists(os.path.join(place, DATABASE_NAME)):
            # The first run of an output folder.
            if start is not None and start.uri:
                _check(config, start, [_UNKNOWN], "")
            return KnownBy()
        with _opened(place) as store:
            found = find_rows(store, read_list(config.dataset.withdrawn), roots)
            known = {
                version: knowing(store, artifact, found)
                for version, artifact in _released(store).items()
            }
            if start is not None:
                ignorant = [v for v, what in known.items() if not (what.known or what.unread)]
                reasons = _reasons(store, start, found, entries)
                _check(config, start, reasons, ignorant[-1] if ignorant else "")
    except LineageError as error:
        if start is not None:
            _check(config, start, [f"what it was trained on cannot be looked up ({error})"], "")
        return KnownBy(problem=str(error))
    return KnownBy(
        tuple(
            KnowingRelease(
                version, what.how, tuple(entries[number].shown for number in sorted(what.known))
            )
            for version, what in known.items()
            if what.known
        ),
        tuple(version for version, what in known.items() if what.unread and not what.known),
    )


def vertex_place(vertex: VertexConfig) -> str:
    """Where the lineage of runs on Vertex is."""
    endpoint = f"?endpoint={urllib.parse.quote(vertex.api_endpoint)}" if vertex.api_endpoint else ""
    return f"vertex://{vertex.project}/{vertex.region}{endpoint}"


def told(config: RunConfig, start: Start | None, known_by: KnownBy | None) -> str:
    """What a user should know of what is withdrawn; "" where nothing is."""
    if known_by is None or config.dataset.withdrawn is None:
        return ""
    count = len(read_list(config.dataset.withdrawn).entries)
    said = f"dataset.withdrawn lists {count:,} {'entry' if count == 1 else 'entries'}; "
    if known_by.problem:
        said += f"which releases know of them cannot be told: {known_by.problem}."
    elif known_by.releases:
        said += f"known to {_listed(r.version for r in known_by.releases)}."
    else:
        said += "no release is known to know of them."
    if known_by.untold:
        said += f" Of {_listed(known_by.untold)} nobody can tell."
    if start is not None and config.model.allow_withdrawn:
        said += (
            f" Training starts from {start.shown} whether or not it knows them "
            "(model.allow_withdrawn)."
        )
    return said


def _check(config: RunConfig, start: Start, reasons: Sequence[str], ignorant: str) -> None:
    if not reasons or config.model.allow_withdrawn:
        return
    other = f"from release:{ignorant}, which knows none of it, or " if ignorant else ""
    raise ConfigError(
        f"model.start_from = {config.model.start_from!r} is refused: of {start.shown}, "
        f"{'; '.join(reasons)}. Start {other}from base, or allow it with --allow-withdrawn true"
    )


def _reasons(store: Store, start: Start, found: Rows, entries: Sequence[Entry]) -> list[str]:
    """Why a model is not to be started from, if there is a reason."""
    models = _models(store, start)
    if not models:
        # Without a blessed model, it would be the base weights.
        return [_UNKNOWN] if start.uri else []
    reasons: dict[str, None] = {}
    for model in models:
        what = knowing(store, model, found)
        if what.known:
            reasons[f"dataset.withdrawn lists what {_knows(what, found, entries)}"] = None
        elif what.unread:
            datasets = " and ".join(
                f"artifact {number} ({found.unread[number]})" for number in what.unread
            )
            reasons[f"nobody can tell any more what was in {datasets}"] = None
    return list(reasons)


def _knows(what: Knowing, found: Rows, entries: Sequence[Entry]) -> str:
    rows = [row for row in found.rows if row.entry in what.known and row.trained_on]
    shown = [
        f"{row.caption!r} (row {row.id[:12]}, line {entries[row.entry].line})"
        for row in rows[:_SHOWN]
    ]
    more = f" and {len(rows) - _SHOWN} more rows" if len(rows) > _SHOWN else ""
    how = "it was trained on" if what.trained_on else "a model before it was trained on"
    return f"{how}: {', '.join(shown)}{more}"


def _models(store: Store, start: Start) -> list[Artifact]:
    """The artifacts that stand for a model in the store, as what made it left them."""
    if not start.uri:
        # The latest blessed one: what was pushed last, as far as can be told before the run.
        pushed = [*_released(store).values()][-1:]
        return [model for one in pushed if (model := model_of(store, one)) is not None]
    ids = set(store.artifacts_with_uri(start.uri))
    if CONTENT_DIGEST in start.properties:
        ids |= set(store.artifacts_with(CONTENT_DIGEST, start.properties[CONTENT_DIGEST]))
    ids &= set(store.artifacts_of_type(_MODEL))
    makers = {artifact: store.graph.maker(artifact) for artifact in ids}
    # What an importer leaves says nothing of what it was made of.
    return store.artifacts(
        artifact
        for artifact, maker in sorted(makers.items())
        if maker is not None and store.graph.inputs(maker)
    )


@contextlib.contextmanager
def _opened(place: str) -> Iterator[Store]:
    if "://" in place:
        with locate(place).open() as store:
            yield store
        return
    # `locate` looks who holds the folder's lock, and a process that closes a file gives up every
    # lock that it has there itself.
    with database.open_sqlite(os.path.join(place, DATABASE_NAME)) as tables:
        yield Store(tables)


def _released(store: Store) -> dict[str, Artifact]:
    try:
        return dict(released(store))
    except LineageError:
        return {}


def _listed(versions: Iterable[str]) -> str:
    every = list(versions)
    return f"release{'s' if len(every) > 1 else ''} {', '.join(every)}"
