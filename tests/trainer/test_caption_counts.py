"""How often words and tags are in captions."""

from pathlib import Path

from trainer.data.caption_counts import count_captions, read_counts, write_counts


def test_tags_are_counted_as_sd_scripts_does() -> None:
    captions = ["sks, Red Hair , smile", "sks,red hair,", " , sks", "solo, long sleeves of a coat"]
    assert count_captions(captions) == {
        "sks": 3,
        "red hair": 2,
        "long sleeves of a coat": 1,
        "smile": 1,
        "solo": 1,
    }


def test_of_sentences_words_are_counted() -> None:
    captions = [
        "a drawing of a RED creature, smiling",
        "a pear-shaped one that isn't red, number 7",
    ]
    counts = count_captions(captions)
    assert list(counts)[:2] == ["a", "red"]
    assert (counts["a"], counts["red"], counts["pear-shaped"], counts["isn't"]) == (3, 2, 1, 1)
    assert "a drawing of a red creature" not in counts
    assert count_captions(["ein Bild einer grünen Gestalt in der Größe 東京"])["größe"] == 1


def test_of_too_many_the_most_frequent_are_kept(tmp_path: Path) -> None:
    captions = [f"tag {index}" for index in range(10_500)]
    counts = count_captions([*captions, "tag 9999", "tag 9999"])
    assert len(counts) == 10_000
    assert next(iter(counts.items())) == ("tag 9999", 3)
    write_counts(str(tmp_path), counts)
    # In their order.
    assert list(read_counts(str(tmp_path)).items()) == list(counts.items())
    assert count_captions([]) == {}
