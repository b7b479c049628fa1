"""Looks up which recorded models have learned from withdrawn rows, before anything starts.

A run that starts from such a model would pass on what it has learned: the run is refused unless the
settings allow it. If it is unknown what a model was trained on, the model counts as one of these.
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
_UNKNOWN = "it is unknown here what it was trained on"


def look_up(
    config: RunConfig, start: Start | None, place: str, roots: Sequence[str]
) -> KnownBy | None:
    """Finds the releases that have learned from withdrawn rows; `None` if nothing is withdrawn.

    Args:
        config: All settings, resolved.
        start: What training starts from; `None`: the base weights.
        place: Where the lineage is: an output folder, or what `vertex_place` returns; "" if there
            is none.
        roots: Folders whose files may be read.

    Raises:
        ConfigError: Training starts from a model that has, or may have, learned from withdrawn
            rows, and `model.allow_withdrawn` is not set.
    """
    if config.dataset.withdrawn is None:
        return None
    entries = read_list(config.dataset.withdrawn).entries
    try:
        if not place:
            raise LineageError("there is no lineage to ask here")
        if os.path.isdir(place) and not os.path.exists(os.path.join(place, DATABASE_NAME)):
            # The first run in an output folder.
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
    """What to tell the user about withdrawn rows; "" if nothing is withdrawn."""
    if known_by is None or config.dataset.withdrawn is None:
        return ""
    count = len(read_list(config.dataset.withdrawn).entries)
    said = f"dataset.withdrawn lists {count:,} {'entry' if count == 1 else 'entries'}; "
    if known_by.problem:
        said += f"it is unknown which releases have learned from them: {known_by.problem}."
    elif known_by.releases:
        said += f"learned by {_listed(r.version for r in known_by.releases)}."
    else:
        said += "no release is known to have learned from them."
    if known_by.untold:
        said += f" Unknown for {_listed(known_by.untold)}."
    if start is not None and config.model.allow_withdrawn:
        said += (
            f" Training starts from {start.shown} whether or not it has learned from them "
            "(model.allow_withdrawn)."
        )
    return said


def _check(config: RunConfig, start: Start, reasons: Sequence[str], ignorant: str) -> None:
    if not reasons or config.model.allow_withdrawn:
        return
    other = f"from release:{ignorant}, which has not learned from it, or " if ignorant else ""
    raise ConfigError(
        f"model.start_from = {config.model.start_from!r} is refused: for {start.shown}, "
        f"{'; '.join(reasons)}. Start {other}from base, or allow it with --allow-withdrawn true"
    )


def _reasons(store: Store, start: Start, found: Rows, entries: Sequence[Entry]) -> list[str]:
    """Why training must not start from a model, if there are reasons."""
    models = _models(store, start)
    if not models:
        # Without a blessed model, training starts from the base weights.
        return [_UNKNOWN] if start.uri else []
    reasons: dict[str, None] = {}
    for model in models:
        what = knowing(store, model, found)
        if what.known:
            reasons[_knows(what, found, entries)] = None
        elif what.unread:
            datasets = " and ".join(
                f"artifact {number} ({found.unread[number]})" for number in what.unread
            )
            reasons[f"it is no longer known what was in {datasets}"] = None
    return list(reasons)


def _knows(what: Knowing, found: Rows, entries: Sequence[Entry]) -> str:
    rows = [row for row in found.rows if row.entry in what.known and row.trained_on]
    shown = [
        f"{row.caption!r} (row {row.id[:12]}, line {entries[row.entry].line})"
        for row in rows[:_SHOWN]
    ]
    more = f" and {len(rows) - _SHOWN} more rows" if len(rows) > _SHOWN else ""
    listed = "dataset.withdrawn lists what it was trained on"
    if not what.trained_on:
        listed = "dataset.withdrawn lists what a model before it was trained on"
    return f"{listed}: {', '.join(shown)}{more}"


def _models(store: Store, start: Start) -> list[Artifact]:
    """The artifacts of a model in the store, as left by the step that made it."""
    if not start.uri:
        # The latest blessed model: the last one pushed, as far as is known before the run.
        pushed = [*_released(store).values()][-1:]
        return [model for one in pushed if (model := model_of(store, one)) is not None]
    ids = set(store.artifacts_with_uri(start.uri))
    if CONTENT_DIGEST in start.properties:
        ids |= set(store.artifacts_with(CONTENT_DIGEST, start.properties[CONTENT_DIGEST]))
    ids &= set(store.artifacts_of_type(_MODEL))
    makers = {artifact: store.graph.maker(artifact) for artifact in ids}
    # An importer's artifact has no record of what the model was made from.
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
    # `locate` opens the lock file to see who holds the lock, and a process that closes a file gives
    # up all its own locks on it.
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
