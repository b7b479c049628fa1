"""Records with features, as serialized `tf.train.Example`s for TFRecord files."""

from __future__ import annotations

from collections.abc import Mapping

import tensorflow as tf


def bytes_feature(value: bytes) -> tf.train.Feature:
    """A text, or the bytes of an array."""
    return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))


def int_feature(value: int) -> tf.train.Feature:
    """A whole number."""
    return tf.train.Feature(int64_list=tf.train.Int64List(value=[value]))


def float_feature(*values: float) -> tf.train.Feature:
    """Numbers."""
    return tf.train.Feature(float_list=tf.train.FloatList(value=values))


def record_of(features: Mapping[str, tf.train.Feature]) -> bytes:
    """A serialized record; the same features give the same bytes."""
    example = tf.train.Example(features=tf.train.Features(feature=dict(features)))
    record: bytes = example.SerializeToString(deterministic=True)
    return record


def bytes_of(record: bytes, name: str) -> bytes:
    """The value that was given to `bytes_feature`."""
    value: bytes = tf.train.Example.FromString(record).features.feature[name].bytes_list.value[0]
    return value
