"""Which model a run starts from, and what cannot be started from."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from ml_metadata.metadata_store import metadata_store
from ml_metadata.proto import metadata_store_pb2 as mlmd
from small_models import write_model

from pipeline import starting
from pipeline.config import ConfigError, RunConfig, load_config
from trainer.presets import NETWORKS, get_preset
from trainer.weights.base_model import BaseModel

BASE_MODEL = BaseModel.locate(get_preset("tiny"), 128, "random")


def settings(start_from: str, **model: Any) -> RunConfig:
    flags = {"model.start_from": ("--start-from", start_from)}
    return load_config(None, flags | {f"model.{k}": ("--given", v) for k, v in model.items()})


class Output:
    """An output folder's ML Metadata, and the models of its runs."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.serving_dir = folder, folder / "serving_model"
        config = mlmd.ConnectionConfig()
        config.sqlite.filename_uri = str(folder / "metadata.sqlite")
        config.sqlite.connection_mode = mlmd.SqliteMetadataSourceConfig.READWRITE_OPENCREATE
        self.store = metadata_store.MetadataStore(config)
        self._runs = 0

    def find(self, start_from: str, fingerprint: str, **model: Any) -> starting.Start | None:
        config = settings(start_from, **model)
        base_model = dataclasses.replace(BASE_MODEL, image_size=config.model.image_size)
        return starting.find_start(
            config, base_model, fingerprint, self.store, str(self.serving_dir)
        )

    def run(
        self,
        fingerprint: str,
        model: str = "",
        *,
        blessed: bool = True,
        started: str = "",
        cached: bool = False,
        with_data: bool = False,
    ) -> str:
        """A run that makes a model, or takes it from the cache; returns the model's folder."""
        self._runs += 1
        made = self._known(model) if model else self._artifact("Model", str(self._runs))
        [uri] = [a.uri for a in self.store.get_artifacts_by_id([made])]
        examples = self._artifact("Examples", f"examples-{self._runs}")
        given = {"dataset_fingerprint": fingerprint}
        state = mlmd.Execution.CACHED if cached else mlmd.Execution.COMPLETE
        self._step("CaptionExampleGen", {}, {"examples": examples}, given, state=state)
        inputs = {"examples": examples}
        if with_data:
            statistics = self._artifact("ExampleStatistics", f"statistics-{self._runs}")
            self._step("StatisticsGen", {"examples": examples}, {"statistics": statistics})
            latents = self._artifact("Examples", f"latents-{self._runs}")
            self._step("LatentGen", {"examples": examples}, {"latents": latents})
            inputs = {"examples": latents}
            for name in ("examples", "statistics"):
                (self.folder / "artifacts" / f"{name}-{self._runs}").mkdir(parents=True)
        if started:
            before = self._known(started)
            self._step("Importer", {}, {"model": before})
            inputs["base_model"] = before
        self._step("Trainer", inputs, {"model": made}, state=state)
        facts = {"blessed": int(blessed), "current_model_id": made}
        blessing = self._artifact("ModelBlessing", f"blessing-{self._runs}", **facts)
        self._step("Evaluator", {"model": made}, {"blessing": blessing})
        if blessed and not cached:
            version = str(self._runs)
            facts = {"pushed_version": version, "pushed_destination": str(self.serving_dir)}
            pushed = self._artifact("PushedModel", f"pushed-{self._runs}", **facts)
            inputs = {"model": made, "model_blessing": blessing}
            self._step("ServingPusher", inputs, {"pushed_model": pushed})
            release = self.serving_dir / "releases" / f"{version}.json"
            release.parent.mkdir(parents=True, exist_ok=True)
            release.write_text(json.dumps({"version": version, "model": {"uri": uri}}))
        return uri

    def remove(self, uri: str, state: mlmd.Artifact.State = mlmd.Artifact.DELETED) -> None:
        [artifact] = self.store.get_artifacts_by_uri(uri)
        artifact.state = state
        self.store.put_artifacts([artifact])

    def _known(self, uri: str) -> int:
        found = self.store.get_artifacts_by_uri(uri)
        return found[0].id if found else 0

    def _artifact(self, kind: str, name: str, **properties: Any) -> int:
        folder = self.folder / "artifacts" / name
        if kind == "Model":
            write_model(folder)
        kind_id = self.store.put_artifact_type(mlmd.ArtifactType(name=kind))
        artifact = mlmd.Artifact(type_id=kind_id, uri=str(folder), state=mlmd.Artifact.LIVE)
        for key, value in properties.items():
            target = artifact.custom_properties[key]
            if isinstance(value, int):
                target.int_value = value
            else:
                target.string_value = value
        [number] = self.store.put_artifacts([artifact])
        return number

    def _step(
        self,
        node: str,
        inputs: dict[str, int],
        outputs: dict[str, int],
        given: dict[str, str] | None = None,
        state: mlmd.Execution.State = mlmd.Execution.COMPLETE,
    ) -> None:
        kind = self.store.put_execution_type(mlmd.ExecutionType(name=node))
        execution = mlmd.Execution(type_id=kind, last_known_state=state)
        for key, value in (given or {}).items():
            execution.custom_properties[key].string_value = value
        pairs = []
        for event_type, artifacts in ((mlmd.Event.INPUT, inputs), (mlmd.Event.OUTPUT, outputs)):
            for key, number in artifacts.items():
                event = mlmd.Event(type=event_type)
                event.path.steps.add().key = key
                event.path.steps.add().index = 0
                [artifact] = self.store.get_artifacts_by_id([number])
                pairs.append((artifact, event))
        run_type = self.store.put_context_type(mlmd.ContextType(name="pipeline_run"))
        run = mlmd.Context(type_id=run_type, name=f"run {self._runs}")
        found = self.store.get_context_by_type_and_name("pipeline_run", run.name)
        self.store.put_execution(execution, pairs, [found or run])


@pytest.fixture
def output(tmp_path: Path) -> Output:
    return Output(tmp_path)


def test_the_latest_blessed_model_of_other_data_is_started_from(output: Output) -> None:
    assert output.find("base", "a") is None
    assert output.find("latest_blessed", "a") is None
    said = starting.told("latest_blessed", None)
    assert said.startswith("Training starts from the base weights: no model that was trained on")
    assert starting.told("base", None) == ""

    first = output.run("a")
    # The same data, the same start: a second run has nothing to do.
    assert output.find("latest_blessed", "a") is None
    found = output.find("latest_blessed", "b")
    assert (found.uri, found.properties) == (first, {})
    assert found.shown.startswith("release 1, model ")
    assert found.shown in starting.told("latest_blessed", found)

    second = output.run("b", started=first)
    # Nor is what it was started from taken for made of the new data.
    assert output.find("latest_blessed", "b") == found
    output.run("c", started=second, blessed=False)
    assert output.find("latest_blessed", "c").uri == second
    assert output.find("latest_blessed", "d").uri == second
    # Back to former data: not to what was made of it.
    assert output.find("latest_blessed", "a").uri == second
    # The same rows in other files: the run took its model from the cache.
    output.run("e", second, cached=True)
    assert output.find("latest_blessed", "e").uri == first


@pytest.mark.parametrize("start_from", ["latest_blessed", "release:2", "PATH"])
def test_the_dataset_of_the_model_is_found(output: Output, start_from: str) -> None:
    output.run("a", with_data=True)
    model = output.run("b", with_data=True)
    output.run("c", with_data=True, blessed=False)
    # The week after it started from there, too: that is no maker of it.
    output.run("d", started=model, with_data=True, blessed=False)
    start_from = start_from.replace("PATH", model)
    found = output.find(start_from, "e")
    folder = output.folder / "artifacts"
    assert found.uri == model
    assert (found.statistics, found.examples) == (
        str(folder / "statistics-2"),
        str(folder / "examples-2"),
    )
    assert starting.told(start_from, found).endswith(f"(model.start_from: {start_from}).")
    # A clean-up removes examples, but no statistics.
    output.remove(found.examples)
    cleaned = output.find(start_from, "e")
    assert cleaned == dataclasses.replace(found, examples="")
    assert "is no longer here: this dataset is compared only with its statistics" in starting.told(
        start_from, cleaned
    )
    (folder / "statistics-2").rmdir()
    lost = output.find(start_from, "e")
    assert lost == dataclasses.replace(found, examples="", statistics="")
    assert "so this dataset is not checked for drift" in starting.told(start_from, lost)


@pytest.mark.parametrize("state", [mlmd.Artifact.DELETED, mlmd.Artifact.MARKED_FOR_DELETION])
def test_what_was_removed_is_not_started_from(output: Output, state: mlmd.Artifact.State) -> None:
    first, second = output.run("a"), output.run("b")
    output.remove(second, state)
    assert output.find("latest_blessed", "c").uri == first
    with pytest.raises(ConfigError, match=r"release:2 is impossible: the model .* is gone; start"):
        output.find("release:2", "c")


def test_a_release_is_started_from(output: Output) -> None:
    with pytest.raises(ConfigError, match=r"release:1 is impossible: .* nothing was pushed yet"):
        output.find("release:1", "a")
    first = output.run("a")
    output.run("b")
    assert output.find("release:1", "a").uri == first
    with pytest.raises(ConfigError, match=r"there is no release 3 in .*; there are: 1, 2"):
        output.find("release:3", "a")
    (output.serving_dir / "releases" / "1.json").unlink()
    with pytest.raises(ConfigError, match=r"there is no release 1 in .*; there are: 2"):
        output.find("release:1", "a")


def test_a_folder_is_started_from(output: Output, tmp_path: Path) -> None:
    model = write_model(tmp_path / "elsewhere")
    found = output.find(str(model), "a")
    assert found == output.find(f"{model}/Format-Serving/", "a")
    assert found.uri == str(model)
    assert list(found.properties) == ["content_digest"]
    assert found.identity == found.properties["content_digest"]
    with pytest.raises(ConfigError, match=r"no manifest.json in .*: give the Trainer's model"):
        output.find(str(tmp_path), "a")


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        (
            {"preset": "sd-v1-4"},
            "has preset 'sd-v1-4' at 128 pixels, but this training has 'tiny'",
        ),
        ({"image_size": 64}, "has preset 'tiny' at 64 pixels"),
        (
            {"base_weights": {**dict.fromkeys(NETWORKS, "random"), "image_encoder": "other"}},
            r"made from other base weights than 'random' \(image_encoder differ\), with which .* "
            "give its own, 'random', with --base-weights",
        ),
        (
            {"prediction": "v_prediction", "zero_terminal_snr": True},
            "learned to predict v_prediction with zero terminal SNR, but this training is for "
            "epsilon: set model.prediction",
        ),
        ({"numerics": "diffusers"}, "made from other base weights than 'random', with which"),
    ],
)
def test_a_model_that_does_not_fit_is_refused_before_anything_starts(
    output: Output, tmp_path: Path, facts: dict[str, Any], message: str
) -> None:
    model = write_model(tmp_path / "elsewhere", **facts)
    with pytest.raises(ConfigError, match=message):
        output.find(str(model), "a")


def test_a_model_of_another_size_is_refused_though_it_is_the_latest(output: Output) -> None:
    output.run("a")
    with pytest.raises(ConfigError, match=r"'latest_blessed': the model in .* at 192"):
        output.find("latest_blessed", "b", image_size=192)


def test_damaged_and_cleaned_models_are_told(output: Output, tmp_path: Path) -> None:
    model = write_model(tmp_path / "cleaned")
    (model / "Format-Serving" / "diffusion_model" / "saved_model.pb").unlink()
    with pytest.raises(ConfigError, match=r"the weights of the model in .* are gone"):
        output.find(str(model), "a")
    (model / "Format-Serving" / "manifest.json").write_text("{")
    with pytest.raises(ConfigError, match=r"manifest.json is damaged"):
        output.find(str(model), "a")


def test_on_vertex_the_latest_is_looked_up_then_and_others_now(
    output: Output, tmp_path: Path
) -> None:
    def find(start_from: str) -> starting.Start | None:
        return starting.find_start_for_vertex(
            settings(start_from), BASE_MODEL, str(output.serving_dir)
        )

    assert find("base") is None
    assert find("latest_blessed") is starting.AT_RUN_TIME
    with pytest.raises(ConfigError, match=r"there is no release 1 in .* nothing was pushed yet"):
        find("release:1")
    first = output.run("a")
    found = find("release:1")
    assert (found.uri, found.shown, found.properties) == (first, "release 1", {})
    model = write_model(tmp_path / "elsewhere")
    found = find(str(model))
    assert list(found.properties) == ["manifest_sha256"]
    (output.serving_dir / "releases" / "1.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"1.json is damaged"):
        find("release:1")


def test_outside_of_a_pipeline_only_a_folder_can_be_started_from(tmp_path: Path) -> None:
    model = write_model(tmp_path / "elsewhere")
    assert starting.find_start_outside(settings("base"), BASE_MODEL) is None
    found = starting.find_start_outside(settings(str(model)), BASE_MODEL)
    assert found == str(model / "Format-Serving")
    with pytest.raises(ConfigError, match=r"'latest_blessed' is impossible here"):
        starting.find_start_outside(settings("latest_blessed"), BASE_MODEL)
