from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

import data
from components.measures.creature_agreement import EyesAgreement, FeatureAgreement, ShapeAgreement
from components.measures.creature_reader import training
from components.measures.creature_reader.reader import (
    ALL_FEATURES,
    CreatureReader,
    Looks,
    described,
    looks,
    targets,
)
from components.measures.measure import Drawn, MeasureSettings
from data import generate
from data.colours import COLOURS
from data.drawing import SHAPES
from trainer.text.tokenizer import caption_of, tokenize

MEASURES = (ShapeAgreement(), EyesAgreement(), FeatureAgreement())


@pytest.fixture(scope="module")
def sample() -> list[tuple[np.ndarray, str]]:
    """Pictures of the sample dataset, and their captions."""
    shard = Path(data.__file__).parent / "creatures" / "data" / "train-00001-of-00002.parquet"
    rows = pq.read_table(shard).slice(0, 200).to_pylist()
    return [(np.asarray(Image.open(io.BytesIO(r["image"]["bytes"]))), r["text"]) for r in rows]


@pytest.fixture(scope="module")
def reader() -> CreatureReader:
    return CreatureReader()


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        (
            "a drawing of a round blue creature with horns",
            Looks("blue", "round", 2, frozenset({"horns"})),
        ),
        (
            "a cartoon of a fluffy teal creature with a grey crest, green wings, three eyes and a "
            "smile",
            Looks("teal", "fluffy", 3, frozenset({"crest", "wings"})),
        ),
        (
            "a drawing of a grumpy tall grey creature with one big eye",
            Looks("grey", "tall", 1, frozenset()),
        ),
        (
            "a picture of a pear-shaped red creature that has big pink ears",
            Looks("red", "pear-shaped", 2, frozenset({"ears"})),
        ),
        ("a round blue house with horns", None),
        ("a blue creature", None),
    ],
)
def test_what_a_caption_says(caption: str, expected: Looks | None) -> None:
    assert described(caption) == expected


def test_captions_of_the_sample_dataset_say_what_was_drawn() -> None:
    creatures, captions = zip(*generate._invent(np.random.default_rng(3)), strict=True)
    expected = [training.looks_of(creature) for creature in creatures]
    assert [described(caption) for caption in captions] == expected
    # A model is given tokens, and captions are told from them.
    assert [described(caption_of(tokens)) for tokens in tokenize(captions[:90])] == expected[:90]


def test_the_output_of_the_network_is_in_one_order() -> None:
    creatures = [
        Looks(colour, shape, eyes, frozenset(features))
        for colour, shape, eyes, features in zip(
            COLOURS, SHAPES, (1, 2, 3) * 3, (ALL_FEATURES[i : i + i % 3] for i in range(9)),
            strict=False,
        )
    ]  # fmt: skip
    assert looks(targets(creatures) - 0.5) == creatures
    assert targets(creatures).sum() == 3 * len(creatures) + sum(len(c.features) for c in creatures)


def test_the_reader_is_right_of_pictures_that_it_was_not_trained_on(reader, sample) -> None:
    seen = reader(np.stack([picture for picture, _ in sample]))
    asked = [described(caption) for _, caption in sample]
    for attribute in ("colour", "shape", "num_eyes", "features"):
        right = [
            getattr(s, attribute) == getattr(a, attribute) for s, a in zip(seen, asked, strict=True)
        ]
        assert np.mean(right) >= 0.97, attribute


def test_pictures_of_another_size_are_read(reader, sample) -> None:
    halves = np.stack([picture[::2, ::2] for picture, _ in sample[:40]])
    right = [
        seen.shape == described(caption).shape
        for seen, (_, caption) in zip(reader(halves), sample[:40], strict=True)
    ]
    assert np.mean(right) >= 0.9


@pytest.mark.parametrize("measure", MEASURES, ids=lambda measure: measure.name)
def test_what_is_measured_is_what_is_right(measure, sample) -> None:
    def measured(captions: list[str]) -> list[float | None]:
        pictures = np.stack([picture for picture, _ in sample[:20]])
        nothing = np.zeros((20, 1, 1, 4), np.float32)
        drawn = Drawn(pictures, nothing, np.zeros((20, 77), np.int64), captions)
        return list(measure.load(MeasureSettings((measure.name,)))(drawn))

    right = measured([caption for _, caption in sample[:20]])
    assert np.mean(right) >= 0.95
    others = measured([caption for _, caption in sample[20:40]])
    assert np.mean(others) < 0.8
    assert measured(["a blue house"] * 20) == [None] * 20


def test_two_features_of_which_one_is_there_are_half_right() -> None:
    asked = Looks("red", "round", 2, frozenset({"horns", "tail"}))
    seen = Looks("red", "tall", 3, frozenset({"horns", "wings"}))
    assert FeatureAgreement().right(seen, asked) == 0.5
    assert ShapeAgreement().right(seen, asked) == EyesAgreement().right(seen, asked) == 0.0
    none = Looks("red", "round", 2, frozenset())
    assert FeatureAgreement().right(seen, none) is None


def test_it_learns_from_drawings_that_are_not_the_sample_datasets() -> None:
    rng = np.random.default_rng(0)
    once = [training.invent(rng) for _ in range(300)]
    assert {len(creature.features) for creature in once} == {0, 1, 2}
    assert {creature.num_eyes for creature in once} == {1, 2, 3}
    assert all(colour != c.colour for c in once for _, colour in c.features)
    pictures, truth = training.batch_of(1, 7, frozenset())
    again, _ = training.batch_of(1, 7, frozenset())
    np.testing.assert_array_equal(pictures, again)
    other, _ = training.batch_of(1, 8, frozenset())
    assert (pictures != other).any()
    first = training.invent(np.random.default_rng([1, 7]))
    assert looks(truth - 0.5)[0] == training.looks_of(first)
    _, others = training.batch_of(1, 7, frozenset({first}))
    assert looks(others - 0.5)[:5] == looks(truth - 0.5)[1:6]


@pytest.mark.slow
def test_training_writes_what_is_read(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    training.main(["--steps", "20", "--out", str(tmp_path / "reader.safetensors")])
    assert "all features" in capsys.readouterr().out
    assert len(CreatureReader(tmp_path / "reader.safetensors")(np.zeros((2, 64, 64, 3), np.uint8)))
