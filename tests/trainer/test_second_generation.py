"""Stable Diffusion 2: `tests/data/diffusers_tiny_v2` is what diffusers wrote, and computed."""

import dataclasses
import inspect
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from diffusers_preset import (
    CHECKPOINT,
    CHECKPOINT_V2,
    IMAGE_SIZE,
    PRESET,
    PRESET_V2,
    edit,
    one_line,
)
from keras_cv.src.models.stable_diffusion import diffusion_model, text_encoder
from safetensors.numpy import load_file

from benchmarks.weights.__main__ import relative_error
from pipeline.config import ConfigError, load_config
from trainer import presets
from trainer.diffusion.noise_schedule import NoiseSchedule
from trainer.presets import NETWORKS, get_preset
from trainer.text.graph_tokenizer import GraphTokenizer
from trainer.text.tokenizer import END_OF_TEXT, caption_of, tokenize
from trainer.weights import base_model, diffusers_export, diffusers_layout
from trainer.weights.base_model import BaseModel
from trainer.weights.errors import WeightsError
from trainer.weights.load import write_hashes

SECOND = get_preset("sd-v2-1-base")


@pytest.fixture
def copy(tmp_path) -> Path:
    folder = tmp_path / "copy"
    shutil.copytree(CHECKPOINT_V2, folder)
    return folder


@pytest.mark.parametrize("network", ["text_encoder", "diffusion_model"])
def test_a_network_computes_what_pytorch_does(network) -> None:
    exact = dataclasses.replace(PRESET_V2, numerics="diffusers")
    reference = np.load(CHECKPOINT_V2 / "reference.npz")
    assert relative_error(CHECKPOINT_V2, reference, exact, network) < 1e-5
    if network == "text_encoder":
        # KerasCV's form of the activation is another.
        assert 1e-5 < relative_error(CHECKPOINT_V2, reference, PRESET_V2, network) < 1e-3
    else:
        swapped = dataclasses.replace(exact.diffusion_model, num_heads=(1, 3))
        other = dataclasses.replace(exact, diffusion_model=swapped)
        assert relative_error(CHECKPOINT_V2, reference, other, network) > 1e-3


def test_what_the_weights_predict_is_what_their_scheduler_says(copy) -> None:
    def found() -> NoiseSchedule:
        return NoiseSchedule.of(BaseModel.locate(PRESET_V2, IMAGE_SIZE, str(copy)).preset)

    assert PRESET_V2.prediction == "epsilon"
    assert found() == NoiseSchedule("v_prediction", zero_terminal_snr=True)
    scheduler = copy / diffusers_layout.SCHEDULER_CONFIG
    edit(scheduler, rescale_betas_zero_snr=False)
    assert found() == NoiseSchedule("v_prediction")
    edit(scheduler, rescale_betas_zero_snr=True, prediction_type="epsilon")
    with pytest.raises(WeightsError, match="a model that cannot draw") as error:
        found()
    one_line(error)
    edit(scheduler, prediction_type="sample")
    with pytest.raises(WeightsError, match=r'prediction_type is "sample" \(here "epsilon"\)'):
        found()
    scheduler.unlink()
    assert found() == NoiseSchedule("epsilon")


def test_a_model_of_the_other_generation_is_refused(copy) -> None:
    with pytest.raises(
        WeightsError, match=r"use_linear_projection is true.*Diffusion 1.x"
    ) as error:
        BaseModel.locate(PRESET, IMAGE_SIZE, str(copy))
    assert "attention_head_dim is [2, 3] (here 2)" in one_line(error)
    with pytest.raises(WeightsError, match=r"use_linear_projection is false.*Diffusion 2.x"):
        BaseModel.locate(PRESET_V2, IMAGE_SIZE, str(CHECKPOINT))


def test_what_is_written_is_what_was_read(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(diffusers_export, "get_preset", lambda name: PRESET_V2)
    output = tmp_path / "written"
    diffusers_export.export_base_weights(
        PRESET_V2.name, str(output), base_weights=str(CHECKPOINT_V2)
    )
    for part in ("unet/diffusion_pytorch_model", "vae/diffusion_pytorch_model"):
        theirs = load_file(CHECKPOINT_V2 / f"{part}.safetensors")
        ours = load_file(output / f"{part}.safetensors")
        assert ours.keys() == theirs.keys()
        assert all(np.array_equal(ours[name], theirs[name]) for name in theirs)
    theirs = load_file(CHECKPOINT_V2 / "text_encoder/model.safetensors")
    ours = load_file(output / "text_encoder/model.safetensors")
    assert len(ours) == len(theirs)
    assert all(np.array_equal(ours[f"text_model.{name}"], theirs[name]) for name in theirs)
    for part, config in (("unet", "config"), ("text_encoder", "config"), ("scheduler", None)):
        name = f"{part}/{config or 'scheduler_config'}.json"
        read, wrote = (
            json.loads((folder / name).read_text()) for folder in (CHECKPOINT_V2, output)
        )
        kept = {
            "attention_head_dim",
            "use_linear_projection",
            "hidden_act",
            "prediction_type",
            "rescale_betas_zero_snr",
            "timestep_spacing",
        } & read.keys()
        assert kept
        assert {key: wrote[key] for key in kept} == {key: read[key] for key in kept}
    tokenizer = json.loads((output / "tokenizer" / "special_tokens_map.json").read_text())
    assert (tokenizer["pad_token"], tokenizer["eos_token"]) == ("!", "<|endoftext|>")
    again = BaseModel.locate(PRESET_V2, IMAGE_SIZE, str(output))
    assert NoiseSchedule.of(again.preset) == NoiseSchedule("v_prediction", zero_terminal_snr=True)


def test_one_file_is_refused_both_ways(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(diffusers_export, "get_preset", lambda name: PRESET_V2)
    path = tmp_path / "x.safetensors"
    with pytest.raises(WeightsError, match="cannot be a single file") as error:
        diffusers_export.export_base_weights(
            PRESET_V2.name, str(path), base_weights=str(CHECKPOINT_V2)
        )
    one_line(error)
    path.touch()
    with pytest.raises(WeightsError, match=r"original layout of Stable Diffusion 2.x"):
        BaseModel.locate(PRESET_V2, IMAGE_SIZE, str(path))
    text = "model: {preset: sd-v2-1-base, base_weights: random}\n"
    config = tmp_path / "config.yaml"
    config.write_text(f"{text}serving: {{checkpoint: float16}}")
    with pytest.raises(
        ConfigError, match=r"serving.checkpoint = 'float16'.*cannot be a single file"
    ):
        load_config(str(config))
    config.write_text(text)
    assert load_config(str(config)).model.image_size == 512


def test_tokens_are_filled_up_with_what_open_clip_was_trained_with() -> None:
    """Zeros, as of `open_clip.tokenize` and the tokenizer beside diffusers' weights."""
    captions = ["a dog", "", "word " * 100]
    padding = SECOND.text_encoder.padding
    first, second = tokenize(captions), tokenize(captions, padding=padding)
    ends = (first == END_OF_TEXT).argmax(axis=1)
    behind = np.arange(77) > ends[:, None]
    np.testing.assert_array_equal(second, np.where(behind, 0, first))
    assert list(ends) == [3, 1, 76]
    np.testing.assert_array_equal(GraphTokenizer(padding=padding)(tf.constant(captions)), second)
    assert caption_of(second[0]) == "a dog"


def test_published_files_are_those_that_keras_cv_downloads() -> None:
    modules = {"text_encoder": text_encoder, "diffusion_model": diffusion_model}
    for network, module in modules.items():
        file = SECOND.weight_files[network]
        source = inspect.getsource(module)
        address = SECOND.published_at.replace("hf://", "https://huggingface.co/")
        assert f"{address}/resolve/main/{file.name}" in source
        assert f'file_hash="{file.sha256}"' in source
    for network in ("image_encoder", "decoder"):
        file, first = (get_preset(n).weight_files[network] for n in ("sd-v2-1-base", "sd-v1-4"))
        assert (file.name, file.sha256) == (first.name, first.sha256)
        assert file.published_at == get_preset("sd-v1-4").published_at


def test_what_keras_cv_takes_from_elsewhere_is_found_there(tmp_path, monkeypatch, caplog) -> None:
    """Files of one network each, as KerasCV has them in two places."""
    own, elsewhere = tmp_path / "own", tmp_path / "elsewhere"
    files = {n: presets.WeightFile(f"{n}.safetensors", None) for n in NETWORKS}
    for network in ("image_encoder", "decoder"):
        files[network] = dataclasses.replace(files[network], published_at=str(elsewhere))
    preset = dataclasses.replace(PRESET_V2, weight_files=files)
    for folder, networks in (
        (own, ("text_encoder", "diffusion_model")),
        (elsewhere, ("image_encoder", "decoder")),
    ):
        folder.mkdir()
        for network in networks:
            (folder / files[network].name).write_bytes(network.encode())
        write_hashes(str(folder))
    found = BaseModel.locate(preset, IMAGE_SIZE, str(own))
    caplog.set_level("INFO", base_model.__name__)
    address = found.prepare()
    assert f"has no image encoder, no decoder: taken from {elsewhere}." in caplog.text
    assert BaseModel.locate(preset, IMAGE_SIZE, address).hash() == found.hash()
    assert found._holder("decoder").files("decoder") == ("decoder.safetensors",)
    (elsewhere / "decoder.safetensors").write_bytes(b"another")
    with pytest.raises(WeightsError, match=r"elsewhere/decoder.safetensors is corrupt"):
        BaseModel.locate(preset, IMAGE_SIZE, str(own)).prepare()
    # What lies in the folder itself has the first word.
    (own / "decoder.safetensors").write_bytes(b"decoder")
    (own / "image_encoder.safetensors").write_bytes(b"image_encoder")
    write_hashes(str(own))
    assert BaseModel.locate(preset, IMAGE_SIZE, str(own)).hash() == found.hash()
    missing = tmp_path / "missing"
    missing.mkdir()
    with pytest.raises(WeightsError, match=r"there is no .*missing/text_encoder.safetensors"):
        BaseModel.locate(preset, IMAGE_SIZE, str(missing)).prepare()


def test_no_default_weights_of_768_pixels_are_published_for_keras() -> None:
    with pytest.raises(WeightsError, match="'sd-v2-1' has no default base weights") as error:
        BaseModel.locate(get_preset("sd-v2-1"), 768, "default")
    assert "in diffusers' layout" in one_line(error)


def test_full_sizes_configurations_are_stable_diffusions() -> None:
    """As they are on the hub, for what matters."""
    preset = get_preset("sd-v2-1")
    unet = diffusers_layout.unet_config(preset)
    assert (unet["cross_attention_dim"], unet["sample_size"]) == (1024, 96)
    assert (unet["attention_head_dim"], unet["use_linear_projection"]) == ([5, 10, 20, 20], True)
    text = diffusers_layout.text_encoder_config(preset)
    assert (text["hidden_size"], text["intermediate_size"]) == (1024, 4096)
    assert (text["num_hidden_layers"], text["num_attention_heads"]) == (23, 16)
    assert text["hidden_act"] == "gelu"
    assert diffusers_layout.scheduler_config(preset)["prediction_type"] == "v_prediction"
    base = get_preset("sd-v2-1-base")
    assert diffusers_layout.scheduler_config(base)["prediction_type"] == "epsilon"
    assert {size % 64 for size in map(base.diffusion_model.heads, range(3))} == {5, 10, 20}
