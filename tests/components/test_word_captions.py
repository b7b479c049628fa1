"""Captions that a new word is learned from, and what the dataset's rows become."""

from __future__ import annotations

import ingested_rows
import pytest

from components.caption_example_gen.word_captions import (
    TEMPLATES,
    WordCaptions,
    shortest_caption,
)
from trainer.text.tokenizer import has_word, new_word, token_count

WORD = new_word("<creature>", "animal", 3)


# Of the style's, the authors have two twice.
@pytest.mark.parametrize(
    ("templates", "number", "distinct"), [("object", 27, 27), ("style", 19, 17)]
)
def test_the_templates_are_the_papers(templates: str, number: int, distinct: int) -> None:
    words = WordCaptions(WORD, templates)
    variants = words.of(shortest_caption(templates, WORD.token))
    assert len(variants) == number == words.variants == len(TEMPLATES[templates])
    assert len(set(variants)) == distinct
    assert variants[0] == shortest_caption(templates, WORD.token)
    assert all(has_word(variant, WORD) for variant in variants)


def test_a_caption_with_the_word_is_used_as_it_is() -> None:
    words = WordCaptions(WORD, "object")
    assert words.caption("my <Creature>, red") == "my <Creature>, red"
    assert words.of("my <Creature>, red") == ["my <Creature>, red"] * 27
    assert words.caption("a dog") == "a photo of a <creature>"
    assert len(set(words.of("A photo of a <creature>"))) == 27
    assert words.varied(["a dog", "my <creature>"]) == WordCaptions(WORD)
    assert words.varied(["my <creature>", "a photo of a <creature>"]) == words
    refusing = WordCaptions(WORD)
    assert (refusing.caption("a dog"), refusing.variants) == (None, 0)
    for one in (words, refusing):
        assert WordCaptions.of_json(one.to_json()) == one
    assert WordCaptions.of_json(None) is None


def test_rows_have_the_word_or_are_set_aside(tmp_path) -> None:
    captions = ["a <creature> on the left", "a dog", "two <CREATURE>!", "a cat", "a <creature>"]
    rows = [(ingested_rows.png(seed), caption) for seed, caption in enumerate(captions)]
    ingested_rows.write(tmp_path / "data" / "train.parquet", rows)

    def made(templates: str) -> tuple[dict[str, int], dict[str, str]]:
        given = WordCaptions(WORD, templates).to_json()
        examples, rejects = ingested_rows.generate(tmp_path, tmp_path / "data", word_captions=given)
        found = [r for s in ("train", "eval") for r in ingested_rows.read_split(examples, s)]
        counts = {row["caption"].decode(): row["caption/num_tokens"] for row in found}
        assert examples.has_custom_property("captions_replaced") == bool(templates)
        assert examples.get_int_custom_property("captions_replaced") == (2 if templates else 0)
        reasons = {
            reject["caption"]: reject["reason"] for reject in ingested_rows.read_rejects(rejects)
        }
        return counts, reasons

    counts, reasons = made("")
    assert counts == {c: token_count(c, WORD) for c in captions[::2]}
    assert counts["a <creature>"] == 6
    assert reasons == dict.fromkeys(["a dog", "a cat"], "caption_without_word")
    counts, reasons = made("object")
    assert {*counts} == {*captions[::2], "a photo of a <creature>"}
    assert not reasons
