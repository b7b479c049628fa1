"""How often each word, or tag, is in the captions that are trained on; beside the latents."""

from __future__ import annotations

import collections
import json
import re
from collections.abc import Iterable, Mapping

from storage import filesystem

NAME = "captions.json"

# Tools show a few dozen, and read all of them with every look at a file.
_MOST = 10_000
# Captions are tags where what stands between commas is no longer than this, on average.
_WORDS_OF_A_TAG = 3
_WORD = re.compile(r"\w+(?:['-]\w+)*")


def count_captions(captions: Iterable[str]) -> dict[str, int]:
    """Counts as sd-scripts does, in lower case: what stands between commas.

    Of captions that are sentences that would be the captions themselves: words are counted there.

    Returns:
        From a tag or word to in how many places it stands, the most frequent first.
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
    """Writes what `count_captions` returned beside the latents in `uri`."""
    contents = json.dumps(counts, ensure_ascii=False, indent=0).encode()
    filesystem.write_bytes(filesystem.join(uri, NAME), contents)


def read_counts(uri: str) -> dict[str, int]:
    """Reads what `write_counts` wrote; raises an OSError where there is nothing."""
    counts: dict[str, int] = json.loads(filesystem.read_bytes(filesystem.join(uri, NAME)))
    return counts
