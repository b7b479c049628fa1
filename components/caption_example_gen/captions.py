"""How captions change on their way to the text encoder: the template, and shuffled tags."""

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
"""Property of the examples with the template that their captions were put into."""

_FIELD = "caption"


@dataclasses.dataclass(frozen=True)
class CaptionTemplate:
    """Text before and after every caption.

    Attributes:
        before: Text before the caption.
        after: Text after the caption.
    """

    before: str = ""
    after: str = ""

    @classmethod
    def parse(cls, template: str) -> CaptionTemplate:
        """Reads a template such as `{caption}, in the style of sks`; "" leaves captions alone.

        Args:
            template: Text with one `{caption}` in it; literal braces are doubled.

        Raises:
            ValueError: The template has another field, does not have `{caption}` exactly once, or
                is so long that no word of any caption would be read; the message says how to fix
                it.
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
            raise ValueError(f"{error}: double literal braces") from None
        for field in fields:
            if field != _FIELD:
                raise ValueError(
                    f"there is no field {{{field}}}: write {{{_FIELD}}} where the caption belongs, "
                    "and double literal braces"
                )
        if len(fields) != 1:
            raise ValueError(
                f"it must have {{{_FIELD}}} exactly once, where the caption belongs, but has it "
                f"{len(fields)} times"
            )
        found = cls(*map(plain, texts))
        tokens = token_count(found.before + found.after)
        if tokens >= MAX_LENGTH:
            raise ValueError(
                f"it has {tokens} tokens without a caption, but the text encoder reads only "
                f"{MAX_LENGTH}, so no caption would fit: shorten it"
            )
        return found

    @classmethod
    def of(cls, examples: Artifact) -> CaptionTemplate:
        """The template that the captions of these examples were put into."""
        there = examples.has_custom_property(TEMPLATE_PROPERTY)
        return cls.parse(examples.get_string_custom_property(TEMPLATE_PROPERTY) if there else "")

    def fill(self, caption: str) -> str:
        """A caption in its plain form, with the text before and after it."""
        if not (self.before or self.after):
            return caption
        return f"{self.before}{caption.strip()}{self.after}"

    def inner(self, caption: str) -> str | None:
        """The caption that `fill` was given; `None` if this one is not from this template."""
        long_enough = len(caption) > len(self.before) + len(self.after)
        if not (long_enough and caption.startswith(self.before) and caption.endswith(self.after)):
            return None
        return caption[len(self.before) : len(caption) - len(self.after)]


@dataclasses.dataclass(frozen=True)
class TagShuffle:
    """How captions that are comma-separated tags are varied.

    Attributes:
        variants: Number of variants of every caption; 0 uses it as it is.
        keep: Number of leading tags that stay in place.
        dropout: Probability that a variant leaves out any of the other tags.
        seed: Decides the order and which tags are left out.
    """

    variants: int = 0
    keep: int = 1
    dropout: float = 0.0
    seed: int = 0

    def of(self, caption: str, example_id: str, template: CaptionTemplate) -> Sequence[str]:
        """The variants of a caption, the same for the same example and settings.

        Args:
            caption: The caption as it is in the example.
            example_id: The example's content hash.
            template: The template of the caption; its text stays around the tags.
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
            # A variant must not be empty.
            found.append(template.fill(", ".join(chosen or [others[order[0]]])))
        return found
