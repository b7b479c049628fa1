"""Generated sets of captioned 256 px JPEGs, in the Parquet schema of the hub or as files."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

_SIZE = 256
_DISTINCT = 500
_ROW_GROUP_ROWS = 500
_FILE_ROWS = 10_000
_FEATURES = {"image": {"_type": "Image"}, "text": {"dtype": "string", "_type": "Value"}}
_WORDS = ("house", "tree", "dog", "boat", "small", "old", "red", "green", "blue", "near", "under")


def write_dataset(folder: str, count: int, seed: int = 0, *, distinct: int = _DISTINCT) -> int:
    """Writes `count` different picture files as Parquet; returns their size in bytes.

    Only `distinct` pictures are drawn; each copy has its number in a JPEG comment, so that every
    one has to be read, hashed and decoded by itself.
    """
    pictures = [_jpeg(np.random.default_rng([seed, i])) for i in range(min(distinct, count))]
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    schema = pa.schema(
        [("image", image), ("text", pa.string())],
        metadata={"huggingface": json.dumps({"info": {"features": _FEATURES}})},
    )
    os.makedirs(folder, exist_ok=True)
    files = -(-count // _FILE_ROWS)
    total = 0
    for file in range(files):
        path = os.path.join(folder, f"train-{file:05d}-of-{files:05d}.parquet")
        with pq.ParquetWriter(path, schema) as writer:
            numbers = range(file * _FILE_ROWS, min(count, (file + 1) * _FILE_ROWS))
            for start in range(numbers.start, numbers.stop, _ROW_GROUP_ROWS):
                group = range(start, min(start + _ROW_GROUP_ROWS, numbers.stop))
                images = [_numbered(pictures[i % len(pictures)], i) for i in group]
                total += sum(map(len, images))
                writer.write_table(
                    pa.table(
                        {
                            "image": pa.array([{"bytes": b, "path": None} for b in images], image),
                            "text": pa.array(list(_captions(group, seed))),
                        },
                        schema=schema,
                    )
                )
    return total


def write_as_files(dataset: str, folder: str) -> None:
    """Writes the same pictures as files in one folder, with a caption file beside each."""
    os.makedirs(folder)
    number = 0
    for name in sorted(os.listdir(dataset)):
        for batch in pq.ParquetFile(os.path.join(dataset, name)).iter_batches(_ROW_GROUP_ROWS):
            for row in batch.to_pylist():
                stem = os.path.join(folder, f"{number:07d}")
                with open(f"{stem}.jpg", "wb") as picture:
                    picture.write(row["image"]["bytes"])
                with open(f"{stem}.txt", "w", encoding="utf-8") as caption:
                    caption.write(row["text"])
                number += 1


def _jpeg(rng: np.random.Generator) -> bytes:
    """Soft shapes with some grain, which compress about like a photograph."""
    coarse = Image.fromarray(rng.integers(0, 256, (12, 12, 3), np.uint8))
    pixels = np.asarray(coarse.resize((_SIZE, _SIZE), Image.Resampling.BICUBIC), np.int16)
    grain = rng.normal(0, 9, (_SIZE, _SIZE, 1))
    buffer = io.BytesIO()
    Image.fromarray((pixels + grain).clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def _numbered(jpeg: bytes, number: int) -> bytes:
    comment = f"{number:012d}".encode()
    # After the two bytes that start every JPEG: marker, length with its own two bytes, text.
    return jpeg[:2] + b"\xff\xfe" + (len(comment) + 2).to_bytes(2, "big") + comment + jpeg[2:]


def _captions(numbers: range, seed: int) -> Iterator[str]:
    for number in numbers:
        rng = np.random.default_rng([seed, 1, number])
        yield " ".join(rng.choice(_WORDS, rng.integers(5, 25)))
