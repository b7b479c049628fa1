"""Real SavedModels with the real signatures, a few variables large, pushed for real."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
import safetensors
import tensorflow as tf
from google.protobuf import text_format
from signing_keys import key_pair
from tensorflow_serving.apis import prediction_log_pb2
from tensorflow_serving.config import model_server_config_pb2
from tfx.types import standard_artifacts

from components.serving_pusher import ServingPusher, executor
from serving import seals, serving_directory
from serving.client import Generator
from serving.errors import ServingError
from serving.publish import model_card
from serving.releases import SERVED_NETWORKS, find_release, list_versions
from serving.releases.__main__ import main as releases_command
from serving.serving_directory import (
    BATCHING_FILE,
    WARMUP_FILE,
    CorruptCopyError,
    ServingDirectory,
)
from storage import filesystem, model_signatures
from storage.user_errors import UserError
from trainer import model_spec
from trainer.data.caption_counts import write_counts
from trainer.presets import get_preset

IMAGE_SIZE = 16
WIDTH = 4


class TextEncoder(tf.Module):
    def __init__(self):
        super().__init__()
        self.table = tf.Variable(tf.random.stateless_normal([77, WIDTH], [1, 1]))
        strings = tf.TensorSpec([None], tf.string)
        self.text = tf.function(self._text, input_signature=[strings, strings], autograph=False)

    def _text(self, prompt, negative_prompt):
        def encode(strings):
            lengths = tf.cast(tf.strings.length(strings), tf.float32)
            return lengths[:, None, None] * self.table[None]

        return {"context": encode(prompt), "unconditional_context": encode(negative_prompt)}


class DiffusionModel(tf.Module):
    def __init__(self, scale):
        super().__init__()
        self.scale = tf.Variable(scale)
        context = tf.TensorSpec([None, 77, WIDTH], tf.float32)
        self.serve = tf.function(
            self._serve,
            input_signature=[
                context,
                context,
                tf.TensorSpec([], tf.int32, name="num_steps"),
                tf.TensorSpec([], tf.float32, name="guidance_scale"),
                tf.TensorSpec([2], tf.int32, name="seed"),
            ],
            autograph=False,
        )

    def _serve(self, context, unconditional_context, num_steps, guidance_scale, seed):
        noise = tf.random.stateless_normal([tf.shape(context)[0], 2, 2, 4], seed)
        # Uses every input, or the signature would lose it.
        shift = guidance_scale * tf.reduce_mean(context - unconditional_context)
        return {"latent": self.scale * noise + tf.tanh(shift * tf.cast(num_steps, tf.float32))}


class Decoder(tf.Module):
    def __init__(self, gain):
        super().__init__()
        self.gain = tf.Variable(gain)
        spec = tf.TensorSpec([None, 2, 2, 4], tf.float32, name="latent")
        self.serve = tf.function(self._serve, input_signature=[spec], autograph=False)

    def _serve(self, latent):
        pixels = 127.0 + self.gain * tf.repeat(tf.repeat(latent[..., :3], 8, 1), 8, 2)
        return {"generated_images": tf.cast(tf.clip_by_value(pixels, 0.0, 255.0), tf.uint8)}


def save_model(folder: Path, scale: float = 1.0, gain: float = 40.0) -> Path:
    text_encoder = TextEncoder()
    modules = {
        "text_encoder": (text_encoder, {"text": text_encoder.text}),
        "diffusion_model": (model := DiffusionModel(scale), {"serving_default": model.serve}),
        "decoder": (decoder := Decoder(gain), {"serving_default": decoder.serve}),
    }
    for name, (module, signatures) in modules.items():
        tf.saved_model.save(module, str(folder / "Format-Serving" / name), signatures=signatures)
    manifest = {
        "preset": "tiny",
        "image_size": IMAGE_SIZE,
        "defaults": {"num_steps": 3, "guidance_scale": 2.5},
    }
    (folder / "Format-Serving" / "manifest.json").write_text(json.dumps(manifest))
    return folder


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def push(tmp_path, model_folder):
    """Pushes and returns the PushedModel; without the canary unless it is asked for."""
    root = tmp_path / "serving"
    count = 0

    def push(
        blessed=1,
        model_id=None,
        folder=model_folder,
        canary=False,
        keep=0,
        unsure="",
        checkpoint="",
        captions=True,
        batch_size=1,
        sign_key_env="",
        c2pa=("", ""),
    ):
        nonlocal count
        count += 1
        model, blessing, latents, pushed = (
            standard_artifacts.Model(),
            standard_artifacts.ModelBlessing(),
            standard_artifacts.Examples(),
            standard_artifacts.PushedModel(),
        )
        latents.uri, latents.id = str(tmp_path / "latents"), 55
        model.uri, model.id = str(folder), model_id or count
        blessing.uri, blessing.id = str(tmp_path / "blessing"), 77
        blessing.set_int_custom_property("blessed", blessed)
        if unsure:
            blessing.set_string_custom_property("verdict", "unsure")
            blessing.set_string_custom_property("reasons", unsure)
        blessing.set_float_custom_property("loss", 0.25)
        blessing.set_float_custom_property("loss_baseline", 0.5)
        pushed.uri = str(tmp_path / f"pushed-{count}")
        executor.Executor().Do(
            {"model": [model], "model_blessing": [blessing], "latents": [latents]},
            {"pushed_model": [pushed]},
            {
                "push_destination": str(root),
                "keep_versions": keep,
                "canary": int(canary),
                "canary_timeout_seconds": 300,
                "checkpoint": checkpoint,
                "batch_size": batch_size,
                "publish_captions": int(captions),
                "sign_key": "",
                "sign_key_env": sign_key_env,
                "c2pa_certificate": str(c2pa[0]),
                "c2pa_key_env": c2pa[1],
                "settings": "{}",
                "training_dataset": "hf://datasets/org/creatures@0123abc",
                "code_version": "1",
            },
        )
        return pushed

    push.root = root
    return push


def configured(root: Path) -> dict[str, list[int]]:
    config = text_format.Parse(
        (root / "models.config").read_text(), model_server_config_pb2.ModelServerConfig()
    )
    models = config.model_config_list.config
    assert [m.base_path for m in models] == [str(root / name) for name in SERVED_NETWORKS]
    return {m.name: list(m.model_version_policy.specific.versions) for m in models}


def tree(root: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file() and path.name not in (".lock", "last_version")
    }


def test_a_pushed_release_is_whole_and_draws_pictures(push, model_folder):
    pushed = push(canary=True)
    assert pushed.get_int_custom_property("pushed") == 1
    assert pushed.get_string_custom_property("pushed_version") == "1"
    assert pushed.get_string_custom_property("pushed_destination") == str(push.root)
    release = json.loads((push.root / "releases" / "1.json").read_text())
    assert json.loads(Path(pushed.uri, "release.json").read_text()) == release
    assert release["version"] == 1
    assert release["metrics"] == {"loss": 0.25, "loss_baseline": 0.5}
    assert release["defaults"] == {"num_steps": 3, "guidance_scale": 2.5}
    assert release["model"] == {"uri": str(model_folder), "id": 1}
    assert release["blessing"]["id"] == 77
    assert release["dataset"] == "hf://datasets/org/creatures@0123abc"
    assert (release["preset"], release["image_size"]) == ("tiny", IMAGE_SIZE)
    expected = {}
    for network in SERVED_NETWORKS:
        source = model_folder / "Format-Serving" / network
        for path in filter(Path.is_file, source.rglob("*")):
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            expected[f"{network}/1/{path.relative_to(source)}"] = digest
        warmup = (push.root / network / "1" / WARMUP_FILE).read_bytes()
        expected[f"{network}/1/{WARMUP_FILE}"] = hashlib.sha256(warmup).hexdigest()
    # The stock Pusher loses the nested saved_model.pb.
    assert {f"{network}/1/saved_model.pb" for network in SERVED_NETWORKS} <= expected.keys()
    assert release["files"] == expected
    for path, digest in expected.items():
        assert hashlib.sha256((push.root / path).read_bytes()).hexdigest() == digest
    assert configured(push.root) == {network: [1] for network in SERVED_NETWORKS}
    assert set(tree(push.root)) == {*expected, "models.config", "releases/1.json"}

    assert release["lineage"]["artifact_ids"] == {
        "model": [1],
        "model_blessing": [77],
        "latents": [55],
    }
    generator = Generator(str(push.root))
    assert generator.release.version == 1
    assert generator.generate(["a creature"]).shape == (1, IMAGE_SIZE, IMAGE_SIZE, 3)


def test_an_unsure_release_is_marked_wherever_it_is_shown(push, caplog, capsys):
    caplog.set_level("INFO", "components")
    push()
    pushed = push(unsure="it cannot be told from | 4 pictures")
    assert pushed.get_string_custom_property("verdict") == "unsure"
    assert "Version 2 is in" in caplog.text
    assert "marked as unsure." in caplog.text
    release = find_release(str(push.root))
    assert release.unsure
    assert release.facts["reasons"] == ["it cannot be told from | 4 pictures"]
    assert not find_release(str(push.root), 1).unsure
    assert releases_command(["list", "--serving-dir", str(push.root)]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert "unsure" not in first
    assert second.endswith("  unsure")
    assert "**Unsure:** it cannot be told from \\| 4 pictures." in model_card(
        release.facts, [], name="x"
    )


def test_what_is_not_blessed_is_not_pushed(push):
    pushed = push(blessed=0)
    assert pushed.get_int_custom_property("pushed") == 0
    assert pushed.get_string_custom_property("reason") == "the model is not blessed"
    assert not pushed.has_custom_property("pushed_version")
    assert not push.root.exists()


def test_versions_increase_and_are_never_overwritten(push):
    push()
    first = tree(push.root)
    (push.root / "decoder" / "6").mkdir()  # of a push that a crash stopped
    assert push().get_string_custom_property("pushed_version") == "7"
    assert list_versions(str(push.root)) == [1, 7]
    assert configured(push.root) == {network: [1, 7] for network in SERVED_NETWORKS}
    now = tree(push.root)
    del first["models.config"]
    assert all(now[path] == content for path, content in first.items())
    assert not (push.root / "decoder" / "6").exists()


def test_the_same_model_again_is_the_same_release(push):
    push(model_id=5)
    before = tree(push.root)
    assert push(model_id=5).get_string_custom_property("pushed_version") == "1"
    assert tree(push.root) == before
    (push.root / "decoder" / "1" / "saved_model.pb").write_bytes(b"damaged")
    assert push(model_id=5).get_string_custom_property("pushed_version") == "2"


def test_another_export_of_a_released_training_is_the_same_release(push, model_folder, tmp_path):
    def export(**facts: object) -> Path:
        """TensorFlow gives each export a number of its own."""
        folder = tmp_path / f"export-{len(list(tmp_path.glob('export-*')))}"
        serving = shutil.copytree(model_folder, folder) / "Format-Serving"
        (serving / "decoder" / "fingerprint.pb").write_text(folder.name)
        manifest = json.loads((serving / "manifest.json").read_text()) | facts
        (serving / "manifest.json").write_text(json.dumps(manifest))
        return folder

    def version(**facts: object) -> str:
        return str(push(folder=export(**facts)).get_string_custom_property("pushed_version"))

    assert version(training_id="a") == "1"
    assert version(training_id="a") == "1"
    assert version(training_id="a", export_weights="float16") == "2"
    assert version(training_id="a", export_weights="float16", compute="float16") == "3"
    assert version(training_id="b", compute="float32") == "4"
    assert version(training_id="b") == "4"
    assert version(training_id="b", defaults={"num_steps": 9, "guidance_scale": 2.5}) == "5"
    # By code that draws any size.
    assert version(training_id="b", size_multiple=8) == "6"
    # Former versions' models do not say.
    assert [version(), version()] == ["7", "8"]
    (push.root / "decoder" / "8" / "saved_model.pb").write_bytes(b"damaged")
    assert version() == "9"


@pytest.fixture
def adapters_folder(model_folder, tmp_path) -> Path:
    """A model with adapters, which drew captions that are held out; and its latents."""
    folder = tmp_path / "adapters"
    serving = shutil.copytree(model_folder, folder) / "Format-Serving"
    spec = model_spec.model_spec(get_preset("tiny"), IMAGE_SIZE, title="t", description="d")
    tensors = {"lora_unet_x.alpha": np.asarray(2, np.float32)}
    model_spec.save_file(tensors, serving / model_spec.LORA_NAME, {**spec, "ss_network_dim": "2"})
    manifest = json.loads((serving / "manifest.json").read_text())
    manifest["validation"] = {"prompts": ["a held-out secret"], "seed": 0}
    manifest["training_id"] = "a"
    (serving / "manifest.json").write_text(json.dumps(manifest))
    (tmp_path / "latents").mkdir()
    write_counts(str(tmp_path / "latents"), {"sks": 12, "red hair": 4})
    return folder


def adapters_header(root: Path, version: int) -> dict[str, str]:
    path = root / "single_files" / str(version) / "lora.safetensors"
    with safetensors.safe_open(path, "np") as file:
        assert file.get_tensor("lora_unet_x.alpha") == 2
        return file.metadata()


def test_pushed_adapters_name_their_release_and_the_captions_words(push, adapters_folder):
    push()
    assert not (push.root / "single_files").exists()
    push(folder=adapters_folder, model_id=5)
    said = adapters_header(push.root, 2)
    release = json.loads((push.root / "releases" / "2.json").read_text())
    assert (said["release"], said["modelspec.title"]) == ("2", "tiny release 2")
    assert said["modelspec.date"] == release["pushed_at"]
    assert json.loads(said["ss_tag_frequency"]) == {"1_pictures": {"sks": 12, "red hair": 4}}
    # What the Trainer wrote is there as well.
    assert said["ss_network_dim"] == "2"
    assert (
        said["modelspec.hash_sha256"] == f"0x{hashlib.sha256(np.float32(2).tobytes()).hexdigest()}"
    )
    assert release["single_files"] == {"lora.safetensors": "float32"}
    assert "single_files/2/lora.safetensors" in release["files"]
    assert ServingDirectory(str(push.root)).damaged_files(2) == []
    again = push(folder=adapters_folder, model_id=5)
    assert again.get_string_custom_property("pushed_version") == "2"
    # Of a version that goes, its file goes, too.
    push(keep=1)
    push(keep=1)
    assert [path.name for path in (push.root / "single_files").iterdir()] == []


def test_captions_do_not_leave_where_they_must_not(push, adapters_folder):
    push(folder=adapters_folder)
    assert b"a held-out secret" in (push.root / "releases" / "1.json").read_bytes()
    # The release with captions is not the same as one without.
    pushed = push(folder=adapters_folder, captions=False)
    assert pushed.get_string_custom_property("pushed_version") == "2"
    again = push(folder=adapters_folder, captions=False)
    assert again.get_string_custom_property("pushed_version") == "2"
    assert "ss_tag_frequency" not in adapters_header(push.root, 2)
    release = json.loads((push.root / "releases" / "2.json").read_text())
    assert release["manifest"]["validation"] == {"prompts": [], "seed": 0}
    assert release["captions_published"] is False
    left = [push.root / name for name in ("releases/2.json", *release["files"])]
    for path in [*left, Path(pushed.uri, "release.json")]:
        for word in (b"secret", b"sks", b"red hair"):
            assert word not in path.read_bytes()
    card = model_card(release, [], name="x")
    assert "secret" not in card

    # What somebody asked for is nobody's caption.
    manifest = adapters_folder / "Format-Serving" / "manifest.json"
    content = json.loads(manifest.read_text()) | {"prompts_are_captions": False}
    manifest.write_text(json.dumps(content | {"training_id": "b"}))
    push(folder=adapters_folder, captions=False)
    release = json.loads((push.root / "releases" / "3.json").read_text())
    assert release["manifest"]["validation"]["prompts"] == ["a held-out secret"]


def test_without_base_weights_no_checkpoint_and_no_release(push):
    push()
    before = tree(push.root)
    with pytest.raises(UserError, match="does not say where its base weights were"):
        push(checkpoint="float16")
    assert tree(push.root) == before
    assert not list(push.root.glob(".staging-*"))


class Killed(BaseException):
    """Ends a push without any of its own handlers for errors."""


class Steps:
    """Passes calls on to `storage`, and ends the push at one of those that change something."""

    def __init__(self, fatal: int, before: bool, error: type[BaseException] = Killed) -> None:
        self.count = 0
        self._fatal, self._before, self._error = fatal, before, error

    def __getattr__(self, name):
        function = getattr(filesystem, name)
        if not name.startswith(("copy", "move", "remove", "make", "write")):
            return function

        def step(*args, **kwargs):
            self.count += 1
            fails = self.count == self._fatal
            if fails and self._before:
                self._fail(name, args)
            result = function(*args, **kwargs)
            if fails:
                self._fail(name, args)
            return result

        return step

    def _fail(self, name, args):
        if name in ("copy", "write_bytes", "write_atomically"):
            # What was being written stays, as far as it came.
            folder, file = os.path.split(args[name == "copy"])
            partial = Path(folder) / f"{filesystem.PARTIAL_PREFIX}x" if "atomic" in name else None
            target = partial or Path(folder) / file
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(b"half")
        raise self._error(28, "No space left on device")


def assert_serves_whole_releases(root: Path) -> int:
    """What a server is told to load are releases, with every byte that was pushed."""
    [versions] = {tuple(versions) for versions in configured(root).values()}
    for version in versions:
        release = json.loads((root / "releases" / f"{version}.json").read_text())
        assert release["version"] == version
        for path, digest in release["files"].items():
            assert hashlib.sha256((root / path).read_bytes()).hexdigest() == digest
    return versions[-1]


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("error", [Killed, OSError])
def test_a_crash_or_full_disk_at_any_step_leaves_a_whole_release_and_the_next_push_cleans_up(
    push, monkeypatch, before, error
):
    push()
    first = tree(push.root)
    fatal = 0
    while True:
        fatal += 1
        with monkeypatch.context() as context:
            steps = Steps(fatal, before, error)
            context.setattr(serving_directory, "filesystem", steps)
            try:
                pushed = push()
            except (Killed, OSError):
                pushed = None
        now = tree(push.root)
        assert all(now[path] == content for path, content in first.items() if "config" not in path)
        served = assert_serves_whole_releases(push.root)
        if pushed is not None:
            break
        for version in list_versions(str(push.root)):
            assert ServingDirectory(str(push.root)).damaged_files(version) == []
    # Two makedirs, 9 copies, 3 warm-up requests, 3 moves and what is written around them.
    assert fatal > 20
    releases = list_versions(str(push.root))
    assert pushed.get_string_custom_property("pushed_version") == str(releases[-1])
    assert served == releases[-1]
    kept = [
        path
        for version in releases
        for path in json.loads((push.root / "releases" / f"{version}.json").read_text())["files"]
    ]
    files = {*kept, "models.config", *(f"releases/{version}.json" for version in releases)}
    assert set(tree(push.root)) == files
    assert not list(push.root.glob(".staging-*"))


def test_numbers_of_failed_pushes_are_not_used_again(push, monkeypatch):
    push()

    write = filesystem.write_atomically

    def full(path, contents):
        if path.endswith("/2.json"):
            raise OSError(28, "No space left on device")
        write(path, contents)

    with monkeypatch.context() as context:
        context.setattr(filesystem, "write_atomically", full)
        with pytest.raises(OSError, match="No space left"):
            push()
    assert not list(push.root.glob("*/2"))
    assert push().get_string_custom_property("pushed_version") == "3"


def test_a_release_that_a_crash_kept_from_being_served_is_served_by_the_next_push(
    push, monkeypatch
):
    push(model_id=1)

    def killed(self, version):
        raise Killed

    with monkeypatch.context() as context:
        context.setattr(ServingDirectory, "_write_config", killed)
        with pytest.raises(Killed):
            push(model_id=2)
    assert list_versions(str(push.root)) == [1, 2]
    assert configured(push.root)["decoder"] == [1]
    assert Generator(str(push.root)).release.version == 1
    assert push(model_id=2).get_string_custom_property("pushed_version") == "2"
    assert configured(push.root) == {network: [1, 2] for network in SERVED_NETWORKS}


def test_a_corrupt_copy_is_found(push, monkeypatch):
    def corrupt(source, target):
        filesystem.copy(source, target)
        if source.endswith("decoder/saved_model.pb"):
            content = bytearray(Path(target).read_bytes())
            content[10] ^= 1
            Path(target).write_bytes(content)

    class Corrupting(Steps):
        copy = staticmethod(corrupt)

    monkeypatch.setattr(serving_directory, "filesystem", Corrupting(fatal=0, before=False))
    with pytest.raises(CorruptCopyError, match=r"decoder/saved_model\.pb is corrupt"):
        push()
    assert tree(push.root) == {}


def test_the_canary_loads_every_model(tmp_path):
    from components.serving_pusher import canary

    folder = save_model(tmp_path) / "Format-Serving"
    (folder / "decoder" / "saved_model.pb").write_bytes(b"no model")
    assert canary.problem(str(folder), IMAGE_SIZE).startswith("the decoder cannot be loaded: ")


@pytest.mark.parametrize(
    ("scale", "gain", "image_size", "problem"),
    [
        (1.0, 0.0, IMAGE_SIZE, "all pixels of the picture are the same"),
        (float("nan"), 40.0, IMAGE_SIZE, "the latent has values that are not finite numbers"),
        (1.0, 40.0, 32, "the latent has the shape (1, 2, 2, 4), expected (1, 4, 4, 4)"),
    ],
)
def test_the_canary_finds_wrong_pictures(tmp_path, scale, gain, image_size, problem):
    from components.serving_pusher import canary

    folder = save_model(tmp_path, scale, gain) / "Format-Serving"
    assert canary.problem(str(folder), image_size) == problem


def test_a_refused_model_is_not_pushed(push, tmp_path):
    folder = save_model(tmp_path / "model", gain=0.0)
    pushed = push(folder=folder, canary=True)
    assert pushed.get_int_custom_property("pushed") == 0
    reason = pushed.get_string_custom_property("reason")
    assert reason == "the canary refuses the model: all pixels of the picture are the same"
    assert tree(push.root) == {}
    (folder / "Format-Serving" / "decoder" / "saved_model.pb").write_bytes(b"no model")
    reason = push(folder=folder).get_string_custom_property("reason")
    assert reason.startswith("the decoder is not a SavedModel")
    assert tree(push.root) == {}


def test_a_canary_without_a_verdict_is_an_error(push, tmp_path, monkeypatch):
    silent = tmp_path / "silent.py"
    silent.write_text("import os; os.abort()")
    monkeypatch.setattr(executor, "_CANARY", silent)
    with pytest.raises(UserError, match="status -6 without a verdict"):
        push(canary=True)
    silent.write_text("import time; time.sleep(60)")
    with pytest.raises(UserError, match="no picture within 1 s"):
        executor.run_canary(str(tmp_path), IMAGE_SIZE, timeout_seconds=1)
    assert tree(push.root) == {}


def test_only_the_newest_versions_are_kept(push):
    for _ in range(3):
        push()
    pushed = push(keep=2)
    assert pushed.get_string_custom_property("pushed_version") == "4"
    assert list_versions(str(push.root)) == [3, 4]
    for network in SERVED_NETWORKS:
        assert sorted(path.name for path in (push.root / network).iterdir()) == ["3", "4"]


def test_warm_up_requests_ask_for_a_picture_of_every_signature(push):
    push()
    for network, signature, shapes in (
        ("text_encoder", "text", {"prompt": (1,), "negative_prompt": (1,)}),
        ("decoder", "serving_default", {"latent": (1, 2, 2, 4)}),
    ):
        [record] = tf.data.TFRecordDataset(str(push.root / network / "1" / WARMUP_FILE))
        log = prediction_log_pb2.PredictionLog.FromString(record.numpy())
        request = log.predict_log.request
        assert (request.model_spec.name, request.model_spec.signature_name) == (network, signature)
        inputs = {name: tf.make_ndarray(value) for name, value in request.inputs.items()}
        assert {name: value.shape for name, value in inputs.items()} == shapes


def test_a_failing_warm_up_refuses_the_model(push, tmp_path, monkeypatch):
    from components.serving_pusher import canary

    push()
    staged = tmp_path / "staged"
    for network in SERVED_NETWORKS:
        shutil.copytree(push.root / network / "1", staged / network)
    assert canary.problem(str(staged), IMAGE_SIZE) is None
    shutil.copy(staged / "text_encoder" / WARMUP_FILE, staged / "decoder" / WARMUP_FILE)
    problem = canary.problem(str(staged), IMAGE_SIZE)
    assert problem.startswith("the warm-up of decoder's text fails: ")


def test_a_release_is_made_for_servers_that_draw_requests_together(push, tmp_path):
    folder = save_model(tmp_path / "of_a_former_version")
    refused = push(folder=folder, batch_size=4)
    assert refused.get_int_custom_property("pushed") == 0
    assert refused.get_string_custom_property("reason") == (
        "the diffusion_model was exported by a former version, so requests to it cannot be "
        "batched: set serving.batch_size to 1, or train it again"
    )
    assert not push.root.exists()

    model = DiffusionModel(1.0)
    rows = tf.function(
        lambda context: {"latent_bytes": tf.strings.as_string(context[:, 0, 0] * model.scale)},
        input_signature=[tf.TensorSpec([None, 77, WIDTH], tf.float32, name="context")],
    )
    signatures = {"serving_default": model.serve, "rows": rows}
    place = folder / "Format-Serving" / "diffusion_model"
    tf.saved_model.save(model, str(place), signatures=signatures)
    for version, batch_size in ((1, 4), (2, 8), (3, 1)):
        for _ in range(2):
            pushed = push(folder=folder, model_id=9, batch_size=batch_size)
            assert pushed.get_string_custom_property("pushed_version") == str(version)
        release = json.loads((push.root / "releases" / f"{version}.json").read_bytes())
        assert release.get("batch_size", 1) == batch_size
        for network in SERVED_NETWORKS:
            parameters = push.root / network / str(version) / BATCHING_FILE
            assert parameters.exists() == (batch_size > 1)
            name = f"{network}/{version}/{BATCHING_FILE}"
            assert (name in release["files"]) == (batch_size > 1)
            if batch_size > 1:
                said = f"max_execution_batch_size {{ value: {batch_size} }}"
                assert said in parameters.read_text()
        # A server that draws together refuses the others, and would not load the model.
        warmup = push.root / "diffusion_model" / str(version) / WARMUP_FILE
        logs = map(
            prediction_log_pb2.PredictionLog.FromString,
            tf.data.TFRecordDataset(str(warmup)).as_numpy_iterator(),
        )
        expected = "rows" if batch_size > 1 else "serving_default"
        assert [log.predict_log.request.model_spec.signature_name for log in logs] == [expected]


def test_a_release_is_signed_and_says_what_signs_its_pictures(push, tmp_path, monkeypatch):
    private, public = key_pair()
    monkeypatch.setenv("SIGNING_KEY", private.decode())
    chain = tmp_path / "chain.pem"
    chain.write_text("-----BEGIN CERTIFICATE-----")
    pushed = push(sign_key_env="SIGNING_KEY", c2pa=(chain, "PICTURE_KEY"))
    identity = model_signatures.key_identity(public)
    assert pushed.get_string_custom_property("signed_by") == identity
    release = find_release(str(push.root))
    assert release.facts["c2pa"] == {"certificate": chain.read_text(), "key_env": "PICTURE_KEY"}
    assert seals.verify(release, seals.Verification(signature=True, public_key=public)) == []
    # Nothing of the key is written anywhere.
    for path in filter(Path.is_file, tmp_path.rglob("*")):
        assert b"PRIVATE KEY" not in path.read_bytes()
    # The same model, whose pictures are signed by nobody any more, is another release.
    assert push(model_id=1).get_string_custom_property("signed_by") == ""
    assert list_versions(str(push.root)) == [1, 2]
    chain.write_text(f"{chain.read_text()}\n-----BEGIN PRIVATE KEY-----")
    with pytest.raises(ServingError, match="it goes into the release"):
        push(c2pa=(chain, "PICTURE_KEY"))
    with pytest.raises(ServingError, match="NOT_THERE, which is empty or not set"):
        push(sign_key_env="NOT_THERE")


def test_two_pushes_at_once_are_two_releases(push, model_folder):
    directory = ServingDirectory(str(push.root))
    inside, leave, releases = threading.Event(), threading.Event(), {}

    def slow_check(staged: str) -> None:
        inside.set()
        assert leave.wait(60)

    def publish(name, check):
        source = str(model_folder / "Format-Serving")
        releases[name] = directory.publish(source, {"model": name}, check)["version"]

    first = threading.Thread(target=publish, args=("first", slow_check))
    first.start()
    assert inside.wait(60)
    second = threading.Thread(target=publish, args=("second", lambda staged: None))
    second.start()
    second.join(0.3)
    assert second.is_alive()
    assert not releases
    leave.set()
    first.join(60)
    second.join(60)
    assert releases == {"first": 1, "second": 2}
    assert list_versions(str(push.root)) == [1, 2]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"push_destination": ""}, "push_destination is empty"),
        ({"keep_versions": -1}, "keep_versions -1 is impossible"),
        ({"canary_timeout_seconds": 0}, "canary_timeout_seconds 0 is impossible"),
        ({"batch_size": 0}, "batch_size 0 is impossible"),
        ({"checkpoint": "bfloat16"}, "checkpoint 'bfloat16' is impossible: it must be one of"),
    ],
)
def test_impossible_settings(settings, message):
    from tfx.types import Channel

    inputs = {
        "model": Channel(type=standard_artifacts.Model),
        "model_blessing": Channel(type=standard_artifacts.ModelBlessing),
        "latents": Channel(type=standard_artifacts.Examples),
    }
    with pytest.raises(ValueError, match=message):
        ServingPusher(**inputs, **{"push_destination": "/tmp/serving", **settings})


def test_the_component_makes_its_spec():
    from tfx.types import Channel

    component = ServingPusher(
        model=Channel(type=standard_artifacts.Model),
        model_blessing=Channel(type=standard_artifacts.ModelBlessing),
        latents=Channel(type=standard_artifacts.Examples),
        push_destination="gs://bucket/serving",
    )
    assert component.exec_properties["canary"] == 1
    assert all(isinstance(v, (str, int, float)) for v in component.exec_properties.values())
    assert component.outputs["pushed_model"].type is standard_artifacts.PushedModel
