"""Base weights from one file in the original layout of Stable Diffusion v1.x."""

import gzip
import hashlib
import json
import math
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path

import fsspec
import ml_dtypes
import numpy as np
import pytest
from diffusers_preset import CHECKPOINT, IMAGE_SIZE, PRESET, one_line
from safetensors.numpy import load_file, save_file

from storage.folders import FolderError
from storage.transfer import sha256_of
from trainer import networks
from trainer.presets import NETWORKS, get_preset
from trainer.weights import base_model as base_model_module
from trainer.weights.base_model import BaseModel
from trainer.weights.diffusers_format import to_original
from trainer.weights.errors import WeightsError
from trainer.weights.original_layout import split_address
from trainer.weights.original_names import current_names, original_names

NAMES: Mapping[str, Mapping[str, Mapping[str, str]]] = json.loads(
    gzip.decompress((CHECKPOINT.parent / "original_names.json.gz").read_bytes())
)
UNET, VAE, TEXT = "model.diffusion_model.", "first_stage_model.", "cond_stage_model."
FIRST = f"{UNET}input_blocks.0.0.weight"
POSITIONS = f"{TEXT}transformer.text_model.embeddings.position_ids"
Tensors = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def tensors() -> Tensors:
    """The tiny checkpoint in the original layout."""
    text = load_file(CHECKPOINT / "text_encoder/model.safetensors")
    vae = load_file(CHECKPOINT / "vae/diffusion_pytorch_model.safetensors")
    is_decoders = ("decoder.", "post_quant_conv.")
    found = {}
    for network, stored in (
        ("text_encoder", {f"text_model.{name}": value for name, value in text.items()}),
        ("image_encoder", {k: v for k, v in vae.items() if not k.startswith(is_decoders)}),
        ("decoder", {k: v for k, v in vae.items() if k.startswith(is_decoders)}),
        ("diffusion_model", load_file(CHECKPOINT / "unet/diffusion_pytorch_model.safetensors")),
    ):
        for key, value in zip(original_names(network, list(stored)), stored.values(), strict=True):
            is_matrix = ".attn_1." in key and value.ndim == 2
            found[key] = value[:, :, None, None] if is_matrix else value
    return found


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "model.safetensors"


@pytest.fixture(scope="module", autouse=True)
def built_once():
    """Each network is built once for all tests; what they load into it, they load themselves."""
    models = {}
    build_network = networks.build_network

    def built(network, preset, image_size):
        if network not in models:
            models[network] = build_network(network, preset, image_size)
        models[network].set_weights([np.zeros_like(w) for w in models[network].get_weights()])
        return models[network]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(networks, "build_network", built)
        yield


def located(source: Path | str) -> BaseModel:
    return BaseModel.locate(PRESET, IMAGE_SIZE, str(source))


def weights_of(source: Path | str, network: str) -> list[np.ndarray]:
    return located(source).build(network).get_weights()


@pytest.mark.parametrize("structure", NAMES)
@pytest.mark.parametrize("network", NETWORKS)
def test_names_are_those_that_diffusers_reads(structure, network) -> None:
    kept = NAMES[structure][network]
    # In whatever order a network has them.
    names = sorted(kept.values())
    keys = original_names(network, names)
    assert dict(zip(keys, names, strict=True)) == kept
    others = [key for n, of in NAMES[structure].items() if n != network for key in of]
    assert current_names(network, names, [*others, *keys, POSITIONS]) == kept
    count = {"text_encoder": 196, "image_encoder": 108, "decoder": 140, "diffusion_model": 686}
    if structure == "sd-v1-4":
        assert len(kept) == count[network]


def test_a_full_size_file_is_known_by_its_header(path) -> None:
    """Of the original training: averages, constants and a safety checker are in it, too."""
    shapes = json.loads(
        gzip.decompress((CHECKPOINT.parent / "original_shapes.json.gz").read_bytes())
    )
    assert {n: len(of) for n, of in shapes.items()} == {
        "text_encoder": 196, "image_encoder": 108, "diffusion_model": 686, "decoder": 140,
    }  # fmt: skip
    own = {key: shape for of in shapes.values() for key, shape in of.items()}
    preset = get_preset("sd-v1-4")
    assert sum(math.prod(shape) for shape in own.values()) == sum(preset.parameters.values())
    extra = {
        "alphas_cumprod": [1000],
        "model_ema.decay": [],
        POSITIONS: [1, 77],
        "safety_checker.concept_embeds": [17, 768],
        **{
            key: value.shape
            for key, value in averages(
                dict.fromkeys(shapes["diffusion_model"], np.zeros(1, np.float32)), 0
            ).items()
        },
    }
    header, end = {}, 0
    for key, shape in (own | extra).items():
        start, end = end, end + 2 * math.prod(shape)
        header[key] = {"dtype": "F16", "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        # Takes no room: nobody has written to it.
        file.truncate(8 + len(text) + end)
    found = BaseModel.locate(preset, 512, str(path)).checkpoint
    assert found.networks == NETWORKS
    assert set(found.ignored) == set(extra)
    for network, of in shapes.items():
        kept = NAMES["sd-v1-4"][network]
        assert set(of) == set(kept)
        assert current_names(network, list(kept.values()), list(header)) == kept


@pytest.mark.slow
@pytest.mark.parametrize("network", NETWORKS)
def test_full_sizes_shapes_are_stable_diffusions(network) -> None:
    kept = json.loads(gzip.decompress((CHECKPOINT.parent / "original_shapes.json.gz").read_bytes()))
    preset = get_preset("sd-v1-4")
    # Another network of that size is not kept, as the small ones are.
    build = {
        "text_encoder": networks.build_text_encoder,
        "image_encoder": networks.build_image_encoder,
        "diffusion_model": lambda preset: networks.build_diffusion_model(preset, 512),
        "decoder": lambda preset: networks.build_decoder(preset, 512),
    }[network]
    model = build(preset)
    nothing = (np.broadcast_to(np.False_, variable.shape) for variable in model.weights)
    written = to_original(model, network, nothing)
    assert {key: list(value.shape) for key, value in written.items()} == kept[network]


@pytest.mark.parametrize("network", NETWORKS)
def test_a_network_is_what_it_is_in_diffusers_layout(network, tensors, path) -> None:
    save_file(tensors, path)
    model = located(path).build(network)
    written = to_original(model, network, model.get_weights())
    assert len(written) == len(model.weights)
    for key, value in written.items():
        np.testing.assert_array_equal(value, tensors[key])
    loaded = model.get_weights()
    for ours, theirs in zip(loaded, weights_of(CHECKPOINT, network), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert located(path).preset.numerics == "diffusers"


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_is_read(dtype, tensors, path) -> None:
    save_file({key: value.astype(dtype) for key, value in tensors.items()}, path)
    for half, full in zip(
        weights_of(path, "text_encoder"), weights_of(CHECKPOINT, "text_encoder"), strict=True
    ):
        np.testing.assert_array_equal(half, full.astype(dtype).astype(np.float32))


def averages(tensors: Tensors, change: float) -> Tensors:
    """The averages of a diffusion model as CompVis's training keeps them."""
    return {
        "model_ema." + key.removeprefix("model.").replace(".", ""): value + np.float32(change)
        for key, value in tensors.items()
        if key.startswith(UNET)
    }


def test_what_is_no_networks_is_named_and_ignored(tensors, path, caplog) -> None:
    caplog.set_level("INFO")
    extra = {
        "alphas_cumprod": np.zeros(1000, np.float32),
        POSITIONS: np.arange(77)[None],
        f"{TEXT}transformer.text_projection.weight": np.zeros((2, 2), np.float32),
        f"{VAE}loss.logvar": np.zeros((), np.float32),
        **averages(tensors, 1),
    }
    save_file(tensors | extra, path)
    assert located(path).prepare() == str(path)
    assert f"model_ema.* ({len(averages(tensors, 1))})" in caplog.text
    for name in ("alphas_cumprod", f"{VAE}loss.logvar", "cond_stage_model.* (2)"):
        assert name in caplog.text
    # Not the averages.
    for network in ("text_encoder", "diffusion_model"):
        for ours, theirs in zip(
            weights_of(path, network), weights_of(CHECKPOINT, network), strict=True
        ):
            np.testing.assert_array_equal(ours, theirs)


def test_averages_alone_are_read(tensors, path) -> None:
    others = {key: value for key, value in tensors.items() if not key.startswith(UNET)}
    counter = {"model_ema.num_updates": np.zeros((), np.int32)}
    save_file(others | averages(tensors, 1) | counter, path)
    assert located(path).checkpoint.ignored == tuple(counter)
    for ours, theirs in zip(
        weights_of(path, "diffusion_model"), weights_of(CHECKPOINT, "diffusion_model"), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs + np.float32(1))


def test_a_text_encoder_without_its_root_is_read(tensors, path) -> None:
    save_file({key.replace(".text_model.", "."): v for key, v in tensors.items()}, path)
    for ours, theirs in zip(
        weights_of(path, "text_encoder"), weights_of(CHECKPOINT, "text_encoder"), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)


def test_what_a_file_lacks_is_the_presets_own(tensors, path, monkeypatch, tmp_path, caplog) -> None:
    caplog.set_level("INFO")
    monkeypatch.setattr(base_model_module, "_SHIPPED", tmp_path)
    (tmp_path / PRESET.name).symlink_to(CHECKPOINT)
    for gone, lacking in (
        (VAE, ("image_encoder", "decoder")),
        (TEXT, ("text_encoder",)),
        ((VAE, TEXT), ("text_encoder", "image_encoder", "decoder")),
    ):
        save_file({k: v + 1 for k, v in tensors.items() if not k.startswith(gone)}, path)
        found = located(path)
        caplog.clear()
        assert found.prepare() == str(path)
        said = ", no ".join(n.replace("_", " ") for n in NETWORKS if n in lacking)
        assert f"has no {said}: taken from the default base weights" in caplog.text
        whole = located(CHECKPOINT)
        for network in NETWORKS:
            expected = whole.hash([network]) if network in lacking else whole_file_hash(path)
            assert found.hash([network]) == expected
        for network in ("text_encoder", "image_encoder"):
            change = 0 if network in lacking else 1
            for ours, theirs in zip(
                weights_of(path, network), weights_of(CHECKPOINT, network), strict=True
            ):
                np.testing.assert_array_equal(ours, theirs + np.float32(change))


def whole_file_hash(path: Path) -> str:
    # What `BaseModel.hash` makes of one network's file.
    return hashlib.sha256(sha256_of(path).encode()).hexdigest()


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        (
            {f"{TEXT}model.ln_final.weight": (2,)},
            "of Stable Diffusion 2.x: only .* v1.x is supported",
        ),
        ({"conditioner.embedders.0.x": (2,)}, "of Stable Diffusion XL"),
        ({"v_pred": ()}, "predicts v instead of the noise"),
        ({FIRST: (8, 9, 3, 3)}, r"\[8, 9, 3, 3\], as in models for inpainting \(here \[8, 4, 3"),
        ({FIRST: (320, 4, 3, 3)}, r"is for another model than preset 'tiny': .*\[320, 4, 3, 3\]"),
        (
            {f"{UNET}input_blocks.3.1.transformer_blocks.0.attn2.to_k.weight": (12, 1024)},
            r"attn2.to_k.weight has the shape \[12, 1024\] \(here \[12, 12\]\)",
        ),
    ],
)
def test_other_models_are_told_by_the_header(extra, said, tensors, path) -> None:
    save_file(tensors | {k: np.zeros(shape, np.float32) for k, shape in extra.items()}, path)
    with pytest.raises(WeightsError, match=said) as error:
        located(path)
    assert str(path) in one_line(error)


def test_files_that_hold_no_model_are_one_line(tensors, path) -> None:
    small = np.zeros(2, np.float32)
    for content, said in (
        ({}, "holds no diffusion model: .* but there are none here"),
        ({"a.b": small}, "holds no diffusion model: .* begin with model.diffusion_model., but the"),
        ({"lora_unet_x.alpha": small}, r"adapters \(LoRA\), without a model"),
        ({"down_blocks.0.x": small}, "one network in diffusers' layout"),
        (tensors | {FIRST: np.zeros((8, 4, 3, 3), np.int8)}, r"holds .* as I8: use a file in fl"),
    ):
        save_file(content, path)
        with pytest.raises(WeightsError, match=said) as error:
            located(path)
        one_line(error)


def test_tensors_that_are_missing_or_unknown_are_one_line(tensors, path) -> None:
    key = f"{TEXT}transformer.text_model.final_layer_norm.bias"
    for content, said in (
        ({k: v for k, v in tensors.items() if k != key}, "lacks text_model.final_layer_norm.bias"),
        (tensors | {key.replace("bias", "b"): np.zeros(1, np.float32)}, r"has unknown tensors: "),
        (tensors | {key: np.zeros(7, np.float32)}, r"has the shape \[7\]"),
    ):
        save_file(content, path)
        with pytest.raises(WeightsError, match=said) as error:
            located(path).build("text_encoder")
        one_line(error)


class Harmful:
    """Leaves a file behind where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_pickles_are_refused_unopened(path, tmp_path) -> None:
    left = tmp_path / "left"
    content = pickle.dumps(Harmful(left), protocol=2)
    for name in ("model.ckpt", "model.pt", "model.safetensors"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(WeightsError, match=r"is a pickle.*weights_only=True") as error:
            located(tmp_path / name)
        assert name in one_line(error)
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", content)
    with pytest.raises(WeightsError, match="is a pickle"):
        located(path)
    assert not left.exists()


def test_damaged_files_are_one_line(tensors, path) -> None:
    save_file(tensors, path)
    whole = path.read_bytes()
    for content in (
        b"",
        b"abc",
        b"<html>not found</html>",
        whole[:100],
        b"\x03" + 7 * b"\0" + b"[1]",
    ):
        path.write_bytes(content)
        with pytest.raises(WeightsError, match="is damaged") as error:
            located(path)
        one_line(error)
    # The header is whole.
    path.write_bytes(whole[:-1000])
    with pytest.raises(WeightsError, match="is damaged"):
        located(path).build("text_encoder")
    path.unlink()
    with pytest.raises(WeightsError, match=r"there is no .*model\.safetensors"):
        located(path)


def test_the_hash_is_the_files_own_or_the_listed_one(tensors, path) -> None:
    save_file(tensors, path)
    before = located(path).hash()
    listed = path.parent / "SHA256SUMS"
    listed.write_text(f"{'0' * 64}  {path.name}\n")
    with pytest.raises(WeightsError, match="corrupt or a different file"):
        located(path).prepare()
    listed.write_text(f"{sha256_of(path)}  {path.name}\n")
    located(path).prepare()
    assert located(path).hash() == before
    listed.unlink()
    found = located(path)
    save_file(tensors | {"extra": np.zeros(1, np.float32)}, path)
    with pytest.raises(WeightsError, match="have changed since the run was prepared"):
        found.check_unchanged(before)


def test_a_buckets_file_is_read(tensors, path) -> None:
    save_file(tensors, path)
    memory = fsspec.filesystem("memory")
    memory.pipe("/bucket/weights/model.safetensors", path.read_bytes())
    address = "memory://bucket/weights/model.safetensors"
    assert located(address).prepare() == address
    assert located(address).hash() == located(path).hash()
    for ours, theirs in zip(
        weights_of(address, "text_encoder"), weights_of(path, "text_encoder"), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)
    with pytest.raises(FolderError, match=r"there is no memory://bucket/weights/x.safetensors"):
        located("memory://bucket/weights/x.safetensors")


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("model.safetensors", (".", "model.safetensors")),
        ("/model.safetensors", ("/", "model.safetensors")),
        ("a/b.safetensors", ("a", "b.safetensors")),
        ("gs://bucket/b.safetensors", ("gs://bucket", "b.safetensors")),
        ("hf://org/name/b.safetensors", ("hf://org/name", "b.safetensors")),
        ("hf://org/name@v1/a/b.safetensors", ("hf://org/name@v1/a", "b.safetensors")),
        ("hf://org/name.safetensors", None),
        ("hf://org/name", None),
        ("a/folder", None),
    ],
)
def test_addresses(address, expected) -> None:
    assert split_address(address) == expected
