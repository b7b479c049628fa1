"""CLIP's byte-pair tokenizer; `trainer.graph_tokenizer` gives the same ids in a TensorFlow graph.

The reference is `SimpleTokenizer` of KerasCV (OpenAI's CLIP without `ftfy`). The vocabulary comes
out of the library `instant_clip_tokenizer`, which has it compiled in: nothing is downloaded.
TensorFlow is not imported, so that a process that only counts tokens starts fast.
"""

from __future__ import annotations

import functools
import hashlib
import html
import itertools
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import regex
from instant_clip_tokenizer import Tokenizer

START_OF_TEXT = 49406
END_OF_TEXT = 49407
MAX_LENGTH = 77

MARKERS = {"<|startoftext|>": START_OF_TEXT, "<|endoftext|>": END_OF_TEXT}
CONTRACTIONS = "'s|'t|'re|'ve|'m|'ll|'d"
# The text is lower-cased before it is split, so case only matters for U+017F, the long s, which
# no lower-casing touches but which folds to "s": the reference takes it for one, after "'".
LETTER, NUMBER, OTHER = r"[\p{L}]", r"[\p{N}]", r"[^\s\p{L}\p{N}]"
_WORD = regex.compile(
    "|".join([*map(regex.escape, MARKERS), CONTRACTIONS, f"{LETTER}+", NUMBER, f"{OTHER}+"]),
    regex.IGNORECASE,
)
_SPACE = regex.compile(r"\s+")
_SURROGATE = re.compile("[\ud800-\udfff]")
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"

# Ids 0..255 are the 256 bytes in this order, ids 256..511 the same bytes at the end of a word,
# and id 512 + i is merge i: the order of `bytes_to_unicode` in the reference.
_PRINTABLE = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))
BYTES = (*_PRINTABLE, *(byte for byte in range(256) if byte not in _PRINTABLE))
END_OF_WORD = 256
_FIRST_MERGE = 512
NO_MERGE = 1 << 16
# Of the merges as little-endian uint16 pairs; equal to what OpenAI's bpe_simple_vocab_16e6.txt
# gives.
_MERGES_SHA256 = "88d5677a60bb2d33e2c2b0e57fcd83b2b64fe832ff26e0395aff9a749db6f546"


class _Token(NamedTuple):
    text: bytes
    ends_word: bool


def tokenize(captions: Sequence[str], max_length: int = MAX_LENGTH) -> np.ndarray:
    """Token ids of captions, cleaned, split and merged as the reference does.

    Args:
        captions: any text. HTML entities are unescaped twice, white space is collapsed, case is
            lost; a lone surrogate counts as U+FFFD.
        max_length: tokens a row, start and end included.

    Returns:
        int32 [N, max_length]: 49406, the caption's tokens, and 49407 to the end of the row (the
        end token and KerasCV's padding are the same id). A longer caption is cut, and its row
        still ends in the end token.

    Raises:
        TypeError: `captions` is a single string.
        ValueError: `max_length` leaves no room for the start and end tokens.
    """
    if isinstance(captions, str):
        raise TypeError("captions is a single str; pass a list of captions.")
    check_max_length(max_length)
    rows = np.full((len(captions), max_length), END_OF_TEXT, np.int32)
    for row, caption in zip(rows, captions, strict=True):
        row[0] = START_OF_TEXT
        ids = _encode(caption)[: max_length - 2]
        row[1 : 1 + len(ids)] = ids
    return rows


def token_count(caption: str) -> int:
    """The number of a caption's tokens before truncation, start and end included."""
    return len(_encode(caption)) + 2


def caption_of(tokens: np.ndarray) -> str:
    """A caption with these tokens: lower case, with spaces between words and signs.

    Args:
        tokens: A row of `tokenize`, int [77].
    """
    inner = itertools.takewhile(lambda token: token != END_OF_TEXT, map(int, tokens[1:]))
    return _library().decode(list(inner)).strip()


def vocabulary_and_merges() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """The vocabulary as the files of transformers' `CLIPTokenizer` have it.

    Returns:
        Id of every token, and the pairs that are merged, in their order. Bytes are written as
        characters that can be seen, and `</w>` is the end of a word.
    """
    unseen = 256 - len(_PRINTABLE)
    characters = [*map(chr, _PRINTABLE), *(chr(256 + index) for index in range(unseen))]
    tokens = [*characters, *(f"{character}</w>" for character in characters)]
    pairs = []
    for left, right in merges():
        pairs.append((tokens[left], tokens[right]))
        tokens.append(tokens[left] + tokens[right])
    return {token: index for index, token in enumerate(tokens)} | MARKERS, pairs


def check_max_length(max_length: int) -> None:
    """Raises ValueError where there is no room for the start and end tokens."""
    if max_length < 2:
        raise ValueError(
            f"max_length is {max_length}; it must be at least 2, for the start and end tokens."
        )


def _encode(caption: str) -> list[int]:
    ids: list[int] = []
    for word in _WORD.findall(_clean(caption)):
        ids.extend(_encode_word(word))
    return ids


def _clean(caption: str) -> str:
    text = _SURROGATE.sub(_REPLACEMENT, caption)
    text = _unescape(_unescape(text))
    return _SPACE.sub(" ", text.strip()).strip().lower()


def _unescape(text: str) -> str:
    if "&" not in text:
        return text
    # html.unescape reads numbers with int(), which refuses more than 4300 digits. More than seven
    # significant ones are beyond Unicode anyway.
    text = re.sub("&#0+(?=[0-9])", "&#", text)
    text = re.sub("&#[0-9]{8,};?", _REPLACEMENT, text)
    return html.unescape(text)


# Captions repeat their words.
@functools.lru_cache(maxsize=1 << 16)
def _encode_word(word: str) -> tuple[int, ...]:
    if word in MARKERS:
        return (MARKERS[word],)
    library = _library()
    ids: list[int] = library.encode(word)
    if library.decode(ids) == f"{word} ":
        return tuple(ids)
    # The library lower-cases and splits its input again, by a newer Unicode than Python's and
    # without folding the long s. Such words, and they are very few, go through the same merges
    # here.
    symbols = [BYTES.index(byte) for byte in word.encode("utf-8")]
    symbols[-1] += END_OF_WORD
    return tuple(_apply_merges(symbols, merges()))


@functools.cache
def _library() -> Tokenizer:
    return Tokenizer()


def _apply_merges(symbols: list[int], merges: Mapping[tuple[int, int], int]) -> list[int]:
    """Merges the lowest-numbered pair, leftmost first, until no pair is left."""
    symbols = list(symbols)
    while len(symbols) > 1:
        merged = [merges.get(pair, NO_MERGE) for pair in itertools.pairwise(symbols)]
        lowest = min(merged)
        if lowest == NO_MERGE:
            break
        position = merged.index(lowest)
        symbols[position : position + 2] = [lowest]
    return symbols


@functools.cache
def merges() -> Mapping[tuple[int, int], int]:
    """The vocabulary's merges: (left id, right id) -> merged id, in the order of their ids.

    The library tells what each id stands for but not which pair made it. A token's pair is what
    its bytes come to when only the merges before it are applied.
    """
    ids = {_Token(bytes([byte]), False): index for index, byte in enumerate(BYTES)}
    ids |= {_Token(token.text, True): index + END_OF_WORD for token, index in ids.items()}
    found: dict[tuple[int, int], int] = {}
    for merged in range(_FIRST_MERGE, START_OF_TEXT):
        text, ends_word = token = _read_token(merged)
        pairs = []
        for cut in range(1, len(text)):
            left = ids.get(_Token(text[:cut], False))
            right = ids.get(_Token(text[cut:], ends_word))
            if left is not None and right is not None:
                pairs.append((left, right))
        if len(pairs) != 1:
            symbols = [ids[_Token(bytes([byte]), False)] for byte in text]
            symbols[-1] += END_OF_WORD * ends_word
            pairs = list(itertools.pairwise(_apply_merges(symbols, found)))
        found[pairs[0]] = merged
        ids[token] = merged
    if hashlib.sha256(np.array(list(found), "<u2").tobytes()).hexdigest() != _MERGES_SHA256:
        raise RuntimeError(
            "The vocabulary inside instant_clip_tokenizer is not CLIP's; install the version that "
            "the lock file names."
        )
    return found


def _read_token(token: int) -> _Token:
    """The bytes of a token, which may begin or end inside of a UTF-8 character.

    The library decodes to text and writes U+FFFD for what is no character, so such a token is
    decoded between bytes that complete its first or last character.
    """
    library = _library()
    for before in (b"", b"\xc3", b"\xe1", b"\xe1\x80", b"\xf1", b"\xf1\x80", b"\xf1\x80\x80"):
        for after in (b"", b"\x90", b"\x90\x80", b"\x90\x80\x80", b"\xa0\x80"):
            text = library.decode([*map(BYTES.index, before), token, *map(BYTES.index, after)])
            if _REPLACEMENT not in text:
                encoded = text.encode("utf-8")
                return _split_end_of_word(encoded[len(before) : len(encoded) - len(after)])
    # Two tokens of the vocabulary are U+FFFD itself.
    return _split_end_of_word(library.decode([token]).encode("utf-8"))


def _split_end_of_word(text: bytes) -> _Token:
    # The library writes the end of a word as a space, which no token contains.
    return _Token(text.removesuffix(b" "), text.endswith(b" "))
