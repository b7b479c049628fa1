"""Tells from ML Metadata, much faster than TFX, whether a run would find everything done.

A successful run stores a key of everything that it depends on with its context in ML Metadata. If
the latest run has the same key as the run about to start, and all of its outputs still exist,
nothing is left to do. In any doubt the pipeline runs and uses the cache.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
import platform
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ml_metadata.metadata_store import metadata_store
from ml_metadata.proto import metadata_store_pb2 as mlmd

from pipeline.config import RunConfig
from pipeline.config.schema import KEEPING, OUTPUT
from pipeline.console import OUR_PACKAGES
from pipeline.housekeeping import contexts_of
from pipeline.outcome import ComponentOutcome, RunOutcome, Status
from storage.commands import CHECKOUT
from storage.filesystem import read_bytes
from storage.hashing import sha256_hex

if TYPE_CHECKING:
    from trainer.weights.base_model import BaseModel

_KEY = "run_key"
_RUN, _NODE = "pipeline_run", "node"
_LOOKING_UP = ("resolver.Resolver", "importer.Importer")
_CODE_SUFFIXES = (".py", ".yaml", ".html", ".safetensors")
_SUCCESSFUL = (mlmd.Execution.COMPLETE, mlmd.Execution.CACHED)


def run_key(
    config: RunConfig, dataset_fingerprint: str, base_model: BaseModel, started_from: str = ""
) -> str:
    """Hashes everything that a run depends on: settings, dataset, weights, schema, code, versions.

    The place of the output folder, and what is kept there, are left out. All code counts, even code
    that no step runs: reading it all is faster than finding out what is imported.

    Args:
        config: All settings, resolved.
        dataset_fingerprint: Fingerprint of the dataset as it is now.
        base_model: The base weights as they are now.
        started_from: Names the model that training starts from instead, if there is one.

    Returns:
        SHA-256 (hex).
    """
    schema, learned = config.dataset.schema, config.word.learned_from
    facts = {
        "config": {**dataclasses.asdict(config), **dict.fromkeys((OUTPUT, *KEEPING), "")},
        "dataset": dataset_fingerprint,
        "base_weights": [
            base_model.preset.numerics,
            base_model.preset.prediction,
            base_model.preset.zero_terminal_snr,
            base_model.hash(),
        ],
        "started_from": started_from,
        "schema": None if schema is None else sha256_hex([read_bytes(schema)]),
        **({} if learned is None else {"learned_from": sha256_hex([read_bytes(learned)])}),
        "code": [
            [path.relative_to(CHECKOUT).as_posix(), sha256_hex([path.read_bytes()])]
            for path in _code()
        ],
        "versions": [
            platform.python_version(),
            *(importlib.metadata.version(name) for name in ("tfx", "tensorflow", "keras")),
        ],
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def remember(store: metadata_store.MetadataStore, outcome: RunOutcome, key: str) -> None:
    """Stores the key of a successful run."""
    [run] = contexts_of(store, outcome.components[0].execution_id, _RUN)
    run.custom_properties[_KEY].string_value = key
    store.put_contexts([run])


def find_done(store: metadata_store.MetadataStore, key: str) -> RunOutcome | None:
    """The outcome of the latest run, as if from the cache, if it has this key and is complete.

    Artifacts whose files are gone must already be withdrawn (see `pipeline.housekeeping.repair`).
    """
    for latest in _latest(store):
        for run in contexts_of(store, latest.id, _RUN):
            if dict(run.custom_properties).get(_KEY, mlmd.Value()).string_value == key:
                return _outcome(store, run)
    return None


def ended_badly(store: metadata_store.MetadataStore) -> bool:
    """Whether the latest run did not finish."""
    return any(e.last_known_state not in _SUCCESSFUL for e in _latest(store))


def _latest(store: metadata_store.MetadataStore) -> list[mlmd.Execution]:
    """The latest execution, if there is any."""
    options = metadata_store.ListOptions(
        limit=1, order_by=metadata_store.OrderByField.ID, is_asc=False
    )
    return list(store.get_executions(list_options=options))


def _outcome(store: metadata_store.MetadataStore, run: mlmd.Context) -> RunOutcome | None:
    executions = sorted(store.get_executions_by_context(run.id), key=lambda e: e.id)
    events = store.get_events_by_execution_ids([e.id for e in executions])
    outputs = {e.artifact_id for e in events if e.type == mlmd.Event.OUTPUT}
    if any(e.last_known_state not in _SUCCESSFUL for e in executions) or any(
        a.state != mlmd.Artifact.LIVE for a in store.get_artifacts_by_id(sorted(outputs))
    ):
        return None
    return RunOutcome(
        run.name,
        tuple(
            ComponentOutcome(
                component=contexts_of(store, e.id, _NODE)[0].name.rpartition(".")[2],
                status=Status.RESOLVED if e.type.endswith(_LOOKING_UP) else Status.CACHED,
                seconds=0.0,
                execution_id=e.id,
            )
            for e in executions
        ),
    )


def _code() -> Iterator[Path]:
    for package in sorted(OUR_PACKAGES):
        paths: Iterable[Path] = (CHECKOUT / package).rglob("*")
        yield from sorted(path for path in paths if path.suffix in _CODE_SUFFIXES)
