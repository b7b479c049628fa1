"""What becomes of captions on their way to the text encoder: the template, and tags."""

from __future__ import annotations

import dataclasses
import hashlib
import string
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from storage.plain_text import plain
from trainer.text.tokenizer import MAX_LENGTH, token_count

if TYPE_CHECKING:
    from tfx.types import Artifact

TEMPLATE_PROPERTY = "caption_template"
"""Where the examples have the template that their captions were put into."""

_FIELD = "caption"


@dataclasses.dataclass(frozen=True)
class CaptionTemplate:
    """Text before and after every caption.

    Attributes:
        before: What comes before it.
        after: What comes after it.
    """

    before: str = ""
    after: str = ""

    @classmethod
    def parse(cls, template: str) -> CaptionTemplate:
        """Reads a template such as `{caption}, in the style of sks`; "" leaves captions alone.

        Args:
            template: Text with one `{caption}` in it; other braces are written twice.

        Raises:
            ValueError: It has another field, or not this one once, or is so long that no word of
                any caption would be read; the message says what it must be.
        """
        if not template:
            return cls()
        texts, fields = [""], []
        try:
            for text, field, spec, conversion in string.Formatter().parse(template):
                texts[-1] += text
                if field is not None:
                    fields.append(
                        field
                        + (f"!{conversion}" if conversion else "")
                        + (f":{spec}" if spec else "")
                    )
                    texts.append("")
        except ValueError as error:
            raise ValueError(f"{error}: write braces that mean themselves twice") from None
        for field in fields:
            if field != _FIELD:
                raise ValueError(
                    f"there is no field {{{field}}}: write {{{_FIELD}}} where the caption belongs, "
                    "and braces that mean themselves twice"
                )
        if len(fields) != 1:
            raise ValueError(
                f"it must have {{{_FIELD}}} once, where the caption belongs, and has it "
                f"{len(fields)} times"
            )
        found = cls(*map(plain, texts))
        tokens = token_count(found.before + found.after)
        if tokens >= MAX_LENGTH:
            raise ValueError(
                f"it has {tokens} tokens without a caption, and the text encoder reads "
                f"{MAX_LENGTH}: no caption would fit in; shorten it"
            )
        return found

    @classmethod
    def of(cls, examples: Artifact) -> CaptionTemplate:
        """The template that the captions of examples were put into."""
        there = examples.has_custom_property(TEMPLATE_PROPERTY)
        return cls.parse(examples.get_string_custom_property(TEMPLATE_PROPERTY) if there else "")

    def fill(self, caption: str) -> str:
        """A caption in its plain form, with what comes before and after."""
        if not (self.before or self.after):
            return caption
        return f"{self.before}{caption.strip()}{self.after}"

    def inner(self, caption: str) -> str | None:
        """What `fill` was given; `None` where the caption is not from this template."""
        long_enough = len(caption) > len(self.before) + len(self.after)
        if not (long_enough and caption.startswith(self.before) and caption.endswith(self.after)):
            return None
        return caption[len(self.before) : len(caption) - len(self.after)]


@dataclasses.dataclass(frozen=True)
class TagShuffle:
    """How captions that are tags, with commas between them, are varied.

    Attributes:
        variants: How many there are of every caption; 0: it is used as it is.
        keep: So many tags in front stay where they are.
        dropout: Probability of every other tag to be left out of a variant.
        seed: Decides order and tags.
    """

    variants: int = 0
    keep: int = 1
    dropout: float = 0.0
    seed: int = 0

    def of(self, caption: str, example_id: str, template: CaptionTemplate) -> Sequence[str]:
        """The variants of a caption, the same for the same example and settings.

        Args:
            caption: As it stands in the example.
            example_id: The example's content hash.
            template: Whose text is in the caption, and stays around the tags.
        """
        inner = template.inner(caption)
        if inner is None:
            inner, template = caption, CaptionTemplate()
        tags = [tag.strip() for tag in inner.split(",") if tag.strip()]
        if len(tags) < 2:
            return [caption] * self.variants
        kept, others = tags[: self.keep], tags[self.keep :]
        digest = hashlib.sha256(f"tags:{self.seed}:{example_id}".encode()).digest()
        rng = np.random.default_rng(int.from_bytes(digest[:8], "big"))
        found = []
        for _ in range(self.variants):
            order = rng.permutation(len(others))
            stays = rng.random(len(others)) >= self.dropout
            chosen = [*kept, *(others[i] for i in order if stays[i])]
            # Something must be said.
            found.append(template.fill(", ".join(chosen or [others[order[0]]])))
        return found
