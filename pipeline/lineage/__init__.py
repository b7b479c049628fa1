"""Reads the lineage that runs record in ML Metadata: `python -m pipeline.lineage --help`.

`locate` names a store, `open` reads it, and the questions take the opened store:

    from pipeline import lineage

    with lineage.locate("runs/default").open() as store:
        for run in store.runs():
            print(run.name, run.status, run.metrics)
        print(lineage.trace(store, "release:1"))

The package never writes to a store. It does not need TFX, TensorFlow or ML Metadata's own client,
which creates and migrates tables when it connects.
"""

from pipeline.lineage.comparing import compare, diff, why
from pipeline.lineage.locations import Location, locate
from pipeline.lineage.model import (
    Artifact,
    ArtifactState,
    Execution,
    LineageError,
    Run,
    RunStatus,
    State,
)
from pipeline.lineage.store import Store
from pipeline.lineage.tracing import impact, trace

__all__ = [
    "Artifact",
    "ArtifactState",
    "Execution",
    "LineageError",
    "Location",
    "Run",
    "RunStatus",
    "State",
    "Store",
    "compare",
    "diff",
    "impact",
    "locate",
    "trace",
    "why",
]
