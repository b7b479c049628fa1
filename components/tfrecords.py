"""TFRecord files that are whole or absent, and the same byte for byte from the same records."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterable, Iterator, Sequence

import tensorflow as tf
from tfx import types
from tfx.components.util import examples_utils
from tfx.proto import example_gen_pb2
from tfx.types import artifact_utils

# Stored, in gzip's frame that TFX expects: pictures and float16 noise hardly get smaller (by 3 %),
# and compressing took longer than decoding the pictures.
_COMPRESSION_LEVEL = 0
# Asking TensorFlow for the next record costs as much as a small one; a picture may be large.
_READ_AT_ONCE = 8


def describe_examples(
    examples: types.Artifact, splits: Sequence[str], *, span: int = 0, version: int = 0
) -> None:
    """Sets what TFX's own ExampleGen sets, for the components that read gzip tf.Examples.

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
    """Writes a gzip TFRecord file under a temporary name and renames it when it is whole.

    Args:
        path: What it is called in the end; its folder must exist. A file of that name, from an
            earlier attempt at the same bundle, is replaced.
        records: Serialized records, in their order.
        temporary_folder: Existing folder on the same file system, where no reader looks.

    Returns:
        How many records there were.
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
    """Reads the records of a gzip TFRecord file in their order."""
    records = tf.data.TFRecordDataset(path, compression_type="GZIP").batch(_READ_AT_ONCE)
    for batch in records.as_numpy_iterator():
        yield from batch
