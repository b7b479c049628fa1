"""Which half of the held-out pictures chooses, and that what it chooses is judged without bias."""

import hashlib
import json
import math
from pathlib import Path

import numpy as np

from components.caption_example_gen.groups_file import GROUPS_NAME, GroupedPicture, write_groups
from components.latent_gen.halves import chooses, choosing, first_of_groups
from storage.row_index import IndexedRow
from trainer.data.held_out import read_choosing, write_choosing
from trainer.training.evaluations import Evaluation, best_of


def picture(index: int) -> str:
    return hashlib.sha256(f"{index}".encode()).hexdigest()


def test_a_pictures_own_hash_decides_its_half() -> None:
    found = [chooses(picture(index)) for index in range(12)]
    expected = [
        hashlib.sha256(f"half/{picture(index)}".encode()).hexdigest()[1] in "02468ace"
        for index in range(12)
    ]
    assert found == expected
    # A change would move pictures of everybody's datasets.
    assert [index for index, half in enumerate(found) if half] == [0, 7, 8, 9, 11]
    number = sum(chooses(picture(index)) for index in range(4000))
    assert abs(number - 2000) < 3 * math.sqrt(1000)


def test_captions_and_near_duplicates_are_of_one_half(tmp_path: Path) -> None:
    pictures = [picture(index) for index in range(12)]
    mine = next(p for p in pictures if chooses(p))
    other = next(p for p in pictures if not chooses(p))
    rows = [IndexedRow(f"{p[:4]}-{n}", p, "x") for p in (mine, other) for n in range(2)]
    assert list(choosing(rows, {})) == [f"{mine[:4]}-0", f"{mine[:4]}-1"]
    assert list(choosing(rows, {mine: other, other: other})) == []

    members = [GroupedPicture(p, "a.jpg", 0, 8, 8, "eval") for p in (mine, other)]
    assert first_of_groups(str(tmp_path)) == {}
    write_groups([members], str(tmp_path / GROUPS_NAME))
    first_of = first_of_groups(str(tmp_path))
    assert first_of == {mine: mine, other: mine}
    assert len(list(choosing(rows, first_of))) == 4


def test_what_chooses_is_written_beside_the_latents(tmp_path: Path) -> None:
    assert read_choosing(str(tmp_path)) == frozenset()
    write_choosing(str(tmp_path), iter(["b", "a"]))
    assert read_choosing(str(tmp_path)) == {"a", "b"}
    assert json.loads((tmp_path / "choosing.json").read_text()) == ["a", "b"]


def test_of_a_hundred_models_that_differ_by_noise_the_chosen_one_is_judged_without_bias() -> None:
    """Steps whose true losses are the same: whatever is seen of an improvement is chance."""
    rng = np.random.default_rng(0)
    pictures, models, trials = 40, 100, 100
    mine = np.array([chooses(picture(index)) for index in range(pictures)])
    seen, judged = [], []
    for _ in range(trials):
        # Pictures differ more than models do, and each has its own opinion of a model.
        losses = 0.1 + rng.normal(0, 0.03, pictures) + rng.normal(0, 0.01, (models, pictures))
        steps = [Evaluation(i + 1, tuple(of[mine]), "x") for i, of in enumerate(losses)]
        best = best_of(steps)
        assert best is not None
        improvement = losses[0] - losses[best.step - 1]
        if best.step > 1:
            seen.append(improvement[mine].mean())
            judged.append(improvement[~mine].mean())
    # It does happen that a later one seems surely better, though none is.
    assert len(seen) > trials / 4
    error = np.std(judged, ddof=1) / math.sqrt(len(judged))
    assert abs(np.mean(judged)) < 3 * error
    # Ten times what chance could make of it, as the half that chose sees it.
    assert np.mean(seen) > 10 * error
