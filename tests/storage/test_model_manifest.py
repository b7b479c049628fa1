import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest

from storage.model_manifest import ModelManifest

ROOT = Path(__file__).parents[2]


def test_training_settings_stand_beside_everything_else_in_the_file(tmp_path: Path) -> None:
    manifest = ModelManifest(
        preset="tiny",
        image_size=64,
        training={"steps": 3, "learning_rate": 1e-3},
        base_weights={"decoder": "ab"},
    )
    manifest.write(str(tmp_path))
    content = json.loads((tmp_path / "manifest.json").read_text())
    assert (content["steps"], content["learning_rate"], content["image_size"]) == (3, 1e-3, 64)
    # What is unknown is said to be so.
    assert content["git_commit"] is None
    fields = {field.name for field in dataclasses.fields(ModelManifest)}
    assert content.keys() == fields - {"training"} | {"steps", "learning_rate"}
    assert ModelManifest.read(str(tmp_path)) == manifest


def test_former_versions_and_later_ones_are_read(tmp_path: Path) -> None:
    content = {"preset": "tiny", "image_size": 64, "steps": 3, "invented_later": [1]}
    (tmp_path / "manifest.json").write_text(json.dumps(content))
    manifest = ModelManifest.read(str(tmp_path))
    assert manifest.training == {"steps": 3, "invented_later": [1]}
    assert not manifest.text_encoder_trained
    assert (manifest.numerics, manifest.base_weights_source) == ("keras_cv", None)
    assert manifest.fits("tiny", 64)
    assert not manifest.fits("tiny", 128)


def test_a_folder_without_a_manifest_has_none(tmp_path: Path) -> None:
    assert ModelManifest.find(str(tmp_path)) is None
    with pytest.raises(FileNotFoundError):
        ModelManifest.read(str(tmp_path))


def test_a_manifest_is_read_without_tensorflow(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(json.dumps({"preset": "tiny", "image_size": 64}))
    script = (
        "import sys\n"
        "from storage.model_manifest import ModelManifest\n"
        "assert ModelManifest.read(sys.argv[1]).preset == 'tiny'\n"
        "assert not {'tensorflow', 'keras', 'tfx', 'pydantic'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", script, tmp_path], cwd=ROOT, check=True)


def test_held_out_pictures_have_chosen_a_step_or_hyperparameters() -> None:
    assert not ModelManifest(preset="tiny", image_size=128, kept={"step": 3}).chosen
    assert ModelManifest(preset="tiny", image_size=128, kept={"chosen": True}).chosen
    assert ModelManifest(preset="tiny", image_size=128, tuned={"learning_rate": 1e-3}).chosen
