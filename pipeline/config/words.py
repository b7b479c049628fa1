"""Fills in, checks and converts the settings of a new word."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pipeline.config.layering import Given
from pipeline.config.schema import ConfigError, RunConfig, WordConfig
from storage import filesystem
from trainer.presets import Preset

if TYPE_CHECKING:
    from components.caption_example_gen.word_captions import WordCaptions
    from trainer.text.new_word import NewWord
    from trainer.training_config import WordSettings

# Prompts for a word: alone, and in new contexts.
_PROMPTS: Mapping[Any, tuple[str, ...]] = {
    "object": (
        "a photo of a {}",
        "a drawing of a {}",
        "a painting of a {} in a forest",
        "a {} on a beach",
        "a red {}",
        "a blue {}",
        "a {} with a hat",
        "two {}",
    ),
    "style": (
        "a painting in the style of {}",
        "a house in the style of {}",
        "a dog in the style of {}",
        "a tree in the style of {}",
        "a red apple in the style of {}",
        "a portrait in the style of {}",
    ),
}


def of_word(given: Mapping[str, Given]) -> Mapping[str, Any]:
    """Values that a new word fills in for keys that are left open."""
    token, templates = given["word.token"].value, given["word.templates"].value
    if not isinstance(token, str):
        return {}
    filled: dict[str, Any] = {"training.train_text_encoder": False}
    if templates not in _PROMPTS:
        return filled
    from components.caption_example_gen.word_captions import shortest_caption

    filled["validation.prompts"] = [prompt.format(token) for prompt in _PROMPTS[templates]]
    if given["dataset.captions_from"].value is None:
        filled["dataset.caption"] = shortest_caption(templates, token)
    return filled


def check_word(config: RunConfig, preset: Preset, given: Mapping[str, Given]) -> None:
    """Raises a `ConfigError` if such a word cannot be learned.

    Args:
        config: All settings.
        preset: The preset that they name.
        given: The value and origin of every key, for messages.
    """
    word, training = config.word, config.training
    if word.token is None:
        for name in ("initial", "learned_from"):
            if getattr(word, name) is not None:
                raise ConfigError(
                    f"{given[f'word.{name}']} is impossible without word.token: give the new word, "
                    "such as <creature>"
                )
        return
    if word.initial is None:
        raise ConfigError(
            f"{given['word.token']} needs word.initial, the word that it starts as: give a common "
            "word that says what it is, such as animal"
        )
    try:
        new_word_of(word)
    except ValueError as error:
        name, _, what = str(error).partition(" ")
        raise ConfigError(f"{given[f'word.{name}']} is impossible: it {what}") from None
    for key, used in (
        ("training.lora_rank", training.lora_rank),
        ("training.train_text_encoder", training.train_text_encoder),
        ("tuning.rank", config.tuning.rank),
        ("prior.caption", config.prior.caption),
    ):
        if used:
            raise ConfigError(
                f"{given[key]} is impossible with word.token = {word.token}, for which only the "
                "vectors are trained: leave one of them out"
            )
    if config.dataset.tag_shuffle and word.templates:
        raise ConfigError(
            f"{given['dataset.tag_shuffle']} is impossible with word.templates = "
            f"{word.templates}, which also varies the captions: set tag_shuffle to 0 or "
            "templates to null"
        )
    if word.learned_from is not None:
        _check_learned(word, preset, given["word.learned_from"])


def _check_learned(word: WordConfig, preset: Preset, given: Given) -> None:
    from trainer.model_spec import LEARNED_EMBEDS_NAME
    from trainer.weights.errors import WeightsError
    from trainer.weights.learned_embeds import read_learned_embeds

    assert word.learned_from is not None
    if "://" in word.learned_from:
        # The Trainer checks it.
        return
    if not os.path.isfile(word.learned_from):
        raise ConfigError(
            f"{given} is impossible: there is no such file; it must hold a word's vectors, such as "
            f"runs/word/artifacts/Trainer/model/7/Format-Serving/{LEARNED_EMBEDS_NAME}"
        )
    try:
        read_learned_embeds(word.learned_from, preset.text_encoder.width, word.vectors)
    except WeightsError as error:
        raise ConfigError(f"{given} is impossible: {error}") from None


def new_word_of(word: WordConfig) -> NewWord | None:
    """The word that is learned; `None` if there is none.

    Raises:
        ValueError: The word is not possible; see `trainer.text.tokenizer.new_word`.
    """
    if word.token is None or word.initial is None:
        return None
    # Without a new word, the tokenizer is not needed.
    from trainer.text.tokenizer import new_word

    return new_word(word.token, word.initial, word.vectors)


def word_captions(word: WordConfig) -> WordCaptions | None:
    """How captions are changed for the word; `None` if no word is learned."""
    new = new_word_of(word)
    if new is None:
        return None
    from components.caption_example_gen.word_captions import WordCaptions

    return WordCaptions(new, word.templates or "")


def word_settings(word: WordConfig) -> WordSettings | None:
    """The settings for the Trainer; `None` if no word is learned."""
    new = new_word_of(word)
    if new is None:
        return None
    from trainer.training_config import WordSettings

    return WordSettings(
        token=new.token,
        initial=new.initial,
        initial_id=new.initial_id,
        vectors=new.vectors,
        learned_from=word.learned_from,
        learned_sha256=filesystem.sha256(word.learned_from) if word.learned_from else None,
    )
