"""Predicts what a run would do, step by step, without running it.

TFX's own launcher does, node by node and on a copy of ML Metadata, what it does before it executes:
it resolves the inputs and looks in the cache. So the plan says what the run will find. A step whose
inputs do not exist yet cannot be looked up; it is executed unless they turn out unchanged.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Iterator, Sequence
from typing import Any, cast

from ml_metadata import errors as mlmd_errors
from ml_metadata.metadata_store import metadata_store
from ml_metadata.proto import metadata_store_pb2 as mlmd
from tfx.dsl.compiler import compiler, constants
from tfx.orchestration import metadata
from tfx.orchestration import pipeline as tfx_pipeline
from tfx.orchestration.local import runner_utils
from tfx.orchestration.portable import launcher, outputs_utils, runtime_parameter_utils
from tfx.types import standard_artifacts
from tfx.utils import path_utils

from pipeline import lineage
from pipeline.cache_key import stable_cache_keys
from pipeline.config import RunConfig
from pipeline.disk import in_words
from pipeline.lineage.model import Execution, State
from pipeline.lineage.store import Store
from pipeline.memory import fixed_bytes
from pipeline.outcome import duration
from storage.model_manifest import ModelManifest

_RUN_ID = "the planned run"
_TRAINER = "Trainer"
OF_MEMORY = (
    "accumulation_steps",
    "batch_size",
    "gradient_checkpointing",
    "lora_rank",
    "optimizer",
    "precision",
    "train_text_encoder",
)
"""Settings that decide how much memory training takes, besides preset and picture size."""
_STEPS, _BATCH_SIZE = "steps", "custom_config.training.batch_size"


class Fate(enum.Enum):
    """What will happen to a step."""

    RUNS = "runs"
    MAY_RUN = "may run"
    CACHED = "cached"
    LOOKED_UP = "looked up"


@dataclasses.dataclass(frozen=True)
class PlannedStep:
    """One step of the planned run.

    Attributes:
        name: Its name in the pipeline.
        fate: What will happen to it.
        why: The reason, in a few words.
        seconds: How long it took when it was last executed; for training, scaled to the number of
            pictures now. `None` if it never was, or will not be executed.
    """

    name: str
    fate: Fate
    why: str
    seconds: float | None

    @property
    def executes(self) -> bool:
        """Whether the step takes time."""
        return self.fate in (Fate.RUNS, Fate.MAY_RUN)


class _Nowhere(outputs_utils.OutputsResolver):
    """Says where outputs would be, but makes no folders for them."""

    def make_tmp_dir(self, execution_id: int) -> str:
        return ""

    def get_executor_output_uri(self, execution_id: int) -> str:
        return ""

    def get_stateful_working_directory(self, *_: Any, **__: Any) -> str:
        return ""


class _AskedLauncher(launcher.Launcher):
    """TFX's launcher for one node, which stops before executing it."""

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        self._output_resolver = _Nowhere(
            pipeline_node=given["pipeline_node"],
            pipeline_info=given["pipeline_info"],
            pipeline_runtime_spec=given["pipeline_runtime_spec"],
        )

    def ask(self) -> tuple[Fate, int | None]:
        """What will happen to the node, and the id of its execution in the copy, if it has one."""
        if self._system_node_handler is not None:
            self._system_node_handler.run(
                self._mlmd_connection,
                self._pipeline_node,
                self._pipeline_info,
                self._pipeline_runtime_spec,
            )
            return Fate.LOOKED_UP, None
        prepared = self._prepare_execution()
        execution_id = prepared.execution_info.execution_id
        if prepared.is_execution_needed:
            return Fate.RUNS, execution_id
        with self._mlmd_connection as handle:
            found = handle.store.get_executions_by_id([execution_id] if execution_id else [])
        if found and found[0].last_known_state == mlmd.Execution.CACHED:
            return Fate.CACHED, execution_id
        return Fate.MAY_RUN, None


def plan_steps(
    pipeline: tfx_pipeline.Pipeline, output: str, pictures: int | None
) -> list[PlannedStep]:
    """Predicts what would happen to every step.

    Args:
        pipeline: The pipeline, with a copy of the output folder's ML Metadata, which is written to.
        output: The run's output folder, absolute.
        pictures: How many pictures training will go through; `None` if that is not known.
    """
    compiled = compiler.Compiler().compile(pipeline)
    runtime_parameter_utils.substitute_runtime_parameter(
        compiled, {constants.PIPELINE_RUN_ID_PARAMETER_NAME: _RUN_ID}
    )
    deployment = runner_utils.extract_local_deployment_config(compiled)
    connection = cast(mlmd.ConnectionConfig, pipeline.metadata_connection_config)
    waiting: set[str] = set()
    asked = []
    with stable_cache_keys(output):
        for each in compiled.nodes:
            node = each.pipeline_node
            name = node.node_info.id
            executor = runner_utils.extract_executor_spec(deployment, name)
            makers = [above for above in node.upstream_nodes if above in waiting]
            execution_id = None
            if makers:
                fate = Fate.MAY_RUN if executor else Fate.LOOKED_UP
            else:
                fate, execution_id = _AskedLauncher(
                    pipeline_node=node,
                    mlmd_connection=metadata.Metadata(connection),
                    pipeline_info=compiled.pipeline_info,
                    pipeline_runtime_spec=compiled.runtime_spec,
                    executor_spec=executor,
                    custom_driver_spec=runner_utils.extract_custom_driver_spec(deployment, name),
                ).ask()
            if makers or fate is Fate.RUNS:
                waiting.add(name)
            asked.append((name, fate, execution_id, makers))
    with lineage.locate(connection.sqlite.filename_uri).open() as store:
        return [_planned(store, *each, pictures) for each in asked]


def _planned(
    store: Store,
    name: str,
    fate: Fate,
    execution_id: int | None,
    makers: Sequence[str],
    pictures: int | None,
) -> PlannedStep:
    former = [
        execution
        for execution in store.executions(store.executions_of_node(name))
        if execution.state is State.COMPLETE
    ]
    latest = max(former, key=lambda execution: execution.id, default=None)
    if fate is Fate.MAY_RUN and latest is None:
        fate, why = Fate.RUNS, "it has never been completed"
    elif fate is Fate.MAY_RUN:
        why = f"if {makers[-1]} makes something new"
    elif fate is Fate.RUNS and execution_id is not None:
        why = lineage.comparing.why_execution(store, store.execution(execution_id)).explanation
        why = why.removeprefix("executed because ")
    elif fate is Fate.CACHED:
        why = "settings, code and inputs are as before"
    else:
        why = f"when {makers[-1]} is done" if makers else ""
    step = PlannedStep(name, fate, why, None)
    if latest is None or not step.executes:
        return step
    return dataclasses.replace(step, seconds=seconds_again(latest, pictures))


def seconds_again(former: Execution, pictures: int | None) -> float | None:
    """How long a step that was executed before would take now.

    Args:
        former: Its former execution.
        pictures: How many pictures training would go through now; `None`: as many as then.

    Returns:
        Seconds; `None` if its former duration is not known.
    """
    before = 0.0
    if former.node == _TRAINER and former.seconds is not None:
        steps, size = (former.settings.get(key) for key in (_STEPS, _BATCH_SIZE))
        before = float(steps or 0) * float(size or 0)
    if former.seconds is None or not before or pictures is None:
        return former.seconds
    return former.seconds * pictures / before


def plan_table(steps: Sequence[PlannedStep]) -> Iterator[str]:
    """A line per step, and one for the total time."""
    width = max(len(step.name) for step in steps)
    for step in steps:
        time = "" if step.seconds is None else duration(step.seconds)
        yield f"  {step.name:<{width}}  {step.fate.value:<9}  {time:>12}  {step.why}".rstrip()
    executing = [step for step in steps if step.executes]
    if not executing:
        return
    known = [step.seconds for step in executing if step.seconds is not None]
    total = "not known before a first run"
    if known:
        about = "up to" if any(step.fate is Fate.MAY_RUN for step in executing) else "about"
        total = f"{about} {duration(sum(known))}, judging by former runs"
        if unknown := len(executing) - len(known):
            total += f", plus {unknown} of {len(executing)} steps never executed here"
    yield f"  {'time':<{width}}  {total}"


def memory_text(config: RunConfig, store: metadata_store.MetadataStore) -> str:
    """How much memory training takes: measured in a similar former one, or a lower bound.

    Args:
        config: All settings, resolved.
        store: ML Metadata, with the models of former runs.
    """
    former = _alike(config, store)
    if former is not None:
        peak = former.peak_gpu_memory_bytes or former.peak_memory_bytes or 0
        where = "of the GPU's" if former.peak_gpu_memory_bytes else "in all"
        return f"{in_words(peak)} {where}, as measured in a former training like this one"
    return (
        f"{in_words(fixed_bytes(config))} for weights, gradients, optimizer and averages, and "
        "activations, which the Trainer estimates before it trains; the program takes 1 to 2 GB"
    )


def _alike(config: RunConfig, store: metadata_store.MetadataStore) -> ModelManifest | None:
    """The manifest of the latest model whose training took as much memory as this one will."""
    try:
        models = store.get_artifacts_by_type(standard_artifacts.Model.TYPE_NAME)
    except mlmd_errors.NotFoundError:
        return None
    # A manifest has what `auto` became on the machine that trained.
    settings = ((name, getattr(config.training, name)) for name in OF_MEMORY)
    wanted = {name: value for name, value in settings if value != "auto"}
    for model in sorted(models, key=lambda each: -each.id):
        if model.state != mlmd.Artifact.LIVE:
            continue
        manifest = ModelManifest.find(path_utils.serving_model_dir(model.uri))
        if manifest is None or not manifest.fits(config.model.preset, config.model.image_size):
            continue
        if bool(manifest.word) == bool(config.word.token) and wanted == {
            name: manifest.training.get(name) for name in wanted
        }:
            return manifest
    return None
