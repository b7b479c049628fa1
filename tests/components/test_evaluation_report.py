"""The report of a small training run, made of real files."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from tfx.types import Channel, standard_artifacts

from components import EvaluationReport as ReportArtifact
from components.evaluation_report import EvaluationReport, charts, executor
from components.evaluation_report.pictures import Pair, before_after
from components.tfrecords import write_shard

PROMPTS = ["a red creature", "a creature with a very long name " * 6, "ein Wesen, grün & rund"]
SETTINGS = {"prompts": PROMPTS, "seed": 5, "num_steps": 3, "guidance_scale": 2.0}
SIZE = 16


class TextEncoder(tf.Module):
    @tf.function(input_signature=[tf.TensorSpec([None], tf.string)] * 2)
    def text(self, prompt, negative_prompt):
        def encode(strings):
            return tf.cast(tf.strings.length(strings), tf.float32)[:, None, None]

        return {"context": encode(prompt), "unconditional_context": encode(negative_prompt)}


class DiffusionModel(tf.Module):
    """Hands on its inputs: the noise's seed, the steps, the guidance and the prompt's length."""

    @tf.function(
        input_signature=[
            tf.TensorSpec([None, 1, 1], tf.float32),
            tf.TensorSpec([None, 1, 1], tf.float32),
            tf.TensorSpec([], tf.int32, name="num_steps"),
            tf.TensorSpec([], tf.float32, name="guidance_scale"),
            tf.TensorSpec([2], tf.int32, name="seed"),
        ]
    )
    def serve(self, context, unconditional_context, num_steps, guidance_scale, seed):
        values = [seed[0], 20 + seed[1], num_steps]
        first = tf.cast(tf.stack(values), tf.float32) + 0.0 * unconditional_context[0, 0]
        return {"latent": tf.concat([first, [10.0 * guidance_scale]], 0)[None] + 0.0 * context[0]}


class Decoder(tf.Module):
    @tf.function(input_signature=[tf.TensorSpec([1, 4], tf.float32, name="latent")])
    def serve(self, latent):
        colour = tf.stack([latent[0, 0] + latent[0, 2], latent[0, 1], latent[0, 3]])
        pixels = tf.broadcast_to(colour[None, None, None], [1, SIZE, SIZE, 3])
        return {"generated_images": tf.cast(pixels, tf.uint8)}


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    serving = folder / "Format-Serving"
    text_encoder, diffusion_model, decoder = TextEncoder(), DiffusionModel(), Decoder()
    for name, module, signatures in (
        ("text_encoder", text_encoder, {"text": text_encoder.text}),
        ("diffusion_model", diffusion_model, {"serving_default": diffusion_model.serve}),
        ("decoder", decoder, {"serving_default": decoder.serve}),
    ):
        tf.saved_model.save(module, str(serving / name), signatures=signatures)
    manifest = {"preset": "tiny", "image_size": SIZE, "steps": 40, "batch_size": 2}
    (serving / "manifest.json").write_text(
        json.dumps({**manifest, "images_per_second": 12.5, "wall_time_seconds": 9.0})
    )
    return folder


@pytest.fixture
def model_run(tmp_path) -> Path:
    folder = tmp_path / "run"
    pictures = folder / "validation" / "step_000000"
    pictures.mkdir(parents=True)
    for index in range(len(PROMPTS)):
        Image.new("RGB", (SIZE, SIZE), (200, 100, index)).save(pictures / f"{index:02d}.png")
    (folder / "validation" / "prompts.json").write_text(json.dumps(SETTINGS))
    records = [{"step": 10 * i, "loss": 1 / i, "learning_rate": 1e-3} for i in range(1, 5)]
    (folder / "history.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    return folder


def score_record(bucket: str, loss: float, loss_baseline: float) -> bytes:
    features = {
        "timestep_bucket": tf.train.Feature(bytes_list=tf.train.BytesList(value=[bucket.encode()])),
        **{
            name: tf.train.Feature(float_list=tf.train.FloatList(value=[value]))
            for name, value in (
                ("loss", loss),
                ("loss_baseline", loss_baseline),
                ("loss_delta", loss - loss_baseline),
            )
        },
    }
    return tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString()


@pytest.fixture
def report(tmp_path, model, model_run):
    def report(rows, blessed=1, **properties):
        folder = tmp_path / "scores" / "Split-eval"
        folder.mkdir(parents=True)
        records = [score_record(*row) for row in rows]
        write_shard(str(folder / "scores-00000-of-00001.gz"), records, str(tmp_path))
        artifacts = {
            "model": standard_artifacts.Model(),
            "model_run": standard_artifacts.ModelRun(),
            "scores": standard_artifacts.Examples(),
            "blessing": standard_artifacts.ModelBlessing(),
        }
        uris = {"model": model, "model_run": model_run, "scores": tmp_path / "scores"}
        for name, artifact in artifacts.items():
            artifact.uri = str(uris.get(name, tmp_path / name))
        scores = artifacts["scores"]
        scores.split_names = '["eval"]'
        scores.set_string_custom_property("baseline", "base weights")
        scores.set_int_custom_property("num_examples", 2)
        for name, value in properties.items():
            scores.set_float_custom_property(name, value)
        artifacts["blessing"].set_int_custom_property("blessed", blessed)
        output = ReportArtifact()
        output.uri = str(tmp_path / "report")
        executor.Executor().Do(
            {name: [artifact] for name, artifact in artifacts.items()},
            {"report": [output]},
            {"code_version": "1"},
        )
        return tmp_path / "report"

    return report


ROWS = [
    ("500-999", 0.1, 0.3),
    ("000-499", 0.6, 0.5),
    ("500-999", 0.2, 0.3),
    ("000-499", 0.4, 0.9),
]


def test_the_report_has_the_numbers_and_pictures(report):
    folder = report(ROWS, loss=0.325, loss_baseline=0.5, loss_delta=-0.175)
    files = {path.name for path in folder.iterdir()}
    pictures = {"before_after.png", "loss_curve.png", "loss_by_timestep.png"}
    assert files == {*pictures, "summary.json"}
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["loss"] == 0.325
    assert summary["loss_change_percent"] == pytest.approx(-35)
    assert (summary["baseline"], summary["blessed"]) == ("base weights", True)
    assert (summary["preset"], summary["steps"], summary["images_per_second"]) == ("tiny", 40, 12.5)
    strata = [
        {"timesteps": "000-499", "loss": 0.5, "loss_baseline": 0.7, "loss_delta": -0.2},
        {"timesteps": "500-999", "loss": 0.15, "loss_baseline": 0.3, "loss_delta": -0.15},
    ]
    for found, expected in zip(summary["by_timestep"], strata, strict=True):
        assert found.pop("num_rows") == 2
        assert found.pop("timesteps") == expected.pop("timesteps")
        assert found == pytest.approx(expected, abs=1e-6)
    for name in pictures:
        with Image.open(folder / name) as image:
            assert min(image.size) > 400
            assert len(image.convert("RGB").getcolors(1 << 24)) > 50


def test_the_fine_tuned_pictures_come_from_the_exported_models(report):
    with Image.open(report(ROWS) / "before_after.png") as image:
        colours = {colour: count for count, colour in image.convert("RGB").getcolors(1 << 24)}
    for index in range(len(PROMPTS)):
        # The model's colour is seed + index + steps, 20, 10 * guidance.
        assert colours[(5 + index + 3, 20, 20)] == 192 * 192
        assert colours[(200, 100, index)] == 192 * 192


def test_losses_that_are_no_numbers_are_null(report):
    rows = [("000-499", math.nan, 0.5), ("500-999", 0.1, 0.3)]
    summary = json.loads((report(rows, blessed=0, loss_baseline=0.4) / "summary.json").read_text())
    assert summary["loss"] is summary["loss_delta"] is summary["loss_change_percent"] is None
    assert summary["loss_baseline"] == 0.4
    assert summary["blessed"] is False
    assert [bucket["loss"] is None for bucket in summary["by_timestep"]] == [True, False]


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


def test_charts_can_do_without_numbers():
    for png in (
        charts.loss_curve([{"step": 1, "loss": math.nan}], math.nan, 0.5, "base weights"),
        charts.loss_by_timestep([], "base weights"),
        charts.loss_by_timestep(
            [{"timesteps": "000-999", "loss": math.nan, "loss_baseline": 0.1}], "base weights"
        ),
    ):
        Image.open(io.BytesIO(png)).verify()


def test_the_component_makes_its_spec():
    component = EvaluationReport(
        model=Channel(type=standard_artifacts.Model),
        model_run=Channel(type=standard_artifacts.ModelRun),
        scores=Channel(type=standard_artifacts.Examples),
        blessing=Channel(type=standard_artifacts.ModelBlessing),
    )
    assert component.outputs["report"].type is ReportArtifact
    assert len(component.exec_properties["code_version"]) == 16
