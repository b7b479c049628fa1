"""Datasets of a few rows in files of any form, and what their sources read in them."""

import csv
import io
import json
import os
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from components.caption_example_gen.sources import DatasetError, DatasetSpec, open_dataset

HUB_TYPE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def png(seed, size=(8, 8)):
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def put(folder, files):
    """Writes files, text or bytes, by their relative paths."""
    for path, content in files.items():
        full = os.path.join(folder, path)
        os.makedirs(os.path.dirname(full), exist_ok=True)
        with open(full, "wb") as f:
            f.write(content.encode() if isinstance(content, str) else content)
    return folder


def put_tar(path, members, suffix=".tar"):
    """Writes an archive of (name, content) pairs; content that is `None` makes a link."""
    path = path.with_name(path.name + suffix)
    path.parent.mkdir(parents=True, exist_ok=True)
    packing = next((each for each in ("bz2", "xz", "gz") if suffix.endswith(each)), "")
    with tarfile.open(path, f"w:{packing}") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            if content is None:
                info.type, info.linkname = tarfile.LNKTYPE, "elsewhere"
                archive.addfile(info)
                continue
            content = content.encode() if isinstance(content, str) else content
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def put_parquet(path, columns, features=None, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table(columns)
    if features is not None:
        info = json.dumps({"info": {"features": features}})
        table = table.replace_schema_metadata({"huggingface": info})
    pq.write_table(table, path, **options)


def embedded(images):
    return pa.array([{"bytes": image, "path": None} for image in images], HUB_TYPE)


def rows_of(dataset, peek=False, **settings):
    source = open_dataset(DatasetSpec(str(dataset), **settings))
    return [row for unit in source.units() for row in source.read(unit, peek=peek)]


def pairs_of(dataset, **settings):
    """(picture, captions) of every row; a row without picture or caption is an error."""
    rows = rows_of(dataset, **settings)
    assert all(row.image and not row.image_problem for row in rows), rows
    return [(row.image, [caption.decode() for caption in row.captions]) for row in rows]


def error_of(dataset, read=False, **settings):
    with pytest.raises(DatasetError) as caught:
        rows_of(dataset, **settings) if read else open_dataset(
            DatasetSpec(str(dataset), **settings)
        )
    message = str(caught.value)
    assert "\n" not in message
    return message


def kind_of(dataset, **settings):
    return open_dataset(DatasetSpec(str(dataset), **settings)).kind


def jsonl(records):
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def csv_text(records, newline="\r\n"):
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator=newline).writerows(records)
    return buffer.getvalue()
