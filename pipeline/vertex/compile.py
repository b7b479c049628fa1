"""Compiles the configuration to the job specification that Vertex AI runs."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from google.protobuf import json_format
from google.protobuf.message import Message
from kfp.pipeline_spec import pipeline_spec_pb2
from tfx.dsl.components.base import base_beam_component, base_component, base_node
from tfx.dsl.input_resolution.strategies.latest_blessed_model_strategy import (
    LatestBlessedModelStrategy,
)
from tfx.orchestration.data_types import RuntimeParameter
from tfx.orchestration.kubeflow.v2 import kubeflow_v2_dag_runner

from components.diffusion_trainer.worker_job import Spot, WorkerJob
from pipeline import pipeline as pipelines
from pipeline.class_pictures import CLASS_LATENT_GEN, CLASS_PICTURES
from pipeline.config import REPO_ROOT, ConfigError, RunConfig
from pipeline.starting import Start
from pipeline.vertex import machines
from pipeline.vertex.config import VertexConfig
from pipeline.vertex.places import Places
from storage.hashing import sha256_hex
from storage.withdrawn import KnownBy
from trainer.weights.base_model import BaseModel

TRAINER, TUNER = "Trainer", "Tuner"
MODEL_STEPS = (
    "DatasetReport",
    "LatentGen",
    CLASS_LATENT_GEN,
    "LossScorer",
    "EvaluationReport",
    "WithdrawnReport",
    "ServingPusher",
)
"""Steps, besides the Trainer, that run the model."""

_ResourceSpec = pipeline_spec_pb2.PipelineDeploymentConfig.PipelineContainerSpec.ResourceSpec
_BACKOFF_SECONDS, _MAX_BACKOFF_SECONDS = 60, 3600
_SECRET = re.compile(r"(?i)(token|secret|password|passwd|key)$")
_SHORTEST_SECRET = 8


def compile_job(
    config: RunConfig,
    *,
    dataset_fingerprint: str,
    base_model: BaseModel,
    image: str,
    places: Places,
    start: Start | None = None,
    known_by: KnownBy | None = None,
    only_on_change: bool = False,
) -> dict[str, Any]:
    """Compiles the pipeline that the local runner runs.

    Args:
        config: All settings, with the dataset and the base weights resolved.
        dataset_fingerprint: See `pipeline.config.resolve_dataset`; "": use the content at the time
            when the run starts.
        base_model: See `pipeline.config.resolve_base_weights`.
        image: Container image of all steps.
        places: Where the run writes.
        start: What training starts from; see `pipeline.starting.find_start_for_vertex`.
        known_by: Which releases have learned from withdrawn rows; see
            `pipeline.withdrawal.look_up`.
        only_on_change: Whether a run does nothing if the dataset's content is the same as in the
            last finished run with these settings.

    Returns:
        A `PipelineJob` for Vertex's API, with a value for every runtime parameter.

    Raises:
        ConfigError: A setting names a step that does not exist, or something only on this machine.
        ValueError: The compiled specification is not valid; this is an error of ours.
    """
    vertex = config.vertex
    values = _parameter_values(config, dataset_fingerprint)
    pipeline = pipelines.create_pipeline(
        config,
        pipeline_root=places.root,
        metadata_path=None,
        serving_dir=places.serving_dir,
        checkpoint_dir=f"{places.root}/checkpoints",
        latents_index=f"{places.root}/latents_index",
        datasets_index=f"{places.root}/datasets_index",
        dataset_fingerprint=dataset_fingerprint,
        base_model=base_model,
        start=start,
        known_by=known_by,
        baseline_strategy=LatestBlessedModelStrategy,
        runtime_parameters={
            name: RuntimeParameter(name, type(value)) for name, value in values.items()
        },
        worker_job=_training_job(vertex, image) if vertex.trains_in_custom_job else None,
        trials_job=(
            _worker_job(
                vertex,
                image,
                f"tuning.parallel_trials = {config.tuning.parallel_trials}",
                config.tuning.parallel_trials,
            )
            if config.tuning.trials and config.tuning.parallel_trials > 1
            else None
        ),
        enable_cache=vertex.caching,
        only_on_change=_memory(config, places) if only_on_change else "",
    )
    _check_steps(vertex, pipeline.components)
    for node in pipeline.components:
        if isinstance(node, base_component.BaseComponent):
            node.with_platform_config(_resources(node.id, config))
        if isinstance(node, base_beam_component.BaseBeamComponent):
            node.with_beam_pipeline_args(beam_pipeline_args(vertex, image, places.root))
    runner = kubeflow_v2_dag_runner.KubeflowV2DagRunner(
        kubeflow_v2_dag_runner.KubeflowV2DagRunnerConfig(
            default_image=image, use_pipeline_spec_2_1=True
        )
    )
    job = runner.run(pipeline, parameter_values=values, write_out=False)
    job["labels"] = {**job["labels"], **labels(config)}
    spec = job["pipelineSpec"]
    # The compiler drops the defaults, without which Vertex's console requires every value.
    for name, definition in spec["root"]["inputDefinitions"]["parameters"].items():
        definition["defaultValue"] = values[name]
    executors = spec["deploymentSpec"]["executors"]
    for name, task in spec["root"]["dag"]["tasks"].items():
        # TFX leaves this out between the two halves of its resolver.
        producers = {
            value["taskOutputArtifact"]["producerTask"]
            for value in task.get("inputs", {}).get("artifacts", {}).values()
        }
        if producers:
            task["dependentTasks"] = sorted(producers.union(task.get("dependentTasks", [])))
        if name == TRAINER and vertex.spot and vertex.spot_otherwise == "stop":
            # Another try would wait for Spot machines again.
            continue
        if vertex.retries and "container" in executors[f"{name}_executor"]:
            task["retryPolicy"] = {
                "maxRetryCount": vertex.retries,
                "backoffDuration": f"{_BACKOFF_SECONDS}s",
                "backoffFactor": 2.0,
                "backoffMaxDuration": f"{_MAX_BACKOFF_SECONDS}s",
            }
    looking = ["DatasetChange", "DatasetDone"] if only_on_change else []
    if not dataset_fingerprint:
        looking.append("CaptionExampleGen")
    for name in looking if vertex.caching else ():
        # The cache cannot see the dataset's content.
        spec["root"]["dag"]["tasks"][name]["cachingOptions"] = {"enableCache": False}
    check_job(job)
    return job


def beam_pipeline_args(vertex: VertexConfig, image: str, root: str) -> list[str]:
    """Flags of the steps that use Beam."""
    # Without it TFX packs itself for remote workers in every step.
    common = [f"--sdk_container_image={image}"]
    if not vertex.dataflow:
        return [
            "--runner=DirectRunner",
            "--direct_running_mode=multi_threading",
            # All cores.
            "--direct_num_workers=0",
            *common,
        ]
    if vertex.project is None:
        raise ConfigError("Dataflow needs a project: give --project")
    return [
        "--runner=DataflowRunner",
        f"--project={vertex.project}",
        f"--region={vertex.region}",
        f"--temp_location={root}/dataflow/temp",
        f"--staging_location={root}/dataflow/staging",
        "--experiments=use_runner_v2",
        f"--max_num_workers={vertex.dataflow_max_workers}",
        f"--machine_type={vertex.dataflow_machine_type}",
        *(
            [f"--service_account_email={vertex.service_account}"]
            if vertex.service_account is not None
            else []
        ),
        *([f"--network={vertex.network.rpartition('/')[2]}"] if vertex.network else []),
        *(f"--labels={key}={value}" for key, value in sorted(vertex.labels.items())),
        *common,
    ]


def labels(config: RunConfig) -> dict[str, str]:
    """The run's labels besides TFX's own."""
    return {"preset": config.model.preset, **config.vertex.labels}


def _parameter_values(config: RunConfig, dataset_fingerprint: str) -> dict[str, Any]:
    return {
        "dataset": config.dataset.path,
        "dataset_fingerprint": dataset_fingerprint,
        **config.training.run_parameters,
    }


def _resources(step: str, config: RunConfig) -> Message:
    vertex = config.vertex
    cpu, memory = vertex.cpu, vertex.memory_gb
    accelerator = None
    # Steps that start a custom job only wait.
    alone = {
        TRAINER: not vertex.trains_in_custom_job,
        TUNER: config.tuning.parallel_trials == 1,
        # Drawing a picture takes as much as many training steps; reading pictures takes almost
        # nothing.
        CLASS_PICTURES: config.prior.folder is None,
    }
    if alone.get(step):
        machine = machines.machine_with(vertex.accelerator, vertex.accelerator_count)
        cpu = vertex.trainer_cpu or float(machine.cpu)
        memory = vertex.trainer_memory_gb or float(machine.memory_gb)
        if vertex.accelerator != machines.NO_ACCELERATOR:
            accelerator = _ResourceSpec.AcceleratorConfig(
                type=vertex.accelerator, count=vertex.accelerator_count
            )
    elif step in MODEL_STEPS:
        cpu, memory = vertex.model_cpu, vertex.model_memory_gb
    own = vertex.resources.get(step, {})
    return _ResourceSpec(
        cpu_limit=own.get("cpu", cpu),
        memory_limit=own.get("memory_gb", memory),
        accelerator=accelerator,
    )


def _check_steps(vertex: VertexConfig, nodes: list[base_node.BaseNode]) -> None:
    steps = [node.id for node in nodes if isinstance(node, base_component.BaseComponent)]
    for step in vertex.resources:
        if step not in steps:
            raise ConfigError(
                f"vertex.resources names {step!r}, which is not a step: the steps are "
                f"{', '.join(steps)}"
            )


def _training_job(vertex: VertexConfig, image: str) -> WorkerJob:
    spot = Spot(
        wait_seconds=60.0 * vertex.spot_wait_minutes,
        most_losses=vertex.spot_losses,
        otherwise=vertex.spot_otherwise,
    )
    setting = f"vertex.workers = {vertex.workers}" if vertex.workers > 1 else "vertex.spot = true"
    job = _worker_job(vertex, image, setting, vertex.workers)
    return dataclasses.replace(job, spot=spot if vertex.spot else None)


def _worker_job(vertex: VertexConfig, image: str, setting: str, workers: int) -> WorkerJob:
    if vertex.project is None:
        raise ConfigError(f"{setting} needs a project: give --project")
    on_gpu = vertex.accelerator != machines.NO_ACCELERATOR
    return WorkerJob(
        project=vertex.project,
        region=vertex.region,
        image=image,
        workers=workers,
        machine_type=machines.machine_with(vertex.accelerator, vertex.accelerator_count).name,
        accelerator=vertex.accelerator if on_gpu else "",
        accelerator_count=vertex.accelerator_count if on_gpu else 0,
        service_account=vertex.service_account or "",
        network=vertex.network or "",
        labels=vertex.labels,
        api_endpoint=vertex.api_endpoint or "",
    )


def _memory(config: RunConfig, places: Places) -> str:
    """Where runs of a schedule record what they have read; one file per set of settings."""
    settings = dataclasses.asdict(config)
    # Where, and on which machines, it runs does not change the results.
    del settings["vertex"]
    digest = sha256_hex([json.dumps(settings, sort_keys=True, default=str).encode()])
    return f"{places.root}/last_content/{digest[:16]}.json"


def check_job(job: Mapping[str, Any]) -> None:
    """Checks a job against the schema of its specification, and that its references match.

    Raises:
        ConfigError: The job contains a path of this machine or a secret.
        ValueError: The job is not valid; the message has one line per problem.
    """
    problems = list(_schema_problems(job)) or list(_reference_problems(job))
    if problems:
        raise ValueError("the compiled job is not valid:\n" + "\n".join(problems))
    for problem in _private_problems(job):
        raise ConfigError(f"nothing private to this machine may go to Vertex, but {problem}")


def _schema_problems(job: Mapping[str, Any]) -> Iterator[str]:
    parsed = pipeline_spec_pb2.PipelineJob()
    spec = pipeline_spec_pb2.PipelineSpec()
    deployment = pipeline_spec_pb2.PipelineDeploymentConfig()
    for what, tree, message in (
        ("job", job, parsed),
        ("pipelineSpec", job.get("pipelineSpec", {}), spec),
        (
            "deploymentSpec",
            job.get("pipelineSpec", {}).get("deploymentSpec", {}),
            deployment,
        ),
    ):
        try:
            json_format.ParseDict(tree, message)
        except json_format.ParseError as error:
            yield f"{what}: {error}"


def _reference_problems(job: Mapping[str, Any]) -> Iterator[str]:
    """Problems that the schema does not cover, but that Vertex or the container would fail on."""
    spec = job["pipelineSpec"]
    tasks, components = spec["root"]["dag"]["tasks"], spec["components"]
    executors = spec["deploymentSpec"]["executors"]
    defined = spec["root"].get("inputDefinitions", {}).get("parameters", {})
    given = job["runtimeConfig"].get("parameterValues", {})
    for name in defined:
        if name not in given:
            yield f"runtime parameter {name} has no value"
    for name, task in tasks.items():
        component = components.get(task["componentRef"]["name"])
        if component is None or component["executorLabel"] not in executors:
            yield f"task {name} has no component or no executor"
            continue
        for key, value in task.get("inputs", {}).get("artifacts", {}).items():
            output = value["taskOutputArtifact"]
            producer = tasks.get(output["producerTask"])
            if producer is None:
                yield f"input {key} of task {name} comes from {output['producerTask']}, not a task"
            elif output["producerTask"] not in task.get("dependentTasks", []):
                yield f"task {name} does not wait for {output['producerTask']}"
        for key, value in task.get("inputs", {}).get("parameters", {}).items():
            if "taskOutputParameter" in value:
                yield f"parameter {key} of task {name} is another task's output"
            elif value.get("componentInputParameter", key) not in {*defined, key}:
                yield f"parameter {key} of task {name} is not a runtime parameter"
        declared = component.get("inputDefinitions", {}).get("parameters", {})
        missing = set(declared) - set(task.get("inputs", {}).get("parameters", {}))
        if missing:
            yield f"task {name} lacks {', '.join(sorted(missing))}"
        container = executors[component["executorLabel"]].get("container")
        if container is not None and not container.get("image"):
            yield f"task {name} has no image"


def _private_problems(job: Mapping[str, Any]) -> Iterator[str]:
    """Finds what must not leave this machine: its paths and its secrets."""
    if not str(job["runtimeConfig"].get("gcsOutputDirectory", "")).startswith("gs://"):
        return
    places = {str(REPO_ROOT), str(Path.home()), tempfile.gettempdir()} - {"/"}
    secrets = {
        name: value
        for name, value in os.environ.items()
        if _SECRET.search(name) and len(value) >= _SHORTEST_SECRET
    }
    # But not a folder with the same name in a bucket, such as gs://bucket/root.
    local = {p: re.compile(rf"((?<![\w./-])|(?<=file://)){re.escape(p)}/") for p in places}
    for where, text in _texts(job):
        for place, pattern in local.items():
            if pattern.search(text):
                yield f"{where} names a path of this machine: {place}"
        for name, value in secrets.items():
            if value in text:
                yield f"{where} holds the value of ${name}"


def _texts(tree: Any, where: str = "job") -> Iterator[tuple[str, str]]:
    if isinstance(tree, str):
        yield where, tree
    elif isinstance(tree, Mapping):
        for key, value in tree.items():
            yield where, key
            yield from _texts(value, f"{where}.{key}")
    elif isinstance(tree, (list, tuple)):
        for index, value in enumerate(tree):
            yield from _texts(value, f"{where}[{index}]")
