"""Real SavedModels with the real signatures, a few variables large, pushed for real."""

from __future__ import annotations

import hashlib
import json
import threading
from pathlib import Path

import pytest
import tensorflow as tf
from google.protobuf import text_format
from tensorflow_serving.config import model_server_config_pb2
from tfx.dsl.io import fileio
from tfx.types import standard_artifacts

from components.serving_pusher import ServingPusher, executor, serving_directory
from components.serving_pusher.serving_directory import CorruptCopyError, ServingDirectory
from serving.client import Generator
from serving.releases import NETWORKS, list_versions

IMAGE_SIZE = 16
WIDTH = 4


class TextEncoder(tf.Module):
    def __init__(self):
        super().__init__()
        self.table = tf.Variable(tf.random.stateless_normal([77, WIDTH], [1, 1]))
        strings = tf.TensorSpec([None], tf.string)
        self.text = tf.function(self._text, input_signature=[strings, strings])

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
        self.serve = tf.function(self._serve, input_signature=[spec])

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

    def push(blessed=1, model_id=None, folder=model_folder, canary=False, keep=0):
        nonlocal count
        count += 1
        model, blessing, pushed = (
            standard_artifacts.Model(),
            standard_artifacts.ModelBlessing(),
            standard_artifacts.PushedModel(),
        )
        model.uri, model.id = str(folder), model_id or count
        blessing.uri, blessing.id = str(tmp_path / "blessing"), 77
        blessing.set_int_custom_property("blessed", blessed)
        blessing.set_float_custom_property("loss", 0.25)
        blessing.set_float_custom_property("loss_baseline", 0.5)
        pushed.uri = str(tmp_path / f"pushed-{count}")
        executor.Executor().Do(
            {"model": [model], "model_blessing": [blessing]},
            {"pushed_model": [pushed]},
            {
                "push_destination": str(root),
                "keep_versions": keep,
                "canary": int(canary),
                "canary_timeout_seconds": 300,
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
    assert [m.base_path for m in models] == [str(root / name) for name in NETWORKS]
    return {m.name: list(m.model_version_policy.specific.versions) for m in models}


def tree(root: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file() and path.name != ".lock"
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
    assert (release["preset"], release["image_size"]) == ("tiny", IMAGE_SIZE)
    expected = {}
    for network in NETWORKS:
        source = model_folder / "Format-Serving" / network
        for path in filter(Path.is_file, source.rglob("*")):
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            expected[f"{network}/1/{path.relative_to(source)}"] = digest
    # The stock Pusher loses the nested saved_model.pb.
    assert {f"{network}/1/saved_model.pb" for network in NETWORKS} <= expected.keys()
    assert release["files"] == expected
    for path, digest in expected.items():
        assert hashlib.sha256((push.root / path).read_bytes()).hexdigest() == digest
    assert configured(push.root) == {network: [1] for network in NETWORKS}
    assert set(tree(push.root)) == {*expected, "models.config", "releases/1.json"}

    generator = Generator(str(push.root))
    assert generator.release.version == 1
    assert generator.generate(["a creature"]).shape == (1, IMAGE_SIZE, IMAGE_SIZE, 3)


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
    assert configured(push.root) == {network: [7] for network in NETWORKS}
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


class Killed(BaseException):
    """Ends a push without any of its own handlers for errors."""


class Steps:
    """Passes calls on to fileio and ends the push at one of those that change something."""

    def __init__(self, fatal: int, before: bool) -> None:
        self.count = 0
        self._fatal, self._before = fatal, before

    def __getattr__(self, name):
        function = getattr(fileio, name)
        if name not in ("copy", "rename", "rmtree", "remove", "makedirs", "open"):
            return function

        def step(*args, **kwargs):
            changes = name != "open" or (kwargs.get("mode") or args[1]) == "w"
            self.count += changes
            if changes and self.count == self._fatal and self._before:
                raise Killed
            result = function(*args, **kwargs)
            if changes and self.count == self._fatal:
                raise Killed
            return result

        return step


def test_a_crash_at_any_step_leaves_the_old_release_and_the_next_push_cleans_up(push, monkeypatch):
    push()
    first = tree(push.root)
    fatal = 0
    while True:
        fatal += 1
        steps = Steps(fatal, before=bool(fatal % 2))
        with monkeypatch.context() as context:
            context.setattr(serving_directory, "fileio", steps)
            try:
                pushed = push()
            except Killed:
                pushed = None
        now = tree(push.root)
        assert all(now[path] == content for path, content in first.items() if "config" not in path)
        if pushed is not None:
            break
        for version in list_versions(str(push.root)):
            release = json.loads((push.root / "releases" / f"{version}.json").read_text())
            assert all(
                hashlib.sha256((push.root / path).read_bytes()).hexdigest() == digest
                for path, digest in release["files"].items()
            )
        # What a server is told to serve is there as a whole, released or not.
        [version] = {v for versions in configured(push.root).values() for v in versions}
        for network in NETWORKS:
            folder = push.root / network / str(version)
            assert (folder / "variables" / "variables.index").exists()
            assert (folder / "saved_model.pb").exists()
    assert fatal > 20
    releases = list_versions(str(push.root))
    assert pushed.get_string_custom_property("pushed_version") == str(releases[-1])
    assert configured(push.root) == {network: [releases[-1]] for network in NETWORKS}
    kept = [
        path
        for version in releases
        for path in json.loads((push.root / "releases" / f"{version}.json").read_text())["files"]
    ]
    files = {*kept, "models.config", *(f"releases/{version}.json" for version in releases)}
    assert set(tree(push.root)) == files
    assert not list(push.root.glob(".staging-*"))


def test_an_error_cleans_up_at_once(push, monkeypatch):
    push()
    before = tree(push.root)

    def full_disk(self, path, contents, overwrite=False):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as context:
        context.setattr(ServingDirectory, "_write_atomically", full_disk)
        with pytest.raises(OSError, match="No space left"):
            push()
    assert tree(push.root) == before


def test_a_corrupt_copy_is_found(push, monkeypatch):
    def corrupt(source, target, overwrite=False):
        fileio.copy(source, target, overwrite)
        if source.endswith("decoder/saved_model.pb"):
            content = bytearray(Path(target).read_bytes())
            content[10] ^= 1
            Path(target).write_bytes(content)

    class Corrupting(Steps):
        copy = staticmethod(corrupt)

    monkeypatch.setattr(serving_directory, "fileio", Corrupting(fatal=0, before=False))
    with pytest.raises(CorruptCopyError, match=r"decoder/saved_model\.pb is corrupt"):
        push()
    assert tree(push.root) == {}


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
    folder = save_model(tmp_path / "model")
    (folder / "Format-Serving" / "decoder" / "saved_model.pb").write_bytes(b"no model")
    pushed = push(folder=folder, canary=True)
    assert pushed.get_int_custom_property("pushed") == 0
    reason = pushed.get_string_custom_property("reason")
    assert reason.startswith("the canary refuses the model: the decoder cannot be loaded")
    assert tree(push.root) == {}


def test_a_canary_without_a_verdict_is_an_error(push, tmp_path, monkeypatch):
    silent = tmp_path / "silent.py"
    silent.write_text("import os; os.abort()")
    monkeypatch.setattr(executor, "_CANARY", silent)
    with pytest.raises(RuntimeError, match="status -6 and without a verdict"):
        push(canary=True)
    silent.write_text("import time; time.sleep(60)")
    with pytest.raises(RuntimeError, match="no picture within 1 s"):
        executor.run_canary(str(tmp_path), IMAGE_SIZE, timeout_seconds=1)
    assert tree(push.root) == {}


def test_only_the_newest_versions_are_kept(push):
    for _ in range(3):
        push()
    pushed = push(keep=2)
    assert pushed.get_string_custom_property("pushed_version") == "4"
    assert list_versions(str(push.root)) == [3, 4]
    for network in NETWORKS:
        assert sorted(path.name for path in (push.root / network).iterdir()) == ["3", "4"]


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
    ],
)
def test_impossible_settings(settings, message):
    from tfx.types import Channel

    inputs = {
        "model": Channel(type=standard_artifacts.Model),
        "model_blessing": Channel(type=standard_artifacts.ModelBlessing),
    }
    with pytest.raises(ValueError, match=message):
        ServingPusher(**inputs, **{"push_destination": "/tmp/serving", **settings})


def test_the_component_makes_its_spec():
    from tfx.types import Channel

    component = ServingPusher(
        model=Channel(type=standard_artifacts.Model),
        model_blessing=Channel(type=standard_artifacts.ModelBlessing),
        push_destination="gs://bucket/serving",
    )
    assert component.exec_properties["canary"] == 1
    assert all(isinstance(v, (str, int, float)) for v in component.exec_properties.values())
    assert component.outputs["pushed_model"].type is standard_artifacts.PushedModel
