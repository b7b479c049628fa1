"""The work of DiffusionTrainer: TFX's, after its parameters were put where `run_fn` looks."""

from __future__ import annotations

from typing import Any

from tfx import types
from tfx.components.trainer import executor
from tfx.types import standard_component_specs
from tfx.utils import json_utils

STEPS_BY_EPOCHS = 0
"""Value of `steps` where `epochs` says how long."""


class Executor(executor.GenericExecutor):
    """Trains in this process."""

    def Do(  # noqa: N802
        self,
        input_dict: dict[str, list[types.Artifact]],
        output_dict: dict[str, list[types.Artifact]],
        exec_properties: dict[str, Any],
    ) -> None:
        """See `DiffusionTrainer` and `trainer.run_fn.run_fn`."""
        super().Do(input_dict, output_dict, with_run_parameters(exec_properties))


def with_run_parameters(exec_properties: dict[str, Any]) -> dict[str, Any]:
    """`exec_properties` as TFX's Trainer has them: steps, learning rate and seed in the config.

    Values that are given when a compiled pipeline is started have not seen the configuration's
    checks. So steps have precedence over epochs, and a warm-up longer than the steps is shortened
    to half of them.

    Raises:
        ValueError: A value is out of its range.
    """
    key = standard_component_specs.CUSTOM_CONFIG_KEY
    config = json_utils.loads(exec_properties[key])
    steps, rate = exec_properties["steps"], exec_properties["learning_rate"]
    training = {**config["training"], "learning_rate": float(rate), "seed": exec_properties["seed"]}
    if steps != STEPS_BY_EPOCHS:
        training |= {"steps": steps, "epochs": 0.0}
        if training["warmup_steps"] is None or training["warmup_steps"] > steps:
            training["warmup_steps"] = steps // 2
    elif training["epochs"]:
        training["steps"] = None
    if steps < 0 or (steps == STEPS_BY_EPOCHS and not training["epochs"]):
        raise ValueError(f"steps is {steps}; it must be at least 1, or 0 with epochs")
    return {**exec_properties, key: json_utils.dumps({**config, "training": training})}
