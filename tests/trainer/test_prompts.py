"""Which held-out captions are drawn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from components.tfrecords import write_shard
from storage.user_errors import UserError
from trainer.data.latents import make_latent_example
from trainer.data.prompts import NUM_PROMPTS, held_out_prompts, spread

NOTHING = np.zeros((1, 1, 1))


def write(folder: Path, captions: list[str], shards: int = 1) -> list[str]:
    paths = [str(folder / f"{shard}-of-{shards}.gz") for shard in range(shards)]
    records = [
        make_latent_example(
            example_id=str(index),
            tokens=np.zeros(77),
            context=NOTHING,
            mean=NOTHING,
            log_variance=NOTHING,
            caption=caption,
        ).SerializeToString()
        for index, caption in enumerate(captions)
    ]
    for shard, path in enumerate(paths):
        write_shard(path, records[shard::shards], str(folder))
    return paths


def test_each_has_the_most_words_that_none_before_it_has() -> None:
    captions = [
        "a red cat",
        "a red cat sits",
        "a blue dog",
        "the blue bird sits",
        "the dog Sits",
        "solitary words that occur nowhere else do not count",
    ]
    # Shared are a, red, cat, sits, blue, dog, the.
    assert spread(captions, 2) == ["a red cat sits", "a blue dog"]
    # "the" is then the last word that is new; with no word left, it starts over.
    assert spread(captions, 4) == [
        "a red cat sits",
        "a blue dog",
        "the blue bird sits",
        "a red cat",
    ]
    assert sorted(spread(captions, 99)) == sorted(captions)


@pytest.mark.parametrize("captions", [["one"], ["one", "two"], []])
def test_few_are_all_of_them(captions: list[str]) -> None:
    assert spread(captions, 10) == captions


def test_they_are_the_same_in_every_order_and_division(tmp_path: Path) -> None:
    colours, animals = ("red", "blue", "green"), ("cat", "dog", "bird", "fish", "cow")
    captions = [f"a {colour} {animal}" for colour in colours for animal in animals]
    found = held_out_prompts(write(tmp_path, captions))
    assert len(found) == len(set(found)) == NUM_PROMPTS
    assert set(found) <= set(captions)
    # All nine words are in the first five.
    assert len({word for caption in found[:5] for word in caption.split()}) == 9
    again = held_out_prompts(write(tmp_path, captions[::-1] + captions[:3], shards=3))
    assert again == found


def test_captions_are_drawn_as_they_were_written(tmp_path: Path) -> None:
    files = write(tmp_path, ["Ein\n  grünes Wesen, don't", "Ein grünes Wesen, don't"])
    assert held_out_prompts(files) == ("Ein grünes Wesen, don't",)


def test_without_captions_one_has_to_say_what_to_draw(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"give prompts with --prompt \(validation\.prompts\)"):
        held_out_prompts(write(tmp_path, []))
    with pytest.raises(UserError, match="--prompt"):
        held_out_prompts([])
