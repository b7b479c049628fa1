import dataclasses
import pickle
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest

from storage.folders import FolderError
from trainer.networks import build_image_encoder
from trainer.presets import Preset, get_preset
from trainer.weights.base_model import BaseModel
from trainer.weights.errors import WeightsError
from trainer.weights.load import save_weights_file, write_hashes


@pytest.fixture
def folder(small_preset: Preset, tmp_path: Path) -> Path:
    model = BaseModel.locate(small_preset, 64, "random").build("image_encoder")
    save_weights_file(model, str(tmp_path / "image_encoder.safetensors"))
    write_hashes(str(tmp_path))
    return tmp_path


def test_weights_load_exactly(small_preset: Preset, folder: Path) -> None:
    model, same = (
        BaseModel.locate(small_preset, 64, source).build("image_encoder")
        for source in (str(folder), "random")
    )
    for loaded, original in zip(model.get_weights(), same.get_weights(), strict=True):
        np.testing.assert_array_equal(loaded, original.astype(np.float16).astype(np.float32))


def test_a_corrupt_file_is_refused(small_preset: Preset, folder: Path) -> None:
    path = folder / "image_encoder.safetensors"
    damaged = bytearray(path.read_bytes())
    damaged[-1] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(WeightsError, match="corrupt"):
        BaseModel.locate(small_preset, 64, str(folder)).build("image_encoder")


def test_a_missing_file_is_named(small_preset: Preset, folder: Path) -> None:
    with pytest.raises(WeightsError, match=r"decoder\.safetensors"):
        BaseModel.locate(small_preset, 64, str(folder)).build("decoder")


def test_another_models_file_is_refused(small_preset: Preset, folder: Path) -> None:
    (folder / "image_encoder.safetensors").rename(folder / "decoder.safetensors")
    write_hashes(str(folder))
    with pytest.raises(WeightsError, match="another model"):
        BaseModel.locate(small_preset, 64, str(folder)).build("decoder")


def test_full_size_never_starts_from_random_weights_unasked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(FolderError, match=r"fchollet/stable-diffusion.*not in the hub's cache"):
        BaseModel.locate(get_preset("sd-v1-4"), 512, "default")


def test_random_weights_are_the_same_each_time_and_announced(
    small_preset: Preset, caplog: pytest.LogCaptureFixture
) -> None:
    base_model = BaseModel.locate(small_preset, 64, "random")
    models = [base_model.build("image_encoder") for _ in range(2)]
    assert "IMAGE_ENCODER STARTS FROM RANDOM WEIGHTS" in caplog.text
    for a, b in zip(models[0].get_weights(), models[1].get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
        assert a.size == 1 or a.ndim == 1 or a.std() > 0


def test_shipped_weights_are_what_their_hashes_say() -> None:
    base_model = BaseModel.locate(get_preset("tiny"), 64, "default")
    base_model.build("image_encoder")
    assert len(base_model.hash()) == 64


def test_hash_changes_with_the_weights(small_preset: Preset, folder: Path) -> None:
    base_model = BaseModel.locate(small_preset, 64, str(folder))
    before = base_model.hash(["image_encoder"])
    model = build_image_encoder(small_preset)
    model.weights[0].assign(model.weights[0] + 1.0)
    save_weights_file(model, str(folder / "image_encoder.safetensors"))
    write_hashes(str(folder))
    assert base_model.hash(["image_encoder"]) != before


def test_a_base_model_that_another_process_gets_has_the_same_weights(
    small_preset: Preset, folder: Path
) -> None:
    base_model = BaseModel.locate(small_preset, 64, str(folder))
    pickled = pickle.loads(pickle.dumps(base_model.folder))
    same = dataclasses.replace(base_model, folder=pickled)
    assert same.hash(["image_encoder"]) == base_model.hash(["image_encoder"])
