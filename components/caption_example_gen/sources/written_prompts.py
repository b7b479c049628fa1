"""Reads the prompts that A1111, ComfyUI and the like write into the pictures that they draw."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from components.caption_example_gen.sources.encodings import decoded
from storage.images import USER_COMMENT, ImageError, notes_in

PARAMETERS = "parameters"
"""Key of the text in a PNG file that has the prompt, followed by the settings."""

_GRAPH = "prompt"
# The start of the settings after the prompt.
_SETTINGS = re.compile(r"(?:^|\s)(?:Negative prompt:|Steps:\s*\d)")
# The length of the encoding's name before an EXIF comment.
_CODE_BYTES = 8
# In ComfyUI's graph: inputs that take a prompt, and the names of prompts in nodes.
_ASKED = ("positive", "conditioning")
_TEXTS = ("text", "text_g", "t5xxl", "prompt", "string", "value", "text_l", "clip_l")
# Inputs that do not lead to the prompt.
_ELSEWHERE = frozenset({"negative", "clip", "model", "vae", "image", "latent_image", "samples"})


def prompt_in(encoded: bytes) -> str:
    """The prompt that a picture was drawn from.

    Args:
        encoded: The picture file's bytes.

    Raises:
        ValueError: The picture has no prompt; the message says where it was expected.
    """
    try:
        notes = notes_in(encoded)
    except ImageError as error:
        raise ValueError(f"{error}, so that no prompt is found in it") from None
    comment = notes.get(USER_COMMENT, b"")
    said = notes.get(PARAMETERS) or _commented(comment if isinstance(comment, bytes) else b"")
    graph = notes.get(_GRAPH, "")
    prompt = _before_settings(said) if isinstance(said, str) else ""
    prompt = prompt or _in_graph(graph if isinstance(graph, str) else "")
    if not prompt:
        where = f"the text {PARAMETERS!r} of PNG, EXIF's comment or ComfyUI's graph"
        raise ValueError(f"the picture has no prompt written into it ({where})")
    return prompt


def _before_settings(said: str) -> str:
    values = _mapping(said)
    if values:
        # Fooocus writes JSON.
        said = str(values.get("prompt") or "")
    return _SETTINGS.split(said, maxsplit=1)[0].strip()


def _commented(comment: bytes) -> str:
    """The EXIF comment, if it has the settings of a program: cameras also write there."""
    text = decoded(comment[_CODE_BYTES:], "replace")
    return text if _SETTINGS.search(text) else ""


def _in_graph(graph: str) -> str:
    """The only prompt of a ComfyUI graph; "" if there are several or none."""
    nodes = {
        name: node["inputs"]
        for name, node in _mapping(graph).items()
        if isinstance(node, Mapping) and isinstance(node.get("inputs"), Mapping)
    }
    for asked in _ASKED:
        starts = [inputs[asked] for inputs in nodes.values() if asked in inputs]
        found = dict.fromkeys(text for start in starts for text in _texts_at(start, nodes, set()))
        if found:
            return next(iter(found)) if len(found) == 1 else ""
    return ""


def _texts_at(link: object, nodes: Mapping[str, Any], seen: set[str]) -> Iterator[str]:
    """The first texts found by following a link, which is the name of a node and a number."""
    name = str(link[0]) if isinstance(link, list) and len(link) == 2 else ""
    if name not in nodes or name in seen:
        return
    seen.add(name)
    inputs = nodes[name]
    texts = [inputs[key].strip() for key in _TEXTS if isinstance(inputs.get(key), str)]
    if any(texts):
        yield next(filter(None, texts))
        return
    for key, value in inputs.items():
        if key not in _ELSEWHERE:
            yield from _texts_at(value, nodes, seen)


def _mapping(text: str) -> Mapping[str, Any]:
    try:
        values = json.loads(text) if text.lstrip().startswith("{") else {}
    except (ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}
