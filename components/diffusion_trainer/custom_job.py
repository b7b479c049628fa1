"""Training on machines of its own: the step starts a Vertex custom job and waits for its end.

Every worker of the job runs `executor.Executor` through TFX's own entry point, with the same
inputs, outputs and settings; Vertex gives each a `TF_CONFIG`, from which
`trainer.training.distribution` makes a `MultiWorkerMirroredStrategy`.

Spot machines are taken away at any moment, and the job then fails for want of stock. Another job
goes on from the last checkpoint, exactly.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

from google.auth.credentials import AnonymousCredentials
from google.cloud import aiplatform_v1
from google.cloud.aiplatform_v1.services.job_service.transports.rest import JobServiceRestTransport
from google.cloud.aiplatform_v1.types import CustomJob, JobState
from tfx import types
from tfx.dsl.components.base import base_executor
from tfx.extensions.google_cloud_ai_platform import training_clients
from tfx.types import standard_component_specs
from tfx.utils import json_utils, name_utils

from components.diffusion_trainer import executor
from components.diffusion_trainer.worker_job import CONFIG_KEY, WorkerJob

MACHINE_HOURS = "machine_hours"
"""Property of what a custom job made: for how many hours it had which machines, in words."""

_POLL_SECONDS = 15.0
_WAITING = (JobState.JOB_STATE_QUEUED, JobState.JOB_STATE_PENDING)
# Vertex has no error code of its own for it.
_SIGNS_OF_LOSS = ("stockout", "preempt")

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
            RuntimeError: The job failed or was cancelled, or no Spot machine was to be had.
        """
        self._log_startup(input_dict, output_dict, exec_properties)
        key = standard_component_specs.CUSTOM_CONFIG_KEY
        config = json_utils.loads(exec_properties[key])
        job = WorkerJob.from_json(config.pop(CONFIG_KEY))
        arguments = (
            input_dict,
            output_dict,
            {**exec_properties, key: json_utils.dumps(config)},
            name_utils.get_full_name(self.WORKER),
        )

        def launched(on_spot: bool) -> _Client:
            client = _Client(job)
            spec = {"job_spec": job.job_spec(on_spot=on_spot), "labels": dict(job.labels)}
            made = client.create_training_job(*arguments, spec, job_id=None, job_labels=None)
            client.launch_job(job.project, made)
            return client

        used = run(job, launched, 1.0 if job.api_endpoint else _POLL_SECONDS)
        self.note(output_dict, in_words(job, used))

    def note(self, output_dict: dict[str, list[types.Artifact]], machine_hours: str) -> None:
        """Notes of the outputs what the workers, whose artifacts are copies, cannot."""
        [model] = output_dict["model"]
        executor.note_training(model)
        model.set_string_custom_property(MACHINE_HOURS, machine_hours)


@dataclasses.dataclass(frozen=True)
class Used:
    """Machines that one job had.

    Attributes:
        on_spot: Whether they were Spot machines.
        hours: For how long.
        lost: Whether they were taken away.
    """

    on_spot: bool
    hours: float
    lost: bool


def run(job: WorkerJob, launched: Callable[[bool], _Client], poll_seconds: float) -> Sequence[Used]:
    """Runs jobs, one after another, until one is done.

    Args:
        job: What machines, and for how long Spot machines are tried.
        launched: Starts a job, on Spot machines or not.
        poll_seconds: Between two looks at it.

    Returns:
        What each job used.

    Raises:
        RuntimeError: One failed or was cancelled by somebody, or no Spot machine was to be had.
    """
    used: list[Used] = []
    on_spot = job.spot is not None
    without_since = time.monotonic()
    while True:
        client = launched(on_spot)
        gave_up = False
        while (found := client.get_job()).state not in client.JOB_STATES_COMPLETED:
            if found.state not in _WAITING:
                without_since = time.monotonic()
            elif on_spot and not gave_up and _waited_enough(job, without_since):
                client.cancel()
                gave_up = True
            time.sleep(poll_seconds)
        lost = on_spot and found.state == JobState.JOB_STATE_FAILED and _is_loss(found)
        if (hours := _hours(found)) > 0:
            # Between two looks, it may have had machines.
            without_since = max(without_since, time.monotonic() - poll_seconds)
            used.append(Used(on_spot, hours, lost))
        if found.state == JobState.JOB_STATE_SUCCEEDED:
            logger.info("The custom job %s is done.", client.get_job_name())
            return used
        if not (lost or gave_up):
            raise RuntimeError(
                f"the custom job {client.get_job_name()} ended as {JobState(found.state).name}: "
                f"{found.error.message or 'it gave no reason'}"
            )
        assert job.spot is not None
        losses = sum(each.lost for each in used)
        if gave_up or losses > job.spot.most_losses or _waited_enough(job, without_since):
            on_spot = False
            why = (
                f"the Spot machines ({job.machines}) were taken away {losses} times"
                if losses > job.spot.most_losses
                else f"no Spot machine ({job.machines}) came within "
                f"{job.spot.wait_seconds / 60:g} minutes"
            )
            if job.spot.otherwise == "stop":
                raise RuntimeError(
                    f"{why}; vertex.spot_otherwise is stop. Training goes on from its last "
                    "checkpoint when the run is started again: then, or with "
                    "vertex.spot_otherwise: ordinary, or a longer vertex.spot_wait_minutes"
                )
            logger.warning("Going on with ordinary machines: %s.", why)
        elif hours > 0:
            logger.warning(
                "The Spot machines were taken away after %.2f hours (%s); training goes on from "
                "its last checkpoint.",
                hours,
                found.error.message,
            )
        else:
            # It failed at once, and would again.
            time.sleep(poll_seconds)


def in_words(job: WorkerJob, used: Sequence[Used]) -> str:
    """For how many hours which machines were used."""
    parts = []
    for on_spot in (True, False):
        of_kind = [each for each in used if each.on_spot == on_spot]
        if not of_kind:
            continue
        losses = sum(each.lost for each in of_kind)
        lost = f", taken away {losses} time{'' if losses == 1 else 's'}" if losses else ""
        hours = sum(each.hours for each in of_kind)
        parts.append(f"{hours:.2f} h of {job.machines}{' (Spot)' if on_spot else ''}{lost}")
    return "; ".join(parts)


def _waited_enough(job: WorkerJob, since: float) -> bool:
    return job.spot is not None and time.monotonic() - since > job.spot.wait_seconds


def _is_loss(found: CustomJob) -> bool:
    return any(sign in found.error.message.lower() for sign in _SIGNS_OF_LOSS)


def _hours(found: CustomJob) -> float:
    if not found.start_time:
        return 0.0
    seconds: float = (found.end_time - found.start_time).total_seconds()
    return seconds / 3600


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

    def cancel(self) -> None:
        """Ends the job, sooner or later."""
        self._client.cancel_custom_job(name=self.get_job_name())
