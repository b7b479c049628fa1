"""CLIP's byte-pair tokenizer; `trainer.text.graph_tokenizer` gives the same ids in a graph.

The reference is KerasCV's `SimpleTokenizer` (OpenAI's CLIP without `ftfy`), applied to the plain
form of the text (`storage.plain_text`), just as CLIP applied `ftfy`. Cleaning and splitting use
Python, as in the reference; Hugging Face's `tokenizers` merges. The merges are next to this file
(`clip_vocabulary`): nothing is downloaded. TensorFlow is not imported, so that a process that only
counts tokens starts fast.
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
# The text is lower-cased before it is split, so case only matters for U+017F, the long s:
# lower-casing leaves it, but it folds to "s", and the reference treats it as an "s" after "'".
LETTER, NUMBER, OTHER = r"[\p{L}]", r"[\p{N}]", r"[^\s\p{L}\p{N}]"
_WORD = regex.compile(
    "|".join([*map(regex.escape, MARKERS), CONTRACTIONS, f"{LETTER}+", NUMBER, f"{OTHER}+"]),
    regex.IGNORECASE,
)
_SPACE = regex.compile(r"\s+")
# The mark that was skipped until Unicode 13.
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
# The vocabulary writes every byte as a visible character.
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
        captions: any texts. Their plain form is used, white space is collapsed, case is lost.
        max_length: tokens per row, including start and end.
        padding: the token after the end token, `TextEncoderDimensions.padding` of a preset.
        word: an additional word that the vocabulary lacks.

    Returns:
        int32 [N, max_length]: 49406, the tokens of the caption, 49407, and the padding to the end
        of the row (the end token and KerasCV's padding are the same id). A longer caption is cut,
        and its row still ends in the end token.

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
    """The number of tokens of a caption before truncation, including start and end."""
    return len(_encode(caption, word)) + 2


def has_word(caption: str, word: NewWord) -> bool:
    """Whether a new word is in a caption."""
    return STAND_IN in word.marked(_clean(caption))


def new_word(token: str, initial: str, vectors: int) -> NewWord:
    """Makes a new word.

    Args:
        token: Its spelling; case is lost, as in any text.
        initial: A word that is one token of the vocabulary.
        vectors: Its number of vectors.

    Raises:
        ValueError: `token` is not a single word, or is in the vocabulary; or `initial` is not one
            token. The message begins with the name of the wrong argument.
    """
    known = _clean(token)
    if not known or _SPACE.search(plain(token)) or _clean(known) != known:
        raise ValueError("token must be one word without white space, such as <creature>")
    if any(marker in known for marker in MARKERS):
        raise ValueError(f"token must not contain {' or '.join(MARKERS)}")
    if len(_encode(known)) < 2:
        raise ValueError(
            f"token is already in the vocabulary: choose a word that is not, such as <{known}>"
        )
    ids = _encode(initial)
    if len(ids) != 1 or ids[0] >= START_OF_TEXT:
        raise ValueError(
            f"initial must be a word that is one token of the vocabulary, but it is {len(ids)}: "
            "choose a common word, such as animal"
        )
    return NewWord(known, _clean(initial), ids[0], vectors)


def cut_words(caption: str, max_length: int = MAX_LENGTH, word: NewWord | None = None) -> str:
    """The words of a caption that `tokenize` cuts off, wholly or in part; "" if it cuts none.

    Args:
        caption: Any text.
        max_length: As in `tokenize`.
        word: As in `tokenize`.

    Returns:
        The words in their encoded form, in lower case, with spaces between them.
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
        word: As in `tokenize`; without it, new tokens are left out.
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
    """The vocabulary in the form of the files of transformers' `CLIPTokenizer`.

    Returns:
        The id of every token, and the pairs that are merged, in order. Bytes are written as visible
        characters, and `</w>` is the end of a word.
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
    """Raises ValueError if there is no room for the start and end tokens."""
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
    """`text.lower()` by Unicode 13, as in Python 3.10 and in TensorFlow 2.16 to 2.21.

    The ids of a caption must not depend on the Python version.
    """
    if text.isascii() or not (_FORMER_MARK in text or NEWER_CASE.search(text)):
        return text.lower()
    # Its lower case is two characters; all others keep their position.
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
