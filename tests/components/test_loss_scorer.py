"""The component's real executor against a NumPy loop, on models whose output is a formula."""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import json
import math
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import small_runs
import tensorflow as tf
from measured_pictures import EVERYTHING
from PIL import Image
from tfx.dsl.components.base.base_beam_executor import BaseBeamExecutor as Executor
from tfx.types import Channel, standard_artifacts

from components.loss_scorer import LossScorer, executor, models, samples, scorer
from components.loss_scorer.records import bytes_of
from components.measures import MeasureSettings
from components.measures.feature_distance import latent_features
from components.tfrecords import read_shard, write_shard
from storage.user_errors import UserError
from trainer import presets
from trainer.data.buckets import BucketCounts
from trainer.data.held_out import write_choosing
from trainer.data.latents import LatentsManifest, make_latent_example
from trainer.data.trained_on import TrainedOn, marks_of
from trainer.diffusion.draws import draw_noise, num_draws, rank, stratum_bounds, stratum_name
from trainer.networks import inference_layers
from trainer.text.tokenizer import new_word, tokenize
from trainer.weights.base_model import BaseModel

PRESET = small_runs.preset()
IMAGE_SIZE = 64
BASE_MODEL = BaseModel.locate(PRESET, IMAGE_SIZE, "random")
LATENT = PRESET.latent_shape(IMAGE_SIZE)
CONTEXT = (77, PRESET.text_encoder.width)
NUM_STRATA = 4
SEED = 3
CAPTIONS = [
    "a drawing of a round red creature with horns",
    "a drawing of a tall blue creature",
    "a picture",
    "a red creature " * 40,
    "one two three four five six seven eight nine ten eleven twelve",
]
NO_SAMPLES = samples.SampleSettings("ddim", 1, 1.0, 1, MeasureSettings())


COLOURS = ("colour_agreement", "colour_agreement_baseline")
FEATURES = ("features_candidate", "features_baseline", "features_held_out")


@pytest.fixture(scope="module", autouse=True)
def small_is_tiny():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(presets, "PRESETS", {**presets.PRESETS, "tiny": PRESET})
        yield


class FormulaModel(tf.Module):
    """Predicts `a * latent + timestep / 1000 + mean(context)`."""

    def __init__(self, a: float, prediction: str = "epsilon") -> None:
        super().__init__()
        self.prediction = prediction
        self.a = tf.Variable(a)
        self.serve_prediction = tf.function(
            self._predict,
            input_signature=[
                tf.TensorSpec([None, None, None, 4], tf.float32, name="latent"),
                tf.TensorSpec([None], tf.int32, name="timesteps"),
                tf.TensorSpec([None, *CONTEXT], tf.float32, name="context"),
            ],
            autograph=False,
        )

    def _predict(self, latent, timesteps, context):
        shift = tf.cast(timesteps, tf.float32) / 1000.0 + tf.reduce_mean(context, [1, 2])
        return {self.prediction: self.a * latent + shift[:, None, None, None]}


class FormulaTextEncoder(tf.Module):
    """Gives every caption the context 0.5."""

    @tf.function(
        input_signature=[tf.TensorSpec([None, 77], tf.int32, name="tokens")], autograph=False
    )
    def serve(self, tokens):
        return {"context": tf.fill([tf.shape(tokens)[0], *CONTEXT], 0.5)}


class RedDisc(tf.Module):
    """Decodes every latent to a red disc on white, larger for a larger latent."""

    @tf.function(
        input_signature=[tf.TensorSpec([None, None, None, 4], tf.float32, name="latent")],
        autograph=False,
    )
    def serve(self, latent):
        radius = 12.0 + 8.0 * tf.sigmoid(tf.reduce_mean(latent, [1, 2, 3]))
        down, across = (
            tf.range(tf.cast(8 * side, tf.float32)) - 4 * tf.cast(side, tf.float32) + 0.5
            for side in tf.unstack(tf.shape(latent)[1:3])
        )
        inside = down[:, None] ** 2 + across[None] ** 2 < radius[:, None, None] ** 2
        colours = tf.constant([[255, 255, 255], [214, 40, 40]], tf.uint8)
        return {"generated_images": tf.gather(colours, tf.cast(inside, tf.int32))}


def save(module: tf.Module, folder: Path, **manifest) -> Path:
    serving = folder / "Format-Serving"
    signature = f"predict_{manifest.get('prediction', 'epsilon')}"
    signatures = {signature: module.serve_prediction}
    tf.saved_model.save(module, str(serving / "diffusion_model"), signatures=signatures)
    for name, other in (("text_encoder", FormulaTextEncoder()), ("decoder", RedDisc())):
        tf.saved_model.save(other, str(serving / name), signatures={"serving_default": other.serve})
    manifest = {"preset": "tiny", "image_size": IMAGE_SIZE, **manifest}
    (serving / "manifest.json").write_text(json.dumps(manifest))
    return folder


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {
        "candidate": save(FormulaModel(0.5), folder / "candidate"),
        "baseline": save(FormulaModel(-0.25), folder / "baseline"),
        "not_finite": save(FormulaModel(math.nan), folder / "not_finite"),
        "other_size": save(FormulaModel(0.5), folder / "other_size", image_size=128),
        "other_text": save(FormulaModel(0.5), folder / "other_text", text_encoder_trained=True),
    }


@pytest.fixture(scope="module")
def examples() -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    return [
        {
            # float16, as stored.
            "mean": rng.normal(size=LATENT).astype(np.float16),
            "log_variance": rng.normal(-2, 1, size=LATENT).astype(np.float16),
            "context": rng.normal(size=CONTEXT).astype(np.float16),
        }
        for _ in range(5)
    ]


def serialized(examples, indices) -> list[bytes]:
    return [
        make_latent_example(
            example_id=f"id{i}", tokens=tokenize([CAPTIONS[i]])[0], **examples[i]
        ).SerializeToString()
        for i in indices
    ]


@pytest.fixture(scope="module")
def latents(tmp_path_factory, examples) -> Path:
    folder = tmp_path_factory.mktemp("latents")
    split = folder / "Split-eval"
    split.mkdir()
    for shard, indices in enumerate(([0, 1, 2], [3, 4])):
        path = split / f"latents-{shard:05d}-of-00002.gz"
        write_shard(str(path), serialized(examples, indices), str(folder))
    LatentsManifest("tiny", IMAGE_SIZE, "hash", False, {"eval": 5}).write(str(folder))
    return folder


@pytest.fixture
def score(tmp_path, latents):
    def score(
        candidate: Path,
        baseline=None,
        num_samples=0,
        beam=(),
        folder=latents,
        measures=COLOURS[:1],
        min_draws=1,
        num_training_pictures=0,
        num_training_samples=0,
        clip_model="",
        **of_class,
    ):
        examples, model, scores = (
            standard_artifacts.Examples(),
            standard_artifacts.Model(),
            standard_artifacts.Examples(),
        )
        examples.uri, examples.split_names = str(folder), '["train", "eval"]'
        model.uri, model.id = str(candidate), 8
        scores.uri = str(tmp_path / "scores")
        inputs = {"latents": [examples], "model": [model], "baseline_model": []}
        if baseline is not None:
            blessed = standard_artifacts.Model()
            blessed.uri, blessed.id = str(baseline), 4
            inputs["baseline_model"] = [blessed]
        context = Executor.Context(beam_pipeline_args=list(beam), tmp_dir=str(tmp_path / "beam"))
        executor.Executor(context).Do(
            inputs,
            {"scores": [scores]},
            {
                "preset": "tiny",
                "image_size": IMAGE_SIZE,
                "base_weights": "random",
                "base_weights_hash": BASE_MODEL.hash(executor.SCORED),
                "num_strata": NUM_STRATA,
                "min_draws": min_draws,
                "seed": SEED,
                "num_samples": num_samples,
                "num_training_pictures": num_training_pictures,
                "num_training_samples": num_training_samples,
                "sample_steps": 3,
                "sampler": "ddim",
                "sample_guidance_scale": 2.0,
                "measures": json.dumps(measures),
                "clip_model": clip_model,
                "clip_model_hash": "",
                "code_version": "1",
                **of_class,
            },
        )
        rows = []
        for path in sorted((tmp_path / "scores" / "Split-eval").iterdir()):
            for record in read_shard(str(path)):
                feature = tf.train.Example.FromString(record).features.feature
                rows.append(
                    {
                        "id": feature["id"].bytes_list.value[0].decode(),
                        "timestep": feature["timestep"].int64_list.value[0],
                        "group": feature["group"].int64_list.value[0],
                        **{
                            name: feature[name].bytes_list.value[0].decode()
                            for name in ("timestep_bucket", "caption_bucket")
                        },
                        **{
                            name: feature[name].bytes_list.value[0].decode()
                            for name in ["picture_size"]
                            if name in feature
                        },
                        **{
                            name: list(feature[name].float_list.value)
                            for name in (*COLOURS, *FEATURES)
                            if name in feature
                        },
                        **{
                            name: feature[name].float_list.value[0]
                            for name in ("loss", "loss_baseline", "loss_delta", "label")
                        },
                    }
                )
        return scores, rows

    return score


def expected_loss(example, example_id: str, stratum: int, a: float) -> float:
    """The loss of `FormulaModel`, in float64 and without the code under test but its draws."""
    drawn = draw_noise(example_id, stratum, NUM_STRATA, SEED, example["mean"].shape)
    betas = np.linspace(math.sqrt(0.00085), math.sqrt(0.012), 1000) ** 2
    alpha_bar = np.prod(1 - betas[: drawn.timestep + 1])
    mean, log_variance = (example[k].astype(np.float64) for k in ("mean", "log_variance"))
    latent = 0.18215 * (mean + np.exp(log_variance / 2) * drawn.posterior_noise)
    noisy = math.sqrt(alpha_bar) * latent + math.sqrt(1 - alpha_bar) * drawn.epsilon
    shift = drawn.timestep / 1000 + example["context"].astype(np.float64).mean()
    return float(np.mean((drawn.epsilon - a * noisy - shift) ** 2))


def test_losses_are_those_of_a_numpy_loop(score, exported, examples):
    scores, rows = score(exported["candidate"], exported["baseline"])
    assert [row["id"] for row in rows] == [f"id{i}" for i in range(5) for _ in range(NUM_STRATA)]
    buckets = ["000-249", "250-499", "500-749", "750-999"]
    assert [row["timestep_bucket"] for row in rows] == buckets * 5
    for number, row in enumerate(rows):
        index, stratum = divmod(number, NUM_STRATA)
        loss, loss_baseline = (
            expected_loss(examples[index], row["id"], stratum, a) for a in (0.5, -0.25)
        )
        assert stratum * 250 <= row["timestep"] < (stratum + 1) * 250
        assert row["timestep"] == draw_noise(row["id"], stratum, NUM_STRATA, SEED, LATENT).timestep
        assert row["loss"] == pytest.approx(loss, rel=1e-5)
        assert row["loss_baseline"] == pytest.approx(loss_baseline, rel=1e-5)
        assert row["loss_delta"] == pytest.approx(row["loss"] - row["loss_baseline"], abs=1e-6)
        assert row["label"] == 0.0
    assert scores.get_int_custom_property("num_examples") == 5
    assert scores.get_int_custom_property("num_rows") == 20
    assert scores.get_int_custom_property("num_candidate_not_finite") == 0
    assert scores.get_int_custom_property("num_baseline_not_finite") == 0
    assert scores.get_string_custom_property("baseline") == "model 4"
    assert not scores.has_custom_property("baseline_problem")
    assert scores.split_names == '["eval"]'


def test_every_bucket_is_scored_and_says_so(score, exported, tmp_path):
    sizes = {"id0": (64, 128), "id1": (128, 64), "id2": (64, 64), "id3": (64, 128)}
    rng = np.random.default_rng(1)
    examples = {
        name: {
            "mean": rng.normal(size=PRESET.latent_shape(size)).astype(np.float16),
            "log_variance": rng.normal(-2, 1, PRESET.latent_shape(size)).astype(np.float16),
            "context": rng.normal(size=CONTEXT).astype(np.float16),
        }
        for name, size in sizes.items()
    }
    records = [
        make_latent_example(
            example_id=name, tokens=tokenize([CAPTIONS[0]])[0], size=sizes[name], **example
        ).SerializeToString()
        for name, example in examples.items()
    ]
    folder = tmp_path / "latents"
    for split in ("eval", "train"):
        (folder / f"Split-{split}").mkdir(parents=True)
        write_shard(str(folder / f"Split-{split}" / "latents.gz"), records, str(tmp_path))
    buckets = [
        BucketCounts(width, height, {"eval": 1, "train": 1}, 1)
        for height, width in sorted({*sizes.values()})
    ]
    counts = {"eval": 4, "train": 4}
    LatentsManifest("tiny", IMAGE_SIZE, "hash", False, counts, buckets=buckets).write(str(folder))
    scores, rows = score(
        exported["candidate"],
        exported["baseline"],
        folder=folder,
        num_samples=4,
        num_training_pictures=3,
        num_training_samples=3,
    )
    # Those of one shape come together, and all of an example do.
    assert [row["id"] for row in rows[::NUM_STRATA]] == ["id0", "id3", "id1", "id2"]
    for number, row in enumerate(rows):
        stratum = number % NUM_STRATA
        height, width = sizes[row["id"]]
        assert row["picture_size"] == f"{width} x {height}"
        for name, a in (("loss", 0.5), ("loss_baseline", -0.25)):
            expected = expected_loss(examples[row["id"]], row["id"], stratum, a)
            assert row[name] == pytest.approx(expected, rel=1e-5)
        # Drawn in the size of the picture, and so seen by the image encoder.
        assert len(row["features_candidate"]) == 20
    # What is drawn for training captions is held against pictures of all sizes.
    pairs = json.loads((tmp_path / "scores" / "nearest.json").read_text())
    assert len(pairs) == 3
    for pair in pairs:
        for kind in ("drawn", "picture"):
            with Image.open(tmp_path / "scores" / pair[kind]) as picture:
                assert picture.size in {(128, 64), (64, 128), (64, 64)}
    assert scores.get_int_custom_property("num_training_pictures") == 3


@pytest.mark.parametrize("zero_terminal_snr", [False, True])
def test_losses_of_the_velocity_are_those_of_a_numpy_loop(
    score, exported, examples, tmp_path, zero_terminal_snr
):
    """And of the noise, where the baseline predicts that; both see the same noisy latents."""
    candidate, alike = (
        save(
            FormulaModel(a, "v_prediction"),
            tmp_path / f"of_velocity_{a}",
            prediction="v_prediction",
            zero_terminal_snr=zero_terminal_snr,
        )
        for a in (0.5, -0.25)
    )
    betas = np.linspace(math.sqrt(0.00085), math.sqrt(0.012), 1000) ** 2
    roots = np.sqrt(np.cumprod(1 - betas))
    if zero_terminal_snr:
        roots = (roots - roots[-1]) * roots[0] / (roots[0] - roots[-1])

    def expected(index: int, stratum: int, a: float, of_velocity: bool, alike: bool) -> float:
        example = {k: v.astype(np.float64) for k, v in examples[index].items()}
        drawn = draw_noise(f"id{index}", stratum, NUM_STRATA, SEED, LATENT)
        signal = roots[drawn.timestep]
        noise = math.sqrt(1 - signal**2)
        deviation = np.exp(example["log_variance"] / 2)
        latent = 0.18215 * (example["mean"] + deviation * drawn.posterior_noise)
        noisy = signal * latent + noise * drawn.epsilon
        predicted = a * noisy + drawn.timestep / 1000 + example["context"].mean()
        if alike:
            return float(np.mean((signal * drawn.epsilon - noise * latent - predicted) ** 2))
        seen = noise * noisy + signal * predicted if of_velocity else predicted
        return float(np.mean((drawn.epsilon - seen) ** 2))

    for baseline, is_alike in ((alike, True), (exported["baseline"], False)):
        _, rows = score(candidate, baseline)
        for number, row in enumerate(rows):
            place = divmod(number, NUM_STRATA)
            loss = expected(*place, 0.5, True, is_alike)
            loss_baseline = expected(*place, -0.25, is_alike, is_alike)
            assert row["loss"] == pytest.approx(loss, rel=1e-4)
            assert row["loss_baseline"] == pytest.approx(loss_baseline, rel=1e-4)


def test_few_examples_are_scored_at_several_noises_each(score, exported, examples):
    _, once = score(exported["candidate"])
    scores, rows = score(exported["candidate"], min_draws=12)
    assert scores.get_int_custom_property("num_draws") == 3
    assert scores.get_int_custom_property("num_examples") == 5
    assert scores.get_int_custom_property("num_pictures") == 5
    assert scores.get_int_custom_property("num_rows") == len(rows) == 5 * NUM_STRATA * 3
    # What was drawn before is still there, in front of the others.
    assert rows[::3] == once
    for start in range(0, len(rows), 3):
        several = rows[start : start + 3]
        assert len({(row["id"], row["timestep_bucket"]) for row in several}) == 1
        assert len({row["loss"] for row in several}) == 3


@pytest.mark.parametrize(
    ("examples", "draws"), [(0, 1), (1, 50), (4, 13), (6, 9), (49, 2), (50, 1), (4000, 1)]
)
def test_the_budget_is_examples_times_draws(examples, draws):
    assert num_draws(examples, 50) == draws


def test_a_model_scored_against_itself_has_no_delta(score, exported):
    _, rows = score(exported["candidate"], exported["candidate"])
    assert {row["loss_delta"] for row in rows} == {0.0}


def test_the_base_weights_are_the_baseline_of_a_first_run(score, tmp_path, examples):
    model = BASE_MODEL.build("diffusion_model")
    module = small_runs.without_sampling(model, PRESET, IMAGE_SIZE)
    folder = save(module, tmp_path / "exported")
    scores, rows = score(folder)
    assert scores.get_string_custom_property("baseline") == "base weights"
    assert all(row["loss"] > 0.1 for row in rows)
    assert max(abs(row["loss_delta"]) for row in rows) < 1e-6
    # Of a real network, whose kernels may round differently at another batch size.
    records = serialized(examples, range(5))
    one, many = (losses(folder, None, records, size) for size in (1, 64))
    assert np.mean(list(many.values())) == pytest.approx(np.mean(list(one.values())), abs=1e-6)


def test_losses_that_are_no_numbers_are_kept_and_counted(score, exported):
    scores, rows = score(exported["not_finite"], exported["baseline"])
    assert all(math.isnan(row["loss"]) and math.isnan(row["loss_delta"]) for row in rows)
    assert all(row["loss_baseline"] > 0 for row in rows)
    assert scores.get_int_custom_property("num_candidate_not_finite") == 20
    assert scores.get_int_custom_property("num_baseline_not_finite") == 0


def test_a_baseline_of_another_size_is_not_compared(score, exported, examples):
    scores, rows = score(exported["candidate"], exported["other_size"], num_samples=1)
    expected = [expected_loss(examples[0], "id0", s, 0.5) for s in range(NUM_STRATA)]
    assert [row["loss"] for row in rows[:NUM_STRATA]] == pytest.approx(expected, rel=1e-5)
    assert all(math.isnan(row["loss_baseline"]) for row in rows)
    assert scores.get_string_custom_property("baseline") == "model 4"
    assert (
        "the latest blessed model (4) is of preset 'tiny' at 128 pixels, and cannot be compared"
        in scores.get_string_custom_property("baseline_problem")
    )
    [sampled] = {row["id"] for row in rows if "features_candidate" in row}
    assert not [row for row in rows if "features_baseline" in row]
    assert sampled in {f"id{index}" for index in range(5)}


def test_a_text_encoder_that_was_trained_along_is_used(score, exported, examples):
    _, rows = score(exported["other_text"], exported["candidate"])
    half = {**examples[1], "context": np.full(CONTEXT, 0.5, np.float16)}
    for stratum, row in enumerate(rows[NUM_STRATA : 2 * NUM_STRATA]):
        own, stored = (expected_loss(e, "id1", stratum, 0.5) for e in (half, examples[1]))
        assert row["loss"] == pytest.approx(own, rel=1e-5)
        assert row["loss_baseline"] == pytest.approx(stored, rel=1e-5)
        assert abs(own - stored) > 1e-3


def test_rows_know_their_picture_and_their_captions_length(score, exported, examples):
    _, rows = score(exported["candidate"], exported["baseline"])
    lengths = ["11-20 tokens", "01-10 tokens", "01-10 tokens", "41-77 tokens", "11-20 tokens"]
    assert [row["caption_bucket"] for row in rows[::NUM_STRATA]] == lengths
    groups = [row["group"] for row in rows]
    assert groups == [group for group in groups[::NUM_STRATA] for _ in range(NUM_STRATA)]
    assert len(set(groups)) == 5
    again = scorer.group_of(examples[0]["mean"].astype(np.float32))
    assert (again, 0 <= again < 1024) == (groups[0], True)


def test_pictures_are_drawn_for_some_captions_and_measured(score, exported, examples):
    scores, rows = score(exported["candidate"], exported["baseline"], num_samples=4)
    assert scores.get_int_custom_property("num_sampled") == 4
    ids = sorted((f"id{index}" for index in range(5)), key=lambda name: rank(name, SEED))
    left_out = ids[-1]
    for row in rows:
        index = int(row["id"].removeprefix("id"))
        assert all((name in row) == (row["id"] != left_out) for name in FEATURES)
        # The third and the last caption name no creature's colour; what is drawn is red.
        expected = {0: [1.0], 1: [0.0], 3: [1.0]}.get(index) if row["id"] != left_out else None
        assert [row.get(name) for name in COLOURS] == [expected, expected]
        if row["id"] == left_out:
            continue
        held_out = latent_features(examples[index]["mean"].astype(np.float32))
        assert row["features_held_out"] == pytest.approx(held_out.tolist(), abs=1e-6)
        assert np.isfinite([row["features_candidate"], row["features_baseline"]]).all()
        # The models' latents differ, and so the sizes of the discs.
        assert row["features_candidate"] != row["features_baseline"]


def test_a_dataset_that_does_not_ask_for_it_is_not_judged_by_creatures_colours(score, exported):
    _, rows = score(exported["candidate"], exported["baseline"], num_samples=5, measures=())
    assert all(name in row for row in rows for name in FEATURES)
    assert not any(name in row for row in rows for name in COLOURS)


def test_the_number_of_threads_changes_nothing(score, exported, tmp_path):
    _, rows = score(exported["candidate"], exported["baseline"], num_samples=3)
    (tmp_path / "scores").rename(tmp_path / "first")
    # Without an image, TFX would build a package of itself for the workers.
    workers = (
        "--direct_running_mode=multi_threading",
        "--direct_num_workers=2",
        "--sdk_container_image=none",
    )
    _, again = score(exported["candidate"], exported["baseline"], num_samples=3, beam=workers)
    assert again == rows


@pytest.mark.parametrize("who", ["candidate", "baseline"])
def test_what_chose_a_model_does_not_judge_it(score, latents, tmp_path, who):
    model = {n: FormulaModel(0.9 if n == who else 0.5) for n in ("candidate", "baseline")}
    made = {
        name: save(module, tmp_path / name, kept={"chosen": name == who, "step": 3})
        for name, module in model.items()
    }
    folder = tmp_path / "with_halves"
    shutil.copytree(latents, folder)
    _, every = score(*made.values(), folder=folder)
    ids = sorted({row["id"] for row in every})
    write_choosing(str(folder), ids[:2])
    scores, rows = score(*made.values(), folder=folder)
    assert sorted({row["id"] for row in rows}) == ids[2:]
    by_place = {(row["id"], row["timestep"]): row for row in every}
    assert all(by_place[row["id"], row["timestep"]] == row for row in rows)
    number = scores.get_int_custom_property
    assert (number("num_examples"), number("num_choosing")) == (len(ids) - 2, 2)


def test_what_a_model_was_trained_on_before_does_not_judge_it(score, latents, tmp_path, caplog):
    """By the candidate's forebears, or by the baseline itself; its own, none of these is."""
    started = {"training_id": "abc", "weights": "def", "adapters_continued": False}
    candidate = save(FormulaModel(0.5), tmp_path / "candidate", started_from=started)
    baseline = save(FormulaModel(0.9), tmp_path / "baseline")
    files = [str(path) for path in sorted((latents / "Split-eval").iterdir())]
    records = [record for path in files for record in read_shard(path)]
    ids = [bytes_of(record, "id").decode() for record in records]

    def note(folder: Path, own: list[bytes], before: list[bytes]) -> None:
        TrainedOn(marks_of(own), marks_of(before)).write(str(folder / "Format-Serving"))

    note(candidate, records, records[:2])
    note(baseline, records[2:3], [])
    scores, rows = score(candidate, baseline)
    assert {row["id"] for row in rows} == set(ids[3:])
    number = scores.get_int_custom_property
    assert (number("num_examples"), number("num_choosing")) == (len(ids) - 3, 0)
    assert number("num_trained_on_before") == 3
    assert "3 held-out examples do not judge this model: the model it started from" in caplog.text
    note(candidate, [], records)
    with pytest.raises(UserError, match=r"none of the held-out pictures can judge .* dataset.seed"):
        score(candidate, baseline)
    # What did not start from another model is judged as ever.
    shards = [executor._Shard(path, "") for path in files]
    folders = [str(folder / "Format-Serving") for folder in (baseline, candidate)]
    assert executor._trained_on(shards, *folders) == frozenset()
    assert executor._trained_on(shards, *reversed(folders)) == frozenset(ids)


@pytest.mark.parametrize("files", [0, 1])
def test_an_empty_split_gives_no_rows(score, exported, tmp_path, files):
    folder = tmp_path / "latents"
    (folder / "Split-eval").mkdir(parents=True)
    for _ in range(files):
        write_shard(str(folder / "Split-eval" / "latents-00000-of-00001.gz"), [], str(folder))
    LatentsManifest("tiny", IMAGE_SIZE, "hash", False, {"eval": 0}).write(str(folder))
    scores, rows = score(exported["candidate"], exported["baseline"], 3, folder=folder)
    assert rows == []
    assert scores.get_int_custom_property("num_rows") == 0
    assert len(list((tmp_path / "scores" / "Split-eval").iterdir())) == 1


def test_a_candidate_of_another_size_is_an_error(score, exported):
    with pytest.raises(UserError, match="of preset 'tiny' at 128 pixels, but this run needs"):
        score(exported["other_size"])


def losses(candidate: Path, baseline: Path | None, records: list[bytes], batch_size: int):
    task = scorer.ScoringTask(
        base_model=BASE_MODEL,
        candidate=str(candidate / "Format-Serving"),
        baseline=str(baseline / "Format-Serving") if baseline else None,
        comparable=baseline is not None,
        num_strata=NUM_STRATA,
        seed=SEED,
        batch_size=batch_size,
        samples=NO_SAMPLES,
    )
    found = {}
    for row in scorer.Scorer(task).rows(lambda: records):
        feature = tf.train.Example.FromString(row.record).features.feature
        key = feature["id"].bytes_list.value[0], feature["timestep"].int64_list.value[0]
        found[key] = feature["loss"].float_list.value[0]
        assert row.loss == pytest.approx(found[key], rel=1e-6)
    return found


def test_losses_depend_on_no_batch_and_no_order(exported, examples):
    def of(batch_size, indices):
        records = serialized(examples, indices)
        return losses(exported["candidate"], exported["baseline"], records, batch_size)

    one = of(1, [0, 1, 2, 3, 4])
    assert len(one) == 20
    assert of(64, [4, 2, 0, 3, 1]) == pytest.approx(one, rel=1e-6)
    assert of(7, [0, 1, 2, 3, 4]) == pytest.approx(one, rel=1e-6)
    part = of(64, [2])
    assert part == pytest.approx({key: one[key] for key in part}, rel=1e-6)


def test_draws_depend_on_id_seed_and_stratum_alone():
    first = draw_noise("a", 0, 10, 0, LATENT)
    again = draw_noise("a", 0, 10, 0, LATENT)
    assert first.timestep == again.timestep
    np.testing.assert_array_equal(first.epsilon, again.epsilon)
    others = [
        draw_noise("b", 0, 10, 0, LATENT),
        draw_noise("a", 1, 10, 0, LATENT),
        draw_noise("a", 0, 10, 1, LATENT),
    ]
    for other in others:
        assert abs(np.corrcoef(first.epsilon.ravel(), other.epsilon.ravel())[0, 1]) < 0.2
    assert first.epsilon.dtype == first.posterior_noise.dtype == np.float32
    assert abs(np.corrcoef(first.epsilon.ravel(), first.posterior_noise.ravel())[0, 1]) < 0.2
    many = np.stack([draw_noise(str(i), 9, 10, 0, LATENT).epsilon for i in range(200)])
    assert abs(many.mean()) < 0.02
    assert many.std() == pytest.approx(1, abs=0.02)
    timesteps = {draw_noise(str(i), 9, 10, 0, (1, 1, 1)).timestep for i in range(2000)}
    assert timesteps == set(range(900, 1000))


@pytest.mark.parametrize("num_strata", [1, 3, 7, 10, 1000])
def test_strata_cover_every_timestep_once(num_strata):
    bounds = [stratum_bounds(stratum, num_strata) for stratum in range(num_strata)]
    assert [t for first, end in bounds for t in range(first, end)] == list(range(1000))
    assert max(e - f for f, e in bounds) - min(e - f for f, e in bounds) <= 1
    names = [stratum_name(stratum, num_strata) for stratum in range(num_strata)]
    assert names == sorted(set(names))


def test_the_component_makes_its_spec():
    component = LossScorer(
        latents=Channel(type=standard_artifacts.Examples),
        model=Channel(type=standard_artifacts.Model),
        base_model=BASE_MODEL,
    )
    assert component.exec_properties["num_strata"] == 10
    assert component.exec_properties["measures"] == "[]"
    given = {name: v for name, v in component.exec_properties.items() if v is not None}
    assert all(isinstance(v, (str, int, float)) for v in given.values())
    assert not {"class_caption", "num_class_pictures"} & set(given)
    assert "baseline_model" not in component.inputs


@pytest.mark.parametrize("num_strata", [0, 1001])
def test_an_impossible_number_of_strata(num_strata):
    with pytest.raises(ValueError, match="must be from 1 to 1000"):
        LossScorer(
            latents=Channel(type=standard_artifacts.Examples),
            model=Channel(type=standard_artifacts.Model),
            base_model=BASE_MODEL,
            num_strata=num_strata,
        )


def remembered_rows(folder: Path) -> dict[str, list[dict[str, list[float]]]]:
    """The rows of the split `remembering`, by the names of their files."""
    found = {}
    for path in sorted((folder / "Split-remembering").iterdir()):
        rows = [tf.train.Example.FromString(r).features.feature for r in read_shard(str(path))]
        found[path.name.partition("-")[0]] = [
            {
                name: list(value.float_list.value or value.int64_list.value)
                or value.bytes_list.value[0].decode()
                for name, value in row.items()
            }
            for row in rows
        ]
    return found


@pytest.fixture(scope="module")
def trained_on(tmp_path_factory, examples, latents) -> Path:
    """The held-out latents and, as if they were others, four training pictures with variants."""
    folder = tmp_path_factory.mktemp("trained_on")
    shutil.copytree(latents / "Split-eval", folder / "Split-eval")
    (folder / "Split-train").mkdir()
    rng = np.random.default_rng(5)
    records = []
    for index in range(4):
        mean = rng.normal(size=LATENT).astype(np.float16)
        records.append(
            make_latent_example(
                example_id=f"train{index}",
                tokens=np.stack([tokenize([CAPTIONS[index]])[0], tokenize(["another"])[0]]),
                context=np.stack([examples[index]["context"], np.full(CONTEXT, 9.0)]),
                mean=mean,
                log_variance=examples[index]["log_variance"],
                mirror_mean=mean[:, ::-1],
                mirror_log_variance=examples[index]["log_variance"],
            ).SerializeToString(deterministic=True)
        )
    path = folder / "Split-train" / "latents-00000-of-00001.gz"
    write_shard(str(path), records, str(folder))
    manifest = LatentsManifest(
        "tiny", IMAGE_SIZE, "hash", True, {"train": 4, "eval": 5}, caption_variants=2
    )
    manifest.write(str(folder))
    return folder


def test_a_class_is_drawn_beside_the_base_weights(score, exported, tmp_path, monkeypatch):
    """Whatever the model is compared with otherwise."""

    def decode(latent: tf.Tensor) -> tf.Tensor:
        """Unlike `RedDisc`'s, no two pictures are the same."""
        pixels = tf.repeat(tf.repeat(latent[..., :3], 8, axis=1), 8, axis=2)
        return tf.cast(127.5 * (1.0 + tf.tanh(pixels)), tf.uint8)

    monkeypatch.setattr(samples, "exported_decoder", lambda _: decode)
    base = str(exported["candidate"] / "Format-Serving")
    monkeypatch.setattr(models, "loaded_base_model", lambda _: models.exported_model(base))
    given = {"class_caption": "a photo of a dog", "num_class_pictures": 5}
    found = {}
    for name in ("candidate", "baseline"):
        scores, _ = score(exported[name], exported["baseline"], **given)
        assert json.loads(scores.split_names) == ["eval", "class"]
        [path] = (tmp_path / "scores" / "Split-class").iterdir()
        rows = [tf.train.Example.FromString(r).features.feature for r in read_shard(str(path))]
        assert [row["group"].int64_list.value[0] for row in rows] == [0, 1, 2, 3, 4]
        found[name] = [row["class_distance"].float_list.value[0] for row in rows]
    assert scores.get_int_custom_property("num_class_pictures") == 5
    assert scores.get_string_custom_property("class_caption") == "a photo of a dog"
    assert scores.get_int_custom_property("milliseconds_class_pictures") > 0
    # What draws as before has not moved.
    assert found["candidate"] == [0.0] * 5
    assert all(value > 0 for value in found["baseline"])


def test_what_is_remembered_is_looked_at(score, exported, examples, trained_on, tmp_path):
    _, plain = score(exported["candidate"], exported["baseline"], folder=trained_on)
    assert not (tmp_path / "scores" / "Split-remembering").exists()
    scores, rows = score(
        exported["candidate"],
        exported["baseline"],
        folder=trained_on,
        num_training_pictures=3,
        num_training_samples=4,
    )
    # Who is held out has the same rows, whether anybody asks or not.
    assert rows == plain
    assert json.loads(scores.split_names) == ["eval", "remembering"]
    numbers = {"num_training_pictures": 3, "num_training_samples": 4, "num_training_not_finite": 0}
    for name, expected in numbers.items():
        assert scores.get_int_custom_property(name) == expected
    for name in executor.MILLISECONDS:
        assert scores.get_int_custom_property(name) > 0

    found = remembered_rows(tmp_path / "scores")
    assert found.keys() == {"scores", "text_parts", "nearness"}
    latents_of = {
        (f := tf.train.Example.FromString(record).features.feature)["id"]
        .bytes_list.value[0]
        .decode(): np.frombuffer(f["latent/mean"].bytes_list.value[0], np.float16).reshape(LATENT)
        for record in read_shard(str(trained_on / "Split-train" / "latents-00000-of-00001.gz"))
    }
    assert len(found["scores"]) == 3 * NUM_STRATA
    for index, row in enumerate(found["scores"]):
        # The first variant of the caption counts.
        example = {**examples[int(row["id"][-1])], "mean": latents_of[row["id"]]}
        stratum = index % NUM_STRATA
        expected = [expected_loss(example, row["id"], stratum, a) for a in (0.5, -0.25)]
        assert row["train_loss"] == pytest.approx(expected[:1], rel=1e-4)
        assert row["train_loss_baseline"] == pytest.approx(expected[1:], rel=1e-4)
        assert row["timestep_bucket"] == stratum_name(stratum, NUM_STRATA)
        assert "loss" not in row
        assert "caption_bucket" not in row

    # Of this model it is the difference of the contexts' means, at all places; the exported text
    # encoder gives the empty caption 0.5 everywhere.
    parts = {row["id"]: row for row in found["text_parts"]}
    assert sum(name.startswith("id") for name in parts) == 3
    assert len(parts) == 6
    for name, row in parts.items():
        [value] = row["text_part" if name.startswith("id") else "train_text_part"]
        mean = examples[int(name[-1])]["context"].astype(float).mean()
        assert value == pytest.approx(abs(mean - 0.5), rel=1e-4)

    names = [next(n for n in row if n.startswith("nearness")) for row in found["nearness"]]
    assert names == ["nearness"] * 4 + ["nearness_held_out"] * 5
    pairs = json.loads((tmp_path / "scores" / "nearest.json").read_text())
    assert [pair["nearness"] for pair in pairs] == pytest.approx(
        sorted(row["nearness"][0] for row in found["nearness"][:4])
    )
    limit = min(row["nearness_held_out"][0] for row in found["nearness"][4:])
    for pair in pairs:
        assert pair["suspect"] == (pair["nearness"] < limit)
        assert pair["compared_by"] == "latents"
        assert pair["id"] in latents_of
        assert pair["caption"] in CAPTIONS or pair["caption"].startswith("a red creature")
        for name in ("drawn", "picture"):
            with Image.open(tmp_path / "scores" / pair[name]) as image:
                assert image.size == (IMAGE_SIZE, IMAGE_SIZE)


def test_where_there_is_a_clip_pictures_are_compared_by_it(score, exported, trained_on, tmp_path):
    score(
        exported["candidate"],
        exported["baseline"],
        folder=trained_on,
        num_training_samples=2,
        clip_model=EVERYTHING.clip_model,
    )
    pairs = json.loads((tmp_path / "scores" / "nearest.json").read_text())
    assert [pair["compared_by"] for pair in pairs] == ["clip", "clip"]


def test_a_held_out_picture_that_does_not_judge_is_held_against_nothing(
    score, exported, trained_on, tmp_path
):
    folder = tmp_path / "chosen_by"
    shutil.copytree(trained_on, folder)
    write_choosing(str(folder), [f"id{i}" for i in range(3)])
    model = tmp_path / "chosen"
    shutil.copytree(exported["candidate"], model)
    path = model / "Format-Serving" / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "kept": {"chosen": True}}))
    scores, _ = score(
        model, exported["baseline"], folder=folder, num_training_pictures=9, num_training_samples=1
    )
    # Two judge, so two training pictures are scored; each twice to have four.
    assert scores.get_int_custom_property("num_training_pictures") == 2
    found = remembered_rows(tmp_path / "scores")
    assert {row["id"] for row in found["text_parts"] if "text_part" in row} == {"id3", "id4"}
    assert sum("nearness_held_out" in row for row in found["nearness"]) == 2


class CountingTextEncoder(tf.Module):
    """Gives every caption the sum of its tokens."""

    @tf.function(
        input_signature=[tf.TensorSpec([None, 77], tf.int32, name="tokens")], autograph=False
    )
    def serve(self, tokens):
        return {"context": tf.cast(tf.reduce_sum(tokens, 1), tf.float32)}


def test_threads_that_trace_the_base_weights_for_all_shapes_do_not_meet(monkeypatch):
    inside, forms = [], inference_layers.inference_layers

    @contextlib.contextmanager
    def alone(model):
        inside.append(model)
        time.sleep(0.1)
        with forms(model):
            yield
        assert inside == [model]
        inside.pop()

    monkeypatch.setattr(inference_layers, "inference_layers", alone, raising=True)
    predict = models.loaded_base_model(BASE_MODEL, in_buckets=True).predict
    context = tf.zeros([1, 77, PRESET.text_encoder.width])

    def trace(shape):
        predicted = samples.traced(True)(predict)
        return predicted(tf.ones([1, *shape, 4]), tf.constant([9]), context).shape

    shapes = [(8, 8), (12, 4), (4, 12), (8, 12)] * 2
    with concurrent.futures.ThreadPoolExecutor(len(shapes)) as threads:
        found = list(threads.map(trace, shapes))
    assert found == [(1, *shape, 4) for shape in shapes]


def test_a_model_without_the_word_sees_the_initial_word_in_its_place(tmp_path):
    word = new_word("<creature>", "animal", 2)
    other = new_word("<creature>", "animal", 3)
    tokens = tokenize(["a <creature>"], word=word)
    stored = np.array([7.0])
    for known, expected in (
        ({"text_encoder_trained": True, "word": dataclasses.asdict(word)}, tokens.sum()),
        ({"text_encoder_trained": True, "word": dataclasses.asdict(other)}, None),
        ({"text_encoder_trained": True}, None),
        ({}, 7.0),
    ):
        folder = tmp_path / f"{len(list(tmp_path.iterdir()))}"
        save(FormulaModel(0.5), folder, **known)
        encoder = CountingTextEncoder()
        place = str(folder / "Format-Serving" / "text_encoder")
        tf.saved_model.save(encoder, place, signatures={"serving_default": encoder.serve})
        model = models.exported_model(str(folder / "Format-Serving"), word)
        expected = word.as_initial(tokens).sum() if expected is None else expected
        assert model.contexts(tokens, stored) == pytest.approx([expected])
