"""What a picture says of itself, written and read back, and what becomes of it on the way."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from storage import picture_marks
from storage.picture_marks import Marks, MarksError, network_digests

MARKS = Marks(
    prompt="a café, <drawn> & 図",
    negative_prompt="a bird",
    num_steps=7,
    sampler="dpmpp_2m",
    guidance_scale=4.5,
    seed=2**64 - 1,
    height=16,
    width=24,
    release=3,
    training_id="c8990dda3292f187",
    preset="tiny",
    networks={"diffusion_model": "ab" * 32},
)
PIXELS = np.random.default_rng(0).integers(0, 256, (16, 24, 3)).astype(np.uint8)
WHAT_TEXT_SAYS = (
    "a café, <drawn> & 図\nNegative prompt: a bird\n"
    "Steps: 7, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 4.5, "
    "Seed: 18446744073709551615, Size: 24x16, Model hash: ababababab, Model: tiny-3, "
    "Version: sd-finetuning-tfx"
)


def chunks(contents: bytes) -> list[tuple[bytes, bytes]]:
    """Kind and content of each part of a PNG file, by the format's own rules."""
    assert contents[:8] == b"\x89PNG\r\n\x1a\n"
    found, place = [], 8
    while place < len(contents):
        size, kind = struct.unpack(">I4s", contents[place : place + 8])
        data = contents[place + 8 : place + 8 + size]
        [crc] = struct.unpack(">I", contents[place + 8 + size : place + 12 + size])
        assert crc == zlib.crc32(kind + data)
        found.append((kind, data))
        place += 12 + size
    return found


def test_a_file_says_it_three_times() -> None:
    contents = picture_marks.encode(PIXELS, [MARKS])
    assert picture_marks.encode(PIXELS, [MARKS]) == contents
    texts = {}
    for kind, data in chunks(contents):
        if kind == b"tEXt":
            name, _, text = data.partition(b"\0")
            texts[name] = text.decode("latin-1")
        elif kind == b"iTXt":
            name, _, rest = data.partition(b"\0")
            assert rest[:4] == b"\0\0\0\0", "compressed, or in a language"
            texts[name] = rest[4:].decode()
    assert texts[b"parameters"] == WHAT_TEXT_SAYS
    xmp = texts[b"XML:com.adobe.xmp"]
    kind = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
    assert f"<Iptc4xmpExt:DigitalSourceType>{kind}</Iptc4xmpExt:DigitalSourceType>" in xmp
    content = json.loads(texts[b"sd-finetuning-tfx"])
    assert content["pictures"][0]["prompt"] == MARKS.prompt
    pixels = hashlib.sha256(b"16x24x3 " + PIXELS.tobytes()).hexdigest()
    assert content["pixels_sha256"] == pixels
    found = picture_marks.read(contents)
    assert found.pictures == (MARKS,)
    assert (found.is_as_marked, found.agrees, found.says_generated) == (True, True, True)
    np.testing.assert_array_equal(picture_marks.pixels_of(contents), PIXELS)


def test_what_was_asked_from_a_picture() -> None:
    marks = dataclasses.replace(
        MARKS, strength=0.75, image_sha256="1" * 64, mask_sha256="2" * 64, checkpoint_sha256="cd"
    )
    assert "Model hash: cd, Model: tiny-3, Denoising strength: 0.75, Version" in marks.parameters
    contents = picture_marks.encode(PIXELS, [marks])
    # What lies outside of the mask was not made by a model.
    assert b"/compositeWithTrainedAlgorithmicMedia<" in contents
    assert picture_marks.read(contents).pictures == (marks,)


def test_the_prompt_need_not_be_told() -> None:
    contents = picture_marks.encode(PIXELS, [MARKS.without_prompt])
    for part in ("caf", "drawn", "bird"):
        assert part.encode() not in contents
    [marks] = picture_marks.read(contents).pictures
    assert (marks.prompt, marks.negative_prompt, marks.seed) == (None, None, MARKS.seed)
    assert marks.parameters.startswith("Steps: 7, ")


def test_what_happens_to_pictures() -> None:
    contents = picture_marks.encode(PIXELS, [MARKS, MARKS], columns=2)
    with Image.open(io.BytesIO(contents)) as image:
        image.load()
        text = dict(image.info)
    # Edited by a program that keeps texts.
    edited, kept = io.BytesIO(), PngImagePlugin.PngInfo()
    for name, value in text.items():
        kept.add_text(name, value)
    changed = PIXELS.copy()
    changed[3, 5, 1] ^= 1
    Image.fromarray(changed).save(edited, "PNG", pnginfo=kept)
    found = picture_marks.read(edited.getvalue())
    assert (found.columns, len(found.pictures)) == (2, 2)
    assert (found.is_as_marked, found.agrees) == (False, True)
    # Converted, and stripped.
    for kind in ("JPEG", "WEBP", "PNG"):
        other = io.BytesIO()
        Image.fromarray(PIXELS).save(other, kind)
        found = picture_marks.read(other.getvalue())
        assert (found.pictures, found.parameters, found.says_generated) == ((), None, False)
    # Another program's.
    other, kept = io.BytesIO(), PngImagePlugin.PngInfo()
    kept.add_text("parameters", "a dog\nSteps: 20")
    Image.fromarray(PIXELS).save(other, "PNG", pnginfo=kept)
    found = picture_marks.read(other.getvalue())
    assert (found.pictures, found.parameters) == ((), "a dog\nSteps: 20")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "not JSON"),
        ("[" * 3000, "not JSON"),
        ("[]", "do not name any pictures"),
        ('{"pictures": [], "columns": 1}', "do not name any pictures"),
        ('{"pictures": [1], "columns": 1}', "not a JSON object"),
        ('{"pictures": [{}], "columns": 1}', "are missing"),
        ('{"pictures": [{"seed": "x"}], "columns": 1}', "seed is 'x'"),
        ('{"pictures": [{"seed": true}], "columns": 1}', "seed is 'True'"),
        ('{"pictures": [{"networks": {"decoder": 7}}], "columns": 1}', "digest of decoder"),
        ('{"pictures": [{}], "columns": 0}', "do not name any pictures"),
    ],
)
def test_damaged_marks_are_told(text: str, said: str) -> None:
    file, info = io.BytesIO(), PngImagePlugin.PngInfo()
    info.add_text(picture_marks.KEYWORD, text)
    Image.fromarray(PIXELS).save(file, "PNG", pnginfo=info)
    with pytest.raises(MarksError, match=said):
        picture_marks.read(file.getvalue())


@pytest.mark.parametrize("contents", [b"", b"no picture", picture_marks.KEYWORD.encode() * 99])
def test_what_is_no_picture_is_told(contents: bytes) -> None:
    with pytest.raises(MarksError, match="cannot be read as a picture"):
        picture_marks.read(contents)


def test_a_network_is_the_same_under_another_number() -> None:
    files = {"decoder/3/b": "22", "decoder/3/a": "11", "text_encoder/3/a": "11"}
    expected = hashlib.sha256(b"11  a\n22  b\n").hexdigest()
    found = network_digests(files)
    assert found["decoder"] == expected
    assert found == network_digests({name.replace("/3/", "/12/"): d for name, d in files.items()})
    assert found != network_digests({**files, "decoder/3/b": "23"})
