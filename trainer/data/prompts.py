"""Held-out captions to draw before and after fine-tuning."""

from __future__ import annotations

import collections
import hashlib
import heapq
import re
from collections.abc import Iterable, Iterator, Sequence

import tensorflow as tf

from storage.user_errors import UserError

NUM_PROMPTS = 10
# Number of captions to consider, however large the dataset is.
_CANDIDATES = 512
_AT_A_TIME = 64
_WORD = re.compile(r"\w+")


def held_out_prompts(files: Sequence[str]) -> tuple[str, ...]:
    """Some captions from the eval split of the latents, spread over its words.

    They depend only on the captions, not on their order or their division into files.

    Args:
        files: TFRecord files (gzip) that LatentGen wrote.

    Returns:
        Up to `NUM_PROMPTS`; see `spread`.

    Raises:
        UserError: There are no captions.
    """
    candidates = heapq.nsmallest(_CANDIDATES, set(_captions(files)), key=_rank)
    if not candidates:
        raise UserError(
            "there are no held-out captions to draw: give prompts with --prompt "
            "(validation.prompts)"
        )
    return tuple(spread(candidates, NUM_PROMPTS))


def spread(captions: Iterable[str], number: int) -> list[str]:
    """Picks captions that together cover as many as possible of the words that several share.

    Greedily: the next caption is the one that adds the most new words; of equals, the first. When
    no word is left, it starts over with the remaining captions.
    """
    left = {caption: frozenset(_WORD.findall(caption.lower())) for caption in captions}
    count = collections.Counter(word for words in left.values() for word in words)
    shared = {word for word, times in count.items() if times > 1}
    chosen: list[str] = []
    covered: set[str] = set()
    while left and len(chosen) < number:
        new = {caption: len((words & shared) - covered) for caption, words in left.items()}
        best = max(new, key=lambda caption: new[caption])
        if not new[best] and covered:
            covered = set()
            continue
        chosen.append(best)
        covered |= left.pop(best) & shared
    return chosen


def _rank(caption: str) -> bytes:
    return hashlib.sha256(caption.encode()).digest()


def _captions(files: Sequence[str]) -> Iterator[str]:
    spec = {"caption": tf.io.FixedLenFeature([], tf.string)}
    records = tf.data.TFRecordDataset(sorted(files), compression_type="GZIP").batch(_AT_A_TIME)
    for batch in records:
        for caption in tf.io.parse_example(batch, spec)["caption"].numpy():
            yield " ".join(caption.decode().split())
