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
        "lower-case letters, digits, - and _, starting with a letter, at most 63",
    ),
]
LabelValue = Annotated[
    str, _text(r"^[a-z0-9_-]{0,63}$", "lower-case letters, digits, - and _, at most 63")
]
ProjectId = Annotated[
    str,
    _text(r"^([a-z0-9.-]+:)?[a-z][a-z0-9-]{4,28}[a-z0-9]$", "a project's id, such as my-project"),
]
Region = Annotated[str, _text(r"^[a-z]+-[a-z]+[0-9]+$", "a region, such as us-central1")]
Folder = Annotated[
    str,
    _text(
        r"^gs://[a-z0-9]([a-z0-9._-]{0,220}[a-z0-9])?(/[^/]+)*/?$",
        "a folder in a bucket, such as gs://bucket/folder",
    ),
]
Account = Annotated[str, _text(r"^[^@\s]+@[^@\s]+$", "the address of a service account")]
Network = Annotated[
    str,
    _text(
        r"^projects/[^/]+/global/networks/[^/]+$",
        "the full name of a network, such as projects/NUMBER/global/networks/NAME",
    ),
]


@dataclass(frozen=True, config=ConfigDict(extra="forbid", strict=True))
class VertexConfig:
    """Where on Google Cloud a run takes place, and on which machines.

    Attributes:
        project: Project to run in and to bill.
        region: Region for everything.
        pipeline_root: `gs://` folder for everything that a run writes.
        serving_dir: Where models are pushed; `None`: `serving_model` below `pipeline_root`.
        service_account: Account that the steps run as; `None`: Compute Engine's default account.
        network: VPC network to peer with.
        image: Container image of all steps.
        accelerator: Accelerator of the Trainer.
        accelerator_count: Number of accelerators per machine.
        trainer_cpu: vCPUs of the Trainer; `None`: those of the machine with these accelerators.
        trainer_memory_gb: Memory of the Trainer, likewise.
        cpu: vCPUs of every other step.
        memory_gb: Memory of every other step.
        model_cpu: vCPUs of the steps, besides the Trainer, that run the model.
        model_memory_gb: Memory of these steps.
        resources: Values of `cpu` and `memory_gb` for single steps.
        retries: How often a step that failed is started again.
        caching: Whether to reuse steps of former runs.
        workers: Number of machines that train together.
        spot: Whether they are Spot machines, which are cheap but can be taken away at any moment.
        spot_wait_minutes: Maximum waiting time for Spot machines, at the start and after each loss.
        spot_losses: How often they may be taken away.
        spot_otherwise: What to do when one of these limits is reached.
        dataflow: Whether the Beam steps run on Dataflow.
        dataflow_max_workers: The most machines that Dataflow may use.
        dataflow_machine_type: Type of these machines.
        labels: Labels of the run, for billing.
        api_endpoint: Address of Vertex's API; `None`: the region's own.
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
        """Whether the Trainer starts a custom job and only waits for it."""
        return self.workers > 1 or self.spot

    def problems(self) -> Iterator[tuple[str, str]]:
        """Settings that contradict others: their name, and what is allowed."""
        if self.accelerator not in machines.accelerators():
            yield "accelerator", f"it must be one of {', '.join(machines.accelerators())}"
        elif self.accelerator != machines.NO_ACCELERATOR:
            counts = machines.counts(self.accelerator)
            if self.accelerator_count not in counts:
                yield (
                    "accelerator_count",
                    f"a machine can have {', '.join(map(str, counts))} of {self.accelerator}",
                )
        for step, values in self.resources.items():
            if not values or not {"cpu", "memory_gb"} >= set(values):
                yield "resources", f"{step} must have cpu, memory_gb or both"
