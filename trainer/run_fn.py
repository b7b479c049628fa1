"""What the TFX Trainer calls; the one module here that knows TFX."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import json
import logging
import os
import platform
import resource
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import keras
import tensorflow as tf
from tfx.components.trainer.fn_args_utils import FnArgs

from storage.filesystem import content_digest
from trainer.data.latents import LatentsManifest, batch_spec, training_batches
from trainer.export.saved_models import ServingModules, export_models, serving_modules
from trainer.networks import build_decoder, build_diffusion_model, build_text_encoder
from trainer.presets import NETWORKS, Preset, get_preset
from trainer.text.tokenizer import tokenize
from trainer.training.distribution import is_chief, training_strategy, wait_for_all
from trainer.training.fine_tuner import FineTuner, StepRecord, write_history
from trainer.training.memory import (
    InsufficientMemoryError,
    MemoryEstimate,
    activation_bytes,
    check_fits,
    device_memory,
    estimate_memory,
    gigabytes,
    peak_gpu_bytes,
    program_bytes,
)
from trainer.training.progress import TrainingProgress
from trainer.training_config import ResolvedTrainingConfig, TrainerSettings, ValidationConfig
from trainer.weights.load import load_base_weights
from trainer.weights.sources import base_weights_hash, preset_for

MODEL_MANIFEST_NAME = "manifest.json"

_ENCODERS = ("text_encoder", "image_encoder")
_LOGGED = ("loss", "learning_rate", "gradient_norm", "images_per_second", "loss_scale")
_RECORDED_PACKAGES = ("tensorflow", "keras", "keras-cv", "tfx", "numpy", "safetensors")

logger = logging.getLogger(__name__)


def run_fn(fn_args: FnArgs) -> None:
    """Fine-tunes the diffusion model on latents and exports the three SavedModels.

    Of several workers, which `TF_CONFIG` names, all train and the chief alone writes.

    Args:
        fn_args: From TFX: `train_files` (the Latents artifact's train split), `custom_config` and
            `hyperparameters` (see `TrainerSettings.from_json`), `serving_model_dir` and
            `model_run_dir` (outputs).

    Raises:
        ValueError: The latents were made by another preset, size or encoders than the settings
            name, there are fewer than a batch of them, or the base weights have changed.
        InsufficientMemoryError: It would not fit into the device's memory.
        TrainingDivergedError: The loss or its gradients became infinite or not a number.
        TrainingInterruptedError: SIGTERM came; what was done is saved.
    """
    since = time.monotonic()
    settings = TrainerSettings.from_json(fn_args.custom_config, fn_args.hyperparameters)
    config = settings.training
    # Workers can only be joined before anything else is done with TensorFlow.
    strategy = training_strategy(config.devices)
    preset = preset_for(get_preset(settings.preset), settings.base_weights)
    # `train_files` holds patterns `<uri>/Split-train/*`.
    latents_uri = os.path.dirname(os.path.dirname(fn_args.train_files[0]))
    latents = LatentsManifest.read(latents_uri)
    _check_inputs(latents, settings, preset, config)
    examples = latents.counts["train"]
    config = config.for_examples(examples, preset)

    keras.utils.set_random_seed(config.seed)
    with strategy.scope() if strategy else contextlib.nullcontext():
        diffusion_model = build_diffusion_model(preset, settings.image_size)
        load_base_weights(diffusion_model, "diffusion_model", preset, settings.base_weights)
        text_encoder = build_text_encoder(preset)
        load_base_weights(text_encoder, "text_encoder", preset, settings.base_weights)
    decoder = build_decoder(preset, settings.image_size)
    load_base_weights(decoder, "decoder", preset, settings.base_weights)
    networks = (text_encoder, diffusion_model, decoder)
    modules = serving_modules(*networks, preset, settings.image_size)
    empty_tokens = tf.constant(tokenize([""]))
    memory_check = _MemoryCheck(networks, config)
    if not config.lora_rank:
        trained = networks[:2] if config.train_text_encoder else (diffusion_model,)
        memory_check([v.value for model in trained for v in model.weights], activations=0)
    tuner = FineTuner(
        diffusion_model,
        preset,
        config,
        empty_caption=(
            empty_tokens if config.train_text_encoder else modules.text_encoder.encode(empty_tokens)
        )[0],
        text_encoder=text_encoder if config.train_text_encoder else None,
        strategy=strategy,
    )
    gradients = tuner.trace(
        batch_spec(preset, settings.image_size, latents.flip, config.batch_size)
    )
    estimate = memory_check(tuner.variables, activations=activation_bytes(gradients))
    parameters = {model.name: model.count_params() for model in networks}
    trainable = sum(v.shape.num_elements() for v in tuner.variables)
    assert config.steps is not None
    logger.info(
        "Training %s of %s parameters: %d steps of %d pictures, %.1f epochs of %d.",
        f"{trainable:,}",
        f"{sum(parameters.values()):,}",
        config.steps,
        config.batch_size,
        config.steps * config.batch_size / examples,
        examples,
    )
    logger.info("Memory needed, about: %s; %s.", estimate, memory_check.available)

    folder = os.path.join(settings.checkpoint_dir, _run_hash(settings, latents, latents_uri))
    writes = is_chief(strategy)
    train_log = (
        tf.summary.create_file_writer(os.path.join(folder, "train"))
        if writes
        else tf.summary.create_noop_writer()
    )

    def draw(step: int) -> None:
        if writes:
            pictures = os.path.join(folder, "validation", f"step_{step:06d}")
            _draw_validation(modules, settings.validation, pictures, step)

    files = tf.io.gfile.glob(list(fn_args.train_files))
    with train_log.as_default():
        # As they are exported, so that the same traces serve.
        with tuner.averaged():
            draw(0)
        training_since = time.monotonic()
        with TrainingProgress(config.steps) as progress:

            def on_record(record: StepRecord) -> None:
                progress.update(record)
                for name in _LOGGED:
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
                draw=draw,
                draw_every_steps=settings.validation.every_steps,
            )
        training_seconds = time.monotonic() - training_since
        tuner.assign_averages()
        draw(config.steps)
    train_log.close()
    if writes:
        export_models(
            fn_args.serving_model_dir,
            modules
            if settings.export_weights == "float32"
            else serving_modules(*networks, preset, settings.image_size, settings.export_weights),
        )
        if tuner.adapters:
            tuner.adapters.save(fn_args.serving_model_dir)
        manifest = {
            "preset": preset.name,
            "image_size": settings.image_size,
            "export_weights": settings.export_weights,
            **dataclasses.asdict(config),
            "text_encoder_trained": config.train_text_encoder,
            "numerics": preset.numerics,
            "base_weights_source": settings.base_weights,
            "base_weights": {
                network: base_weights_hash(preset, settings.base_weights, [network])
                for network in NETWORKS
            },
            "latents": {"uri": latents_uri, **dataclasses.asdict(latents)},
            "validation": dataclasses.asdict(settings.validation),
            "defaults": {
                "num_steps": settings.validation.num_steps,
                "guidance_scale": settings.validation.guidance_scale,
            },
            "parameters": parameters,
            "trainable_parameters": trainable,
            "replicas": strategy.num_replicas_in_sync if strategy else 1,
            "final_loss": history[-1].loss,
            "images_per_second": sorted(r.images_per_second for r in history)[len(history) // 2],
            "training_seconds": round(training_seconds, 1),
            "wall_time_seconds": round(time.monotonic() - since, 1),
            "estimated_memory_bytes": estimate.total,
            "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            "peak_gpu_memory_bytes": peak_gpu_bytes(),
            "code_version": settings.code_version,
            "git_commit": _git_commit(),
            "versions": {
                "python": platform.python_version(),
                **{name: importlib.metadata.version(name) for name in _RECORDED_PACKAGES},
            },
        }
        path = os.path.join(fn_args.serving_model_dir, MODEL_MANIFEST_NAME)
        with tf.io.gfile.GFile(path, "w") as f:
            f.write(json.dumps(manifest, indent=2, sort_keys=True))
        write_history(history, fn_args.model_run_dir)
        for name in ("train", "validation"):
            _copy_tree(os.path.join(folder, name), os.path.join(fn_args.model_run_dir, name))
    # TFX looks for the model when this returns, in every worker.
    wait_for_all(strategy)


class _MemoryCheck:
    """Holds what training takes against what there is."""

    def __init__(self, networks: Sequence[keras.Model], config: ResolvedTrainingConfig) -> None:
        self._networks = networks
        self._config = config
        self._device, self._bytes = device_memory()
        on_gpu = bool(tf.config.list_logical_devices("GPU"))
        self._program = 0 if on_gpu else program_bytes(networks)

    @property
    def available(self) -> str:
        return f"{self._device} has {gigabytes(self._bytes)}"

    def __call__(self, trained: Sequence[tf.Variable], *, activations: int) -> MemoryEstimate:
        estimate = estimate_memory(
            self._networks, trained, self._config, activations=activations, program=self._program
        )
        problem = check_fits(estimate, self._bytes, self._device, self._config)
        if problem and self._config.memory_check == "refuse":
            raise InsufficientMemoryError(problem)
        if problem and activations:
            logger.warning("%s", problem)
        return estimate


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


def _run_hash(settings: TrainerSettings, latents: LatentsManifest, latents_uri: str) -> str:
    """Names the run by all that decides its result, so that a restart finds its checkpoints."""
    # Not their address: LatentGen, run again, may have written the same latents elsewhere.
    content = content_digest(latents_uri)
    facts = {**dataclasses.asdict(settings), **dataclasses.asdict(latents), "content": content}
    # Another format of the weights is another export of the same training.
    del facts["checkpoint_dir"], facts["export_weights"]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def _draw_validation(
    modules: ServingModules, validation: ValidationConfig, folder: str, step: int
) -> None:
    """Draws every validation prompt with the models as they are.

    Into `<folder>/NN.png`, and as TensorBoard's images of `step`.
    """
    tf.io.gfile.makedirs(folder)
    for index, prompt in enumerate(validation.prompts):
        contexts = modules.text_encoder.text([prompt], [""])
        latent = modules.diffusion_model.serve(
            **contexts,
            num_steps=tf.constant(validation.num_steps, tf.int32),
            guidance_scale=tf.constant(validation.guidance_scale, tf.float32),
            seed=tf.constant([validation.seed + index, 0], tf.int32),
        )
        encoded = modules.decoder.png(**latent)["image"][0]
        with tf.io.gfile.GFile(os.path.join(folder, f"{index:02d}.png"), "wb") as f:
            f.write(encoded.numpy())
        picture = tf.io.decode_png(encoded, channels=3)[None]
        tf.summary.image(f"validation/{index:02d}", picture, step=step, description=prompt)
    with tf.io.gfile.GFile(os.path.join(os.path.dirname(folder), "prompts.json"), "w") as f:
        f.write(json.dumps(dataclasses.asdict(validation), indent=2, sort_keys=True))


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
