"""The machines of a custom job, which `custom_job` starts by a client that is slow to import."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

CONFIG_KEY = "worker_job"
"""Key of `custom_config`."""


@dataclasses.dataclass(frozen=True)
class WorkerJob:
    """The machines of a custom job.

    Attributes:
        project: Google Cloud project.
        region: Where it runs.
        image: Container image.
        workers: Machines, the chief included.
        machine_type: Their type, such as `a2-highgpu-1g`.
        accelerator: Type of the accelerators; "" for none.
        accelerator_count: Accelerators in each machine.
        service_account: What the workers run as; "" for Vertex's own.
        network: VPC network that the workers are peered with; "" for none.
        labels: Labels of the job.
        api_endpoint: Where Vertex's API is; "" for the region's own.
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

    def to_json(self) -> dict[str, Any]:
        """The fields, for `custom_config`."""
        return {**dataclasses.asdict(self), "labels": dict(self.labels)}

    def job_spec(self) -> dict[str, Any]:
        """The custom job's `CustomJobSpec`, but for the containers' command."""
        machine: dict[str, Any] = {"machine_type": self.machine_type}
        if self.accelerator:
            machine |= {
                "accelerator_type": self.accelerator,
                "accelerator_count": self.accelerator_count,
            }
        # Vertex calls the first pool's one machine the chief.
        pools = [
            {
                "machine_spec": dict(machine),
                "replica_count": replicas,
                "container_spec": {"image_uri": self.image},
            }
            for replicas in (1, self.workers - 1)
        ]
        spec: dict[str, Any] = {"worker_pool_specs": pools}
        if self.service_account:
            spec["service_account"] = self.service_account
        if self.network:
            spec["network"] = self.network
        return spec
