"""A pipeline of four quick components and a resolver, in the place of the real one."""

import logging
import os
import time
from pathlib import Path

from tfx.dsl.component.experimental.annotations import InputArtifact, OutputArtifact, Parameter
from tfx.dsl.component.experimental.decorators import component
from tfx.dsl.components.common import resolver
from tfx.orchestration import metadata
from tfx.orchestration import pipeline as tfx_pipeline
from tfx.types import channel, standard_artifacts

from pipeline import baseline
from pipeline.config.schema import BASE
from storage.user_errors import UserError
from trainer.training.interruption import StopRequest, TrainingInterruptedError

logger = logging.getLogger("components.small")

UNLUCKY_BATCH_SIZE = 13
SLOW_LEARNING_RATE = 0.25
FULL_DISK_LEARNING_RATE = 0.125
WRONG_LEARNING_RATE = 0.0625


@component
def Source(  # noqa: N802
    fingerprint: Parameter[str],
    code_version: Parameter[str],
    dataset: OutputArtifact[standard_artifacts.Examples],
):
    logger.info("reading %s...", fingerprint[:4])
    if code_version == str(SLOW_LEARNING_RATE):
        time.sleep(60)
    if code_version == str(FULL_DISK_LEARNING_RATE):
        Path("/dev/full").write_text("x")
    if code_version == str(WRONG_LEARNING_RATE):
        raise UserError("that rate is wrong: give another by --learning-rate")
    Path(dataset.uri, "dataset").write_text(fingerprint)


@component
def Train(  # noqa: N802
    dataset: InputArtifact[standard_artifacts.Examples],
    steps: Parameter[int],
    batch_size: Parameter[int],
    model: OutputArtifact[standard_artifacts.Model],
):
    if batch_size == UNLUCKY_BATCH_SIZE:
        raise ValueError("thirteen pictures a step bring bad luck")
    text = Path(dataset.uri, "dataset").read_text()
    os.write(2, b"native noise\n")
    logging.getLogger("somelibrary").warning("library noise")
    logger.warning("a warning of ours")
    with StopRequest() as stop:
        for step in range(steps):
            if stop.made:
                raise TrainingInterruptedError(f"saved step {step}", stop.signal)
            Path(model.uri, f"{step:04}").write_text(text)
            time.sleep(0.01)


@component
def Judge(  # noqa: N802
    model: InputArtifact[standard_artifacts.Model],
    blessing: OutputArtifact[standard_artifacts.ModelBlessing],
    baseline: InputArtifact[standard_artifacts.Model] = None,
):
    Path(blessing.uri, "baseline").write_text(str(baseline.id if baseline else None))
    blessing.set_int_custom_property("blessed", 1)
    blessing.set_int_custom_property("current_model_id", model.id)


@component
def Publish(  # noqa: N802
    model: InputArtifact[standard_artifacts.Model],
    blessing: InputArtifact[standard_artifacts.ModelBlessing],
    serving_dir: Parameter[str],
    pushed_model: OutputArtifact[standard_artifacts.PushedModel],
):
    """Pushes as the real component does: a release file last, custom properties for its name."""
    if not blessing.get_int_custom_property("blessed"):
        pushed_model.set_int_custom_property("pushed", 0)
        return
    version = str(time.time_ns())
    for name in ("text_encoder", "diffusion_model", "decoder"):
        folder = Path(serving_dir, name, version)
        folder.mkdir(parents=True)
        (folder / "saved_model.pb").write_bytes(b"whole")
    release = Path(serving_dir, "releases", f"{version}.json")
    release.parent.mkdir(exist_ok=True)
    release.write_text("{}")
    pushed_model.set_int_custom_property("pushed", 1)
    pushed_model.set_string_custom_property("pushed_destination", serving_dir)
    pushed_model.set_string_custom_property("pushed_version", version)


def create_pipeline(
    config,
    *,
    pipeline_root,
    metadata_path,
    serving_dir,
    checkpoint_dir,
    latents_index,
    dataset_fingerprint,
    base_model,
    start,
    known_by,
    beam_pipeline_args,
):
    if config.model.start_from != BASE:
        import small_weeks

        return small_weeks.create_pipeline(
            config,
            pipeline_root=pipeline_root,
            metadata_path=metadata_path,
            serving_dir=serving_dir,
            dataset_fingerprint=dataset_fingerprint,
            start=start,
            beam_pipeline_args=beam_pipeline_args,
        )
    # A setting that trains nothing here stands for the code of the first step.
    source = Source(
        fingerprint=dataset_fingerprint, code_version=str(config.training.learning_rate)
    )
    train = Train(
        dataset=source.outputs["dataset"],
        steps=config.training.steps,
        batch_size=config.training.batch_size,
    )
    latest = resolver.Resolver(
        strategy_class=baseline.LatestBlessedBeforeCandidate,
        candidate=train.outputs["model"],
        model=channel.Channel(type=standard_artifacts.Model),
        model_blessing=channel.Channel(type=standard_artifacts.ModelBlessing),
    ).with_id("Latest")
    judge = Judge(model=train.outputs["model"], baseline=latest.outputs["model"])
    publish = Publish(
        model=train.outputs["model"], blessing=judge.outputs["blessing"], serving_dir=serving_dir
    )
    return tfx_pipeline.Pipeline(
        pipeline_name="small",
        pipeline_root=pipeline_root,
        components=[source, train, latest, judge, publish],
        metadata_connection_config=metadata.sqlite_metadata_connection_config(metadata_path),
        enable_cache=True,
        beam_pipeline_args=beam_pipeline_args,
    )
