"""The work of DiffusionTrainer: TFX's, which is handed the run parameters, too."""

from __future__ import annotations

from typing import Any

from tfx import types
from tfx.components.trainer import executor
from tfx.components.trainer.fn_args_utils import FnArgs

from trainer.training_config import RunParameters


class Executor(executor.GenericExecutor):
    """Trains in this process; see `DiffusionTrainer` and `trainer.run_fn.run_fn`."""

    def _GetFnArgs(  # noqa: N802
        self,
        input_dict: dict[str, list[types.Artifact]],
        output_dict: dict[str, list[types.Artifact]],
        exec_properties: dict[str, Any],
    ) -> FnArgs:
        fn_args = super()._GetFnArgs(input_dict, output_dict, exec_properties)
        fn_args.hyperparameters = {
            name: exec_properties[name] for name in RunParameters.__required_keys__
        }
        return fn_args
