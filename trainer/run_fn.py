"""What the TFX Trainer calls; the one module here that knows TFX."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
import logging
import os
import resource
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf
from tfx.components.trainer.fn_args_utils import FnArgs

from trainer.export import (
    DecoderModule,
    DiffusionModelModule,
    ServingModules,
    TextEncoderModule,
    export_models,
)
from trainer.fine_tuner import FineTuner, StepRecord, write_history
from trainer.latents import LatentsManifest, training_batches
from trainer.models import build_decoder, build_diffusion_model, build_text_encoder
from trainer.presets import NETWORKS, Preset, get_preset
from trainer.progress import TrainingProgress
from trainer.tokenizer import tokenize
from trainer.training_config import ResolvedTrainingConfig
from trainer.weights import base_weights_hash, load_base_weights

MODEL_MANIFEST_NAME = "manifest.json"

_ENCODERS = ("text_encoder", "image_encoder")

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class TrainerSettings:
    """The Trainer's `custom_config`.

    Attributes:
        preset: Name of the preset.
        image_size: Side of the pictures in pixels.
        base_weights: `"default"`, `"random"` or a folder.
        base_weights_hash: Hash of all four networks' base weights; it makes TFX's cache see other
            weights at the same place.
        training: Fields of `ResolvedTrainingConfig`.
        validation: `prompts`, `seed`, `num_steps` and `guidance_scale` of the pictures that are
            drawn before and after training.
        checkpoint_dir: Folder for the checkpoints of all runs; a run finds its own by a hash.
        code_version: Hash of this package's code; it makes TFX's cache see code changes.
    """

    preset: str
    image_size: int
    base_weights: str
    base_weights_hash: str
    training: dict[str, Any]
    validation: dict[str, Any]
    checkpoint_dir: str
    code_version: str


def run_fn(fn_args: FnArgs) -> None:
    """Fine-tunes the diffusion model on latents and exports the three SavedModels.

    Args:
        fn_args: From TFX: `train_files` (the Latents artifact's train split), `custom_config`
            (fields of `TrainerSettings`), `serving_model_dir` and `model_run_dir` (outputs).

    Raises:
        ValueError: The latents were made by another preset, size or encoders than the settings
            name, there are fewer than a batch of them, or the base weights have changed.
        TrainingDivergedError: The loss became infinite or not a number.
    """
    since = time.monotonic()
    settings = TrainerSettings(**fn_args.custom_config)
    config = ResolvedTrainingConfig(**settings.training)
    preset = get_preset(settings.preset)
    # `train_files` holds patterns `<uri>/Split-train/*`.
    latents_uri = os.path.dirname(os.path.dirname(fn_args.train_files[0]))
    latents = LatentsManifest.read(latents_uri)
    _check_inputs(latents, settings, preset, config)

    keras.utils.set_random_seed(config.seed)
    diffusion_model = build_diffusion_model(preset, settings.image_size)
    load_base_weights(diffusion_model, "diffusion_model", preset, settings.base_weights)
    text_encoder = build_text_encoder(preset)
    load_base_weights(text_encoder, "text_encoder", preset, settings.base_weights)
    decoder = build_decoder(preset, settings.image_size)
    load_base_weights(decoder, "decoder", preset, settings.base_weights)
    modules = ServingModules(
        TextEncoderModule(text_encoder, preset),
        DiffusionModelModule(diffusion_model, preset, settings.image_size),
        DecoderModule(decoder, preset, settings.image_size),
    )
    examples = latents.counts["train"]
    logger.info(
        "Training %s parameters: %d steps of %d pictures, %.1f epochs of %d.",
        f"{diffusion_model.count_params():,}",
        config.steps,
        config.batch_size,
        config.steps * config.batch_size / examples,
        examples,
    )

    folder = os.path.join(settings.checkpoint_dir, _run_hash(settings, latents))
    validation = os.path.join(folder, "validation")
    _draw_validation(modules, settings.validation, os.path.join(validation, "step_000000"))
    tuner = FineTuner(
        diffusion_model,
        preset,
        config,
        empty_caption=modules.text_encoder.encode(tf.constant(tokenize([""])))[0],
    )
    files = tf.io.gfile.glob(list(fn_args.train_files))
    train_log = tf.summary.create_file_writer(os.path.join(folder, "train"))
    training_since = time.monotonic()
    with TrainingProgress(config.steps) as progress, train_log.as_default():

        def on_record(record: StepRecord) -> None:
            progress.update(record)
            for name in ("loss", "learning_rate", "gradient_norm", "images_per_second"):
                tf.summary.scalar(name, getattr(record, name), step=record.step)

        history = tuner.train(
            lambda first_step: training_batches(
                files,
                preset,
                settings.image_size,
                flip=latents.flip,
                batch_size=config.batch_size,
                seed=config.seed,
                first_step=first_step,
                num_examples=examples,
            ),
            folder,
            on_record,
        )
    training_seconds = time.monotonic() - training_since
    train_log.close()

    tuner.assign_averages()
    final = os.path.join(validation, f"step_{config.steps:06d}")
    _draw_validation(modules, settings.validation, final)
    export_models(fn_args.serving_model_dir, modules)
    manifest = {
        "preset": preset.name,
        "image_size": settings.image_size,
        **dataclasses.asdict(config),
        "base_weights": {
            network: base_weights_hash(preset, settings.base_weights, [network])
            for network in NETWORKS
        },
        "latents": {"uri": latents_uri, **dataclasses.asdict(latents)},
        "defaults": {name: settings.validation[name] for name in ("num_steps", "guidance_scale")},
        "parameters": {
            model.name: model.count_params() for model in (text_encoder, diffusion_model, decoder)
        },
        "final_loss": history[-1].loss,
        "images_per_second": sorted(r.images_per_second for r in history)[len(history) // 2],
        "training_seconds": round(training_seconds, 1),
        "wall_time_seconds": round(time.monotonic() - since, 1),
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "code_version": settings.code_version,
        "git_commit": _git_commit(),
        "versions": {
            name: importlib.metadata.version(name)
            for name in ("tensorflow", "keras", "keras-cv", "tfx")
        },
    }
    with tf.io.gfile.GFile(os.path.join(fn_args.serving_model_dir, MODEL_MANIFEST_NAME), "w") as f:
        f.write(json.dumps(manifest, indent=2, sort_keys=True))
    write_history(history, fn_args.model_run_dir)
    for name in ("train", "validation"):
        _copy_tree(os.path.join(folder, name), os.path.join(fn_args.model_run_dir, name))


def _check_inputs(
    latents: LatentsManifest,
    settings: TrainerSettings,
    preset: Preset,
    config: ResolvedTrainingConfig,
) -> None:
    if base_weights_hash(preset, settings.base_weights) != settings.base_weights_hash:
        raise ValueError(
            f"the base weights in {settings.base_weights!r} have changed since the run was "
            "prepared: start the run again"
        )
    hash_now = base_weights_hash(preset, settings.base_weights, _ENCODERS)
    made_by = (latents.preset, latents.image_size, latents.encoders_hash)
    wanted = (settings.preset, settings.image_size, hash_now)
    if made_by != wanted:
        raise ValueError(
            "the latents were made for another model: preset, image size and hash of the "
            f"encoders' weights are {made_by}, this run needs {wanted}; run LatentGen again"
        )
    if config.batch_size > latents.counts["train"]:
        raise ValueError(
            f"the batch size is {config.batch_size} but the train split has only "
            f"{latents.counts['train']} pictures: set --batch-size to that or less"
        )


def _run_hash(settings: TrainerSettings, latents: LatentsManifest) -> str:
    """Names the run by all that decides its result, so that a restart finds its checkpoints."""
    facts = {**dataclasses.asdict(settings), **dataclasses.asdict(latents)}
    del facts["checkpoint_dir"]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def _draw_validation(modules: ServingModules, validation: Mapping[str, Any], folder: str) -> None:
    """Draws every validation prompt with the models as they are, into `<folder>/NN.png`."""
    tf.io.gfile.makedirs(folder)
    for index, prompt in enumerate(validation["prompts"]):
        contexts = modules.text_encoder.text([prompt], [""])
        latent = modules.diffusion_model.serve(
            **contexts,
            num_steps=tf.constant(validation["num_steps"], tf.int32),
            guidance_scale=tf.constant(validation["guidance_scale"], tf.float32),
            seed=tf.constant([validation["seed"] + index, 0], tf.int32),
        )
        encoded = modules.decoder.png(**latent)["image"][0]
        with tf.io.gfile.GFile(os.path.join(folder, f"{index:02d}.png"), "wb") as f:
            f.write(encoded.numpy())
    with tf.io.gfile.GFile(os.path.join(os.path.dirname(folder), "prompts.json"), "w") as f:
        f.write(json.dumps(dict(validation), indent=2, sort_keys=True))


def _git_commit() -> str | None:
    """The commit this code is at; `None` where it does not lie in a git checkout."""
    found = subprocess.run(
        ["git", "rev-parse", "HEAD"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return found.stdout.strip() or None


def _copy_tree(source: str, target: str) -> None:
    for folder, _, names in tf.io.gfile.walk(source):
        here = os.path.join(target, os.path.relpath(folder, source))
        tf.io.gfile.makedirs(here)
        for name in names:
            tf.io.gfile.copy(os.path.join(folder, name), os.path.join(here, name), overwrite=True)
