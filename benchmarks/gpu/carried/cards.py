"""What NVIDIA's data sheets say that cards can do, in 10^12 operations a second.

All of dense matrices: where a sheet has the figure "with sparsity", half of it. `half` is of
bfloat16 and float16 with sums in float32, `tf32` of float32 as tensor cores multiply it, which is
what XLA and, here, PyTorch do with float32. Imports the standard library alone.
"""

from __future__ import annotations

import re
from typing import NamedTuple


class Card(NamedTuple):
    """A card's peaks.

    Attributes:
        pattern: Of the name that its driver gives it.
        half: Of bfloat16 and float16.
        tf32: Of float32; on a card without tensor cores for it, plain float32's.
        source: Title of the data sheet.
    """

    pattern: str
    half: float
    tf32: float
    source: str


CARDS = (
    Card(r"B200\b", 2250.0, 1125.0, "NVIDIA DGX B200 data sheet"),
    Card(r"H200 NVL\b", 835.5, 417.5, "NVIDIA H200 data sheet"),
    Card(r"H200\b", 989.5, 494.5, "NVIDIA H200 data sheet"),
    Card(r"H100 NVL\b", 835.5, 417.5, "NVIDIA H100 data sheet"),
    Card(r"H100 PCIe\b", 756.5, 378.0, "NVIDIA H100 data sheet"),
    Card(r"H100\b", 989.5, 494.5, "NVIDIA H100 data sheet"),
    Card(r"A100\b", 312.0, 156.0, "NVIDIA A100 data sheet"),
    Card(r"A10$", 125.0, 62.5, "NVIDIA A10 data sheet"),
    Card(r"L40S\b", 362.0, 183.0, "NVIDIA L40S data sheet"),
    Card(r"L40\b", 181.0, 90.5, "NVIDIA L40 data sheet"),
    Card(r"L4\b", 121.0, 60.0, "NVIDIA L4 data sheet"),
    Card(r"RTX A6000\b", 154.8, 77.4, "NVIDIA RTX A6000 data sheet"),
    Card(r"RTX 4090$", 165.2, 82.6, "NVIDIA Ada GPU architecture white paper"),
    Card(r"RTX 3090$", 71.0, 35.6, "NVIDIA Ampere GA102 GPU architecture white paper"),
    Card(r"V100-SXM2\b", 125.0, 15.7, "NVIDIA V100 data sheet"),
    Card(r"T4$", 65.0, 8.1, "NVIDIA T4 data sheet"),
)


def card_of(device: str) -> Card | None:
    """The card that a driver calls `device`, such as `NVIDIA A100-SXM4-40GB`, if it is known."""
    return next((card for card in CARDS if re.search(card.pattern, device)), None)


def peak_share(device: str, flops: float, seconds: float, computes_in: str) -> float | None:
    """The part of a card's peak that a measurement reached; `None` of an unknown card.

    Args:
        device: The name that its driver gives it.
        flops: Operations that the model needed.
        seconds: They took.
        computes_in: `float32`, `bfloat16` or `float16`.
    """
    card = card_of(device)
    if card is None:
        return None
    peak = card.tf32 if computes_in == "float32" else card.half
    return flops / seconds / (peak * 1e12)
