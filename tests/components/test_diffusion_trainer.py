"""What the component makes of the settings, and its executor of the component's properties."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from tfx import types
from tfx.components.trainer.executor import GenericExecutor
from tfx.components.trainer.fn_args_utils import FnArgs
from tfx.orchestration.data_types import RuntimeParameter
from tfx.types import channel_utils, standard_artifacts

from components.diffusion_trainer import DiffusionTrainer
from components.diffusion_trainer.executor import Executor
from components.diffusion_trainer.worker_job import Spot, WorkerJob
from pipeline.config import load_config, resolve_base_weights
from pipeline.trainer_settings import trainer_settings
from storage.model_manifest import ModelManifest
from trainer.training_config import TUNED, TrainerSettings

SETTINGS = trainer_settings(*resolve_base_weights(load_config()), "checkpoints")


def component(**runtime_parameters: RuntimeParameter) -> DiffusionTrainer:
    examples = channel_utils.as_channel([standard_artifacts.Examples()])
    return DiffusionTrainer(examples, settings=SETTINGS, runtime_parameters=runtime_parameters)


def told(folder: Path, **given: int | float) -> TrainerSettings:
    """What `run_fn` is told where a compiled pipeline is started with what is `given`."""
    fn_args = arguments(folder, **given)
    return TrainerSettings.from_json(fn_args.custom_config, fn_args.hyperparameters)


def arguments(folder: Path, found: dict[str, float] | None = None, **given: int | float) -> FnArgs:
    """The same as it is handed over; `found` is what the Tuner has found."""

    def artifact(kind: type[types.Artifact]) -> list[types.Artifact]:
        made = kind()
        made.uri = str(folder / kind.__name__)
        return [made]

    examples = artifact(standard_artifacts.Examples)
    examples[0].split_names = '["train", "eval"]'
    outputs = {
        "model": artifact(standard_artifacts.Model),
        "model_run": artifact(standard_artifacts.ModelRun),
    }
    properties = {**component().exec_properties, **given}
    inputs = {"examples": examples}
    if found is not None:
        inputs["hyperparameters"] = artifact(standard_artifacts.HyperParameters)
        written = Path(inputs["hyperparameters"][0].uri, "best_hyperparameters.txt")
        written.parent.mkdir()
        # KerasTuner's own form.
        written.write_text(json.dumps({"space": [], "values": found}))
    return Executor()._GetFnArgs(inputs, outputs, properties)


def test_settings_arrive_as_they_were_given(tmp_path: Path) -> None:
    assert told(tmp_path) == SETTINGS


def test_steps_learning_rate_and_seed_are_those_that_a_pipeline_is_started_with(
    tmp_path: Path,
) -> None:
    training = told(tmp_path, steps=10, learning_rate=5e-5, seed=7).training
    assert (training.steps, training.learning_rate, training.seed) == (10, 5e-5, 7)
    assert training.warmup_steps == 5
    assert training.batch_size == SETTINGS.training.batch_size


def test_a_model_says_what_its_training_was_and_went_on_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(GenericExecutor, "Do", lambda *arguments: None)
    manifest = ModelManifest(preset="tiny", image_size=128, training_id="def")

    def properties(**facts: Any) -> dict[str, Any]:
        model = standard_artifacts.Model()
        model.uri = str(tmp_path)
        dataclasses.replace(manifest, **facts).write(str(tmp_path / "Format-Serving"))
        Executor().Do({}, {"model": [model]}, {})
        found = dict(model.mlmd_artifact.custom_properties)
        return {name: getattr(v, v.WhichOneof("value")) for name, v in found.items()}

    (tmp_path / "Format-Serving").mkdir()
    assert properties() == {"training_id": "def"}
    started = {"training_id": "abc", "weights": "0", "adapters_continued": False}
    assert properties(started_from=started) == {"training_id": "def", "started_from": "abc"}
    went_on = properties(went_on_from={"training_id": "abc", "step": 160})
    assert went_on == {"training_id": "def", "went_on_from": "abc", "went_on_at_step": 160}


def test_what_the_tuner_found_is_told_beside_the_settings(tmp_path: Path) -> None:
    found = {"learning_rate": 0.0021234567, "lora_rank": 8, "tuner/epochs": 350}
    handed = arguments(tmp_path, found).hyperparameters
    assert handed.pop(TUNED) == {"learning_rate": 0.00212346, "lora_rank": 8}
    assert handed == SETTINGS.training.run_parameters
    assert TUNED not in arguments(tmp_path).hyperparameters


def test_what_is_left_open_is_a_property_of_its_own_and_no_other() -> None:
    rate = RuntimeParameter("learning_rate", float)
    properties = component(learning_rate=rate, dataset=RuntimeParameter("dataset", str))
    assert properties.exec_properties["learning_rate"] is rate
    assert properties.exec_properties["steps"] == SETTINGS.training.steps
    assert properties.exec_properties["seed"] == SETTINGS.training.seed
    assert "dataset" not in properties.exec_properties
    assert 'learning_rate"' not in properties.exec_properties["custom_config"]


def test_a_custom_job_has_a_chief_and_workers_on_equal_machines() -> None:
    job = WorkerJob(
        project="p", region="r", image="i", workers=3, machine_type="a2-highgpu-1g",
        accelerator="NVIDIA_TESLA_A100", accelerator_count=1, service_account="a@b",
    )  # fmt: skip
    assert WorkerJob.from_json(json.loads(json.dumps(job.to_json()))) == job
    on_spot = dataclasses.replace(job, workers=1, spot=Spot(60.0, 3, "stop"))
    assert WorkerJob.from_json(json.loads(json.dumps(on_spot.to_json()))) == on_spot
    assert len(on_spot.job_spec()["worker_pool_specs"]) == 1
    assert "scheduling" not in on_spot.job_spec()
    assert on_spot.job_spec(on_spot=True)["scheduling"] == {"strategy": "SPOT"}
    spec = job.job_spec()
    chief, workers = spec["worker_pool_specs"]
    assert (chief["replica_count"], workers["replica_count"]) == (1, 2)
    assert (
        chief["machine_spec"]
        == workers["machine_spec"]
        == {
            "machine_type": "a2-highgpu-1g",
            "accelerator_type": "NVIDIA_TESLA_A100",
            "accelerator_count": 1,
        }
    )
    assert chief["container_spec"] == {"image_uri": "i"}
    assert spec["service_account"] == "a@b"
