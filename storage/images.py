"""Pictures as files and as arrays: decodes common formats, resizes without stretching."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import io
import warnings
from collections.abc import Iterator

import numpy as np
from PIL import ExifTags, Image, ImageOps
from PIL.AvifImagePlugin import AvifImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.Jpeg2KImagePlugin import Jpeg2KImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.PpmImagePlugin import PpmImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from storage.errors import one_line

MAX_PIXELS = 64 * 1024 * 1024
"""Pictures with more pixels are refused before decoding: a small file can hold gigabytes."""

SKETCH_SIDE = 32
"""Side of a picture's sketch in pixels."""

USER_COMMENT = "UserComment"
"""EXIF's name for a comment by the author of a picture."""

CENTRE = (0.5, 0.5)
"""The centre, as a position for `resize_cover`."""

# Formats whose decoders only read pixels; Pillow also supports some that run programs.
_FORMATS = tuple(
    file.format
    for file in (
        JpegImageFile,
        PngImageFile,
        WebPImageFile,
        GifImageFile,
        BmpImageFile,
        TiffImageFile,
        AvifImageFile,
        Jpeg2KImageFile,
        PpmImageFile,
    )
    if file.format in Image.OPEN
)
# Pillow reads this format only with a plug-in from another package.
_HEIF = "HEIF"
# Brands of ISO's container (ISO/IEC 23008-12) at the start of HEIC files.
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
_BRAND = slice(4, 12)

# The EXIF orientations that swap width and height.
_SIDEWAYS = (5, 6, 7, 8)
# How to turn a picture upright, by EXIF orientation.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# Pillow warns about large pictures by its own limit; here the limit is an error.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


class ImageError(ValueError):
    """A picture that cannot be used.

    Attributes:
        reason: One of `undecodable`, `too_large` and `zero_size`.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclasses.dataclass(frozen=True)
class ImageFacts:
    """Facts about a picture.

    Attributes:
        format: The encoding in lower case, such as "png".
        width: Width of the upright picture in pixels.
        height: Height of the upright picture in pixels.
        animated: Whether there are more frames.
        brightness: Mean luma from 0 (black) to 1 (weights of ITU-R BT.601).
        sketch: The whole upright picture scaled down, without keeping its proportions: Y, Cb, Cr as
            bytes [SKETCH_SIDE, SKETCH_SIDE, 3]; empty if it was not requested.
    """

    format: str
    width: int
    height: int
    animated: bool
    brightness: float
    sketch: bytes = b""


def decode_image(encoded: bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decodes a whole picture to upright 8-bit RGB.

    Applies the EXIF orientation, lays transparency over white, scales 16-bit grey to 8 bits
    (without clipping), and takes the first frame of an animation.

    Args:
        encoded: The bytes of a picture file.
        max_pixels: Larger pictures are an error.

    Returns:
        A picture of mode RGB. Its `format` is the encoding in lower case, such as "png", and its
        `info["animated"]` says whether there are more frames.

    Raises:
        ImageError: The bytes are not a picture that can be read to the end, or it is too large.
    """
    with _errors(encoded):
        image = _opened(encoded, max_pixels)
        image.load()
        name, animated = _format_name(image), _is_animated(image)
        rgb = _to_rgb(_upright(image))
    rgb.format = name
    rgb.info = {"animated": animated}
    return rgb


def is_opaque(encoded: bytes, max_pixels: int = MAX_PIXELS) -> bool:
    """Whether a picture has no transparent pixel; arguments and errors as for `decode_image`."""
    with _errors(encoded):
        image = _opened(encoded, max_pixels)
        if not image.has_transparency_data:
            return True
        lowest, _ = image.convert("RGBA").getchannel("A").getextrema()
    return lowest == 255


def inspect_image(
    encoded: bytes, max_pixels: int = MAX_PIXELS, *, with_sketch: bool = False
) -> ImageFacts:
    """Finds the facts about what `decode_image` would return, in half the time.

    This also reads the file to its end, so that damage is found, but it decodes only the mean of
    each block of 8 x 8 pixels in a JPEG.

    Args:
        encoded: The bytes of a picture file.
        max_pixels: Larger pictures are an error.
        with_sketch: Whether to make a sketch.

    Raises:
        ImageError: As `decode_image`.
    """
    with _errors(encoded):
        image = _opened(encoded, max_pixels)
        width, height = image.size
        if isinstance(image, JpegImageFile):
            least = SKETCH_SIDE if with_sketch else 1
            image.draft(None, (max(least, width // 8), max(least, height // 8)))
        image.load()
        orientation = _orientation(image)
        if orientation in _SIDEWAYS:
            width, height = height, width
        rgb = _to_rgb(image)
        return ImageFacts(
            format=_format_name(image),
            width=width,
            height=height,
            animated=_is_animated(image),
            brightness=_mean_luma(rgb),
            sketch=_sketch(rgb, orientation) if with_sketch else b"",
        )


def notes_in(encoded: bytes, max_pixels: int = MAX_PIXELS) -> dict[str, str | bytes]:
    """Reads the texts that programs wrote into a picture file.

    Args:
        encoded: The bytes of a picture file.
        max_pixels: Larger pictures are an error.

    Returns:
        The texts of a PNG file, by keyword; and under `USER_COMMENT` the bytes of the EXIF comment,
        if there is one.

    Raises:
        ImageError: The bytes are not a picture, or it is too large.
    """
    with _errors(encoded):
        image = _opened(encoded, max_pixels)
        # If the texts come after the pixels, Pillow decodes the pixels too.
        texts = dict(image.text) if isinstance(image, PngImageFile) else {}
        notes: dict[str, str | bytes] = {**texts}
        comment = image.getexif().get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.UserComment)
        if isinstance(comment, bytes):
            notes[USER_COMMENT] = comment
        return notes


def resize_cover(
    image: Image.Image, size: int | tuple[int, int], position: tuple[float, float] = CENTRE
) -> np.ndarray:
    """Scales a picture to cover a square or rectangle and crops the rest.

    The picture is never stretched. A picture that has the size already is left as it is.

    Args:
        image: Any size, mode RGB.
        size: Side of the square in pixels, or height and width.
        position: Which part to keep, from (0, 0), the left or upper end, to (1, 1).

    Returns:
        uint8 [H, W, 3].
    """
    height, width = (size, size) if isinstance(size, int) else size
    box = _covering_box(image.size, (width, height), position)
    # Pillow widens the Lanczos kernel when it shrinks, so there is no aliasing.
    return np.asarray(image.resize((width, height), Image.Resampling.LANCZOS, box=box))


def mask_cover(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Scales and crops a mask as `resize_cover` does its picture, without losing masked pixels.

    Args:
        mask: bool [H, W].
        size: Height and width.

    Returns:
        bool, of that size: true where any of the source pixels is true.
    """
    height, width = size
    image = Image.fromarray(mask.astype(np.float32))
    box = _covering_box(image.size, (width, height), CENTRE)
    parts: np.ndarray = np.asarray(image.resize((width, height), Image.Resampling.BOX, box=box)) > 0
    return parts


def random_position(example_id: str, seed: int) -> tuple[float, float]:
    """A position for `resize_cover` that depends only on the example and the seed."""
    digest = hashlib.sha256(f"{seed}:{example_id}".encode()).digest()
    return (
        int.from_bytes(digest[:8], "big") / 2**64,
        int.from_bytes(digest[8:16], "big") / 2**64,
    )


def to_model_range(pixels: np.ndarray) -> np.ndarray:
    """Maps uint8 [..., 3] to float32 in [-1, 1], the range of the autoencoder."""
    return pixels.astype(np.float32) / 127.5 - 1.0


def _covering_box(
    whole: tuple[int, int], size: tuple[int, int], position: tuple[float, float]
) -> tuple[float, float, float, float]:
    """Left, top, right and bottom of the largest part that has the proportions of `size`.

    All sizes are widths and heights.
    """
    part: tuple[float, float] = (whole[0], whole[0] * size[1] / size[0])
    if part[1] > whole[1]:
        part = (whole[1] * size[0] / size[1], whole[1])
    left, top = ((a - b) * at for a, b, at in zip(whole, part, position, strict=True))
    return left, top, left + part[0], top + part[1]


@functools.cache
def _reads_heif() -> bool:
    """Whether there is a plug-in for HEIC; loads it with the first HEIC picture."""
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        return False
    # A phone's burst has thumbnails and depth maps beside the picture; none of them is read.
    register_heif_opener(thumbnails=False)
    return True


def _is_heif(encoded: bytes) -> bool:
    """Whether a file is marked as HEIC; Pillow itself reads AVIF, which has the same container."""
    kind = encoded[_BRAND]
    return kind[:4] == b"ftyp" and kind[4:] in _HEIF_BRANDS and b"avif" not in encoded[:64]


@contextlib.contextmanager
def _errors(encoded: bytes) -> Iterator[None]:
    """Turns any exception from Pillow into an `ImageError`."""
    try:
        yield
    except ImageError:
        raise
    except Image.DecompressionBombError as error:
        raise ImageError("too_large", one_line(error)) from error
    # Pillow's decoders raise nearly every built-in exception on damaged files.
    except Exception as error:
        detail = one_line(error)
        if isinstance(error, Image.UnidentifiedImageError):
            detail = "its format is not one of " + ", ".join(_FORMATS)
            if _is_heif(encoded) and not _reads_heif():
                detail = "it is HEIC, which needs another package: pip install pillow-heif"
        raise ImageError("undecodable", f"the picture cannot be decoded: {detail}") from error


def _opened(encoded: bytes, max_pixels: int) -> Image.Image:
    formats = (_HEIF,) if _is_heif(encoded) and _reads_heif() else _FORMATS
    image = Image.open(io.BytesIO(encoded), formats=formats)
    width, height = image.size
    if width < 1 or height < 1:
        raise ImageError("zero_size", f"the picture is {width} x {height} pixels")
    if width * height > max_pixels:
        raise ImageError(
            "too_large",
            f"the picture is {width} x {height} pixels, more than the {max_pixels:,} allowed",
        )
    return image


def _format_name(image: Image.Image) -> str:
    # MPO is JPEG with further pictures behind the first.
    return "jpeg" if image.format == "MPO" else str(image.format).lower()


def _is_animated(image: Image.Image) -> bool:
    return _format_name(image) != "jpeg" and getattr(image, "is_animated", False)


def _mean_luma(rgb: Image.Image) -> float:
    red, green, blue = rgb.resize((1, 1), Image.Resampling.BOX).getpixel((0, 0))  # type: ignore[misc]
    return (0.299 * red + 0.587 * green + 0.114 * blue) / 255


def _sketch(rgb: Image.Image, orientation: int | None) -> bytes:
    size = (SKETCH_SIDE, SKETCH_SIDE)
    if rgb.size != size:
        # With fewer pixels, means would be squares with sharp edges.
        large = min(rgb.size) >= SKETCH_SIDE
        filtering = Image.Resampling.BOX if large else Image.Resampling.BICUBIC
        rgb = rgb.resize(size, filtering)
    if orientation in _TURNS:
        rgb = rgb.transpose(_TURNS[orientation])
    return rgb.convert("YCbCr").tobytes()


def _orientation(image: Image.Image) -> int | None:
    # As in `_upright`: an orientation that cannot be read does not count.
    with contextlib.suppress(Exception):
        orientation: int | None = image.getexif().get(ExifTags.Base.Orientation)
        return orientation
    return None


def _upright(image: Image.Image) -> Image.Image:
    # A damaged EXIF block says nothing about the orientation, and the pixels are still good.
    with contextlib.suppress(Exception):
        ImageOps.exif_transpose(image, in_place=True)
    return image


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise ImageError(
            "undecodable", "the picture has floating-point pixels, whose range is not defined"
        )
    if image.mode.startswith("I"):
        # Pillow's own conversion clips 16-bit grey at 255.
        grey = np.asarray(image).astype(np.int64).clip(0, 65535)
        image = Image.fromarray(((grey + 128) // 257).astype(np.uint8))
    if image.has_transparency_data:
        with_alpha = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, with_alpha)
    return image if image.mode == "RGB" else image.convert("RGB")
