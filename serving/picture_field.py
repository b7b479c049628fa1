"""The part of the page where one drops a picture to draw from, and paints a mask on it."""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import math
from collections.abc import Iterable

import numpy as np
from nicegui import ui
from nicegui.events import MouseEventArguments, UploadEventArguments
from PIL import Image, ImageDraw

from serving import png
from serving.errors import ServingError
from serving.pictures import DEFAULT_MASKED_STRENGTH, DEFAULT_STRENGTH, Original, decode_picture
from storage import local_pages

MAX_FILE_BYTES = 100_000_000
SOFT = "text-gray-600 dark:text-gray-400"
"""Classes of text that is less important."""

# Longer side of the picture as shown. The mask painted on it is kept at the picture's own size.
_SHOWN_SIDE = 768
_BRUSH_PER_CENT = 12
# Points of a stroke that are closer than this count as one.
_LEAST_STEP = 1.5


@dataclasses.dataclass(frozen=True)
class Stroke:
    """A brush stroke, in pixels of the picture: its width, and its points (x, y)."""

    width: float
    points: tuple[tuple[float, float], ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Painted:
    """A picture, uint8 [H, W, 3], and what was painted on it."""

    pixels: np.ndarray
    strokes: tuple[Stroke, ...] = ()

    def mask(self) -> np.ndarray | None:
        """The painted pixels, bool [H, W]; None if nothing was painted."""
        if not self.strokes:
            return None
        height, width, _ = self.pixels.shape
        image = Image.new("L", (width, height))
        draw = ImageDraw.Draw(image)
        for stroke in self.strokes:
            # In Pillow, 0 is the middle of the first pixel.
            points = [(x - 0.5, y - 0.5) for x, y in stroke.points]
            reach = (stroke.width - 1) / 2
            draw.line(points, fill=255, width=max(1, round(stroke.width)))
            # Round ends, and corners without gaps.
            for x, y in points:
                ends = (x - reach, y - reach, x + reach, y + reach)
                draw.ellipse([round(end) for end in ends], fill=255)
                draw.point((round(x), round(y)), fill=255)
        return np.asarray(image) > 0

    def original(self, strength: float | None) -> Original | None:
        """What to draw from; raises a `ServingError` if the strength is out of range."""
        return Original.of(self.pixels, strength, self.mask())


class PictureField:
    """A place for a picture, and for the mask on it."""

    def __init__(self) -> None:
        """Builds the field at NiceGUI's current place on the page."""
        self._painted: Painted | None = None
        self._scale = 1.0
        self._painting = False
        with ui.column().classes("w-full gap-2").mark("picture") as self._all:
            self._upload = ui.upload(
                auto_upload=True,
                max_file_size=MAX_FILE_BYTES,
                on_upload=self._dropped,
                on_rejected=lambda: ui.notify(
                    f"this file is not a picture, or larger than {MAX_FILE_BYTES // 10**6} MB",
                    type="negative",
                ),
            ).props('flat bordered accept="image/*,.heic"')
            self._upload.classes("w-full")
            local_pages.name_upload(self._upload, "Drop a picture to draw from")
            with ui.column().classes("w-full gap-2") as self._there:
                ui.label("Paint over what to draw anew; nothing else will change.").classes(
                    f"text-xs {SOFT}"
                )
                self._image = ui.interactive_image(
                    on_mouse=self._brushed,
                    events=["pointerdown", "pointermove", "pointerup", "pointerleave"],
                    # The content is only numbers made here.
                    sanitize=False,
                )
                self._image.classes("w-full cursor-crosshair").style("touch-action: none")
                self._image.props('role=img aria-label="Picture to draw from"')
                with ui.row().classes("w-full no-wrap items-center"):
                    ui.label("Brush").classes(f"text-sm {SOFT}")
                    self._brush = ui.slider(min=1, max=50, value=_BRUSH_PER_CENT)
                    self._brush.props('aria-label="Brush, per cent of the shorter side"').classes(
                        "grow"
                    )
                    _button("layers_clear", "Clear the mask", self._clear)
                    _button("hide_image", "Remove the picture", lambda: self.show(None))
                self._strength = ui.number("Strength", min=0, max=1, step=0.05, precision=3)
                self._strength.props("outlined dense").classes("w-full")
                self._strength.tooltip(
                    "How much of the picture may change, up to 1; empty means "
                    f"{DEFAULT_STRENGTH:g}, or {DEFAULT_MASKED_STRENGTH:g} with a mask"
                )
            self._none = ui.label("This release draws only from text.")
            self._none.classes(f"text-xs {SOFT}").set_visibility(False)
        self.show(None)

    def offer(self, possible: bool) -> None:
        """Says whether the release can draw from a picture."""
        self._upload.set_visibility(possible)
        self._none.set_visibility(not possible)
        if not possible:
            self.show(None)

    @property
    def painted(self) -> Painted | None:
        """The picture and mask that the field shows now."""
        return self._painted

    @property
    def strength(self) -> float | None:
        """The strength as set; None for the default, and if there is no picture."""
        if self._painted is None or self._strength.value is None:
            return None
        return float(self._strength.value)

    def show(self, painted: Painted | None, strength: float | None = None) -> None:
        """Shows a picture with its mask, or no picture."""
        self._painted, self._painting = painted, False
        self._there.set_visibility(painted is not None)
        self._strength.value = strength
        if painted is not None:
            image = Image.fromarray(painted.pixels)
            self._scale = max(1.0, max(image.size) / _SHOWN_SIDE)
            image.thumbnail((_SHOWN_SIDE, _SHOWN_SIDE))
            contents = png.encode(np.asarray(image))
            encoded = base64.b64encode(contents).decode()
            self._image.set_source(f"data:image/png;base64,{encoded}")
            # The frame has the name; NiceGUI cannot give the picture in it an empty one.
            self._image.client.run_javascript(f"getElement({self._image.id}).$refs.img.alt = ''")
        self._show_strokes()

    async def _dropped(self, event: UploadEventArguments) -> None:
        self._upload.reset()
        contents = await event.file.read()
        try:
            pixels = await asyncio.to_thread(decode_picture, contents, event.file.name)
        except ServingError as error:
            ui.notify(str(error), type="negative", multi_line=True)
            return
        self.show(Painted(pixels))

    def _brushed(self, event: MouseEventArguments) -> None:
        if self._painted is None:
            return
        point = (event.image_x * self._scale, event.image_y * self._scale)
        strokes = self._painted.strokes
        if event.type == "pointerdown" and event.button == 0:
            self._painting = True
            side = min(self._painted.pixels.shape[:2])
            width = max(1.0, side * float(self._brush.value) / 100)
            strokes = (*strokes, Stroke(width, (point,)))
        elif not self._painting:
            return
        elif event.type == "pointermove" and event.buttons & 1:
            last = strokes[-1]
            if math.dist(last.points[-1], point) < _LEAST_STEP * self._scale:
                return
            strokes = (*strokes[:-1], Stroke(last.width, (*last.points, point)))
        else:
            self._painting = False
            return
        self._painted = dataclasses.replace(self._painted, strokes=strokes)
        self._show_strokes()

    def _clear(self) -> None:
        if self._painted is not None:
            self._painted, self._painting = Painted(self._painted.pixels), False
            self._show_strokes()

    def _show_strokes(self) -> None:
        strokes = self._painted.strokes if self._painted else ()
        self._image.content = "".join(self._drawn(strokes))

    def _drawn(self, strokes: Iterable[Stroke]) -> Iterable[str]:
        for stroke in strokes:
            # Repeats the last point, because a polyline of one point shows nothing.
            points = (*stroke.points, stroke.points[-1])
            shown = " ".join(f"{x / self._scale:.1f},{y / self._scale:.1f}" for x, y in points)
            yield (
                f'<polyline points="{shown}" fill="none" stroke="#f03e3e" stroke-opacity="0.6" '
                f'stroke-width="{stroke.width / self._scale:.1f}" stroke-linecap="round" '
                'stroke-linejoin="round" />'
            )


def _button(icon: str, label: str, on_click: object) -> None:
    button = ui.button(icon=icon, on_click=on_click)  # type: ignore[arg-type]
    button.props(f'flat round dense size=sm aria-label="{label}"').tooltip(label)
