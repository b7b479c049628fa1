"""Parallel trials: the step starts a Vertex custom job and waits for it to end.

Every worker of the job runs the trials that the chief's oracle assigns, in TFX's way: Vertex gives
each a `CLUSTER_SPEC`, from which TFX sets the environment that leads KerasTuner's workers to the
oracle.
"""

from __future__ import annotations

import multiprocessing
import os
from typing import Any

from tfx import types
from tfx.components.tuner import executor as tuner_executor
from tfx.extensions.google_cloud_ai_platform.tuner import executor as cloud_executor
from tfx.types import standard_component_specs

from components.diffusion_trainer import custom_job
from components.diffusion_tuner.executor import with_run_parameters, write_outputs


class Worker(cloud_executor._WorkerExecutor):
    """Runs the trials that the oracle assigns; on the chief, the oracle has its own process."""

    _chief: multiprocessing.Process | None = None

    def Do(  # noqa: N802
        self,
        input_dict: dict[str, list[types.Artifact]],
        output_dict: dict[str, list[types.Artifact]],
        exec_properties: dict[str, Any],
    ) -> None:
        """See `DiffusionTuner`.

        Raises:
            RuntimeError: The process of the oracle failed; its log says why.
        """
        # Each worker trains its own trials, not one trial together with the others.
        os.environ.pop("TF_CONFIG", None)
        super().Do(input_dict, output_dict, with_run_parameters(input_dict, exec_properties))
        if self._chief is not None:
            self._chief.join()
            if self._chief.exitcode:
                raise RuntimeError(f"the oracle ended with status {self._chief.exitcode}")

    def _start_chief_oracle_in_subprocess(
        self,
        input_dict: dict[str, list[types.Artifact]],
        output_dict: dict[str, list[types.Artifact]],
        exec_properties: dict[str, Any],
    ) -> multiprocessing.Process:
        started: multiprocessing.Process = super()._start_chief_oracle_in_subprocess(
            input_dict, output_dict, exec_properties
        )
        self._chief = started
        return started

    def _run_chief_oracle(
        self,
        input_dict: dict[str, list[types.Artifact]],
        output_dict: dict[str, list[types.Artifact]],
        exec_properties: dict[str, Any],
    ) -> None:
        """Assigns trials to the workers, and writes the outputs when all trials have ended."""
        os.environ["KERASTUNER_ORACLE_IP"] = "0.0.0.0"
        os.environ["KERASTUNER_ORACLE_PORT"] = str(self._master_port)
        os.environ["KERASTUNER_TUNER_ID"] = "chief"
        tuner = tuner_executor.search(
            input_dict, exec_properties, self._get_tmp_dir(), print_tuning_summary=False
        )
        write_outputs(tuner, output_dict, exec_properties)


class Executor(custom_job.Executor):
    """Runs the trials in a custom job."""

    WORKER = Worker

    def note(self, output_dict: dict[str, list[types.Artifact]], machine_hours: str) -> None:
        """See the Trainer's executor."""
        [results] = output_dict[standard_component_specs.TUNER_RESULTS_KEY]
        results.set_string_custom_property(custom_job.MACHINE_HOURS, machine_hours)
