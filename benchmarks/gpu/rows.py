"""What is measured on a GPU, training steps and drawing, the most telling first."""

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
"""Of drawing."""
LORA_RANK = 16
"""Of the adapters; that of the published figures that they are held against."""

_BATCHES = (4, 1, 8)
_PRECISIONS: tuple[Precision, ...] = ("bfloat16", "float32")


@dataclasses.dataclass(frozen=True)
class Row:
    """One measurement.

    Attributes:
        kind: A training step on cached latents, or drawing from contexts to pixels.
        preset: Whose networks.
        image_size: Side of the pictures in pixels.
        batch_size: Pictures at once.
        precision: What the step computes in; of drawing, also what the weights are stored as.
        lora_rank: Of adapters; 0 trains all weights.
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
        """Of files, and of what `--rows` chooses by."""
        parts = [self.preset, self.kind]
        if self.kind == "training":
            parts.append(f"rank{self.lora_rank}" if self.lora_rank else "full")
        parts += [f"{self.image_size}px", f"batch{self.batch_size}", self.precision]
        if self.gradient_checkpointing:
            parts.append("checkpointing")
        return "_".join(parts)

    @property
    def without_recomputing(self) -> Row:
        """The row whose operations the model needs; recomputing them is no more work done."""
        return dataclasses.replace(self, gradient_checkpointing=False)

    @property
    def group(self) -> tuple[Kind, str, int, int, bool]:
        """Rows that have this in common are traced on the same networks and training state."""
        scales_loss = self.precision == "float16"
        return self.kind, self.preset, self.image_size, self.lora_rank, scales_loss

    def settings(self) -> dict[str, Any]:
        """The row as the pack and its results have it."""
        return {"name": self.name, **dataclasses.asdict(self)}


def all_rows(preset: str) -> list[Row]:
    """All rows of a preset, the most telling first: a run that is cut short has those."""
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
    # float16 has bfloat16's kernels; what differs is the scaling of the loss, and that the decoder
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
    """Those of `all_rows` whose name a pattern such as `*_512px_*` matches; all without any.

    Raises:
        UserError: A pattern matches none.
    """
    rows = all_rows(preset)
    for pattern in patterns:
        if not any(fnmatch.fnmatchcase(row.name, pattern) for row in rows):
            raise UserError(
                f"--rows {pattern!r} matches none of the {len(rows)} rows: their names are such as "
                f"{rows[0].name} and {rows[1].name}; * stands for any letters"
            )
    return [
        row
        for row in rows
        if not patterns or any(fnmatch.fnmatchcase(row.name, pattern) for pattern in patterns)
    ]
