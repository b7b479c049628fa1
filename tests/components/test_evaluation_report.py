"""The report of a small training run, made of real files, with TFMA's real metrics."""

from __future__ import annotations

import base64
import dataclasses
import html
import io
import json
import math
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from browser import PHONE, WIDE, browser, findings_of_file, printed_ink, show
from captioned_examples import examples_artifact
from measured_pictures import EVERYTHING, features_of
from PIL import Image
from tfx.components.evaluator.executor import Executor as TfxEvaluator
from tfx.types import Channel, standard_artifacts
from tfx.utils import proto_utils

from components import EvaluationReport as ReportArtifact
from components.caption_example_gen.groups_file import GroupedPicture, write_groups
from components.evaluation_report import EvaluationReport, charts, examples, executor
from components.evaluation_report.pictures import Pair, before_after
from components.evaluation_report.remembered import remembered
from components.evaluator.results import ALL, Metric, read_metrics
from components.loss_scorer.remembering import Pair as Nearest
from components.measures import MEASURES
from components.pages import RELEASE_PLACE
from components.tfrecords import write_shard
from pipeline.config import load_config
from pipeline.evaluation import eval_config
from storage import row_index
from storage.model_manifest import ModelManifest
from trainer.data.latents import make_latent_example
from trainer.presets import get_preset
from trainer.text.tokenizer import tokenize

PROMPTS = ["a red creature", "a creature with a very long name " * 6, "ein <b>Wesen</b>, grün"]
SETTINGS = {
    "prompts": PROMPTS,
    "seed": 5,
    "sampler": "dpmpp_2m",
    "num_steps": 3,
    "guidance_scale": 2.0,
}
SIZE = 64
LATENT = (8, 8, 4)
STRATA = 2
NAMES = [f"id{index}" for index in range(12)]
CAPTIONS = {name: f"picture {name} {'<script>x</script>' * (name == 'id0')}" for name in NAMES}
WIDTH = get_preset("tiny").text_encoder.width
BASELINE = np.outer(np.linspace(1, 2, 12), [0.8, 0.1])
LOSSES = BASELINE * 0.76


GUIDED = [
    tf.TensorSpec([None, 1, 1], tf.float32, name="context"),
    tf.TensorSpec([None, 1, 1], tf.float32, name="unconditional_context"),
    tf.TensorSpec([], tf.int32, name="num_steps"),
    tf.TensorSpec([], tf.float32, name="guidance_scale"),
    tf.TensorSpec([2], tf.int32, name="seed"),
]


class TextEncoder(tf.Module):
    @tf.function(input_signature=[tf.TensorSpec([None], tf.string)] * 2)
    def text(self, prompt, negative_prompt):
        def encode(strings):
            return tf.cast(tf.strings.length(strings), tf.float32)[:, None, None]

        return {"context": encode(prompt), "unconditional_context": encode(negative_prompt)}


class DiffusionModel(tf.Module):
    """Hands on the noise's seed, the steps and the guidance; predicts `a` of the latent."""

    def __init__(self, shade: float, a: float = 0.5) -> None:
        super().__init__()
        self.shade, self.a = shade, a

    @tf.function(input_signature=GUIDED)
    def serve(self, context, unconditional_context, num_steps, guidance_scale, seed):
        return self._drawn(context, unconditional_context, num_steps, guidance_scale, seed)

    @tf.function(input_signature=[*GUIDED, tf.TensorSpec([], tf.string, name="sampler")])
    def sample(self, context, unconditional_context, num_steps, guidance_scale, seed, sampler):
        steps = tf.where(sampler == SETTINGS["sampler"], num_steps, -1)
        return self._drawn(context, unconditional_context, steps, guidance_scale, seed)

    def _drawn(self, context, unconditional_context, num_steps, guidance_scale, seed):
        values = tf.cast(tf.stack([seed[0] + num_steps, 20 + seed[1]]), tf.float32)
        latent = tf.concat([values, [10.0 * guidance_scale, self.shade]], 0)
        latent += 0.0 * context[0, 0] + 0.0 * unconditional_context[0, 0]
        return {"latent": tf.broadcast_to(latent, [1, *LATENT])}

    @tf.function(
        input_signature=[
            tf.TensorSpec([None, *LATENT], tf.float32, name="latent"),
            tf.TensorSpec([None], tf.int32, name="timesteps"),
            tf.TensorSpec([None, 77, WIDTH], tf.float32, name="context"),
        ]
    )
    def predict(self, latent, timesteps, context):
        epsilon = self.a * latent + 0.0 * tf.reduce_mean(context)
        return {"epsilon": epsilon + 0.0 * tf.cast(timesteps, tf.float32)[:, None, None, None]}


class Decoder(tf.Module):
    @tf.function(input_signature=[tf.TensorSpec([None, *LATENT], tf.float32, name="latent")])
    def serve(self, latent):
        colours = tf.clip_by_value(latent[:, :1, :1, :3], 0.0, 255.0)
        pixels = tf.broadcast_to(colours, [tf.shape(latent)[0], SIZE, SIZE, 3])
        shade = tf.cast(latent[:, :1, :1, 3:], tf.float32)
        return {"generated_images": tf.cast(tf.clip_by_value(pixels + shade, 0, 255), tf.uint8)}


def export(folder: Path, shade: float, *, knows_samplers: bool = True) -> Path:
    serving = folder / "Format-Serving"
    text_encoder, diffusion_model, decoder = TextEncoder(), DiffusionModel(shade), Decoder()
    for name, module, signatures in (
        ("text_encoder", text_encoder, {"text": text_encoder.text}),
        (
            "diffusion_model",
            diffusion_model,
            {
                "serving_default": diffusion_model.serve,
                "predict_epsilon": diffusion_model.predict,
                **({"sample": diffusion_model.sample} if knows_samplers else {}),
            },
        ),
        ("decoder", decoder, {"serving_default": decoder.serve}),
    ):
        tf.saved_model.save(module, str(serving / name), signatures=signatures)
    manifest = {"preset": "tiny", "image_size": SIZE, "steps": 40, "batch_size": 2}
    (serving / "manifest.json").write_text(
        json.dumps({**manifest, "kept": KEPT, "images_per_second": 12.5, "wall_time_seconds": 9.0})
    )
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    # The baseline is of a former version.
    baseline = export(folder / "4", 100.0, knows_samplers=False)
    return {"model": export(folder / "8", 0.0), "baseline": baseline}


EVALUATED = [(0, 1.0), (20, 0.5), (40, 0.75)]
KEPT = {
    "step": 20,
    "steps_done": 40,
    "chosen": True,
    "why": "it is <the> best",
    "loss": 0.5,
    "pictures": 2,
    "timesteps": 3,
}


@pytest.fixture(scope="module")
def model_run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    pictures = folder / "validation" / "step_000000"
    pictures.mkdir(parents=True)
    for index in range(len(PROMPTS)):
        Image.new("RGB", (SIZE, SIZE), (200, 100, index)).save(pictures / f"{index:02d}.png")
    (folder / "validation" / "prompts.json").write_text(json.dumps(SETTINGS))
    records = [{"step": 10 * i, "loss": 1 / i, "learning_rate": 1e-3} for i in range(1, 5)]
    (folder / "history.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    evaluations = [
        {"step": step, "losses": [loss - 0.25, loss + 0.25], "scored": "x"}
        for step, loss in EVALUATED
    ]
    (folder / "evaluations.jsonl").write_text("".join(json.dumps(e) + "\n" for e in evaluations))
    return folder


def feature(value) -> tf.train.Feature:
    if isinstance(value, bytes):
        return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))
    if isinstance(value, int):
        return tf.train.Feature(int64_list=tf.train.Int64List(value=[value]))
    return tf.train.Feature(float_list=tf.train.FloatList(value=[value]))


def row(name: str, stratum: int, loss: float, loss_baseline: float, measured=None) -> bytes:
    values = {
        "id": name.encode(),
        "timestep_bucket": [b"000-499", b"500-999"][stratum],
        "caption_bucket": b"01-10 tokens",
        "group": NAMES.index(name),
        "loss": float(loss),
        "loss_baseline": float(loss_baseline),
        "loss_delta": float(loss - loss_baseline),
        "label": 0.0,
    }
    features = {key: feature(value) for key, value in values.items()}
    for key, numbers in (measured or {}).items():
        features[key] = tf.train.Feature(float_list=tf.train.FloatList(value=numbers))
    return tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString()


def picture(index: int) -> bytes:
    encoded = io.BytesIO()
    Image.new("RGB", (32, 16), (10 * index, 50, 200)).save(encoded, format="PNG")
    return encoded.getvalue()


def records() -> tuple[list[bytes], list[bytes]]:
    """Examples and latents."""
    rows, latents = [], []
    for index, name in enumerate(NAMES):
        values = {
            "id": name.encode(),
            "caption": CAPTIONS[name].encode(),
            "image/encoded": picture(index),
        }
        features = {key: feature(value) for key, value in values.items()}
        rows.append(
            tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString()
        )
        latents.append(
            make_latent_example(
                example_id=name,
                tokens=tokenize([CAPTIONS[name]])[0],
                context=np.zeros((77, WIDTH)),
                mean=np.full(LATENT, 100.0 * index),
                log_variance=np.full(LATENT, -30.0),
            ).SerializeToString()
        )
    return rows, latents


def remembering_rows() -> list[bytes]:
    """Of a model whose loss on training pictures is a tenth, and of eight copies of eight."""
    rows = []
    for index in range(8):
        group = {"group": 100 + index, "label": 0.0}
        for stratum, value in enumerate(BASELINE[index]):
            bucket = [b"000-499", b"500-999"][stratum]
            losses = {"train_loss": 0.1 * value, "train_loss_baseline": value}
            losses["train_loss_delta"] = -0.9 * value
            rows.append({**group, **losses, "timestep_bucket": bucket})
        rows.append({**group, "train_text_part": 0.5 + 0.01 * index})
        rows.append({**group, "nearness": 0.25 + 0.01 * index})
    for index in range(12):
        group = {"group": index, "label": 0.0}
        rows.append({**group, "text_part": 0.2 + 0.01 * index})
        rows.append({**group, "nearness_held_out": 0.75 + 0.01 * index})
    return [
        tf.train.Example(
            features=tf.train.Features(feature={key: feature(v) for key, v in row.items()})
        ).SerializeToString()
        for row in rows
    ]


def leave_pairs(folder: Path, scores) -> None:
    """Two nearest pairs; the first training picture stands there twice and is nearly another."""
    for name, value in (
        ("num_training_pictures", 8),
        ("num_training_samples", 8),
        ("milliseconds_training_pictures", 12_400),
        ("milliseconds_text_parts", 2_600),
        ("milliseconds_copies", 9_000),
    ):
        scores.set_int_custom_property(name, value)
    pairs = []
    for index, near in enumerate((0.25, 0.9)):
        names = [f"nearest/{index:02d}_{kind}.png" for kind in ("drawn", "trained_on")]
        for shade, name in enumerate(names):
            (folder / "scores" / "nearest").mkdir(exist_ok=True)
            Image.new("RGB", (SIZE, SIZE), (7, index, shade)).save(folder / "scores" / name)
        pairs.append(
            dataclasses.asdict(
                Nearest(
                    caption=f"a <copy> {index}",
                    drawn=names[0],
                    id=f"row{index}",
                    picture=names[1],
                    mirrored=index == 1,
                    nearness=near,
                    own=index == 0,
                    suspect=index == 0,
                    compared_by="latents",
                )
            )
        )
    (folder / "scores" / "nearest.json").write_text(json.dumps(pairs))
    (folder / "examples" / "rows").mkdir()
    rows = [("row0", "p0"), ("row1", "p1"), ("row2", "p0"), ("row3", "p3")]
    lines = [row_index.IndexedRow(*row, caption="x").line() for row in rows]
    (folder / "examples" / "rows" / "train-00000.jsonl").write_bytes(b"".join(lines))
    group = [GroupedPicture(p, "f", 0, 8, 8, s) for p, s in (("p0", "train"), ("p3", "train"))]
    dropped = GroupedPicture("p4", "f", 4, 8, 8, "")
    write_groups([[*group, dropped]], str(folder / "examples" / "near_duplicates.json"))


def make_report(
    folder,
    models,
    model_run,
    losses,
    *,
    blessed=1,
    verdict="",
    reasons="",
    compared=False,
    measured=None,
    remembering=None,
) -> Path:
    """The report on losses [examples, strata]."""
    scored = [
        row(NAMES[e], s, losses[e][s], BASELINE[e][s], measured)
        for e in range(len(losses))
        for s in range(STRATA)
    ]
    examples_records, latents = (some[: len(losses)] for some in records())
    scores_of = {"eval": scored, **({"remembering": remembering} if remembering else {})}
    artifacts = {
        "examples": examples_artifact(folder / "examples", {"eval": examples_records}),
        "latents": examples_artifact(folder / "latents", {"eval": latents}),
        "scores": examples_artifact(folder / "scores", scores_of),
        "model": standard_artifacts.Model(),
        "model_run": standard_artifacts.ModelRun(),
        "evaluation": standard_artifacts.ModelEvaluation(),
        "blessing": standard_artifacts.ModelBlessing(),
    }
    uris = {"model": models["model"], "model_run": model_run}
    for name in ("model", "model_run", "evaluation", "blessing"):
        artifacts[name].uri = str(uris.get(name, folder / name))
    (folder / "blessing").mkdir()
    dataset = artifacts["examples"]
    for name, text in (("dataset", "me/creatures"), ("dataset_revision", "c0ffee")):
        dataset.set_string_custom_property(name, text)
    for name, number in (("num_train", 1200), ("num_eval", len(losses))):
        dataset.set_int_custom_property(name, number)
    for name, number in (("pictures_encoded", 22), ("pictures_taken_over", 1190)):
        artifacts["latents"].set_int_custom_property(name, number)
    scores = artifacts["scores"]
    label = "model 4" if compared else "base weights"
    scores.set_string_custom_property("baseline", label)
    for name, value in (
        ("num_examples", len(losses)),
        ("num_sampled", len(losses) if measured else 0),
        ("num_strata", STRATA),
        ("seed", 3),
    ):
        scores.set_int_custom_property(name, value)
    if remembering:
        leave_pairs(folder, scores)
    settings = dataclasses.replace(
        load_config().evaluation,
        measures=EVERYTHING.asked_for if measured else (),
        clip_model=EVERYTHING.clip_model if measured else None,
        max_memorization_gap=0.3 if remembering else None,
        max_copies=0.1 if remembering else None,
    )
    config = proto_utils.proto_to_json(eval_config(settings))
    TfxEvaluator().Do(
        {"examples": [scores], "model": [artifacts["model"]]},
        {"evaluation": [artifacts["evaluation"]], "blessing": [artifacts["blessing"]]},
        {"eval_config": config, "example_splits": json.dumps([*scores_of])},
    )
    artifacts["blessing"].set_int_custom_property("blessed", blessed)
    artifacts["blessing"].set_string_custom_property("verdict", verdict)
    artifacts["blessing"].set_string_custom_property("reasons", reasons)
    inputs = {name: [artifact] for name, artifact in artifacts.items()}
    if compared:
        inputs["baseline_model"] = [standard_artifacts.Model()]
        inputs["baseline_model"][0].uri = str(models["baseline"])
        inputs["baseline_model"][0].id = 4
    output = ReportArtifact()
    output.uri = str(folder / "report")
    context = executor.Executor.Context(pipeline_run_id="2026-11-29T16:00:00")
    executor.Executor(context).Do(
        inputs, {"report": [output]}, {"base_weights": "default", "code_version": "1"}
    )
    return folder / "report"


@pytest.fixture(scope="module")
def report(tmp_path_factory, models, model_run) -> Path:
    """Of a model that is better than an earlier one, and yet not blessed."""
    folder = tmp_path_factory.mktemp("report")
    reasons = "it <i>rises</i>\nso there"
    verdict = {"blessed": 0, "reasons": reasons, "compared": True}
    measured = {n: values for m in MEASURES for n, values in features_of(m).items()}
    return make_report(folder, models, model_run, LOSSES, **verdict, measured=measured)


def pictures_of(page: str) -> list[tuple[int, int, int]]:
    """The middle pixel of every picture, in their order."""
    found = []
    for data in re.findall(r'src="data:image/png;base64,([^"]+)"', page):
        with Image.open(io.BytesIO(base64.b64decode(data))) as image:
            found.append(image.convert("RGB").getpixel((8, 8)))
    return found


def words(page: str) -> str:
    text = re.sub(r"<style>.*?</style>|<[^>]+>", " ", page, flags=re.DOTALL)
    return " ".join(html.unescape(text).split())


def test_the_report_has_the_numbers_and_pictures(report):
    files = {path.name for path in report.iterdir()}
    assert files == {"before_after.png", "loss_curve.png", "evaluation.html", "summary.json"}
    summary = json.loads((report / "summary.json").read_text())
    assert summary["loss"] == pytest.approx(LOSSES.mean())
    assert summary["loss_delta_lower"] < summary["loss_delta"] < summary["loss_delta_upper"]
    assert summary["loss_change_percent"] == pytest.approx(-24)
    assert (summary["baseline"], summary["blessed"]) == ("model 4", False)
    assert (summary["preset"], summary["steps"], summary["images_per_second"]) == ("tiny", 40, 12.5)
    assert [part["timesteps"] for part in summary["by_timestep"]] == ["000-499", "500-999"]
    for part, column in zip(summary["by_timestep"], (0, 1), strict=True):
        assert part["num_rows"] == 12
        assert part["loss"] == pytest.approx(LOSSES[:, column].mean())
        assert part["loss_delta"] == pytest.approx((LOSSES - BASELINE)[:, column].mean())
    assert [part["tokens"] for part in summary["by_caption_length"]] == ["01-10 tokens"]
    for name in ("before_after.png", "loss_curve.png"):
        with Image.open(report / name) as image:
            assert min(image.size) > 400
            assert len(image.convert("RGB").getcolors(1 << 24)) > 50


def test_the_step_that_is_kept_is_marked_and_said(report):
    page = (report / "evaluation.html").read_text()
    assert json.loads((report / "summary.json").read_text())["kept"] == KEPT
    assert "Kept step 20 of 40: it is <the> best" in words(page)
    assert "2 held-out pictures were scored at 3 timesteps each. The dot is step 20" in words(page)
    [line] = re.findall(r'<polyline class="held-out" points="([^"]+)"/>', page)
    places = [tuple(map(float, place.split(","))) for place in line.split(" ")]
    (x0, y0), (x1, y1), (x2, y2) = places
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2)
    # From a loss of 1 down to 0.5, and half the way back.
    assert y1 - y0 == pytest.approx(2 * (y1 - y2), abs=0.3)
    [dot] = re.findall(r'<circle class="kept" cx="([\d.]+)" cy="([\d.]+)"', page)
    assert tuple(map(float, dot)) == places[1]


def test_the_page_says_what_was_found(report):
    page = (report / "evaluation.html").read_text()
    text = words(page)
    for part in (
        "Not blessed it <i>rises</i> so there",
        f"Held-out loss {LOSSES.mean():.4f}",
        "Change in loss -24.0 %",
        "Held-out examples 12 at 2 timesteps each",
        "000-499 12 1.2000 0.9120 -0.2880",
        "01-10 tokens 24",
        "ein <b>Wesen</b>, grün",
        "picture id0 <script>x</script>",
    ):
        assert part in text, part
    for part in (
        "Run that judged it 2026-11-29T16:00:00 Judged at 20",
        "Dataset me/creatures Its revision c0ffee Its examples 1,200 to train on, 12 held out "
        "Their pictures 22 encoded, 1,190 taken over",
        "Release none: it is not blessed",
    ):
        assert part in text, part
    assert "<script" not in page
    assert "http" not in page.replace("http-equiv", "")


def test_what_a_model_remembers_is_said_and_shown(tmp_path, models, model_run):
    folder = make_report(tmp_path, models, model_run, LOSSES, remembering=remembering_rows())
    page = (folder / "evaluation.html").read_text()
    text = words(page)
    gap = 1 - 0.1 * BASELINE[:8].mean() / LOSSES.mean()
    for part in (
        "It knows what it was trained on better than other pictures: on 8 training pictures its "
        f"loss is {gap:.1%} below its held-out loss (95 % interval +",
        "It draws copies: 8 of 8 pictures drawn for training captions are nearer to a training "
        "picture than the nearest hundredth of the held-out pictures, which chance does not "
        "explain.",
        "Of 1 suspects shown, 1 are near a picture that is in the training set several times or "
        "has near duplicates there. This is the usual cause",
        "if chance does not explain them 100.0% at most 10.0% evaluation.max_copies",
        "How far the loss on training pictures surely is below the held-out loss",
        "at most 30.0% evaluation.max_memorization_gap",
        "Captions of training pictures affect its predictions more than other captions do, by "
        "110% (",
        f"Gap: loss on training pictures below the held-out loss {gap:+.1%} +",
        "Distance to the nearest training picture in latents, drawn pictures 0.2850 "
        "held out: 0.8050",
        "8 training pictures were scored, 8 of their captions drawn. It took 12 s for the gap, 3 s "
        "for the text's part, 9 s for copies.",
        "this model the caption's own picture a <copy> 0 distance 0.25, suspect The training "
        "picture: 2 times in the training set, 1 near duplicate, the usual cause of copies.",
        "this model a training picture, mirrored a <copy> 1 distance 0.90",
    ):
        assert part in text, part
    shown = [colour for colour in pictures_of(page) if colour[:2] in ((7, 0), (7, 1))]
    assert shown == [(7, 0, 0), (7, 0, 1), (7, 1, 0), (7, 1, 1)]
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["memorization_gap"] == pytest.approx(gap)
    assert (summary["copies"], summary["num_examples"]) == (1.0, 12)
    found = summary["remembered"]
    assert len(found["said"]) == 4
    assert found["seconds"] == {"the gap": 12.4, "the text's part": 2.6, "copies": 9.0}
    assert [(one["captions_of_it"], one["near_duplicates_of_it"]) for one in found["nearest"]] == [
        (2, 1),
        (1, 0),
    ]

    # A model that was shown its held-out pictures has no gap, though it has learned so much.
    total = read_metrics(str(tmp_path / "evaluation"))[ALL]
    assert total["memorization_gap"].value > 0.1
    none = {**total, "memorization_gap": Metric(0.01, -0.05, 0.07)}
    none["memorization_gap_shown"] = Metric(0.0)
    often = {"counts": {"train": 8}}
    for steps, latents, suspected in ((1000, often, True), (40, often, False), (1000, {}, False)):
        manifest = ModelManifest(
            "tiny", SIZE, training={"steps": steps, "batch_size": 8}, latents=latents
        )
        scores, dataset = standard_artifacts.Examples(), standard_artifacts.Examples()
        scores.set_int_custom_property("num_training_pictures", 8)
        scores.uri = dataset.uri = str(tmp_path / "nothing")
        told = remembered(scores, dataset, none, manifest)
        assert told.said[0].startswith("Its loss does not show that it remembers: on 8 training")
        note = "It has seen each training picture 1,000 times, and its loss on them fell by 90%"
        assert any(sentence.startswith(note) for sentence in told.said) == suspected
    scores = standard_artifacts.Examples()
    assert remembered(scores, dataset, total, manifest) is None


def test_every_picture_says_what_it_is(report):
    page = (report / "evaluation.html").read_text()
    named = [html.unescape(alt) for alt in re.findall(r'<img [^>]*alt="([^"]*)"', page)]
    assert len(named) == len(re.findall("<img ", page)) == 9 + 24
    assert named[6:9] == [
        "ein <b>Wesen</b>, grün (drawn by the base weights)",
        "ein <b>Wesen</b>, grün (drawn by the last blessed model, model 4)",
        "ein <b>Wesen</b>, grün (drawn by this model)",
    ]
    timestep = re.search(r"with the noise of timestep (\d+)", page)[1]
    assert named[9:12] == [
        "picture id11  (held-out picture)",
        f"picture id11  (the same with the noise of timestep {timestep})",
        "picture id11  (restored from it by this model in one step)",
    ]


def test_what_was_asked_for_is_said_of_a_blessed_model_too(tmp_path, models, model_run):
    """One that started from another model, with which it is compared."""
    started = {name: tmp_path / "models" / name for name in models}
    for name, folder in models.items():
        shutil.copytree(folder, started[name])
        path = started[name] / "Format-Serving" / "manifest.json"
        facts = {
            "baseline": {"training_id": "abc"},
            "model": {"started_from": {"training_id": "abc"}},
        }
        path.write_text(json.dumps({**json.loads(path.read_text()), **facts[name]}))
    folder = make_report(tmp_path, started, model_run, LOSSES, compared=True)
    page = (folder / "evaluation.html").read_text()
    # Two pictures of each prompt: of what it started from, there are pictures already.
    assert pictures_of(page)[:4] == [(200, 100, 0), (8, 20, 20), (200, 100, 1), (9, 20, 20)]
    named = [html.unescape(alt) for alt in re.findall(r'<img [^>]*alt="([^"]*)"', page)]
    assert named[4:6] == [
        "ein <b>Wesen</b>, grün (drawn by what this model started from, model 4)",
        "ein <b>Wesen</b>, grün (drawn by this model)",
    ]
    assert (
        "On the left: by the model that this one started from, model 4. On the right: by this "
        "model."
    ) in words(page)
    assert words(page).count("started from, model 4 this model") == len(PROMPTS)
    assert "Started from the model of training abc" in words(page)
    text = words(page)
    total = json.loads((folder / "summary.json").read_text())
    for part in (
        f"Change in held-out loss {total['loss_delta']:+.6g} below 0 "
        "evaluation.min_loss_improvement",
        f"Upper end of its 95 % interval {round(total['loss_delta_upper'], 6):+g} at most 0, or "
        "it is unsure evaluation.max_loss_regression",
        "The same at the worst timesteps, in percent of the loss there, if it is shown to rise "
        "shown nowhere at most +7.5% evaluation.max_stratum_regression",
        "Release not pushed yet when this page was written",
    ):
        assert part in text, part
    assert page.count(RELEASE_PLACE) == 1


def test_timesteps_at_which_the_loss_is_shown_to_rise_are_named(tmp_path, models, model_run):
    losses = LOSSES.copy()
    losses[:, 1] = BASELINE[:, 1] * 1.5
    folder = make_report(tmp_path, models, model_run, losses)
    summary = json.loads((folder / "summary.json").read_text())
    part = summary["by_timestep"][1]
    upper = part["loss_increase_upper"]
    assert upper >= 0.5
    text = words((folder / "evaluation.html").read_text())
    assert f"if it is shown to rise {upper:+.1%} at {part['timesteps']} at most +7.5%" in text


@pytest.mark.parametrize("measure", MEASURES, ids=lambda measure: measure.name)
def test_every_measure_is_in_the_summary_and_on_the_page(report, measure):
    summary = json.loads((report / "summary.json").read_text())
    text = words((report / "evaluation.html").read_text())
    value, of_baseline = (
        measure.format.format(summary[name]) for name in (measure.name, measure.baseline_name)
    )
    assert f"{measure.label} {value} model 4: {of_baseline}" in text
    assert measure.note in text
    same = ", ".join(each.label for each in MEASURES if each.better == measure.better)
    assert f"{same}: {measure.better} is better." in text
    assert "Measured on pictures drawn for 12 held-out captions." in text


def test_the_pictures_are_those_of_the_models(report):
    page = (report / "evaluation.html").read_text()
    pictures = pictures_of(page)
    trios = [pictures[index : index + 3] for index in range(0, 9, 3)]
    for index, (base, compared, candidate) in enumerate(trios):
        # The models' colour is seed + index + steps, 20, 10 * guidance, and the shade.
        assert base == (200, 100, index)
        assert candidate == (5 + index + 3, 20, 20)
        # Of a former version, which knows no sampler: 25 steps.
        assert compared == (100 + 5 + index + 25, 120, 120)
    assert words(page).count("last blessed, model 4") == 3
    with Image.open(report / "before_after.png") as image:
        colours = {colour: count for count, colour in image.convert("RGB").getcolors(1 << 24)}
    for index in range(len(PROMPTS)):
        assert colours[(8 + index, 20, 20)] == colours[(200, 100, index)] == 192 * 192


def test_the_extremes_are_shown_with_what_the_model_makes_of_them(report):
    page = (report / "evaluation.html").read_text()
    pictures = pictures_of(page)[9:]
    shown = [pictures[index : index + 3] for index in range(0, len(pictures), 3)]
    # The loss rises with the example's number: the four worst, then the four best.
    assert [original[0] // 10 for original, _, _ in shown] == [11, 10, 9, 8, 0, 1, 2, 3]
    betas = np.linspace(math.sqrt(0.00085), math.sqrt(0.012), 1000) ** 2
    timesteps = list(map(int, re.findall(r"<figcaption>with the noise of timestep (\d+)", page)))
    assert all(500 <= timestep < 1000 for timestep in timesteps)
    for timestep, (original, noisy, restored) in zip(timesteps, shown, strict=True):
        index = original[0] // 10
        drawn = executor.draw_noise(NAMES[index], 1, STRATA, 3, LATENT)
        assert drawn.timestep == timestep
        alpha_bar = np.prod(1 - betas[: timestep + 1])
        latent = math.sqrt(alpha_bar) * 18.215 * index + math.sqrt(1 - alpha_bar) * drawn.epsilon
        clean = (1 - 0.5 * math.sqrt(1 - alpha_bar)) * latent / math.sqrt(alpha_bar)
        for found, values in ((noisy, latent), (restored, clean)):
            expected = np.clip(np.clip(values[0, 0, :3], 0, 255) + values[0, 0, 3], 0, 255)
            assert found == pytest.approx(expected, abs=1.01)


def test_an_unsure_model_with_losses_that_are_no_numbers(tmp_path, models, model_run):
    losses = LOSSES.copy()
    losses[2, 0] = math.nan
    folder = make_report(
        tmp_path, models, model_run, losses, verdict="unsure", reasons="1 of 24 losses"
    )
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["loss"] is summary["loss_delta"] is summary["loss_change_percent"] is None
    assert summary["loss_baseline"] == pytest.approx(BASELINE.mean())
    assert (summary["blessed"], summary["reasons"]) == (True, ["1 of 24 losses"])
    assert summary["verdict"] == "unsure"
    assert [part["loss"] is None for part in summary["by_timestep"]] == [True, False]
    page = (folder / "evaluation.html").read_text()
    assert "Held-out loss not finite no interval" in words(page)
    assert "Unsure, pushed anyway 1 of 24 losses" in words(page)
    assert "last blessed" not in page
    assert not any(measure.label in page for measure in MEASURES)
    assert "nan" not in re.sub(r"base64,[^\"]+", "", page).lower()


def test_an_empty_split_has_a_page_too(tmp_path, models, model_run):
    reasons = "the eval split is empty"
    folder = make_report(tmp_path, models, model_run, [], blessed=0, reasons=reasons)
    assert json.loads((folder / "summary.json").read_text())["by_timestep"] == []
    text = words((folder / "evaluation.html").read_text())
    assert "Not blessed the eval split is empty" in text
    assert "Held-out examples 0" in text


def test_the_page_fits_every_window(report):
    page = report / "evaluation.html"
    with browser() as chromium:
        backgrounds = set()
        for width in (PHONE, WIDE):
            for scheme in ("light", "dark"):
                shown = show(chromium, page, width, scheme)
                assert (shown.overflow, shown.broken) == (0, 0)
                assert (shown.cut, shown.nameless) == ([], 0)
                assert (shown.requests, shown.errors) == ([], [])
                assert shown.smallest_picture > 80
                backgrounds.add(shown.background)
    assert len(backgrounds) == 2


def test_a_screen_reader_finds_nothing_amiss(report, tmp_path, models, model_run):
    remembering = make_report(tmp_path, models, model_run, LOSSES, remembering=remembering_rows())
    with browser() as chromium:
        for folder in (report, remembering):
            assert findings_of_file(chromium, folder / "evaluation.html") == []


def test_a_page_in_dark_colours_is_printed_in_light_ones(report):
    with browser() as chromium:
        assert printed_ink(chromium, report / "evaluation.html") == "rgb(32, 33, 36)"


def test_extremes_are_the_same_whatever_the_files(tmp_path):
    losses = dict(zip(NAMES, [3, 1, 2, 2, math.nan, 0.5], strict=False))
    paths = []
    for number, (name, loss) in enumerate(losses.items()):
        paths.append(str(tmp_path / f"{number}.gz"))
        write_shard(paths[-1], [row(name, s, loss, 1) for s in range(STRATA)], str(tmp_path))
    for files in (paths, paths[::-1]):
        found = examples.extremes(files, 3)
        assert [(one.example_id, one.loss) for one in found.worst] == [
            ("id0", 3.0),
            ("id3", 2.0),
            ("id2", 2.0),
        ]
        assert [one.example_id for one in found.best] == ["id5", "id1", "id3"]


@pytest.mark.parametrize("count", [1, 2, 3, 10, 15])
def test_every_pair_stands_before_next_to_after(count):
    def plain(*colour):
        return np.full((8, 8, 3), colour, np.uint8)

    pairs = [Pair(f"prompt {i}", plain(i, 1, 2), plain(i, 5, 6)) for i in range(count)]
    sheet = np.asarray(before_after(pairs, "Title", "Subtitle " * 60))
    corners = []
    for index in range(count):
        before = np.argwhere((sheet == (index, 1, 2)).all(-1))
        after = np.argwhere((sheet == (index, 5, 6)).all(-1))
        assert len(before) == len(after) == 192 * 192
        assert before[0][0] == after[0][0]
        assert before[-1][1] < after[0][1]
        corners.append(tuple(before[0]))
    assert corners == sorted(corners)


def test_large_pictures_are_not_magnified():
    picture = np.full((512, 512, 3), 7, np.uint8)
    sheet = np.asarray(before_after([Pair("p", picture, picture)], "Title", "Subtitle"))
    assert (sheet == 7).all(-1).sum() == 2 * 256 * 256


def test_smoothing_is_a_moving_average():
    values = np.arange(60.0) ** 2
    smooth = charts.smoothed(values)
    assert smooth[0] == pytest.approx(np.mean(values[:3]))
    assert smooth[30] == pytest.approx(np.mean(values[28:33]))
    assert smooth[59] == pytest.approx(np.mean(values[57:]))
    np.testing.assert_allclose(charts.smoothed(np.array([3.0])), [3.0])


def test_intervals_are_drawn_to_scale():
    points = [(250.0, Metric(0.5, 0.25, 0.75)), (750.0, Metric(0.25)), (900.0, Metric(math.nan))]
    chart = charts.intervals({"candidate": points}, 1000.0, "losses")
    circles = re.findall(r'<circle class="candidate" cx="([\d.]+)" cy="([\d.]+)"', chart)
    (left, middle), (right, low) = ((float(x), float(y)) for x, y in circles)
    [(top, bottom)] = re.findall(
        rf'<line class="candidate" x1="{left}" y1="([\d.]+)" x2="{left}" y2="([\d.]+)"', chart
    )
    assert float(top) - middle == pytest.approx(middle - float(bottom), abs=0.2)
    assert low == pytest.approx(float(top), abs=0.2)
    assert (left - 42) * 3 == pytest.approx(right - 42, abs=0.5)
    assert "0.5000 (0.2500 to 0.7500)" in chart
    assert "nan" not in chart


def test_charts_can_do_without_numbers():
    png = charts.loss_curve([{"step": 1, "loss": math.nan}], math.nan, 0.5, "base weights")
    Image.open(io.BytesIO(png)).verify()
    for chart in (
        charts.intervals({"candidate": []}, 1000.0, "none", zero_line=True, as_percent=True),
        charts.intervals({"candidate": [(5.0, Metric(math.nan))]}, 1000.0, "none"),
        charts.curve([1, 2], [math.nan, math.nan], {"candidate": math.nan}, "none"),
        charts.curve([], [], {}, "none"),
    ):
        assert "nan" not in chart


def test_the_component_makes_its_spec():
    types = {
        "examples": standard_artifacts.Examples,
        "latents": standard_artifacts.Examples,
        "model": standard_artifacts.Model,
        "model_run": standard_artifacts.ModelRun,
        "scores": standard_artifacts.Examples,
        "evaluation": standard_artifacts.ModelEvaluation,
        "blessing": standard_artifacts.ModelBlessing,
    }
    component = EvaluationReport(**{name: Channel(type=kind) for name, kind in types.items()})
    assert component.outputs["report"].type is ReportArtifact
    assert len(component.exec_properties["code_version"]) == 16
    assert "baseline_model" not in component.inputs
