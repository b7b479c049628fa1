"""The work of DiffusionTuner: TFX's search, and a report on it."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from tfx import types
from tfx.components.tuner import executor
from tfx.dsl.io import fileio
from tfx.types import artifact_utils, standard_component_specs
from tfx.utils import json_utils

from components.diffusion_trainer.executor import class_latents
from components.diffusion_tuner.page import PAGE_NAME, tuning_page
from storage import filesystem
from trainer.training_config import RunParameters
from trainer.tuning.search import Search, TrialTuner, in_words

SETTINGS, TUNING, RUN = "settings", "tuning", "run"
"""Keys of `custom_config`: `TrainerSettings.to_json`, the fields of `TuningConfig`, and
`RunParameters`, which are separate parameters and are added for `tuner_fn`, with `CLASS_LATENTS`.
"""

TRIALS_NAME = "trials.json"
"""The file with all trials."""

FOUND = "found"
"""Property of the best hyperparameters: their values, in words."""


class Executor(executor.Executor):
    """Searches in this process; see `DiffusionTuner` and `trainer.run_fn.tuner_fn`."""

    def Do(  # noqa: N802
        self,
        input_dict: dict[str, list[types.Artifact]],
        output_dict: dict[str, list[types.Artifact]],
        exec_properties: dict[str, Any],
    ) -> None:
        """Runs all trials, and writes the best hyperparameters and a page about the search."""
        told = with_run_parameters(input_dict, exec_properties)
        tuner = executor.search(input_dict, told, self._get_tmp_dir(), print_tuning_summary=False)
        write_outputs(tuner, output_dict, told)


def with_run_parameters(
    input_dict: dict[str, list[types.Artifact]], exec_properties: dict[str, Any]
) -> dict[str, Any]:
    """The properties with the run parameters in `custom_config`, which is all `tuner_fn` gets.

    If there are class pictures, the path of their latents is added, too.
    """
    key = standard_component_specs.CUSTOM_CONFIG_KEY
    config = json_utils.loads(exec_properties[key])
    config[RUN] = {name: exec_properties[name] for name in RunParameters.__required_keys__}
    config |= class_latents(input_dict)
    return {**exec_properties, key: json_utils.dumps(config)}


def write_outputs(
    tuner: TrialTuner,
    output_dict: dict[str, list[types.Artifact]],
    exec_properties: dict[str, Any],
) -> None:
    """Ends the search, and writes the component's outputs.

    Args:
        tuner: The tuner, after all trials.
        output_dict: Outputs of the component.
        exec_properties: Result of `with_run_parameters`.

    Raises:
        UserError: No trial reached a loss.
    """
    config = json_utils.loads(exec_properties[standard_component_specs.CUSTOM_CONFIG_KEY])
    search = tuner.conclude(config[SETTINGS]["checkpoint_dir"])
    executor.write_best_hyperparameters(tuner, output_dict)
    results = artifact_utils.get_single_uri(output_dict[standard_component_specs.TUNER_RESULTS_KEY])
    fileio.makedirs(results)
    for name, text in ((TRIALS_NAME, _as_json(search)), (PAGE_NAME, tuning_page(search))):
        filesystem.write_bytes(filesystem.join(results, name), text.encode())
    best = artifact_utils.get_single_instance(
        output_dict[standard_component_specs.BEST_HYPERPARAMETERS_KEY]
    )
    chosen = search.chosen
    best.set_string_custom_property(FOUND, in_words(chosen.hyperparameters))
    best.set_string_custom_property("trial", chosen.trial)
    best.set_float_custom_property("held_out_loss", chosen.result.loss)
    best.set_int_custom_property("trials", search.rungs[0].trials)


def _as_json(search: Search) -> str:
    """The search as JSON. All numbers are finite: a trial without a loss names its problem."""
    return json.dumps({**dataclasses.asdict(search), "cost": search.cost}, indent=2)
