"""The node of the pipeline that has the model which training starts from."""

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


def starting_node(start: Start) -> BaseNode:
    """Finds the model that training starts from; its output `model` may be empty on Vertex.

    What the same ML Metadata knows already is that artifact, so that the lineage goes on in it.

    Args:
        start: What was found before the pipeline starts, or that it is to be looked up then.
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
