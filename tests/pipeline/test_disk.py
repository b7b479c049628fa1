"""What a run will leave, held against the disk."""

from __future__ import annotations

import logging
import math
from pathlib import Path

import pytest
from safetensors import safe_open

from pipeline import disk
from pipeline.config import ConfigError, RunConfig, load_config
from trainer.presets import get_preset
from trainer.weights import base_model


def config(output: Path, **settings: object) -> RunConfig:
    given = {"output": str(output), **{k.replace("__", "."): v for k, v in settings.items()}}
    return load_config(None, {key: ("--given", value) for key, value in given.items()})


def test_the_presets_parameters_are_those_of_their_shipped_weights() -> None:
    def count(path: Path) -> int:
        with safe_open(path, "np") as tensors:
            return sum(math.prod(tensors.get_slice(k).get_shape()) for k in tensors.keys())  # noqa: SIM118

    parameters, folder = get_preset("tiny").parameters, base_model._SHIPPED / "tiny"
    assert count(folder / "text_encoder" / "model.safetensors") == parameters["text_encoder"]
    unet, vae = (folder / n / "diffusion_pytorch_model.safetensors" for n in ("unet", "vae"))
    assert count(unet) == parameters["diffusion_model"]
    assert count(vae) == parameters["image_encoder"] + parameters["decoder"]


TRAINED = 7_328_068 + 3_267_136
"""The diffusion model's parameters, and the text encoder's."""


def test_an_estimate_worked_out_by_hand(tmp_path: Path) -> None:
    settings = config(tmp_path, training__steps=160, training__checkpoint_every_steps=50)
    estimate = disk.estimate_disk(settings, image_bytes=1000, num_rows=10)
    assert estimate.examples == 1000
    # Mean and log-variance, of the picture and its mirror image, and the context, in float32.
    assert estimate.latents == 10 * 4 * (2 * 2 * 16 * 16 * 4 + 77 * 64)
    # Two are kept, and a third is there while it replaces one; each holds four copies.
    assert estimate.checkpoints == 3 * 4 * 4 * TRAINED
    assert estimate.models == 2 * (4 * (3_267_136 + 7_328_068 + 1_070_359) + (3 << 20))
    assert estimate.total == sum(
        (estimate.examples, estimate.latents, estimate.checkpoints, estimate.models)
    )
    parts = "(examples 0 MB, latents 0 MB, checkpoints 509 MB, models 100 MB)"
    assert str(estimate).endswith(parts)

    pictures = config(tmp_path, training__steps=160, serving__image_to_image=True)
    with_encoder = disk.estimate_disk(pictures, 0, 0).models
    assert with_encoder == estimate.models + 2 * 4 * 648_448

    # All trials' at first, and one that replaces another.
    tuned = config(tmp_path, training__steps=160, tuning__trials=12)
    assert disk.estimate_disk(tuned, 0, 0).checkpoints == 13 * 4 * 4 * TRAINED

    few = config(tmp_path, training__steps=4)
    assert disk.estimate_disk(few, 0, 0).checkpoints == 4 * 4 * TRAINED
    adapters = config(tmp_path, training__lora_rank=4, model__export_weights="float16")
    assert disk.estimate_disk(adapters, 0, 0).checkpoints == 0
    assert disk.estimate_disk(adapters, 0, 0).models < 0.6 * estimate.models
    single = config(tmp_path, serving__checkpoint="float16")
    more = disk.estimate_disk(single, 0, 0).models - estimate.models
    assert more == 2 * (3_267_136 + 648_448 + 7_328_068 + 1_070_359)


def test_what_will_not_fit_is_refused_or_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # No disk is that large: a batch of checkpoints that are all kept.
    huge = {"training__checkpoints_kept": 10**12, "training__checkpoint_every_steps": 1}
    huge |= {"training__steps": 10**12, "serving__checkpoint": "float32"}
    said = r"needs about .* free at .*--output on another.*; serving\.checkpoint = null"
    with pytest.raises(ConfigError, match=said) as error:
        disk.check_disk(config(tmp_path, **huge), unfinished=False)
    assert "\n" not in str(error.value)
    with caplog.at_level(logging.WARNING):
        disk.check_disk(config(tmp_path, **huge, disk_check="warn"), unfinished=False)
    assert "the run needs about" in caplog.text
    disk.check_disk(config(tmp_path), unfinished=False)


def test_what_an_unfinished_run_left_is_not_asked_for_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config(tmp_path, training__steps=4)
    needed = disk.estimate_disk(settings, *disk._dataset_size(settings)).total
    left = tmp_path / "checkpoints" / "hash"
    left.mkdir(parents=True)
    with open(left / "ckpt-1", "wb") as checkpoint:
        checkpoint.truncate(needed)
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda path: _Usage(needed // 2))
    disk.check_disk(settings, unfinished=True)
    with pytest.raises(ConfigError, match=r"the run needs about .*pipeline\.clean --dry-run"):
        disk.check_disk(settings, unfinished=False)


class _Usage:
    def __init__(self, free: int) -> None:
        self.free = free


def test_the_check_is_one_of_two_words() -> None:
    with pytest.raises(ConfigError, match=r"disk_check .* must be one of refuse, warn"):
        load_config(None, {"disk_check": ("--given", "never")})
