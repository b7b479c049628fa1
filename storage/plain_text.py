"""One form for texts that look the same, as in the captions that CLIP was trained on.

Captions are converted when they are read, prompts before they are sent; the tokenizer converts any
text, in Python and in exported graphs. Uses only the standard library, since it also runs on
machines that only request pictures.
"""

from __future__ import annotations

import html
import re
import sys
import unicodedata

NEWER_CASE = re.compile(
    "[\u0888-\u089f\u08c9-\u08d2\u0c3c\u0ece\u180f\u1ac1-\u1ace\u1dfa\u2c2f\u2c5f\ua7c0\ua7c1"
    "\ua7d0-\ua7f4\ufbc2\U00010570-\U000105bc\U00010780-\U000107ba\U00010efd-\U00010eff"
    "\U00010f82-\U00010f85\U00011070-\U00011074\U000110c2\U00011241\U00011f00-\U00011f42"
    "\U00013439-\U00013455\U0001aff0-\U0001affe\U0001cf00-\U0001cf46\U0001df00-\U0001df2a"
    "\U0001e030-\U0001e08f\U0001e2ae\U0001e4eb-\U0001e4ef]"
)
"""Characters that got a case, or became ignored in the search for a final sigma, in Unicode 14.0 to
15.1 (Python 3.11 to 3.13), and the unassigned characters between them.

They include every combining mark of these versions.
"""

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_PLANES = range(0, sys.maxunicode, 0x10000)
_PLANE_ENDS = (plane + end for plane in _PLANES for end in (0xFFFE, 0xFFFF))
NONCHARACTERS = "".join(map(chr, (*range(0xFDD0, 0xFDF0), *_PLANE_ENDS)))
"""Unicode's noncharacters, the same in every version (section 23.7 of the standard)."""
_NO_CHARACTER = re.compile(f"[\ud800-\udfff{NONCHARACTERS}]")
_BETWEEN_NEWER = re.compile(f"({NEWER_CASE.pattern})")

# The ligatures, quotes, characters of another width and control characters of ftfy, which cleaned
# CLIP's captions. ASCII's control characters are left to the tokenizer.
_LIGATURES = "ĲĳŉǄǅǆǇǈǉǊǋǌǱǲǳﬀﬁﬂﬃﬄﬆ"
_WIDTHS = "".join(map(chr, (0x3000, *range(0xFF01, 0xFFF0))))
_STRAIGHT = {
    **{character: unicodedata.normalize("NFKC", character) for character in _LIGATURES + _WIDTHS},
    "\N{LATIN SMALL LIGATURE LONG S T}": "\N{LATIN SMALL LETTER LONG S}t",
    "\N{LATIN SMALL LETTER N PRECEDED BY APOSTROPHE}": "'n",
    **dict.fromkeys("\u02bc\u2018\u2019\u201a\u201b", "'"),
    **dict.fromkeys("\u201c\u201d\u201e\u201f", '"'),
    **dict.fromkeys("\u206a\u206b\u206c\u206d\u206e\u206f\ufeff\ufff9\ufffa\ufffb\ufffc", ""),
}
STRAIGHT = {old: new for old, new in _STRAIGHT.items() if old != new}
"""Characters, and the replacement for each of them."""
_STRAIGHTENED = str.maketrans(STRAIGHT)


def plain(text: str) -> str:
    """Converts a text to the form of CLIP's captions.

    HTML entities are unescaped twice. Curly quotes become straight, Latin ligatures become their
    letters, full-width and half-width characters become the usual ones, and marks that do not
    change a letter (U+FEFF) are removed. The rest is composed (NFC): a letter and its combining
    accents are one character, as on keyboards, and not several, as in macOS's file names. Lone
    surrogates and Unicode's noncharacters become U+FFFD. Case and white space stay.

    The result is the same on every Python: characters newer than Unicode 13 are not composed.

    Args:
        text: Any text.
    """
    text = _NO_CHARACTER.sub(REPLACEMENT, text)
    text = _unescape(_unescape(text))
    if text.isascii():
        return text
    pieces = _BETWEEN_NEWER.split(text.translate(_STRAIGHTENED))
    return "".join(unicodedata.normalize("NFC", piece) for piece in pieces)


def is_blank(text: str) -> bool:
    """Whether a text has no visible characters."""
    return not plain(text).strip()


def _unescape(text: str) -> str:
    if "&" not in text:
        return text
    # html.unescape reads numbers with int(), which refuses more than 4300 digits. More than seven
    # significant digits are beyond Unicode anyway.
    text = re.sub("&#0+(?=[0-9])", "&#", text)
    text = re.sub("&#[0-9]{8,};?", REPLACEMENT, text)
    return html.unescape(text)
