from __future__ import annotations

import io
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image


def _write_dataset(folder: Path, rows: int) -> Path:
    """A dataset as the hub stores one: `rows` pictures of one colour each."""
    images = []
    for row in range(rows):
        png = io.BytesIO()
        Image.new("RGB", (64, 64), (row % 256, 128, 255 - row % 256)).save(png, format="PNG")
        images.append({"bytes": png.getvalue(), "path": f"{row}.png"})
    table = pa.table(
        {
            "image": pa.array(images, pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
            "text": [f"a plain picture, number {row}" for row in range(rows)],
        }
    )
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, folder / "train-00000-of-00001.parquet")
    return folder


@pytest.fixture(scope="session")
def dataset(tmp_path_factory) -> Path:
    return _write_dataset(tmp_path_factory.mktemp("dataset") / "pictures", 60)


@pytest.fixture(scope="session")
def write_dataset():
    return _write_dataset
