"""Pictures of a subject's class, drawn by the base weights of a small preset."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import small_runs
import tensorflow as tf
from tfx.types import artifact_utils, standard_artifacts

from components.class_pictures import ClassPictures, executor
from components.latent_gen import executor as latent_gen
from components.tfrecords import read_shard
from storage import row_index
from trainer import presets
from trainer.data.prior import ClassLatents
from trainer.export import saved_models
from trainer.export.validation import draw_validation
from trainer.presets import ENCODERS
from trainer.training_config import ValidationConfig
from trainer.weights.base_model import BaseModel
from trainer.weights.errors import WeightsError

PRESET = dataclasses.replace(small_runs.preset(), name="small")
BASE_MODEL = BaseModel.locate(PRESET, 64, "random")
DRAWN: dict[str, Any] = {
    **{"caption": "a photo of a dog", "pictures": 3, "seed": 5},
    **{"sampler": "euler_a", "num_steps": 2, "guidance_scale": 3.0},
}


@pytest.fixture(scope="module", autouse=True)
def small_is_a_preset() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(presets, "PRESETS", {**presets.PRESETS, "small": PRESET})
        yield


def properties(**changed: Any) -> dict[str, Any]:
    return dict(ClassPictures(BASE_MODEL, **{**DRAWN, **changed}).exec_properties)


def drawn(folder: Path, **changed: Any) -> standard_artifacts.Examples:
    examples = standard_artifacts.Examples()
    examples.uri = str(folder)
    executor.Executor().Do({}, {"examples": [examples]}, {**properties(), **changed})
    return examples


# Tracing takes long: what drew the pictures is used again.
DREW: list[saved_models.ServingModules] = []


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> standard_artifacts.Examples:
    def serving_modules(*given: Any) -> saved_models.ServingModules:
        DREW.append(made(*given))
        return DREW[-1]

    made = saved_models.serving_modules
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(saved_models, "serving_modules", serving_modules)
        # Two files.
        patch.setattr(executor, "_SHARD_PICTURES", 2)
        return drawn(tmp_path_factory.mktemp("class") / "examples")


def records(examples: standard_artifacts.Examples) -> list[dict[str, Any]]:
    folder = Path(artifact_utils.get_split_uri([examples], "train"))
    paths = sorted(folder.iterdir())
    assert [p.name for p in paths] == [f"examples-0000{i}-of-00002.gz" for i in (0, 1)]
    return [
        dict(tf.train.Example.FromString(record).features.feature)
        for path in paths
        for record in read_shard(str(path))
    ]


def test_they_are_what_a_client_would_get_from_the_next_seeds(
    examples: standard_artifacts.Examples, tmp_path: Path
) -> None:
    how = ValidationConfig((DRAWN["caption"],) * 3, "euler_a", 2, 3.0, 5, 0)
    draw_validation(DREW[0], how, str(tmp_path / "0"), 0)
    expected = [path.read_bytes() for path in sorted((tmp_path / "0").iterdir())]
    assert len(set(expected)) == 3
    found = [r["image/encoded"].bytes_list.value[0] for r in records(examples)]
    assert sorted(found) == sorted(expected)


def test_they_have_the_form_of_a_dataset(examples: standard_artifacts.Examples) -> None:
    rows = list(row_index.read_rows(str(Path(examples.uri, row_index.FOLDER_NAME))))
    assert len(rows) == 3
    for row, record in zip(rows, records(examples), strict=True):
        picture = hashlib.sha256(record["image/encoded"].bytes_list.value[0]).hexdigest()
        example_id = hashlib.sha256(f"{picture}{DRAWN['caption']}".encode()).hexdigest()
        assert row == row_index.IndexedRow(example_id, picture, DRAWN["caption"])
        assert record["id"].bytes_list.value == [example_id.encode()]
        assert record["caption"].bytes_list.value == [b"a photo of a dog"]
        assert record["image/width"].int64_list.value == [64]
    assert json.loads(examples.split_names) == ["train"]
    assert examples.get_int_custom_property("num_train") == 3
    assert examples.get_int_custom_property("captions_left_right") == 0
    assert examples.get_string_custom_property("sampler") == "euler_a"
    assert examples.get_float_custom_property("guidance_scale") == 3.0
    assert not [p for p in Path(examples.uri).iterdir() if p.name.startswith(".")]


def test_latents_of_them_are_what_a_training_takes(
    examples: standard_artifacts.Examples, tmp_path: Path
) -> None:
    latents = standard_artifacts.Examples()
    latents.uri = str(tmp_path)
    settings = {
        **{"preset": "small", "image_size": 64, "base_weights": "random"},
        **{"encoders_hash": BASE_MODEL.hash(ENCODERS), "flip": "auto", "crop": "centre"},
        **{"crop_seed": 0, "tag_variants": 0, "tag_keep": 1, "tag_dropout": 0.0, "tag_seed": 0},
        **{"latents_index": ""},
    }
    context = latent_gen.Executor.Context(beam_pipeline_args=["--direct_num_workers=1"])
    latent_gen.Executor(context).Do({"examples": [examples]}, {"latents": [latents]}, settings)
    prior = ClassLatents.read(latents.uri)
    assert (prior.manifest.counts, prior.manifest.flip) == ({"train": 3}, True)
    options = {"batch_size": 4, "seed": 0, "first_step": 0}
    batch = next(prior.with_prior(small_runs.batches_from(0), PRESET, 64, **options))
    ids = {row.id.encode() for row in row_index.read_rows(f"{examples.uri}/rows")}
    assert {*batch["prior/id"].numpy()} == ids
    assert batch["prior/latent/mirror_log_variance"].shape == (4, 8, 8, 4)


def test_other_weights_at_the_same_place_draw_nothing(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="have changed since the run was prepared"):
        drawn(tmp_path, base_weights_hash="0" * 64)


def test_what_decides_the_pictures_is_in_the_cache_key() -> None:
    changes = {
        **{"caption": "a cat", "pictures": 4, "seed": 6, "sampler": "ddim"},
        **{"num_steps": 3, "guidance_scale": 1.0},
    }
    for name, value in changes.items():
        assert properties(**{name: value}) == {**properties(), name: value}
    assert properties()["base_weights_hash"] == BASE_MODEL.hash(executor.DRAWING)
    assert len(properties()["code_version"]) == 16
