"""Trials side by side: the step starts a Vertex custom job and waits for its end.

Every worker of the job tries what the chief's oracle says, TFX's way: Vertex gives each a
`CLUSTER_SPEC`, from which TFX makes the environment by which KerasTuner's workers find the oracle.
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
    """Tries what the oracle says; the chief's has that in a process of its own."""

    _chief: multiprocessing.Process | None = None

    def Do(  # noqa: N802
        self,
        input_dict: dict[str, list[types.Artifact]],
        output_dict: dict[str, list[types.Artifact]],
        exec_properties: dict[str, Any],
    ) -> None:
        """See `DiffusionTuner`.

        Raises:
            RuntimeError: The oracle's process failed; its log says how.
        """
        # Each worker trains trials of its own, not one together with the others.
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
        """Tells the workers what to try, and writes the outputs when all is tried."""
        os.environ["KERASTUNER_ORACLE_IP"] = "0.0.0.0"
        os.environ["KERASTUNER_ORACLE_PORT"] = str(self._master_port)
        os.environ["KERASTUNER_TUNER_ID"] = "chief"
        tuner = tuner_executor.search(
            input_dict, exec_properties, self._get_tmp_dir(), print_tuning_summary=False
        )
        write_outputs(tuner, output_dict, exec_properties)


class Executor(custom_job.Executor):
    """Tries in a custom job."""

    WORKER = Worker

    def note(self, output_dict: dict[str, list[types.Artifact]], machine_hours: str) -> None:
        """See the Trainer's."""
        [results] = output_dict[standard_component_specs.TUNER_RESULTS_KEY]
        results.set_string_custom_property(custom_job.MACHINE_HOURS, machine_hours)
