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
"""The id behind the vocabulary's last: that of a new word's first vector."""

STAND_IN = "\ufdd0"
"""What stands for a new word in a text that is split: no character, so that no text has it."""

# As the tokenizer sees them, ignoring case.
_LETTER_OR_NUMBER = r"(?i:[\p{L}\p{N}])"


@dataclasses.dataclass(frozen=True)
class NewWord:
    """A new word, which `trainer.text.tokenizer.new_word` makes and checks.

    Attributes:
        token: As it stands in texts in their plain form, in lower case, such as `<creature>`.
        initial: The word of the vocabulary whose vector all of its vectors begin as.
        initial_id: The id of that.
        vectors: How many it has, and so how many tokens each place takes where it stands.
    """

    token: str
    initial: str
    initial_id: int
    vectors: int

    @property
    def ids(self) -> tuple[int, ...]:
        """The ids of its vectors, behind those of the vocabulary."""
        return tuple(range(FIRST_NEW_ID, FIRST_NEW_ID + self.vectors))

    @property
    def bounded(self) -> tuple[bool, bool]:
        """Whether no letter or number may stand before it, and behind it.

        It is a word, not a part of one: `sks` is not in `risks`. One that begins or ends with
        another character, such as `<creature>`, is told from its neighbours by that.
        """
        first, last = (regex.match(_LETTER_OR_NUMBER, c) for c in (self.token[0], self.token[-1]))
        return first is not None, last is not None

    def marked(self, text: str) -> str:
        """A text in lower case in which `STAND_IN` stands, alone, for each time it is there."""
        return self._pattern.sub(f" {STAND_IN} ", text)

    def as_initial(self, tokens: np.ndarray) -> np.ndarray:
        """Tokens, int, of any shape, with the initial word's in the places of the new ones."""
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
        """As text, for `of_json`."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True, ensure_ascii=False)

    @classmethod
    def of_json(cls, text: str | None) -> NewWord | None:
        """From what `to_json` made; `None` from nothing."""
        return cls(**json.loads(text)) if text else None

    @classmethod
    def of_fields(cls, fields: Mapping[str, Any] | None) -> NewWord | None:
        """From what `dataclasses.asdict` made; `None` from nothing."""
        return cls(**fields) if fields else None
