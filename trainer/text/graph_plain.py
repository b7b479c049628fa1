"""The steps after the entities in `storage.plain_text.plain`, as a TensorFlow graph."""

from __future__ import annotations

import functools
import sys
import unicodedata
from collections.abc import Mapping

import numpy as np
import tensorflow as tf

from storage.plain_text import NEWER_CASE, NONCHARACTERS, REPLACEMENT, STRAIGHT

# Not valid UTF-8, and not a character.
_UNCHANGED, _NONE = b"\xff", -1
# Hangul syllables are composed by arithmetic: chapter 3.12 of the Unicode Standard.
_SYLLABLES, _LEADS, _VOWELS, _TRAILS = 0xAC00, 0x1100, 0x1161, 0x11A7
# Beyond the CJK compatibility ideographs there is nothing to decompose or compose.
_END = 0x2FA20
_NUM_LEADS, _NUM_VOWELS, _NUM_TRAILS = 19, 21, 28


class GraphPlain(tf.Module):
    """Straight quotes, letters for ligatures, usual widths, and NFC.

    Gives the same result as `plain` for every valid UTF-8 string without entities, using the
    Unicode data that Python had when the object was made.
    """

    def __init__(self) -> None:
        """Makes the tables: about 0.1 s for the first instance in a process."""
        super().__init__()
        decomposed, classes, composed = _unicode_tables()
        self._decomposed = tf.lookup.StaticHashTable(
            tf.lookup.KeyValueTensorInitializer(
                tf.constant([old.encode() for old in decomposed]),
                tf.constant([new.encode() for new in decomposed.values()]),
            ),
            _UNCHANGED,
        )
        self._classes = _int_table(classes, 0)
        self._composed = _int_table(
            {_pair(left, right): whole for (left, right), whole in composed.items()}, _NONE
        )

    def __call__(self, text: tf.Tensor) -> tf.Tensor:
        """Converts `text`, string [B], to that form."""
        return tf.cond(
            tf.reduce_all(tf.strings.regex_full_match(text, r"[\x00-\x7f]*")),
            lambda: text,
            lambda: self._straighten(text),
        )

    def _straighten(self, text: tf.Tensor) -> tf.Tensor:
        characters = tf.strings.unicode_split(text, "UTF-8")
        straight = self._decomposed.lookup(characters.values)
        straight = tf.where(straight == _UNCHANGED, characters.values, straight)
        straight = tf.strings.unsorted_segment_join(
            straight, characters.value_rowids(), characters.nrows()
        )
        decoded = tf.strings.unicode_decode(straight, "UTF-8")
        codes, rows = self._compose_starters(decoded.values, decoded.value_rowids())
        codes, rows = self._compose_marks(*self._ordered(codes, rows))
        composed = tf.RaggedTensor.from_value_rowids(codes, rows, nrows=decoded.nrows())
        return tf.strings.unicode_encode(composed, "UTF-8")

    def _compose_starters(self, codes: tf.Tensor, rows: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Composes neighbours, int32 [T], in rows int64 [T], until no more can be composed."""

        def wholes(codes: tf.Tensor, rows: tf.Tensor) -> tf.Tensor:
            following = tf.concat([codes[1:], tf.zeros([1], tf.int32)], axis=0)
            next_row = tf.concat([rows[1:], tf.constant([_NONE], tf.int64)], axis=0)
            whole = self._whole(codes, following)
            # Marks come later: another one may be between them and their letter.
            is_starter = self._classes.lookup(tf.cast(following, tf.int64)) == 0
            return tf.where((rows == next_row) & is_starter, whole, _NONE)

        def compose(
            codes: tf.Tensor, rows: tf.Tensor, whole: tf.Tensor
        ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
            chosen = whole != _NONE
            # A character cannot end one pair and begin another.
            kept = ~tf.concat([tf.constant([False]), chosen[:-1]], axis=0)
            codes = tf.boolean_mask(tf.where(chosen, whole, codes), kept)
            rows = tf.boolean_mask(rows, kept)
            return codes, rows, wholes(codes, rows)

        codes, rows, _ = tf.while_loop(
            lambda codes, rows, whole: tf.reduce_any(whole != _NONE),
            compose,
            (codes, rows, wholes(codes, rows)),
            shape_invariants=(tf.TensorShape([None]),) * 3,
        )
        return codes, rows

    def _ordered(
        self, codes: tf.Tensor, rows: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
        """Sorts the marks of each starter by their class.

        Returns:
            Characters int32 [T], their rows int64 [T], their classes int64 [T], and the index of
            the run of each, int64 [T]; a run is a starter and its marks.
        """
        classes = self._classes.lookup(tf.cast(codes, tf.int64))
        before = tf.concat([tf.constant([_NONE], tf.int64), rows[:-1]], axis=0)
        runs = tf.cumsum(tf.cast((classes == 0) | (rows != before), tf.int64)) - 1
        size = tf.size(codes, tf.int64)
        # The position makes all keys different.
        order = tf.argsort((runs * 256 + classes) * size + tf.range(size))
        return tf.gather(codes, order), rows, tf.gather(classes, order), runs

    def _compose_marks(
        self, codes: tf.Tensor, rows: tf.Tensor, classes: tf.Tensor, runs: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Composes each starter with the marks that no other mark blocks."""
        size = tf.size(codes, tf.int64)
        starts = tf.math.segment_min(tf.range(size), runs)
        lengths = tf.math.segment_sum(tf.ones_like(runs), runs)
        longest = tf.reduce_max(tf.concat([[tf.constant(1, tf.int64)], lengths], axis=0))

        def take_mark(
            number: tf.Tensor, starters: tf.Tensor, blocking: tf.Tensor, kept: tf.Tensor
        ) -> tuple[tf.Tensor, ...]:
            is_there = number < lengths
            place = tf.where(is_there, starts + number, 0)
            mark_class = tf.gather(classes, place)
            whole = self._whole(starters, tf.gather(codes, place))
            joins = is_there & (whole != _NONE) & (blocking < mark_class)
            gone = tf.boolean_mask(place, joins)
            kept = tf.tensor_scatter_nd_update(kept, gone[:, None], tf.zeros_like(gone, tf.bool))
            starters = tf.where(joins, whole, starters)
            blocking = tf.where(is_there & ~joins, mark_class, blocking)
            return number + 1, starters, blocking, kept

        _, starters, _, kept = tf.while_loop(
            lambda number, starters, blocking, kept: number < longest,
            take_mark,
            (
                tf.constant(1, tf.int64),
                tf.gather(codes, starts),
                tf.zeros_like(starts),
                tf.ones_like(codes, tf.bool),
            ),
        )
        codes = tf.tensor_scatter_nd_update(codes, starts[:, None], starters)
        return tf.boolean_mask(codes, kept), tf.boolean_mask(rows, kept)

    def _whole(self, left: tf.Tensor, right: tf.Tensor) -> tf.Tensor:
        """The composition of two characters, int32; `_NONE` if there is none."""
        whole = tf.cast(self._composed.lookup(_pair(tf.cast(left, tf.int64), right)), tf.int32)
        lead, vowel = left - _LEADS, right - _VOWELS
        is_syllable = (lead >= 0) & (lead < _NUM_LEADS) & (vowel >= 0) & (vowel < _NUM_VOWELS)
        syllable = _SYLLABLES + (lead * _NUM_VOWELS + vowel) * _NUM_TRAILS
        whole = tf.where(is_syllable, syllable, whole)
        open_, trail = left - _SYLLABLES, right - _TRAILS
        is_open = (open_ >= 0) & (open_ < _NUM_LEADS * _NUM_VOWELS * _NUM_TRAILS)
        is_open &= (open_ % _NUM_TRAILS == 0) & (trail > 0) & (trail < _NUM_TRAILS)
        return tf.where(is_open, left + trail, whole)


def _pair(left: tf.Tensor | int, right: tf.Tensor | int) -> tf.Tensor | int:
    if isinstance(right, tf.Tensor):
        right = tf.cast(right, tf.int64)
    return left * (sys.maxunicode + 1) + right


def _int_table(entries: Mapping[int, int], default: int) -> tf.lookup.StaticHashTable:
    keys, values = np.array(list(entries.items()), np.int64).T
    return tf.lookup.StaticHashTable(tf.lookup.KeyValueTensorInitializer(keys, values), default)


@functools.cache
def _unicode_tables() -> tuple[dict[str, str], dict[int, int], dict[tuple[int, int], int]]:
    """Straightened and decomposed characters; combining classes; pairs and their compositions."""
    # Some versions of TensorFlow let them through.
    decomposed = dict.fromkeys(NONCHARACTERS, REPLACEMENT)
    classes: dict[int, int] = {}
    composed: dict[tuple[int, int], int] = {}
    for code in range(0x80, _END):
        character = chr(code)
        # Syllables of Hangul stay whole.
        if 0xD800 <= code < 0xE000 or 0xAC00 <= code < 0xD7A4 or NEWER_CASE.match(character):
            continue
        if mark_class := unicodedata.combining(character):
            classes[code] = mark_class
        canonical = unicodedata.decomposition(character)
        if canonical and not canonical.startswith("<") and " " in canonical:
            left, right = (int(part, 16) for part in canonical.split())
            # Some are never composed again.
            if unicodedata.normalize("NFC", character) == character:
                composed[left, right] = code
        new = unicodedata.normalize("NFD", STRAIGHT.get(character, character))
        if new != character:
            decomposed[character] = new
    return decomposed, classes, composed
