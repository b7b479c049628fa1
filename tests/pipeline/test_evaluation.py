"""TFX's stock Evaluator, run for real on small scores."""

from __future__ import annotations

import math

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_model_analysis as tfma
from tfx.components.evaluator.executor import Executor
from tfx.components.util import examples_utils
from tfx.dsl.components.common.resolver import RESOLVER_STRATEGY_CLASS
from tfx.dsl.input_resolution.strategies.latest_blessed_model_strategy import (
    LatestBlessedModelStrategy,
)
from tfx.proto import example_gen_pb2
from tfx.types import Channel, standard_artifacts
from tfx.utils import proto_utils

from components.tfrecords import write_shard
from pipeline.baseline import LatestBlessedBeforeCandidate
from pipeline.evaluation import baseline_node, eval_config, evaluator_node


def record(loss: float, loss_baseline: float, stratum: int) -> bytes:
    def number(value):
        return tf.train.Feature(float_list=tf.train.FloatList(value=[value]))

    bucket = f"{stratum}00-{stratum}99".encode()
    features = {
        "id": tf.train.Feature(bytes_list=tf.train.BytesList(value=[b"id"])),
        "timestep": tf.train.Feature(int64_list=tf.train.Int64List(value=[100 * stratum])),
        "timestep_bucket": tf.train.Feature(bytes_list=tf.train.BytesList(value=[bucket])),
        "loss": number(loss),
        "loss_baseline": number(loss_baseline),
        "loss_delta": number(loss - loss_baseline),
        "label": number(0.0),
    }
    return tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString()


@pytest.fixture
def evaluate(tmp_path):
    """Evaluates (loss, loss of the baseline) of strata 0 and 1; returns blessing and metrics."""

    def evaluate(losses, min_loss_improvement=0.0, baseline_model=False):
        folders = {name: tmp_path / name for name in ("scores/Split-eval", "blessing", "model")}
        for folder in folders.values():
            folder.mkdir(parents=True)
        write_shard(
            str(tmp_path / "scores" / "Split-eval" / "scores-00000-of-00001.gz"),
            [record(*pair, number % 2) for number, pair in enumerate(losses)],
            str(tmp_path),
        )
        scores, model, blessing, evaluation = (
            standard_artifacts.Examples(),
            standard_artifacts.Model(),
            standard_artifacts.ModelBlessing(),
            standard_artifacts.ModelEvaluation(),
        )
        scores.uri, scores.split_names = str(tmp_path / "scores"), '["eval"]'
        examples_utils.set_file_format(scores, "tfrecords_gzip")
        examples_utils.set_payload_format(
            scores, example_gen_pb2.PayloadFormat.Value("FORMAT_TF_EXAMPLE")
        )
        model.uri, model.id = str(tmp_path / "model"), 8
        blessing.uri, evaluation.uri = str(tmp_path / "blessing"), str(tmp_path / "evaluation")
        inputs = {"examples": [scores], "model": [model]}
        if baseline_model:
            blessed = standard_artifacts.Model()
            blessed.uri, blessed.id = str(tmp_path / "model"), 4
            inputs["baseline_model"] = [blessed]
        Executor().Do(
            inputs,
            {"blessing": [blessing], "evaluation": [evaluation]},
            {
                "eval_config": proto_utils.proto_to_json(eval_config(min_loss_improvement)),
                "example_splits": "null",
            },
        )
        return blessing, tfma.load_eval_result(evaluation.uri)

    return evaluate


BETTER = [(0.2, 0.4), (0.5, 0.6), (0.3, 0.2), (0.1, 0.3)]


def is_blessed(blessing) -> bool:
    assert blessing.get_int_custom_property("current_model_id") == 8
    return blessing.get_int_custom_property("blessed") == 1


@pytest.mark.parametrize("baseline_model", [False, True])
def test_a_better_model_is_blessed(evaluate, baseline_model):
    blessing, result = evaluate(BETTER, baseline_model=baseline_model)
    assert is_blessed(blessing)
    assert blessing.has_custom_property("baseline_model_id") == baseline_model
    metrics = result.get_metrics_for_all_slices()
    expected = {
        (): BETTER,
        (("timestep_bucket", "000-099"),): BETTER[0::2],
        (("timestep_bucket", "100-199"),): BETTER[1::2],
    }
    assert metrics.keys() == expected.keys()
    for key, pairs in expected.items():
        loss, loss_baseline = np.mean(pairs, axis=0)
        found = {name: value["doubleValue"] for name, value in metrics[key].items()}
        assert found == pytest.approx(
            {
                "example_count": len(pairs),
                "loss": loss,
                "loss_baseline": loss_baseline,
                "loss_delta": loss - loss_baseline,
            },
            rel=1e-6,
        )


@pytest.mark.parametrize(
    ("losses", "min_loss_improvement"),
    [
        ([(0.3, 0.3), (0.4, 0.4)], 0.0),  # the same
        ([(0.1, 0.4), (math.nan, 0.4)], -10.0),
        (BETTER, 0.11),  # better by 0.1
        ([], 0.0),
    ],
)
def test_any_other_model_is_not_blessed(evaluate, losses, min_loss_improvement):
    blessing, _ = evaluate(losses, min_loss_improvement, baseline_model=True)
    assert not is_blessed(blessing)


def test_the_mean_over_all_rows_decides(evaluate):
    # Worse in the first stratum.
    blessing, _ = evaluate([(0.3, 0.25), (0.2, 0.4)])
    assert is_blessed(blessing)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_an_impossible_improvement(value):
    with pytest.raises(ValueError, match="must be a finite number"):
        eval_config(value)


def test_the_nodes_are_wired():
    model = Channel(type=standard_artifacts.Model)
    local = baseline_node(model)
    assert local.exec_properties[RESOLVER_STRATEGY_CLASS] is LatestBlessedBeforeCandidate
    assert set(local.inputs) == {"candidate", "model", "model_blessing"}
    vertex = baseline_node(model, LatestBlessedModelStrategy)
    assert vertex.exec_properties[RESOLVER_STRATEGY_CLASS] is LatestBlessedModelStrategy
    assert set(vertex.inputs) == {"model", "model_blessing"}
    scores = Channel(type=standard_artifacts.Examples)
    evaluator = evaluator_node(scores, model, local.outputs["model"], eval_config(0.1))
    assert evaluator.inputs["examples"] is scores
    assert evaluator.inputs["model"] is model
    assert evaluator.inputs["baseline_model"] is local.outputs["model"]
    config = tfma.EvalConfig()
    proto_utils.json_to_proto(evaluator.exec_properties["eval_config"], config)
    assert config == eval_config(0.1)
