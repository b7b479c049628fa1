"""Checks that what a run will write fits on the disk, before anything starts."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from pipeline.config import ConfigError, RunConfig
from pipeline.config.resolving import dataset_spec
from pipeline.config.words import word_captions
from serving.releases import IMAGE_ENCODER, SERVED_NETWORKS
from storage.commands import module_command
from trainer.presets import Preset, get_preset
from trainer.training_config import OptimizerName

_FLOAT32 = 4
# Bytes per weight, by the type it is stored as.
_SIZES = {None: 0, "float16": 2, "float32": _FLOAT32}
COPIES: Mapping[OptimizerName, int] = {"adamw": 4, "adafactor": 3, "lion": 3}
"""A checkpoint holds the weights, their average and the optimizer's statistics of the gradients."""

# The best weights, and the ones that a checkpoint keeps as the best.
_KEPT_COPIES = 2
# Graphs, vocabulary and warm-up requests of an exported model.
_GRAPH_BYTES = 3 << 20
# The artifact and, once pushed, its copy in the serving directory.
_EXPORTS = 2

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class DiskEstimate:
    """Bytes that a run leaves on the disk, or needs there temporarily.

    Attributes:
        examples: The dataset's pictures; 0 for a dataset that is not on this machine.
        latents: The encoders' outputs, as far as rows can be counted without reading them.
        checkpoints: The checkpoints that are kept, one more while it replaces another, and the best
            weights if these are kept. With a search, the checkpoints of all trials, which come
            first.
        models: The exported model, and its copy in the serving directory, with the single file for
            other tools if it is requested.
    """

    examples: int
    latents: int
    checkpoints: int
    models: int

    @property
    def total(self) -> int:
        """Their sum."""
        return sum(dataclasses.astuple(self))

    def __str__(self) -> str:
        parts = ", ".join(
            f"{field.name} {in_words(getattr(self, field.name))}"
            for field in dataclasses.fields(self)
        )
        return f"{in_words(self.total)} ({parts})"


def estimate_disk(config: RunConfig, image_bytes: int, num_rows: int) -> DiskEstimate:
    """Estimates what a run needs.

    Args:
        config: All settings, resolved.
        image_bytes: Size of the dataset's pictures.
        num_rows: The number of pictures.
    """
    preset, training = get_preset(config.model.preset), config.training
    trained = trained_parameters(config)
    written = math.inf
    if training.steps is not None:
        written = math.ceil(training.steps / training.checkpoint_every_steps)
    checkpoints = min(training.checkpoints_kept + 1, written)
    kept = _KEPT_COPIES if training.keep == "best" else 0
    of_checkpoint = COPIES[training.optimizer]
    copies = checkpoints * of_checkpoint + kept
    if config.tuning.trials:
        of_trials = config.tuning.trials * (of_checkpoint + kept) + of_checkpoint
        copies = max(copies, of_trials)
    networks = [*SERVED_NETWORKS, *([IMAGE_ENCODER] if config.serving.image_to_image else [])]
    served = sum(preset.parameters[network] for network in networks)
    single = _SIZES[config.serving.checkpoint] * sum(preset.parameters.values())
    return DiskEstimate(
        examples=image_bytes,
        latents=num_rows * _latent_bytes(config, preset),
        checkpoints=int(copies * _FLOAT32 * trained),
        models=_EXPORTS * (_SIZES[config.model.export_weights] * served + _GRAPH_BYTES) + single,
    )


def trained_parameters(config: RunConfig) -> int:
    """How many of the networks' own parameters are trained; 0 for adapters and new words."""
    parameters = get_preset(config.model.preset).parameters
    if config.training.lora_rank or config.word.token:
        return 0
    text_encoder = parameters["text_encoder"] if config.training.train_text_encoder else 0
    return parameters["diffusion_model"] + text_encoder


def check_disk(config: RunConfig, unfinished: bool) -> DiskEstimate:
    """Compares what a run needs with what is free.

    Args:
        config: All settings, resolved.
        unfinished: Whether the latest run in the output folder did not finish: what it left then
            counts as part of what is needed.

    Returns:
        What the run needs.

    Raises:
        ConfigError: It does not fit, and such runs are refused.
    """
    estimate = estimate_disk(config, *_dataset_size(config))
    there = _left_in(config.output) if unfinished else 0
    free = shutil.disk_usage(_existing(config.output)).free
    if estimate.total <= free + there:
        return estimate
    advice = ["--output on another disk"]
    if config.tuning.trials:
        advice.append(f"fewer tuning.trials than {config.tuning.trials}")
    if estimate.checkpoints and config.training.checkpoints_kept > 1:
        advice.append(
            f"a smaller training.checkpoints_kept than {config.training.checkpoints_kept}"
        )
    if not config.training.lora_rank and not config.word.token:
        advice.append("--lora-rank 4 (adapters instead of all weights)")
    if config.model.export_weights == "float32":
        advice.append("model.export_weights = float16")
    if config.serving.checkpoint is not None:
        advice.append("serving.checkpoint = null")
    if not unfinished and _left_in(config.output):
        clean = module_command("pipeline.clean", "--dry-run", "--output", Path(config.output))
        advice.append(f"{clean} (shows what former runs left and nothing needs)")
    problem = (
        f"the run needs about {estimate} on the disk, but only {in_words(free)} are free at "
        f"{config.output}. What helps: {'; '.join(advice)}. disk_check = warn runs it anyway"
    )
    if config.disk_check == "refuse":
        raise ConfigError(problem)
    logger.warning("%s", problem)
    return estimate


def in_words(size: int) -> str:
    """`size` bytes in words, such as `3.4 GB` or `12 MB`."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"


def _latent_bytes(config: RunConfig, preset: Preset) -> int:
    """Bytes per picture: mean and log-variance of its latent, also mirrored, and context."""
    model = config.model
    latent = 2 * math.prod(preset.latent_shape(model.image_size))
    if model.bucket_max_pixels is not None:
        latent = math.ceil(latent * model.bucket_max_pixels / model.image_size**2)
    mirrored = 1 if config.model.flip == "never" else 2
    context = preset.text_encoder.max_length * preset.text_encoder.width
    words = word_captions(config.word)
    context *= max(1, config.dataset.tag_shuffle, words.variants if words else 0)
    return _FLOAT32 * (mirrored * latent + context)


def _dataset_size(config: RunConfig) -> tuple[int, int]:
    """Bytes and rows; 0 for a remote dataset, which would have to be listed again."""
    # Importing pyarrow takes a second; errors in the settings should not wait for it.
    from components.caption_example_gen import sources

    dataset = config.dataset
    if "://" in dataset.path:
        return 0, 0
    source = sources.open_dataset(dataset_spec(dataset))
    return source.image_bytes, sum(unit.num_rows or 0 for unit in source.units())


def folder_bytes(folder: str | os.PathLike[str]) -> int:
    """The size of all files below a folder, in bytes; 0 if it does not exist."""
    size = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                size += os.lstat(os.path.join(parent, name)).st_size
    return size


def _existing(folder: str) -> Path:
    """The folder, or its nearest existing parent."""
    path = Path(folder)
    return next(each for each in (path, *path.parents) if each.exists())


def _left_in(output: str) -> int:
    return sum(folder_bytes(Path(output, part)) for part in ("artifacts", "checkpoints"))
