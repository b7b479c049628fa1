from pathlib import Path

import huggingface_hub
import numpy as np
import pytest

from storage.folders import FolderError
from trainer.networks import build_decoder, build_image_encoder
from trainer.presets import NETWORKS, Preset, get_preset
from trainer.weights.errors import WeightsError
from trainer.weights.load import load_base_weights, save_weights_file, write_hashes
from trainer.weights.sources import base_weights_hash


@pytest.fixture
def folder(small_preset: Preset, tmp_path: Path) -> Path:
    model = build_image_encoder(small_preset)
    load_base_weights(model, "image_encoder", small_preset, "random")
    save_weights_file(model, str(tmp_path / "image_encoder.safetensors"))
    write_hashes(str(tmp_path))
    return tmp_path


def test_weights_load_exactly(small_preset: Preset, folder: Path) -> None:
    model = build_image_encoder(small_preset)
    load_base_weights(model, "image_encoder", small_preset, str(folder))
    same = build_image_encoder(small_preset)
    load_base_weights(same, "image_encoder", small_preset, "random")
    for loaded, original in zip(model.get_weights(), same.get_weights(), strict=True):
        np.testing.assert_array_equal(loaded, original.astype(np.float16).astype(np.float32))


def test_a_corrupt_file_is_refused(small_preset: Preset, folder: Path) -> None:
    path = folder / "image_encoder.safetensors"
    damaged = bytearray(path.read_bytes())
    damaged[-1] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(WeightsError, match="corrupt"):
        load_base_weights(
            build_image_encoder(small_preset), "image_encoder", small_preset, str(folder)
        )


def test_a_missing_file_is_named(small_preset: Preset, folder: Path) -> None:
    with pytest.raises(WeightsError, match=r"decoder\.safetensors"):
        load_base_weights(build_decoder(small_preset, 64), "decoder", small_preset, str(folder))


def test_another_models_file_is_refused(small_preset: Preset, folder: Path) -> None:
    (folder / "image_encoder.safetensors").rename(folder / "decoder.safetensors")
    write_hashes(str(folder))
    with pytest.raises(WeightsError, match="another model"):
        load_base_weights(build_decoder(small_preset, 64), "decoder", small_preset, str(folder))


def test_full_size_never_starts_from_random_weights_unasked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(FolderError, match=r"fchollet/stable-diffusion.*not in the hub's cache"):
        base_weights_hash(get_preset("sd-v1-4"), "default", ["decoder"])


def test_random_weights_are_the_same_each_time_and_announced(
    small_preset: Preset, caplog: pytest.LogCaptureFixture
) -> None:
    models = [build_image_encoder(small_preset) for _ in range(2)]
    for model in models:
        load_base_weights(model, "image_encoder", small_preset, "random")
    assert "IMAGE_ENCODER STARTS FROM RANDOM WEIGHTS" in caplog.text
    for a, b in zip(models[0].get_weights(), models[1].get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
        assert a.size == 1 or a.ndim == 1 or a.std() > 0


def test_shipped_weights_are_what_their_hashes_say() -> None:
    preset = get_preset("tiny")
    model = build_image_encoder(preset)
    load_base_weights(model, "image_encoder", preset, "default")
    assert len(base_weights_hash(preset, "default", NETWORKS)) == 64


def test_hash_changes_with_the_weights(small_preset: Preset, folder: Path) -> None:
    before = base_weights_hash(small_preset, str(folder), ["image_encoder"])
    model = build_image_encoder(small_preset)
    model.weights[0].assign(model.weights[0] + 1.0)
    save_weights_file(model, str(folder / "image_encoder.safetensors"))
    write_hashes(str(folder))
    assert base_weights_hash(small_preset, str(folder), ["image_encoder"]) != before
