"""The order of runs in a list."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from pipeline.lineage.model import LineageError, Run

_COLUMNS: dict[str, Callable[[Run], Any]] = {
    "id": lambda run: run.id,
    "run": lambda run: run.name.casefold(),
    "status": lambda run: run.status.value,
    "started": lambda run: run.started,
    "took": lambda run: run.seconds,
    "blessed": lambda run: run.blessed,
    "change": lambda run: run.loss_change,
    "release": lambda run: version_order(run.releases[-1]) if run.releases else None,
}


def version_order(version: str) -> tuple[int, str]:
    """Sort key for releases: versions are numbers of any length, as text."""
    return len(version), version


def sorted_runs(runs: Sequence[Run], key: str) -> list[Run]:
    """Sorts runs by a column or metric, smallest first; a leading `-` reverses the order.

    Runs without a value come last either way.

    Raises:
        LineageError: There is no such column.
    """
    name = key.removeprefix("-")
    metrics = sorted({metric for run in runs for metric in run.metrics})
    if name not in _COLUMNS and name not in metrics and runs:
        raise LineageError(
            f"runs cannot be sorted by {name!r}; there are: {', '.join([*_COLUMNS, *metrics])}"
        )
    value = _COLUMNS.get(name, lambda run: run.metrics.get(name))
    known = sorted((r for r in runs if value(r) is not None), key=value, reverse=key[:1] == "-")
    return known + [run for run in runs if value(run) is None]
