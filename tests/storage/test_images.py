import io
import sys
import zlib

import numpy as np
import pillow_heif
import pytest
from PIL import Image

from storage import images
from storage.images import (
    SKETCH_SIDE,
    ImageError,
    decode_image,
    inspect_image,
    resize_cover,
    to_model_range,
)


def _encode(image, **options):
    buffer = io.BytesIO()
    image.save(buffer, **options)
    return buffer.getvalue()


def _quadrants():
    """8 x 4 pixels: red left half, blue right half, first row green."""
    pixels = np.zeros((4, 8, 3), np.uint8)
    pixels[:, :4] = (255, 0, 0)
    pixels[:, 4:] = (0, 0, 255)
    pixels[0] = (0, 255, 0)
    return pixels


def test_rgb_png_is_unchanged_and_names_its_format():
    image = decode_image(_encode(Image.fromarray(_quadrants()), format="PNG"))
    assert (image.mode, image.format) == ("RGB", "png")
    np.testing.assert_array_equal(np.asarray(image), _quadrants())


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("jpeg", {"quality": 95}),
        ("jpeg", {"quality": 95, "progressive": True}),
        ("webp", {"quality": 95}),
        ("bmp", {}),
        ("tiff", {}),
    ],
)
def test_other_formats(name, options):
    colour = Image.new("RGB", (16, 16), (200, 100, 50))
    image = decode_image(_encode(colour, format=name, **options))
    assert image.format == name
    np.testing.assert_allclose(np.asarray(image).mean((0, 1)), (200, 100, 50), atol=3)


def test_exif_orientation_is_applied():
    exif = Image.Exif()
    exif[0x0112] = 6  # The camera was turned: rotate by 90 degrees clockwise to see it upright.
    image = decode_image(_encode(Image.fromarray(_quadrants()), format="PNG", exif=exif))
    assert image.size == (4, 8)
    np.testing.assert_array_equal(np.asarray(image), np.rot90(_quadrants(), -1))


def test_damaged_exif_leaves_the_picture():
    encoded = _encode(Image.fromarray(_quadrants()), format="PNG", exif=b"Exif\0\0MM\0*damaged")
    assert decode_image(encoded).size == (8, 4)


def test_transparency_is_laid_over_white():
    rgba = np.zeros((1, 3, 4), np.uint8)
    rgba[0, :, :3] = (10, 20, 30)
    rgba[0, :, 3] = (0, 51, 255)
    image = decode_image(_encode(Image.fromarray(rgba), format="PNG"))
    # 51 / 255 of the colour over white.
    half = [round(0.2 * c + 0.8 * 255) for c in (10, 20, 30)]
    np.testing.assert_allclose(np.asarray(image)[0], [[255, 255, 255], half, [10, 20, 30]], atol=1)


def test_grey_with_alpha():
    image = decode_image(_encode(Image.new("LA", (2, 2), (0, 0)), format="PNG"))
    np.testing.assert_array_equal(np.asarray(image), 255)


def test_palette_with_transparent_entry():
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 255, 0])
    image.putpixel((1, 0), 1)
    decoded = decode_image(_encode(image, format="PNG", transparency=0))
    np.testing.assert_array_equal(np.asarray(decoded)[0], [[255, 255, 255], [0, 255, 0]])


def test_palette_without_transparency():
    image = Image.new("P", (1, 1))
    image.putpalette([12, 34, 56])
    decoded = decode_image(_encode(image, format="PNG"))
    np.testing.assert_array_equal(np.asarray(decoded)[0, 0], [12, 34, 56])


def test_transparent_colour_of_rgb():
    image = Image.fromarray(_quadrants())
    decoded = decode_image(_encode(image, format="PNG", transparency=(0, 255, 0)))
    np.testing.assert_array_equal(np.asarray(decoded)[0], 255)
    np.testing.assert_array_equal(np.asarray(decoded)[1:], _quadrants()[1:])


@pytest.mark.parametrize("name", ["PNG", "TIFF"])
def test_16_bit_grey_is_scaled_not_clipped(name):
    grey = np.array([[0, 257, 32896, 65535]], np.uint16)
    decoded = decode_image(_encode(Image.fromarray(grey), format=name))
    np.testing.assert_array_equal(np.asarray(decoded)[0, :, 0], [0, 1, 128, 255])
    assert np.ptp(np.asarray(decoded), axis=-1).max() == 0


def test_one_bit():
    image = Image.new("1", (2, 1))
    image.putpixel((1, 0), 1)
    decoded = decode_image(_encode(image, format="PNG"))
    np.testing.assert_array_equal(np.asarray(decoded)[0], [[0, 0, 0], [255, 255, 255]])


def test_cmyk_jpeg_is_not_inverted():
    # No cyan, full magenta and yellow, no black: red.
    image = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    decoded = decode_image(_encode(image, format="JPEG", quality=95))
    np.testing.assert_allclose(np.asarray(decoded).mean((0, 1)), (255, 0, 0), atol=4)


def test_animation_gives_its_first_frame():
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    decoded = decode_image(
        _encode(frames[0], format="GIF", save_all=True, append_images=frames[1:])
    )
    np.testing.assert_array_equal(np.asarray(decoded)[0, 0], (255, 0, 0))


def test_truncated_file_is_an_error():
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    for name in ("PNG", "JPEG"):
        encoded = _encode(Image.fromarray(noise), format=name)
        with pytest.raises(ImageError) as caught:
            decode_image(encoded[: len(encoded) // 2])
        assert caught.value.reason == "undecodable"


@pytest.mark.parametrize("encoded", [b"", b"not a picture", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"])
def test_no_picture_is_an_error(encoded):
    with pytest.raises(ValueError, match="cannot be decoded") as caught:
        decode_image(encoded)
    assert isinstance(caught.value, ImageError)
    assert "\n" not in str(caught.value)


def test_formats_that_run_programs_are_refused():
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n"
    with pytest.raises(ImageError, match="format"):
        decode_image(postscript)


def test_too_many_pixels_are_refused_before_they_are_unpacked():
    # The header of a small picture, with a size written over it.
    encoded = bytearray(_encode(Image.new("L", (1, 1)), format="PNG"))
    encoded[16:24] = (40_000).to_bytes(4, "big") * 2
    encoded[29:33] = zlib.crc32(encoded[12:29]).to_bytes(4, "big")
    with pytest.raises(ImageError, match="1600000000 pixels") as caught:
        decode_image(bytes(encoded))
    assert caught.value.reason == "too_large"


def test_pixel_limit_is_exact():
    encoded = _encode(Image.new("L", (10, 10)), format="PNG")
    assert decode_image(encoded, max_pixels=100).size == (10, 10)
    with pytest.raises(ImageError):
        decode_image(encoded, max_pixels=99)


def _noisy(mode="RGB"):
    """61 x 43 pixels, so that the last blocks of a JPEG are partly filled."""
    channels = len(mode) if mode != "L" else 1
    pixels = np.random.default_rng(3).integers(0, 256, (43, 61, channels), np.uint8)
    return Image.fromarray(pixels.squeeze(), mode)


def _turned(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


@pytest.mark.parametrize(
    "encoded",
    [
        _encode(_noisy(), format="JPEG"),
        _encode(_noisy(), format="JPEG", progressive=True),
        _encode(_noisy(), format="JPEG", exif=_turned(3)),
        _encode(_noisy(), format="JPEG", exif=_turned(6)),
        _encode(_noisy("L"), format="JPEG"),
        _encode(_noisy("CMYK"), format="JPEG"),
        _encode(Image.new("RGB", (3, 2), (9, 200, 30)), format="JPEG"),
        _encode(_noisy(), format="PNG", exif=_turned(8)),
        _encode(_noisy("RGBA"), format="PNG"),
        _encode(_noisy(), format="WEBP"),
        _encode(_noisy(), format="TIFF"),
        _encode(
            _noisy("L").convert("P"),
            format="GIF",
            save_all=True,
            append_images=[Image.new("P", (61, 43))],
        ),
    ],
)
def test_inspecting_tells_what_decoding_gives(encoded):
    image, facts = decode_image(encoded), inspect_image(encoded)
    assert (facts.format, facts.width, facts.height) == (image.format, *image.size)
    assert facts.animated == image.info["animated"]
    luma = np.asarray(image).reshape(-1, 3).mean(axis=0) @ [0.299, 0.587, 0.114] / 255
    assert facts.brightness == pytest.approx(luma, abs=0.02)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("size", [(160, 96), (20, 12)])
def test_a_sketch_is_the_upright_picture_in_small(size, orientation):
    image = Image.linear_gradient("L").resize(size)
    image.paste(255, (0, 0, size[0] // 2, size[1] // 4))
    encoded = _encode(image, format="JPEG", quality=95, exif=_turned(orientation))
    facts = inspect_image(encoded, with_sketch=True)
    sketch = np.frombuffer(facts.sketch, np.uint8).reshape(SKETCH_SIDE, SKETCH_SIDE, 3)
    small = decode_image(encoded).resize((SKETCH_SIDE, SKETCH_SIDE), Image.BOX).convert("YCbCr")
    assert np.abs(sketch.astype(int) - np.asarray(small)).mean() < 8
    assert inspect_image(encoded).sketch == b""


@pytest.mark.parametrize("options", [{"format": "JPEG"}, {"format": "JPEG", "progressive": True}])
def test_inspecting_finds_the_damage_that_decoding_finds(options):
    encoded = _encode(_noisy(), **options)
    rng = np.random.default_rng(5)
    damaged = [encoded[:end] for end in range(0, len(encoded), 97)]
    for _ in range(200):
        changed = bytearray(encoded)
        changed[rng.integers(len(changed))] ^= 1 << rng.integers(8)
        damaged.append(bytes(changed))
    found = [_reason(decode_image, each) for each in damaged]
    assert [_reason(inspect_image, each) for each in damaged] == found
    assert 30 < sum(reason is not None for reason in found) < len(damaged)


def _reason(read, encoded):
    try:
        read(encoded)
    except ImageError as error:
        return error.reason
    return None


def test_resize_cover_crops_the_middle_and_does_not_stretch():
    # 30 x 10: red, green, blue squares side by side; the middle one is what is left.
    pixels = np.zeros((10, 30, 3), np.uint8)
    for index in range(3):
        pixels[:, 10 * index : 10 * (index + 1), index] = 255
    for turned in (pixels, pixels.transpose(1, 0, 2)):
        square = resize_cover(Image.fromarray(turned), 5)
        assert square.shape == (5, 5, 3)
        assert square.dtype == np.uint8
        # The edge blends a little with what is cut off, as in cutting after scaling.
        np.testing.assert_allclose(square, np.broadcast_to((0, 255, 0), (5, 5, 3)), atol=16)


def test_resize_cover_keeps_a_circle_round():
    y, x = np.mgrid[:60, :100]
    circle = ((x - 49.5) ** 2 + (y - 29.5) ** 2 < 20**2).astype(np.uint8) * 255
    square = resize_cover(Image.fromarray(circle).convert("RGB"), 30)[..., 0] > 127
    assert square.any(0).sum() == square.any(1).sum() == 20


def test_resize_cover_averages_what_it_shrinks():
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    np.testing.assert_allclose(resize_cover(Image.fromarray(stripes), 8), 127.5, atol=6)


def test_resize_cover_of_the_right_size_changes_nothing():
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    np.testing.assert_array_equal(resize_cover(Image.fromarray(pixels), 8), pixels)


def test_to_model_range():
    scaled = to_model_range(np.array([0, 51, 255], np.uint8))
    assert scaled.dtype == np.float32
    np.testing.assert_allclose(scaled, [-1.0, -0.6, 1.0], atol=1e-6)


def test_heic_without_its_package_says_what_to_install(monkeypatch):
    head = b"\x00\x00\x00\x1cftypheic\x00\x00\x00\x00mif1heicmiaf"
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    images._reads_heif.cache_clear()
    with pytest.raises(ImageError, match="it is HEIC, which needs another package: pip install"):
        inspect_image(head + bytes(64))
    images._reads_heif.cache_clear()


def test_heic():
    buffer = io.BytesIO()
    pixels = np.full((40, 64, 3), (200, 30, 60), np.uint8)
    pillow_heif.from_pillow(Image.fromarray(pixels)).save(buffer, quality=90)
    facts = inspect_image(buffer.getvalue())
    assert (facts.format, facts.width, facts.height) == ("heif", 64, 40)
    decoded = np.asarray(decode_image(buffer.getvalue())).astype(int)
    assert np.abs(decoded - pixels).max() < 12
