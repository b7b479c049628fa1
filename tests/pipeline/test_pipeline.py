"""What the steps of the real pipeline depend on, and so what a changed setting runs again."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from tfx.dsl.components.base.base_node import BaseNode
from tfx.dsl.components.common.importer import SOURCE_URI_KEY, Importer
from tfx.dsl.components.common.resolver import Resolver

from components.caption_validator.drift import MEASURES
from pipeline.config import load_config, resolve_base_weights
from pipeline.lineage.model import NOTED_SETTINGS
from pipeline.pipeline import create_pipeline
from pipeline.starting import AT_RUN_TIME, Start

BEFORE_THE_TRAINER = {
    "CaptionExampleGen", "StatisticsGen", "SchemaGen", "CaptionValidator", "DatasetReport",
    "LatentGen",
}  # fmt: skip
AFTER_THE_TRAINER = {"LossScorer", "Evaluator", "EvaluationReport", "ServingPusher"}


def nodes(
    folder: Path,
    trials: int = 0,
    start: Start | None = None,
    given: Mapping[str, Any] | None = None,
    take_over: bool = True,
    datasets_index: str = "",
    **training: Any,
) -> dict[str, BaseNode]:
    flags: dict[str, tuple[str, Any]] = {
        "tuning.trials": ("--given", trials),
        "model.take_over_latents": ("--given", take_over),
    }
    flags |= {key: ("--given", value) for key, value in (given or {}).items()}
    config, base_model = resolve_base_weights(load_config(None, flags))
    config = dataclasses.replace(config, training=dataclasses.replace(config.training, **training))
    made = create_pipeline(
        config,
        pipeline_root=str(folder / "artifacts"),
        metadata_path=str(folder / "metadata.sqlite"),
        serving_dir=str(folder / "serving_model"),
        checkpoint_dir=str(folder / "checkpoints"),
        latents_index=str(folder / "latents_index"),
        datasets_index=datasets_index,
        dataset_fingerprint="1",
        base_model=base_model,
        start=start,
    )
    return {node.id: node for node in made.components}


def producers(node: BaseNode) -> set[str]:
    return {channel.producer_component_id for channel in node.inputs.values()}


def changed(before: Mapping[str, Any], after: Mapping[str, Any]) -> set[str]:
    """The steps that execute again for other settings than are noted down."""

    def decisive(node: Any) -> dict[str, Any]:
        return {k: v for k, v in node.exec_properties.items() if k not in NOTED_SETTINGS}

    return {name for name in before if decisive(before[name]) != decisive(after[name])}


@pytest.mark.parametrize(
    "setting", [{"steps": 6}, {"batch_size": 8}, {"learning_rate": 0.5}, {"seed": 7}]
)
def test_a_training_setting_is_the_trainers_alone(setting: dict[str, Any], tmp_path: Path) -> None:
    before, after = nodes(tmp_path), nodes(tmp_path, **setting)
    assert before.keys() == after.keys()
    assert changed(before, after) == {"Trainer"}
    # The push writes all down, and executes nothing again for that.
    assert before["ServingPusher"].exec_properties != after["ServingPusher"].exec_properties


def test_an_index_of_latents_is_kept_where_they_are_taken_over(tmp_path: Path) -> None:
    latents = [nodes(tmp_path, take_over=way)["LatentGen"].exec_properties for way in (True, False)]
    places = [properties["latents_index"] for properties in latents]
    assert places == [str(tmp_path / "latents_index"), ""]
    # Another value runs nothing again.
    assert "latents_index" in NOTED_SETTINGS


def test_what_comes_after_the_trainer_reads_what_it_made(tmp_path: Path) -> None:
    made = nodes(tmp_path)
    assert {*made} - {"LatestBlessedModel"} == {*BEFORE_THE_TRAINER, "Trainer", *AFTER_THE_TRAINER}
    for step in BEFORE_THE_TRAINER:
        assert producers(made[step]) <= BEFORE_THE_TRAINER
    for step in AFTER_THE_TRAINER:
        assert "Trainer" in producers(made[step])


def test_with_trials_a_tuner_says_what_the_trainer_trains_with(tmp_path: Path) -> None:
    without, made = nodes(tmp_path), nodes(tmp_path, trials=12)
    assert {*made} - {*without} == {"Tuner"}
    assert producers(made["Tuner"]) == {"LatentGen"}
    found = made["Trainer"].inputs["hyperparameters"]
    assert found.producer_component_id == "Tuner"
    assert producers(made["Trainer"]) == {"LatentGen", "Tuner"}
    # What is searched is no setting of the Trainer's.
    assert made["Trainer"].exec_properties == without["Trainer"].exec_properties
    names = [*made]
    assert names.index("LatentGen") < names.index("Tuner") < names.index("Trainer")


def test_the_model_that_is_started_from_is_an_input_and_what_is_compared_with(
    tmp_path: Path,
) -> None:
    start = Start("/a/model/7", "model 7", "artifact 7", {"content_digest": "abc"})
    given = {"model.start_from": "release:3"}
    without, made = nodes(tmp_path), nodes(tmp_path, trials=12, start=start, given=given)
    node = made["StartingModel"]
    assert isinstance(node, Importer)
    assert node.exec_properties[SOURCE_URI_KEY] == "/a/model/7"
    assert not node.exec_properties["reimport"]
    assert node.outputs["model"].additional_custom_properties == {"content_digest": "abc"}
    for step, key in (
        ("Tuner", "base_model"),
        ("Trainer", "base_model"),
        ("LossScorer", "baseline_model"),
        ("Evaluator", "baseline_model"),
        ("EvaluationReport", "baseline_model"),
    ):
        assert made[step].inputs[key].producer_component_id == "StartingModel"
    assert "LatestBlessedModel" not in made
    # By the cache key of the Trainer alone it is another run.
    assert made["Trainer"].exec_properties == without["Trainer"].exec_properties
    assert "base_model" not in without["Trainer"].inputs
    assert "StartingModel" not in without
    names = [*made]
    assert names.index("StartingModel") < names.index("Tuner")


def test_the_dataset_is_compared_with_that_of_the_model_started_from(tmp_path: Path) -> None:
    start = Start("/a/model/7", "model 7", "artifact 7", {}, "/a/statistics/2", "/a/examples/1")
    given = {"model.start_from": "release:3", "drift.fail_on_drift": True, "drift.size": None}
    made = nodes(tmp_path, start=start, given=given)
    for node, uri in (
        ("StartingStatistics", start.statistics),
        ("StartingDataset", start.examples),
    ):
        assert made[node].exec_properties[SOURCE_URI_KEY] == uri
    assert producers(made["CaptionValidator"]) == {
        "StatisticsGen", "SchemaGen", "CaptionExampleGen", "StartingStatistics", "StartingDataset",
    }  # fmt: skip
    settings = made["CaptionValidator"].exec_properties
    assert json.loads(settings["drift"]) == {
        "caption_length": 0.1, "words": 0.1, "brightness": 0.1, "format": 0.1, "rejected": 0.05,
    }  # fmt: skip
    assert settings["fail_on_drift"] == 1
    assert "StartingStatistics" in producers(made["DatasetReport"])
    assert made["CaptionValidator"].id in {n.id for n in made["LatentGen"].upstream_nodes}
    # With its rows gone, statistics alone are compared; with nothing to compare, nothing is.
    cleaned = nodes(tmp_path, start=dataclasses.replace(start, examples=""), given=given)
    assert "StartingDataset" not in cleaned
    assert producers(cleaned["CaptionValidator"]) == {
        "StatisticsGen", "SchemaGen", "StartingStatistics",
    }  # fmt: skip
    unasked = {f"drift.{name}": None for name in MEASURES}
    for without in (
        nodes(tmp_path, start=dataclasses.replace(start, statistics="", examples=""), given=given),
        nodes(tmp_path, start=start, given=given | unasked),
    ):
        assert {"StartingStatistics", "StartingDataset"}.isdisjoint(without)
        assert producers(without["CaptionValidator"]) == {"StatisticsGen", "SchemaGen"}
        assert without["CaptionValidator"].exec_properties["drift"] is None
        assert made["CaptionValidator"].id not in {
            n.id for n in without["LatentGen"].upstream_nodes
        }


def test_where_ml_metadata_cannot_be_asked_the_step_looks_for_the_models_dataset(
    tmp_path: Path,
) -> None:
    given = {"model.start_from": "latest_blessed", "drift.fail_on_drift": True}
    index = str(tmp_path / "datasets_index")
    made = nodes(tmp_path, start=AT_RUN_TIME, given=given, datasets_index=index)
    validator = made["CaptionValidator"]
    assert validator.inputs["base_model"].producer_component_id == "StartingModel"
    assert "examples" in validator.inputs
    assert validator.exec_properties["datasets_index"] == index
    assert validator.id in {n.id for n in made["LatentGen"].upstream_nodes}
    # Another place runs nothing again.
    assert "datasets_index" in NOTED_SETTINGS
    unasked = given | {f"drift.{name}": None for name in MEASURES}
    for without in (
        nodes(tmp_path, datasets_index=index),
        nodes(tmp_path, start=AT_RUN_TIME, given=unasked, datasets_index=index),
    ):
        assert {*without["CaptionValidator"].inputs} == {"statistics", "schema", "examples"}
        assert without["CaptionValidator"].exec_properties["datasets_index"] == index


def test_what_is_compared_with_can_be_another_than_what_is_started_from(tmp_path: Path) -> None:
    given = {"model.start_from": "latest_blessed", "evaluation.baseline": "latest_blessed"}
    made = nodes(tmp_path, start=AT_RUN_TIME, given=given)
    assert isinstance(made["StartingModel"], Resolver)
    assert made["Trainer"].inputs["base_model"].producer_component_id == "StartingModel"
    scorer = made["LossScorer"].inputs
    assert scorer["baseline_model"].producer_component_id == "LatestBlessedModel"
    # With nothing to start from yet, it is the base weights.
    first = nodes(tmp_path, given={"model.start_from": "latest_blessed"})
    assert "StartingModel" not in first
    assert "LatestBlessedModel" not in first
    assert first["LossScorer"].inputs.get("baseline_model") is None


def test_buckets_are_told_to_those_who_crop_and_who_judge(tmp_path: Path) -> None:
    squares, buckets = (nodes(tmp_path, given={"model.buckets": value}) for value in (False, True))
    assert changed(squares, buckets) == {"DatasetReport", "LatentGen", "Evaluator"}
    told = json.loads(buckets["LatentGen"].exec_properties["buckets"])
    assert told == {"step": 32, "max_pixels": 16_384, "min_side": 64, "max_side": 256}
    assert squares["LatentGen"].exec_properties["buckets"] is None
    sliced = json.loads(buckets["Evaluator"].exec_properties["eval_config"])["slicing_specs"]
    assert {"feature_keys": ["picture_size"]} in sliced
