"""Paints parts on pictures of things, many at once on any device.

Everything is made of discs and capsules: lines with round ends, which may be thicker at one end.
"""

from __future__ import annotations

import numpy as np
import torch

from trainer.pretraining.canvas import Canvas, each, painted
from trainer.pretraining.icons import SIZE
from trainer.pretraining.parts import BEHIND, Parts

_CAPSULES = 5
_LINE_WIDTH = 2.6


class PartsPainter(Canvas):
    """Paints parts."""

    def behind(self, grounds: torch.Tensor, coverage: torch.Tensor, parts: Parts) -> torch.Tensor:
        """Grounds with the parts that stick out behind the things to be painted on them.

        Args:
            grounds: float32 [N, 3, 128, 128] in [0, 1].
            coverage: float32 [N, 1, 128, 128], coverage of the things.
            parts: Parts of the things.
        """
        box = self._boxes(coverage)
        kind = self._here(parts.behind)
        roots = self._roots(coverage, box)
        made = (
            self._horns(roots),
            self._ears(roots),
            self._antennae(roots),
            self._wings(box),
            self._tail(box),
        )
        capsules = torch.zeros(len(kind), _CAPSULES, 6, device=self.device)
        for number, one in enumerate(made, BEHIND.index("horns")):
            capsules = torch.where(each(kind == number, 3), one, capsules)
        paint = self.palette[self._here(parts.behind_colour)][:, :, None, None]
        there = each(kind > 0).float()
        for index in range(_CAPSULES):
            one = capsules[:, index]
            # A capsule without a size does not exist.
            seen = there * each(one[:, 4] > 0).float()
            grounds = painted(grounds, self._capsule(one, _LINE_WIDTH) * seen, self._line)
            grounds = painted(grounds, self._capsule(one, 0.0) * seen, paint)
        return grounds

    def on(self, pictures: torch.Tensor, coverage: torch.Tensor, parts: Parts) -> torch.Tensor:
        """Pictures of things with the parts painted on them; arguments as for `behind`."""
        left, top, right, bottom = self._boxes(coverage).unbind(1)
        kind, count = self._here(parts.on), len(coverage)
        spots = torch.zeros_like(coverage)
        for _ in range(9):
            x = left + (right - left) * self._rand(count)
            y = top + (bottom - top) * self._rand(count)
            spots = torch.maximum(spots, self._disc(x, y, 4 + 2.5 * self._rand(count)))
        frequency = 0.38 + 0.14 * self._rand(count)
        wave = torch.sin(self._y * each(frequency, 3) + each(6 * self._rand(count), 3))
        stripes = ((wave - 0.1) * 5).clamp(0, 1)[:, None]
        belly = self._disc(
            (left + right) / 2, bottom - 0.26 * (bottom - top), 0.2 * (right - left), wide=1.3
        )
        mask = (spots * each(kind == 1) + stripes * each(kind == 2) + belly * each(kind == 3)) * (
            coverage > 0.5
        )
        return painted(pictures, mask, self.palette[self._here(parts.on_colour)][:, :, None, None])

    def with_faces(
        self, pictures: torch.Tensor, coverage: torch.Tensor, parts: Parts
    ) -> torch.Tensor:
        """Pictures with eyes and mouths on the upper half of things; arguments as for `behind`."""
        number, count = self._here(parts.num_eyes), len(coverage)
        x, y = self._faces(coverage)
        size = torch.tensor([0.0, 12.0, 9.2, 8.0], device=self.device)[number]
        radius = size * (0.55 + 0.6 * self._rand(count))
        gap = radius * (2.25 + 0.35 * self._rand(count))
        look = (self._rand(count, 2) - 0.5) * 0.5
        share = 0.42 + 0.2 * self._rand(count)
        mouth = self._here(parts.mouth)
        white = torch.ones(3, device=self.device)
        closed = (self._rand(count) < 0.25).float()
        for eye in range(3):
            there = (eye < number).float()
            offset = eye - (number - 1) / 2
            centre = x + offset * gap
            # With three eyes, the middle one is higher.
            at = y - torch.where((number == 3) & (eye == 1), 0.6, 0.0) * radius
            pupil = radius * share
            look_x, look_y = centre + look[:, 0] * radius, at + look[:, 1] * radius
            for disc, paint in (
                (self._disc(centre, at, radius + 2.0), self._line),
                (self._disc(centre, at, radius), white),
                (self._disc(look_x, look_y, pupil), self._line),
                (
                    self._disc(look_x - 0.36 * pupil, look_y - 0.43 * pupil, 0.36 * pupil),
                    white,
                ),
            ):
                pictures = painted(pictures, disc * each(there * (1 - closed)), paint)
            lid = self._arc(centre, at, radius, 1.8, down=torch.ones_like(radius))
            pictures = painted(pictures, lid * each(there * closed), self._line)
        down = torch.where(mouth == 1, 1.0, -1.0)
        curve = 5 + 5 * self._rand(count)
        below = y + torch.where(number == 1, 1.5, 1.75) * radius
        smile = self._arc(
            x, torch.where(down > 0, below - 0.5 * curve, below + curve), curve, 1.7, down
        )
        return painted(pictures, smile * each(mouth > 0), self._line)

    def _faces(self, coverage: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Position of the eyes: the middle of the covered upper half of a thing, [N] each."""
        box = self._boxes(coverage)
        top, bottom = box[:, 1], box[:, 3]
        middle = each(top + (0.55 + 0.1 * self._rand(len(box))) * (bottom - top), 3)
        upper = coverage[:, 0] * (self._y < middle)
        total = upper.sum((1, 2)).clamp_min(1)
        x = (upper * self._x).sum((1, 2)) / total
        y = (upper * self._y).sum((1, 2)) / total
        return x + 3 * (self._rand(len(box)) - 0.5), y + 5 * (self._rand(len(box)) - 0.5)

    def _boxes(self, coverage: torch.Tensor) -> torch.Tensor:
        """Left, top, right and bottom of the covered area: float32 [N, 4], in pixels."""
        there = coverage[:, 0] > 0.5
        sides = []
        for axis in (1, 2):
            line = there.any(axis).float()
            first = line.argmax(1)
            last = SIZE - line.flip(1).argmax(1)
            sides.append((first.float(), last.float()))
        (left, right), (top, bottom) = sides
        return torch.stack([left, top, right, bottom], 1)

    def _roots(self, coverage: torch.Tensor, box: torch.Tensor) -> torch.Tensor:
        """Positions left and right of the middle on the upper edge, x and y: float32 [N, 2, 2]."""
        left, _, right, bottom = box.unbind(1)
        spread = (0.2 + 0.1 * self._rand(len(box))) * (right - left)
        there = coverage[:, 0] > 0.5
        roots = []
        for side in (-1, 1):
            x = (left + right) / 2 + side * spread
            column = x.long().clamp(0, SIZE - 1)
            line = there[torch.arange(len(box), device=self.device), :, column]
            y = torch.where(line.any(1), line.float().argmax(1), bottom)
            roots.append(torch.stack([x, y], 1))
        return torch.stack(roots, 1)

    def _horns(self, roots: torch.Tensor) -> torch.Tensor:
        lean = 12 * (self._rand(len(roots)) - 0.25)
        return self._pairs(roots, lean, 18 + 8 * self._rand(len(roots)), 7.5, 1.0)

    def _ears(self, roots: torch.Tensor) -> torch.Tensor:
        long = 4 + 14 * self._rand(len(roots))
        return self._pairs(roots, 5 * self._rand(len(roots)), long, 10.0, 7.0)

    def _antennae(self, roots: torch.Tensor) -> torch.Tensor:
        lean = 12 * (self._rand(len(roots)) - 0.3)
        capsules = self._pairs(roots, lean, 19 + 5 * self._rand(len(roots)), 1.0, 1.0)
        for side in range(2):
            tip = capsules[:, side, 2:4]
            capsules[:, 2 + side, :2] = capsules[:, 2 + side, 2:4] = tip
            capsules[:, 2 + side, 4:] = 6.0
        return capsules

    def _wings(self, box: torch.Tensor) -> torch.Tensor:
        left, top, right, bottom = box.unbind(1)
        capsules = torch.zeros(len(box), _CAPSULES, 6, device=self.device)
        y = top + 0.5 * (bottom - top)
        long = 18 + 8 * self._rand(len(box))
        for index, (side, up) in enumerate(((-1, 0.1), (1, 0.1), (-1, 0.75), (1, 0.75))):
            x = (left + right) / 2 + side * 0.38 * (right - left)
            values = (x, y, x + side * long, y - up * long, 8.0, 8.0 if up < 0.5 else 9.5)
            capsules[:, index] = self._stacked(values)
        return capsules

    def _tail(self, box: torch.Tensor) -> torch.Tensor:
        left, top, right, bottom = box.unbind(1)
        side = torch.where(self._rand(len(box)) < 0.5, -1.0, 1.0)
        x = (left + right) / 2 + side * 0.36 * (right - left)
        y = bottom - 0.2 * (bottom - top)
        far = x + side * (18 + 6 * self._rand(len(box)))
        tip = y - 14 - 10 * self._rand(len(box))
        capsules = torch.zeros(len(box), _CAPSULES, 6, device=self.device)
        capsules[:, 0] = self._stacked((far, tip, far, tip, 8.0, 8.0))
        capsules[:, 1] = self._stacked((far, y - 4, far, tip, 3.8, 3.8))
        capsules[:, 2] = self._stacked((x, y, far, y - 4, 3.8, 3.8))
        return capsules

    def _pairs(
        self,
        roots: torch.Tensor,
        lean: torch.Tensor,
        long: torch.Tensor,
        thick: float,
        thin: float,
    ) -> torch.Tensor:
        """Capsules that rise from two roots and lean outwards."""
        capsules = torch.zeros(len(roots), _CAPSULES, 6, device=self.device)
        for index, side in enumerate((-1, 1)):
            x, y = roots[:, index].unbind(1)
            values = (x, y + 2, x + side * lean, y - long, thick, thin)
            capsules[:, index] = self._stacked(values)
        return capsules

    def _stacked(self, values: tuple[torch.Tensor | float, ...]) -> torch.Tensor:
        return torch.stack(torch.broadcast_tensors(*map(self._tensor, values)), 1)

    def _tensor(self, value: torch.Tensor | float) -> torch.Tensor:
        return torch.as_tensor(value, dtype=torch.float32, device=self.device)

    def _capsule(self, capsule: torch.Tensor, wider: float) -> torch.Tensor:
        """Coverage of lines with round ends, float32 [N, 6]: x and y of both ends, then radii."""
        x0, y0, x1, y1, first, last = (each(value, 3) for value in capsule.unbind(1))
        along_x, along_y = x1 - x0, y1 - y0
        length = (along_x**2 + along_y**2).clamp_min(1e-6)
        at = (((self._x - x0) * along_x + (self._y - y0) * along_y) / length).clamp(0, 1)
        distance = ((self._x - x0 - at * along_x) ** 2 + (self._y - y0 - at * along_y) ** 2).sqrt()
        return (first + (last - first) * at + wider - distance + 0.5).clamp(0, 1)[:, None]

    def _arc(
        self,
        x: torch.Tensor,
        y: torch.Tensor,
        radius: torch.Tensor,
        half: float,
        down: torch.Tensor,
    ) -> torch.Tensor:
        """A third of a ring, below its centre where `down` is 1 and above where it is -1."""
        ring = self._disc(x, y, radius + half) - self._disc(x, y, (radius - half).clamp_min(0))
        below = (self._y - each(y, 3)) * each(down, 3) - each(0.35 * radius, 3)
        return ring.clamp(0, 1) * torch.sigmoid(below * 2)[:, None]

    def _here(self, values: np.ndarray) -> torch.Tensor:
        return torch.as_tensor(values, device=self.device)
