"""What is put on things before the base weights of tiny learn them; painting it needs PyTorch."""

from __future__ import annotations

import numpy as np
import pytest

from trainer.pretraining.parts import BEHIND, MOUTHS, ON, Parts, drawn_parts


def one(**chosen: int) -> Parts:
    names = ("num_eyes", "mouth", "behind", "behind_colour", "on", "on_colour")
    return Parts(**{name: np.array([chosen.get(name, 0)]) for name in names})


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        (one(), ""),
        (one(num_eyes=1), "with one big eye"),
        (one(num_eyes=3, mouth=2), "with three eyes and a frown"),
        (one(behind=5, behind_colour=1), "with an orange tail"),
        (one(behind=1, on=3, on_colour=5), "with red horns and a blue belly"),
        (
            one(num_eyes=2, mouth=1, on=1, on_colour=3),
            "with green spots, two eyes and a smile",
        ),
    ],
)
def test_parts_are_named(parts: Parts, words: str) -> None:
    assert parts.words(0) == words


def test_a_thing_has_a_face_or_parts_that_stick_out_and_is_no_creature() -> None:
    wanted = np.arange(4000) % 4 > 0
    parts = drawn_parts(wanted, np.random.default_rng(0))
    has_face, sticks_out = parts.num_eyes > 0, parts.behind > 0
    np.testing.assert_array_equal(has_face ^ sticks_out, wanted)
    assert not (has_face & sticks_out).any()
    assert not ((parts.mouth > 0) & ~has_face).any()
    assert not ((parts.on > 0) & ~wanted).any()
    # Nothing is rare.
    for chosen, number in (
        (parts.num_eyes, 4),
        (parts.behind, len(BEHIND)),
        (parts.on, len(ON)),
        (parts.mouth, len(MOUTHS)),
    ):
        assert np.bincount(chosen[wanted], minlength=number).min() > 150
