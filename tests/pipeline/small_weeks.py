"""A pipeline that goes on every week, with the real ingest, and no networks.

A model is the better the more pictures it, and those that it went on from, were trained on.
"""

import json
from pathlib import Path

from small_models import write_model
from small_pipeline import Publish
from tfx.dsl.component.experimental.annotations import InputArtifact, OutputArtifact
from tfx.dsl.component.experimental.decorators import component
from tfx.orchestration import metadata
from tfx.orchestration import pipeline as tfx_pipeline
from tfx.types import standard_artifacts

from components.caption_example_gen import CaptionExampleGen
from pipeline.baseline import MODEL
from pipeline.starting_node import starting_node
from storage import row_index

TRAINED_ON = "trained_on.json"


def pictures(examples, split):
    folder = str(Path(examples.uri, row_index.FOLDER_NAME))
    return {row.picture for row in row_index.read_rows(folder, split)}


def trained_on(model):
    """Pictures that a model, or one that it went on from, was trained on."""
    return set(json.loads(Path(model.uri, TRAINED_ON).read_text())) if model else set()


@component
def GoOn(  # noqa: N802
    examples: InputArtifact[standard_artifacts.Examples],
    model: OutputArtifact[standard_artifacts.Model],
    base_model: InputArtifact[standard_artifacts.Model] = None,
):
    known = pictures(examples, "train") | trained_on(base_model)
    write_model(Path(model.uri))
    Path(model.uri, TRAINED_ON).write_text(json.dumps(sorted(known)))


@component
def Compare(  # noqa: N802
    examples: InputArtifact[standard_artifacts.Examples],
    model: InputArtifact[standard_artifacts.Model],
    blessing: OutputArtifact[standard_artifacts.ModelBlessing],
    baseline_model: InputArtifact[standard_artifacts.Model] = None,
):
    known = trained_on(model)
    judges = pictures(examples, "eval")
    if not judges or judges & known:
        raise ValueError(f"{len(judges & known)} of {len(judges)} judges were trained on")
    better = len(known) > len(trained_on(baseline_model))
    blessing.set_int_custom_property("blessed", int(better))
    blessing.set_int_custom_property("current_model_id", model.id)
    Path(blessing.uri, "blessing").write_text(str(better))


def create_pipeline(config, *, dataset_fingerprint, start, serving_dir, **places):
    dataset = config.dataset
    examples = CaptionExampleGen(
        dataset.path, dataset_fingerprint, eval_fraction=dataset.eval_fraction
    )
    starting = None if start is None else starting_node(start)
    before = None if starting is None else starting.outputs[MODEL]
    given = {"examples": examples.outputs["examples"]}
    train = GoOn(**given, base_model=before)
    model = train.outputs["model"]
    judge = Compare(**given, model=model, baseline_model=before)
    publish = Publish(model=model, blessing=judge.outputs["blessing"], serving_dir=serving_dir)
    return tfx_pipeline.Pipeline(
        pipeline_name="weeks",
        pipeline_root=places["pipeline_root"],
        components=[examples, *([starting] if starting else []), train, judge, publish],
        metadata_connection_config=metadata.sqlite_metadata_connection_config(
            places["metadata_path"]
        ),
        enable_cache=True,
        beam_pipeline_args=places["beam_pipeline_args"],
    )
