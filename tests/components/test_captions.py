import collections
import re

import pytest
from ingested_rows import generate, png, read_rejects, read_split, sha256, write

from components.caption_example_gen.captions import CaptionTemplate, TagShuffle
from trainer.text.tokenizer import token_count

NONE = CaptionTemplate()


@pytest.mark.parametrize(
    ("template", "filled"),
    [
        ("", "a cat"),
        ("{caption}", "a cat"),
        ("{caption}, in the style of sks", "a cat, in the style of sks"),
        ("sks,  {caption}", "sks,  a cat"),
        ("photo of “{caption}” &amp; {{sks}}", 'photo of "a cat" & {sks}'),
    ],
)
def test_captions_are_put_into_the_template(template, filled):
    parsed = CaptionTemplate.parse(template)
    assert parsed.fill("a cat") == filled
    assert parsed.inner(filled) == "a cat"
    if template not in ("", "{caption}"):
        assert parsed.inner("a cat") is None


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("sks", "must have {caption} exactly once, where the caption belongs, but has it 0 times"),
        ("{caption} and {caption}", "has it 2 times"),
        ("{caption} by {artist}", "there is no field {artist}: write {caption}"),
        ("{}", "there is no field {}"),
        ("{caption:>90}", "there is no field {caption:>90}"),
        ("{caption!r}", "there is no field {caption!r}"),
        ("{caption} {", "double literal braces"),
        ("{caption}" + " sks" * 75, "tokens without a caption, but the text encoder reads only 77"),
    ],
)
def test_a_wrong_template_says_what_it_must_be(template, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        CaptionTemplate.parse(template)


def test_a_template_may_leave_room_for_one_word():
    longest = max(n for n in range(60, 76) if token_count(" dog" * n) < 77)
    CaptionTemplate.parse("{caption}" + " dog" * longest)
    with pytest.raises(ValueError, match="shorten it"):
        CaptionTemplate.parse("{caption}" + " dog" * (longest + 1))


def test_examples_have_the_captions_that_are_trained_on(tmp_path):
    rows = [(png(i), f"cat {i}\n") for i in range(20)] + [(png(90), " "), (png(0), "cat 0\n")]
    write(tmp_path / "set" / "all.parquet", rows)
    examples, rejects = generate(
        tmp_path, tmp_path / "set", caption_template="{caption}, in the style of sks"
    )
    found = {split: read_split(examples, split) for split in ("train", "eval")}
    assert found["eval"]
    for row in (row for rows in found.values() for row in rows):
        caption = row["caption"].decode()
        number = int(caption.split()[1].rstrip(","))
        assert caption == f"cat {number}, in the style of sks"
        assert row["caption/num_tokens"] == token_count(caption)
        assert row["caption/words"][2:] == [b"in", b"the", b"style", b"of", b"sks"]
        assert row["id"].decode() == sha256(f"{sha256(png(number))}{caption}".encode())
    assert [row["reason"] for row in read_rejects(rejects)] == ["caption_blank", "duplicate"]
    assert examples.get_string_custom_property("caption_template").startswith("{caption}, in")
    # Which pictures are held out is another matter.
    plain, _ = generate(tmp_path, tmp_path / "set")
    for split, rows_of in found.items():
        assert {r["image/id"] for r in rows_of} == {r["image/id"] for r in read_split(plain, split)}
    assert not plain.has_custom_property("caption_template")


def test_tags_are_shuffled_behind_those_that_stay():
    shuffle = TagShuffle(variants=200, keep=2, seed=1)
    found = shuffle.of("sks, dog , red,  blue,green,", "id", NONE)
    assert len(found) == 200
    counts = collections.Counter(found)
    # All six orders, about as often each.
    assert len(counts) == 6
    assert min(counts.values()) > 15
    for variant in counts:
        assert variant.startswith("sks, dog, ")
        assert sorted(variant.split(", ")[2:]) == ["blue", "green", "red"]


def test_tags_are_dropped_as_often_as_asked_for():
    tags = [f"tag{i}" for i in range(10)]
    found = TagShuffle(variants=300, keep=1, dropout=0.3).of(", ".join(tags), "id", NONE)
    assert all(variant.startswith("tag0, tag") for variant in found)
    counts = collections.Counter(tag for variant in found for tag in variant.split(", "))
    assert counts["tag0"] == 300
    assert all(180 < counts[tag] < 240 for tag in tags[1:])


def test_something_is_said_when_all_tags_are_dropped():
    found = TagShuffle(variants=50, keep=0, dropout=0.99).of("one, two", "id", NONE)
    assert set(found) == {"one", "two"}


def test_the_template_stays_around_the_tags():
    template = CaptionTemplate.parse("photo, {caption}, by sks")
    found = TagShuffle(variants=20, keep=0).of(template.fill("a, b, c"), "id", template)
    assert len(set(found)) == 6
    assert all(v.startswith("photo, ") and v.endswith(", by sks") for v in found)


def test_variants_depend_on_example_and_seed_alone():
    def of(seed=0, example_id="id"):
        return TagShuffle(4, 0, 0.2, seed).of("a, b, c, d, e, f", example_id, NONE)

    assert of() == of()
    assert of() != of(seed=1)
    assert of() != of(example_id="other")


def test_a_sentence_is_left_as_it_is():
    assert TagShuffle(variants=3).of("a red dog", "id", NONE) == ["a red dog"] * 3
