"""Pictures to draw from, and their masks: how they are read and fitted.

A picture is read like the pictures of a dataset: upright, over white where it is transparent,
scaled to cover the size to draw, and cropped to it; never stretched. Its mask is fitted alike.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from PIL import Image

from serving.errors import ServingError
from storage import filesystem, images

DEFAULT_STRENGTH = 0.8
"""For a whole picture, as in diffusers."""
DEFAULT_MASKED_STRENGTH = 1.0
"""With a mask: the area drawn anew does not depend on what was there."""

# A mask counts as white from this grey on.
_WHITE = 128


@dataclasses.dataclass(frozen=True, eq=False)
class Original:
    """What to draw from.

    Attributes:
        pixels: uint8 [H, W, 3], of any size.
        strength: From 0, which changes nothing, to 1, which begins with pure noise.
        mask: bool [H, W], true where it is drawn anew; everywhere if None.
    """

    pixels: np.ndarray
    strength: float
    mask: np.ndarray | None = None

    @classmethod
    def of(
        cls, image: np.ndarray | None, strength: float | None, mask: np.ndarray | None
    ) -> Original | None:
        """The picture, strength and mask of a request; `None` if it names no picture.

        Raises:
            ServingError: There is a mask or a strength without a picture, or one of them is not
                valid.
        """
        if image is None:
            for what, value in (("strength", strength), ("mask", mask)):
                if value is not None:
                    raise ServingError(
                        f"there is a {what} but no picture to draw from; give both or neither"
                    )
            return None
        _check_array("picture to draw from", image, np.uint8, 3, "[H, W, 3]", "read_picture")
        if mask is not None:
            _check_array("mask", mask, np.bool_, 2, "[H, W]", "read_mask")
            if mask.shape != image.shape[:2]:
                sizes = [f"{width} x {height}" for height, width in (mask.shape, image.shape[:2])]
                raise ServingError(
                    f"the mask is {sizes[0]} pixels, and its picture {sizes[1]}; both must have "
                    "the same size"
                )
        if strength is None:
            strength = DEFAULT_STRENGTH if mask is None else DEFAULT_MASKED_STRENGTH
        return cls(image, strength, mask)

    def fitted(self, height: int, width: int) -> Original:
        """The same at the size to draw; a pixel is masked if any pixel it is made from is."""
        size = height, width
        mask = None if self.mask is None else images.mask_cover(self.mask, size)
        pixels = images.resize_cover(Image.fromarray(self.pixels), size)
        return Original(pixels, self.strength, mask)

    def kept(self, drawn: np.ndarray) -> np.ndarray:
        """The drawn picture, uint8 [H, W, 3], with this one's pixels outside the mask."""
        return drawn if self.mask is None else np.where(self.mask[..., None], drawn, self.pixels)


def read_picture(path: str) -> np.ndarray:
    """A picture file, uint8 [H, W, 3]; see `decode_picture`."""
    return decode_picture(_read(path), path)


def read_mask(path: str) -> np.ndarray:
    """A mask file, bool [H, W]; see `decode_mask`."""
    return decode_mask(_read(path), path)


def decode_picture(encoded: bytes, name: str) -> np.ndarray:
    """A picture, upright, uint8 [H, W, 3].

    Args:
        encoded: The bytes of a file in any of the formats that a dataset may have.
        name: What to call it in messages.

    Raises:
        ServingError: It is not such a picture, or has more than `storage.images.MAX_PIXELS`.
    """
    return np.asarray(_decoded(encoded, name))


def decode_mask(encoded: bytes, name: str) -> np.ndarray:
    """A mask, upright: bool [H, W], true where it is white, which is drawn anew.

    Args:
        encoded: The bytes of a file in any of the formats that a dataset may have. Grey from 128 on
            is white.
        name: What to call it in messages.

    Raises:
        ServingError: It is not such a picture, has too many pixels or transparent ones.
    """
    image = _decoded(encoded, name)
    if not images.is_opaque(encoded):
        raise ServingError(
            f"the mask {name} has transparent pixels, which are neither drawn nor kept: save it in "
            "white, which is drawn anew, and black, which is kept"
        )
    mask: np.ndarray = np.asarray(image.convert("L")) >= _WHITE
    return mask


def _check_array(
    what: str, array: np.ndarray, dtype: type[np.generic], rank: int, shape: str, maker: str
) -> None:
    found = np.asarray(array)
    channels_right = rank == 2 or found.shape[-1:] == (3,)
    if found.dtype != dtype or found.ndim != rank or 0 in found.shape or not channels_right:
        raise ServingError(
            f"the {what} is {found.dtype} {list(found.shape)}; it must be {np.dtype(dtype)} "
            f"{shape}, as serving.pictures.{maker} returns it"
        )


def _decoded(encoded: bytes, name: str) -> Image.Image:
    try:
        return images.decode_image(encoded)
    except images.ImageError as error:
        raise ServingError(f"{name} cannot be used: {error}") from error


def _read(path: str) -> bytes:
    try:
        return filesystem.read_bytes(path)
    except OSError as error:
        detail = error.strerror or str(error).partition("\n")[0]
        raise ServingError(f"{path} cannot be read: {detail}") from error
