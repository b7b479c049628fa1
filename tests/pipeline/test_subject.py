"""The settings of a subject and its class, and the steps that they add to a pipeline."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from test_pipeline import nodes

from pipeline.config import ConfigError, RunConfig, load_config, resolve_dataset
from pipeline.config.subject import subject_prompts
from pipeline.trainer_settings import trainer_settings
from pipeline.vertex.compile import _resources
from trainer.weights.base_model import BaseModel

SUBJECT, CLASS = "a photo of sks dog", "a photo of a dog"


def configured(**given: Any) -> RunConfig:
    return load_config(
        None, {k.replace("__", "."): (f"--{k.rpartition('__')[2]}", v) for k, v in given.items()}
    )


def pictures(folder: Path, count: int) -> Path:
    folder.mkdir()
    rng = np.random.default_rng(count)
    for index in range(count):
        Image.fromarray(rng.integers(0, 256, (70, 70, 3), np.uint8)).save(folder / f"{index}.png")
    return folder


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"prior__max_distance": 1.0}, ["prior.max_distance = 1.0", "without prior.caption"]),
        ({"prior__folder": "x"}, ["prior.folder = 'x' (from --folder)", "without prior.caption"]),
        ({"prior__caption": " "}, ["prior.caption = ' '", "must say what pictures"]),
        (
            {"prior__caption": f" {SUBJECT} ", "dataset__caption": SUBJECT},
            ["it equals dataset.caption", "such as sks"],
        ),
        (
            {"prior__caption": CLASS, "prior__num_compared": 1},
            ["prior.num_compared = 1", "at least 2"],
        ),
        (
            {"prior__caption": CLASS, "prior__num_compared": 0, "prior__max_distance": 1.0},
            ["prior.num_compared = 0", "without prior.max_distance"],
        ),
        (
            {"prior__caption": CLASS, "prior__scenes": ["at night", " "]},
            ["one of the scenes is empty"],
        ),
        ({"prior__weight": 0.0}, ["prior.weight = 0.0", "above 0"]),
        ({"prior__pictures": 0}, ["prior.pictures = 0", "at least 1"]),
        ({"prior__sampler": "plms"}, ["prior.sampler = 'plms'", "ddim"]),
        ({"prior__scenes": ["x"] * 32}, ["prior.scenes"]),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused_in_one_line(given: dict[str, Any], said: list[str]) -> None:
    with pytest.raises(ConfigError) as raised:
        configured(**given)
    message = str(raised.value)
    assert "\n" not in message
    for words in said:
        assert words in message


def test_a_class_that_is_no_dataset_is_refused_before_anything_starts(tmp_path: Path) -> None:
    given = {"dataset__path": str(pictures(tmp_path / "own", 2)), "dataset__caption": SUBJECT}
    there = configured(**given, prior__caption=CLASS, prior__folder=str(tmp_path / "none"))
    with pytest.raises(ConfigError, match=r"^prior\.folder = .*/none"):
        resolve_dataset(there)


def test_open_values_are_the_presets() -> None:
    prior, small = configured().prior, configured(model__image_size=256).prior
    assert (prior.sampler, prior.num_steps, prior.guidance_scale) == ("dpmpp_2m", 10, 4.0)
    assert (prior.num_compared, small.num_compared) == (32, 8)
    # The pictures stay what they are where the others are drawn in another way.
    assert configured(validation__num_steps=3).prior == prior


def test_what_is_drawn_shows_the_subject_and_its_class_in_scenes(tmp_path: Path) -> None:
    folder = str(pictures(tmp_path / "own", 2))
    config = configured(
        dataset__path=folder,
        dataset__caption=SUBJECT,
        prior__caption=CLASS,
        prior__scenes=["in the snow", "at night"],
    )
    prompts = (
        *(SUBJECT, f"{SUBJECT} in the snow", f"{SUBJECT} at night"),
        *(CLASS, f"{CLASS} in the snow", f"{CLASS} at night"),
    )
    resolved, _ = resolve_dataset(config)
    assert resolved.validation.prompts == subject_prompts(config) == prompts
    # Who asks for prompts, or has no class, gets what was asked for.
    for given, expected in (
        ({"validation__prompts": ["a cat"], "prior__caption": CLASS}, ("a cat",)),
        ({}, None),
    ):
        other = configured(dataset__path=folder, dataset__caption=SUBJECT, **given)
        assert resolve_dataset(other)[0].validation.prompts == expected


def test_prompts_that_are_made_of_a_caption_are_a_caption_to_the_trainer(tmp_path: Path) -> None:
    """A release that may not have captions must not have these."""
    given = {"dataset__path": str(pictures(tmp_path / "own", 2)), "dataset__caption": SUBJECT}
    config, _ = resolve_dataset(configured(**given, prior__caption=CLASS, prior__weight=0.5))
    base_model = BaseModel.locate(_preset(config), 128, "default")
    settings = trainer_settings(config, base_model, "checkpoints")
    assert (settings.prompts_from_caption, settings.prior_weight) == (True, 0.5)
    asked, _ = resolve_dataset(
        configured(**given, prior__caption=CLASS, validation__prompts=["a cat"])
    )
    assert not trainer_settings(asked, base_model, "checkpoints").prompts_from_caption
    plain = trainer_settings(configured(), base_model, "checkpoints").to_json()
    assert not plain.keys() & {"prior_weight", "prompts_from_caption"}


def _preset(config: RunConfig) -> Any:
    from trainer.presets import get_preset

    return get_preset(config.model.preset)


def test_a_class_adds_two_steps_and_an_input(tmp_path: Path) -> None:
    without, made = nodes(tmp_path), nodes(tmp_path, trials=12, given={"prior.caption": CLASS})
    assert {*made} - {*without} == {"ClassPictures", "ClassLatentGen", "Tuner"}
    drawing = made["ClassPictures"].exec_properties
    assert (drawing["caption"], drawing["pictures"], drawing["seed"]) == (CLASS, 100, 0)
    examples = made["ClassLatentGen"].inputs["examples"]
    assert examples.producer_component_id == "ClassPictures"
    for step in ("Trainer", "Tuner"):
        assert made[step].inputs["class_latents"].producer_component_id == "ClassLatentGen"
        assert made[step].inputs["examples"].producer_component_id == "LatentGen"
    assert "class_latents" not in without["Trainer"].inputs
    told = json.loads(made["Trainer"].exec_properties["custom_config"])
    assert told["prior_weight"] == 1.0
    assert "prior_weight" not in json.loads(without["Trainer"].exec_properties["custom_config"])
    scoring = made["LossScorer"].exec_properties
    assert (scoring["class_caption"], scoring["num_class_pictures"]) == (CLASS, 32)
    before = without["LossScorer"].exec_properties
    assert before.get("class_caption") is before.get("num_class_pictures") is None
    # Another weight draws and encodes nothing again.
    weighed = nodes(tmp_path, given={"prior.caption": CLASS, "prior.weight": 0.5})
    for step in ("ClassPictures", "ClassLatentGen"):
        assert weighed[step].exec_properties == made[step].exec_properties


def test_a_folder_of_class_pictures_is_ingested(tmp_path: Path) -> None:
    own, others = pictures(tmp_path / "own", 2), pictures(tmp_path / "class", 3)
    config, fingerprint = resolve_dataset(
        configured(
            dataset__path=str(own),
            dataset__caption=SUBJECT,
            prior__caption=CLASS,
            prior__folder=str(others),
        )
    )
    again, _ = resolve_dataset(config)
    assert again == config
    assert config.prior.folder_fingerprint not in (None, fingerprint)
    made = nodes(
        tmp_path,
        given={
            "prior.caption": CLASS,
            "prior.folder": config.prior.folder,
            "prior.folder_fingerprint": config.prior.folder_fingerprint,
        },
    )
    assert type(made["ClassPictures"]).__name__ == "CaptionExampleGen"
    reading = made["ClassPictures"].exec_properties
    assert (reading["dataset"], reading["caption"]) == (str(others), CLASS)
    assert reading["dataset_fingerprint"] == config.prior.folder_fingerprint
    assert reading["near_duplicates"] == "ignore"
    Image.new("RGB", (70, 70)).save(others / "new.png")
    changed, _ = resolve_dataset(config)
    assert changed.prior.folder_fingerprint != config.prior.folder_fingerprint


def test_on_vertex_the_pictures_are_drawn_where_training_is_fast() -> None:
    drawn = configured(prior__caption=CLASS)
    read = dataclasses.replace(drawn, prior=dataclasses.replace(drawn.prior, folder="gs://b/x"))
    assert _resources("ClassPictures", drawn) == _resources("Trainer", drawn)
    assert _resources("ClassPictures", read) == _resources("CaptionExampleGen", read)
    assert _resources("ClassLatentGen", drawn) == _resources("LatentGen", drawn)
