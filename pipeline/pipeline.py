"""The pipeline that both runners run."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow_data_validation as tfdv
from tfx.components import SchemaGen
from tfx.dsl.components.common.importer import IMPORT_RESULT_KEY
from tfx.dsl.components.common.resolver import ResolverStrategy
from tfx.dsl.experimental.conditionals.conditional import Cond
from tfx.dsl.placeholder.placeholder import Predicate
from tfx.orchestration import metadata
from tfx.orchestration.data_types import RuntimeParameter
from tfx.orchestration.pipeline import Pipeline

from components.caption_example_gen import CaptionExampleGen
from components.caption_example_gen.captions import TagShuffle
from components.caption_example_gen.word_captions import WordCaptions
from components.caption_validator import CaptionValidator
from components.dataset_change import DatasetChange, DatasetDone
from components.dataset_change.executors import CHANGED
from components.dataset_report import DatasetReport
from components.diffusion_trainer import DiffusionTrainer
from components.diffusion_trainer.worker_job import WorkerJob
from components.diffusion_tuner import DiffusionTuner
from components.evaluation_report import EvaluationReport
from components.evaluator import Evaluator
from components.latent_gen import LatentGen
from components.loss_scorer import LossScorer
from components.pinned_schema_gen import PinnedSchemaGen
from components.serving_pusher import ServingPusher
from components.statistics_gen import StatisticsGen
from components.withdrawn_report import WithdrawnReport
from pipeline.baseline import MODEL, LatestBlessedBeforeCandidate
from pipeline.class_pictures import class_steps
from pipeline.config import DatasetConfig, RunConfig
from pipeline.config.buckets import bucket_limits
from pipeline.config.loading import recorded_settings
from pipeline.config.resolving import dataset_spec
from pipeline.config.words import word_captions
from pipeline.evaluation import baseline_node, eval_config, splits
from pipeline.starting import Start
from pipeline.starting_node import (
    starting_dataset_node,
    starting_node,
    starting_statistics_node,
)
from pipeline.trainer_settings import trainer_settings
from storage.withdrawn import KnownBy
from trainer.weights.base_model import BaseModel

PIPELINE_NAME = "sd-finetuning"

# With TFDV's default of ten, one long caption puts all others into one bar.
_HISTOGRAM_BUCKETS = 40


def create_pipeline(
    config: RunConfig,
    *,
    pipeline_root: str,
    metadata_path: str | None,
    serving_dir: str,
    checkpoint_dir: str,
    latents_index: str,
    datasets_index: str = "",
    dataset_fingerprint: str,
    base_model: BaseModel,
    start: Start | None = None,
    known_by: KnownBy | None = None,
    beam_pipeline_args: Sequence[str] = (),
    baseline_strategy: type[ResolverStrategy] = LatestBlessedBeforeCandidate,
    runtime_parameters: Mapping[str, RuntimeParameter] | None = None,
    worker_job: WorkerJob | None = None,
    trials_job: WorkerJob | None = None,
    enable_cache: bool = True,
    only_on_change: str = "",
) -> Pipeline:
    """Builds the pipeline: captioned pictures in, three SavedModels out.

    Args:
        config: All settings.
        pipeline_root: Folder for the outputs of every step.
        metadata_path: SQLite file of ML Metadata; `None` if the orchestrator keeps its own.
        serving_dir: Folder that TF Serving reads.
        checkpoint_dir: Folder where a restarted training finds its checkpoints; not below
            `pipeline_root`, whose folders change with every execution.
        latents_index: Folder where LatentGen finds the latents of former runs; below the same
            folder as `pipeline_root`.
        datasets_index: Folder, beside `latents_index`, where CaptionValidator finds a description
            of the dataset of the model that training starts from; "" if `start` has it.
        dataset_fingerprint: Stands for the dataset's content in the cache key.
        base_model: The base weights (see `pipeline.config.resolve_base_weights`).
        start: The model that training starts from; `None`: the base weights.
        known_by: Which releases were trained on withdrawn rows, for the page about them; `None`:
            not looked up.
        beam_pipeline_args: Flags for the Beam pipelines: the runner and its options.
        baseline_strategy: How to find the baseline.
        runtime_parameters: Values left open until a compiled pipeline is started, any of `dataset`,
            `dataset_fingerprint`, `steps`, `learning_rate` and `seed`.
        worker_job: Trains on several machines; `None`: train where the Trainer runs.
        trials_job: Tries hyperparameters on several machines; `None`: try them where the Tuner
            runs.
        enable_cache: Whether to reuse steps of former runs.
        only_on_change: File in which a finished run records the dataset's content, so that a run
            with the same content does nothing; "": every run does its work.
    """
    dataset, model = config.dataset, config.model
    limits = bucket_limits(model, base_model.preset)
    open_parameters: Mapping[str, Any] = runtime_parameters or {}
    words = word_captions(config.word)
    place = open_parameters.get("dataset", dataset.path)
    change = DatasetChange(place, dataset_spec(dataset), only_on_change) if only_on_change else None
    # All steps after a skipped step are skipped, too.
    with Cond(_has_changed(change)) if change else contextlib.nullcontext():
        example_gen = _example_gen(
            dataset,
            place,
            open_parameters.get("dataset_fingerprint", dataset_fingerprint),
            words,
        )
    examples = example_gen.outputs["examples"]
    statistics_gen = StatisticsGen(
        examples=examples,
        # Statistics of pictures as pictures and of captions as language, not as opaque bytes.
        stats_options=tfdv.StatsOptions(
            enable_semantic_domain_stats=True, num_histogram_buckets=_HISTOGRAM_BUCKETS
        ),
    )
    statistics = statistics_gen.outputs["statistics"]
    schema_gen = (
        SchemaGen(statistics=statistics, infer_feature_shape=True)
        if dataset.schema is None
        else PinnedSchemaGen(dataset.schema)
    )
    schema = schema_gen.outputs["schema"]
    former = start if config.drift.thresholds else None
    former_statistics = starting_statistics_node(former) if former else None
    former_dataset = starting_dataset_node(former) if former else None
    starting = None if start is None else starting_node(start)
    starting_model = None if starting is None else starting.outputs[MODEL]
    looks_up = bool(former and datasets_index)
    baseline_statistics, baseline_examples = (
        node.outputs[IMPORT_RESULT_KEY] if node else None
        for node in (former_statistics, former_dataset)
    )
    validator = CaptionValidator(
        statistics=statistics,
        schema=schema,
        fail_on_anomalies=dataset.fail_on_anomalies,
        examples=examples if baseline_examples or datasets_index else None,
        baseline_statistics=baseline_statistics,
        baseline_examples=baseline_examples,
        drift=config.drift.thresholds,
        fail_on_drift=config.drift.fail_on_drift,
        base_model=starting_model if looks_up else None,
        datasets_index=datasets_index,
    )
    tags = TagShuffle(dataset.tag_shuffle, dataset.tag_keep, dataset.tag_dropout, seed=dataset.seed)
    dataset_report = DatasetReport(
        examples=examples,
        statistics=statistics,
        schema=schema,
        anomalies=validator.outputs["anomalies"],
        rejects=example_gen.outputs["rejects"],
        baseline_statistics=baseline_statistics,
        base_model=base_model,
        tags=tags,
        word_captions=words,
        buckets=limits,
    )
    latent_gen = LatentGen(
        examples=examples,
        base_model=base_model,
        flip=model.flip,
        crop=model.crop,
        crop_seed=dataset.seed,
        buckets=limits,
        tags=tags,
        latents_index=latents_index if model.take_over_latents else "",
        word_captions=words,
    )
    if dataset.fail_on_anomalies or (
        config.drift.fail_on_drift and (former_statistics or looks_up)
    ):
        latent_gen.add_upstream_node(validator)
    latents = latent_gen.outputs["latents"]
    of_class, class_latents = class_steps(config, base_model, _example_gen)
    settings = trainer_settings(config, base_model, checkpoint_dir)
    tuner = (
        DiffusionTuner(
            examples=latents,
            settings=settings,
            tuning=config.tuning,
            base_model=starting_model,
            class_latents=class_latents,
            runtime_parameters=open_parameters,
            worker_job=trials_job,
        ).with_id("Tuner")
        if config.tuning.trials
        else None
    )
    trainer = DiffusionTrainer(
        examples=latents,
        settings=settings,
        base_model=starting_model,
        class_latents=class_latents,
        hyperparameters=tuner.outputs["best_hyperparameters"] if tuner else None,
        runtime_parameters=open_parameters,
        worker_job=worker_job,
    ).with_id("Trainer")
    candidate = trainer.outputs["model"]
    baseline = (
        baseline_node(candidate, baseline_strategy)
        if config.evaluation.baseline == "latest_blessed"
        else None
    )
    baseline_model = baseline.outputs[MODEL] if baseline else None
    if config.evaluation.baseline == "started_from":
        baseline_model = starting_model
    loss_scorer = LossScorer(
        latents=latents,
        model=candidate,
        baseline_model=baseline_model,
        base_model=base_model,
        num_strata=config.evaluation.num_strata,
        min_draws=config.evaluation.min_draws,
        seed=config.evaluation.seed,
        num_samples=config.evaluation.num_samples,
        num_training_pictures=config.evaluation.num_training_pictures,
        num_training_samples=config.evaluation.num_training_samples,
        sampler=config.validation.sampler,
        sample_steps=config.validation.num_steps,
        sample_guidance_scale=config.validation.guidance_scale,
        measures=config.evaluation.measures or (),
        clip_model=config.evaluation.clip_model or "",
        class_caption=config.prior.plain_caption,
        num_class_pictures=config.prior.num_compared,
    )
    scores = loss_scorer.outputs["scores"]
    evaluator = Evaluator(
        examples=scores,
        model=candidate,
        baseline_model=baseline_model,
        eval_config=eval_config(config.evaluation, config.prior, in_buckets=limits is not None),
        splits=splits(config.evaluation, config.prior),
    )
    blessing = evaluator.outputs["blessing"]
    report = EvaluationReport(
        examples=examples,
        latents=latents,
        model=candidate,
        model_run=trainer.outputs["model_run"],
        baseline_model=baseline_model,
        scores=scores,
        evaluation=evaluator.outputs["evaluation"],
        blessing=blessing,
        base_weights=base_model.base_weights,
    )
    withdrawn = (
        WithdrawnReport(
            rejects=example_gen.outputs["rejects"],
            latents=latents,
            model=candidate,
            dataset=place,
            spec=dataset_spec(dataset),
            base_model=base_model,
            known_by=known_by,
            crop=model.crop,
            crop_seed=dataset.seed,
            buckets=limits,
            word_captions=words,
            num_strata=config.evaluation.num_strata,
            min_draws=config.evaluation.min_draws,
            seed=config.evaluation.seed,
        )
        if dataset.withdrawn is not None
        else None
    )
    pusher = ServingPusher(
        model=candidate,
        model_blessing=blessing,
        latents=latents,
        push_destination=serving_dir,
        canary=config.serving.canary,
        keep_versions=config.serving.keep_versions,
        checkpoint=config.serving.checkpoint or "",
        batch_size=config.serving.batch_size,
        publish_captions=config.serving.publish_captions,
        sign_key=config.serving.sign_key or "",
        sign_key_env=config.serving.sign_key_env or "",
        c2pa_certificate=config.serving.c2pa_certificate or "",
        c2pa_key_env=config.serving.c2pa_key_env or "",
        settings=recorded_settings(config),
        training_dataset=place,
    )
    done = (
        DatasetDone(change.outputs["change"], pusher.outputs["pushed_model"], only_on_change)
        if change
        else None
    )
    return Pipeline(
        pipeline_name=PIPELINE_NAME,
        pipeline_root=pipeline_root,
        components=[
            *([change] if change else []),
            example_gen,
            statistics_gen,
            schema_gen,
            *([former_statistics] if former_statistics else []),
            *([former_dataset] if former_dataset else []),
            validator,
            dataset_report,
            latent_gen,
            *of_class,
            *([starting] if starting else []),
            *([tuner] if tuner else []),
            trainer,
            *([baseline] if baseline else []),
            loss_scorer,
            evaluator,
            report,
            *([withdrawn] if withdrawn else []),
            pusher,
            *([done] if done else []),
        ],
        enable_cache=enable_cache,
        beam_pipeline_args=list(beam_pipeline_args),
        metadata_connection_config=(
            metadata.sqlite_metadata_connection_config(metadata_path) if metadata_path else None
        ),
    )


def _example_gen(
    dataset: DatasetConfig, place: Any, fingerprint: Any, words: WordCaptions | None = None
) -> CaptionExampleGen:
    """The step that reads a dataset; its place and fingerprint may be left open."""
    return CaptionExampleGen(
        dataset=place,
        dataset_fingerprint=fingerprint,
        dataset_config=dataset.config or "",
        dataset_split=dataset.split,
        eval_fraction=dataset.eval_fraction,
        seed=dataset.seed,
        image_column=dataset.image_column or "",
        caption_column=dataset.caption_column or "",
        max_pixels=dataset.max_pixels,
        max_aspect_ratio=dataset.max_aspect_ratio,
        max_rejected_fraction=dataset.max_rejected_fraction,
        dataset_form=dataset.form or "",
        caption=dataset.caption or "",
        captions_from=dataset.captions_from or "",
        caption_lines=dataset.caption_lines,
        near_duplicates=dataset.near_duplicates,
        caption_template=dataset.caption_template or "",
        word_captions=words,
        withdrawn=dataset.withdrawn or "",
    )


def _has_changed(change: DatasetChange) -> Predicate:
    found = change.outputs["change"].future()[0]
    return found.custom_property(CHANGED) == 1
