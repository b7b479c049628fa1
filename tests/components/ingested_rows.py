"""Datasets of a few rows, and CaptionExampleGen's executor run on them."""

import hashlib
import io
import json
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tensorflow as tf
from PIL import Image
from tfx.dsl.components.base import base_beam_executor
from tfx.types import artifact_utils, standard_artifacts

from components import RejectedRows
from components.caption_example_gen import executor
from components.caption_example_gen.sources import DatasetSpec, dataset_fingerprint

TWO_WORKERS = [
    "--direct_num_workers=2",
    "--direct_running_mode=multi_threading",
    # As `beam_pipeline_args` of the local runner says: or TFX packs its code for remote workers.
    "--sdk_container_image=none",
]
HUB_TYPE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def png(seed, size=(8, 8), **options):
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", **options)
    return buffer.getvalue()


def sha256(content):
    return hashlib.sha256(content).hexdigest()


def write(path, rows, row_group_size=4, captions="text", image_type=HUB_TYPE, caption_type=None):
    """Writes (picture, caption) rows in the hub's schema."""
    path.parent.mkdir(parents=True, exist_ok=True)
    images = [
        {"bytes": image, "path": None} if isinstance(image, bytes) else image for image, _ in rows
    ]
    if image_type != HUB_TYPE:
        images = [image for image, _ in rows]
    table = pa.table(
        {
            "image": pa.array(images, image_type),
            captions: pa.array([caption for _, caption in rows], caption_type or pa.string()),
        }
    )
    pq.write_table(table, path, row_group_size=row_group_size)


def generate(tmp_path, dataset, beam_args=(), **settings):
    """Runs the executor; returns the two artifacts."""
    properties = {
        "dataset": str(dataset),
        "dataset_config": "",
        "dataset_split": "train",
        "eval_fraction": 0.3,
        "seed": 0,
        "image_column": "",
        "caption_column": "",
        "max_pixels": 64 << 20,
        "max_aspect_ratio": 10.0,
        "max_rejected_fraction": 1.0,
        "dataset_form": "",
        "caption": "",
        "captions_from": "",
        "caption_lines": "joined",
        "near_duplicates": "keep_together",
        "caption_template": "",
        **settings,
    }
    spec = DatasetSpec(
        str(dataset),
        split=properties["dataset_split"],
        caption_column=properties["caption_column"],
        form=properties["dataset_form"],
        caption=properties["caption"],
        captions_from=properties["captions_from"],
        withdrawn=properties.get("withdrawn", ""),
    )
    properties.setdefault("dataset_fingerprint", dataset_fingerprint(spec))
    target = tmp_path / f"run-{len(list(tmp_path.glob('run-*')))}"
    examples, rejects = standard_artifacts.Examples(), RejectedRows()
    examples.uri, rejects.uri = str(target / "examples"), str(target / "rejects")
    context = base_beam_executor.BaseBeamExecutor.Context(beam_pipeline_args=list(beam_args))
    executor.Executor(context).Do({}, {"examples": [examples], "rejects": [rejects]}, properties)
    return examples, rejects


def _value(name, feature):
    values = list(getattr(feature, feature.WhichOneof("kind")).value)
    return values if name == "caption/words" else values[0]


def read_split(examples, split):
    """Rows of a split in the order of the files, as dicts."""
    folder = artifact_utils.get_split_uri([examples], split)
    rows = []
    for name in sorted(os.listdir(folder)):
        for record in tf.data.TFRecordDataset(os.path.join(folder, name), "GZIP"):
            features = tf.train.Example.FromString(record.numpy()).features.feature
            rows.append({name: _value(name, feature) for name, feature in features.items()})
    return rows


def read_rejects(rejects):
    with open(os.path.join(rejects.uri, "rejects.jsonl"), encoding="utf-8") as f:
        return [json.loads(line) for line in f]


def file_bytes(examples):
    return {
        os.path.relpath(os.path.join(folder, name), examples.uri): open(
            os.path.join(folder, name), "rb"
        ).read()
        for folder, _, names in os.walk(examples.uri)
        for name in names
    }
