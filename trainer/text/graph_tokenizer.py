"""`trainer.text.tokenizer` as a TensorFlow graph, with the same ids."""

from __future__ import annotations

import html
import re
import sys
from html.entities import html5

import numpy as np
import regex
import tensorflow as tf

from trainer.text.graph_plain import GraphPlain
from trainer.text.new_word import FIRST_NEW_ID, STAND_IN, NewWord
from trainer.text.tokenizer import (
    BYTES,
    CONTRACTIONS,
    END_OF_TEXT,
    END_OF_WORD,
    LETTER,
    MARKERS,
    MAX_LENGTH,
    NO_MERGE,
    NUMBER,
    OTHER,
    START_OF_TEXT,
    check_max_length,
    merges,
)

# Value of the string tables for a missing key; not valid UTF-8.
_UNKNOWN = b"\xff"
_BEYOND_UNICODE = sys.maxunicode + 1


class GraphTokenizer(tf.Module):
    """`tokenize` as core TensorFlow operations, to be saved in the signature of a SavedModel.

    Gives the same ids as `tokenize` for every valid UTF-8 string, with all named and numeric HTML
    entities, using the Unicode data that Python and the `regex` package had when the object was
    made. Bytes that are not UTF-8 count as U+FFFD. ICU does the lower-casing, by Unicode 13. Like
    Python's, it is the full mapping with the final sigma, and it does not depend on the locale of
    the server for English, Turkish and Azeri letters.
    """

    def __init__(
        self,
        max_length: int = MAX_LENGTH,
        padding: int = END_OF_TEXT,
        word: NewWord | None = None,
    ) -> None:
        """Reads the vocabulary: about a third of a second for the first instance in a process.

        Args:
            max_length: tokens per row, including start and end.
            padding: the token after the end token, as in `tokenize`.
            word: a word that the vocabulary lacks, as in `tokenize`.

        Raises:
            ValueError: `max_length` leaves no room for the start and end tokens.
        """
        super().__init__()
        check_max_length(max_length)
        self._max_length, self._padding, self._word = max_length, padding, word
        self._merges = _merge_table()
        self._entities = tf.lookup.StaticHashTable(
            tf.lookup.KeyValueTensorInitializer(list(html5), list(html5.values())), _UNKNOWN
        )
        self._irregular_numbers = _irregular_number_table()
        self._plain = GraphPlain()
        self._clean_rewrites = _clean_rewrites()
        self._split_rewrites = (*_word_rewrites(word), *_split_rewrites())
        texts = tf.TensorSpec([None], tf.string, name="text")
        # A separate function, so that using it twice traces and stores it once.
        self._unescape = tf.function(self._unescape_graph, input_signature=[texts], autograph=False)
        self._tokenize = tf.function(self._tokenize_graph, input_signature=[texts], autograph=False)

    def __call__(self, text: tf.Tensor) -> tf.Tensor:
        """Token ids, int32 [B, max_length], of `text`, string [B]; B may be 0."""
        return self._tokenize(text)[0]

    def cut_words(self, text: tf.Tensor) -> tf.Tensor:
        """The words of `text`, string [B], that do not fit, wholly or in part: string [B].

        Gives the same words as `trainer.text.tokenizer.cut_words`.
        """
        return self._tokenize(text)[1]

    def _tokenize_graph(self, text: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        room = self._max_length - 2
        all_words = self._split(self._clean(text))
        # A word has at least one token, so later words cannot fit.
        words = all_words[:, :room]
        ids, word_of_id = self._merge_words(words.values)
        row_of_id = tf.gather(words.value_rowids(), word_of_id)
        rows = tf.RaggedTensor.from_value_rowids(ids, row_of_id, nrows=words.nrows())
        body = rows[:, :room].to_tensor(END_OF_TEXT, shape=[None, room])
        ends = tf.fill([tf.shape(body)[0], 1], END_OF_TEXT)
        tokens = tf.concat([tf.fill(tf.shape(ends), START_OF_TEXT), body, ends], axis=1)
        if self._padding != END_OF_TEXT:
            behind = tf.range(room + 2, dtype=tf.int64) > rows.row_lengths()[:, None] + 1
            tokens = tf.where(behind, self._padding, tokens)
        is_whole = tf.math.segment_max(_place_in_row(row_of_id), word_of_id) < room
        num_whole = tf.math.unsorted_segment_sum(
            tf.cast(is_whole, tf.int64), words.value_rowids(), words.nrows()
        )
        row_of_word = all_words.value_rowids()
        texts = all_words.values
        if self._word is not None:
            texts = tf.where(texts == STAND_IN, self._word.token, texts)
        is_cut = _place_in_row(row_of_word) >= tf.gather(num_whole, row_of_word)
        cut = tf.strings.unsorted_segment_join(
            tf.boolean_mask(texts, is_cut),
            tf.boolean_mask(row_of_word, is_cut),
            all_words.nrows(),
            separator=" ",
        )
        return tokens, cut

    def _clean(self, text: tf.Tensor) -> tf.Tensor:
        text = tf.strings.unicode_transcode(text, "UTF-8", "UTF-8", errors="replace")
        text = self._plain(self._unescape(self._unescape(text)))
        for pattern, rewrite in self._clean_rewrites:
            text = tf.strings.regex_replace(text, pattern, rewrite)
        # TensorFlow's lower() drops everything after a NUL, so it gets the pieces between NULs.
        pieces = tf.strings.split(tf.strings.regex_replace(text, r"\x00", b"\xff"), b"\xff")
        # ASCII first: ICU would map the letter I by the locale of a Turkish server.
        lower = tf.strings.lower(tf.strings.lower(pieces.values), encoding="utf-8")
        row = pieces.value_rowids()
        is_first = row != tf.concat([tf.constant([-1], row.dtype), row[:-1]], axis=0)
        return _join(tf.strings.join([tf.where(is_first, "", "\0"), lower]), pieces)

    def _split(self, text: tf.Tensor) -> tf.RaggedTensor:
        """Splits clean text into words: string [B] to string [B, (words)]."""
        for pattern, rewrite in self._split_rewrites:
            text = tf.strings.regex_replace(text, pattern, rewrite)
        return tf.strings.split(text)

    def _unescape_graph(self, text: tf.Tensor) -> tf.Tensor:
        """`html.unescape` of text, string [B]."""
        return tf.cond(
            tf.reduce_any(tf.strings.regex_full_match(text, r"(?s).*&.*")),
            lambda: self._unescape_entities(text),
            lambda: text,
        )

    def _unescape_entities(self, text: tf.Tensor) -> tf.Tensor:
        # UTF-8 text never contains 0xFF. Each piece except the first of a row begins with an
        # ampersand, and has no other.
        pieces = tf.strings.split(tf.strings.regex_replace(text, "&", b"\xff&"), b"\xff")
        piece = pieces.values
        entity = (
            r"(?s)^&(#[0-9]+;?|#[xX][0-9a-fA-F]+;?|[^\t\n\f <&#;]{1,32};?).*$"  # as html.unescape
        )
        is_entity = tf.strings.regex_full_match(piece, entity)
        name = tf.where(
            is_entity, tf.strings.regex_replace(piece, entity, r"\1", replace_global=False), ""
        )
        rest = tf.strings.substr(
            piece, tf.where(is_entity, tf.strings.length(name) + 1, 0), tf.strings.length(piece)
        )
        is_number = tf.strings.regex_full_match(name, "#.*")
        value = tf.where(is_number, self._number_entity(name), self._named_entity(name))
        unescaped = tf.where(is_entity, tf.strings.join([value, rest]), piece)
        return _join(unescaped, pieces)

    def _named_entity(self, name: tf.Tensor) -> tf.Tensor:
        """The meaning of `&name`: the whole name, else its longest known prefix, else itself."""
        size = tf.strings.length(name)
        value = self._entities.lookup(name)
        known_beginnings = [known for known in html5 if not known.endswith(";")]
        shortest = min(map(len, known_beginnings))
        for length in range(max(map(len, known_beginnings)), shortest - 1, -1):
            # The prefix of a longer name can only be one that needs no semicolon.
            beginning = tf.strings.substr(name, 0, length)
            start = self._entities.lookup(beginning)
            found = (size > length) & (value == _UNKNOWN) & (start != _UNKNOWN)
            end = tf.strings.substr(name, tf.minimum(length, size), size)
            value = tf.where(found, tf.strings.join([start, end]), value)
        return tf.where(value == _UNKNOWN, tf.strings.join(["&", name]), value)

    def _number_entity(self, name: tf.Tensor) -> tf.Tensor:
        """The character that `&#123;` or `&#x7b;` stands for."""
        decimal = _match_or(name, r"#0*([0-9]{1,7});?", "")
        hexadecimal = _match_or(name, r"#[xX]0*([0-9a-fA-F]{1,6});?", "")
        digits = tf.strings.substr(
            tf.strings.join(["000000", tf.strings.lower(hexadecimal)]), -6, 6
        )
        digit = tf.cast(tf.io.decode_raw(digits, tf.uint8, fixed_length=6), tf.int32)
        digit = tf.where(digit > ord("9"), digit - ord("a") + 10, digit - ord("0"))
        code = tf.reduce_sum(digit * tf.constant([16**power for power in range(5, -1, -1)]), -1)
        code = tf.where(
            decimal != "", tf.strings.to_number(tf.strings.join(["0", decimal]), tf.int32), code
        )
        code = tf.where((decimal == "") & (hexadecimal == ""), _BEYOND_UNICODE, code)
        irregular = self._irregular_numbers.lookup(code)
        regular = tf.strings.unicode_encode(code[:, None], "UTF-8", errors="replace")
        return tf.where(irregular == _UNKNOWN, regular, irregular)

    def _merge_words(self, words: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Ids, int32 [T], of words, string [W], and the index of the word of each id, int64 [T]."""
        # UTF-8 text never contains 0xFE and 0xFF, so they can represent the markers.
        for byte, marker in zip((b"\xfe", b"\xff"), MARKERS, strict=True):
            words = tf.where(words == marker, byte, words)
        byte_ids = np.argsort(BYTES)
        byte_ids[[0xFE, 0xFF]] = np.array(list(MARKERS.values())) - END_OF_WORD
        if self._word is not None:
            # Nor does it contain 0xFD.
            words = tf.where(words == STAND_IN, b"\xfd", words)
            byte_ids[0xFD] = FIRST_NEW_ID - END_OF_WORD
        all_bytes = tf.io.decode_raw(tf.strings.reduce_join(words), tf.uint8)
        ids = tf.gather(tf.constant(byte_ids, tf.int32), tf.cast(all_bytes, tf.int32))
        sizes = tf.strings.length(words)
        word_of_id = tf.repeat(tf.range(tf.size(words, tf.int64)), sizes)
        is_last = word_of_id != _shift_left(word_of_id, -1)
        ids += tf.where(is_last, END_OF_WORD, 0)

        def merge(
            ids: tf.Tensor, word_of_id: tf.Tensor, merged: tf.Tensor
        ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
            lowest = tf.gather(tf.math.segment_min(merged, word_of_id), word_of_id)
            chosen = _every_other((merged == lowest) & (merged < NO_MERGE))
            ids = tf.where(chosen, merged, ids)
            # The right half of a merged pair is dropped.
            kept = ~tf.concat([tf.zeros([1], tf.bool), chosen[:-1]], axis=0)
            ids, word_of_id = tf.boolean_mask(ids, kept), tf.boolean_mask(word_of_id, kept)
            return ids, word_of_id, self._merged_pairs(ids, word_of_id)

        ids, word_of_id, _ = tf.while_loop(
            lambda ids, word_of_id, merged: tf.reduce_any(merged < NO_MERGE),
            merge,
            (ids, word_of_id, self._merged_pairs(ids, word_of_id)),
            shape_invariants=(tf.TensorShape([None]),) * 3,
        )
        if self._word is None:
            return ids, word_of_id
        # One id for each vector of the word.
        repeats = tf.where(ids == FIRST_NEW_ID, self._word.vectors, 1)
        origin = tf.repeat(tf.range(tf.size(ids, tf.int64)), repeats)
        ids = tf.gather(ids, origin) + tf.cast(_place_in_row(origin), tf.int32)
        return ids, tf.gather(word_of_id, origin)

    def _merged_pairs(self, ids: tf.Tensor, word_of_id: tf.Tensor) -> tf.Tensor:
        """For each id, the merge of it with its right neighbour in the word, int32 [T]."""
        same_word = word_of_id == _shift_left(word_of_id, -1)
        merged = self._merges.lookup(_pair_key(ids, _shift_left(ids, 0)))
        return tf.where(same_word, merged, NO_MERGE)


def _pair_key(left: tf.Tensor, right: tf.Tensor) -> tf.Tensor:
    return tf.cast(left, tf.int64) * NO_MERGE + tf.cast(right, tf.int64)


def _merge_table() -> tf.lookup.StaticHashTable:
    ids = merges()
    left, right = np.array(list(ids)).T
    return tf.lookup.StaticHashTable(
        tf.lookup.KeyValueTensorInitializer(
            _pair_key(left, right), tf.constant(list(ids.values()), tf.int32)
        ),
        NO_MERGE,
    )


def _irregular_number_table() -> tf.lookup.StaticHashTable:
    """Numbers that `html.unescape` does not turn into the character with that number.

    They are among the first 256, the noncharacters and the surrogates; `unicode_encode` replaces
    the surrogates too.
    """
    numbers = [
        *range(0x100),
        *range(0xFDD0, 0xFDF0),
        *(plane << 16 | low for plane in range(17) for low in (0xFFFE, 0xFFFF)),
        _BEYOND_UNICODE,
    ]
    texts = [html.unescape(f"&#{number};") for number in numbers]
    return tf.lookup.StaticHashTable(
        tf.lookup.KeyValueTensorInitializer(tf.constant(numbers, tf.int32), tf.constant(texts)),
        _UNKNOWN,
    )


def _explicit(character_class: str) -> str:
    """The ranges of a class of the `regex` package; RE2's own tables are from an older Unicode.

    Ignores case, as in `_WORD`. That makes U+0345 neither letter nor number nor other.
    """
    codes = np.arange(sys.maxunicode + 1, dtype="<u4")
    every_character = codes.tobytes().decode("utf-32-le", errors="surrogatepass")
    runs = regex.finditer(f"{character_class}+", every_character, regex.IGNORECASE)
    return "".join(rf"\x{{{run.start():x}}}-\x{{{run.end() - 1:x}}}" for run in runs)


def _clean_rewrites() -> tuple[tuple[str, str], ...]:
    # str.strip treats four more characters as white space than regular expressions do.
    stripped = _explicit(r"[\s\x1c-\x1f]")
    return (
        (f"^[{stripped}]+|[{stripped}]+$", ""),
        # Its lower case is two characters in Python and, except for Turkish locales, in ICU.
        ("\N{LATIN CAPITAL LETTER I WITH DOT ABOVE}", "i\N{COMBINING DOT ABOVE}"),
    )


def _word_rewrites(word: NewWord | None) -> tuple[tuple[str, str], ...]:
    """`NewWord.marked`, applied twice: a character between two such words is next to both."""
    if word is None:
        return ()
    neighbour = f"[^{_explicit(LETTER)}{_explicit(NUMBER)}]"
    before, behind = (
        f"({end}|{neighbour})" if bounded else "()"
        for end, bounded in zip("^$", word.bounded, strict=True)
    )
    return ((f"{before}{re.escape(word.token)}{behind}", rf"\1 {STAND_IN} \2"),) * 2


def _split_rewrites() -> tuple[tuple[str, str], ...]:
    """Replaces text that `_WORD` does not match with spaces, and adds one after each match."""
    letters, numbers, others = map(_explicit, (LETTER, NUMBER, OTHER))
    markers = "|".join(re.escape(marker) for marker in MARKERS)
    return (
        (f"[^{letters}{numbers}{others}]", " "),
        (f"((?i:{markers}|{CONTRACTIONS})|[{letters}]+|[{numbers}]|[{others}]+)", r"\1 "),
    )


def _join(pieces: tf.Tensor, shape: tf.RaggedTensor) -> tf.Tensor:
    """Joins the pieces of each row of `shape`: string [T] to string [B]."""
    return tf.strings.unsorted_segment_join(pieces, shape.value_rowids(), shape.nrows())


def _place_in_row(row: tf.Tensor) -> tf.Tensor:
    """The index of each element in its row, from 0: int64 [T] from sorted rows, int64 [T]."""
    place = tf.range(tf.size(row, tf.int64))
    first = tf.math.segment_min(place, row)
    return place - tf.gather(first, row)


def _match_or(text: tf.Tensor, pattern: str, default: str) -> tf.Tensor:
    """The group of the pattern if it matches the whole text, else `default`."""
    group = tf.strings.regex_replace(text, f"^{pattern}$", r"\1", replace_global=False)
    return tf.where(tf.strings.regex_full_match(text, pattern), group, default)


def _shift_left(values: tf.Tensor, last: int) -> tf.Tensor:
    """The right neighbour of each element, and `last` for the last one; [0] stays [0]."""
    return tf.concat([values, tf.fill([1], tf.cast(last, values.dtype))], axis=0)[1:]


def _every_other(flags: tf.Tensor) -> tf.Tensor:
    """The first, third, fifth, ... of each run of True: overlapping pairs cannot all merge."""
    position = tf.range(tf.size(flags))
    gaps = tf.concat([[-1], tf.boolean_mask(position, ~flags)], axis=0)
    last_gap = tf.gather(gaps, tf.cumsum(tf.cast(~flags, tf.int32)))
    return flags & ((position - last_gap) % 2 == 1)
