"""A model that knows its training pictures by heart is told from one that does not."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import keras
import pytest
import small_runs
import tensorflow as tf
from test_blessing import PRESET, SMALLER, Judge, encoded, export
from tfx.types import Artifact, artifact_utils, standard_artifacts

from components.evaluation_report.remembered import Remembered, remembered
from components.tfrecords import read_shard, write_shard
from storage.model_manifest import ModelManifest
from trainer.data.latents import LatentsManifest, training_batches
from trainer.export.saved_models import DecoderModule
from trainer.text.tokenizer import tokenize
from trainer.training.fine_tuner import Batch, FineTuner
from trainer.training_config import TrainingConfig

STEPS, PICTURES = 1000, 8
LOOKED = {
    "num_training_pictures": PICTURES,
    "num_training_samples": PICTURES,
    "max_memorization_gap": 0.3,
    "max_copies": 0.1,
    # Nothing else is to refuse it.
    "min_loss_improvement": -10.0,
    "max_loss_regression": 10.0,
    "max_stratum_regression": 100.0,
}


def shard_of(latents: Artifact, split: str) -> str:
    [path] = Path(artifact_utils.get_split_uri([latents], split)).iterdir()
    return str(path)


def latents_of(folder: Path, train: list[bytes], held_out: list[bytes]) -> Artifact:
    """Latents with both splits."""
    made = standard_artifacts.Examples()
    made.uri, made.split_names = str(folder), '["train", "eval"]'
    for split, records in (("train", train), ("eval", held_out)):
        (folder / f"Split-{split}").mkdir(parents=True)
        path = folder / f"Split-{split}" / "latents-00000-of-00001.gz"
        write_shard(str(path), records, str(folder))
    counts = {"train": len(train), "eval": len(held_out)}
    LatentsManifest(PRESET.name, SMALLER.image_size, "hash", False, counts).write(made.uri)
    return made


def exported(model: keras.Model, text_encoder: keras.Model, folder: Path) -> Artifact:
    """What is needed to score a model and to draw with it."""
    module = small_runs.without_sampling(model, PRESET, SMALLER.image_size)
    made = export(module, SMALLER.image_size, folder)
    decoder = DecoderModule(SMALLER.build("decoder"))
    del decoder.png, decoder.png_bytes, decoder.rows
    encoder = tf.Module()
    encoder.model = text_encoder
    tokens = tf.TensorSpec([None, PRESET.text_encoder.max_length], tf.int32, name="tokens")
    encode = tf.function(
        lambda tokens: {"context": text_encoder(tokens)}, input_signature=[tokens], autograph=False
    )
    serving = folder / "Format-Serving"
    for name, saved, signature in (
        ("decoder", decoder, decoder.serve),
        ("text_encoder", encoder, encode),
    ):
        signatures = {"serving_default": signature}
        tf.saved_model.save(saved, str(serving / name), signatures=signatures)
    return made


def judged(folder: Path, latents: Artifact, model: Artifact, **changed):
    """What the Evaluator says, and what the page would."""
    judge = Judge(SMALLER, folder, latents)
    settings = {**LOOKED, **changed}
    _, reasons, metrics = judge(model, **settings)
    manifest = ModelManifest(
        PRESET.name,
        SMALLER.image_size,
        training={"steps": STEPS, "batch_size": PICTURES},
        latents=dataclasses.asdict(LatentsManifest.read(latents.uri)),
    )
    told = remembered(judge.scores, latents, metrics, manifest)
    assert told is not None
    return reasons, metrics, told


def show(name: str, metrics, told: Remembered) -> None:
    """Prints the numbers of docs/evaluation.md; `-s` shows them."""
    print(f"\n{name}")
    for key in (
        "train_loss",
        "train_loss_baseline",
        "loss",
        "loss_baseline",
        "memorization_gap",
        "memorization_gap_baseline",
        "memorization_gap_added",
        "text_part",
        "train_text_part",
        "text_part_excess",
        "nearness",
        "nearness_held_out",
        "copies",
        "copies_shown",
    ):
        if key in metrics:
            metric = metrics[key]
            print(f"  {key:26} {metric.value:.4f}  ({metric.lower:.4f} to {metric.upper:.4f})")
    print(*told.said, sep="\n  ")
    print("  seconds", json.dumps(dict(told.seconds)))


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_what_is_known_by_heart_is_caught_by_each_of_the_three(tmp_path):
    for name in ("train", "eval", "same", "by_heart"):
        (tmp_path / name).mkdir()
    train, held_out = (
        list(read_shard(shard_of(encoded(SMALLER, tmp_path / split, split, *rows), split)))
        for split, rows in (("train", (60, 60 + PICTURES)), ("eval", (0, 60)))
    )
    latents = latents_of(tmp_path / "latents", train, held_out)
    model, text_encoder = SMALLER.build("diffusion_model"), SMALLER.build("text_encoder")
    same = exported(model, text_encoder, tmp_path / "same")
    config = TrainingConfig(steps=STEPS, batch_size=PICTURES, train_text_encoder=False)
    config = config.resolved(PRESET)
    empty = text_encoder(tf.constant(tokenize([""], PRESET.text_encoder.max_length)))[0]
    tuner = FineTuner(model, PRESET, config, empty_caption=empty, text_encoder=None, strategy=None)

    def batches(first_step: int) -> Iterator[Batch]:
        return training_batches(
            [shard_of(latents, "train")],
            PRESET,
            SMALLER.image_size,
            flip=False,
            batch_size=PICTURES,
            seed=0,
            first_step=first_step,
            num_examples=PICTURES,
        )

    tuner.train(batches, str(tmp_path / "checkpoints"))
    tuner.assign_averages()
    by_heart = exported(model, text_encoder, tmp_path / "by_heart")

    reasons, metrics, told = judged(tmp_path / "judged_same", latents, same)
    show("the base weights", metrics, told)
    assert metrics["memorization_gap_shown"].value < 0.3
    assert metrics["copies_shown"].value == 0
    assert not metrics["text_part_excess"].lower > 0
    assert not any("remembers" in reason or "drawn" in reason for reason in reasons)

    reasons, metrics, told = judged(tmp_path / "judged_by_heart", latents, by_heart)
    show("eight pictures by heart", metrics, told)
    assert metrics["memorization_gap"].lower > 0.3
    assert metrics["copies_shown"].value > 0.5
    assert metrics["text_part_excess"].lower > 0
    assert ["remembers" in reason or "drawn" in reason for reason in reasons] == [True, True]
    assert told.bad
    assert len(told.said) == 3

    # Half of what it was trained on is said to be held out.
    sabotaged = latents_of(tmp_path / "sabotaged", train[::2], train[1::2])
    _, metrics, told = judged(tmp_path / "judged_sabotaged", sabotaged, by_heart, min_draws=100)
    show("the same, shown its held-out pictures", metrics, told)
    assert metrics["memorization_gap_shown"].value == 0
    assert metrics["train_loss"].value < 0.5 * metrics["train_loss_baseline"].value
    assert any("Were they, or nearly the same pictures" in sentence for sentence in told.said)
    shutil.rmtree(tmp_path / "checkpoints")
