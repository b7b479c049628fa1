"""What a release was made of is held against what is here, and what came out against it."""

import dataclasses
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from components.code_version import code_version
from pipeline import reproduction
from pipeline.config import ConfigError, load_config, resolve_base_weights, resolve_dataset
from pipeline.config.loading import recorded_settings
from pipeline.reproduce import _findings, _verdict
from pipeline.reproduction import Finding, Recorded, ReproductionError
from serving.releases import SERVED_NETWORKS, Release
from storage.machine import processor
from storage.made_with import git_commit, versions
from storage.model_manifest import ModelManifest
from trainer.presets import NETWORKS

TRAINER = ("trainer.run_fn", "components.diffusion_trainer.executor")


def write_models(folder: Path, values: np.ndarray) -> None:
    for number, network in enumerate(SERVED_NETWORKS):
        module = tf.Module()
        module._variables = [tf.Variable(values + number), tf.Variable([1.0, 2.0])]
        tf.saved_model.save(module, str(folder / network))


@pytest.fixture
def recorded(tmp_path: Path) -> Recorded:
    """A release of two tensors a network, of a dataset of three pictures."""
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for number in range(3):
        Image.new("RGB", (64, 64), (number * 50, 9, 9)).save(pictures / f"{number}.png")
        (pictures / f"{number}.txt").write_text(f"picture {number}")
    config = load_config(None, {"dataset.path": ("--dataset", str(pictures))})
    config, fingerprint = resolve_dataset(config)
    config, base_model = resolve_base_weights(config)
    write_models(tmp_path / "models", np.arange(4, dtype=np.float32))
    serving_dir = tmp_path / "serving_model"
    for network in SERVED_NETWORKS:
        shutil.copytree(tmp_path / "models" / network, serving_dir / network / "1")
    manifest = ModelManifest(
        preset="tiny",
        image_size=128,
        base_weights={network: base_model.hash([network]) for network in NETWORKS},
        git_commit=git_commit(),
        versions=versions(),
        processor=processor(),
    )
    return Recorded(
        release=Release(str(serving_dir), 1, {"files": {}}, 10, 4.0),
        manifest=manifest,
        settings=json.loads(recorded_settings(config)),
        fingerprint=fingerprint,
        code={"Trainer": code_version(*TRAINER)},
        started_from="",
        losses={("a", 1): 0.5, ("a", 2): 0.25, ("b", 1): 1.0},
    )


def findings(recorded: Recorded, into: Path, **given: str) -> dict[str, Finding]:
    config = reproduction.configured(recorded, str(into), given)
    return {finding.name: finding for finding in reproduction.look(recorded, config)}


def test_recorded_settings_are_those_of_the_run(recorded: Recorded, tmp_path: Path) -> None:
    config = reproduction.configured(recorded, str(tmp_path / "again"), {})
    assert config.output == str(tmp_path / "again")
    assert json.loads(recorded_settings(config)) == recorded.settings
    for name in ("output", "vertex", "keep_runs"):
        assert name not in recorded.settings
    # What it began with is that model, whichever is the latest now.
    tree = {**recorded.settings, "model": {**recorded.settings["model"], "start_from": "release:7"}}
    changed = dataclasses.replace(recorded, settings=tree, started_from=str(tmp_path))
    assert reproduction.configured(changed, str(tmp_path / "a"), {}).model.start_from == str(
        tmp_path
    )
    tree = {**recorded.settings, "training": {**recorded.settings["training"], "unheard_of": 1}}
    with pytest.raises(ReproductionError, match=r"training\.unheard_of: git checkout "):
        findings(dataclasses.replace(recorded, settings=tree), tmp_path / "b")
    with pytest.raises(ConfigError, match=r"no such folder.*--base-weights where data and"):
        findings(recorded, tmp_path / "c", **{"model.base_weights": "/nowhere"})


def test_all_is_here(recorded: Recorded, tmp_path: Path) -> None:
    found = findings(recorded, tmp_path / "again")
    assert {finding.same for finding in found.values()} == {True}
    assert list(found) == ["data", "base weights", "code", "packages", "processor"]
    assert not any(finding.stops or finding.command for finding in found.values())


def test_what_is_missing_is_said_with_what_brings_it(recorded: Recorded, tmp_path: Path) -> None:
    pictures = tmp_path / "pictures"
    kept = shutil.copytree(pictures, tmp_path / "kept")
    (pictures / "2.txt").write_text("another caption")
    manifest = dataclasses.replace(
        recorded.manifest,
        base_weights={**recorded.manifest.base_weights, "decoder": "0" * 64},
        git_commit="0123abcd" * 5,
        versions={**versions(), "tensorflow": "2.21.0", "tfx": "1.21.0", "python": "3.13.1"},
        processor="another, 64 cores",
    )
    other = dataclasses.replace(recorded, manifest=manifest, code={"Trainer": "0" * 16})
    changed = dataclasses.replace(manifest, git_changed=True)
    said = findings(dataclasses.replace(other, manifest=changed), tmp_path / "again")["code"].said
    assert "with uncommitted changes; other code in Trainer" in said
    found = findings(other, tmp_path / "again")
    assert [(name, finding.stops) for name, finding in found.items()] == [
        ("data", True), ("base weights", True), ("code", True), ("packages", False),
        ("processor", False),
    ]  # fmt: skip
    assert {finding.same for finding in found.values()} == {False}
    assert found["data"].command == "--dataset FOLDER, with the data as it was"
    assert "has changed: fingerprint" in found["data"].said
    assert "different weights: decoder" in found["base weights"].said
    assert found["code"].command == f"git checkout {'0123abcd' * 5}"
    assert found["code"].said.endswith("other code in Trainer")
    assert "tensorflow 2.21.0 (here " in found["packages"].said
    assert found["packages"].command == (
        f"git checkout {'0123abcd' * 5} -- requirements.lock && PYTHON=python3.13 make setup"
    )
    assert found["processor"].said == f"another, 64 cores; here {processor()}"
    # Each is told above what brings it.
    told = _findings(list(found.values()))
    assert told.index(f"{'':<16}{found['code'].command}") > 0
    # The data as it was is brought.
    again = findings(other, tmp_path / "again", **{"dataset.path": str(kept)})
    assert again["data"].same
    shutil.rmtree(pictures)
    gone = findings(other, tmp_path / "again")["data"]
    assert (gone.same, gone.stops) == (False, True)


def test_gpus_are_told(recorded: Recorded, tmp_path: Path) -> None:
    manifest = dataclasses.replace(recorded.manifest, processor=f"{processor()}, NVIDIA A100")
    found = findings(dataclasses.replace(recorded, manifest=manifest), tmp_path / "again")
    assert found["processor"].same is None
    assert found["processor"].said.endswith("; then with NVIDIA A100")


def test_data_of_the_checkout_comes_back_with_its_commit(
    recorded: Recorded, tmp_path: Path
) -> None:
    given = {"dataset.path": str(reproduction.CHECKOUT / "data" / "creatures")}
    found = findings(recorded, tmp_path / "again", **given)["data"]
    assert found.command == f"git checkout {git_commit()} -- data/creatures"


def test_how_far_weights_are_apart(recorded: Recorded, tmp_path: Path) -> None:
    write_models(tmp_path / "same" / "Format-Serving", np.arange(4, dtype=np.float32))
    same = list(reproduction.apart(recorded, str(tmp_path / "same")))
    assert [d.network for d in same] == list(SERVED_NETWORKS)
    assert all(d.same and d.tensors == 2 and d.most == d.relative == 0 for d in same)
    assert all(first == second for first, second in (d.digests for d in same))
    other = np.array([0, 1, 2, 3.5], np.float32)
    write_models(tmp_path / "other" / "Format-Serving", other)
    text_encoder, diffusion_model, _ = reproduction.apart(recorded, str(tmp_path / "other"))
    assert (text_encoder.equal, text_encoder.most) == (1, 0.5)
    # Over 0, 1, 2, 3 and 1, 2; then over 1, 2, 3, 4 and 1, 2.
    assert text_encoder.relative == pytest.approx(0.5 / 19**0.5)
    assert diffusion_model.relative == pytest.approx(0.5 / 35**0.5)
    assert text_encoder.digests[0] != text_encoder.digests[1]
    write_models(tmp_path / "longer" / "Format-Serving", np.zeros(5, np.float32))
    with pytest.raises(ReproductionError, match="text_encoder made again has different tensors"):
        list(reproduction.apart(recorded, str(tmp_path / "longer")))
    data = tmp_path / "same" / "Format-Serving" / "decoder" / "variables"
    os.truncate(next(data.glob("*.data*")), 3)
    with pytest.raises(ReproductionError, match="is missing or damaged"):
        list(reproduction.apart(recorded, str(tmp_path / "same")))


def test_losses_are_compared_in_pairs(recorded: Recorded) -> None:
    found = reproduction.paired(recorded.losses, {("a", 1): 0.25, ("b", 1): 1.5, ("c", 1): 9.0})
    assert found == reproduction.Losses(2, 0.75, 0.875, 0.5)
    assert reproduction.paired(recorded.losses, None) is None
    assert reproduction.paired(recorded.losses, {("c", 1): 9.0}) is None


def test_the_verdict_names_what_differs() -> None:
    other, unknown = Finding("packages", False, ""), Finding("processor", None, "")
    assert _verdict(True, [other]) == "The same, bit for bit."
    assert _verdict(False, [other, unknown]) == "Not the same; these differ: packages."
    assert _verdict(False, [unknown]).endswith("differ: processor.")
    assert "is not recorded" in _verdict(False, [Finding("data", True, "")])
