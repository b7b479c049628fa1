"""How a model's baseline is found."""

from __future__ import annotations

from tfx import types
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


def test_another_export_of_the_candidates_training_is_no_baseline_of_it():
    def model(number: int, training: str) -> types.Artifact:
        made = standard_artifacts.Model()
        made.id = number
        if training:
            made.set_string_custom_property("training_id", training)
        return made

    def blessing(of: types.Artifact) -> types.Artifact:
        made = standard_artifacts.ModelBlessing()
        made.set_int_custom_property("blessed", 1)
        made.set_int_custom_property("current_model_id", of.id)
        return made

    def baselines(*trainings: str) -> list[int]:
        """Of the last of these models, all before it being blessed."""
        *models, candidate = (model(number, name) for number, name in enumerate(trainings, 1))
        inputs = {
            "candidate": [candidate],
            "model": [*models, candidate],
            "model_blessing": [blessing(one) for one in models],
        }
        found = LatestBlessedBeforeCandidate().resolve_artifacts(None, inputs)
        assert [b.get_int_custom_property("current_model_id") for b in found["model_blessing"]] == [
            m.id for m in found["model"]
        ]
        return [m.id for m in found["model"]]

    assert baselines("a", "b", "c") == [2]
    assert baselines("a", "b", "b") == [1]
    assert baselines("a", "a") == []
    # Of former versions' models nobody knows.
    assert baselines("", "") == [1]
