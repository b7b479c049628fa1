"""Diffusers' layout: `tests/data/diffusers_tiny` is what that library wrote, and computed."""

import dataclasses
import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import fsspec
import ml_dtypes
import numpy as np
import pytest
import safetensors
import small_runs
import tensorflow as tf
from diffusers_preset import CHECKPOINT, IMAGE_SIZE, PRESET, edit, one_line, write_single_file
from safetensors.numpy import load_file, save_file
from tfx.types import standard_artifacts

from benchmarks.weights.__main__ import relative_error
from components.latent_gen.encoders import Encoders
from components.serving_pusher import executor as serving_pusher
from pipeline.config import ConfigError, load_config
from storage import filesystem
from storage.folders import FolderError
from storage.transfer import sha256_of
from trainer import diffusers_export as command
from trainer import networks, presets
from trainer.export.saved_models import (
    DecoderModule,
    DiffusionModelModule,
    TextEncoderModule,
)
from trainer.presets import NETWORKS, Preset, get_preset
from trainer.text.tokenizer import tokenize, vocabulary_and_merges
from trainer.weights import diffusers_export, diffusers_layout
from trainer.weights.base_model import BaseModel
from trainer.weights.diffusers_format import tensor_names, to_diffusers
from trainer.weights.errors import WeightsError
from trainer.weights.load import write_hashes

EXACT = BaseModel.locate(PRESET, IMAGE_SIZE, str(CHECKPOINT)).preset
FILES = {
    "text_encoder": "text_encoder/model.safetensors",
    "image_encoder": "vae/diffusion_pytorch_model.safetensors",
    "diffusion_model": "unet/diffusion_pytorch_model.safetensors",
    "decoder": "vae/diffusion_pytorch_model.safetensors",
}


def located(source: Path | str, preset: Preset = PRESET) -> BaseModel:
    return BaseModel.locate(preset, IMAGE_SIZE, str(source))


@pytest.fixture(scope="module", autouse=True)
def built_once():
    """Each network is built once for all tests; what they load into it, they load themselves."""
    models = {}
    build_network = networks.build_network

    def built(network, preset, image_size):
        key = (network, repr(preset), image_size)
        if key not in models:
            models[key] = build_network(network, preset, image_size)
        # What a test finds is what it loads, not what another one loaded.
        models[key].set_weights([np.zeros_like(w) for w in models[key].get_weights()])
        return models[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(networks, "build_network", built)
        yield


@pytest.fixture
def copy(tmp_path) -> Path:
    folder = tmp_path / "copy"
    shutil.copytree(CHECKPOINT, folder)
    return folder


@pytest.mark.parametrize("network", NETWORKS)
def test_a_network_computes_what_pytorch_does(network) -> None:
    reference = np.load(CHECKPOINT / "reference.npz")
    assert relative_error(CHECKPOINT, reference, EXACT, network) < 1e-5
    if network != "text_encoder":
        # KerasCV's form is not the same: these inputs can tell them apart.
        approximate = dataclasses.replace(EXACT, numerics="keras_cv")
        assert 1e-5 < relative_error(CHECKPOINT, reference, approximate, network) < 1e-3


@pytest.mark.parametrize("network", NETWORKS)
def test_the_shipped_weights_compute_what_pytorch_does(network) -> None:
    preset = located("default", get_preset("tiny")).preset
    assert preset.numerics == "diffusers"
    folder = Path(presets.__file__).parent / "base_weights" / "tiny"
    reference = np.load(CHECKPOINT.parent / "tiny" / "reference.npz")
    assert relative_error(folder, reference, preset, network) < 1e-5


def test_a_single_file_is_the_one_that_diffusers_opened(tmp_path) -> None:
    """And computes what it computed when `from_single_file` had opened it."""
    kept = dict(np.load(CHECKPOINT / "single_file.npz"))
    path = tmp_path / "model.safetensors"
    write_single_file(path)
    digest = hashlib.sha256()
    for name, tensor in sorted(load_file(path).items()):
        digest.update(f"{name}{list(tensor.shape)}".encode() + tensor.tobytes())
    assert digest.hexdigest() == str(kept["digest"])
    reference = dict(np.load(CHECKPOINT / "reference.npz")) | kept
    for network in NETWORKS:
        assert relative_error(path, reference, EXACT, network) < 1e-5


@pytest.mark.parametrize("network", NETWORKS)
def test_reading_and_writing_change_no_bit(network) -> None:
    model = located(CHECKPOINT).build(network)
    stored = load_file(CHECKPOINT / FILES[network])
    written = to_diffusers(model, [np.asarray(v) for v in model.weights])
    assert written
    for name, tensor in written.items():
        # transformers 5 leaves the root of the names out.
        theirs = stored[name if network != "text_encoder" else name.removeprefix("text_model.")]
        assert tensor.dtype == theirs.dtype
        np.testing.assert_array_equal(tensor, theirs)
    other = {"image_encoder": "decoder", "decoder": "image_encoder"}.get(network)
    theirs = set(tensor_names(networks.build_network(other, EXACT, IMAGE_SIZE))) if other else set()
    assert len(set(written) | theirs) == len(stored)


def test_the_form_is_the_sources(copy, tmp_path) -> None:
    assert EXACT.numerics == "diffusers"
    assert located("random", EXACT).preset.numerics == "keras_cv"
    assert located("default", get_preset("tiny")).preset.numerics == "diffusers"
    in_keras = tmp_path / "keras"
    in_keras.mkdir()
    for network in NETWORKS:
        (in_keras / f"{network}.safetensors").touch()
    assert located(in_keras).preset.numerics == "keras_cv"
    (copy / "decoder.safetensors").touch()
    with pytest.raises(WeightsError, match=r"decoder.safetensors and diffusers' layout") as error:
        located(copy)
    one_line(error)


def in_shards(folder: Path, component: str, name: str, variant: str = "") -> None:
    path = folder / component / name
    tensors = load_file(path)
    path.unlink()
    stem = name.removesuffix(".safetensors")
    names = sorted(tensors)
    parts = [f"{stem}{variant}-{i:05d}-of-00002.safetensors" for i in (1, 2)]
    weight_map = {}
    for part, keys in zip(parts, (names[::2], names[1::2]), strict=True):
        save_file({k: tensors[k] for k in keys}, folder / component / part)
        weight_map |= dict.fromkeys(keys, part)
    index = folder / component / f"{name}.index{variant}.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def with_old_names(folder: Path) -> None:
    """As the autoencoder and the text encoder of Stable Diffusion v1.4 are on the hub."""
    path = folder / FILES["decoder"]
    old = {}
    for key, tensor in load_file(path).items():
        for now, then in (
            ("to_q", "query"),
            ("to_k", "key"),
            ("to_v", "value"),
            ("to_out.0", "proj_attn"),
        ):
            key = key.replace(f".{now}.", f".{then}.")
        # From before they were made matrices.
        is_matrix = ".attentions." in key and tensor.ndim == 2
        old[key] = tensor[:, :, None, None] if is_matrix else tensor
    save_file(old, path)
    path = folder / FILES["text_encoder"]
    text = {f"text_model.{key}": tensor for key, tensor in load_file(path).items()}
    save_file(text | {"text_model.embeddings.position_ids": np.arange(77)[None]}, path)
    for component in ("unet", "vae"):
        config = folder / component / "config.json"
        kept = ("block_out_channels", "down_block_types", "up_block_types", "layers_per_block")
        kept += ("norm_num_groups", "cross_attention_dim", "attention_head_dim")
        kept += ("time_embedding_dim",)
        fields = json.loads(config.read_text())
        config.write_text(json.dumps({k: v for k, v in fields.items() if k in kept}))


def sharded(folder: Path) -> None:
    in_shards(folder, "unet", "diffusion_pytorch_model.safetensors")
    in_shards(folder, "text_encoder", "model.safetensors")


@pytest.mark.parametrize("change", [with_old_names, sharded])
def test_other_ways_to_write_the_same_are_read(change, copy) -> None:
    change(copy)
    located(copy).prepare()
    for network in NETWORKS:
        weights = [located(source).build(network).get_weights() for source in (CHECKPOINT, copy)]
        for a, b in zip(*weights, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("kind", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_is_read_where_there_is_no_full(kind, copy) -> None:
    path = copy / FILES["text_encoder"]
    tensors = load_file(path)
    half = {key: tensor.astype(kind) for key, tensor in tensors.items()}
    save_file(half, path.with_name("model.fp16.safetensors"))
    base_model = located(copy)
    assert base_model.files("text_encoder") == (FILES["text_encoder"],)
    path.unlink()
    model = base_model.build("text_encoder")
    for name, values in to_diffusers(model, model.get_weights()).items():
        expected = half[name.removeprefix("text_model.")].astype(np.float32)
        np.testing.assert_array_equal(values, expected)


@pytest.mark.parametrize(
    ("name", "fields", "said"),
    [
        (
            # Stable Diffusion 2.x.
            "unet",
            {
                "cross_attention_dim": 1024,
                "use_linear_projection": True,
                "attention_head_dim": [5, 10, 20],
            },
            [
                "cross_attention_dim is 1024 (here 12)",
                "use_linear_projection is true (here false)",
                "attention_head_dim is [5, 10, 20] (here 2)",
            ],
        ),
        ("unet", {"addition_embed_type": "text_time"}, ['addition_embed_type is "text_time"']),
        ("unet", {"in_channels": 9}, ["in_channels is 9 (here 4)"]),
        ("unet", {"time_embedding_dim": None}, ["time_embedding_dim is 32 (here 24)"]),
        ("vae", {"block_out_channels": [4, 8, 8, 8]}, ["block_out_channels is [4, 8, 8, 8]"]),
        ("vae", {"scaling_factor": 0.13025}, ["scaling_factor is 0.13025 (here 0.18215)"]),
        ("text_encoder", {"hidden_act": "gelu"}, ['hidden_act is "gelu" (here "quick_gelu")']),
        ("scheduler", {"prediction_type": "sample"}, ['prediction_type is "sample"']),
    ],
)
def test_another_models_configuration_is_one_line_with_what_differs(
    name, fields, said, copy
) -> None:
    path = copy / name / ("scheduler_config.json" if name == "scheduler" else "config.json")
    edit(path, **fields)
    with pytest.raises(WeightsError, match="describes another model than preset 'tiny'") as error:
        located(copy).prepare()
    for part in [str(path), *said]:
        assert part in one_line(error)


def drop_unet(folder: Path) -> None:
    (folder / FILES["diffusion_model"]).unlink()


def pickle_alone(folder: Path) -> None:
    path = folder / FILES["diffusion_model"]
    path.rename(path.with_suffix(".bin"))


def drop_text_encoder(folder: Path) -> None:
    shutil.rmtree(folder / "text_encoder")


def drop_shard(folder: Path) -> None:
    sharded(folder)
    (folder / "unet" / "diffusion_pytorch_model-00002-of-00002.safetensors").unlink()


def break_config(folder: Path) -> None:
    (folder / "vae" / "config.json").write_text("{")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (drop_unet, "the base weights of the diffusion_model are missing: there is no"),
        (pickle_alone, "is a pickle.*safe_serialization=True"),
        (drop_text_encoder, "is incomplete: it lacks text_encoder/config.json"),
        (drop_shard, "incomplete: there is no .*00002-of-00002"),
        (break_config, "vae/config.json is damaged"),
    ],
)
def test_what_is_missing_is_one_line(change, said, copy) -> None:
    change(copy)
    with pytest.raises(FolderError, match=said) as error:
        located(copy).prepare()
    one_line(error)


def test_tensors_that_do_not_fit_are_one_line(copy) -> None:
    path = copy / FILES["text_encoder"]
    tensors = load_file(path)
    key = "final_layer_norm.weight"
    for changed, said in (
        ({k: v for k, v in tensors.items() if k != key}, f"lacks text_model.{key}"),
        (tensors | {"extra.weight": tensors[key]}, r"has unknown tensors: extra.weight"),
        (tensors | {key: np.zeros(5, np.float32)}, rf"{key} has the shape \[5\]"),
    ):
        save_file(changed, path)
        with pytest.raises(WeightsError, match=said) as error:
            located(copy).build("text_encoder")
        one_line(error)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(WeightsError, match="damaged") as error:
        located(copy).build("text_encoder")
    one_line(error)


def test_the_hash_is_the_files_own_or_the_listed_one(copy) -> None:
    before = located(copy).hash()
    assert before == located(CHECKPOINT).hash()
    path = copy / FILES["diffusion_model"]
    damaged = bytearray(path.read_bytes())
    damaged[-1] ^= 1
    path.write_bytes(damaged)
    assert located(copy).hash() != before
    encoders = ("text_encoder", "image_encoder")
    assert located(copy).hash(encoders) == located(CHECKPOINT).hash(encoders)
    write_hashes(str(copy / "text_encoder"))
    (listed,) = (copy / "text_encoder" / "SHA256SUMS").read_text().splitlines()
    (copy / "SHA256SUMS").write_text(f"{'0' * 64}  {FILES['text_encoder']}\n")
    with pytest.raises(WeightsError, match="corrupt or a different file"):
        located(copy).prepare()
    (copy / "SHA256SUMS").write_text(f"{listed.split()[0]}  {FILES['text_encoder']}\n")
    located(copy).prepare()


def test_a_bucket_is_read_like_a_folder() -> None:
    memory = fsspec.filesystem("memory")
    memory.put(f"{CHECKPOINT}/", "/bucket/weights/", recursive=True)
    address = "memory://bucket/weights"
    assert located(address).prepare() == address
    assert located(address).hash() == located(CHECKPOINT).hash()
    embeddings = [
        located(place).build("text_encoder").weights[0].numpy() for place in (address, CHECKPOINT)
    ]
    np.testing.assert_array_equal(*embeddings)
    memory.rm("/bucket/weights/unet/diffusion_pytorch_model.safetensors")
    with pytest.raises(WeightsError, match=r"memory://bucket/weights/unet/.* *") as error:
        located(address).prepare()
    one_line(error)


def test_encoders_of_the_pipeline_compute_as_pytorch() -> None:
    """LatentGen's encoders, given the preset that its executor makes of these weights."""
    reference = np.load(CHECKPOINT / "reference.npz")
    image = reference["image_encoder/image"].transpose(0, 2, 3, 1)
    tokens = reference["text_encoder/tokens"].astype(np.int32)[:1]
    encoders = Encoders(located(CHECKPOINT), flip=False)
    encoded = encoders.pictures(list(image))
    moments = reference["image_encoder/output"].transpose(0, 2, 3, 1)
    ours = np.concatenate([encoded.mean, encoded.log_variance], axis=-1)
    assert np.linalg.norm(ours - moments) < 1e-5 * np.linalg.norm(moments)
    context = reference["text_encoder/output"][:1]
    assert np.linalg.norm(encoders.captions([tokens])[0] - context) < 1e-5 * np.linalg.norm(context)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[Path, dict[str, np.ndarray]]:
    """A model as run_fn leaves it, every weight but the image encoder's changed by training."""
    folder = tmp_path_factory.mktemp("trained") / "model" / "Format-Serving"
    models = {n: located(CHECKPOINT).build(n) for n in NETWORKS if n != "image_encoder"}
    values = {}
    for model in models.values():
        for index, variable in enumerate(model.weights):
            variable.assign(variable + 0.01 * (index + 1))
        values |= to_diffusers(model, model.get_weights())
    text_encoder = TextEncoderModule(models["text_encoder"], EXACT)
    diffusion_model = small_runs.without_sampling(models["diffusion_model"], EXACT, IMAGE_SIZE)
    decoder = DecoderModule(models["decoder"])
    # Nothing here draws.
    del text_encoder.text, decoder.png, decoder.png_bytes, decoder.rows
    for name, module, signatures in (
        ("text_encoder", text_encoder, {"serving_default": text_encoder.serve}),
        ("diffusion_model", diffusion_model, {"predict_epsilon": diffusion_model.serve_prediction}),
        ("decoder", decoder, {"serving_default": decoder.serve}),
    ):
        tf.saved_model.save(module, str(folder / name), signatures=signatures)
    hashes = {n: located(CHECKPOINT).hash([n]) for n in NETWORKS}
    manifest = {
        "preset": "tiny",
        "image_size": IMAGE_SIZE,
        "training_id": "0123",
        "defaults": {"num_steps": 3, "guidance_scale": 2.5},
        "numerics": "diffusers",
        "base_weights": hashes,
        "base_weights_source": str(CHECKPOINT),
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder.parent, values


def test_a_trained_model_is_written_bit_by_bit(trained, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(diffusers_export, "get_preset", lambda name: PRESET)
    model, values = trained
    output = tmp_path / "exported"
    assert command.main(["--model", str(model), "--output", str(output)]) == 0
    written: dict[str, np.ndarray] = {}
    for path in output.rglob("*.safetensors"):
        with safetensors.safe_open(path, "np") as file:
            assert file.metadata() == {"format": "pt"}
        written |= load_file(path)
    encoder = located(CHECKPOINT).build("image_encoder")
    values |= to_diffusers(encoder, encoder.get_weights())
    assert written.keys() == values.keys()
    for name, tensor in written.items():
        np.testing.assert_array_equal(tensor, values[name])

    # It is read back as what it is, and the served graph computes as PyTorch's layers do.
    again = located(output)
    assert again.preset.numerics == "diffusers"
    reloaded = again.build("diffusion_model")
    served = tf.saved_model.load(str(model / "Format-Serving" / "diffusion_model"))
    latent = tf.random.stateless_normal([1, 8, 8, 4], [1, 2])
    context = tf.random.stateless_normal([1, 77, 12], [3, 4])
    epsilon = served.signatures["predict_epsilon"](
        latent=latent, timesteps=tf.constant([7]), context=context
    )["epsilon"]
    ours = DiffusionModelModule(reloaded, again.preset, IMAGE_SIZE).predict(
        latent, tf.constant([7]), context
    )
    np.testing.assert_array_equal(epsilon, ours)

    assert command.main(["--model", str(model), "--output", str(output)]) == 2
    assert "already exists" in capsys.readouterr().err
    other = tmp_path / "other"
    shutil.copytree(CHECKPOINT, other)
    path = other / FILES["image_encoder"]
    save_file({k: v + 1 for k, v in load_file(path).items()}, path)
    arguments = [
        "--model",
        str(model),
        "--base-weights",
        str(other),
        "--output",
        str(tmp_path / "x"),
    ]
    assert command.main(arguments) == 2
    assert "are not the ones that the model" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_base_weights_are_written_for_the_whole_pipeline(dtype, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(diffusers_export, "get_preset", lambda name: PRESET)
    output = tmp_path / "exported"
    arguments = ["--preset", "tiny", "--base-weights", str(CHECKPOINT), "--dtype", dtype]
    assert command.main([*arguments, "--output", str(output)]) == 0
    rounded = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16}[dtype]
    with safetensors.safe_open(output / FILES["decoder"], "np") as file:
        names = set(file.keys())
        dtypes = {file.get_slice(name).get_dtype() for name in names}
    assert names == set(load_file(CHECKPOINT / FILES["decoder"]))
    assert dtypes == {"F16" if dtype == "float16" else "BF16"}
    stored = located(CHECKPOINT).build("decoder").get_weights()
    for written, value in zip(located(output).build("decoder").get_weights(), stored, strict=True):
        np.testing.assert_array_equal(written, value.astype(rounded).astype(np.float32))
    index = json.loads((output / "model_index.json").read_text())
    for part, (library, _) in ((k, v) for k, v in index.items() if isinstance(v, list)):
        assert (output / part).is_dir() == (library is not None)


def test_a_single_file_is_written_and_says_what_it_is(
    trained, tmp_path, monkeypatch, capsys
) -> None:
    monkeypatch.setattr(diffusers_export, "get_preset", lambda name: PRESET)
    model, values = trained
    output = tmp_path / "exported.safetensors"
    arguments = ["--model", str(model), "--output", str(output)]
    assert command.main(arguments) == 0
    again = located(output)
    for network in NETWORKS:
        built = again.build(network)
        stored = to_diffusers(built, built.get_weights())
        if network == "image_encoder":
            encoder = located(CHECKPOINT).build(network)
            values |= to_diffusers(encoder, encoder.get_weights())
        for name, tensor in stored.items():
            np.testing.assert_array_equal(tensor, values[name])
    content = output.read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    with safetensors.safe_open(output, "np") as file:
        said = file.metadata()
        attention = "first_stage_model.decoder.mid.attn_1.q.weight"
        assert file.get_slice(attention).get_shape() == [12, 12, 1, 1]
    assert said["modelspec.hash_sha256"] == f"0x{hashlib.sha256(content[header:]).hexdigest()}"
    expected = {
        "format": "pt",
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": "stable-diffusion-v1-tiny",
        "modelspec.implementation": "https://github.com/Stability-AI/generative-models",
        "modelspec.resolution": "64x64",
        # The place on this machine is nobody's business.
        "base_weights": "diffusers_tiny",
    }
    assert {key: said[key] for key in expected} == expected
    assert str(tmp_path) not in str(said)

    capsys.readouterr()
    assert command.main(arguments) == 2
    assert "already exists: give --output a new file" in capsys.readouterr().err
    assert command.main([*arguments[:2], "--output", "memory://out/a.safetensors"]) == 0
    assert fsspec.filesystem("memory").cat("/out/a.safetensors") == content


def test_a_release_has_the_file_that_the_command_writes_of_it(
    trained, tmp_path, monkeypatch, capsys
) -> None:
    monkeypatch.setattr(diffusers_export, "get_preset", lambda name: PRESET)
    model, blessing, latents, pushed = (
        standard_artifacts.Model(),
        standard_artifacts.ModelBlessing(),
        standard_artifacts.Examples(),
        standard_artifacts.PushedModel(),
    )
    model.uri, pushed.uri = str(trained[0]), str(tmp_path / "pushed")
    blessing.set_int_custom_property("blessed", 1)
    # As in a bucket, which nothing can be renamed in.
    root = "ram://released/serving_model"
    settings = {
        "push_destination": root,
        "keep_versions": 0,
        "batch_size": 1,
        "canary": 0,
        "checkpoint": "float16",
        "publish_captions": 1,
        "sign_key": "",
        "sign_key_env": "",
        "c2pa_certificate": "",
        "c2pa_key_env": "",
        "settings": "{}",
        "training_dataset": "",
    }
    inputs = {"model": [model], "model_blessing": [blessing], "latents": [latents]}
    serving_pusher.Executor().Do(inputs, {"pushed_model": [pushed]}, settings)
    release = json.loads(filesystem.read_bytes(f"{root}/releases/1.json"))
    assert release["single_files"] == {"model.safetensors": "float16"}
    content = filesystem.read_bytes(f"{root}/single_files/1/model.safetensors")
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    assert release["files"]["single_files/1/model.safetensors"] == sha256_of(path)
    with safetensors.safe_open(path, "np") as file:
        said = file.metadata()
        assert {file.get_slice(key).get_dtype() for key in file.keys()} == {"F16"}  # noqa: SIM118
    assert (said["release"], said["training_id"]) == ("1", "0123")
    assert said["modelspec.title"] == "tiny release 1"
    assert said["modelspec.date"] == release["pushed_at"]
    built = located(path).build("text_encoder")
    for name, tensor in to_diffusers(built, built.get_weights()).items():
        expected = trained[1][name].astype(np.float16).astype(np.float32)
        np.testing.assert_array_equal(tensor, expected)

    again = tmp_path / "again.safetensors"
    arguments = ["--model", f"{root}/releases/1.json", "--dtype", "float16", "--output", str(again)]
    assert command.main(arguments) == 0
    assert again.read_bytes() == content
    # As `serving.publish` leaves it, each folder without its version.
    published = tmp_path / "release-1"
    for name in release["files"]:
        filesystem.copy(f"{root}/{name}", str(published / name.replace("/1/", "/")))
    (published / "release.json").write_text(json.dumps(release))
    arguments[1], arguments[-1] = (
        str(published / "release.json"),
        str(tmp_path / "third.safetensors"),
    )
    assert command.main(arguments) == 0
    assert Path(arguments[-1]).read_bytes() == content
    capsys.readouterr()
    for text, said in (
        ("{}", "is not the file of a release"),
        ("[1]", "is not the file of a release"),
        ('{"version": 1}', "does not describe its model"),
        (None, "is not the file of a release"),
    ):
        arguments[1] = str(tmp_path / "1.json")
        if text is None:
            Path(arguments[1]).unlink()
        else:
            Path(arguments[1]).write_text(text)
        assert command.main(arguments) == 2
        [line] = capsys.readouterr().err.splitlines()
        assert said in line


def test_help_waits_for_no_tensorflow() -> None:
    script = (
        "import sys\n"
        "from trainer import diffusers_export, pretrain\n"
        "for command in (diffusers_export, pretrain):\n"
        "    try:\n"
        "        command.main(['--help'])\n"
        "    except SystemExit as end:\n"
        "        assert end.code == 0\n"
        "assert 'tensorflow' not in sys.modules\n"
    )
    root = Path(presets.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=root, capture_output=True, text=True, check=True
    )
    assert "--dtype {float32,float16,bfloat16}" in done.stdout
    assert done.stderr == ""


def test_a_preset_that_diffusers_cannot_have_is_one_line(tmp_path, capsys, monkeypatch) -> None:
    output = tmp_path / "exported"
    shallow = dataclasses.replace(PRESET.decoder, num_blocks=PRESET.image_encoder.num_blocks)
    preset = dataclasses.replace(PRESET, decoder=shallow, numerics="keras_cv")
    monkeypatch.setattr(diffusers_export, "get_preset", lambda name: preset)
    assert command.main(["--preset", "tiny", "--output", str(output)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "diffusers has no autoencoder like the one of preset 'tiny'" in error
    assert not output.exists()

    # Nor can a release have a file that would be written so late.
    monkeypatch.setattr(presets, "PRESETS", {**presets.PRESETS, "tiny": preset})
    asked = {"serving.checkpoint": ("--given", "float16"), "model.image_size": ("--given", 64)}
    said = r"serving.checkpoint = 'float16' \(from --given\) .* no autoencoder like .*"
    with pytest.raises(ConfigError, match=said) as raised:
        load_config(None, asked)
    one_line(raised)


def test_what_float16_cannot_hold_is_one_line(tmp_path, monkeypatch) -> None:
    large = tmp_path / "large"
    shutil.copytree(CHECKPOINT, large)
    path = large / FILES["diffusion_model"]
    tensors = load_file(path)
    tensors["conv_in.weight"][0, 0, 0, 0] = 1e5
    save_file(tensors, path)
    monkeypatch.setattr(diffusers_export, "get_preset", lambda name: PRESET)
    output = tmp_path / "x.safetensors"
    with pytest.raises(WeightsError, match="diffusion_model has weights that are too large for f"):
        diffusers_export.export_base_weights(
            "tiny", str(output), base_weights=str(large), dtype="float16"
        )
    assert list(tmp_path.iterdir()) == [large]


def test_full_sizes_configurations_are_stable_diffusions() -> None:
    """As they are on the hub, for what matters."""
    preset = get_preset("sd-v1-4")
    unet = diffusers_layout.unet_config(preset)
    assert unet["block_out_channels"] == [320, 640, 1280, 1280]
    assert unet["down_block_types"] == [*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"]
    assert unet["up_block_types"] == ["UpBlock2D", *["CrossAttnUpBlock2D"] * 3]
    assert (unet["layers_per_block"], unet["attention_head_dim"], unet["sample_size"]) == (2, 8, 64)
    assert unet["time_embedding_dim"] is None
    vae = diffusers_layout.vae_config(preset)
    assert (vae["block_out_channels"], vae["layers_per_block"]) == ([128, 256, 512, 512], 2)
    text = diffusers_layout.text_encoder_config(preset)
    assert (text["hidden_size"], text["intermediate_size"]) == (768, 3072)
    scheduler = diffusers_layout.scheduler_config(preset)
    assert scheduler["num_train_timesteps"] == presets.NUM_TIMESTEPS
    assert scheduler["prediction_type"] == preset.prediction == "epsilon"


def test_the_shipped_preset_is_one_that_diffusers_has() -> None:
    preset = get_preset("tiny")
    folder = Path(presets.__file__).parent / "base_weights" / "tiny"
    for part, config in (
        ("unet", diffusers_layout.unet_config(preset)),
        ("vae", diffusers_layout.vae_config(preset)),
        ("text_encoder", diffusers_layout.text_encoder_config(preset)),
    ):
        assert json.loads((folder / part / "config.json").read_text()) == config, part


def test_the_tokenizers_files_give_our_ids() -> None:
    """Byte-pair encoding by the files alone, as transformers does it."""
    vocabulary, merges = vocabulary_and_merges()
    assert len(vocabulary) == 49408
    assert (vocabulary["<|endoftext|>"], vocabulary["a</w>"]) == (49407, 320)
    ranks = {pair: rank for rank, pair in enumerate(merges)}
    assert len(ranks) == 49408 - 512 - 2
    for word in ("photograph", "unbelievable", "stable", "zebra"):
        parts = [*word[:-1], f"{word[-1]}</w>"]
        while len(parts) > 1:
            best = min(
                range(len(parts) - 1), key=lambda i: ranks.get((parts[i], parts[i + 1]), 1e9)
            )
            if (parts[best], parts[best + 1]) not in ranks:
                break
            parts[best : best + 2] = [parts[best] + parts[best + 1]]
        ids = [vocabulary[part] for part in parts]
        assert list(tokenize([word])[0][1 : 1 + len(ids)]) == ids
