"""What a step's parameters become before training starts."""

from __future__ import annotations

import json

import pytest

from components.diffusion_trainer.custom_job import WorkerJob
from components.diffusion_trainer.executor import with_run_parameters


def training(given: dict, **parameters) -> dict:
    config = {"training": {"warmup_steps": 20, "epochs": 0.0, **given}, "preset": "tiny"}
    properties = {"steps": 160, "learning_rate": 1e-3, "seed": 0, **parameters}
    made = with_run_parameters({**properties, "custom_config": json.dumps(config)})
    config = json.loads(made["custom_config"])
    assert config["preset"] == "tiny"
    return config["training"]


def test_parameters_become_training_settings() -> None:
    found = training({}, steps=40, learning_rate=2, seed=7)
    assert found == {
        "warmup_steps": 20, "epochs": 0.0, "steps": 40, "learning_rate": 2.0, "seed": 7,
    }  # fmt: skip
    assert isinstance(found["learning_rate"], float)


@pytest.mark.parametrize(("given", "steps", "warmup"), [(20, 20, 20), (20, 19, 9), (None, 30, 15)])
def test_a_warmup_longer_than_the_steps_is_half_of_them(given, steps, warmup) -> None:
    assert training({"warmup_steps": given}, steps=steps)["warmup_steps"] == warmup


def test_steps_have_precedence_over_epochs() -> None:
    found = training({"epochs": 2.0, "warmup_steps": None}, steps=0)
    assert (found["steps"], found["epochs"], found["warmup_steps"]) == (None, 2.0, None)
    found = training({"epochs": 2.0, "warmup_steps": None}, steps=10)
    assert (found["steps"], found["epochs"], found["warmup_steps"]) == (10, 0.0, 5)


@pytest.mark.parametrize("steps", [0, -1])
def test_impossible_steps_are_refused(steps: int) -> None:
    with pytest.raises(ValueError, match=f"steps is {steps}; it must be at least 1"):
        training({}, steps=steps)


def test_a_custom_job_has_a_chief_and_workers_on_equal_machines() -> None:
    job = WorkerJob(
        project="p", region="r", image="i", workers=3, machine_type="a2-highgpu-1g",
        accelerator="NVIDIA_TESLA_A100", accelerator_count=1, service_account="a@b",
    )  # fmt: skip
    assert WorkerJob(**job.to_json()) == job
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
