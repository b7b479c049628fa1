"""Fills in a page and escapes everything that comes from the data."""

from __future__ import annotations

import base64
import importlib.resources
import io
import re
from typing import Any

import jinja2
from PIL import Image

from components.pages import svg

# Shown as Unicode's control pictures, or as the replacement character.
_CONTROL = {
    **{code: 0x2400 + code for code in range(0x20) if chr(code) not in "\t\n\r"},
    0x7F: 0x2421,
    **dict.fromkeys(range(0x80, 0xA0), 0xFFFD),
}
_SURROGATE = re.compile("[\ud800-\udfff]")


def render(package: str, template: str, **content: Any) -> str:
    """Fills in a template, which extends `page.html` of this package.

    Args:
        package: Dotted name of the package that contains the template.
        template: File name of the template.
        content: Variables of the template; a missing one is an error.
    """

    def read(name: str) -> str | None:
        for folder in map(importlib.resources.files, (package, __package__)):
            if (file := folder.joinpath(name)).is_file():
                return file.read_text("utf-8")
        return None

    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(read),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"clip": clip, "short": svg.short, "visible": visible}
    environment.globals["share_bar"] = svg.share_bar
    return environment.get_template(template).render(content)


def visible(text: str) -> str:
    """Replaces the characters that a page cannot hold or show."""
    return _SURROGATE.sub("\N{REPLACEMENT CHARACTER}", text.translate(_CONTROL))


def clip(text: str, length: int) -> str:
    """Shortens text to `length` characters and appends how many were cut."""
    more = len(text) - length
    return text if more <= 0 else f"{text[:length]}… (+{more:,} characters)"


def data_uri(image: Image.Image, file_format: str, **options: Any) -> str:
    """A picture as a data URI for `img`, saved with Pillow's options for the format."""
    encoded = io.BytesIO()
    image.save(encoded, format=file_format, **options)
    data = base64.b64encode(encoded.getvalue()).decode()
    return f"data:image/{file_format.lower()};base64,{data}"
