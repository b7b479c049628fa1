"""How often each word or tag occurs in the training captions; stored next to the latents."""

from __future__ import annotations

import collections
import json
import re
from collections.abc import Iterable, Mapping

from storage import filesystem

NAME = "captions.json"

# Tools show a few dozen, but read all of them whenever they open a file.
_MOST = 10_000
# Captions are tags if the text between commas has no more words than this, on average.
_WORDS_OF_A_TAG = 3
_WORD = re.compile(r"\w+(?:['-]\w+)*")


def count_captions(captions: Iterable[str]) -> dict[str, int]:
    """Counts the texts between commas, in lower case, as sd-scripts does.

    For captions that are sentences, those would be the captions themselves, so words are counted.

    Returns:
        From a tag or word to its number of occurrences, the most frequent first.
    """
    tags: collections.Counter[str] = collections.Counter()
    words: collections.Counter[str] = collections.Counter()
    for caption in captions:
        lower = caption.lower()
        tags.update(tag for tag in map(str.strip, lower.split(",")) if tag)
        words.update(_WORD.findall(lower))
    are_tags = words.total() <= _WORDS_OF_A_TAG * tags.total()
    counts = tags if are_tags else words
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:_MOST])


def write_counts(uri: str, counts: Mapping[str, int]) -> None:
    """Writes the result of `count_captions` next to the latents in `uri`."""
    contents = json.dumps(counts, ensure_ascii=False, indent=0).encode()
    filesystem.write_bytes(filesystem.join(uri, NAME), contents)


def read_counts(uri: str) -> dict[str, int]:
    """Reads what `write_counts` wrote; raises an OSError if there is nothing."""
    counts: dict[str, int] = json.loads(filesystem.read_bytes(filesystem.join(uri, NAME)))
    return counts
