"""Draws the sample dataset and stores it in the layout of the Hugging Face hub.

`python -m data.generate --out data/creatures --seed 0` reproduces the committed files byte for byte
with the versions of Pillow, NumPy and pyarrow in `requirements-old-stack.lock`; a newer pyarrow
writes its own version into the files.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import io
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from data.colours import COLOURS, with_article
from data.drawing import EXPRESSIONS, FEATURES, IMAGE_SIZE, SHAPES, Creature, draw_creature

ROWS_PER_COMBINATION = 9
"""Creatures of each shape in each colour."""

NUM_SHARDS = 2

_FEATURE_WORDS = {
    "horns": "{} horns",
    "ears": "big {} ears",
    "crest": "{a} crest",
    "antennae": "{} antennae",
    "spots": "{} spots",
    "stripes": "{} stripes",
    "belly": "{a} belly",
    "wings": "{} wings",
    "tail": "{a} tail",
}
_EYE_WORDS = {1: "one big eye", 3: "three eyes"}
_MOUTH_WORDS = {"smiling": "a smile", "grumpy": "a frown"}
_OPENINGS = ("a drawing of", "a drawing of", "a drawing of", "a picture of", "a cartoon of")
_FEATURES_METADATA = {
    "info": {
        "features": {
            "image": {"_type": "Image"},
            "text": {"dtype": "string", "_type": "Value"},
        }
    }
}
_SCHEMA = pa.schema(
    [
        pa.field(
            "image", pa.struct([pa.field("bytes", pa.binary()), pa.field("path", pa.string())])
        ),
        pa.field("text", pa.string()),
    ],
    metadata={"huggingface": json.dumps(_FEATURES_METADATA)},
)


@dataclasses.dataclass(frozen=True)
class Row:
    """One example of the dataset."""

    creature: Creature
    png: bytes
    path: str
    caption: str


def _deck(options: Sequence, rng: np.random.Generator) -> Iterator:
    """Yields options in random order for ever, all equally often."""
    while True:
        for i in rng.permutation(len(options)):
            yield options[int(i)]


def _feature_sets() -> tuple[list[tuple[str, ...]], list[tuple[str, ...]]]:
    """Returns all sets of one feature, and all sets of two features from different places."""
    singles: list[tuple[str, ...]] = [(name,) for names in FEATURES.values() for name in names]
    places = list(FEATURES.values())
    pairs: list[tuple[str, ...]] = [
        (first, second)
        for i, names in enumerate(places)
        for others in places[i + 1 :]
        for first in names
        for second in others
    ]
    return singles, pairs


def describe(creature: Creature, rng: np.random.Generator) -> str:
    """Returns a caption that describes the picture of a creature, in one of several phrasings."""
    opening = _OPENINGS[int(rng.integers(len(_OPENINGS)))]
    subject = f"{creature.shape} {creature.colour} creature"
    parts = [
        _FEATURE_WORDS[name].format(colour, a=with_article(colour))
        for name, colour in creature.features
    ]
    if creature.num_eyes in _EYE_WORDS:
        parts.append(_EYE_WORDS[creature.num_eyes])
    mood_in_front = rng.random() < 0.5
    if creature.expression in _MOUTH_WORDS and not mood_in_front:
        parts.append(_MOUTH_WORDS[creature.expression])
    else:
        subject = f"{creature.expression} {subject}"
    listed = parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
    joint = "that has" if rng.random() < 0.15 else "with"
    return f"{opening} {with_article(subject)} {joint} {listed}"


def _invent(rng: np.random.Generator) -> list[tuple[Creature, str]]:
    """Returns distinct creatures with distinct captions, in random order.

    Every shape comes in every colour equally often. Features, their colours, expressions and
    numbers of eyes are dealt from decks, so that alternatives are about equally frequent.
    """
    singles, pairs = (_deck(sets, rng) for sets in _feature_sets())
    second_colours = {name: _deck([c for c in COLOURS if c != name], rng) for name in COLOURS}
    expressions = _deck(EXPRESSIONS, rng)
    eyes = _deck((2, 2, 2, 2, 2, 2, 1, 1, 3), rng)
    found: list[tuple[Creature, str]] = []
    seen: set[Creature | str] = set()
    for shape in SHAPES:
        for colour in COLOURS:
            kept = 0
            while kept < ROWS_PER_COMBINATION:
                names = next(singles) if kept % 2 == 0 else next(pairs)
                creature = Creature(
                    shape=shape,
                    colour=colour,
                    features=tuple((name, next(second_colours[colour])) for name in names),
                    expression=next(expressions),
                    num_eyes=next(eyes),
                )
                caption = describe(creature, rng)
                if creature in seen or caption in seen:
                    continue
                seen.update((creature, caption))
                found.append((creature, caption))
                kept += 1
    return [found[int(i)] for i in rng.permutation(len(found))]


def encode_png(image: Image.Image) -> bytes:
    """Returns a picture as PNG without metadata, always with the same compression."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", compress_level=6)
    return buffer.getvalue()


def make_rows(seed: int) -> list[Row]:
    """Invents, captions and draws the whole dataset.

    Args:
        seed: The seed of the dataset; 0 or more.
    """
    rows = []
    for number, (creature, caption) in enumerate(_invent(np.random.default_rng([seed, 0]))):
        picture = draw_creature(creature, np.random.default_rng([seed, 1, number]))
        rows.append(Row(creature, encode_png(picture), f"creature-{number:04d}.png", caption))
    return rows


def _write_shards(rows: Sequence[Row], folder: Path) -> int:
    """Writes the Parquet files and returns their size in bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    size = 0
    for shard in range(NUM_SHARDS):
        part = rows[shard * len(rows) // NUM_SHARDS : (shard + 1) * len(rows) // NUM_SHARDS]
        table = pa.Table.from_arrays(
            [
                pa.array(
                    [{"bytes": row.png, "path": row.path} for row in part], _SCHEMA.field(0).type
                ),
                pa.array([row.caption for row in part], pa.string()),
            ],
            schema=_SCHEMA,
        )
        path = folder / f"train-{shard:05d}-of-{NUM_SHARDS:05d}.parquet"
        pq.write_table(
            table,
            path,
            row_group_size=100,
            version="2.6",
            compression="snappy",
            use_dictionary=False,
            write_statistics=False,
        )
        size += path.stat().st_size
    return size


def _write_sample(rows: Sequence[Row], path: Path) -> None:
    """Writes a picture with one creature of each shape (down) in each colour (across)."""
    sheet = Image.new("RGB", (len(COLOURS) * IMAGE_SIZE, len(SHAPES) * IMAGE_SIZE))
    for y, shape in enumerate(SHAPES):
        for x, colour in enumerate(COLOURS):
            png = next(
                row.png
                for row in rows
                if (row.creature.shape, row.creature.colour) == (shape, colour)
            )
            sheet.paste(Image.open(io.BytesIO(png)), (x * IMAGE_SIZE, y * IMAGE_SIZE))
    path.write_bytes(encode_png(sheet))


def _table(heading: str, counts: dict[str, int]) -> str:
    lines = [f"| {heading} | rows |", "| --- | ---: |"]
    return "\n".join([*lines, *(f"| {name} | {count} |" for name, count in counts.items())])


def _card(rows: Sequence[Row], size: int, seed: int) -> str:
    """Returns the dataset card, with every number counted from `rows`."""
    creatures = [row.creature for row in rows]
    shapes = collections.Counter(c.shape for c in creatures)
    colours = collections.Counter(c.colour for c in creatures)
    features = collections.Counter(name for c in creatures for name, _ in c.features)
    moods = collections.Counter(c.expression for c in creatures)
    eyes = collections.Counter(c.num_eyes for c in creatures)
    in_memory = sum(len(r.png) + len(r.path.encode()) + len(r.caption.encode()) for r in rows)
    examples = "\n".join(f"- {row.caption}" for row in rows[:6])
    with_two = sum(len(c.features) == 2 for c in creatures)
    return f"""---
license: cc0-1.0
language:
- en
pretty_name: Creatures
size_categories:
- n<1K
task_categories:
- text-to-image
measures:
- colour_agreement
- shape_agreement
- eyes_agreement
- feature_agreement
validation_prompts:
- a drawing of a round blue creature with horns
- a drawing of a tall red creature with yellow wings
- a drawing of a wide green creature with big orange ears
- a drawing of a long yellow creature with a purple tail
- a drawing of a square purple creature with green spots
- a drawing of a spiky orange creature with blue stripes
- a drawing of a fluffy pink creature with teal antennae
- a drawing of a pear-shaped teal creature with a red belly
- a drawing of a smiling round brown creature with a pink crest
- a drawing of a grumpy tall grey creature with one big eye
dataset_info:
  features:
  - name: image
    dtype: image
  - name: text
    dtype: string
  splits:
  - name: train
    num_bytes: {in_memory}
    num_examples: {len(rows)}
  download_size: {size}
  dataset_size: {in_memory}
configs:
- config_name: default
  data_files:
  - split: train
    path: data/train-*
---

# Creatures

{len(rows)} drawings of cartoon creatures, {IMAGE_SIZE} x {IMAGE_SIZE} pixels, PNG, each with a
caption that names what is drawn. It is the sample dataset of this project: small enough to keep
beside the code, varied enough to judge a fine-tuned text-to-image model by eye.

![One creature of each shape in each colour](sample.png)

## What is in a row

- `image`: the picture, `struct<bytes: binary, path: string>`.
- `text`: the caption. The body's colour always stands right before the word "creature".

The first captions:

{examples}

Every creature has a body in one of {len(COLOURS)} colours, one feature or ({with_two} rows) two in
other colours, an expression and one, two or three eyes. No two rows have the same description, and
no two the same caption.

## Counts

{_table("shape", {name: shapes[name] for name in SHAPES})}

{_table("body colour", {name: colours[name] for name in COLOURS})}

{_table("feature", {name: features[name] for names in FEATURES.values() for name in names})}

{_table("expression", {name: moods[name] for name in EXPRESSIONS})}

{_table("eyes", {str(number): eyes[number] for number in sorted(eyes)})}

## How it was made

Drawn by a program, `data/generate.py`, from seed {seed}:

```
python -m data.generate --out data/creatures --seed {seed}
```

With the locked versions of Pillow, NumPy and pyarrow this writes the same bytes again, this card
and its counts included. Nothing in it was drawn, photographed or written by anybody else; it is in
the public domain (CC0 1.0).
"""


def write_dataset(out: Path, seed: int) -> int:
    """Writes the Parquet shards, the sample picture and the dataset card.

    Args:
        out: Folder of the dataset; made if it does not exist.
        seed: The seed of the dataset; 0 or more.

    Returns:
        The number of rows.
    """
    rows = make_rows(seed)
    size = _write_shards(rows, out / "data")
    _write_sample(rows, out / "sample.png")
    (out / "README.md").write_text(_card(rows, size, seed), encoding="utf-8")
    return len(rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(prog="python -m data.generate", description=__doc__)
    parser.add_argument(
        "--out", type=Path, default=Path("data/creatures"), help="folder to write (%(default)s)"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of the dataset, 0 or more (%(default)s)"
    )
    options = parser.parse_args(arguments)
    if options.seed < 0:
        parser.error(f"--seed is {options.seed}; it must be 0 or more")
    count = write_dataset(options.out, options.seed)
    sys.stdout.write(f"Wrote {count} creatures to {options.out}\n")


if __name__ == "__main__":
    main()
