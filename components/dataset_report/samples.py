"""Sample pictures and cut captions from the examples, which are read as a stream."""

from __future__ import annotations

import bisect
import dataclasses
import functools
import re
from collections.abc import Iterable

import tensorflow as tf
from PIL import Image

from components.dataset_report.statistics import TOKENS
from components.pages.page import data_uri
from storage.images import decode_image
from trainer.text.new_word import NewWord
from trainer.text.tokenizer import MAX_LENGTH, token_count

_THUMBNAIL_SIZE = 160
_JPEG_QUALITY = 80
# 77 tokens of real text are much shorter; this bounds the work on anything else.
_SEARCHED = 4000


@dataclasses.dataclass(frozen=True)
class Sample:
    """The picture and caption of one row.

    Attributes:
        split: Name of the split.
        caption: The whole caption.
        picture: A thumbnail of the picture, as a data URI.
        width: Width of the thumbnail, in pixels.
        height: Height of the thumbnail, in pixels.
        size: Width and height of the picture itself.
        id: The example's content hash.
    """

    split: str
    caption: str
    picture: str
    width: int
    height: int
    size: tuple[int, int]
    id: str


@dataclasses.dataclass(frozen=True)
class CutCaption:
    """A caption that is too long for the text encoder."""

    split: str
    num_tokens: int
    kept: str
    cut: str


def collect(
    split: str,
    records: Iterable[bytes],
    num_samples: int,
    num_cut: int,
    word: NewWord | None = None,
) -> tuple[list[Sample], list[CutCaption]]:
    """Takes the first rows and the first rows with cut captions.

    The records are in the order of a hash of their content, so the first ones are as good a sample
    as any, and the same in every run.

    Args:
        split: Name of the split.
        records: Serialized examples; only as many as needed are read.
        num_samples: Number of rows to show.
        num_cut: Number of cut captions to show; 0 to look for none.
        word: New word that captions may contain and that the vocabulary lacks.
    """
    samples: list[Sample] = []
    cut: list[CutCaption] = []
    for record in records:
        features = tf.train.Example.FromString(record).features.feature
        if len(samples) < num_samples:
            samples.append(_sample(split, features))
        if len(cut) < num_cut and TOKENS in features:
            num_tokens = features[TOKENS].int64_list.value[0]
            if num_tokens > MAX_LENGTH:
                kept, rest = split_caption(_caption(features), word)
                cut.append(CutCaption(split, num_tokens, kept, rest))
        if len(samples) >= num_samples and len(cut) >= num_cut:
            break
    return samples, cut


def split_caption(caption: str, word: NewWord | None = None) -> tuple[str, str]:
    """Splits a caption where the text encoder stops reading.

    A word that is only partly read is split where its beginning has the number of tokens that are
    read. This is exact to a character or two, because tokens need not end where characters do.
    """
    count = functools.partial(token_count, word=word)
    searched = caption[:_SEARCHED]
    # Tokens never span white space, so the count grows with every word, but not with every letter:
    # "elephan" has more tokens than "elephant".
    ends = [match.end() for match in re.finditer(r"\S+", searched)]
    words = bisect.bisect_right(ends, MAX_LENGTH, key=lambda end: count(searched[:end]))
    if words == len(ends):
        return searched, caption[len(searched) :]
    start = ends[words - 1] if words else 0
    room = MAX_LENGTH - count(searched[:start]) + count("")
    last = searched[start : ends[words]]
    letters = bisect.bisect_right(
        range(len(last) + 1), room, key=lambda length: count(last[:length])
    )
    end = len(searched[: start + max(letters - 1, 0)].rstrip())
    return caption[:end], caption[end:]


def _sample(split: str, features: tf.train.Features) -> Sample:
    image = decode_image(features["image/encoded"].bytes_list.value[0])
    size = image.size
    image.thumbnail((_THUMBNAIL_SIZE, _THUMBNAIL_SIZE), Image.Resampling.LANCZOS)
    return Sample(
        split,
        _caption(features),
        data_uri(image, "JPEG", quality=_JPEG_QUALITY),
        image.width,
        image.height,
        size,
        features["id"].bytes_list.value[0].decode(),
    )


def _caption(features: tf.train.Features) -> str:
    caption: str = features["caption"].bytes_list.value[0].decode("utf-8", "replace")
    return caption
