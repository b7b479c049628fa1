"""A word that the vocabulary lacks (textual inversion, Gal et al. 2022)."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import regex

FIRST_NEW_ID = 49408
"""The id after the last one of the vocabulary: the first vector of a new word."""

STAND_IN = "\ufdd0"
"""Represents a new word in a text to be split: a noncharacter, so that no text contains it."""

# As the tokenizer sees them, ignoring case.
_LETTER_OR_NUMBER = r"(?i:[\p{L}\p{N}])"


@dataclasses.dataclass(frozen=True)
class NewWord:
    """A new word, which `trainer.text.tokenizer.new_word` makes and checks.

    Attributes:
        token: The word as in the plain form of texts, in lower case, such as `<creature>`.
        initial: The word of the vocabulary whose vector is the start of all its vectors.
        initial_id: The id of the initial word.
        vectors: Its number of vectors, and so the number of tokens that it takes in a text.
    """

    token: str
    initial: str
    initial_id: int
    vectors: int

    @property
    def ids(self) -> tuple[int, ...]:
        """The ids of its vectors, after the vocabulary."""
        return tuple(range(FIRST_NEW_ID, FIRST_NEW_ID + self.vectors))

    @property
    def bounded(self) -> tuple[bool, bool]:
        """Whether no letter or number may come before it, and after it.

        It is a word, not a part of one: `sks` is not in `risks`. If it begins or ends with another
        character, such as `<creature>`, that separates it from its neighbours.
        """
        first, last = (regex.match(_LETTER_OR_NUMBER, c) for c in (self.token[0], self.token[-1]))
        return first is not None, last is not None

    def marked(self, text: str) -> str:
        """A text in lower case, with `STAND_IN`, alone, in place of each occurrence."""
        return self._pattern.sub(f" {STAND_IN} ", text)

    def as_initial(self, tokens: np.ndarray) -> np.ndarray:
        """Tokens, int, of any shape, with new ones replaced by the token of the initial word."""
        return np.where(tokens >= FIRST_NEW_ID, self.initial_id, tokens).astype(tokens.dtype)

    @functools.cached_property
    def _pattern(self) -> regex.Pattern[str]:
        before, behind = self.bounded
        return regex.compile(
            (f"(?<!{_LETTER_OR_NUMBER})" if before else "")
            + regex.escape(self.token)
            + (f"(?!{_LETTER_OR_NUMBER})" if behind else "")
        )

    def to_json(self) -> str:
        """The word as JSON, for `of_json`."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True, ensure_ascii=False)

    @classmethod
    def of_json(cls, text: str | None) -> NewWord | None:
        """The word from the result of `to_json`; `None` from nothing."""
        return cls(**json.loads(text)) if text else None

    @classmethod
    def of_fields(cls, fields: Mapping[str, Any] | None) -> NewWord | None:
        """The word from the result of `dataclasses.asdict`; `None` from nothing."""
        return cls(**fields) if fields else None
