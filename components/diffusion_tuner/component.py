"""The DiffusionTuner component."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from tfx import types
from tfx.components import Tuner
from tfx.dsl.components.base import base_component, executor_spec
from tfx.orchestration.data_types import RuntimeParameter
from tfx.proto import trainer_pb2
from tfx.types import standard_artifacts, standard_component_specs
from tfx.utils import json_utils

from components.code_version import code_version
from components.diffusion_trainer.component import (
    CLASS_INPUTS,
    RUN_PARAMETERS,
    given_run_parameters,
)
from components.diffusion_trainer.worker_job import CONFIG_KEY, WorkerJob
from components.diffusion_tuner import executor
from trainer.training_config import CLASS_LATENTS, TrainerSettings, TuningConfig

TUNER_FN = "trainer.run_fn.tuner_fn"


class DiffusionTunerSpec(standard_component_specs.TunerSpec):
    """Tuner's spec, with separate parameters for the settings that change from run to run.

    It also has an input for class pictures beside the examples.
    """

    INPUTS = {**standard_component_specs.TunerSpec.INPUTS, **CLASS_INPUTS}

    PARAMETERS = {
        **standard_component_specs.TunerSpec.PARAMETERS,
        **RUN_PARAMETERS,
    }


class DiffusionTuner(Tuner):
    """TFX's Tuner, with steps, learning rate and seed as parameters, as in `DiffusionTrainer`.

    Outputs:
      best_hyperparameters: `standard_artifacts.HyperParameters`, used by the Trainer.
        Custom properties: `found`, in words; `trial`, its loss `held_out_loss`, and `trials`.
      tuner_results: `standard_artifacts.TunerResults`, all trials: TFX's `tuner_results.json`,
        `trials.json` with the cost and score of each, and the page `tuning.html`.
    """

    SPEC_CLASS = DiffusionTunerSpec
    EXECUTOR_SPEC = executor_spec.ExecutorClassSpec(executor.Executor)

    def __init__(
        self,
        examples: types.BaseChannel,
        *,
        settings: TrainerSettings,
        tuning: TuningConfig,
        base_model: types.BaseChannel | None = None,
        class_latents: types.BaseChannel | None = None,
        runtime_parameters: Mapping[str, RuntimeParameter] | None = None,
        worker_job: WorkerJob | None = None,
    ) -> None:
        """Makes the component.

        Args:
            examples: Output of LatentGen.
            settings: All settings for `run_fn`.
            tuning: Settings of the search.
            base_model: See `DiffusionTrainer`.
            class_latents: See `DiffusionTrainer`.
            runtime_parameters: See `DiffusionTrainer`.
            worker_job: Runs the trials on several machines, as a Vertex custom job; `None`: in this
                step.
        """
        config, executor_class = (
            {
                executor.SETTINGS: settings.to_json(),
                executor.TUNING: dataclasses.asdict(tuning),
                # The settings contain the version of the trials' code.
                "code_version": code_version("components.diffusion_tuner.executor"),
            },
            None,
        )
        if worker_job is not None:
            # Imports Vertex's client, which takes four seconds.
            from components.diffusion_tuner import custom_job

            config[CONFIG_KEY] = worker_job.to_json()
            executor_class = executor_spec.ExecutorClassSpec(custom_job.Executor)
        # Tuner's own constructor would make the spec without the additional parameters.
        base_component.BaseComponent.__init__(
            self,
            DiffusionTunerSpec(
                examples=examples,
                **({} if base_model is None else {"base_model": base_model}),
                **({} if class_latents is None else {CLASS_LATENTS: class_latents}),
                tuner_fn=TUNER_FN,
                train_args=trainer_pb2.TrainArgs(splits=["train"]),
                eval_args=trainer_pb2.EvalArgs(splits=["eval"]),
                custom_config=json_utils.dumps(config),
                **given_run_parameters(settings, runtime_parameters),
                best_hyperparameters=types.Channel(type=standard_artifacts.HyperParameters),
                tuner_results=types.Channel(type=standard_artifacts.TunerResults),
            ),
            custom_executor_spec=executor_class,
        )
