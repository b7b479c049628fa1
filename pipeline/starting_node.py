"""Pipeline nodes for the model that training starts from, and for its dataset."""

from __future__ import annotations

from tfx.dsl.components.base.base_node import BaseNode
from tfx.dsl.components.common.importer import Importer
from tfx.dsl.components.common.resolver import Resolver
from tfx.dsl.input_resolution.strategies.latest_blessed_model_strategy import (
    LatestBlessedModelStrategy,
)
from tfx.types import Channel, standard_artifacts

from pipeline.baseline import BLESSING, MODEL
from pipeline.starting import Start

NODE = "StartingModel"
STATISTICS_NODE, DATASET_NODE = "StartingStatistics", "StartingDataset"


def starting_node(start: Start) -> BaseNode:
    """Finds the model that training starts from; its output `model` may be empty on Vertex.

    If the same ML Metadata already knows the model, its artifact is used, so that the lineage
    continues.

    Args:
        start: What was found before the pipeline starts, or that the pipeline is to look it up.
    """
    if start.uri:
        return Importer(
            source_uri=start.uri,
            artifact_type=standard_artifacts.Model,
            custom_properties=dict(start.properties) or None,
            output_key=MODEL,
        ).with_id(NODE)
    return Resolver(
        LatestBlessedModelStrategy,
        None,
        **{
            MODEL: Channel(type=standard_artifacts.Model),
            BLESSING: Channel(type=standard_artifacts.ModelBlessing),
        },
    ).with_id(NODE)


def starting_statistics_node(start: Start) -> BaseNode | None:
    """Imports the statistics of the dataset that the model was trained on; `None` if unknown.

    Args:
        start: What was found before the pipeline starts.
    """
    if not start.statistics:
        return None
    return Importer(
        source_uri=start.statistics, artifact_type=standard_artifacts.ExampleStatistics
    ).with_id(STATISTICS_NODE)


def starting_dataset_node(start: Start) -> BaseNode | None:
    """Imports the dataset that the model was trained on; `None` if it no longer exists.

    Args:
        start: What was found before the pipeline starts.
    """
    if not start.examples:
        return None
    return Importer(source_uri=start.examples, artifact_type=standard_artifacts.Examples).with_id(
        DATASET_NODE
    )
