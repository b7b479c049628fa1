"""Which models are blessed: the real base weights, creatures, and models made worse on purpose."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import small_runs
import tensorflow as tf
from tfx.dsl.components.base.base_beam_executor import BaseBeamExecutor
from tfx.types import Artifact, artifact_utils, standard_artifacts
from tfx.utils import proto_utils

from components.evaluator import executor as evaluator
from components.evaluator.results import ALL, read_metrics
from components.latent_gen import executor as latent_gen
from components.loss_scorer import executor as loss_scorer
from components.tfrecords import describe_examples, read_shard, write_shard
from pipeline.config import load_config
from pipeline.evaluation import eval_config, splits
from trainer.data.latents import training_batches
from trainer.diffusion.noise_schedule import NoiseSchedule
from trainer.export.saved_models import DiffusionModelModule
from trainer.presets import ENCODERS, get_preset
from trainer.training.fine_tuner import FineTuner
from trainer.training_config import TrainingConfig
from trainer.weights.base_model import BaseModel

DATASET = Path(__file__).resolve().parent.parent / "data" / "creatures" / "data"
BASE_MODEL = BaseModel.locate(get_preset("tiny"), get_preset("tiny").image_size, "default")
PRESET = BASE_MODEL.preset
SMALLER = dataclasses.replace(BASE_MODEL, image_size=BASE_MODEL.image_size // 2)
"""The same network at a quarter of the work."""
# Fewer rows, for models that differ at all timesteps alike.
QUICK = {"num_strata": 5}
ONLY_LOSSES = {"num_samples": 0, "num_training_pictures": 0, "num_training_samples": 0}


def context(base_model: BaseModel) -> dict[str, str | int]:
    return {
        "preset": PRESET.name,
        "image_size": base_model.image_size,
        "base_weights": "default",
        "code_version": "1",
    }


def record(row) -> bytes:
    image, caption = row["image"]["bytes"], row["text"].encode()
    values = {
        "id": hashlib.sha256(image + caption).hexdigest().encode(),
        "image/encoded": image,
        "caption": caption,
    }
    features = {
        name: tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))
        for name, value in values.items()
    }
    return tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString()


def encoded(base_model: BaseModel, folder: Path, split: str, start: int, stop: int) -> Artifact:
    """Latents of some creatures, as the component makes them."""
    [first, *_] = sorted(DATASET.glob("*.parquet"))
    rows = pq.read_table(first).slice(start, stop - start).to_pylist()
    examples, made = standard_artifacts.Examples(), standard_artifacts.Examples()
    examples.uri, made.uri = str(folder / "examples"), str(folder / "latents")
    describe_examples(examples, [split])
    uri = artifact_utils.get_split_uri([examples], split)
    os.makedirs(uri)
    path = os.path.join(uri, "examples-00000-of-00001.gz")
    write_shard(path, map(record, rows), str(folder))
    hashed = base_model.hash(ENCODERS)
    settings = {"encoders_hash": hashed, "flip": "never", "crop": "centre", "crop_seed": 0}
    settings |= {"tag_variants": 0, "tag_keep": 1, "tag_dropout": 0.0, "tag_seed": 0}
    settings["latents_index"] = ""
    latent_gen.Executor(BaseBeamExecutor.Context(beam_pipeline_args=[])).Do(
        {"examples": [examples]},
        {"latents": [made]},
        {**context(base_model), **settings},
    )
    return made


def export(module: DiffusionModelModule, image_size: int, folder: Path) -> Artifact:
    serving = folder / "Format-Serving"
    signatures = {"predict_epsilon": module.serve_prediction}
    tf.saved_model.save(module, str(serving / "diffusion_model"), signatures=signatures)
    (serving / "manifest.json").write_text(
        json.dumps({"preset": PRESET.name, "image_size": image_size})
    )
    artifact = standard_artifacts.Model()
    artifact.uri = str(folder)
    artifact.id = 8
    return artifact


class Judge:
    """LossScorer and Evaluator, one after the other.

    Attributes:
        scores: What LossScorer made last.
    """

    def __init__(
        self, base_model: BaseModel, folder: Path, latents: Artifact | None = None
    ) -> None:
        """Judges by latents, or by those of 60 creatures that nothing is trained on."""
        self._base_model = base_model
        self._latents = latents or encoded(base_model, folder / "held_out", "eval", 0, 60)
        self.scores = standard_artifacts.Examples()
        self._folder = folder
        self._runs = 0

    def __call__(self, candidate: Artifact, baseline: Artifact | None = None, **changed):
        """Whether the candidate is blessed, the reasons if not, and the metrics over all rows.

        Args:
            candidate: Model.
            baseline: Model; `None` for the base weights.
            **changed: Settings of `evaluation` that are not the defaults.
        """
        self._runs += 1
        folder = self._folder / str(self._runs)
        scores, evaluation, blessing = (
            standard_artifacts.Examples(),
            standard_artifacts.ModelEvaluation(),
            standard_artifacts.ModelBlessing(),
        )
        for artifact, name in ((scores, "scores"), (evaluation, "found"), (blessing, "blessing")):
            artifact.uri = str(folder / name)
        settings = dataclasses.replace(load_config().evaluation, **{**ONLY_LOSSES, **changed})
        models = {"model": [candidate], "baseline_model": [baseline] if baseline else []}
        arguments = [
            "--direct_num_workers=1",
            "--direct_running_mode=multi_threading",
            # As `beam_pipeline_args` of the local runner says: or TFX packs its code.
            "--sdk_container_image=none",
        ]
        beam = BaseBeamExecutor.Context(beam_pipeline_args=arguments, tmp_dir=str(folder))
        loss_scorer.Executor(beam).Do(
            {"latents": [self._latents], **models},
            {"scores": [scores]},
            {
                **context(self._base_model),
                "base_weights_hash": self._base_model.hash(loss_scorer.SCORED),
                "num_strata": settings.num_strata,
                "min_draws": settings.min_draws,
                "seed": settings.seed,
                "num_samples": 0,
                "num_training_pictures": settings.num_training_pictures,
                "num_training_samples": settings.num_training_samples,
                "sample_steps": PRESET.sampling.num_steps,
                "sampler": PRESET.sampling.sampler,
                "sample_guidance_scale": PRESET.sampling.guidance_scale,
                "measures": "[]",
                "clip_model": "",
                "clip_model_hash": "",
            },
        )
        os.makedirs(blessing.uri)
        evaluator.Executor(beam).Do(
            {"examples": [scores], **models},
            {"evaluation": [evaluation], "blessing": [blessing]},
            {
                "eval_config": proto_utils.proto_to_json(eval_config(settings)),
                "example_splits": json.dumps(splits(settings)),
            },
        )
        self.scores = scores
        reasons = blessing.get_string_custom_property("reasons").splitlines()
        blessed = blessing.get_int_custom_property("blessed") == 1
        verdict = blessing.get_string_custom_property("verdict")
        assert (verdict == "blessed") == (not reasons)
        assert blessed == (verdict != "refused")
        return blessed, reasons, read_metrics(evaluation.uri)[ALL]


@pytest.fixture(scope="module")
def judge(tmp_path_factory) -> Judge:
    return Judge(SMALLER, tmp_path_factory.mktemp("judged"))


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, Artifact]:
    """The base weights as they are, and with noise of 10 % on each."""
    model, size = SMALLER.build("diffusion_model"), SMALLER.image_size
    module = small_runs.without_sampling(model, PRESET, size)
    made = {"same": export(module, size, tmp_path_factory.mktemp("same"))}
    rng = np.random.default_rng(0)
    for variable in model.weights:
        values = variable.numpy()
        variable.assign(values + 0.1 * values.std() * rng.standard_normal(values.shape))
    return {**made, "noisy": export(module, size, tmp_path_factory.mktemp("noisy"))}


@pytest.fixture
def same(models) -> Artifact:
    return models["same"]


@pytest.fixture
def noisy(models) -> Artifact:
    return models["noisy"]


@pytest.mark.slow
def test_noise_on_the_weights_is_not_blessed(judge, same, noisy):
    blessed, reasons, metrics = judge(noisy, same, **QUICK)
    assert not blessed
    assert metrics["loss_delta"].value > 0
    assert "the held-out loss rises by" in reasons[0]


def test_the_same_model_has_the_same_loss_and_is_not_blessed(judge, same):
    blessed, reasons, metrics = judge(same, same, **QUICK)
    assert not blessed
    [reason] = reasons
    loss = metrics["loss"].value
    assert reason == f"the held-out loss equals that of model 8, {loss:.4f}: the model is no better"
    assert metrics["loss_delta"].value == 0.0


def test_a_better_model_is_blessed(judge, same, noisy):
    blessed, _, metrics = judge(same, noisy, **QUICK)
    assert blessed
    assert metrics["loss_delta"].upper < 0


def trained(latents, folder: Path, steps: int, num_examples: int | None = None) -> Artifact:
    """The base weights, fine-tuned as a run does."""
    [path] = [
        os.path.join(artifact_utils.get_split_uri([latents], "train"), name)
        for name in os.listdir(artifact_utils.get_split_uri([latents], "train"))
    ]
    if num_examples is not None:
        some = [row for _, row in zip(range(num_examples), read_shard(path), strict=False)]
        path = str(folder / "some.gz")
        write_shard(path, some, str(folder))
    model = BASE_MODEL.build("diffusion_model")
    config = TrainingConfig(steps=steps, train_text_encoder=False).resolved(PRESET)
    empty = tf.zeros((77, PRESET.text_encoder.width))
    tuner = FineTuner(model, PRESET, config, empty_caption=empty, text_encoder=None, strategy=None)

    def batches(first_step):
        return training_batches(
            [path],
            PRESET,
            BASE_MODEL.image_size,
            flip=False,
            batch_size=config.batch_size,
            seed=0,
            first_step=first_step,
            num_examples=num_examples or 360,
        )

    tuner.train(batches, str(folder / "checkpoints"))
    tuner.assign_averages()
    module = small_runs.without_sampling(model, PRESET, BASE_MODEL.image_size)
    return export(module, BASE_MODEL.image_size, folder)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_fine_tuned_model_is_blessed_and_bad_ones_are_not(tmp_path, monkeypatch):
    for name in ("judged", "latents", "good", "overfitted", "wrong"):
        (tmp_path / name).mkdir()
    judge = Judge(BASE_MODEL, tmp_path / "judged")
    latents = encoded(BASE_MODEL, tmp_path / "latents", "train", 60, 420)
    good = trained(latents, tmp_path / "good", PRESET.training.steps)
    blessed, reasons, metrics = judge(good)
    assert blessed
    assert not reasons
    assert metrics["loss_delta"].value < -0.1 * metrics["loss_baseline"].value

    overfitted = trained(latents, tmp_path / "overfitted", 320, num_examples=8)
    for baseline in (None, good):
        blessed, reasons, _ = judge(overfitted, baseline)
        assert not blessed
        assert reasons

    def linear(self, latent, noise, timesteps):
        """The schedule of Ho et al. 2020, which is not Stable Diffusion's."""
        alphas = tf.constant(np.cumprod(1 - np.linspace(1e-4, 0.02, 1000)), tf.float32)
        alpha_bar = tf.gather(alphas, timesteps)[:, None, None, None]
        return tf.sqrt(alpha_bar) * latent + tf.sqrt(1.0 - alpha_bar) * noise

    monkeypatch.setattr(NoiseSchedule, "add_noise", linear)
    wrong = trained(latents, tmp_path / "wrong", PRESET.training.steps)
    for baseline in (None, good):
        blessed, reasons, _ = judge(wrong, baseline)
        assert not blessed
        assert reasons
