"""What a run leaves so that the next one knows that nothing is to be done."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from ml_metadata.metadata_store import metadata_store
from ml_metadata.proto import metadata_store_pb2 as mlmd

from pipeline import housekeeping, repeat
from pipeline.config import RunConfig, load_config
from pipeline.outcome import ComponentOutcome, RunOutcome, Status
from trainer.presets import get_preset
from trainer.weights.base_model import BaseModel

KEY = "of this run"


class Runs:
    """An output folder's store, and runs of one component in it."""

    def __init__(self, folder: Path) -> None:
        self.store: metadata_store.MetadataStore = housekeeping.open_store(str(folder))
        self.type = self.store.put_execution_type(mlmd.ExecutionType(name="Some"))
        self.artifact_type = self.store.put_artifact_type(mlmd.ArtifactType(name="Model"))
        self.contexts = {
            name: self.store.put_context_type(mlmd.ContextType(name=name))
            for name in ("pipeline_run", "node")
        }

    def add(self, run: str, state: int = mlmd.Execution.COMPLETE) -> int:
        """Records a run whose one step ended so; returns the step's id."""
        output = mlmd.Artifact(type_id=self.artifact_type, uri=f"/{run}", state=mlmd.Artifact.LIVE)
        step, _, _ = self.store.put_execution(
            mlmd.Execution(type_id=self.type, last_known_state=state),
            [(output, mlmd.Event(type=mlmd.Event.OUTPUT))],
            [
                mlmd.Context(type_id=self.contexts["pipeline_run"], name=run),
                mlmd.Context(type_id=self.contexts["node"], name="sd.Some"),
            ],
            reuse_context_if_already_exist=True,
        )
        return int(step)

    def remember(self, step: int) -> None:
        outcome = ComponentOutcome("Some", Status.EXECUTED, 1.0, step)
        repeat.remember(self.store, RunOutcome("", (outcome,)), KEY)


@pytest.fixture
def runs(tmp_path: Path) -> Runs:
    return Runs(tmp_path)


def test_the_latest_run_is_found_by_its_key_as_the_cache_would_give_it(runs: Runs) -> None:
    assert repeat.find_done(runs.store, KEY) is None
    assert not repeat.ended_badly(runs.store)
    step = runs.add("first")
    assert repeat.find_done(runs.store, KEY) is None
    runs.remember(step)
    assert repeat.find_done(runs.store, "of another") is None
    assert repeat.find_done(runs.store, KEY) == RunOutcome(
        "first", (ComponentOutcome("Some", Status.CACHED, 0.0, step),)
    )


@pytest.mark.parametrize("state", [mlmd.Execution.COMPLETE, mlmd.Execution.FAILED])
def test_a_later_run_of_any_end_leaves_a_doubt(runs: Runs, state: int) -> None:
    runs.remember(runs.add("first"))
    runs.add("second", state)
    assert repeat.find_done(runs.store, KEY) is None
    assert repeat.ended_badly(runs.store) is (state == mlmd.Execution.FAILED)


def test_an_output_that_was_withdrawn_leaves_a_doubt(runs: Runs) -> None:
    runs.remember(runs.add("first"))
    [artifact] = runs.store.get_artifacts()
    artifact.state = mlmd.Artifact.DELETED
    runs.store.put_artifacts([artifact])
    assert repeat.find_done(runs.store, KEY) is None


def test_a_key_changes_with_all_that_a_run_comes_from_but_not_with_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "trainer").mkdir()
    code = tmp_path / "trainer" / "some.py"
    code.write_text("x = 1\n")
    schema = tmp_path / "schema.pbtxt"
    schema.write_text("")
    monkeypatch.setattr(repeat, "CHECKOUT", tmp_path)

    def config(**settings: object) -> RunConfig:
        given = {"dataset.schema": str(schema), **settings}
        return load_config(None, {key: ("--given", value) for key, value in given.items()})

    def key(settings: RunConfig, fingerprint: str = "a", weights: str = "random") -> str:
        base_model = BaseModel.locate(get_preset("tiny"), 64, weights)
        return repeat.run_key(settings, fingerprint, base_model)

    first = key(config())
    assert key(dataclasses.replace(config(), output="/elsewhere")) == first
    others = {
        key(config(**{"training.steps": 3})),
        key(config(**{"serving.keep_versions": 3})),
        key(config(), fingerprint="b"),
        key(config(), weights="default"),
    }
    schema.write_text("# another\n")
    others.add(key(config()))
    schema.write_text("")
    code.write_text("x = 2\n")
    others.add(key(config()))
    (tmp_path / "trainer" / "some.safetensors").write_bytes(b"weights")
    others.add(key(config()))
    word = {"word.token": "<x>", "word.initial": "animal"}
    learned = tmp_path / "learned_embeds.safetensors"
    for value in (0.0, 1.0):
        safetensors.numpy.save_file({"x": np.full((1, 64), value, np.float32)}, learned)
        others.add(key(config(**word, **{"word.learned_from": str(learned)})))
    assert len(others) == 9
    assert first not in others
