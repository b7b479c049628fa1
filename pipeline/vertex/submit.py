"""Submits a compiled job to Vertex AI and follows it."""

from __future__ import annotations

import contextlib
import datetime
import json
import re
import secrets
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from google.api_core import exceptions, retry
from google.cloud import aiplatform
from google.cloud.aiplatform_v1 import PipelineServiceClient
from google.cloud.aiplatform_v1.types import PipelineJob, PipelineState, PipelineTaskDetail
from google.protobuf import json_format

from components.diffusion_trainer.custom_job import MACHINE_HOURS
from pipeline.vertex.preflight import Cloud

# How long a request is repeated if Vertex is too busy; time between two looks at a run.
_RETRY_SECONDS, _POLL_SECONDS = 60.0, 15.0
_LOST_CONTACTS = 10
_TASK_STATES = {
    PipelineTaskDetail.State.PENDING: "waits",
    PipelineTaskDetail.State.RUNNING: "runs",
    PipelineTaskDetail.State.SUCCEEDED: "done",
    PipelineTaskDetail.State.SKIPPED: "cached",
    PipelineTaskDetail.State.FAILED: "failed",
    PipelineTaskDetail.State.CANCEL_PENDING: "is being cancelled",
    PipelineTaskDetail.State.CANCELLING: "is being cancelled",
    PipelineTaskDetail.State.CANCELLED: "cancelled",
    PipelineTaskDetail.State.NOT_TRIGGERED: "not triggered",
}
_ENDED = (
    PipelineState.PIPELINE_STATE_SUCCEEDED,
    PipelineState.PIPELINE_STATE_FAILED,
    PipelineState.PIPELINE_STATE_CANCELLED,
)
_TRANSIENT = (exceptions.TooManyRequests, exceptions.ServerError)


class SubmissionError(RuntimeError):
    """Vertex did not accept a job or answer a request; the message is one line for the user."""


class RunFailedError(RuntimeError):
    """A run did not end well; the message names the task and its error."""


class Vertex:
    """Vertex AI Pipelines in a project."""

    def __init__(self, cloud: Cloud) -> None:
        """Connects to `cloud`."""
        self._cloud = cloud
        aiplatform.init(
            project=cloud.project,
            location=cloud.vertex.region,
            credentials=cloud.credentials,
            api_endpoint=cloud.vertex.api_endpoint,
            api_transport="rest",
        )

    def submit(self, job: Mapping[str, Any]) -> str:
        """Starts a run; returns its resource name.

        Raises:
            SubmissionError: Vertex refuses the job.
        """
        vertex = self._cloud.vertex
        parent = f"projects/{self._cloud.project}/locations/{vertex.region}"
        request = PipelineJob()
        json_format.ParseDict(job, PipelineJob.pb(request))
        request.service_account = vertex.service_account or ""
        request.network = vertex.network or ""
        # `aiplatform.PipelineJob` would first look up the project of the bucket, which needs
        # another API and role, and would create a missing bucket. `preflight` has checked the
        # bucket.
        client = PipelineServiceClient(
            credentials=self._cloud.credentials,
            transport="rest",
            client_options={
                "api_endpoint": vertex.api_endpoint or f"{vertex.region}-aiplatform.googleapis.com"
            },
        )
        run = _run_id(job)

        def create() -> None:
            # The id was chosen here: a second attempt cannot start a second run.
            with contextlib.suppress(exceptions.AlreadyExists):
                client.create_pipeline_job(
                    parent=parent,
                    pipeline_job=request,
                    pipeline_job_id=run,
                    timeout=_RETRY_SECONDS,
                )

        self._ask("start the run", create)
        return f"{parent}/pipelineJobs/{run}"

    def schedule(self, job: Mapping[str, Any], cron: str) -> str:
        """Makes a schedule that starts runs; returns its resource name.

        Raises:
            SubmissionError: Vertex refuses the schedule.
        """
        with _pipeline_job(job) as pipeline_job:
            made = self._ask(
                "make the schedule",
                lambda: pipeline_job.create_schedule(
                    cron=cron,
                    display_name=str(job["displayName"]),
                    # A run that takes longer than the interval must not overlap with the next.
                    max_concurrent_run_count=1,
                    service_account=self._cloud.vertex.service_account,
                    network=self._cloud.vertex.network,
                ),
            )
            return str(made.resource_name)

    def wait(self, run: str, report: Callable[[str], None]) -> None:
        """Reports every change of a task's state until a run has ended.

        Raises:
            RunFailedError: The run did not end well.
            SubmissionError: Vertex does not answer.
        """
        shown: dict[str, str] = {}
        lost = 0
        while True:
            try:
                job = aiplatform.PipelineJob.get(run)
                details = list(job.gca_resource.job_detail.task_details)
                lost = 0
            except _TRANSIENT as error:
                lost += 1
                if lost == _LOST_CONTACTS:
                    raise SubmissionError(
                        f"Vertex did not answer {lost} times ({_said(error)}); the run goes on"
                    ) from None
                time.sleep(_POLL_SECONDS)
                continue
            except exceptions.GoogleAPICallError as error:
                raise SubmissionError(
                    f"Vertex does not report the state of the run ({_said(error)}); it goes on"
                ) from None
            for detail in sorted(details, key=lambda d: str(d.start_time or "")):
                state = _TASK_STATES.get(detail.state, "")
                if state and shown.get(detail.task_name) != state:
                    shown[detail.task_name] = state
                    report(f"  {datetime.datetime.now():%H:%M:%S}  {detail.task_name} {state}")
            state = job.gca_resource.state
            if state in _ENDED:
                break
            time.sleep(_POLL_SECONDS)
        for detail in details:
            for hours in _machine_hours(detail):
                report(f"{detail.task_name} had {hours}")
        if state != PipelineState.PIPELINE_STATE_SUCCEEDED:
            raise RunFailedError(_ending(job, details))

    def cancel(self, run: str) -> None:
        """Asks Vertex to cancel a run, by its resource name or id."""
        self._ask("cancel the run", lambda: aiplatform.PipelineJob.get(run).cancel())

    def runs(self, limit: int = 20) -> list[tuple[str, str, str]]:
        """Id, state and creation time of the latest runs."""
        found = self._ask(
            "list the runs",
            lambda: aiplatform.PipelineJob.list(order_by="create_time desc"),
        )
        return [
            (
                job.name,
                _state(job.gca_resource.state),
                f"{job.create_time:%Y-%m-%d %H:%M}",
            )
            for job in found[:limit]
        ]

    def needless(self, dataset: str, fingerprint: str) -> str:
        """Why no run is needed for a dataset as it is now; "" if one is.

        Its latest run is still going on, or succeeded with the same content. For a run started by a
        schedule, the content is unknown.

        Args:
            dataset: Where the dataset is, as given to runs.
            fingerprint: Fingerprint of its content now.

        Raises:
            SubmissionError: Vertex does not answer.
        """
        found = self._ask(
            "list the runs",
            lambda: aiplatform.PipelineJob.list(order_by="create_time desc"),
        )
        for job in found:
            given = dict(job.gca_resource.runtime_config.parameter_values)
            if given.get("dataset") != dataset:
                continue
            state = job.gca_resource.state
            if state not in _ENDED:
                return f"run {job.name} goes on"
            same = given.get("dataset_fingerprint") == fingerprint
            if state == PipelineState.PIPELINE_STATE_SUCCEEDED and same:
                return f"the dataset is unchanged since run {job.name}"
            break
        return ""

    def console_link(self, resource: str) -> str:
        """Address of the console page of a run or a schedule."""
        region, kind, name = resource.split("/")[3:]
        page = "runs" if kind == "pipelineJobs" else kind
        return (
            f"https://console.cloud.google.com/vertex-ai/locations/{region}/pipelines/{page}/{name}"
            f"?project={self._cloud.project}"
        )

    def _ask(self, what: str, call: Callable[[], Any]) -> Any:
        patient = retry.Retry(
            predicate=retry.if_exception_type(*_TRANSIENT),
            initial=1.0,
            maximum=20.0,
            timeout=_RETRY_SECONDS,
        )
        try:
            return patient(call)()
        except exceptions.RetryError as error:
            cause = error.cause or error
            raise SubmissionError(
                f"Vertex could not {what} within {_RETRY_SECONDS:g} s ({_said(cause)}): try "
                f"again later{_quota(cause)}"
            ) from None
        except (exceptions.Unauthorized, exceptions.Unauthenticated) as error:
            raise SubmissionError(
                f"Vertex does not accept the credentials ({_said(error)}): log in again with "
                "`gcloud auth application-default login`"
            ) from None
        except exceptions.Forbidden as error:
            account = self._cloud.vertex.service_account
            acting = f", and roles/iam.serviceAccountUser on {account}" if account else ""
            raise SubmissionError(
                f"these credentials may not {what} ({_said(error)}): give them "
                f"roles/aiplatform.user in project {self._cloud.project}{acting}, and enable the "
                "Vertex AI API"
            ) from None
        except exceptions.NotFound as error:
            raise SubmissionError(f"Vertex cannot find it ({_said(error)})") from None
        except exceptions.GoogleAPICallError as error:
            raise SubmissionError(f"Vertex did not {what}: {_said(error)}") from None


def _run_id(job: Mapping[str, Any]) -> str:
    name = job["pipelineSpec"]["pipelineInfo"]["name"]
    now = datetime.datetime.now(datetime.timezone.utc)
    return f"{name}-{now:%Y%m%d%H%M%S}-{secrets.token_hex(2)}"


@contextlib.contextmanager
def _pipeline_job(job: Mapping[str, Any]) -> Iterator[aiplatform.PipelineJob]:
    with tempfile.NamedTemporaryFile("w", suffix=".json") as template:
        json.dump(job, template)
        template.flush()
        yield aiplatform.PipelineJob(
            display_name=job["displayName"],
            template_path=template.name,
            job_id=_run_id(job),
            labels=dict(job["labels"]),
        )


def _ending(job: aiplatform.PipelineJob, details: list[PipelineTaskDetail]) -> str:
    failed = [d for d in details if d.state == PipelineTaskDetail.State.FAILED]
    if not failed:
        reason = job.gca_resource.error.message
        return f"the run ended as {_state(job.gca_resource.state)}" + (reason and f": {reason}")
    return "\n".join(
        f"{detail.task_name} failed: {detail.error.message or 'it gave no reason'}"
        for detail in failed
    )


def _machine_hours(detail: PipelineTaskDetail) -> Iterator[str]:
    """Which extra machines a task had, and for how long, if recorded."""
    for listed in detail.outputs.values():
        for artifact in listed.artifacts:
            if hours := artifact.metadata.get(MACHINE_HOURS):
                yield str(hours)


def _state(state: PipelineState) -> str:
    return PipelineState(state).name.removeprefix("PIPELINE_STATE_").lower()


def _said(error: BaseException) -> str:
    text = getattr(error, "message", None) or str(error)
    # The transport puts the request before the message.
    text = re.sub(r"^[A-Z]+ https?://\S+: ", "", text)
    return re.sub(r"\s+", " ", text).strip()[:300]


def _quota(error: BaseException) -> str:
    if isinstance(error, exceptions.TooManyRequests):
        return ", or ask for more quota"
    return ""
