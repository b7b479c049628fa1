"""The machines of a custom job, which `custom_job` starts with a client that is slow to import."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

CONFIG_KEY = "worker_job"
"""Key of `custom_config`."""


Otherwise = Literal["ordinary", "stop"]
"""What to do if no Spot machine is available: take an ordinary one, or fail."""


@dataclasses.dataclass(frozen=True)
class Spot:
    """How long to try Spot machines, which are cheap but can be taken away at any moment.

    Attributes:
        wait_seconds: Longest wait for a machine, at the start and after each loss.
        most_losses: How often the machines may be taken away.
        otherwise: What to do after that.
    """

    wait_seconds: float
    most_losses: int
    otherwise: Otherwise


@dataclasses.dataclass(frozen=True)
class WorkerJob:
    """The machines of a custom job.

    Attributes:
        project: Google Cloud project.
        region: Region where it runs.
        image: Container image.
        workers: Number of machines, including the chief.
        machine_type: Type of the machines, such as `a2-highgpu-1g`.
        accelerator: Type of the accelerators; "" for none.
        accelerator_count: Accelerators in each machine.
        service_account: Service account of the workers; "" for Vertex's own.
        network: VPC network that the workers are peered with; "" for none.
        labels: Labels of the job.
        api_endpoint: Address of Vertex's API; "" for the region's own.
        spot: How long to try Spot machines first; `None`: not at all.
    """

    project: str
    region: str
    image: str
    workers: int
    machine_type: str
    accelerator: str = ""
    accelerator_count: int = 0
    service_account: str = ""
    network: str = ""
    labels: Mapping[str, str] = dataclasses.field(default_factory=dict)
    api_endpoint: str = ""
    spot: Spot | None = None

    def to_json(self) -> dict[str, Any]:
        """The fields, for `custom_config`."""
        return {**dataclasses.asdict(self), "labels": dict(self.labels)}

    @classmethod
    def from_json(cls, tree: Mapping[str, Any]) -> WorkerJob:
        """Reads what `to_json` returned."""
        spot = tree.get("spot")
        return cls(**{**tree, "spot": None if spot is None else Spot(**spot)})

    @property
    def machines(self) -> str:
        """The machines, in words for users."""
        each = f"{self.workers} x {self.machine_type}"
        if not self.accelerator:
            return each
        return f"{each} with {self.accelerator_count} {self.accelerator}"

    def job_spec(self, *, on_spot: bool = False) -> dict[str, Any]:
        """The `CustomJobSpec` of the custom job, without the command of the containers.

        Args:
            on_spot: Whether the job runs on Spot machines.
        """
        machine: dict[str, Any] = {"machine_type": self.machine_type}
        if self.accelerator:
            machine |= {
                "accelerator_type": self.accelerator,
                "accelerator_count": self.accelerator_count,
            }
        # For Vertex, the one machine of the first pool is the chief.
        pools = [
            {
                "machine_spec": dict(machine),
                "replica_count": replicas,
                "container_spec": {"image_uri": self.image},
            }
            for replicas in (1, self.workers - 1)
            if replicas
        ]
        spec: dict[str, Any] = {"worker_pool_specs": pools}
        if on_spot:
            spec["scheduling"] = {"strategy": "SPOT"}
        if self.service_account:
            spec["service_account"] = self.service_account
        if self.network:
            spec["network"] = self.network
        return spec
