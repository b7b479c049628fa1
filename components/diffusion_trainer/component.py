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
"""What one changes from run to run, as parameters of a component's spec."""
CLASS_INPUTS = {
    CLASS_LATENTS: component_spec.ChannelParameter(type=standard_artifacts.Examples, optional=True)
}
"""What is trained on beside the examples, as an input of a component's spec."""


class DiffusionTrainerSpec(standard_component_specs.TrainerSpec):
    """Trainer's, with what one changes from run to run as parameters of their own.

    And with class pictures beside the examples.
    """

    INPUTS = {**standard_component_specs.TrainerSpec.INPUTS, **CLASS_INPUTS}

    PARAMETERS = {
        **standard_component_specs.TrainerSpec.PARAMETERS,
        **RUN_PARAMETERS,
    }


class DiffusionTrainer(Trainer):
    """TFX's Trainer, with steps, learning rate and seed beside `custom_config`, not inside.

    A compiled pipeline can only be given other values for whole parameters, and ML Metadata can
    only be asked for those.

    It starts from the base weights, or from `base_model` if there is one: its diffusion model, its
    text encoder, and its adapters, where such are trained on.

    With `class_latents`, as many class pictures are in each batch as others, and their loss is
    added (see `trainer.data.prior`).

    Outputs:
      model: `standard_artifacts.Model`, the SavedModels below `Format-Serving`. Custom
        property: `training_id`, the same for all exports of a training; and, where held-out
        pictures have chosen it, `kept_step` and `kept_because`; where its training started from
        another model, the id of that one's (`started_from`); where it went on from a
        shorter one, that one's id (`went_on_from`) and the step (`went_on_at_step`); where the
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
            examples: What LatentGen made.
            settings: All that `run_fn` is told.
            base_model: The model to start from in the place of the base weights; may stay empty.
            class_latents: What LatentGen made of class pictures; `None` where there are none.
            hyperparameters: What DiffusionTuner has found, in the place of some of them.
            runtime_parameters: What is left open until a compiled pipeline is started, of `steps`,
                `learning_rate` and `seed`; others are not looked at.
            worker_job: Train on several machines, as a Vertex custom job; `None`: in this step.
        """
        config, executor_class = settings.to_json(), None
        if worker_job is not None:
            # Imports Vertex's client: four seconds that nobody else need wait for.
            from components.diffusion_trainer import custom_job

            config[CONFIG_KEY] = worker_job.to_json()
            executor_class = executor_spec.ExecutorClassSpec(custom_job.Executor)
        # Trainer's own would make the spec without the further parameters.
        base_component.BaseComponent.__init__(
            self,
            DiffusionTrainerSpec(
                examples=examples,
                **({} if base_model is None else {"base_model": base_model}),
                **({} if class_latents is None else {CLASS_LATENTS: class_latents}),
                **({} if hyperparameters is None else {"hyperparameters": hyperparameters}),
                # Not `module_file`, which would package and install the module at every run.
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
    """Values of `RUN_PARAMETERS`: those of the settings, but for what is left open."""
    given = runtime_parameters or {}
    return {
        name: given.get(name, value) for name, value in settings.training.run_parameters.items()
    }
