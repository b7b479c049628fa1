"""Captions that a new word is learned from (textual inversion, Gal et al. 2022)."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence

from trainer.text.new_word import NewWord
from trainer.text.tokenizer import has_word

OBJECT, STYLE = "object", "style"

# The authors', who took them from CLIP's. The first is the one that says least.
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
"""By their names, sentences with `{}` where the word belongs."""


def shortest_caption(templates: str, token: str) -> str:
    """The caption of a picture that says nothing but the word.

    Args:
        templates: One of `TEMPLATES`.
        token: The word.
    """
    return TEMPLATES[templates][0].format(token)


@dataclasses.dataclass(frozen=True)
class WordCaptions:
    """What becomes of captions where a new word is learned.

    Attributes:
        word: The word.
        templates: One of `TEMPLATES`, which take the place of captions that lack the word; "":
            these teach nothing, and are refused.
    """

    word: NewWord
    templates: str = ""

    @property
    def variants(self) -> int:
        """How many `of` gives; 0 where a caption is used as it is."""
        return len(TEMPLATES[self.templates]) if self.templates else 0

    def caption(self, caption: str) -> str | None:
        """A caption with the word in it: itself, or the shortest; `None` where it is refused."""
        if has_word(caption, self.word):
            return caption
        return shortest_caption(self.templates, self.word.token) if self.templates else None

    def varied(self, captions: Iterable[str]) -> WordCaptions:
        """The same; without templates, where none of these captions is one to be varied."""
        if any(map(self._is_shortest, captions)):
            return self
        return dataclasses.replace(self, templates="")

    def of(self, caption: str) -> Sequence[str]:
        """The variants of a caption: all templates for the shortest, and others as they are."""
        if not self._is_shortest(caption):
            return [caption] * self.variants
        return [template.format(self.word.token) for template in TEMPLATES[self.templates]]

    def _is_shortest(self, caption: str) -> bool:
        shortest = shortest_caption(self.templates, self.word.token) if self.templates else None
        return caption.lower() == shortest

    def to_json(self) -> str:
        """As text, for `of_json`."""
        fields = {"word": dataclasses.asdict(self.word), "templates": self.templates}
        return json.dumps(fields, sort_keys=True, ensure_ascii=False)

    @classmethod
    def of_json(cls, text: str | None) -> WordCaptions | None:
        """From what `to_json` made; `None` from nothing."""
        if not text:
            return None
        fields = json.loads(text)
        return cls(NewWord(**fields["word"]), fields["templates"])
