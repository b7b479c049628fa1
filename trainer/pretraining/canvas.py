"""Tools to paint pictures, many at once on any device.

Pictures are float32 [N, 3, 128, 128] in [0, 1], coverage is float32 [N, 1, 128, 128].
"""

from __future__ import annotations

import torch

from data.colours import COLOURS, OUTLINE
from trainer.pretraining.icons import SIZE


class Canvas:
    """Colours, round brushes, and random numbers from the default generator of its device.

    Attributes:
        device: The device, such as `"cuda"`.
        palette: float32 [10, 3], the named colours, in [0, 1].
    """

    def __init__(self, device: str) -> None:
        self.device = device
        self.palette = torch.tensor(list(COLOURS.values()), device=device) / 255
        self._line = torch.tensor(OUTLINE, device=device) / 255
        side = torch.arange(SIZE, device=device) + 0.5
        self._y, self._x = torch.meshgrid(side, side, indexing="ij")

    def _disc(
        self, x: torch.Tensor, y: torch.Tensor, radius: torch.Tensor, wide: float = 1.0
    ) -> torch.Tensor:
        """Coverage of discs, `wide` times as wide as high; the tensors are [N], in pixels."""
        x, y, radius = (each(value, 3) for value in (x, y, radius))
        distance = (((self._x - x) / wide) ** 2 + (self._y - y) ** 2).sqrt()
        return (radius - distance + 0.5).clamp(0, 1)[:, None]

    def _rand(self, *shape: int) -> torch.Tensor:
        return torch.rand(*shape, device=self.device)


def painted(pictures: torch.Tensor, mask: torch.Tensor, paint: torch.Tensor) -> torch.Tensor:
    """Pictures with paint where the mask, [N, 1, 128, 128], is set; a single colour is [3]."""
    if paint.ndim == 1:
        paint = paint[:, None, None]
    return pictures * (1 - mask) + mask * paint


def each(values: torch.Tensor, ndim: int = 4) -> torch.Tensor:
    """One value for each picture, from [N] to [N, 1, 1, 1], or to `ndim` dimensions."""
    return values.reshape(len(values), *[1] * (ndim - 1))
