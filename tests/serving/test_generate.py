"""Pictures from three small but real SavedModels in a serving directory."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from serving import generate
from serving.client import Generator
from serving.errors import ServingError
from serving.releases import find_release, list_versions
from serving.request import SAMPLERS
from trainer.text.graph_tokenizer import GraphTokenizer
from trainer.text.tokenizer import tokenize

SIZE = 8  # Of the latent; pictures are twice that.
WIDTH = 4
ROOT = Path(__file__).resolve().parents[2]


class TextEncoder(tf.Module):
    def __init__(self, scale: float) -> None:
        super().__init__()
        self.tokenizer = GraphTokenizer()
        self.scale = tf.Variable(scale)

    def context(self, text: tf.Tensor) -> tf.Tensor:
        tokens = tf.cast(self.tokenizer(text), tf.float32)
        return tf.repeat(tokens[..., None], WIDTH, axis=-1) * self.scale / 49408.0

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string)] * 2)
    def text(self, prompt: tf.Tensor, negative_prompt: tf.Tensor) -> dict[str, tf.Tensor]:
        return {
            "context": self.context(prompt),
            "unconditional_context": self.context(negative_prompt),
        }


class DiffusionModel(tf.Module):
    @tf.function(
        input_signature=[
            tf.TensorSpec([None, 77, WIDTH], tf.float32),
            tf.TensorSpec([None, 77, WIDTH], tf.float32),
            tf.TensorSpec([], tf.int32),
            tf.TensorSpec([], tf.float32),
            tf.TensorSpec([2], tf.int32),
        ]
    )
    def sample(
        self,
        context: tf.Tensor,
        unconditional_context: tf.Tensor,
        num_steps: tf.Tensor,
        guidance_scale: tf.Tensor,
        seed: tf.Tensor,
    ) -> dict[str, tf.Tensor]:
        noise = tf.random.stateless_normal([tf.shape(context)[0], SIZE, SIZE, 4], seed)
        guided = unconditional_context + guidance_scale * (context - unconditional_context)
        level = tf.reduce_mean(guided, axis=[1, 2]) + tf.cast(num_steps, tf.float32) / 100.0
        return {"latent": 0.1 * noise + level[:, None, None, None]}


class Decoder(tf.Module):
    @tf.function(input_signature=[tf.TensorSpec([None, SIZE, SIZE, 4], tf.float32)])
    def decode(self, latent: tf.Tensor) -> dict[str, tf.Tensor]:
        pixels = tf.repeat(tf.repeat(latent[..., :3], 2, axis=1), 2, axis=2)
        return {"generated_images": tf.cast(tf.clip_by_value(pixels * 100.0, 0, 255), tf.uint8)}


def expected_picture(
    prompt: str,
    negative_prompt: str = "",
    *,
    num_steps: int = 25,
    guidance_scale: float = 7.5,
    seed: Sequence[int] = (0, 0),
    scale: float = 1.0,
) -> np.ndarray:
    """The three models again, in NumPy."""
    context, unconditional = (
        tokenize([text])[0].mean(dtype=np.float64) * scale / 49408.0
        for text in (prompt, negative_prompt)
    )
    level = unconditional + guidance_scale * (context - unconditional) + num_steps / 100
    noise = tf.random.stateless_normal([1, SIZE, SIZE, 4], seed).numpy()[0, ..., :3]
    pixels = (0.1 * noise + level).repeat(2, axis=0).repeat(2, axis=1)
    return np.clip(pixels * 100.0, 0, 255)


def assert_pictures_equal(actual: np.ndarray, expected: np.ndarray) -> None:
    """Equal but for the last bit, which float32 may round the other way."""
    assert actual.dtype == np.uint8
    assert actual.shape == expected.shape
    assert np.abs(actual.astype(np.float64) + 0.5 - expected).max() < 0.51
    assert actual.std() > 1


def write_release(serving_dir: Path, version: int, **facts: object) -> None:
    (serving_dir / "releases").mkdir(exist_ok=True)
    contents = json.dumps({"version": version, "preset": "tiny", **facts})
    (serving_dir / "releases" / f"{version}.json").write_text(contents)


@pytest.fixture(scope="module")
def pushed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Releases 2 and 10, which differ in the text encoder's scale, and what is no release."""
    folder = tmp_path_factory.mktemp("serving_model")
    for version, scale in ((2, 1.0), (10, 1.5)):
        for network, signature, module, method in (
            ("text_encoder", "text", TextEncoder(scale), "text"),
            ("diffusion_model", "serving_default", DiffusionModel(), "sample"),
            ("decoder", "serving_default", Decoder(), "decode"),
        ):
            path = str(folder / network / str(version))
            tf.saved_model.save(module, path, signatures={signature: getattr(module, method)})
    write_release(folder, 2)
    write_release(folder, 10, defaults={"num_steps": 3, "guidance_scale": 2})
    # What a pusher that was killed leaves.
    (folder / "releases" / "11.json.tmp-1").write_text("{")
    (folder / "decoder" / "11").mkdir()
    return folder


@pytest.fixture(scope="module")
def release_2(pushed: Path) -> Generator:
    return Generator(str(pushed), version=2)


@pytest.fixture(scope="module")
def newest(pushed: Path) -> Generator:
    return Generator(str(pushed))


@pytest.fixture
def serving_dir(pushed: Path, tmp_path: Path) -> Path:
    """A copy, for a test to change."""
    return Path(shutil.copytree(pushed, tmp_path / "serving_model"))


@pytest.fixture
def cli(
    capsys: pytest.CaptureFixture[str],
) -> Callable[..., tuple[int, str, str]]:
    def run(*arguments: str) -> tuple[int, str, str]:
        try:
            code = generate.main([*arguments])
        except SystemExit as stop:
            code = int(stop.code or 0)
        output = capsys.readouterr()
        return code, output.out, output.err

    return run


def read_png(path: Path) -> np.ndarray:
    return tf.io.decode_png(path.read_bytes()).numpy()


def test_generator_gives_the_models_pictures(release_2: Generator) -> None:
    pictures = release_2.generate(["a blue dragon", "a red bird &amp; its nest"])
    assert pictures.shape == (2, 16, 16, 3)
    for picture, prompt in zip(pictures, ["a blue dragon", "a red bird & its nest"], strict=True):
        assert_pictures_equal(picture, expected_picture(prompt))

    pictures = release_2.generate(
        ["a blue dragon"], "a bird with wings", num_steps=7, guidance_scale=1.5, seed=3
    )
    expected = expected_picture(
        "a blue dragon", "a bird with wings", num_steps=7, guidance_scale=1.5, seed=(3, 0)
    )
    assert_pictures_equal(pictures[0], expected)


def test_a_picture_depends_on_its_own_prompt_and_seed_alone(newest: Generator) -> None:
    together = newest.generate(
        ["a dragon", "a bird", "a dragon"], ["", "horns", ""], seed=[5, 6, 5], num_steps=2
    )
    assert (together[0] == together[2]).all()
    (alone,) = newest.generate(["a bird"], ["horns"], seed=6, num_steps=2)
    assert (together[1] == alone).all()
    (other_seed,) = newest.generate(["a bird"], ["horns"], seed=7, num_steps=2)
    assert (other_seed != alone).any()


def test_large_seeds_use_both_halves(release_2: Generator) -> None:
    for seed, pair in ((2**31, (-(2**31), 0)), (2**32 + 4, (4, 1)), (2**64 - 1, (-1, -1))):
        (picture,) = release_2.generate(["a dragon"], seed=seed)
        assert_pictures_equal(picture, expected_picture("a dragon", seed=pair))


def test_newest_release_and_its_defaults(pushed: Path, newest: Generator) -> None:
    # 10 is newer than 2 although "10" < "2", and version 11 is no release.
    assert list_versions(str(pushed)) == [2, 10]
    assert newest.release.version == 10
    assert newest.release.facts["preset"] == "tiny"
    (picture,) = newest.generate(["a dragon"])
    expected = expected_picture("a dragon", num_steps=3, guidance_scale=2, scale=1.5)
    assert_pictures_equal(picture, expected)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"prompts": []}, "there is no prompt"),
        ({"prompts": [" "]}, "there is no prompt; say what to draw .for a picture of nothing"),
        ({"prompts": ["a", "&nbsp;"]}, "prompt 2 of 2 is empty; say what to draw"),
        ({"prompts": "a dragon"}, "prompts is a single text"),
        ({"prompts": ["a"], "num_steps": 0}, "number of steps is 0; it must be 1 to 1000"),
        ({"prompts": ["a"], "num_steps": 1001}, "number of steps is 1001"),
        ({"prompts": ["a"], "guidance_scale": -1.0}, "guidance scale is -1.0"),
        ({"prompts": ["a"], "guidance_scale": float("nan")}, "guidance scale is nan"),
        ({"prompts": ["a"], "height": 0}, "the height is 0; it must be 1 to 16384 pixels"),
        ({"prompts": ["a"], "width": 16385}, "the width is 16385; it must be 1 to 16384 pixels"),
        ({"prompts": ["a"], "seed": -1}, "seed is -1"),
        ({"prompts": ["a"], "seed": [2**64]}, "seed is 18446744073709551616"),
        ({"prompts": ["a", "b"], "seed": [1]}, "there are 1 seeds for 2 prompts"),
        ({"prompts": ["a"], "negative_prompts": ["", ""]}, "2 negative prompts for 1 prompts"),
    ],
)
def test_bad_requests(newest: Generator, request_: dict, message: str) -> None:
    with pytest.raises(ServingError, match=message):
        newest.generate(**request_)


def test_paths_with_a_scheme(cli: Callable, pushed: Path, tmp_path: Path) -> None:
    """They go through TensorFlow's file systems, as gs:// does."""
    arguments = ["a dragon", "--serving-dir", f"file://{pushed}"]
    assert cli(*arguments, "--out", f"file://{tmp_path}/x.png")[0] == 0
    expected = expected_picture("a dragon", num_steps=3, guidance_scale=2, scale=1.5)
    assert_pictures_equal(read_png(tmp_path / "x.png"), expected)
    code, _, errors = cli(*arguments, "--out", f"file://{tmp_path}/nowhere/x.png")
    assert (code, errors.count("\n")) == (2, 1)
    assert f"the folder of --out, file://{tmp_path}/nowhere, does not exist" in errors
    code, _, errors = cli("a", "--out", "x.png", "--serving-dir", "nosuchscheme://bucket")
    assert (code, errors.count("\n")) == (2, 1)


def test_cli_writes_a_picture(cli: Callable, pushed: Path, tmp_path: Path) -> None:
    out = tmp_path / "x.png"
    arguments = ["a dragon", "--out", str(out), "--serving-dir", str(pushed)]
    code, printed, errors = cli(*arguments, "--version", "2", "--seed", "4", "--steps", "9")
    assert (code, errors) == (0, "")
    assert printed.splitlines() == [
        f"Loading release 2 in {pushed} ...",
        f"{out}: 16 x 16 pixels, release 2 of {pushed}",
    ]
    assert_pictures_equal(read_png(out), expected_picture("a dragon", num_steps=9, seed=(4, 0)))

    assert cli(*arguments, "--guidance-scale", "0", "--negative-prompt", "a bird")[0] == 0
    expected = expected_picture("a dragon", "a bird", num_steps=3, guidance_scale=0, scale=1.5)
    assert_pictures_equal(read_png(out), expected)


def test_cli_draws_with_a_model_that_was_not_pushed(
    cli: Callable, pushed: Path, tmp_path: Path
) -> None:
    out, folder = tmp_path / "x.png", tmp_path / "7" / "Format-Serving"
    for network in ("text_encoder", "diffusion_model", "decoder"):
        shutil.copytree(pushed / network / "2", folder / network)
    manifest = {"preset": "tiny", "image_size": 16, "defaults": {"num_steps": 3}}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    # As ML Metadata names it, and the folder in it.
    for model in (folder.parent, folder):
        arguments = ["a dragon", "--out", str(out), "--model", str(model)]
        code, printed, errors = cli(*arguments, "--guidance-scale", "2")
        assert (code, errors, printed) == (
            0,
            "",
            f"Loading {model} ...\n{out}: 16 x 16 pixels, {model}\n",
        )
        expected = expected_picture("a dragon", num_steps=3, guidance_scale=2)
        assert_pictures_equal(read_png(out), expected)
    assert "which has no version: leave --version out" in cli(*arguments, "--version", "2")[2]
    (folder / "manifest.json").write_text("[]")
    assert "manifest.json is damaged: it is not a JSON object; choose" in cli(*arguments)[2]
    shutil.rmtree(folder / "decoder")
    (folder / "manifest.json").write_text("{}")
    assert f"there is no SavedModel in {folder / 'decoder'}" in cli(*arguments)[2]
    code, _, errors = cli(*arguments[:3], "--model", str(pushed))
    assert code == 2
    assert f"there is no model in {pushed}: name a folder that the Trainer wrote" in errors


def test_cli_draws_a_grid(cli: Callable, pushed: Path, newest: Generator, tmp_path: Path) -> None:
    out = tmp_path / "grid.png"
    code, printed, _ = cli(
        *["a dragon", "a bird", "--out", str(out), "--serving-dir", str(pushed)],
        *["--count", "3", "--seed", "8"],
    )
    assert code == 0
    assert printed.splitlines()[1:3] == ["drew 'a dragon', seed 8", "drew 'a dragon', seed 9"]
    grid = read_png(out)
    assert grid.shape == (2 * 16, 3 * 16, 3)
    for row, prompt in enumerate(["a dragon", "a bird"]):
        for column, seed in enumerate([8, 9, 10]):
            cell = grid[16 * row : 16 * row + 16, 16 * column : 16 * column + 16]
            assert (cell == newest.generate([prompt], seed=seed)[0]).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: PROMPT, --out (see --help)"),
        (["a", "--steps", "many"], "argument --steps: invalid int value: 'many'"),
        (["a", ""], "prompt 2 of 2 is empty; say what to draw"),
        (["a", "--steps", "0"], "the number of steps is 0; it must be 1 to 1000"),
        (["a", "--steps", "-3"], "the number of steps is -3; it must be 1 to 1000"),
        (["a", "--guidance-scale", "-2"], "the guidance scale is -2.0; it must be 0 or more"),
        (["a", "--guidance-scale", "inf"], "the guidance scale is inf; it must be 0 or more"),
        (["a", "--seed", "-1"], "the seed is -1; it must be 0 to 18446744073709551615"),
        (["a", "--height", "-8"], "the height is -8; it must be 1 to 16384 pixels"),
        (["a", "--memory-limit", "0"], "--memory-limit is 0; it must be more than 0, in gigabytes"),
        (
            ["a", "--memory-limit", "nan"],
            "--memory-limit is nan; it must be more than 0, in gigabytes",
        ),
        (["a", "--count", "0"], "--count is 0; it must be 1 to 100"),
        (["a", "--together", "0"], "--together is 0; it must be 1 to 100"),
        (["a", "--out", "x.jpg"], "--out is x.jpg; its name must end in .png"),
        (["a", "--out", "nowhere/x.png"], "the folder of --out, nowhere, does not exist"),
        (["a", "--out", "folder.png"], "--out is folder.png, which is a folder; name a file"),
        (["a", "--serving-dir", "elsewhere"], "there is no serving directory elsewhere; run the"),
        (["a", "--version", "3"], "there is no release 3 in serving_model; there are: 2, 10"),
        (["a", "--version", "11"], "there is no release 11 in serving_model; there are: 2, 10"),
    ],
)
@pytest.mark.usefixtures("serving_dir")
def test_cli_errors(
    cli: Callable,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.png").mkdir()
    given = ["--serving-dir", "serving_model", "--out", "x.png"] if arguments else []
    code, printed, errors = cli(*given, *arguments)
    assert (code, printed) == (2, "")
    assert errors.startswith("error: ")
    assert message in errors
    assert errors.count("\n") == 1
    assert not (tmp_path / "x.png").exists()


def test_cli_uses_the_default_run(
    cli: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, errors = cli("a dragon", "--out", "x.png")
    assert code == 2
    assert "there is no serving directory runs/default/serving_model" in errors


def test_samplers_that_a_release_of_a_former_version_does_not_have(
    cli: Callable, serving_dir: Path, tmp_path: Path
) -> None:
    arguments = ["a", "--out", str(tmp_path / "x.png"), "--serving-dir", str(serving_dir)]
    too_old = (
        "is too old for the sampler {}; it draws only with ddim: choose that, or use a newer "
        "release\n"
    )
    code, _, errors = cli(*arguments, "--sampler", "dpmpp_2m")
    assert code == 2
    assert errors == f"error: release 10 of {serving_dir} {too_old.format('dpmpp_2m')}"
    write_release(serving_dir, 10, defaults={"num_steps": 3, "sampler": "euler_a"})
    assert Generator(str(serving_dir)).sampler == "euler_a"
    code, _, errors = cli(*arguments)
    assert code == 2
    assert errors == f"error: release 10 of {serving_dir} {too_old.format('euler_a')}"
    assert cli(*arguments, "--sampler", "ddim")[0] == 0
    # Before TensorFlow is asked.
    code, output, errors = cli(*arguments, "--sampler", "plms")
    assert (code, output) == (2, "")
    assert errors == f"error: the sampler is 'plms'; it must be one of {', '.join(SAMPLERS)}\n"


def test_sizes_of_a_release(cli: Callable, serving_dir: Path, tmp_path: Path) -> None:
    out = tmp_path / "x.png"
    arguments = ["a dragon", "--out", str(out), "--serving-dir", str(serving_dir)]
    code, _, errors = cli(*arguments, "--height", "32")
    assert code == 2
    assert errors == (
        f"error: release 10 of {serving_dir} is too old for a height and width; it draws only the "
        "size that it was trained at: leave them out, or use a newer release\n"
    )
    write_release(serving_dir, 10, image_size=16, manifest={"size_multiple": 8})
    # What it draws anyway.
    assert cli(*arguments, "--height", "16", "--width", "16")[0] == 0
    assert read_png(out).shape == (16, 16, 3)
    # Before TensorFlow is asked.
    code, output, errors = cli(*arguments, "--width", "36")
    assert (code, output) == (2, "")
    assert errors == "error: the width is 36; it must be a multiple of 8, for example 32\n"
    with pytest.raises(ServingError, match=r"the memory limit is -0.0 GB; it must be more than 0"):
        Generator(str(serving_dir), memory_limit_bytes=-1)


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        (b'{"image_size": "16"}', "is damaged: its image_size is '16', not 1 or more"),
        (b'{"manifest": {"size_multiple": 0}}', "its size_multiple is 0, not 1 or more"),
        (b"{", "is damaged: it is not JSON"),
        (b"\xff\xfe\x00", "is damaged: it is not JSON"),
        (b"[]", "is damaged: it is not a JSON object"),
        (b'{"version": 3}', "is damaged: it is about version 3"),
        (b'{"defaults": 3}', "is damaged: its `defaults` are not a JSON object"),
        (b'{"defaults": {"num_steps": 0}}', "is damaged: its default num_steps is 0, not 1 to"),
        (b'{"defaults": {"num_steps": true}}', "its default num_steps is True"),
        (b'{"defaults": {"guidance_scale": "7"}}', "its default guidance_scale is '7', not 0 or"),
        (b'{"defaults": {"sampler": 3}}', "its default sampler is 3, not one of ddim, dpmpp_2m, "),
    ],
)
def test_damaged_release_files(
    cli: Callable, serving_dir: Path, tmp_path: Path, contents: bytes, message: str
) -> None:
    file = serving_dir / "releases" / "10.json"
    file.write_bytes(contents)
    arguments = ["a", "--out", str(tmp_path / "x.png"), "--serving-dir", str(serving_dir)]
    code, _, errors = cli(*arguments)
    assert code == 2
    assert errors.startswith(f"error: the release file {file} ")
    assert message in errors
    assert errors.count("\n") == 1
    # The others are as good as before.
    assert find_release(str(serving_dir), 2).version == 2


def test_no_release(cli: Callable, serving_dir: Path, tmp_path: Path) -> None:
    arguments = ["a", "--out", str(tmp_path / "x.png"), "--serving-dir", str(serving_dir)]
    for file in (serving_dir / "releases").iterdir():
        if file.suffix == ".json":
            file.unlink()
    code, _, errors = cli(*arguments)
    assert code == 2
    assert errors.startswith(f"error: there is no release in {serving_dir}; ")
    assert errors.count("\n") == 1


def test_missing_and_damaged_models(cli: Callable, serving_dir: Path, tmp_path: Path) -> None:
    arguments = ["a", "--out", str(tmp_path / "x.png"), "--serving-dir", str(serving_dir)]
    decoder = serving_dir / "decoder" / "10"
    shutil.rmtree(decoder)
    code, _, errors = cli(*arguments)
    assert code == 2
    assert errors.startswith(
        f"error: release 10 is incomplete: there is no SavedModel in {decoder}"
    )
    assert errors.count("\n") == 1

    decoder.mkdir()
    (decoder / "saved_model.pb").write_bytes(b"no model")
    code, _, errors = cli(*arguments)
    assert code == 2
    assert errors.startswith(f"error: the SavedModel in {decoder} cannot be loaded: ")
    assert errors.count("\n") == 1


def test_a_model_without_the_signature(
    cli: Callable, pushed: Path, serving_dir: Path, tmp_path: Path
) -> None:
    decoder = serving_dir / "decoder" / "10"
    shutil.rmtree(decoder)
    decoder.symlink_to(pushed / "text_encoder" / "10")
    code, _, errors = cli("a", "--out", str(tmp_path / "x.png"), "--serving-dir", str(serving_dir))
    assert code == 2
    assert errors == (
        "error: the decoder of release 10 has no signature serving_default; it has: text\n"
    )


def test_tensorflow_alone_is_enough(pushed: Path, tmp_path: Path) -> None:
    """In a fresh process: a quiet console, none of our training code, no KerasCV."""
    script = (
        "import sys\n"
        "from serving import generate\n"
        "from serving.generate import main\n"
        "assert 'tensorflow' not in sys.modules\n"
        "print_ = print\n"
        "def first(*arguments, **settings):\n"
        "    assert 'tensorflow' not in sys.modules, 'nothing is said before what takes seconds'\n"
        "    generate.print = print_\n"
        "    print_(*arguments, **settings)\n"
        "generate.print = first\n"
        "code = main(sys.argv[1:])\n"
        "ours = {'trainer', 'components', 'pipeline'}\n"
        "theirs = {'keras_cv', 'tfx', 'tokenizers'}\n"
        "assert not (ours | theirs) & set(sys.modules)\n"
        "sys.exit(code)\n"
    )
    out = tmp_path / "x.png"
    process = subprocess.run(
        [sys.executable, "-c", script, "a dragon", "--out", out, "--serving-dir", pushed],
        cwd=ROOT,
        env={
            "PATH": "/usr/bin:/bin",
            "HOME": str(tmp_path),
            # Where tests/conftest.py has bytecode kept.
            **{k: v for k, v in os.environ.items() if k == "PYTHONPYCACHEPREFIX"},
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.stderr == ""
    assert process.stdout.splitlines() == [
        f"Loading the release in {pushed} ...",
        f"{out}: 16 x 16 pixels, release 10 of {pushed}",
    ]
    assert process.returncode == 0
    expected = expected_picture("a dragon", num_steps=3, guidance_scale=2, scale=1.5)
    assert_pictures_equal(read_png(out), expected)
