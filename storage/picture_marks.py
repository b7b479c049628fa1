"""The marks in a drawn picture: the request that it was drawn from, and the networks that drew it.

A PNG file contains them three times, for three kinds of readers: the text `parameters`, as
AUTOMATIC1111's interface writes it and similar programs read it; XMP with IPTC's digital source
type, which tells programs that a trained model made the picture; and this project's JSON, under
`KEYWORD`, with the digests that identify the release. None of them is proof: whoever has the file
can rewrite all three.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any
from xml.sax.saxutils import escape

import numpy as np

PROGRAM = "sd-finetuning-tfx"
"""The name of this project in the marks."""
KEYWORD = "sd-finetuning-tfx"
"""The keyword of the PNG text with the project's own JSON."""
PARAMETERS = "parameters"
"""The keyword of AUTOMATIC1111's text."""
XMP = "XML:com.adobe.xmp"
"""The keyword of XMP in a PNG file (ISO 16684-1 and its part 3)."""

_SOURCE_TYPES = "http://cv.iptc.org/newscodes/digitalsourcetype/"
_GENERATED = f"{_SOURCE_TYPES}trainedAlgorithmicMedia"
_COMPOSED = f"{_SOURCE_TYPES}compositeWithTrainedAlgorithmicMedia"

# AUTOMATIC1111's names; Karras' timesteps are a separate field there.
_SAMPLERS = {
    "ddim": "Sampler: DDIM",
    "dpmpp_2m": "Sampler: DPM++ 2M, Schedule type: Karras",
    "euler_a": "Sampler: Euler a",
}
_SHOWN_HASH = 10


class MarksError(ValueError):
    """The marks of a picture cannot be read, or it is not a picture."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Marks:
    """The request that a picture was drawn from, and what drew it.

    Attributes:
        prompt: What to draw; `None` if it is not recorded.
        negative_prompt: What to avoid; likewise.
        num_steps: Sampling steps.
        sampler: One of `serving.request.SAMPLERS`.
        guidance_scale: Classifier-free guidance scale.
        seed: Decides the noise.
        height: Height in pixels.
        width: Width in pixels.
        strength: How much of the picture that it was drawn from could change; `None` if there was
            no such picture.
        image_sha256: SHA-256 (hex) of that picture's pixels; `None` without one.
        mask_sha256: SHA-256 (hex) of the mask, likewise.
        release: Version of the release; `None` if no release drew it.
        training_id: Names what decided the weights; `None` if unknown, as with a server.
        preset: Name of the preset, likewise.
        networks: Digest of each network's files in the release, by name; empty for a server.
        checkpoint_sha256: SHA-256 (hex) of the release's single file for other programs, if it has
            one.
    """

    prompt: str | None
    negative_prompt: str | None
    num_steps: int
    sampler: str
    guidance_scale: float
    seed: int
    height: int
    width: int
    strength: float | None = None
    image_sha256: str | None = None
    mask_sha256: str | None = None
    release: int | None = None
    training_id: str | None = None
    preset: str | None = None
    networks: Mapping[str, str] = dataclasses.field(default_factory=dict)
    checkpoint_sha256: str | None = None

    @property
    def without_prompt(self) -> Marks:
        """A copy without the prompts."""
        return dataclasses.replace(self, prompt=None, negative_prompt=None)

    @property
    def parameters(self) -> str:
        """AUTOMATIC1111's text: the prompt, the negative prompt, and a line with the rest."""
        lines = [self.prompt] if self.prompt is not None else []
        if self.negative_prompt:
            lines.append(f"Negative prompt: {self.negative_prompt}")
        values = [
            f"Steps: {self.num_steps}",
            _SAMPLERS.get(self.sampler, f"Sampler: {self.sampler}"),
            f"CFG scale: {self.guidance_scale:g}",
            f"Seed: {self.seed}",
            f"Size: {self.width}x{self.height}",
        ]
        digest = self.checkpoint_sha256 or self.networks.get("diffusion_model")
        if digest:
            values.append(f"Model hash: {digest[:_SHOWN_HASH]}")
        if name := "-".join(str(part) for part in (self.preset, self.release) if part is not None):
            values.append(f"Model: {name}")
        if self.strength is not None:
            values.append(f"Denoising strength: {self.strength:g}")
        values.append(f"Version: {PROGRAM}")
        return "\n".join([*lines, ", ".join(values)])


@dataclasses.dataclass(frozen=True)
class Found:
    """The marks that were found in a file.

    Attributes:
        pictures: The marks of each picture in it, row by row; empty if it has none of ours.
        columns: How many pictures are side by side.
        is_as_marked: Whether its pixels are the same as when it was marked.
        parameters: The text that other programs write too; `None` if there is none.
        agrees: Whether that text agrees with the marks.
        says_generated: Whether its XMP says that a trained model made it.
    """

    pictures: tuple[Marks, ...]
    columns: int
    is_as_marked: bool
    parameters: str | None
    agrees: bool
    says_generated: bool


def network_digests(files: Mapping[str, str]) -> dict[str, str]:
    """One SHA-256 (hex) for all files of each network.

    Args:
        files: The SHA-256 (hex) of each file, by its path `<network>/<version>/<rest>`. The version
            does not count: a copy with another number is the same network.
    """
    networks: dict[str, list[str]] = {}
    for path, digest in sorted(files.items()):
        network, _, rest = path.partition("/")
        networks.setdefault(network, []).append(f"{digest}  {rest.partition('/')[2]}\n")
    return {
        network: hashlib.sha256("".join(lines).encode()).hexdigest()
        for network, lines in networks.items()
    }


def digest_of_pixels(pixels: np.ndarray) -> str:
    """SHA-256 (hex) of an array's shape and values."""
    shape = "x".join(map(str, pixels.shape))
    return hashlib.sha256(f"{shape} ".encode() + np.ascontiguousarray(pixels).tobytes()).hexdigest()


def source_type(pictures: Sequence[Marks]) -> str:
    """IPTC's address for how pictures were made; the part that a mask kept was not generated."""
    return _COMPOSED if any(marks.mask_sha256 for marks in pictures) else _GENERATED


def request_of(marks: Marks) -> dict[str, Any]:
    """The marks for JSON, without unknown values; prompts are always included."""
    values = dataclasses.asdict(marks)
    told = ("prompt", "negative_prompt")
    return {
        name: value for name, value in values.items() if name in told or value not in (None, {})
    }


def difference_in_words(mean: float, most: int) -> str:
    """How much a picture that was drawn again differs from the original, in words.

    Args:
        mean: Mean of the absolute differences, in levels of 255.
        most: Largest absolute difference.
    """
    if not most:
        return "the same pixels"
    return f"different pixels: {mean:.2f} of 255 on average, {most} at most"


def encode(pixels: np.ndarray, pictures: Sequence[Marks], columns: int = 1) -> bytes:
    """Encodes a PNG file with marks; the same pixels and marks give the same bytes.

    Args:
        pixels: uint8 [H, W, 3], one picture or a grid of pictures.
        pictures: The marks of each picture, row by row.
        columns: How many pictures are side by side.
    """
    from PIL import Image, PngImagePlugin

    text = PngImagePlugin.PngInfo()
    # For a grid, the text of the first picture, as in AUTOMATIC1111.
    text.add_text(PARAMETERS, pictures[0].parameters)
    text.add_itxt(XMP, _xmp(pictures))
    content = {
        "pictures": [request_of(marks) for marks in pictures],
        "columns": columns,
        "pixels_sha256": digest_of_pixels(pixels),
    }
    text.add_text(KEYWORD, json.dumps(content))
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", pnginfo=text)
    return file.getvalue()


def read(contents: bytes) -> Found:
    """Reads the marks of a picture file, whatever its format is now.

    Raises:
        MarksError: It is not a picture, or has marks of ours that cannot be read.
    """
    pixels, texts = _opened(contents)
    parameters = texts.get(PARAMETERS)
    xmp = texts.get(XMP) or texts.get("xmp") or ""
    xmp = xmp.decode("utf-8", "replace") if isinstance(xmp, bytes) else str(xmp)
    content = _content(texts.get(KEYWORD))
    pictures = tuple(_marks(one) for one in content.get("pictures", ()))
    return Found(
        pictures=pictures,
        columns=content.get("columns", 1),
        is_as_marked=content.get("pixels_sha256") == digest_of_pixels(pixels),
        parameters=None if parameters is None else str(parameters),
        agrees=bool(pictures) and parameters == pictures[0].parameters,
        says_generated=_GENERATED in xmp or _COMPOSED in xmp,
    )


def pixels_of(contents: bytes) -> np.ndarray:
    """The pixels of a picture file, uint8 [H, W, 3]; raises as `read` does."""
    return _opened(contents)[0]


def _opened(contents: bytes) -> tuple[np.ndarray, dict[str, Any]]:
    """The pixels, and everything else in the file."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(contents)) as image:
            image.load()
            texts = {name: value for name, value in image.info.items() if isinstance(name, str)}
            return np.asarray(image.convert("RGB")), texts
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise MarksError(f"it cannot be read as a picture: {error}") from error


def _content(text: Any) -> dict[str, Any]:
    if text is None:
        return {}
    try:
        content = json.loads(str(text))
    except (ValueError, RecursionError) as error:
        raise MarksError(f"its marks are damaged: they are not JSON ({error})") from error
    pictures = content.get("pictures") if isinstance(content, dict) else None
    columns = content.get("columns") if isinstance(content, dict) else None
    if not isinstance(pictures, list) or not pictures or type(columns) is not int or columns < 1:
        raise MarksError("its marks are damaged: they do not name any pictures")
    return content  # type: ignore[no-any-return]


_KINDS: Mapping[str, tuple[type, ...]] = {
    "prompt": (str, type(None)),
    "negative_prompt": (str, type(None)),
    "num_steps": (int,),
    "sampler": (str,),
    "guidance_scale": (float, int),
    "seed": (int,),
    "height": (int,),
    "width": (int,),
    "strength": (float, int),
    "image_sha256": (str,),
    "mask_sha256": (str,),
    "release": (int,),
    "training_id": (str,),
    "preset": (str,),
    "networks": (dict,),
    "checkpoint_sha256": (str,),
}


def _marks(content: Any) -> Marks:
    if not isinstance(content, dict):
        raise MarksError("its marks are damaged: one of its pictures is not a JSON object")
    for name, value in content.items():
        # A later version may write more fields.
        if name in _KINDS and type(value) not in _KINDS[name]:
            raise MarksError(f"its marks are damaged: {name} is {str(value)[:40]!r}")
    for name, digest in content.get("networks", {}).items():
        if not isinstance(digest, str):
            raise MarksError(f"its marks are damaged: the digest of {name} is not text")
    known = {name: value for name, value in content.items() if name in _KINDS}
    try:
        return Marks(**known)
    except TypeError as error:
        raise MarksError("its marks are damaged: parts of the request are missing") from error


def _xmp(pictures: Sequence[Marks]) -> str:
    releases = {marks.release for marks in pictures}
    tool = f"{PROGRAM}, release {releases.pop()}" if releases != {None} else PROGRAM
    return (
        '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>\n'
        '<x:xmpmeta xmlns:x="adobe:ns:meta/">\n'
        ' <rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">\n'
        '  <rdf:Description rdf:about=""\n'
        '    xmlns:xmp="http://ns.adobe.com/xap/1.0/"\n'
        '    xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/">\n'
        f"   <xmp:CreatorTool>{escape(tool)}</xmp:CreatorTool>\n"
        "   <Iptc4xmpExt:DigitalSourceType>"
        f"{source_type(pictures)}</Iptc4xmpExt:DigitalSourceType>\n"
        "  </rdf:Description>\n"
        " </rdf:RDF>\n"
        "</x:xmpmeta>\n"
        '<?xpacket end="r"?>'
    )
