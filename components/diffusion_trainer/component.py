"""The DiffusionTrainer component."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tfx import types
from tfx.components import Trainer
from tfx.dsl.components.base import base_component, executor_spec
from tfx.orchestration.data_types import RuntimeParameter
from tfx.proto import trainer_pb2
from tfx.types import component_spec, standard_artifacts, standard_component_specs
from tfx.utils import json_utils

from components.diffusion_trainer import executor
from components.diffusion_trainer.worker_job import CONFIG_KEY, WorkerJob
from trainer.training_config import CLASS_LATENTS, TrainerSettings

RUN_FN = "trainer.run_fn.run_fn"
RUN_PARAMETERS = {
    "steps": component_spec.ExecutionParameter(type=int),
    "learning_rate": component_spec.ExecutionParameter(type=float),
    "seed": component_spec.ExecutionParameter(type=int),
}
"""The settings that change from run to run, as parameters of a component's spec."""
CLASS_INPUTS = {
    CLASS_LATENTS: component_spec.ChannelParameter(type=standard_artifacts.Examples, optional=True)
}
"""Training data beside the examples, as an input of a component's spec."""


class DiffusionTrainerSpec(standard_component_specs.TrainerSpec):
    """Trainer's spec, with separate parameters for the settings that change from run to run.

    It also has an input for class pictures beside the examples.
    """

    INPUTS = {**standard_component_specs.TrainerSpec.INPUTS, **CLASS_INPUTS}

    PARAMETERS = {
        **standard_component_specs.TrainerSpec.PARAMETERS,
        **RUN_PARAMETERS,
    }


class DiffusionTrainer(Trainer):
    """TFX's Trainer, with steps, learning rate and seed beside `custom_config`, not inside.

    In a compiled pipeline, only whole parameters can be given other values, and ML Metadata can
    only be queried for whole parameters.

    Training starts from the base weights, or from `base_model` if there is one: from its diffusion
    model, its text encoder, and its adapters if adapters are trained further.

    With `class_latents`, each batch has as many class pictures as others, and their loss is added
    (see `trainer.data.prior`).

    Outputs:
      model: `standard_artifacts.Model`, the SavedModels below `Format-Serving`. Custom
        property: `training_id`, the same for all exports of a training; if held-out pictures have
        chosen the model, `kept_step` and `kept_because`; if its training started from another
        model, the id of that model's training (`started_from`); if it continued a shorter
        training, the id of that one (`went_on_from`) and the step (`went_on_at_step`); if the
        Tuner has found its hyperparameters, `tuned`, in words.
      model_run: `standard_artifacts.ModelRun`, TensorBoard logs, validation pictures, history and
        held-out losses.
    """

    SPEC_CLASS = DiffusionTrainerSpec
    EXECUTOR_SPEC = executor_spec.ExecutorClassSpec(executor.Executor)

    def __init__(
        self,
        examples: types.BaseChannel,
        *,
        settings: TrainerSettings,
        base_model: types.BaseChannel | None = None,
        class_latents: types.BaseChannel | None = None,
        hyperparameters: types.BaseChannel | None = None,
        runtime_parameters: Mapping[str, RuntimeParameter] | None = None,
        worker_job: WorkerJob | None = None,
    ) -> None:
        """Makes the component.

        Args:
            examples: Output of LatentGen.
            settings: All settings for `run_fn`.
            base_model: The model to start from instead of the base weights; may stay empty.
            class_latents: Output of LatentGen for class pictures; `None` if there are none.
            hyperparameters: Hyperparameters found by DiffusionTuner, which replace some settings.
            runtime_parameters: Those of `steps`, `learning_rate` and `seed` that stay open until a
                compiled pipeline is started; other names are ignored.
            worker_job: Trains on several machines, as a Vertex custom job; `None`: in this step.
        """
        config, executor_class = settings.to_json(), None
        if worker_job is not None:
            # Imports Vertex's client, which takes four seconds.
            from components.diffusion_trainer import custom_job

            config[CONFIG_KEY] = worker_job.to_json()
            executor_class = executor_spec.ExecutorClassSpec(custom_job.Executor)
        # Trainer's own constructor would make the spec without the additional parameters.
        base_component.BaseComponent.__init__(
            self,
            DiffusionTrainerSpec(
                examples=examples,
                **({} if base_model is None else {"base_model": base_model}),
                **({} if class_latents is None else {CLASS_LATENTS: class_latents}),
                **({} if hyperparameters is None else {"hyperparameters": hyperparameters}),
                # Not `module_file`, which would package and install the module in every run.
                run_fn=RUN_FN,
                train_args=trainer_pb2.TrainArgs(splits=["train"]),
                eval_args=trainer_pb2.EvalArgs(splits=["eval"]),
                custom_config=json_utils.dumps(config),
                **given_run_parameters(settings, runtime_parameters),
                model=types.Channel(type=standard_artifacts.Model),
                model_run=types.Channel(type=standard_artifacts.ModelRun),
            ),
            custom_executor_spec=executor_class,
        )


def given_run_parameters(
    settings: TrainerSettings, runtime_parameters: Mapping[str, RuntimeParameter] | None
) -> dict[str, Any]:
    """Values of `RUN_PARAMETERS`: the settings' values, except for parameters left open."""
    given = runtime_parameters or {}
    return {
        name: given.get(name, value) for name, value in settings.training.run_parameters.items()
    }
