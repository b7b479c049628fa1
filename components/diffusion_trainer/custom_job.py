"""Training on separate machines: the step starts a Vertex custom job and waits for it to end.

Every worker of the job runs `executor.Executor` through TFX's own entry point, with the same
inputs, outputs and settings; Vertex gives each a `TF_CONFIG`, from which
`trainer.training.distribution` makes a `MultiWorkerMirroredStrategy`.

Spot machines can be taken away at any moment; the job then fails with a stockout. Another job
continues exactly from the last checkpoint.

A retry of the pipeline may start the waiting step again while its job still runs. Two jobs must
never write the same checkpoints, so the step first ends the jobs that it has started before.
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
from google.cloud.aiplatform_v1.types import CustomJob, JobState, Scheduling
from tfx import types
from tfx.dsl.components.base import base_executor
from tfx.extensions.google_cloud_ai_platform import training_clients
from tfx.types import standard_component_specs
from tfx.utils import json_utils, name_utils

from components.diffusion_trainer import executor
from components.diffusion_trainer.worker_job import CONFIG_KEY, WorkerJob
from storage import filesystem
from storage.hashing import sha256_hex

MACHINE_HOURS = "machine_hours"
"""Property of a custom job's output: which machines it had for how many hours, in words."""

STEP_LABEL = "sdft_step"
"""Label of a custom job: identifies the step of a run that started it."""

_POLL_SECONDS = 15.0
_WAITING = (JobState.JOB_STATE_QUEUED, JobState.JOB_STATE_PENDING)
# Vertex has no separate error code for the loss of machines.
_SIGNS_OF_LOSS = ("stockout", "preempt")

logger = logging.getLogger(__name__)


class Executor(base_executor.BaseExecutor):
    """Trains in a custom job.

    Attributes:
        WORKER: The executor that every worker of the job runs.
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
            RuntimeError: The job failed or was cancelled, or no Spot machine was available.
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

        label = _step_label(output_dict, self.WORKER)
        labels = {**job.labels, STEP_LABEL: label}

        def launched(on_spot: bool) -> _Client:
            client = _Client(job)
            spec = {"job_spec": job.job_spec(on_spot=on_spot), "labels": labels}
            made = client.create_training_job(*arguments, spec, job_id=None, job_labels=None)
            client.launch_job(job.project, made)
            return client

        poll_seconds = 1.0 if job.api_endpoint else _POLL_SECONDS
        used = run(job, launched, poll_seconds, end_earlier(job, label, poll_seconds))
        self.note(output_dict, in_words(job, used))

    def note(self, output_dict: dict[str, list[types.Artifact]], machine_hours: str) -> None:
        """Sets the properties that the workers, which only have copies of the artifacts, cannot."""
        [model] = output_dict["model"]
        executor.note_training(model)
        model.set_string_custom_property(MACHINE_HOURS, machine_hours)


@dataclasses.dataclass(frozen=True)
class Used:
    """The machines that one job used.

    Attributes:
        on_spot: Whether they were Spot machines.
        hours: How long the job had them.
        lost: Whether they were taken away.
    """

    on_spot: bool
    hours: float
    lost: bool


@dataclasses.dataclass(frozen=True)
class Earlier:
    """The outcome of earlier tries of the same step.

    Attributes:
        used: What their jobs used.
        waited_seconds: How long the last of them waited for a machine.
        gave_up: Whether they continued with ordinary machines because Spot machines were lacking.
    """

    used: tuple[Used, ...] = ()
    waited_seconds: float = 0.0
    gave_up: bool = False


def end_earlier(job: WorkerJob, label: str, poll_seconds: float) -> Earlier:
    """Ends the jobs left by earlier tries of the same step, and waits until they have ended.

    Args:
        job: Where the jobs run, and whether Spot machines were to be tried first.
        label: Their `STEP_LABEL`.
        poll_seconds: Seconds between two looks at them.
    """
    client = _Client(job)
    cancelled: set[str] = set()
    while unfinished := [
        each for each in client.jobs(label) if each.state not in client.JOB_STATES_COMPLETED
    ]:
        for each in unfinished:
            if each.name not in cancelled:
                logger.warning("Ending %s, which an earlier try of this step started.", each.name)
                client.cancel(each.name)
                cancelled.add(each.name)
        time.sleep(poll_seconds)
    found = sorted(client.jobs(label), key=lambda each: each.create_time)
    used = tuple(_used(each, _is_on_spot(each)) for each in found if _hours(each) > 0)
    waited = 0.0
    if found and not found[-1].start_time:
        waited = (found[-1].end_time - found[-1].create_time).total_seconds()
    gave_up = job.spot is not None and not all(map(_is_on_spot, found))
    return Earlier(used, waited, gave_up)


def run(
    job: WorkerJob,
    launched: Callable[[bool], _Client],
    poll_seconds: float,
    earlier: Earlier = Earlier(),
) -> Sequence[Used]:
    """Runs jobs, one after another, until one succeeds.

    Args:
        job: Which machines to use, and how long Spot machines are tried.
        launched: Starts a job, on Spot machines or not.
        poll_seconds: Seconds between two looks at the job.
        earlier: The outcome of earlier tries, which is counted in.

    Returns:
        What each job used.

    Raises:
        RuntimeError: A job failed or was cancelled, or no Spot machine was available.
    """
    used = list(earlier.used)
    on_spot = job.spot is not None and not earlier.gave_up
    without_since = time.monotonic() - earlier.waited_seconds
    while True:
        client = launched(on_spot)
        gave_up = False
        while (found := client.get_job()).state not in client.JOB_STATES_COMPLETED:
            if found.state not in _WAITING:
                without_since = time.monotonic()
            elif on_spot and not gave_up and _waited_enough(job, without_since):
                client.cancel(client.get_job_name())
                gave_up = True
            time.sleep(poll_seconds)
        had = _used(found, on_spot)
        lost, hours = had.lost, had.hours
        if hours > 0:
            # It may have had machines between two looks.
            without_since = max(without_since, time.monotonic() - poll_seconds)
            used.append(had)
        if found.state == JobState.JOB_STATE_SUCCEEDED:
            logger.info("The custom job %s is done.", client.get_job_name())
            return used
        if not (lost or gave_up):
            raise RuntimeError(
                f"the custom job {client.get_job_name()} ended as {JobState(found.state).name}: "
                f"{found.error.message or 'no reason was given'}"
            )
        assert job.spot is not None
        losses = sum(each.lost for each in used)
        if gave_up or losses > job.spot.most_losses or _waited_enough(job, without_since):
            on_spot = False
            why = (
                f"the Spot machines ({job.machines}) were taken away {losses} times"
                if losses > job.spot.most_losses
                else f"no Spot machine ({job.machines}) became available within "
                f"{job.spot.wait_seconds / 60:g} minutes"
            )
            if job.spot.otherwise == "stop":
                raise RuntimeError(
                    f"{why}; vertex.spot_otherwise is stop. Start the run again later, or with "
                    "vertex.spot_otherwise: ordinary, or with a longer vertex.spot_wait_minutes; "
                    "training continues from its last checkpoint"
                )
            logger.warning("Continuing with ordinary machines: %s.", why)
        elif hours > 0:
            logger.warning(
                "The Spot machines were taken away after %.2f hours (%s); training continues from "
                "its last checkpoint.",
                hours,
                found.error.message,
            )
        else:
            # It failed immediately, and would again.
            time.sleep(poll_seconds)


def in_words(job: WorkerJob, used: Sequence[Used]) -> str:
    """Which machines were used for how many hours."""
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


def _step_label(
    output_dict: dict[str, list[types.Artifact]], worker: type[base_executor.BaseExecutor]
) -> str:
    """Identifies a step of a run, the same for all tries: `<run>/<task>_<number>/<output>`."""
    [output] = next(iter(output_dict.values()))
    run_folder = filesystem.parent(filesystem.parent(output.uri))
    return sha256_hex([f"{run_folder} {name_utils.get_full_name(worker)}".encode()])[:16]


def _used(found: CustomJob, on_spot: bool) -> Used:
    lost = on_spot and found.state == JobState.JOB_STATE_FAILED and _is_loss(found)
    return Used(on_spot, _hours(found), lost)


def _is_on_spot(found: CustomJob) -> bool:
    return bool(found.job_spec.scheduling.strategy == Scheduling.Strategy.SPOT)


def _is_loss(found: CustomJob) -> bool:
    return any(sign in found.error.message.lower() for sign in _SIGNS_OF_LOSS)


def _hours(found: CustomJob) -> float:
    if not found.start_time:
        return 0.0
    seconds: float = (found.end_time - found.start_time).total_seconds()
    return seconds / 3600


class _Client(training_clients.VertexJobClient):
    """TFX's client, also for an API at an address other than the region's own."""

    def __init__(self, job: WorkerJob) -> None:
        self._endpoint, self._project = job.api_endpoint, job.project
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
                # No token is sent unencrypted.
                credentials=AnonymousCredentials() if scheme == "http" else None,
            )
        )

    def cancel(self, name: str) -> None:
        """Asks Vertex to cancel a job, which takes effect some time later."""
        self._client.cancel_custom_job(name=name)

    def jobs(self, label: str) -> Sequence[CustomJob]:
        """All jobs with a `STEP_LABEL`."""
        parent = f"projects/{self._project}/locations/{self._region}"
        request = {"parent": parent, "filter": f'labels.{STEP_LABEL}="{label}"'}
        return list(self._client.list_custom_jobs(request=request))
