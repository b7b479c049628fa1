"""The settings of a new word: what they come to, what cannot be, and which steps they change."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from test_pipeline import nodes

from pipeline.config import ConfigError, load_config, prompt_notes
from pipeline.config.words import word_captions, word_settings

GIVEN = {"word.token": "<Creature>", "word.initial": "animal", "word.vectors": 2}


def config(**more: Any):
    given = {**GIVEN, **{key.replace("__", "."): value for key, value in more.items()}}
    return load_config(None, {key: ("--given", value) for key, value in given.items()})


def test_pictures_without_captions_get_one_and_the_word_is_drawn() -> None:
    found = config()
    assert found.dataset.caption == "a photo of a <Creature>"
    assert found.validation.prompts
    assert all("<Creature>" in prompt for prompt in found.validation.prompts)
    assert config(word__templates="style").dataset.caption == (
        "a painting in the style of <Creature>"
    )
    own = config(dataset__caption="my <creature>", validation__prompts=["one <creature>"])
    assert (own.dataset.caption, own.validation.prompts) == ("my <creature>", ("one <creature>",))
    assert config(dataset__captions_from="folder").dataset.caption is None
    without = load_config(None, {"word.templates": ("--given", None), "word.token": ("--x", None)})
    assert (without.dataset.caption, without.validation.prompts) == (None, None)
    plain = load_config()
    assert word_captions(plain.word) is word_settings(plain.word) is None


def test_a_prompts_length_counts_every_vector() -> None:
    fits = config(validation__prompts=["<creature> " * 37])
    assert [*prompt_notes(fits)] == []
    [note] = prompt_notes(config(validation__prompts=["<creature> " * 38]))
    assert "cut off and has no effect: '<creature>'" in note


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"word__initial": None}, ["word.token = '<Creature>'", "needs word.initial"]),
        ({"word__token": None}, ["word.initial = 'animal'", "without word.token"]),
        ({"word__token": "two words"}, ["word.token = 'two words'", "without white space"]),
        ({"word__token": "dog"}, ["word.token = 'dog'", "already in the vocabulary", "<dog>"]),
        ({"word__initial": "zzqq"}, ["word.initial = 'zzqq'", "one token", "is 3"]),
        ({"word__vectors": 0}, ["word.vectors = 0"]),
        ({"word__templates": "portrait"}, ["word.templates", "object, style"]),
        ({"training__lora_rank": 4}, ["training.lora_rank = 4", "only the vectors are trained"]),
        ({"training__train_text_encoder": True}, ["train_text_encoder = true"]),
        ({"dataset__tag_shuffle": 4}, ["dataset.tag_shuffle = 4", "word.templates = object"]),
        ({"word__learned_from": "no/such.safetensors"}, ["no/such.safetensors", "no such file"]),
    ],
)
def test_what_cannot_be_is_said_in_one_line(given: dict[str, Any], said: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        config(**given)
    assert "\n" not in str(error.value)
    for part in said:
        assert part in str(error.value)


def test_vectors_of_another_model_are_refused_before_a_run(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for width, vectors, said in (
        (768, 2, "the text encoder needs width 64"),
        (64, 3, "has 3 vectors: set word.vectors to 3"),
    ):
        safetensors.numpy.save_file({"x": np.zeros((vectors, width), "f4")}, "w.safetensors")
        with pytest.raises(ConfigError, match=said):
            config(word__learned_from="w.safetensors")
    safetensors.numpy.save_file({"x": np.zeros((2, 64), "f4")}, "w.safetensors")
    found = config(word__learned_from="w.safetensors").word
    assert found.learned_from == str(tmp_path / "w.safetensors")
    settings = word_settings(found)
    assert settings is not None
    assert len(settings.learned_sha256 or "") == 64


def test_a_word_is_told_to_those_who_read_captions_and_to_the_trainer(tmp_path: Path) -> None:
    without, made = nodes(tmp_path), nodes(tmp_path, given=GIVEN)
    assert made.keys() == without.keys()
    readers = {"CaptionExampleGen", "DatasetReport", "LatentGen"}
    for name, node in made.items():
        told = node.exec_properties.get("word_captions")
        assert (told is not None) == (name in readers)
        assert "word_captions" not in {
            key for key, value in without[name].exec_properties.items() if value is not None
        }
    told = json.loads(made["Trainer"].exec_properties["custom_config"])["word"]
    assert (told["token"], told["vectors"]) == ("<creature>", 2)
    assert "word" not in json.loads(without["Trainer"].exec_properties["custom_config"])
