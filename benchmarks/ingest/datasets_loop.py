"""The plain loop: `datasets` reads, `tf.io.TFRecordWriter` writes; prints one line of JSON.

It runs in its own environment, because `datasets` cannot be imported together with this Beam, and
so it imports only one module of the project, the one that prints. It checks no rows, and has no
splits and no duplicates; like CaptionExampleGen it decodes each picture (`--pictures decoded`), or
not even that (`--pictures bytes`).
"""

from __future__ import annotations

import argparse
import glob
import io
import os
import tempfile
import time

import datasets
import tensorflow as tf
from PIL import Image

from benchmarks.ingest.measured import print_result


def main() -> None:
    """The command line: dataset folder, --pictures."""
    parser = argparse.ArgumentParser()
    parser.add_argument("dataset")
    parser.add_argument("--pictures", choices=("decoded", "bytes"), default="decoded")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=os.path.dirname(arguments.dataset)) as folder:
        since = time.monotonic()
        # Streaming spares the library a copy of the whole dataset in its cache.
        rows = datasets.load_dataset(
            "parquet",
            data_files=sorted(glob.glob(os.path.join(arguments.dataset, "*.parquet"))),
            split="train",
            streaming=True,
        ).cast_column("image", datasets.Image(decode=False))
        count = 0
        with tf.io.TFRecordWriter(os.path.join(folder, "examples.tfrecord")) as writer:
            for row in rows:
                encoded = row["image"]["bytes"]
                features = {
                    "image/encoded": _bytes(encoded),
                    "caption": _bytes(row["text"].encode()),
                }
                if arguments.pictures == "decoded":
                    image = Image.open(io.BytesIO(encoded))
                    image.load()
                    features["image/width"] = _int(image.width)
                    features["image/height"] = _int(image.height)
                example = tf.train.Example(features=tf.train.Features(feature=features))
                writer.write(example.SerializeToString())
                count += 1
        seconds = time.monotonic() - since
    print_result(count, seconds)


def _bytes(value: bytes) -> tf.train.Feature:
    return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))


def _int(value: int) -> tf.train.Feature:
    return tf.train.Feature(int64_list=tf.train.Int64List(value=[value]))


if __name__ == "__main__":
    main()
