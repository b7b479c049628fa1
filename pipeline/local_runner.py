"""A local runner for TFX that reports what it does.

`LocalDagRunner` only logs, returns nothing, and continues after a node whose inputs could not be
resolved. `ReportingDagRunner` runs the same launcher in the same order, reads the outcome of each
execution from ML Metadata, reports it to the user and stops at the first failure.
"""

from __future__ import annotations

import datetime
import logging
import os
import time
from collections.abc import Callable
from typing import Any, cast

from ml_metadata.proto import metadata_store_pb2 as mlmd
from tfx.dsl.compiler import constants
from tfx.orchestration import metadata
from tfx.orchestration import pipeline as tfx_pipeline
from tfx.orchestration.local import local_dag_runner, runner_utils
from tfx.orchestration.portable import launcher, partial_run_utils, runtime_parameter_utils
from tfx.proto.orchestration import pipeline_pb2

from pipeline import failures
from pipeline.cache_key import stable_cache_keys
from pipeline.lineage.model import FAILURE_REASON, INTERRUPTED
from pipeline.outcome import ComponentError, ComponentOutcome, RunOutcome, Status, duration
from storage.addresses import redacted
from trainer.training.interruption import TrainingInterruptedError

_EXECUTION_RESULT = "__execution_result__"

logger = logging.getLogger(__name__)


def beam_pipeline_args() -> list[str]:
    """Flags that make Beam use every core of this machine.

    Beam uses threads: a separate process would first import TensorFlow, which takes longer than
    most datasets do. CaptionExampleGen, whose work is mostly Python, starts lighter processes.
    """
    workers = len(os.sched_getaffinity(0))
    return [
        "--direct_running_mode=multi_threading",
        f"--direct_num_workers={workers}",
        # Workers in this process need no container. If none of Beam's flags says where the code
        # comes from, TFX packs it for remote workers, which takes four seconds per component.
        "--sdk_container_image=none",
    ]


class ReportingDagRunner(local_dag_runner.LocalDagRunner):
    """Runs a pipeline on this machine and reports when each component starts and ends."""

    def __init__(self, report: Callable[[str], None], clock: Callable[[], float] = time.monotonic):
        """Reports through `report`, one line per call."""
        super().__init__()
        self._report = report
        self._clock = clock

    def run(
        self,
        pipeline: tfx_pipeline.Pipeline,
        run_options: tfx_pipeline.RunOptions | None = None,
        **kwargs: Any,
    ) -> RunOutcome:
        """Compiles and runs `pipeline`; see `run_with_ir`."""
        return cast(RunOutcome, super().run(pipeline, run_options, **kwargs))

    def run_with_ir(
        self,
        pipeline: pipeline_pb2.Pipeline,
        run_options: pipeline_pb2.RunOptions | None = None,
    ) -> RunOutcome:
        """Runs every node; see `LocalDagRunner.run_with_ir`.

        Raises:
            ComponentError: The first component that fails ends the run.
        """
        run_id = datetime.datetime.now().isoformat()
        runtime_parameter_utils.substitute_runtime_parameter(
            pipeline, {constants.PIPELINE_RUN_ID_PARAMETER_NAME: run_id}
        )
        deployment = runner_utils.extract_local_deployment_config(pipeline)
        connection = getattr(
            deployment.metadata_connection_config,
            deployment.metadata_connection_config.WhichOneof("connection_config"),
        )
        if run_options:
            partial_run_utils.mark_pipeline(
                pipeline,
                from_nodes=run_options.partial_run.from_nodes or None,
                to_nodes=run_options.partial_run.to_nodes or None,
                snapshot_settings=run_options.partial_run.snapshot_settings,
            )
        nodes = [
            node.pipeline_node
            for node in pipeline.nodes
            if not node.pipeline_node.execution_options.HasField("skip")
        ]
        outcomes = []
        for position, node in enumerate(nodes, start=1):
            if node.execution_options.run.perform_snapshot:
                with metadata.Metadata(connection) as handle:
                    partial_run_utils.snapshot(handle, pipeline)
            outcomes.append(
                self._run_node(f"[{position}/{len(nodes)}]", node, pipeline, deployment, connection)
            )
        return RunOutcome(run_id, tuple(outcomes))

    def _run_node(
        self,
        label: str,
        node: pipeline_pb2.PipelineNode,
        pipeline: pipeline_pb2.Pipeline,
        deployment: object,
        connection: Any,
    ) -> ComponentOutcome:
        name = node.node_info.id
        node_launcher = launcher.Launcher(
            pipeline_node=node,
            mlmd_connection=metadata.Metadata(connection),
            pipeline_info=pipeline.pipeline_info,
            pipeline_runtime_spec=pipeline.runtime_spec,
            executor_spec=runner_utils.extract_executor_spec(deployment, name),
            custom_driver_spec=runner_utils.extract_custom_driver_spec(deployment, name),
        )
        self._report(f"{label} {name}")
        start = self._clock()
        try:
            with stable_cache_keys(os.path.dirname(connection.sqlite.filename_uri)):
                info = node_launcher.launch()
        except Exception as error:
            try:
                with metadata.Metadata(connection) as handle:
                    _keep_reason(handle, pipeline, name, error)
            except Exception:
                # Report the original error; its cause, such as a full disk, may be why this failed,
                # too.
                logger.debug("The reason why %s failed could not be recorded.", name, exc_info=True)
            raise ComponentError(name, self._clock() - start, str(error)) from error
        seconds = self._clock() - start
        if info is None or info.execution_id is None:
            raise ComponentError(
                name, seconds, "it could not run because inputs that it needs were not produced"
            )
        with metadata.Metadata(connection) as handle:
            [execution] = handle.store.get_executions_by_id([info.execution_id])
        # The launcher publishes some failures without raising.
        if execution.last_known_state not in (mlmd.Execution.CACHED, mlmd.Execution.COMPLETE):
            result = execution.custom_properties[_EXECUTION_RESULT].string_value
            raise ComponentError(name, seconds, result or "it ended without a result")
        # An importer that finds what it imported before also has the state CACHED.
        if runner_utils.extract_executor_spec(deployment, name) is None:
            status = Status.RESOLVED
        elif execution.last_known_state == mlmd.Execution.CACHED:
            status = Status.CACHED
        else:
            status = Status.EXECUTED
        ending = {
            Status.EXECUTED: f"done in {duration(seconds)}",
            Status.CACHED: "cached: nothing that it depends on has changed",
            Status.RESOLVED: f"resolved in {duration(seconds)}",
        }[status]
        self._report(f"{' ' * len(label)} {name} {ending}")
        return ComponentOutcome(name, status, seconds, info.execution_id)


def _keep_reason(
    handle: metadata.Metadata, pipeline: pipeline_pb2.Pipeline, node: str, error: Exception
) -> None:
    """Records on a node's execution why it failed; TFX does not record exceptions."""
    run = pipeline.runtime_spec.pipeline_run_id.field_value.string_value
    of_run, of_node = (
        handle.store.get_context_by_type_and_name(kind, name)
        for kind, name in (
            ("pipeline_run", run),
            ("node", f"{pipeline.pipeline_info.id}.{node}"),
        )
    )
    # If its inputs could not be resolved, there is no execution.
    if of_run is None or of_node is None:
        return
    here = {e.id for e in handle.store.get_executions_by_context(of_node.id)}
    failed = [
        execution
        for execution in handle.store.get_executions_by_context(of_run.id)
        if execution.id in here and execution.last_known_state == mlmd.Execution.FAILED
    ]
    for execution in failed[-1:]:
        if isinstance(error, TrainingInterruptedError):
            execution.custom_properties[INTERRUPTED].int_value = 1
            text = str(error)
        else:
            text = failures.explanation(error) or f"{type(error).__name__}: {error}"
        execution.custom_properties[FAILURE_REASON].string_value = redacted(text)
        handle.store.put_executions([execution])
