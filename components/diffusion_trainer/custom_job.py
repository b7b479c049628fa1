"""Training on several machines: the step starts a Vertex custom job and waits for its end.

Every worker of the job runs `executor.Executor` through TFX's own entry point, with the same
inputs, outputs and settings; Vertex gives each a `TF_CONFIG`, from which
`trainer.training.distribution` makes a `MultiWorkerMirroredStrategy`.
"""

from __future__ import annotations

import logging
import time
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
from components.diffusion_trainer.worker_job import CONFIG_KEY, WorkerJob

_POLL_SECONDS = 15.0

logger = logging.getLogger(__name__)


class Executor(base_executor.BaseExecutor):
    """Trains in a custom job.

    Attributes:
        WORKER: What every worker of it runs.
    """

    WORKER: type[base_executor.BaseExecutor] = executor.Executor

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
                name_utils.get_full_name(self.WORKER),
                {"job_spec": job.job_spec(), "labels": dict(job.labels)},
                job_id=None,
                job_labels=None,
            ),
        )
        while (found := client.get_job()).state not in client.JOB_STATES_COMPLETED:
            time.sleep(_POLL_SECONDS if not job.api_endpoint else 1.0)
        if found.state in client.JOB_STATES_FAILED:
            raise RuntimeError(
                f"the custom job {client.get_job_name()} ended as {found.state.name}: "
                f"{found.error.message or 'it gave no reason'}"
            )
        logger.info("The custom job %s is done.", client.get_job_name())


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
