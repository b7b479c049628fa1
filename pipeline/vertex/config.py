"""Settings of a run on Vertex AI."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from pipeline.vertex import machines

Text = Annotated[str, Field(min_length=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]


def _text(pattern: str, description: str) -> Any:
    return Field(pattern=pattern, description=description)


# https://cloud.google.com/resource-manager/docs/creating-managing-labels
LabelKey = Annotated[
    str,
    _text(
        r"^[a-z][a-z0-9_-]{0,62}$",
        "lower-case letters, digits, - and _, from a letter on, at most 63",
    ),
]
LabelValue = Annotated[
    str, _text(r"^[a-z0-9_-]{0,63}$", "lower-case letters, digits, - and _, at most 63")
]
ProjectId = Annotated[
    str, _text(r"^([a-z0-9.-]+:)?[a-z][a-z0-9-]{4,28}[a-z0-9]$", "a project's id, as my-project")
]
Region = Annotated[str, _text(r"^[a-z]+-[a-z]+[0-9]+$", "a region, as us-central1")]
Folder = Annotated[
    str,
    _text(
        r"^gs://[a-z0-9]([a-z0-9._-]{0,220}[a-z0-9])?(/[^/]+)*/?$",
        "a folder in a bucket, as gs://bucket/folder",
    ),
]
Account = Annotated[str, _text(r"^[^@\s]+@[^@\s]+$", "a service account's address")]
Network = Annotated[
    str,
    _text(
        r"^projects/[^/]+/global/networks/[^/]+$",
        "a network's full name, as projects/NUMBER/global/networks/NAME",
    ),
]


@dataclass(frozen=True, config=ConfigDict(extra="forbid", strict=True))
class VertexConfig:
    """Where on Google Cloud a run takes place, and on what machines.

    Attributes:
        project: Project to run in and to be billed.
        region: Region of everything.
        pipeline_root: `gs://` folder for all that a run writes.
        serving_dir: Where models are pushed; `None`: `serving_model` below `pipeline_root`.
        service_account: What the steps run as; `None`: Compute Engine's default account.
        network: VPC network to peer with.
        image: Container image of all steps.
        accelerator: The Trainer's.
        accelerator_count: How many in a machine.
        trainer_cpu: vCPUs of the Trainer; `None`: those of the machine with these accelerators.
        trainer_memory_gb: Memory of the Trainer, likewise.
        cpu: vCPUs of every other step.
        memory_gb: Memory of every other step.
        model_cpu: vCPUs of the steps, beside the Trainer, in which the model computes.
        model_memory_gb: Memory of those.
        resources: Single steps' own `cpu` and `memory_gb`.
        retries: How often a step that failed is started again.
        caching: Whether steps may be taken from former runs.
        workers: Machines that train together.
        spot: Whether they are Spot machines, which are cheap, and taken away at any moment.
        spot_wait_minutes: Most that is waited for those, at the start and after each loss.
        spot_losses: How often they may be taken away.
        spot_otherwise: What is done then.
        dataflow: Whether the Beam steps run on Dataflow.
        dataflow_max_workers: Machines that it may take.
        dataflow_machine_type: Their type.
        labels: Labels of the run, for the bill.
        api_endpoint: Where Vertex's API is; `None`: the region's own.
    """

    project: ProjectId | None
    region: Region
    pipeline_root: Folder | None
    serving_dir: Folder | None
    service_account: Account | None
    network: Network | None
    image: Text | None
    accelerator: Text
    accelerator_count: Count
    trainer_cpu: Positive | None
    trainer_memory_gb: Positive | None
    cpu: Positive
    memory_gb: Positive
    model_cpu: Positive
    model_memory_gb: Positive
    resources: dict[str, dict[str, Positive]]
    retries: Annotated[int, Field(ge=0, le=10)]
    caching: bool
    workers: Annotated[int, Field(ge=1, le=64)]
    spot: bool
    spot_wait_minutes: Positive
    spot_losses: Annotated[int, Field(ge=0)]
    spot_otherwise: Literal["ordinary", "stop"]
    dataflow: bool
    dataflow_max_workers: Count
    dataflow_machine_type: Text
    labels: dict[LabelKey, LabelValue]
    api_endpoint: Text | None

    @property
    def trains_in_custom_job(self) -> bool:
        """Whether the Trainer starts a custom job, and only waits itself."""
        return self.workers > 1 or self.spot

    def problems(self) -> Iterator[tuple[str, str]]:
        """Settings that contradict others: name and what must be."""
        if self.accelerator not in machines.accelerators():
            yield "accelerator", f"it must be one of {', '.join(machines.accelerators())}"
        elif self.accelerator != machines.NO_ACCELERATOR:
            counts = machines.counts(self.accelerator)
            if self.accelerator_count not in counts:
                yield (
                    "accelerator_count",
                    f"a machine has {', '.join(map(str, counts))} of {self.accelerator}",
                )
        for step, values in self.resources.items():
            if not values or not {"cpu", "memory_gb"} >= set(values):
                yield "resources", f"{step} must have cpu, memory_gb or both"
