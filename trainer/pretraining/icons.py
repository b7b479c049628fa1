"""The pictures of icon packages: drawings of a few thousand things, with names in words."""

from __future__ import annotations

import dataclasses
import io
import json
import multiprocessing
import re
import tarfile
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import IO

import numpy as np
from PIL import Image

SIZE = 128
"""Side of a picture in pixels."""

PACKAGES: Mapping[str, bool] = MappingProxyType(
    {"noto": True, "noto-v1": True, "fluent-emoji-flat": True, "fxemoji": False}
)
"""The packages, without `@iconify-json/`, and whether their names are words."""

# The categories of iconify without faces and bodies.
_THINGS = ("Activities", "Food & Drink", "Objects", "Symbols", "Travel & Places")
# The drawing has a margin in its picture, to leave room for outlines.
_INNER = 116
_MIN_COVERAGE = 0.03
# Signs and letters, and the same person in six skin tones.
_LEFT_OUT = re.compile(
    r"skin-tone|(^|-)(light|medium|dark|tone\d)($|-)|(^|-)flags?($|-)|keycap|button|oclock|thirty"
    r"|regional|latin|japanese|squared|symbols?|(^|-)arrows?($|-)|input|^[0-9a-z]$|geometric|tag-"
    r"|hundred-points"
)


@dataclasses.dataclass(frozen=True)
class Icons:
    """Drawings without a background.

    Attributes:
        names: The content of each, such as `"red apple"`.
        pictures: uint8 [N, 128, 128, 4], sRGB and coverage.
        named: bool [N], whether the name is made of words.
        things: bool [N], whether it is certainly a thing: not alive, no face.
    """

    names: list[str]
    pictures: np.ndarray
    named: np.ndarray
    things: np.ndarray


def read_icons(folder: str) -> Icons:
    """Reads the archives of the packages in a folder, as `npm pack @iconify-json/noto` writes them.

    Raises:
        FileNotFoundError: An archive is missing.
    """
    jobs = []
    for package, named in PACKAGES.items():
        archives = sorted(Path(folder).glob(f"iconify-json-{package}-[0-9]*.tgz"))
        if not archives:
            raise FileNotFoundError(
                f"{folder} has no archive of {package}: run npm pack @iconify-json/{package} there"
            )
        with tarfile.open(archives[-1]) as archive:
            content = json.load(_member(archive, "package/icons.json"))
            categories = json.load(_member(archive, "package/metadata.json")).get("categories", {})
        things = {name for category in _THINGS for name in categories.get(category, ())}
        for name, icon in sorted(content["icons"].items()):
            if not _LEFT_OUT.search(name) and not icon.get("hidden"):
                svg = _svg(content, icon)
                jobs.append((name.replace("-", " "), svg, named, name in things))
    with multiprocessing.Pool() as pool:
        drawn = pool.starmap(_rasterize, [(svg,) for _, svg, _, _ in jobs], chunksize=32)
    kept = [(job, picture) for job, picture in zip(jobs, drawn, strict=True) if picture is not None]
    return Icons(
        [name for (name, *_), _ in kept],
        np.stack([picture for _, picture in kept]),
        np.array([named for (_, _, named, _), _ in kept]),
        np.array([is_thing for (*_, is_thing), _ in kept]),
    )


def _member(archive: tarfile.TarFile, name: str) -> IO[bytes]:
    member = archive.extractfile(name)
    assert member is not None
    return member


def _svg(package: Mapping, icon: Mapping) -> str:
    width = icon.get("width", package.get("width", 32))
    height = icon.get("height", package.get("height", 32))
    box = f"{icon.get('left', 0)} {icon.get('top', 0)} {width} {height}"
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{box}" width="{_INNER}" height="{_INNER}">{icon["body"]}</svg>'
    )


def _rasterize(svg: str) -> np.ndarray | None:
    """The picture, or `None` if the renderer cannot draw it or it is almost empty."""
    import resvg_py

    try:
        png = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=_INNER, height=_INNER))
    except ValueError:
        return None
    drawing = Image.open(io.BytesIO(png)).convert("RGBA").resize((_INNER, _INNER))
    picture = np.zeros((SIZE, SIZE, 4), np.uint8)
    margin = (SIZE - _INNER) // 2
    picture[margin : margin + _INNER, margin : margin + _INNER] = np.asarray(drawing)
    return picture if (picture[..., 3] > 128).mean() >= _MIN_COVERAGE else None
