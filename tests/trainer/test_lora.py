"""Adapters against NumPy, against the merged network, and against the names of others' files."""

from pathlib import Path

import diffusers_preset
import keras
import numpy as np
import pytest
import safetensors.numpy
import small_runs
import tensorflow as tf
from small_runs import batch_of, tuner

from trainer.model_spec import LORA_NAME
from trainer.networks import build_diffusion_model, build_text_encoder
from trainer.training.fine_tuner import FineTuner
from trainer.training.lora import (
    LowRankAdapters,
    diffusion_model_projections,
    text_encoder_projections,
)
from trainer.weights.base_model import BaseModel
from trainer.weights.diffusers_format import tensor_names

RANK, ALPHA = 3, 1.5


def small_model() -> keras.Model:
    return BaseModel.locate(small_runs.preset(), 64, "random").build("diffusion_model")


def outputs(model: keras.Model) -> np.ndarray:
    rng = np.random.default_rng(0)
    inputs = [rng.standard_normal((2, *x.shape[1:])).astype(np.float32) for x in model.inputs]
    return model(inputs).numpy()


def set_randomly(adapters: LowRankAdapters) -> None:
    rng = np.random.default_rng(1)
    for variable in adapters.variables:
        variable.assign(0.3 * rng.standard_normal(variable.shape))


@pytest.fixture
def adapted() -> tuple[keras.Model, LowRankAdapters, np.ndarray]:
    """A network, its adapters, and what it gave before it had them."""
    model = small_model()
    before = outputs(model)
    projections = diffusion_model_projections(model)
    return model, LowRankAdapters(projections, rank=RANK, alpha=ALPHA, seed=0), before


def test_at_the_start_adapters_change_nothing(adapted) -> None:
    model, adapters, before = adapted
    np.testing.assert_array_equal(outputs(model), before)
    downs, ups = adapters.variables[::2], adapters.variables[1::2]
    assert not any(np.any(up.numpy()) for up in ups)
    for down in downs:
        # Uniform of variance 1 / (3 * width).
        assert np.abs(down.numpy()).max() <= down.shape[0] ** -0.5
    spread = np.concatenate([(down.numpy() * down.shape[0] ** 0.5).ravel() for down in downs])
    assert spread.var() == pytest.approx(1 / 3, rel=0.1)


def test_an_adapted_projection_by_hand(adapted) -> None:
    model, adapters, _ = adapted
    set_randomly(adapters)
    projections = diffusion_model_projections(model).values()
    rng = np.random.default_rng(2)
    for index, layer in enumerate(projections):
        down, up = (v.numpy() for v in adapters.variables[2 * index : 2 * index + 2])
        kernel = layer.kernel.numpy()
        assert down.shape == (kernel.shape[0], RANK)
        assert up.shape == (RANK, kernel.shape[1])
        x = rng.standard_normal((2, 5, kernel.shape[0])).astype(np.float32)
        bias = layer.bias.numpy() if layer.use_bias else 0.0
        expected = x @ kernel + bias + ALPHA / RANK * ((x @ down) @ up)
        np.testing.assert_allclose(layer(x), expected, rtol=1e-4, atol=1e-5)


def test_merged_weights_give_what_adapters_give(adapted) -> None:
    model, adapters, before = adapted
    set_randomly(adapters)
    kernels = [p.kernel.numpy() for p in diffusion_model_projections(model).values()]
    apart = outputs(model)
    assert np.abs(apart - before).max() > 0.01
    with adapters.merged():
        np.testing.assert_allclose(outputs(model), apart, rtol=1e-4, atol=1e-5)
        # Not counted twice: the adapters are off.
        assert not any("call" in vars(p) for p in diffusion_model_projections(model).values())
    for kernel, layer in zip(kernels, diffusion_model_projections(model).values(), strict=True):
        np.testing.assert_array_equal(layer.kernel.numpy(), kernel)
    np.testing.assert_array_equal(outputs(model), apart)
    adapters.merge()
    np.testing.assert_allclose(outputs(model), apart, rtol=1e-4, atol=1e-5)


def attention_names(model: keras.Model, network_prefix: str) -> set[str]:
    """Kohya's names of all attention projections that PyTorch's network has."""
    return {
        network_prefix + name.removesuffix(".weight").replace(".", "_")
        for name in tensor_names(model)
        if name.endswith(".weight") and (".attn" in name or ".self_attn." in name)
    }


def test_projections_are_all_there_are_under_the_names_of_others() -> None:
    preset = diffusers_preset.PRESET
    unet = build_diffusion_model(preset, diffusers_preset.IMAGE_SIZE)
    text = build_text_encoder(preset)
    names = set(diffusion_model_projections(unet))
    assert names == attention_names(unet, "lora_unet_")
    assert "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_out_0" in names
    names = set(text_encoder_projections(text))
    assert names == attention_names(text, "lora_te_")
    assert "lora_te_text_model_encoder_layers_1_self_attn_out_proj" in names


@pytest.fixture(scope="module")
def trained() -> tuple[FineTuner, list[np.ndarray]]:
    """A fine-tuner after three steps, and the networks' weights before."""
    subject = tuner(lora_rank=2, lora_alpha=4.0, train_text_encoder=True, warmup_steps=0)
    before = [v.numpy() for model in subject._models for v in model.weights]
    for step in range(3):
        subject.train_step(batch_of(step))
    return subject, before


def test_adapters_alone_are_trained(trained) -> None:
    subject, before = trained
    weights = [v for model in subject._models for v in model.weights]
    for old, new in zip(before, weights, strict=True):
        np.testing.assert_array_equal(old, new.numpy())
    projections = diffusion_model_projections(subject.diffusion_model)
    projections |= text_encoder_projections(subject.text_encoder)
    assert len(subject.variables) == 2 * len(projections)
    assert len(subject.optimizer.averages) == len(subject.variables)
    for variable in subject.variables:
        assert np.abs(variable.numpy()).max() > 0
    # `up` is zero at the start and moves by the learning rate in every step.
    ups = subject.variables[1::2]
    assert min(np.abs(up.numpy()).max() for up in ups) > 0.01


def test_the_file_is_kohyas(trained, tmp_path: Path) -> None:
    subject, _ = trained
    for folder in (str(tmp_path / "model"), "ram://lora"):
        subject.adapters.save(folder, {"ss_network_dim": "2"})
    with tf.io.gfile.GFile(f"ram://lora/{LORA_NAME}", "rb") as f:
        tensors = safetensors.numpy.load(f.read())
    again = safetensors.numpy.load_file(tmp_path / "model" / LORA_NAME)
    assert tensors.keys() == again.keys()
    with safetensors.safe_open(tmp_path / "model" / LORA_NAME, "np") as file:
        assert file.metadata()["ss_network_dim"] == "2"
    projections = diffusion_model_projections(subject.diffusion_model)
    projections |= text_encoder_projections(subject.text_encoder)
    suffixes = ("lora_down.weight", "lora_up.weight", "alpha")
    assert tensors.keys() == {f"{name}.{suffix}" for name in projections for suffix in suffixes}
    for index, (name, layer) in enumerate(projections.items()):
        width_in, width_out = layer.kernel.shape
        down, up, alpha = (tensors[f"{name}.{suffix}"] for suffix in suffixes)
        assert (down.shape, up.shape, alpha.shape) == ((2, width_in), (width_out, 2), ())
        assert {x.dtype for x in (down, up, alpha)} == {np.dtype("float32")}
        assert alpha == 4.0
        np.testing.assert_array_equal(down.T, subject.variables[2 * index].numpy())
        np.testing.assert_array_equal(up.T, subject.variables[2 * index + 1].numpy())


def test_what_is_exported_is_the_average_merged(trained) -> None:
    subject, before = trained
    averages = [v.numpy() for v in subject.optimizer.averages]
    projections = diffusion_model_projections(subject.diffusion_model)
    projections |= text_encoder_projections(subject.text_encoder)
    kernels = {name: layer.kernel.numpy() for name, layer in projections.items()}
    with subject.averaged():
        drawn = [v.numpy() for model in subject._models for v in model.weights]
    subject.assign_averages()
    exported = [v.numpy() for model in subject._models for v in model.weights]
    for a, b in zip(drawn, exported, strict=True):
        np.testing.assert_array_equal(a, b)
    for index, (name, layer) in enumerate(projections.items()):
        down, up = averages[2 * index : 2 * index + 2]
        expected = kernels[name] + 4.0 / 2 * down @ up
        np.testing.assert_allclose(layer.kernel.numpy(), expected, rtol=1e-5, atol=1e-6)
        # The file holds what was merged.
        np.testing.assert_array_equal(subject.adapters.variables[2 * index].numpy(), down)
    changed = sum(not np.array_equal(a, b) for a, b in zip(before, exported, strict=True))
    assert changed == len(projections)
