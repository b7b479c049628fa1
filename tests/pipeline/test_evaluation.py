"""How a model's baseline is found."""

from __future__ import annotations

from tfx.dsl.components.common.resolver import RESOLVER_STRATEGY_CLASS
from tfx.dsl.input_resolution.strategies.latest_blessed_model_strategy import (
    LatestBlessedModelStrategy,
)
from tfx.types import Channel, standard_artifacts

from pipeline.baseline import LatestBlessedBeforeCandidate
from pipeline.evaluation import baseline_node


def test_the_baselines_node_is_wired():
    model = Channel(type=standard_artifacts.Model)
    local = baseline_node(model)
    assert local.exec_properties[RESOLVER_STRATEGY_CLASS] is LatestBlessedBeforeCandidate
    assert set(local.inputs) == {"candidate", "model", "model_blessing"}
    vertex = baseline_node(model, LatestBlessedModelStrategy)
    assert vertex.exec_properties[RESOLVER_STRATEGY_CLASS] is LatestBlessedModelStrategy
    assert set(vertex.inputs) == {"model", "model_blessing"}
