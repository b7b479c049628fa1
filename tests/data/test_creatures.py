from __future__ import annotations

import collections
import io
import json
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import data
from components.measures.colour_agreement import body_colour, caption_colour, colours_agree
from data.colours import COLOURS, shade
from data.drawing import FEATURES, SHAPES, Creature, draw_creature
from data.generate import describe, main, write_dataset

COMMITTED = Path(data.__file__).parent / "creatures"
FILES = (
    "README.md",
    "sample.png",
    "data/train-00000-of-00002.parquet",
    "data/train-00001-of-00002.parquet",
)


@pytest.fixture(scope="module")
def table() -> pa.Table:
    return pa.concat_tables(pq.read_table(COMMITTED / name) for name in FILES[2:])


@pytest.fixture(scope="module")
def captions(table: pa.Table) -> list[str]:
    return table["text"].to_pylist()


@pytest.fixture(scope="module")
def pictures(table: pa.Table) -> np.ndarray:
    rows = table["image"].to_pylist()
    return np.stack([np.asarray(Image.open(io.BytesIO(row["bytes"]))) for row in rows])


def areas(picture: np.ndarray) -> dict[str, float]:
    """Returns for each named colour, plain or in shadow, the fraction of pixels that have it."""
    shades = [shade(COLOURS[name], factor) for name in COLOURS for factor in (1.0, 0.86, 0.75)]
    packed = picture.astype(np.int32) @ np.array([1 << 16, 1 << 8, 1], np.int32)
    values, counts = np.unique(packed, return_counts=True)
    common = counts > 2
    rgb = values[common, None] >> np.array([16, 8, 0]) & 255
    difference = rgb[:, None] - np.asarray(shades)
    near = np.abs(difference).max(axis=2).reshape(-1, len(COLOURS), 3).min(axis=2) < 14
    return dict(zip(COLOURS, counts[common] @ near / counts.sum(), strict=True))


def test_generator_reproduces_the_committed_files(tmp_path):
    """Byte for byte where Parquet's writer is the one that wrote them, else all they hold."""
    write_dataset(tmp_path, seed=0)
    written = sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*.*"))
    assert written == sorted(FILES)
    shards = [name for name in FILES if name.endswith(".parquet")]
    writers = {pq.read_metadata(COMMITTED / name).created_by for name in shards}
    assert len(writers) == 1
    same_writer = {pq.read_metadata(tmp_path / name).created_by for name in shards} == writers
    assert same_writer == (pa.__version__ == "10.0.1")  # the old stack's
    for name in FILES:
        made, committed = tmp_path / name, COMMITTED / name
        if same_writer or not name.endswith((".parquet", "README.md")):
            assert made.read_bytes() == committed.read_bytes(), name
        elif name.endswith(".parquet"):
            assert pq.read_table(made).equals(pq.read_table(committed), check_metadata=True), name
        else:
            # The card says how large the shards are.
            assert re.sub(r"\d+", "N", made.read_text()) == re.sub(
                r"\d+", "N", committed.read_text()
            )


def test_schema_is_the_hubs(table):
    assert table.schema.field("image").type == pa.struct(
        [pa.field("bytes", pa.binary()), pa.field("path", pa.string())]
    )
    assert table.schema.field("text").type == pa.string()
    assert table.column_names == ["image", "text"]
    for name in FILES[2:]:
        metadata = pq.read_schema(COMMITTED / name).metadata
        assert json.loads(metadata[b"huggingface"]) == {
            "info": {
                "features": {
                    "image": {"_type": "Image"},
                    "text": {"dtype": "string", "_type": "Value"},
                }
            }
        }


def test_pictures_are_png_of_at_least_128_pixels(table):
    for row in table["image"].to_pylist()[:20]:
        image = Image.open(io.BytesIO(row["bytes"]))
        assert (image.format, image.mode, image.size) == ("PNG", "RGB", (128, 128))


def test_dataset_is_small_enough_for_git():
    assert sum(p.stat().st_size for p in COMMITTED.parent.rglob("*") if p.is_file()) < 8_000_000


def test_no_picture_and_no_caption_comes_twice(captions, pictures):
    assert len(captions) == len(set(captions)) == 720
    assert len({picture.tobytes() for picture in pictures}) == 720


def test_every_shape_comes_in_every_colour_equally_often(captions):
    pattern = re.compile(rf"\b({'|'.join(SHAPES)}) ({'|'.join(COLOURS)}) creature\b")
    counts = collections.Counter(pattern.search(caption).groups() for caption in captions)
    assert len(counts) == len(SHAPES) * len(COLOURS)
    assert set(counts.values()) == {9}


def test_captions_name_the_body_colour_of_the_picture(captions, pictures):
    at_training_size = [np.asarray(Image.fromarray(p).reduce(2)) for p in pictures]
    assert np.mean(colours_agree(at_training_size, captions)) >= 0.97


def test_captions_name_the_other_colours_of_the_picture(captions, pictures):
    """Colours that are named are there, and those that are not named cover next to nothing."""
    missing, extra = [], []
    for caption, picture in list(zip(captions, pictures, strict=True))[::4]:
        named = set(re.findall("|".join(COLOURS), caption))
        for name, area in areas(picture).items():
            if name in named and area < 0.004:
                missing.append((caption, name, area))
            # Cheeks, tongues and the inside of ears come close to some colours.
            if name not in named and area > 0.02:
                extra.append((caption, name, area))
    assert missing == []
    assert extra == []


def test_card_counts_what_is_in_the_files(table, captions):
    card = (COMMITTED / "README.md").read_text(encoding="utf-8")
    assert "license: cc0-1.0" in card
    assert "- text-to-image" in card
    assert f"num_examples: {table.num_rows}\n" in card
    size = sum((COMMITTED / name).stat().st_size for name in FILES[2:])
    assert f"download_size: {size}\n" in card
    for colour in COLOURS:
        count = sum(caption_colour(caption) == colour for caption in captions)
        assert f"| {colour} | {count} |" in card
    for names in FEATURES.values():
        for name in names:
            count = sum(bool(re.search(rf"\b{name}\b", caption)) for caption in captions)
            assert f"| {name} | {count} |" in card


def test_feature_changes_the_picture_and_the_caption():
    plain = Creature("round", "blue", (("horns", "yellow"),), "smiling", 2)
    other = Creature("round", "blue", (("wings", "yellow"),), "smiling", 2)
    first, second = (draw_creature(c, np.random.default_rng(3)) for c in (plain, other))
    assert np.abs(np.asarray(first, int) - np.asarray(second, int)).mean() > 1.0
    assert "yellow horns" in describe(plain, np.random.default_rng(0))
    assert "yellow wings" in describe(other, np.random.default_rng(0))


def test_negative_seed_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--out", str(tmp_path), "--seed", "-1"])
    assert stop.value.code == 2
    assert "--seed is -1; it must be 0 or more" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("colour", COLOURS)
def test_body_colour_finds_the_middle_among_larger_surroundings(colour):
    others = [name for name in COLOURS if name != colour]
    image = np.full((64, 64, 3), 250, np.uint8)
    image[:10] = image[-10:] = COLOURS[others[0]]
    image[16:56, 16:48] = (44, 38, 50)
    image[20:52, 20:44] = COLOURS[colour]
    image[24:30, 24:34] = 255
    image[40:48, 24:40] = COLOURS[others[-1]]
    assert body_colour(image) == colour
