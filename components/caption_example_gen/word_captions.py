"""Captions from which the model learns a new word (textual inversion, Gal et al. 2022)."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence

from trainer.text.new_word import NewWord
from trainer.text.tokenizer import has_word

OBJECT, STYLE = "object", "style"

# The templates of the paper's authors, who took them from CLIP. The first says the least.
TEMPLATES: Mapping[str, Sequence[str]] = {
    OBJECT: (
        "a photo of a {}",
        "a rendering of a {}",
        "a cropped photo of the {}",
        "the photo of a {}",
        "a photo of a clean {}",
        "a photo of a dirty {}",
        "a dark photo of the {}",
        "a photo of my {}",
        "a photo of the cool {}",
        "a close-up photo of a {}",
        "a bright photo of the {}",
        "a cropped photo of a {}",
        "a photo of the {}",
        "a good photo of the {}",
        "a photo of one {}",
        "a close-up photo of the {}",
        "a rendition of the {}",
        "a photo of the clean {}",
        "a rendition of a {}",
        "a photo of a nice {}",
        "a good photo of a {}",
        "a photo of the nice {}",
        "a photo of the small {}",
        "a photo of the weird {}",
        "a photo of the large {}",
        "a photo of a cool {}",
        "a photo of a small {}",
    ),
    STYLE: (
        "a painting in the style of {}",
        "a rendering in the style of {}",
        "a cropped painting in the style of {}",
        "the painting in the style of {}",
        "a clean painting in the style of {}",
        "a dirty painting in the style of {}",
        "a dark painting in the style of {}",
        "a picture in the style of {}",
        "a cool painting in the style of {}",
        "a close-up painting in the style of {}",
        "a bright painting in the style of {}",
        "a cropped painting in the style of {}",
        "a good painting in the style of {}",
        "a close-up painting in the style of {}",
        "a rendition in the style of {}",
        "a nice painting in the style of {}",
        "a small painting in the style of {}",
        "a weird painting in the style of {}",
        "a large painting in the style of {}",
    ),
}
"""By name, sentences with `{}` where the word belongs."""


def shortest_caption(templates: str, token: str) -> str:
    """The shortest caption with the word.

    Args:
        templates: One of `TEMPLATES`.
        token: The word.
    """
    return TEMPLATES[templates][0].format(token)


@dataclasses.dataclass(frozen=True)
class WordCaptions:
    """How captions are treated if the model learns a new word.

    Attributes:
        word: The word.
        templates: One of `TEMPLATES`, which replaces captions that lack the word; "" rejects such
            captions, which teach nothing.
    """

    word: NewWord
    templates: str = ""

    @property
    def variants(self) -> int:
        """Number of variants that `of` gives; 0 if captions are used as they are."""
        return len(TEMPLATES[self.templates]) if self.templates else 0

    def caption(self, caption: str) -> str | None:
        """The caption if it has the word, or else the shortest one; `None` if it is rejected."""
        if has_word(caption, self.word):
            return caption
        return shortest_caption(self.templates, self.word.token) if self.templates else None

    def varied(self, captions: Iterable[str]) -> WordCaptions:
        """A copy that has no templates if none of these captions needs variants."""
        if any(map(self._is_shortest, captions)):
            return self
        return dataclasses.replace(self, templates="")

    def of(self, caption: str) -> Sequence[str]:
        """The variants of a caption: all templates for the shortest, repetitions for others."""
        if not self._is_shortest(caption):
            return [caption] * self.variants
        return [template.format(self.word.token) for template in TEMPLATES[self.templates]]

    def _is_shortest(self, caption: str) -> bool:
        shortest = shortest_caption(self.templates, self.word.token) if self.templates else None
        return caption.lower() == shortest

    def to_json(self) -> str:
        """Writes it as text, for `of_json`."""
        fields = {"word": dataclasses.asdict(self.word), "templates": self.templates}
        return json.dumps(fields, sort_keys=True, ensure_ascii=False)

    @classmethod
    def of_json(cls, text: str | None) -> WordCaptions | None:
        """Reads the text that `to_json` wrote; `None` for no text."""
        if not text:
            return None
        fields = json.loads(text)
        return cls(NewWord(**fields["word"]), fields["templates"])
