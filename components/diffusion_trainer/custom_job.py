"""Training on several machines: the step starts a Vertex custom job and waits for its end.

Every worker of the job runs `executor.Executor` through TFX's own entry point, with the same
inputs, outputs and settings; Vertex gives each a `TF_CONFIG`, from which
`trainer.training.distribution` makes a `MultiWorkerMirroredStrategy`.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Mapping
from typing import Any

from google.auth.credentials import AnonymousCredentials
from google.cloud import aiplatform_v1
from google.cloud.aiplatform_v1.services.job_service.transports.rest import JobServiceRestTransport
from tfx import types
from tfx.dsl.components.base import base_executor
from tfx.extensions.google_cloud_ai_platform import training_clients
from tfx.types import standard_component_specs
from tfx.utils import json_utils, name_utils

from components.diffusion_trainer import executor

CONFIG_KEY = "worker_job"
"""Key of `custom_config`."""

_POLL_SECONDS = 15.0

logger = logging.getLogger(__name__)


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


class Executor(base_executor.BaseExecutor):
    """Trains in a custom job."""

    def Do(  # noqa: N802
        self,
        input_dict: dict[str, list[types.Artifact]],
        output_dict: dict[str, list[types.Artifact]],
        exec_properties: dict[str, Any],
    ) -> None:
        """See `DiffusionTrainer`.

        Raises:
            RuntimeError: The job failed or was cancelled.
        """
        self._log_startup(input_dict, output_dict, exec_properties)
        key = standard_component_specs.CUSTOM_CONFIG_KEY
        config = json_utils.loads(exec_properties[key])
        job = WorkerJob(**config.pop(CONFIG_KEY))
        client = _Client(job)
        client.launch_job(
            job.project,
            client.create_training_job(
                input_dict,
                output_dict,
                {**exec_properties, key: json_utils.dumps(config)},
                name_utils.get_full_name(executor.Executor),
                {"job_spec": job.job_spec(), "labels": dict(job.labels)},
                job_id=None,
                job_labels=None,
            ),
        )
        while (found := client.get_job()).state not in client.JOB_STATES_COMPLETED:
            time.sleep(_POLL_SECONDS if not job.api_endpoint else 1.0)
        if found.state in client.JOB_STATES_FAILED:
            raise RuntimeError(
                f"the training job {client.get_job_name()} ended as {found.state.name}: "
                f"{found.error.message or 'it gave no reason'}"
            )
        logger.info("The training job %s has trained the model.", client.get_job_name())


class _Client(training_clients.VertexJobClient):
    """TFX's client; also of an API that is not the region's own."""

    def __init__(self, job: WorkerJob) -> None:
        self._endpoint = job.api_endpoint
        super().__init__(job.region)

    def create_client(self) -> None:
        if not self._endpoint:
            super().create_client()
            return
        scheme, _, host = self._endpoint.rpartition("://")
        self._client = aiplatform_v1.JobServiceClient(
            transport=JobServiceRestTransport(
                host=host,
                url_scheme=scheme or "https",
                # No token travels in the clear.
                credentials=AnonymousCredentials() if scheme == "http" else None,
            )
        )
