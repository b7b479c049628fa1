"""What a model was trained on judges none that started from it, however the dataset grows."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from components.caption_example_gen.sources import place_of, split_of
from trainer.data.latents import make_latent_example
from trainer.data.trained_on import TrainedOn, marks_of, trained_on_among, unseen

EVAL_FRACTION = 0.2
WEEKS = 10


def record(picture: str, caption: str = "") -> bytes:
    """As LatentGen makes it of a picture and a caption."""
    rng = np.random.default_rng(list(bytes.fromhex(picture[:16])))
    example_id = hashlib.sha256(f"{picture}{caption}".encode()).hexdigest()
    example = make_latent_example(
        example_id=example_id,
        tokens=np.zeros(77, int),
        context=np.zeros((77, 1)),
        mean=rng.standard_normal((1, 1, 4)),
        log_variance=np.zeros((1, 1, 4)),
    )
    return example.SerializeToString(deterministic=True)


def pictures(count: int, first: int = 0) -> list[str]:
    return [hashlib.sha256(str(i).encode()).hexdigest() for i in range(first, first + count)]


def divided(there: list[str], groups: dict[str, str], seed: int = 0) -> dict[str, list[str]]:
    """The splits, as ingest has them: of near duplicates, the smallest hash decides for all."""
    deciding: dict[str, str] = {}
    for picture in sorted(there):
        deciding.setdefault(groups.get(picture, picture), picture)
    found: dict[str, list[str]] = {"train": [], "eval": []}
    for picture in there:
        decides = deciding[groups.get(picture, picture)]
        found[split_of(decides, EVAL_FRACTION, seed)].append(picture)
    return found


def weeks(folder: Path, datasets: list[tuple[list[str], dict[str, str], int]]) -> list[int]:
    """A model every week, each started from the one before; how many held out were left out."""
    ever: set[str] = set()
    before, left_out = np.zeros(0, np.uint64), []
    for number, (there, groups, seed) in enumerate(datasets):
        splits = divided(there, groups, seed)
        captions = dict.fromkeys(there, f"week {number // 3}")
        records = {p: record(p, captions[p]) for p in there}
        held_out = [records[p] for p in splits["eval"]]
        out = trained_on_among(held_out, before)
        judging = list(unseen(held_out, before))
        assert len(judging) + len(out) == len(held_out)
        # Nothing judges that this model or one before it was trained on, and nothing else is lost.
        expected = [records[p] for p in splits["eval"] if p not in ever]
        assert judging == expected
        left_out.append(len(out))
        ever |= set(splits["train"])
        TrainedOn(marks_of(records[p] for p in splits["train"]), before).write(str(folder))
        known = TrainedOn.find(str(folder))
        assert known is not None
        before = known.all
        assert set(known.own).isdisjoint(marks_of(held_out))
    return left_out


def test_the_split_by_hash_leaves_nothing_to_be_left_out_of_ten_growing_datasets(
    tmp_path: Path,
) -> None:
    grown = [(pictures(40 + 15 * week), {}, 0) for week in range(WEEKS)]
    assert weeks(tmp_path, grown) == [0] * WEEKS
    # Nor of those that shrink, and grow again.
    changing = [(pictures(60, first=7 * (week % 4)), {}, 0) for week in range(WEEKS)]
    assert weeks(tmp_path, changing) == [0] * WEEKS


def test_near_duplicates_that_come_later_are_left_out_where_they_move_a_group(
    tmp_path: Path,
) -> None:
    """A new picture with a smaller hash decides for its group, and takes it from one split."""
    many = sorted(pictures(400))
    held_out = [p for p in many if place_of(p, 0) < EVAL_FRACTION]
    groups, datasets, there = {}, [], sorted(pictures(30, first=1000))
    for week in range(WEEKS):
        # A picture that is trained on, and a week later a near duplicate that is held out.
        first = held_out[week]
        later = next(
            p for p in many if p > first and place_of(p, 0) >= EVAL_FRACTION and p not in groups
        )
        groups |= {later: f"group {week}", first: f"group {week}"}
        there = [*there, later, *([held_out[week - 1]] if week else [])]
        datasets.append((there, dict(groups), 0))
    left_out = weeks(tmp_path, datasets)
    assert left_out == list(range(WEEKS))


def test_with_another_seed_most_of_what_is_held_out_was_trained_on(tmp_path: Path) -> None:
    there = pictures(200)
    before, after = weeks(tmp_path, [(there, {}, 0), (there, {}, 1)])
    assert before == 0
    assert after == pytest.approx(200 * EVAL_FRACTION * (1 - EVAL_FRACTION), abs=15)


def test_models_of_former_versions_do_not_say_what_they_were_trained_on(tmp_path: Path) -> None:
    assert TrainedOn.find(str(tmp_path)) is None
