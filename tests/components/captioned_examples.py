"""Small examples as CaptionExampleGen writes them, with TFDV's real statistics and schema."""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import tensorflow as tf
import tensorflow_data_validation as tfdv
from PIL import Image
from tfx.components.schema_gen import executor as schema_gen
from tfx.components.statistics_gen import executor as statistics_gen
from tfx.components.util import examples_utils
from tfx.proto import example_gen_pb2
from tfx.types import Artifact, artifact_utils, standard_artifacts

from components.tfrecords import write_shard
from trainer.text.tokenizer import token_count


def picture(width: int, height: int, colour: tuple[int, int, int], file_format: str) -> bytes:
    encoded = io.BytesIO()
    Image.new("RGB", (width, height), colour).save(encoded, format=file_format)
    return encoded.getvalue()


def example(
    caption: str,
    *,
    width: int = 64,
    height: int = 64,
    colour: tuple[int, int, int] = (200, 100, 50),
    file_format: str = "JPEG",
) -> bytes:
    encoded = picture(width, height, colour, file_format)
    text = caption.encode()
    values: dict[str, list[bytes] | list[int] | list[float]] = {
        "id": [hashlib.sha256(encoded + text).hexdigest().encode()],
        "image/id": [hashlib.sha256(encoded).hexdigest().encode()],
        "image/encoded": [encoded],
        "image/format": [file_format.lower().encode()],
        "image/height": [height],
        "image/width": [width],
        "image/aspect_ratio": [width / height],
        "image/brightness": [float(np.mean(colour)) / 255],
        "caption": [text],
        "caption/num_tokens": [token_count(caption)],
        "caption/words": [word.encode() for word in re.findall(r"\w+", caption.lower())],
    }
    return tf.train.Example(
        features=tf.train.Features(feature={name: _feature(v) for name, v in values.items()})
    ).SerializeToString()


def examples_artifact(folder: Path, splits: Mapping[str, Iterable[bytes]]) -> Artifact:
    artifact = standard_artifacts.Examples()
    artifact.uri = str(folder)
    artifact.split_names = artifact_utils.encode_split_names(list(splits))
    examples_utils.set_file_format(artifact, "tfrecords_gzip")
    examples_utils.set_payload_format(artifact, example_gen_pb2.FORMAT_TF_EXAMPLE)
    for split, records in splits.items():
        split_folder = Path(artifact_utils.get_split_uri([artifact], split))
        split_folder.mkdir(parents=True)
        write_shard(str(split_folder / "examples-00000-of-00001.gz"), records, str(folder))
    return artifact


def statistics_artifact(folder: Path, examples: Artifact) -> Artifact:
    artifact = standard_artifacts.ExampleStatistics()
    artifact.uri = str(folder)
    options = tfdv.StatsOptions(enable_semantic_domain_stats=True)
    statistics_gen.Executor().Do(
        {"examples": [examples]},
        {"statistics": [artifact]},
        {"stats_options_json": options.to_json(), "exclude_splits": "[]"},
    )
    return artifact


def schema_artifact(folder: Path, statistics: Artifact) -> Artifact:
    artifact = standard_artifacts.Schema()
    artifact.uri = str(folder)
    schema_gen.Executor().Do(
        {"statistics": [statistics]},
        {"schema": [artifact]},
        {"infer_feature_shape": 1, "exclude_splits": json.dumps([])},
    )
    return artifact


def _feature(values: list[bytes] | list[int] | list[float]) -> tf.train.Feature:
    if values and isinstance(values[0], int):
        return tf.train.Feature(int64_list=tf.train.Int64List(value=values))
    if values and isinstance(values[0], float):
        return tf.train.Feature(float_list=tf.train.FloatList(value=values))
    return tf.train.Feature(bytes_list=tf.train.BytesList(value=values))
