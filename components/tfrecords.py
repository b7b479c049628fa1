"""TFRecord files that are complete or absent; the same records give the same bytes."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterable, Iterator, Sequence

import tensorflow as tf
from tfx import types
from tfx.components.util import examples_utils
from tfx.proto import example_gen_pb2
from tfx.types import artifact_utils

# Stored uncompressed in the gzip frame that TFX expects: pictures and float16 noise shrink by only
# 3 %, and compressing them took longer than decoding the pictures.
_COMPRESSION_LEVEL = 0
# Fetching a record from TensorFlow costs as much as reading a small one; a picture may be large.
_READ_AT_ONCE = 8


def describe_examples(
    examples: types.Artifact, splits: Sequence[str], *, span: int = 0, version: int = 0
) -> None:
    """Sets the properties that TFX's ExampleGen sets, for components that read gzip tf.Examples.

    Args:
        examples: An `Examples` artifact.
        splits: Its splits.
        span: Its span.
        version: Its version.
    """
    examples.split_names = artifact_utils.encode_split_names(list(splits))
    examples.span = span
    examples.version = version
    examples_utils.set_file_format(examples, "tfrecords_gzip")
    tf_example = example_gen_pb2.FORMAT_TF_EXAMPLE  # type: ignore[attr-defined]
    examples_utils.set_payload_format(examples, tf_example)


def shard_name(prefix: str, index: int, count: int) -> str:
    """The usual file name of one of `count` shards, such as `examples-00000-of-00002.gz`."""
    return f"{prefix}-{index:05d}-of-{count:05d}.gz"


def write_shard(path: str, records: Iterable[bytes], temporary_folder: str) -> int:
    """Writes a gzip TFRecord file under a temporary name and renames it when it is complete.

    Args:
        path: Final path of the file; its folder must exist. A file of that name, left by an earlier
            attempt at the same bundle, is replaced.
        records: Serialized records, in order.
        temporary_folder: Existing folder on the same file system, where no reader looks.

    Returns:
        The number of records.
    """
    unfinished = os.path.join(temporary_folder, uuid.uuid4().hex)
    options = tf.io.TFRecordOptions(compression_type="GZIP", compression_level=_COMPRESSION_LEVEL)
    count = 0
    with tf.io.TFRecordWriter(unfinished, options) as writer:
        for record in records:
            writer.write(record)
            count += 1
    tf.io.gfile.rename(unfinished, path, overwrite=True)
    return count


def read_shard(path: str) -> Iterator[bytes]:
    """Reads the records of a gzip TFRecord file in order."""
    records = tf.data.TFRecordDataset(path, compression_type="GZIP").batch(_READ_AT_ONCE)
    for batch in records.as_numpy_iterator():
        yield from batch
