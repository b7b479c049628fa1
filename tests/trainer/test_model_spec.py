"""What files for other tools say of themselves."""

import json
from pathlib import Path

import numpy as np
import safetensors
from safetensors.numpy import load_file

from trainer import model_spec
from trainer.presets import get_preset


def test_a_header_that_says_more_changes_no_tensor(tmp_path: Path) -> None:
    tensors = {"b": np.arange(6, dtype=np.float16).reshape(2, 3), "a": np.float32([0.5])}
    path = tmp_path / "x.safetensors"
    spec = model_spec.model_spec(get_preset("tiny"), 128, title="x", description="A description.")
    model_spec.save_file(tensors, path, spec)
    (usual := tmp_path / "usual").touch()
    assert path.stat().st_mode == usual.stat().st_mode
    before = path.read_bytes()
    more = {"modelspec.title": "größer", **model_spec.tag_keys({"größe": 2, '"quoted"': 1})}
    # Whatever its length, the tensors begin at a multiple of eight.
    for index in range(8):
        path.write_bytes(model_spec.with_header(before, {**more, "length": "x" * index}))
        with safetensors.safe_open(path, "np") as file:
            said = file.metadata()
        end = 8 + int.from_bytes(path.read_bytes()[:8], "little")
        assert end % 8 == 0
        for name, tensor in load_file(path).items():
            np.testing.assert_array_equal(tensor, tensors[name])
            assert tensor.dtype == tensors[name].dtype
    assert said["modelspec.title"] == "größer"
    assert said["modelspec.description"] == "A description."
    assert json.loads(said["ss_tag_frequency"]) == {"1_pictures": {"größe": 2, '"quoted"': 1}}
    again = model_spec.with_header(path.read_bytes(), dict(reversed(said.items())))
    assert again == path.read_bytes()


def test_a_release_names_itself_its_run_and_its_day() -> None:
    named = model_spec.release_keys(
        "tiny", version=3, pushed_at="2026-11-30T01:02:03+00:00", run="2026-11-30T00:00:00"
    )
    assert named == {
        "release": "3",
        "pipeline_run": "2026-11-30T00:00:00",
        "modelspec.title": "tiny release 3",
        "modelspec.date": "2026-11-30T01:02:03+00:00",
    }
    unnamed = model_spec.release_keys("tiny", version=3, pushed_at=None, run=None)
    assert unnamed.keys() == {"release", "modelspec.title"}


def test_of_base_weights_no_folder_of_this_machine_is_told() -> None:
    for address, said in (
        ("default", "tiny"),
        ("/home/me/secret/model.safetensors", "model.safetensors"),
        ("weights/", "weights"),
        ("hf://org/name@0123abc", "hf://org/name@0123abc"),
    ):
        assert model_spec.public_name(address, "tiny") == said
