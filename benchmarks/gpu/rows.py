"""The measurements on a GPU, training steps and drawing, most telling first."""

from __future__ import annotations

import dataclasses
import fnmatch
import itertools
from collections.abc import Sequence
from typing import Any, Literal

from storage.user_errors import UserError
from trainer.presets import get_preset
from trainer.training_config import Precision

Kind = Literal["training", "drawing"]

NUM_STEPS = 25
"""Steps of drawing."""
LORA_RANK = 16
"""Rank of the adapters; the same as in the published figures that they are compared with."""

_BATCHES = (4, 1, 8)
_PRECISIONS: tuple[Precision, ...] = ("bfloat16", "float32")


@dataclasses.dataclass(frozen=True)
class Row:
    """One measurement.

    Attributes:
        kind: A training step on cached latents, or drawing from contexts to pixels.
        preset: The preset of the networks.
        image_size: Side of the pictures in pixels.
        batch_size: Pictures at once.
        precision: The type to compute in; for drawing, also the type of the weights.
        lora_rank: Rank of the adapters; 0 trains all weights.
        gradient_checkpointing: Whether the backward pass computes inner values again.
    """

    kind: Kind
    preset: str
    image_size: int
    batch_size: int
    precision: Precision
    lora_rank: int = 0
    gradient_checkpointing: bool = False

    @property
    def name(self) -> str:
        """The name in files, and for `--rows`."""
        parts = [self.preset, self.kind]
        if self.kind == "training":
            parts.append(f"rank{self.lora_rank}" if self.lora_rank else "full")
        parts += [f"{self.image_size}px", f"batch{self.batch_size}", self.precision]
        if self.gradient_checkpointing:
            parts.append("checkpointing")
        return "_".join(parts)

    @property
    def without_recomputing(self) -> Row:
        """The row with only the operations that the model needs; recomputing does not count."""
        return dataclasses.replace(self, gradient_checkpointing=False)

    @property
    def group(self) -> tuple[Kind, str, int, int, bool]:
        """Rows with the same group are traced on the same networks and training state."""
        scales_loss = self.precision == "float16"
        return self.kind, self.preset, self.image_size, self.lora_rank, scales_loss

    def settings(self) -> dict[str, Any]:
        """The row as in the pack and its results."""
        return {"name": self.name, **dataclasses.asdict(self)}


def all_rows(preset: str) -> list[Row]:
    """All rows of a preset, most telling first: a run that is cut short has these."""
    largest = get_preset(preset).image_size
    sizes = (largest, largest // 2)
    rows = [
        Row("training", preset, size, batch, precision, rank, checkpointing)
        for size, batch, precision, rank, checkpointing in itertools.product(
            sizes, _BATCHES, _PRECISIONS, (0, LORA_RANK), (False, True)
        )
    ]
    rows += [
        Row("drawing", preset, size, batch, precision)
        for size, batch, precision in itertools.product(sizes, (1, 4), _PRECISIONS)
    ]
    # float16 has the kernels of bfloat16; it differs in scaling the loss, and in a decoder that
    # stays float32.
    rows += [Row("training", preset, largest, 4, "float16", rank) for rank in (0, LORA_RANK)]
    rows += [Row("drawing", preset, largest, batch, "float16") for batch in (1, 4)]
    first = [
        Row("training", preset, largest, 4, "bfloat16"),
        Row("drawing", preset, largest, 1, "bfloat16"),
        Row("training", preset, largest, 1, "bfloat16", LORA_RANK),
        Row("training", preset, largest, 1, "bfloat16", LORA_RANK, True),
        Row("training", preset, largest, 8, "bfloat16"),
        Row("training", preset, largest, 4, "bfloat16", 0, True),
        Row("training", preset, largest, 1, "bfloat16", 0, True),
        Row("training", preset, largest, 4, "float32"),
        Row("training", preset, sizes[1], 4, "bfloat16"),
        Row("training", preset, largest, 4, "float16"),
        Row("drawing", preset, largest, 4, "bfloat16"),
        Row("drawing", preset, largest, 1, "float32"),
        Row("drawing", preset, largest, 1, "float16"),
    ]
    return list(dict.fromkeys([*first, *rows]))


def chosen_rows(preset: str, patterns: Sequence[str]) -> list[Row]:
    """The rows whose name matches a pattern such as `*_512px_*`; all rows without a pattern.

    Raises:
        UserError: A pattern matches no row.
    """
    rows = all_rows(preset)
    for pattern in patterns:
        if not any(fnmatch.fnmatchcase(row.name, pattern) for row in rows):
            raise UserError(
                f"--rows {pattern!r} matches none of the {len(rows)} rows: their names are like "
                f"{rows[0].name} and {rows[1].name}; * matches any characters"
            )
    return [
        row
        for row in rows
        if not patterns or any(fnmatch.fnmatchcase(row.name, pattern) for pattern in patterns)
    ]
