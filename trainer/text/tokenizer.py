"""CLIP's byte-pair tokenizer; `trainer.text.graph_tokenizer` gives the same ids in a graph.

The reference is `SimpleTokenizer` of KerasCV (OpenAI's CLIP without `ftfy`), after the text was put
into its plain form (`storage.plain_text`), as CLIP's was by `ftfy`. Cleaning and splitting are
Python's here as they are there; Hugging Face's `tokenizers` merges. The merges lie beside this
file (`clip_vocabulary`): nothing is downloaded. TensorFlow is not imported, so that a process that
only counts tokens starts fast.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import regex
from tokenizers.models import BPE

from storage.plain_text import NEWER_CASE, plain
from trainer.text.new_word import FIRST_NEW_ID, STAND_IN, NewWord

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
# The one that was passed over until Unicode 13.
_FORMER_MARK = "\N{HANUNOO SIGN PAMUDPOD}"
_NO_CASE, _MARK = "\ue000", "\N{SOFT HYPHEN}"

# Ids 0..255 are the 256 bytes in this order, ids 256..511 the same bytes at the end of a word,
# and id 512 + i is merge i: the order of `bytes_to_unicode` in the reference.
_PRINTABLE = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))
BYTES = (*_PRINTABLE, *(byte for byte in range(256) if byte not in _PRINTABLE))
END_OF_WORD = 256
_FIRST_MERGE = 512
NO_MERGE = 1 << 16
_WORD_END = "</w>"
_MERGES_FILE = Path(__file__).parent / "clip_vocabulary" / "merges.txt"
# The vocabulary writes every byte as a character that can be seen.
_UNSEEN = len(BYTES) - len(_PRINTABLE)
_SEEN = dict(
    zip(BYTES, map(chr, (*_PRINTABLE, *range(len(BYTES), len(BYTES) + _UNSEEN))), strict=True)
)
_BYTE_OF = {character: byte for byte, character in _SEEN.items()}


def tokenize(
    captions: Sequence[str],
    max_length: int = MAX_LENGTH,
    padding: int = END_OF_TEXT,
    word: NewWord | None = None,
) -> np.ndarray:
    """Token ids of captions, cleaned, split and merged as the reference does.

    Args:
        captions: any text. It is put into its plain form, white space is collapsed, case is lost.
        max_length: tokens a row, start and end included.
        padding: the token behind the end token, `TextEncoderDimensions.padding` of a preset.
        word: one that the vocabulary lacks, and that is known all the same.

    Returns:
        int32 [N, max_length]: 49406, the caption's tokens, 49407, and the padding to the end of the
        row (the end token and KerasCV's padding are the same id). A longer caption is cut, and its
        row still ends in the end token.

    Raises:
        TypeError: `captions` is a single string.
        ValueError: `max_length` leaves no room for the start and end tokens.
    """
    if isinstance(captions, str):
        raise TypeError("captions is a single str; pass a list of captions.")
    check_max_length(max_length)
    rows = np.full((len(captions), max_length), padding, np.int32)
    for row, caption in zip(rows, captions, strict=True):
        row[0] = START_OF_TEXT
        ids = _encode(caption, word)[: max_length - 2]
        row[1 : 2 + len(ids)] = [*ids, END_OF_TEXT]
    return rows


def token_count(caption: str, word: NewWord | None = None) -> int:
    """The number of a caption's tokens before truncation, start and end included."""
    return len(_encode(caption, word)) + 2


def has_word(caption: str, word: NewWord) -> bool:
    """Whether a new word is in a caption."""
    return STAND_IN in word.marked(_clean(caption))


def new_word(token: str, initial: str, vectors: int) -> NewWord:
    """A new word.

    Args:
        token: How it is written; case is lost, as of any text.
        initial: A word that the vocabulary has as one token.
        vectors: How many it has.

    Raises:
        ValueError: `token` is no single word, or one of the vocabulary; or `initial` is none. The
            message begins with the name of the one that is wrong.
    """
    known = _clean(token)
    if not known or _SPACE.search(plain(token)) or _clean(known) != known:
        raise ValueError("token must be one word without white space, as <creature> is")
    if any(marker in known for marker in MARKERS):
        raise ValueError(f"token must not have {' or '.join(MARKERS)} in it")
    if len(_encode(known)) < 2:
        raise ValueError(
            f"token is a word that the vocabulary has: take one that it lacks, as <{known}> is"
        )
    ids = _encode(initial)
    if len(ids) != 1 or ids[0] >= START_OF_TEXT:
        raise ValueError(
            f"initial must be a word that is one token of the vocabulary, and is {len(ids)}: take "
            "a common one, as animal is"
        )
    return NewWord(known, _clean(initial), ids[0], vectors)


def cut_words(caption: str, max_length: int = MAX_LENGTH, word: NewWord | None = None) -> str:
    """The words of a caption that `tokenize` cuts off, wholly or in part; "" where it cuts none.

    Args:
        caption: Any text.
        max_length: As `tokenize` has it.
        word: As `tokenize` has it.

    Returns:
        The words as they are encoded, in lower case, with spaces between them.
    """
    words = _words(caption, word)
    room = max_length - 2
    for index, one in enumerate(words):
        room -= len(_ids_of(one, word))
        if room < 0:
            cut = " ".join(words[index:])
            return cut.replace(STAND_IN, word.token) if word else cut
    return ""


def caption_of(tokens: np.ndarray, word: NewWord | None = None) -> str:
    """A caption with these tokens: lower case, with spaces between words and signs.

    Args:
        tokens: A row of `tokenize`, int [77].
        word: As `tokenize` has it; without it, new tokens are left out.
    """
    inner = itertools.takewhile(lambda token: token != END_OF_TEXT, map(int, tokens[1:]))
    new = "" if word is None else f"{_seen(word.token)}{_WORD_END}"

    def text_of(token: int) -> str:
        if token < FIRST_NEW_ID:
            return _tokens()[token]
        return new if token == FIRST_NEW_ID else ""

    words = "".join(map(text_of, inner)).split(_WORD_END)
    texts = (bytes(map(_BYTE_OF.__getitem__, word)).decode(errors="replace") for word in words)
    return " ".join(texts).strip()


def vocabulary_and_merges() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """The vocabulary as the files of transformers' `CLIPTokenizer` have it.

    Returns:
        Id of every token, and the pairs that are merged, in their order. Bytes are written as
        characters that can be seen, and `</w>` is the end of a word.
    """
    tokens = [*_SEEN.values(), *(f"{character}{_WORD_END}" for character in _SEEN.values())]
    _, *lines = _MERGES_FILE.read_text(encoding="utf-8").splitlines()
    pairs = [(left, right) for left, _, right in (line.partition(" ") for line in lines)]
    tokens += [left + right for left, right in pairs]
    return {token: index for index, token in enumerate(tokens)} | MARKERS, pairs


@functools.cache
def merges() -> Mapping[tuple[int, int], int]:
    """The vocabulary's merges: (left id, right id) -> merged id, in the order of their ids."""
    ids, pairs = vocabulary_and_merges()
    return {
        (ids[left], ids[right]): _FIRST_MERGE + index for index, (left, right) in enumerate(pairs)
    }


def check_max_length(max_length: int) -> None:
    """Raises ValueError where there is no room for the start and end tokens."""
    if max_length < 2:
        raise ValueError(
            f"max_length is {max_length}; it must be at least 2, for the start and end tokens."
        )


def _encode(caption: str, word: NewWord | None = None) -> list[int]:
    ids: list[int] = []
    for one in _words(caption, word):
        ids.extend(_ids_of(one, word))
    return ids


def _words(caption: str, word: NewWord | None) -> list[str]:
    text = _clean(caption)
    words: list[str] = _WORD.findall(text if word is None else word.marked(text))
    return words


def _ids_of(one: str, word: NewWord | None) -> tuple[int, ...]:
    return word.ids if word is not None and one == STAND_IN else _encode_word(one)


def _clean(caption: str) -> str:
    return _lower(_SPACE.sub(" ", plain(caption).strip()).strip())


def _lower(text: str) -> str:
    """`text.lower()` by Unicode 13, as Python 3.10's is, and that of TensorFlow 2.16 to 2.21.

    A caption's ids must not depend on the Python that found them.
    """
    if text.isascii() or not (_FORMER_MARK in text or NEWER_CASE.search(text)):
        return text.lower()
    # Its lower case is two characters; all others keep their place.
    text = text.replace("\N{LATIN CAPITAL LETTER I WITH DOT ABOVE}", "i\N{COMBINING DOT ABOVE}")
    stand_ins = NEWER_CASE.sub(_NO_CASE, text).replace(_FORMER_MARK, _MARK)
    lowered = stand_ins.lower()
    return "".join(
        old if old != stand_in else new
        for old, stand_in, new in zip(text, stand_ins, lowered, strict=True)
    )


# Captions repeat their words.
@functools.lru_cache(maxsize=1 << 16)
def _encode_word(word: str) -> tuple[int, ...]:
    if word in MARKERS:
        return (MARKERS[word],)
    return tuple(token.id for token in _model().tokenize(_seen(word)))


def _seen(word: str) -> str:
    return "".join(map(_SEEN.__getitem__, word.encode("utf-8")))


@functools.cache
def _tokens() -> list[str]:
    return list(vocabulary_and_merges()[0])


@functools.cache
def _model() -> BPE:
    vocabulary, pairs = vocabulary_and_merges()
    return BPE(vocabulary, pairs, end_of_word_suffix=_WORD_END)
