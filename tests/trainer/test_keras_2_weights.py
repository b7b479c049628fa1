"""Files that Keras 2 wrote (`tests/data/keras_2/make.py`), loaded into our networks."""

import dataclasses
import os
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from trainer.diffusion.noise_schedule import LATENT_SCALE
from trainer.networks import (
    build_decoder,
    build_diffusion_model,
    build_image_encoder,
    build_text_encoder,
)
from trainer.presets import (
    NETWORKS,
    AutoencoderDimensions,
    DiffusionModelDimensions,
    TextEncoderDimensions,
    WeightFile,
    get_preset,
)
from trainer.weights.base_model import BaseModel
from trainer.weights.errors import WeightsError
from trainer.weights.load import load_weights_file

KERAS_2 = Path(__file__).resolve().parent.parent / "data" / "keras_2"
PRESET = dataclasses.replace(
    get_preset("sd-v1-4"),
    text_encoder=TextEncoderDimensions(width=8, num_layers=2, num_heads=2, vocabulary_size=50),
    diffusion_model=DiffusionModelDimensions(
        widths=(4, 8),
        cross_attention=(True, False),
        num_blocks=1,
        num_heads=2,
        timestep_width=8,
        embedding_width=16,
        norm_groups=4,
    ),
    image_encoder=AutoencoderDimensions(widths=(4, 4, 4, 8), num_blocks=1, norm_groups=4),
    decoder=AutoencoderDimensions(widths=(4, 4, 4, 8), num_blocks=1, norm_groups=4),
)
FULL = get_preset("sd-v1-4")


def build(network, preset, image_size):
    if network == "text_encoder":
        return build_text_encoder(preset)
    if network == "image_encoder":
        return build_image_encoder(preset)
    return {"decoder": build_decoder, "diffusion_model": build_diffusion_model}[network](
        preset, image_size
    )


def check_output(model, network, folder):
    """The network computes what it computed in Keras 2: no two tensors have changed places."""
    reference = np.load(folder / "reference.npz")
    # KerasCV's text encoder takes positions, too.
    inputs = [reference[f"{network}/{i}"] for i in range(len(model.inputs))]
    output = np.asarray(model(inputs if len(inputs) > 1 else inputs[0], training=False))
    if network == "image_encoder":
        output = output[..., :4] * LATENT_SCALE
    expected = reference[f"{network}/output"]
    assert np.linalg.norm(output - expected) < 1e-5 * np.linalg.norm(expected)


def list_hash(folder: Path, name: str) -> None:
    with (folder / "SHA256SUMS").open("w") as sums:
        subprocess.run(["sha256sum", name], cwd=folder, stdout=sums, check=True)


@pytest.mark.parametrize("network", NETWORKS)
def test_a_network_computes_what_it_did_in_keras_2(network) -> None:
    model = build(network, PRESET, 64)
    load_weights_file(model, str(KERAS_2 / f"{network}.h5"))
    check_output(model, network, KERAS_2)


@pytest.mark.slow
@pytest.mark.parametrize("network", NETWORKS)
def test_a_full_size_network_computes_what_it_did_in_keras_2(network, tmp_path) -> None:
    command = [sys.executable, KERAS_2 / "make.py", "--size", "full", "--network", network]
    subprocess.run([*command, "--output", tmp_path], check=True, env={**os.environ})
    name = FULL.weight_files[network].name
    os.rename(tmp_path / f"{network}.h5", tmp_path / name)
    list_hash(tmp_path, name)
    model = BaseModel.locate(FULL, 128, str(tmp_path)).build(network)
    check_output(model, network, tmp_path)


def put_names(attributes, name, names, pieces=1):
    """Stores a list of names as Keras 2 does: in pieces, where it is too long for one attribute."""
    del attributes[name]
    if pieces == 1:
        attributes[name] = names
    else:
        for index, part in enumerate(np.array_split(np.array(names_in(names), "S"), pieces)):
            attributes[f"{name}{index}"] = part


def rewritten(tmp_path, change) -> str:
    path = tmp_path / "changed.h5"
    shutil.copyfile(KERAS_2 / "text_encoder.h5", path)
    with h5py.File(path, "r+") as file:
        change(file)
    return str(path)


def names_in(attribute):
    # Which of the two Keras 2 writes depends on its version.
    return [name.decode() if isinstance(name, bytes) else name for name in attribute]


def layers_of(file):
    return names_in(file.attrs["layer_names"])


def cut_in_pieces(file) -> None:
    put_names(file.attrs, "layer_names", file.attrs["layer_names"], pieces=3)
    for layer in file.values():
        if len(layer.attrs["weight_names"]) > 2:
            put_names(layer.attrs, "weight_names", layer.attrs["weight_names"], pieces=2)


def rename(file) -> None:
    """Other names, as another process or version gives them, and as bytes in place of text."""
    names = []
    for index, name in enumerate(layers_of(file)):
        group = file[name]
        weights = group.attrs["weight_names"]
        renamed = []
        for number, weight in enumerate(weights):
            group[f"a{number}"] = group[weight][()]
            del group[weight]
            renamed.append(f"a{number}")
        put_names(group.attrs, "weight_names", np.array(renamed, dtype="S"))
        file.move(name, f"l{index}")
        names.append(f"l{index}")
    put_names(file.attrs, "layer_names", np.array(names, dtype="S"))


def put_below(file) -> None:
    """As `Model.save` does: the weights in a group beside what else is saved."""
    file.create_group("optimizer_weights")
    group = file.create_group("model_weights")
    group.attrs["layer_names"] = file.attrs["layer_names"]
    del file.attrs["layer_names"]
    for name in layers_of(group):
        file.move(name, f"model_weights/{name}")


@pytest.mark.parametrize("change", [cut_in_pieces, rename, put_below])
def test_other_ways_to_write_the_same_are_read(change, tmp_path) -> None:
    model = build_text_encoder(PRESET)
    load_weights_file(model, rewritten(tmp_path, change))
    check_output(model, "text_encoder", KERAS_2)


def drop_layer(file) -> None:
    put_names(file.attrs, "layer_names", file.attrs["layer_names"][:-1])


def drop_tensor(file) -> None:
    group = file[layers_of(file)[-1]]
    put_names(group.attrs, "weight_names", group.attrs["weight_names"][:-1])


def change_shape(file) -> None:
    group = file[layers_of(file)[-1]]
    name = group.attrs["weight_names"][0]
    del group[name]
    group[name] = np.zeros(3)


def drop_data(file) -> None:
    group = file[layers_of(file)[-1]]
    del group[group.attrs["weight_names"][0]]


def drop_names(file) -> None:
    del file.attrs["layer_names"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (drop_layer, r"3 layers with weights, this has 4"),
        (drop_tensor, r"has 1 tensors, but text_model.final_layer_norm has 2"),
        (change_shape, r"has the shape \[3\], but .*final_layer_norm/gamma has \[8\]"),
        (drop_data, "damaged"),
        (drop_names, "is not a Keras 2 weights file"),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_is_set(change, said, tmp_path) -> None:
    model = build_text_encoder(PRESET)
    before = model.get_weights()
    with pytest.raises(WeightsError, match=said) as error:
        load_weights_file(model, rewritten(tmp_path, change))
    assert "\n" not in str(error.value)
    for a, b in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_cut_off_or_missing_file_is_one_line(tmp_path) -> None:
    path = tmp_path / "cut.h5"
    path.write_bytes((KERAS_2 / "text_encoder.h5").read_bytes()[:3000])
    for given in (path, tmp_path / "none.h5"):
        with pytest.raises(WeightsError, match=given.name) as error:
            load_weights_file(build_text_encoder(PRESET), str(given))
        assert "\n" not in str(error.value)


def test_the_published_names_and_hashes_are_keras_cvs() -> None:
    """As its classes name them: nothing here can download the files."""
    import inspect

    from keras_cv.src.models.stable_diffusion import (
        decoder,
        diffusion_model,
        image_encoder,
        text_encoder,
    )

    modules = {
        "text_encoder": text_encoder,
        "image_encoder": image_encoder,
        "diffusion_model": diffusion_model,
        "decoder": decoder,
    }
    for network, file in FULL.weight_files.items():
        source = inspect.getsource(modules[network])
        address = FULL.published_at.replace("hf://", "https://huggingface.co/")
        assert f"{address}/resolve/main/{file.name}" in source
        assert f'file_hash="{file.sha256}"' in source


def test_base_weights_of_keras_2_are_verified_by_what_the_folder_lists(tmp_path) -> None:
    preset = dataclasses.replace(
        PRESET, weight_files={"text_encoder": WeightFile("kcv_encoder.h5", "0" * 64)}
    )
    shutil.copyfile(KERAS_2 / "text_encoder.h5", tmp_path / "kcv_encoder.h5")
    base_model = BaseModel.locate(preset, 128, str(tmp_path))
    with pytest.raises(WeightsError, match=f"corrupt or a different file.*{'0' * 64}"):
        base_model.build("text_encoder")
    list_hash(tmp_path, "kcv_encoder.h5")
    check_output(base_model.build("text_encoder"), "text_encoder", KERAS_2)
