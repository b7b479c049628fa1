"""Turns icons into pictures, many at once on any device: moved, coloured, outlined, on a ground.

Pictures are float32 [N, 3, 128, 128] in [0, 1], coverage is float32 [N, 1, 128, 128].
"""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F  # noqa: N812

from trainer.pretraining.canvas import Canvas, each, painted
from trainer.pretraining.icons import SIZE
from trainer.pretraining.parts import Parts
from trainer.pretraining.parts_painter import PartsPainter

_LUMINANCE = (0.299, 0.587, 0.114)


@dataclasses.dataclass(frozen=True)
class Style:
    """How icons are arranged in scenes.

    Attributes:
        scales: Smallest and largest size, as fractions of the picture.
        outlined: Fraction with a dark line around them.
        wild_grounds: Fraction on a ground of any colour; other grounds are white or pale.
        shift: How far they are moved from the middle, as a fraction of the available room.
        details: Whether spots, stripes, eyes and mouths are put on them, for the autoencoder, which
            has to draw such small things.
    """

    scales: tuple[float, float] = (0.72, 1.1)
    outlined: float = 0.5
    wild_grounds: float = 0.0
    shift: float = 0.7
    details: bool = False


AUTOENCODER_STYLE = Style((0.45, 1.35), 0.6, 0.2, details=True)
WITH_PARTS_STYLE = Style((0.52, 0.85), 0.8, shift=0.3)


class Scenery(Canvas):
    """Draws scenes of icons."""

    def __init__(self, device: str) -> None:
        super().__init__(device)
        self._parts = PartsPainter(device)

    def scenes(
        self,
        icons: torch.Tensor,
        style: Style,
        *,
        colour: torch.Tensor,
        coloured: torch.Tensor,
        mirrored: torch.Tensor,
        parts: Parts | None = None,
    ) -> torch.Tensor:
        """Pictures of icons.

        Args:
            icons: uint8 [N, 4, 128, 128].
            style: Their arrangement.
            colour: float32 [N, 3], which replaces the colours of an icon ...
            coloured: bool [N], ... if this is set.
            mirrored: bool [N].
            parts: Parts that are added to them.
        """
        count = len(icons)
        rgb, coverage = icons[:, :3] / 255, icons[:, 3:] / 255
        rgb = torch.where(each(coloured), recoloured(rgb, coverage, colour), rgb)
        low, high = style.scales
        scale = low + (high - low) * self._rand(count)
        slack = torch.clamp(1 - 0.86 * scale, min=0.04)
        shift = (2 * self._rand(count, 2) - 1) * slack[:, None] * style.shift
        mirror = torch.where(mirrored, -1.0, 1.0)
        transform = torch.zeros(count, 2, 3, device=self.device)
        transform[:, 0, 0], transform[:, 1, 1] = mirror / scale, 1 / scale
        transform[:, 0, 2], transform[:, 1, 2] = (
            shift[:, 0] / scale * mirror,
            shift[:, 1] / scale,
        )
        grid = F.affine_grid(transform, [count, 4, SIZE, SIZE], align_corners=False)
        moved = F.grid_sample(torch.cat([rgb * coverage, coverage], 1), grid, align_corners=False)
        paint, coverage = moved[:, :3], moved[:, 3:].clamp(0, 1)
        wide = torch.where(
            each(self._rand(count) < 0.5),
            F.max_pool2d(coverage, 5, 1, 2),
            F.max_pool2d(coverage, 7, 1, 3),
        )
        line = wide * each(self._rand(count) < style.outlined)
        ground = self._grounds(count, style.wild_grounds)[:, :, None, None]
        if parts is not None:
            ground = self._parts.behind(ground, coverage, parts)
        behind = ground * (1 - line) + self._line[:, None, None] * line
        pictures = (paint + behind * (1 - coverage)).clamp(0, 1)
        if parts is not None:
            pictures = self._parts.on(pictures, coverage, parts)
            pictures = self._parts.with_faces(pictures, coverage, parts)
        return (
            self.with_eyes(self._spotted(pictures, coverage), 0.55) if style.details else pictures
        )

    def with_eyes(self, pictures: torch.Tensor, fraction: float) -> torch.Tensor:
        """Puts one to three round eyes, and often a mouth, anywhere on a fraction of pictures."""
        count = len(pictures)
        chosen = (self._rand(count) < fraction).float()
        number = torch.randint(1, 4, (count,), device=self.device)
        radius = 3.5 + 7 * self._rand(count) ** 1.5
        x, y = 30 + 68 * self._rand(count), 26 + 70 * self._rand(count)
        gap = radius * (2.0 + 0.5 * self._rand(count))
        look = (self._rand(count, 2) - 0.5) * 0.5 * radius[:, None]
        thickness = 1.2 + 1.6 * self._rand(count)
        pupil = radius * (0.45 + 0.25 * self._rand(count))
        glint = radius * (0.12 + 0.1 * self._rand(count))
        only_pupil = (self._rand(count) < 0.2).float()
        white = torch.ones(3, device=self.device)
        for eye in range(3):
            there = chosen * (eye < number).float()
            ball = there * (1 - only_pupil)
            centre = x + (eye - (number - 1) / 2) * gap
            look_x, look_y = centre + look[:, 0], y + look[:, 1]
            for disc, mask, paint in (
                (self._disc(centre, y, radius + thickness), ball, self._line),
                (self._disc(centre, y, radius), ball, white),
                (self._disc(look_x, look_y, pupil), there, self._line),
                (self._disc(look_x - 0.3 * pupil, look_y - 0.35 * pupil, glint), there, white),
            ):
                pictures = painted(pictures, disc * each(mask), paint)
        curve = radius * (0.7 + self._rand(count))
        down = torch.sign(self._rand(count) - 0.5)
        half = 0.9 + 0.8 * self._rand(count)
        centre_y = y + 2.2 * radius - down * curve
        ring = self._disc(x, centre_y, curve + half) - self._disc(x, centre_y, curve - half)
        below = (self._y - centre_y[:, None, None]) * down[:, None, None]
        part = torch.sigmoid((below - (0.55 * curve)[:, None, None]) * 2)[:, None]
        mouths = each(chosen * (self._rand(count) < 0.6).float())
        return painted(pictures, ring.clamp(0, 1) * part * mouths, self._line)

    def _spotted(self, pictures: torch.Tensor, coverage: torch.Tensor) -> torch.Tensor:
        count = len(pictures)
        paint = self.palette[torch.randint(len(self.palette), (count,), device=self.device)]
        chosen = each(self._rand(count) < 0.3)
        radius = 2.5 + 5 * self._rand(count)
        spots = torch.zeros_like(coverage)
        for _ in range(7):
            x, y = 20 + 88 * self._rand(count), 20 + 88 * self._rand(count)
            spots = torch.maximum(spots, self._disc(x, y, radius * (0.7 + 0.6 * self._rand(count))))
        frequency = (0.25 + 0.5 * self._rand(count))[:, None, None]
        phase = 6 * self._rand(count)[:, None, None]
        wave = torch.sin((self._y + 0.4 * self._x)[None] * frequency + phase)
        stripes = ((wave - 0.3) * 6).clamp(0, 1)[:, None]
        pattern = torch.where(each(self._rand(count) < 0.4), stripes, spots)
        mask = pattern * (coverage > 0.5) * chosen
        return painted(pictures, mask, paint[:, :, None, None])

    def _grounds(self, count: int, wild_fraction: float) -> torch.Tensor:
        saturation, value = 0.12 * self._rand(count), 0.93 + 0.07 * self._rand(count)
        white = self._rand(count) < 0.25
        saturation, value = saturation * ~white, torch.where(white, 1.0, value)
        wild = self._rand(count) < wild_fraction
        saturation = torch.where(wild, self._rand(count), saturation)
        value = torch.where(wild, self._rand(count), value)
        hue = self._rand(count)
        k = torch.stack([(n + 6 * hue) % 6 for n in (5.0, 3.0, 1.0)], -1)
        return value[:, None] * (1 - saturation[:, None] * torch.minimum(k, 4 - k).clamp(0, 1))


def recoloured(rgb: torch.Tensor, coverage: torch.Tensor, colour: torch.Tensor) -> torch.Tensor:
    """Replaces every colour with this one, float32 [N, 3]; light, shade and greys stay."""
    tint = ((_chroma(rgb) - 0.08) / 0.12).clamp(0, 1)
    weights = torch.tensor(_LUMINANCE, device=rgb.device)[:, None, None]
    luminance = (rgb * weights).sum(1, keepdim=True)
    weight = tint * coverage
    mean = (luminance * weight).sum((2, 3), keepdim=True) / weight.sum(
        (2, 3), keepdim=True
    ).clamp_min(1e-3)
    relative = luminance / mean.clamp_min(0.05)
    colour = colour[:, :, None, None]
    above = ((relative - 1) / (1 / mean.clamp(0.05, 0.9) - 1)).clamp(0, 1)
    shaded = torch.where(
        relative <= 1, colour * relative.clamp(0, 1), colour + (1 - colour) * above
    )
    return rgb * (1 - tint) + shaded * tint


def coloured_fraction(icons: torch.Tensor) -> torch.Tensor:
    """The fraction of each icon, uint8 [N, 4, 128, 128], that is not grey: float32 [N]."""
    rgb, coverage = icons[:, :3] / 255, icons[:, 3:] / 255
    coloured = ((_chroma(rgb) > 0.2) * coverage).sum((1, 2, 3))
    return coloured / coverage.sum((1, 2, 3)).clamp_min(1)


def _chroma(rgb: torch.Tensor) -> torch.Tensor:
    return rgb.amax(1, keepdim=True) - rgb.amin(1, keepdim=True)
