"""TFX's Evaluator with our metrics, run for real on small scores."""

from __future__ import annotations

import dataclasses
import json
import math
import re

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_model_analysis as tfma
from scipy import stats
from tfx.components.util import examples_utils
from tfx.dsl.components.base.base_beam_executor import BaseBeamExecutor
from tfx.proto import example_gen_pb2
from tfx.types import Channel, standard_artifacts
from tfx.utils import proto_utils

from components.code_version import imported_modules
from components.evaluator import Evaluator, executor
from components.evaluator.metrics import cluster_mean, frechet_distance
from components.evaluator.results import ALL, Metric, of_feature, read_metrics
from components.tfrecords import write_shard
from pipeline.config import load_config
from pipeline.evaluation import eval_config, splits

DEFAULTS = dataclasses.replace(
    load_config().evaluation, num_samples=0, num_training_pictures=0, num_training_samples=0
)
STRATA = 4


def remembering_record(group, **values) -> bytes:
    """A row of the split `remembering`."""
    features = {name: [float(value)] for name, value in values.items()} | {"label": [0.0]}
    made = {
        name: tf.train.Feature(float_list=tf.train.FloatList(value=value))
        for name, value in features.items()
    }
    made["group"] = tf.train.Feature(int64_list=tf.train.Int64List(value=[group]))
    return tf.train.Example(features=tf.train.Features(feature=made)).SerializeToString()


def record(loss, loss_baseline, stratum, group, samples=None) -> bytes:
    def number(*values):
        return tf.train.Feature(float_list=tf.train.FloatList(value=values))

    def integer(value):
        return tf.train.Feature(int64_list=tf.train.Int64List(value=[value]))

    def text(value):
        return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value.encode()]))

    features = {
        "id": text(f"id{group}"),
        "timestep": integer(100 * stratum),
        "timestep_bucket": text(f"{stratum}00-{stratum}99"),
        "caption_bucket": text("01-10 tokens" if group % 3 else "11-20 tokens"),
        "group": integer(group),
        "loss": number(loss),
        "loss_baseline": number(loss_baseline),
        "loss_delta": number(loss - loss_baseline),
        "label": number(0.0),
        **{name: number(*values) for name, values in (samples or {}).items()},
    }
    return tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString()


@pytest.fixture(scope="module")
def evaluate(tmp_path_factory):
    """Evaluates losses [examples, strata] of candidate and baseline; returns both artifacts."""

    def evaluate(
        losses,
        baseline,
        settings=DEFAULTS,
        *,
        samples=None,
        remembering=(),
        prior=None,
        of_class=(),
        shards=1,
        beam=(),
        problem="",
    ):
        folder = tmp_path_factory.mktemp("run")
        for name in ("scores/Split-eval", "blessing", "model"):
            (folder / name).mkdir(parents=True)
        losses, baseline = (np.asarray(x, np.float32).astype(float) for x in (losses, baseline))
        records = [
            record(losses[e, s], baseline[e, s], s, e, samples and samples.get(e))
            for e in range(len(losses))
            for s in range(STRATA)
        ]
        for shard in range(shards):
            path = folder / "scores" / "Split-eval" / f"scores-{shard:05d}-of-{shards:05d}.gz"
            write_shard(str(path), records[shard::shards], str(folder))
        scores, model, blessing, evaluation = (
            standard_artifacts.Examples(),
            standard_artifacts.Model(),
            standard_artifacts.ModelBlessing(),
            standard_artifacts.ModelEvaluation(),
        )
        scores.uri = str(folder / "scores")
        scores.split_names = json.dumps(splits(settings, prior))
        if of_class:
            (folder / "scores" / "Split-class").mkdir()
            path = folder / "scores" / "Split-class" / "scores-00000-of-00001.gz"
            write_shard(str(path), of_class, str(folder))
            scores.set_int_custom_property("num_class_pictures", len(of_class))
            scores.set_string_custom_property("class_caption", "a photo of a dog")
        if remembering:
            (folder / "scores" / "Split-remembering").mkdir()
            path = folder / "scores" / "Split-remembering" / "scores-00000-of-00001.gz"
            write_shard(str(path), remembering, str(folder))
            scores.set_int_custom_property("num_training_pictures", 8)
            scores.set_int_custom_property("num_training_samples", 16)
        examples_utils.set_file_format(scores, "tfrecords_gzip")
        examples_utils.set_payload_format(
            scores, example_gen_pb2.PayloadFormat.Value("FORMAT_TF_EXAMPLE")
        )
        scores.set_string_custom_property("baseline", "model 4")
        scores.set_string_custom_property("baseline_problem", problem)
        for name, values in (("candidate", losses), ("baseline", baseline)):
            bad = int(np.sum(~np.isfinite(values)))
            scores.set_int_custom_property(f"num_{name}_not_finite", bad)
        scores.set_int_custom_property("num_rows", len(records))
        scores.set_int_custom_property("num_pictures", len(losses))
        model.uri, model.id = str(folder / "model"), 8
        blessing.uri, evaluation.uri = str(folder / "blessing"), str(folder / "evaluation")
        blessed = standard_artifacts.Model()
        blessed.uri, blessed.id = str(folder / "model"), 4
        context = BaseBeamExecutor.Context(beam_pipeline_args=list(beam), tmp_dir=str(folder))
        executor.Executor(context).Do(
            {"examples": [scores], "model": [model], "baseline_model": [blessed]},
            {"blessing": [blessing], "evaluation": [evaluation]},
            {
                "eval_config": proto_utils.proto_to_json(eval_config(settings, prior)),
                "example_splits": json.dumps(splits(settings, prior)),
                "code_version": "1",
            },
        )
        assert blessing.get_int_custom_property("current_model_id") == 8
        assert blessing.get_int_custom_property("baseline_model_id") == 4
        return blessing, evaluation

    return evaluate


@pytest.fixture(scope="module")
def better(evaluate):
    """Of a model whose losses are a tenth lower: losses, baseline's losses, both artifacts."""
    baseline = baseline_losses()
    losses = changed(baseline, 0.9)
    return losses, baseline, *evaluate(losses, baseline)


def is_blessed(blessing) -> bool:
    return blessing.get_int_custom_property("blessed") == 1


def verdict(blessing) -> str:
    return blessing.get_string_custom_property("verdict")


def reasons(blessing) -> list[str]:
    return blessing.get_string_custom_property("reasons").splitlines()


def baseline_losses(examples=30) -> np.ndarray:
    """Higher at low timesteps, as they are; and some examples are harder than others."""
    rng = np.random.default_rng(0)
    hard = rng.uniform(0.7, 1.3, size=(examples, 1))
    noise = rng.uniform(0.9, 1.1, size=(examples, STRATA))
    return np.array([0.8, 0.3, 0.1, 0.02]) * hard * noise


def changed(baseline, factor, spread=0.02) -> np.ndarray:
    rng = np.random.default_rng(1)
    return baseline * (factor + rng.normal(0, spread, baseline.shape))


def test_metrics_and_intervals_are_those_of_numpy(better):
    losses, baseline, blessing, evaluation = better
    assert is_blessed(blessing)
    assert (verdict(blessing), reasons(blessing)) == ("blessed", [])
    assert blessing.get_int_custom_property("num_pictures") == 30
    found = read_metrics(evaluation.uri)
    lengths = np.arange(30) % 3 > 0
    rows = {
        ALL: (slice(None), slice(None)),
        **{(("timestep_bucket", f"{s}00-{s}99"),): (slice(None), [s]) for s in range(STRATA)},
        (("caption_bucket", "01-10 tokens"),): (lengths, slice(None)),
        (("caption_bucket", "11-20 tokens"),): (~lengths, slice(None)),
    }
    assert found.keys() == rows.keys()
    for key, (examples, strata) in rows.items():
        for name, values in (
            ("loss", losses),
            ("loss_baseline", baseline),
            ("loss_delta", losses - baseline),
        ):
            # The examples are what is independent.
            means = values[examples][:, strata].mean(axis=1)
            half = stats.t.ppf(0.975, len(means) - 1) * stats.sem(means)
            metric = found[key][name]
            assert metric.value == pytest.approx(means.mean(), abs=1e-7)
            assert metric.lower == pytest.approx(means.mean() - half, abs=1e-7)
            assert metric.upper == pytest.approx(means.mean() + half, abs=1e-7)
        upper = found[key]["loss_delta"].upper
        assert found[key]["loss_delta_upper"].value == pytest.approx(upper)
        increase = upper / found[key]["loss_baseline"].value
        assert found[key]["loss_increase_upper"].value == pytest.approx(increase)
        assert found[key]["example_count"].value == baseline[examples][:, strata].size
    assert list(of_feature(found, "caption_bucket")) == ["01-10 tokens", "11-20 tokens"]
    for artifact in (blessing, evaluation):
        for name in ("loss", "loss_baseline", "loss_delta", "loss_increase_upper"):
            expected = found[ALL][name].value
            assert artifact.get_float_custom_property(name) == pytest.approx(expected)
        assert artifact.get_float_custom_property("loss_lower") == found[ALL]["loss"].lower


def test_tfmas_own_tools_read_the_output(better):
    _, _, _, evaluation = better
    result = tfma.load_eval_result(evaluation.uri)
    loss = read_metrics(evaluation.uri)[ALL]["loss"]
    assert result.get_metrics_for_all_slices()[()]["loss"]["boundedValue"] == {
        "value": loss.value,
        "lowerBound": loss.lower,
        "upperBound": loss.upper,
    }
    assert tfma.view.render_slicing_metrics(result, slicing_column="timestep_bucket") is not None


def test_workers_change_nothing(evaluate, better):
    losses, baseline, _, one = better
    workers = (
        "--direct_running_mode=multi_threading",
        "--direct_num_workers=2",
        # As `beam_pipeline_args` of the local runner says: or TFX packs its code.
        "--sdk_container_image=none",
    )
    _, two = evaluate(losses, baseline, shards=3, beam=workers)
    expected, found = read_metrics(one.uri), read_metrics(two.uri)
    assert found.keys() == expected.keys()
    for key, metrics in expected.items():
        for name, metric in metrics.items():
            assert dataclasses.astuple(found[key][name]) == pytest.approx(
                dataclasses.astuple(metric), rel=1e-12, nan_ok=True
            )


@pytest.mark.parametrize(
    ("settings", "factor", "spread", "expected"),
    [
        (
            {},
            1.0,
            0.0,
            [r"the held-out loss equals that of model 4, 0\.31\d\d: the model is no better"],
        ),
        (
            {"min_loss_improvement": 0.05},
            0.9,
            0.02,
            [
                r"the held-out loss falls by 10\.\d% \(95 % interval -1\d\.\d% to -\d\.\d%\) "
                r"against model 4 on 30 held-out pictures, which is 0\.03\d+; it has to fall by "
                r"more than 0\.05 \(evaluation\.min_loss_improvement\)"
            ],
        ),
        (
            {"when_unsure": "refuse"},
            0.999,
            0.1,
            [
                r"it is unclear from 30 held-out pictures whether the model is better: the loss "
                r"falls by 0\.1% \(95 % interval -2\.\d% to \+2\.\d%\) against model 4"
            ],
        ),
        (
            {},
            1.2,
            0.02,
            [
                r"the held-out loss rises by 20\.\d% .* against model 4 on 30 held-out pictures",
                *[
                    r"at timesteps \d00-\d99 the loss is higher than the loss of model 4 by "
                    r"[12]\d\.\d% \(95 % interval \+1\d\.\d% to \+2\d\.\d%\); at most "
                    r"7\.5% is allowed \(evaluation\.max_stratum_regression\)"
                ]
                * STRATA,
            ],
        ),
    ],
)
def test_a_model_that_is_not_surely_better_is_not_blessed(
    evaluate, caplog, settings, factor, spread, expected
):
    baseline = baseline_losses()
    blessing, _ = evaluate(
        changed(baseline, factor, spread), baseline, dataclasses.replace(DEFAULTS, **settings)
    )
    assert not is_blessed(blessing)
    unsure = "when_unsure" in settings
    assert verdict(blessing) == ("unsure" if unsure else "refused")
    first, *others = reasons(blessing)
    for reason, wanted in zip([first, *others], expected, strict=True):
        assert re.fullmatch(wanted, reason)
    # The worst part of the noise schedule first.
    shares = [float(re.search(r"to \+([\d.]+)%", reason).group(1)) for reason in others]
    assert shares == sorted(shares, reverse=True)
    # However many there are, one line.
    [said] = [r.getMessage() for r in caplog.records if r.name == executor.__name__]
    more = f"; {len(others)} more on the evaluation's page." if others else "."
    asked = " Not blessed (evaluation.when_unsure)."
    assert said == (f"Unsure: {first}.{asked}" if unsure else f"Not blessed: {first}{more}")


def test_a_regression_may_be_allowed(evaluate, caplog):
    baseline = baseline_losses()
    settings = dataclasses.replace(
        DEFAULTS,
        min_loss_improvement=-0.02,
        max_loss_regression=0.02,
        max_stratum_regression=0.1,
    )
    with caplog.at_level("INFO"):
        blessing, _ = evaluate(changed(baseline, 1.03), baseline, settings)
    assert is_blessed(blessing)
    assert "The model is blessed." in caplog.text


def test_one_stratum_that_gets_worse_is_enough(evaluate):
    baseline = baseline_losses()
    losses = changed(baseline, 0.8)
    losses[:, 3] = baseline[:, 3] * 1.2
    blessing, evaluation = evaluate(losses, baseline)
    assert read_metrics(evaluation.uri)[ALL]["loss_delta_upper"].value < -0.02
    assert not is_blessed(blessing)
    [reason] = reasons(blessing)
    assert reason.startswith(
        "at timesteps 300-399 the loss is higher than the loss of model 4 by 20."
    )
    settings = dataclasses.replace(DEFAULTS, max_stratum_regression=0.3)
    assert is_blessed(evaluate(losses, baseline, settings)[0])


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_losses_that_are_no_numbers_are_not_blessed(evaluate, value):
    baseline = baseline_losses()
    losses = changed(baseline, 0.8)
    losses[3, 1] = value
    blessing, _ = evaluate(losses, baseline)
    assert not is_blessed(blessing)
    assert reasons(blessing) == ["1 of 120 held-out losses are not finite numbers"]
    assert not blessing.has_custom_property("loss")
    assert blessing.get_float_custom_property("loss_baseline") > 0


def test_a_baseline_that_is_no_number_is_no_reason_to_bless(evaluate):
    baseline = baseline_losses()
    losses = changed(baseline, 0.8)
    baseline[0, 0] = math.inf
    blessing, _ = evaluate(losses, baseline)
    assert not is_blessed(blessing)
    assert reasons(blessing) == ["1 of 120 losses of the baseline are not finite"]


def test_a_baseline_that_cannot_be_compared(evaluate):
    losses = baseline_losses()
    problem = "the latest blessed model (4) is of preset 'tiny' at 128 pixels"
    blessing, evaluation = evaluate(losses, np.full_like(losses, math.nan), problem=problem)
    assert not is_blessed(blessing)
    assert reasons(blessing) == [problem]
    assert evaluation.get_float_custom_property("loss") == pytest.approx(losses.mean())


def test_an_empty_split(evaluate):
    blessing, evaluation = evaluate(np.empty((0, STRATA)), np.empty((0, STRATA)))
    assert not is_blessed(blessing)
    assert reasons(blessing) == [
        "the eval split is empty, so there is nothing to judge the model by"
    ]
    assert read_metrics(evaluation.uri) == {}
    assert tfma.load_eval_result(evaluation.uri).slicing_metrics == []


def test_one_picture_is_pushed_as_unsure(evaluate, caplog):
    blessing, evaluation = evaluate([[0.1] * STRATA], [[0.2] * STRATA])
    assert is_blessed(blessing)
    assert verdict(blessing) == "unsure"
    [reason] = reasons(blessing)
    assert reason == (
        "it is unclear from 1 held-out picture whether the model is better: the loss falls by "
        "50.0% (one picture has no interval) against model 4"
    )
    assert f"Unsure: {reason}. The model is blessed anyway (evaluation.when_unsure)." in caplog.text
    for name in ("surely_lower", "loss_increase_shown"):
        assert not evaluation.has_custom_property(name)


def test_no_interval_holds_what_cannot_be(evaluate):
    # Of two pictures, an interval is so wide that it would begin below zero.
    baseline = np.array([[0.2] * STRATA, [0.4] * STRATA])
    _, evaluation = evaluate([[0.1] * STRATA, [0.05] * STRATA], baseline)
    found = read_metrics(evaluation.uri)[ALL]
    assert (found["loss"].lower, found["loss_baseline"].lower) == (0, 0)
    assert found["loss"].upper == pytest.approx(0.075 + 0.025 * stats.t.ppf(0.975, 1))
    assert found["loss_delta"].lower == pytest.approx(-0.3)
    assert evaluation.get_float_custom_property("loss_lower") == 0


def test_samples_are_measured(evaluate):
    rng = np.random.default_rng(2)
    baseline = baseline_losses()
    features = {
        name: rng.normal(shift, scale, (20, 3)).astype(np.float32).astype(float)
        for name, shift, scale in (
            ("features_held_out", 0, 1),
            ("features_candidate", 0.5, 1),
            ("features_baseline", 2, 3),
        )
    }
    samples = {e: {name: list(values[e]) for name, values in features.items()} for e in range(20)}
    for example in range(10):
        samples[example]["colour_agreement"] = [float(example < 8)]
        samples[example]["colour_agreement_baseline"] = [float(example < 1)]
    settings = dataclasses.replace(DEFAULTS, num_samples=20, measures=("colour_agreement",))
    blessing, evaluation = evaluate(changed(baseline, 0.9), baseline, settings, samples=samples)
    assert is_blessed(blessing)
    found = read_metrics(evaluation.uri)[ALL]
    assert found["colour_agreement"].value == pytest.approx(0.8)
    assert found["colour_agreement_baseline"].value == pytest.approx(0.1)
    half = stats.t.ppf(0.975, 9) * stats.sem([1.0] * 8 + [0.0] * 2)
    assert found["colour_agreement"].lower == pytest.approx(0.8 - half)
    # A fraction is at most one.
    assert 0.8 + half > 1
    assert found["colour_agreement"].upper == 1
    assert evaluation.get_float_custom_property("colour_agreement") == pytest.approx(0.8)
    for name in ("candidate", "baseline"):
        values, reference = features[f"features_{name}"], features["features_held_out"]
        expected = frechet_distance(
            values.mean(0), np.cov(values.T, ddof=0), reference.mean(0), np.cov(reference.T, ddof=0)
        )
        metric = "feature_distance" if name == "candidate" else "feature_distance_baseline"
        assert found[metric].value == pytest.approx(expected, rel=1e-6)


def test_captions_that_name_no_colour_leave_no_number(evaluate):
    baseline = baseline_losses()
    settings = dataclasses.replace(DEFAULTS, num_samples=20, measures=("colour_agreement",))
    blessing, _ = evaluate(changed(baseline, 0.9), baseline, settings)
    assert is_blessed(blessing)
    assert not blessing.has_custom_property("colour_agreement")


def remembering_records(factor: float, copies: int) -> list[bytes]:
    """Of a model whose loss on 8 training pictures is `factor` of what it is on held-out ones."""
    baseline = baseline_losses(8)
    rows = [
        remembering_record(
            900 + picture,
            train_loss=factor * 0.9 * value,
            train_loss_baseline=value,
            train_loss_delta=(factor * 0.9 - 1) * value,
        )
        for picture, values in enumerate(baseline)
        for value in values
    ]
    for index in range(16):
        rows.append(remembering_record(index, nearness=0.2 if index < copies else 0.9))
        rows.append(remembering_record(index, train_text_part=0.2 + 0.001 * index))
    for index in range(50):
        rows.append(remembering_record(100 + index, nearness_held_out=0.5 + 0.01 * index))
        rows.append(remembering_record(100 + index, text_part=0.1 + 0.001 * index))
    return rows


REMEMBERING = dataclasses.replace(
    DEFAULTS,
    num_training_pictures=8,
    num_training_samples=16,
    max_memorization_gap=0.3,
    max_copies=0.1,
)


def test_a_model_that_remembers_is_refused_and_says_why(evaluate):
    baseline = baseline_losses()
    losses = baseline * 0.9
    remembering = remembering_records(0.5, copies=4)
    blessing, evaluation = evaluate(losses, baseline, REMEMBERING, remembering=remembering)
    assert not is_blessed(blessing)
    assert verdict(blessing) == "refused"
    found = read_metrics(evaluation.uri)
    total = found[ALL]
    # The rows of training pictures are nobody's held-out rows.
    assert total["example_count"].value == losses.size
    assert {key for key in found if key} == {
        *((("timestep_bucket", f"{s}00-{s}99"),) for s in range(STRATA)),
        *((("caption_bucket", name),) for name in ("01-10 tokens", "11-20 tokens")),
    }
    train = 0.45 * baseline_losses(8)
    assert total["train_loss"].value == pytest.approx(train.mean())
    gap = 1 - train.mean() / losses.mean()
    assert total["memorization_gap"].value == pytest.approx(gap)
    base = 1 - baseline_losses(8).mean() / baseline.mean()
    assert total["memorization_gap_baseline"].value == pytest.approx(base)
    added = ((losses - baseline).mean() + 0.55 * baseline_losses(8).mean()) / losses.mean()
    assert total["memorization_gap_added"].value == pytest.approx(added)
    one, other = (values.mean(axis=1) for values in (losses, train))
    error = math.sqrt(stats.sem(one) ** 2 + stats.sem(other) ** 2) / losses.mean()
    freedom = math.floor(stats.ttest_ind(one, other, equal_var=False).df)
    lower = gap - stats.t.ppf(0.975, freedom) * error
    assert total["memorization_gap"].lower == pytest.approx(lower)
    shown = gap - stats.t.ppf(0.95, freedom) * error
    assert total["memorization_gap_shown"].value == pytest.approx(shown)
    assert total["text_part_excess"].value == pytest.approx(0.2075 / 0.1245 - 1)
    assert (total["copies"].value, total["copies_shown"].value) == (0.25, 0.25)
    gap_reason, copies_reason = reasons(blessing)
    assert re.fullmatch(
        r"the model remembers what it was trained on: its loss on 8 training pictures is "
        rf"{gap:.1%} \(95 % interval \+\d\d\.\d% to \+\d\d\.\d%\) below its held-out loss; at "
        r"most 30\.0% is allowed \(evaluation\.max_memorization_gap\)",
        gap_reason,
    )
    assert copies_reason == (
        "4 of 16 pictures drawn for captions of training pictures are nearer to a training picture "
        "than the nearest hundredth of the held-out pictures, which chance does not explain; at "
        "most 10.0% are allowed (evaluation.max_copies)"
    )
    assert blessing.get_float_custom_property("memorization_gap") == pytest.approx(gap)
    assert blessing.get_float_custom_property("copies") == 0.25
    assert not blessing.has_custom_property("copies_shown")


def test_a_model_that_does_not_remember_is_blessed(evaluate):
    """Three of sixteen are more than a tenth, but no more than chance explains."""
    baseline = baseline_losses()
    remembering = remembering_records(1.0, copies=3)
    blessing, evaluation = evaluate(baseline * 0.9, baseline, REMEMBERING, remembering=remembering)
    assert (is_blessed(blessing), reasons(blessing)) == (True, [])
    total = read_metrics(evaluation.uri)[ALL]
    assert (total["copies"].value, total["copies_shown"].value) == (3 / 16, 0.0)


def test_what_nobody_asks_for_refuses_nothing():
    def limits(**given: float | None) -> dict[str, float]:
        config = eval_config(dataclasses.replace(REMEMBERING, **given))
        return {
            json.loads(metric.config)["name"]: threshold.threshold.value_threshold.upper_bound.value
            for spec in config.metrics_specs
            for metric in spec.metrics
            for threshold in metric.per_slice_thresholds
            if "shown" in json.loads(metric.config)["name"]
        }

    stratum = {"loss_increase_shown": 0.075}
    asked = {"memorization_gap_shown": 0.3, "copies_shown": 0.1}
    assert limits() == pytest.approx(stratum | asked)
    assert limits(max_memorization_gap=None, max_copies=None) == pytest.approx(stratum)


CLASS = dataclasses.replace(load_config().prior, caption="a photo of a dog", num_compared=8)


def test_a_model_that_has_forgotten_a_class_is_refused_and_says_why(evaluate):
    baseline, distances = baseline_losses(), np.linspace(0.6, 1.0, 8)
    blessing, evaluation = evaluate(
        baseline * 0.9,
        baseline,
        prior=dataclasses.replace(CLASS, max_distance=0.5),
        of_class=[remembering_record(g, class_distance=d) for g, d in enumerate(distances)],
    )
    total = read_metrics(evaluation.uri)[ALL]
    error, mean = stats.sem(distances), distances.mean()
    assert total["example_count"].value == baseline.size
    assert total["class_distance"].value == pytest.approx(mean)
    lower, upper = total["class_distance"].lower, total["class_distance"].upper
    assert lower == pytest.approx(mean - stats.t.ppf(0.975, 7) * error)
    # What is surely so counts.
    shown = mean - stats.t.ppf(0.95, 7) * error
    assert total["class_distance_shown"].value == pytest.approx(shown)
    assert blessing.get_float_custom_property("class_distance") == pytest.approx(mean)
    assert not blessing.has_custom_property("class_distance_shown")
    assert (is_blessed(blessing), verdict(blessing)) == (False, "refused")
    assert reasons(blessing) == [
        "the model does not draw 'a photo of a dog' as the base weights do: 8 pictures from the "
        f"same noise have moved by 0.80 (95 % interval {lower:.2f} to {upper:.2f}) of the usual "
        "distance between two of them; at most 0.5 is allowed (prior.max_distance)"
    ]


def test_a_class_that_nobody_can_tell_of_is_said_to_be_so():
    scores = standard_artifacts.Examples()
    scores.set_string_custom_property("class_caption", "a dog")
    said = executor._class_moved({"class_distance": Metric(math.nan)}, 0.5, scores)
    assert said == (
        "it is unknown whether the model still draws 'a dog' as before: its pictures have "
        "no finite distance (prior.max_distance)"
    )


def test_without_a_class_the_configuration_is_what_it_was():
    assert eval_config(DEFAULTS, load_config().prior) == eval_config(DEFAULTS)
    assert splits(DEFAULTS, load_config().prior) == splits(DEFAULTS)
    assert splits(DEFAULTS, dataclasses.replace(CLASS, num_compared=0)) == splits(DEFAULTS)
    assert splits(DEFAULTS, CLASS) == [*splits(DEFAULTS), "class"]
    [shown] = [
        metric
        for metric in eval_config(DEFAULTS, CLASS).metrics_specs[0].metrics
        if "class_distance_shown" in metric.config
    ]
    # Nobody asked for a limit.
    assert not shown.per_slice_thresholds


def test_the_interval_holds_with_several_captions_of_a_picture():
    """Of many drawn sets of pictures, the true mean is in 95 % of the intervals."""
    rng = np.random.default_rng(3)
    inside = 0
    for _ in range(600):
        pictures = rng.normal(0.3, 1.0, 25)
        sums = {}
        for picture, value in enumerate(pictures):
            rows = value + rng.normal(0, 0.1, rng.integers(1, 6))
            sums[picture] = np.array([len(rows), rows.sum()])
        mean = cluster_mean(sums)
        half = stats.t.ppf(0.975, mean.sample_degrees_of_freedom) * mean.sample_standard_deviation
        inside += abs(mean.unsampled_value - 0.3) < half
    assert 0.91 < inside / 600 < 0.98


def test_the_distance_of_normal_distributions():
    # In one dimension it is (m - n)^2 + (s - t)^2.
    one = frechet_distance(np.array([1.0]), np.array([[4.0]]), np.array([3.0]), np.array([[9.0]]))
    assert one == pytest.approx(4 + 1)
    rng = np.random.default_rng(0)
    square = np.cov(rng.normal(size=(5, 50)))
    assert frechet_distance(np.ones(5), square, np.ones(5), square) == pytest.approx(0, abs=1e-9)
    bad = frechet_distance(np.full(5, math.nan), square, np.ones(5), square)
    assert math.isnan(bad)


def test_the_component_makes_its_spec():
    model = Channel(type=standard_artifacts.Model)
    scores = Channel(type=standard_artifacts.Examples)
    evaluator = Evaluator(
        examples=scores, model=model, baseline_model=model, eval_config=eval_config(DEFAULTS)
    )
    assert evaluator.id == "Evaluator"
    assert evaluator.inputs["examples"] is scores
    assert evaluator.outputs["blessing"].type is standard_artifacts.ModelBlessing
    config = tfma.EvalConfig()
    proto_utils.json_to_proto(evaluator.exec_properties["eval_config"], config)
    assert config == eval_config(DEFAULTS)
    assert len(evaluator.exec_properties["code_version"]) == 16
    alone = Evaluator(examples=scores, model=model, eval_config=eval_config(DEFAULTS))
    assert "baseline_model" not in alone.inputs


def test_the_code_of_every_metric_is_in_the_cache_key():
    settings = dataclasses.replace(DEFAULTS, num_samples=4, measures=("colour_agreement",))
    specs = eval_config(settings).metrics_specs
    modules = {metric.module for spec in specs for metric in spec.metrics} - {""}
    assert modules
    assert modules <= imported_modules(executor.__name__)
