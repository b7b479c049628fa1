"""The work of DiffusionTrainer: TFX's own, with the run parameters passed on to it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tfx import types
from tfx.components.trainer import executor
from tfx.components.trainer.fn_args_utils import FnArgs
from tfx.types import artifact_utils
from tfx.utils import path_utils

from storage.model_manifest import ModelManifest
from trainer.training_config import CLASS_LATENTS, TUNED, RunParameters
from trainer.tuning.oracle import found_values
from trainer.tuning.search import in_words

TRAINING_ID = "training_id"
"""Property of a model: the `training_id` of its manifest, the same for all of its exports."""

KEPT_STEP, KEPT_BECAUSE = "kept_step", "kept_because"
"""Properties of a model that held-out pictures have chosen: the step of its weights, and why."""

STARTED_FROM = "started_from"
"""Property of a model whose training started from another model: the id of the other training."""

WENT_ON_FROM, WENT_ON_AT_STEP = "went_on_from", "went_on_at_step"
"""Properties of a model whose training continued a shorter one: the other's id, and the step."""


class Executor(executor.GenericExecutor):
    """Trains in this process; see `DiffusionTrainer` and `trainer.run_fn.run_fn`."""

    def Do(  # noqa: N802
        self,
        input_dict: dict[str, list[types.Artifact]],
        output_dict: dict[str, list[types.Artifact]],
        exec_properties: dict[str, Any],
    ) -> None:
        """Trains, and records the training on the model."""
        super().Do(input_dict, output_dict, exec_properties)
        note_training(artifact_utils.get_single_instance(output_dict["model"]))

    def _GetFnArgs(  # noqa: N802
        self,
        input_dict: dict[str, list[types.Artifact]],
        output_dict: dict[str, list[types.Artifact]],
        exec_properties: dict[str, Any],
    ) -> FnArgs:
        fn_args = super()._GetFnArgs(input_dict, output_dict, exec_properties)
        found = fn_args.hyperparameters
        fn_args.hyperparameters = {
            name: exec_properties[name] for name in RunParameters.__required_keys__
        }
        if found:
            fn_args.hyperparameters[TUNED] = found_values(found["values"])
        fn_args.hyperparameters |= class_latents(input_dict)
        return fn_args


def class_latents(input_dict: Mapping[str, list[types.Artifact]]) -> dict[str, str]:
    """The path of the class pictures' latents, by `CLASS_LATENTS`; empty if there are none."""
    found = input_dict.get(CLASS_LATENTS)
    return {CLASS_LATENTS: artifact_utils.get_single_uri(found)} if found else {}


def note_training(model: types.Artifact) -> None:
    """Sets the properties of an exported model that identify its training."""
    manifest = ModelManifest.read(path_utils.serving_model_dir(model.uri))
    model.set_string_custom_property(TRAINING_ID, str(manifest.training_id))
    if manifest.kept.get("chosen"):
        model.set_int_custom_property(KEPT_STEP, manifest.kept["step"])
        model.set_string_custom_property(KEPT_BECAUSE, manifest.kept["why"])
    if manifest.started_from:
        model.set_string_custom_property(STARTED_FROM, str(manifest.started_from["training_id"]))
    if manifest.went_on_from:
        model.set_string_custom_property(WENT_ON_FROM, manifest.went_on_from["training_id"])
        model.set_int_custom_property(WENT_ON_AT_STEP, manifest.went_on_from["step"])
    if manifest.tuned:
        model.set_string_custom_property(TUNED, in_words(manifest.tuned))
