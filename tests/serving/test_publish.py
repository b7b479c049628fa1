"""Releases go to a hub, a bucket and a folder, and come back with every byte, or not at all."""

import json
from pathlib import Path
from typing import Any

import fsspec
import pytest
from hub_server import TOKEN, HubServer
from huggingface_hub import ModelCard, ModelCardData
from small_sources import write_source

from serving import png, publish, pull
from serving.client import Generator
from serving.errors import ServingError
from serving.marking import Marking
from serving.releases import SERVED_NETWORKS, Release, find_release
from serving.request import SAMPLERS
from serving.serving_directory import ServingDirectory
from storage.commands import module_command

MANIFEST = {
    "preset": "tiny",
    "image_size": 64,
    "steps": 160,
    "learning_rate": 0.001,
    "git_commit": "0123abc",
    "validation": {"prompts": ["a blue | dragon", "a red\nbird"]},
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Releases 1 and 2, of small files; the second has one for other tools."""
    root = tmp_path / "serving_model"
    for number in (1, 2):
        source = tmp_path / f"m{number}"
        for network in SERVED_NETWORKS:
            (source / network / "variables").mkdir(parents=True)
            (source / network / "saved_model.pb").write_text(f"{network} {number}")
            # Large files and small ones take different ways to the hub.
            size = 11 << 20 if network == "decoder" else 100
            (source / network / "variables" / "variables.data").write_bytes(bytes([number]) * size)
        facts = {
            "model": {"id": 10 + number},
            "preset": "tiny",
            "metrics": {"loss": 0.1602, "loss_baseline": 0.2037},
            "lineage": {"pipeline_run": "2026-11-25T12:00:00"},
            "manifest": MANIFEST,
        }
        single_files = {}
        if number == 2:
            facts["single_files"] = {"lora.safetensors": "float32"}
            single_files["lora.safetensors"] = write_number
        ServingDirectory(str(root)).publish(
            str(source), facts, lambda _: None, single_files=single_files
        )
    return root


def write_number(path: str, version: int) -> None:
    Path(path).write_text(f"of release {version}")


def assert_same_release(actual: Path, version: int, root: Path, original: int) -> None:
    facts = json.loads((actual / "releases" / f"{version}.json").read_text())
    expected = json.loads((root / "releases" / f"{original}.json").read_text())
    files = {path.replace(f"/{version}/", f"/{original}/"): d for path, d in facts["files"].items()}
    assert files == expected["files"]
    assert {**facts, "files": 0, "version": 0, "pulled_from": 0} == {
        **expected, "files": 0, "version": 0, "pulled_from": 0
    }  # fmt: skip
    assert ServingDirectory(str(actual)).damaged_files(version) == []


def test_to_the_hub_and_back(root: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    arguments = ["hf://org/dragons", "--serving-dir", str(root), "--no-pictures"]

    def run(module: str, *arguments: str, token: str = TOKEN) -> tuple[int, str]:
        code = (
            "import contextlib, io\n"
            f"from serving.{module} import main\n"
            "said = io.StringIO()\n"
            "with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):\n"
            f"    out['code'] = main({list(arguments)!r})\n"
            "out['said'] = said.getvalue().splitlines()[-1]\n"
        )
        out = hub.run(home, code, HF_TOKEN=token, HF_HUB_DISABLE_XET="1").out
        return out["code"], out["said"]

    with HubServer() as hub:
        code, said = run("publish", *arguments, token="hf_nobody")
        assert code == 2
        assert said.startswith("error: ")
        assert "org/dragons" in said
        hub.know(TOKEN)
        code, said = run("publish", *arguments, "--version", "1", "--license", "apache-2.0")
        told = module_command("serving.pull", "hf://org/dragons@release-1")
        assert (code, said) == (0, f"published; to get it back: {told}")
        assert run("publish", *arguments)[0] == 0
        files = hub.files("org/dragons", "release-2")
        expected = {f"{n}/{name}" for n in SERVED_NETWORKS for name in ("saved_model.pb",)}
        expected |= {f"{n}/variables/variables.data" for n in SERVED_NETWORKS}
        expected |= {"single_files/lora.safetensors", "README.md", "release.json"}
        assert set(files) == expected
        assert files["single_files/lora.safetensors"].read_text() == "of release 2"
        assert "`single_files/lora.safetensors`" in files["README.md"].read_text()
        assert files["decoder/saved_model.pb"].read_text() == "decoder 2"
        assert (
            "license: apache-2.0\n"
            in hub.files("org/dragons", "release-1")["README.md"].read_text()
        )
        code, said = run("publish", *arguments)
        assert code == 2
        assert said.startswith("error: hf://org/dragons already has a release-2, and releases")

        here = tmp_path / "here"
        code, said = run("pull", "hf://org/dragons@release-1", "--serving-dir", str(here))
        assert (code, said) == (0, f"release 1 is in {here}")
        assert_same_release(here, 1, root, 1)
        assert run("pull", "hf://org/dragons", "--serving-dir", str(here))[0] == 0
        assert_same_release(here, 2, root, 2)

        # Another cache, and a byte that changed on the way.
        files["text_encoder/saved_model.pb"].write_text("text_encoder 7")
        home = tmp_path / "other_home"
        home.mkdir()
        code, said = run("pull", "hf://org/dragons", "--serving-dir", str(tmp_path / "there"))
        assert code == 2
        assert "text_encoder/saved_model.pb" in said
        assert not list((tmp_path / "there").glob("releases/*.json"))


def test_an_image_encoder_is_published_and_pulled(root: Path, tmp_path: Path) -> None:
    source = write_source(tmp_path / "m3", "model 3", image_to_image=True)
    ServingDirectory(str(root)).publish(source, {"model": {"id": 13}}, lambda _: None)
    address = publish.publish(str(root), str(tmp_path / "published"), prompts=[])
    here = tmp_path / "here"
    assert pull.pull(address, str(here))["version"] == 3
    assert_same_release(here, 3, root, 3)
    assert find_release(str(here)).networks == (*SERVED_NETWORKS, "image_encoder")
    assert (here / "models.config").read_text().count("versions: [3]") == 1


def test_to_a_bucket_and_back(root: Path, tmp_path: Path) -> None:
    address = publish.publish(str(root), "memory://bucket/dragons", prompts=[])
    assert address == "memory://bucket/dragons/release-2"
    here = tmp_path / "here"
    assert pull.pull(address, str(here))["version"] == 2
    assert_same_release(here, 2, root, 2)
    assert (here / "single_files/2/lora.safetensors").read_text() == "of release 2"
    # The same again is no other release.
    assert pull.pull(address, str(here))["version"] == 2
    # Its own number is taken there.
    assert (
        pull.pull(publish.publish(str(root), "memory://bucket/dragons", 1, prompts=[]), str(here))[
            "version"
        ]
        == 3
    )
    assert_same_release(here, 3, root, 1)
    with pytest.raises(ServingError, match="already has a release-2, and releases are"):
        publish.publish(str(root), "memory://bucket/dragons", prompts=[])

    memory = fsspec.filesystem("memory")
    damaged = "/bucket/dragons/release-2/decoder/variables/variables.data"
    memory.pipe_file(damaged, b"\0" * (11 << 20))
    with pytest.raises(ServingError, match=r"variables.data is damaged: its SHA-256 is not the"):
        pull.pull(address, str(tmp_path / "there"))
    memory.rm(damaged)
    with pytest.raises(ServingError, match=r"variables.data is missing; nothing was pulled"):
        pull.pull(address, str(tmp_path / "there"))
    assert not (tmp_path / "there").exists()
    with pytest.raises(ServingError, match=r"there is no release in memory://bucket/dragons: it"):
        pull.pull("memory://bucket/dragons", str(tmp_path / "there"))


@pytest.mark.parametrize(
    "change",
    [
        {"version": "2"},
        {"version": 0},
        {"files": {}},
        {"files": {"decoder/2/../../../etc/passwd": "0" * 64}},
        {"files": {"/etc/passwd": "0" * 64}},
        {"files": {"decoder/2/saved_model.pb": "short"}},
        {"files": {"other/2/saved_model.pb": "0" * 64}},
    ],
)
def test_releases_that_are_none_are_refused(root: Path, tmp_path: Path, change: dict) -> None:
    address = publish.publish(str(root), str(tmp_path / "out"), prompts=[])
    path = Path(address, "release.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ServingError, match=r"release\.json is damaged, or not a release file"):
        pull.pull(address, str(tmp_path / "there"))


def test_a_damaged_release_is_not_published(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (root / "decoder" / "2" / "saved_model.pb").write_text("changed")
    arguments = [str(tmp_path / "out"), "--serving-dir", str(root), "--no-pictures"]
    assert publish.main(arguments) == 2
    assert capsys.readouterr().err.startswith("error: release 2 is damaged: ")
    assert not (tmp_path / "out").exists()


def test_the_model_card_shows_what_the_release_draws(released: Path, tmp_path: Path) -> None:
    prompts = ["a blue | dragon", "a red bird"]
    address = publish.publish(str(released), str(tmp_path), prompts=prompts)
    card = Path(address, "README.md").read_text()
    data = ModelCard(card).data
    assert (data.library_name, data.pipeline_tag) == ("tensorflow", "text-to-image")
    assert data.tags == ["stable-diffusion", "tensorflow", "tfx", "image-to-image"]
    assert "| Held-out loss | 0.1602 |" in card
    assert "| Model artifact | 1 |" in card
    generator = Generator(str(released))
    for seed, prompt in enumerate(prompts):
        contents = Path(address, "pictures", f"{seed:02d}.png").read_bytes()
        [expected] = generator.generate([prompt], seed=seed)
        assert (png.decode(contents) == expected).all()
    assert "| 0 | a blue \\| dragon | 0 |" in card
    pulled = tmp_path / "here"
    assert pull.pull(address, str(pulled))["version"] == 1
    assert (Generator(str(pulled)).generate(["a red bird"], seed=1)[0] == expected).all()


def test_the_model_card_names_samplers_where_the_release_has_a_choice() -> None:
    defaults = {"num_steps": 25, "guidance_scale": 4.0}
    before, now = (
        publish.model_card({"version": 3, "defaults": chosen}, [drawn], name="dragons")
        for drawn in [publish.Picture("a dragon", 0, b"")]
        for chosen in (defaults, {**defaults, "sampler": "ddim"})
    )
    assert "steps, guidance scale, seed and negative prompt are inputs." in before
    assert f"guidance scale, sampler ({', '.join(SAMPLERS)}), seed and negative prompt" in now
    assert "with guidance_scale 4.0, num_steps 25, sampler ddim." in now


def test_the_model_card_names_sizes_where_the_release_has_a_choice() -> None:
    manifest = {"preset": "tiny", "image_size": 128}
    before, now = (
        publish.model_card({"version": 3, "manifest": said}, [], name="dragons")
        for said in (manifest, {**manifest, "size_multiple": 32})
    )
    assert "steps, guidance scale, seed and negative prompt are inputs." in before
    assert "scale, height and width (multiples of 32), seed and negative prompt are inputs" in now


def test_the_model_card_names_the_files_for_other_tools() -> None:
    files = {"model.safetensors": "float16", "lora.safetensors": "float32"}
    card = publish.model_card({"version": 3, "single_files": files}, [], name="dragons")
    whole = "`single_files/model.safetensors` (float16): the whole model in the original layout"
    assert whole in card
    assert "`single_files/lora.safetensors` (float32): its adapters (LoRA)" in card
    assert "## Other tools" not in publish.model_card({"version": 3}, [], name="dragons")


def test_the_model_card_says_whether_pictures_are_drawn_from_pictures() -> None:
    files = {"decoder/3/saved_model.pb": "a"}
    before, now = (
        publish.model_card({"version": 3, "files": said}, [], name="dragons")
        for said in (files, {**files, "image_encoder/3/saved_model.pb": "b"})
    )
    assert "three SavedModels (text encoder, diffusion model, decoder) that" in before
    assert "--image" not in before
    assert "image-to-image" not in before
    assert "four SavedModels (text encoder, diffusion model, decoder, image encoder) that" in now
    assert "are inputs. They can also draw from a picture (with the strength as an input)" in now
    assert "- image-to-image" in now
    assert "--image drawing.png --strength 0.5" in now


def front_matter(**facts: Any) -> ModelCardData:
    """What the hub reads of the card of a release with these facts."""
    content = publish.model_card({"version": 3, **facts}, [], name="dragons")
    return ModelCard(content).data


COMMIT = "0123456789abcdef" * 2 + "01234567"


@pytest.mark.parametrize(
    ("source", "base_model"),
    [
        ("hf://fchollet/stable-diffusion", "CompVis/stable-diffusion-v1-4"),
        (f"hf://fchollet/stable-diffusion@{COMMIT}", "CompVis/stable-diffusion-v1-4"),
        (f"hf://org/my-diffusion@{COMMIT}", "org/my-diffusion"),
        ("hf://org/my-diffusion@refs%2Fpr%2F1/fp16/weights", "org/my-diffusion"),
        ("default", None),
        ("random", None),
        ("gs://bucket/weights", None),
        ("/home/me/weights", None),
        (None, None),
    ],
)
def test_the_model_card_names_the_base_model(source: str | None, base_model: str | None) -> None:
    data = front_matter(manifest={**MANIFEST, "base_weights_source": source})
    assert data.base_model == base_model
    relation = None if base_model is None else "finetune"
    assert data.to_dict().get("base_model_relation") == relation
    assert front_matter().base_model is None


def test_the_model_card_names_the_dataset_and_the_loss_on_it() -> None:
    facts = {
        "dataset": f"hf://datasets/lambdalabs/naruto-blip-captions@{COMMIT}",
        "metrics": {"loss": 0.16021234, "loss_baseline": 0.2037, "loss_delta": -0.04},
        "manifest": {**MANIFEST, "latents": {"counts": {"train": 1100, "eval": 121}}},
    }
    data = front_matter(**facts)
    assert data.datasets == ["lambdalabs/naruto-blip-captions"]
    assert data.model_name == "dragons"
    [result] = data.eval_results
    assert (result.task_type, result.metric_type, result.metric_value) == (
        *("text-to-image", "mse", 0.160212),
    )
    assert (result.dataset_type, result.dataset_name, result.dataset_revision) == (
        *("lambdalabs/naruto-blip-captions", "naruto-blip-captions", COMMIT),
    )
    assert (result.dataset_split, result.dataset_args) == ("held out", {"pictures": 121})
    assert result.metric_name.startswith("Held-out loss")


def test_the_model_card_links_no_dataset_that_is_not_on_the_hub() -> None:
    data = front_matter(dataset="/home/me/secret/creatures/", metrics={"loss": 0.25})
    assert data.datasets is None
    [result] = data.eval_results
    assert (result.dataset_type, result.dataset_name) == ("private", "creatures")
    assert (result.metric_value, result.dataset_revision, result.dataset_args) == (0.25, None, None)
    # Of releases that were pushed before, nobody knows.
    assert front_matter(metrics={"loss": 0.25}).eval_results is None
    assert front_matter(dataset="hf://datasets/org/a", metrics={}).datasets == ["org/a"]


def test_prompts_of_the_card_are_the_validation_prompts(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def draw(release: Release, prompts: list[str], _: Marking) -> list[publish.Picture]:
        asked.extend(prompts)
        return [publish.Picture(prompt, 0, b"png") for prompt in prompts]

    monkeypatch.setattr(publish, "_draw", draw)
    address = publish.publish(str(root), str(tmp_path / "out"))
    assert asked == MANIFEST["validation"]["prompts"]
    assert "![a red bird](pictures/01.png)" in Path(address, "README.md").read_text()
