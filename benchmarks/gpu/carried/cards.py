"""Peak speeds of cards from NVIDIA's data sheets, in 10^12 operations per second.

All are for dense matrices; if a sheet gives the figure "with sparsity", this is half of it. 16-bit
figures have sums in float32. `float32` is the speed of tensor cores (TF32), which XLA and, here,
PyTorch use for it, or plain float32 on cards without TF32. Imports only the standard library.
"""

from __future__ import annotations

import re
from typing import NamedTuple


class Card(NamedTuple):
    """A card's peaks.

    Attributes:
        pattern: Pattern of the name that its driver gives it.
        float16: Peak in float16.
        float32: Peak in float32.
        source: Title of the data sheet.
        bfloat16: Whether bfloat16 is as fast as float16; else the card has no units for it.
    """

    pattern: str
    float16: float
    float32: float
    source: str
    bfloat16: bool = True

    def peak(self, computes_in: str) -> float | None:
        """The peak in `float32`, `bfloat16` or `float16`; `None` if the sheet has none."""
        if computes_in == "float32":
            return self.float32
        return None if computes_in == "bfloat16" and not self.bfloat16 else self.float16


CARDS = (
    Card(r"\bB200\b", 2250.0, 1125.0, "NVIDIA HGX B200 specifications, an eighth"),
    Card(r"\bH200 NVL\b", 835.5, 417.5, "NVIDIA H200 data sheet"),
    Card(r"\bH200\b", 989.5, 494.5, "NVIDIA H200 data sheet"),
    Card(r"\bH100 NVL\b", 835.5, 417.5, "NVIDIA H100 data sheet"),
    Card(r"\bH100 PCIe\b", 756.5, 378.0, "NVIDIA H100 data sheet"),
    Card(r"\bH100\b", 989.5, 494.5, "NVIDIA H100 data sheet"),
    Card(r"\bA100\b", 312.0, 156.0, "NVIDIA A100 data sheet"),
    Card(r"\bA10$", 125.0, 62.5, "NVIDIA A10 data sheet"),
    Card(r"\bL40S\b", 362.0, 183.0, "NVIDIA L40S data sheet"),
    Card(r"\bL40\b", 181.0, 90.5, "NVIDIA L40 data sheet"),
    Card(r"\bL4\b", 121.0, 60.0, "NVIDIA L4 data sheet"),
    Card(r"\bRTX A6000\b", 154.8, 77.4, "NVIDIA Ampere GA102 GPU architecture white paper"),
    Card(r"\bRTX 4090$", 165.2, 82.6, "NVIDIA Ada GPU architecture white paper"),
    Card(r"\bRTX 3090$", 71.0, 35.6, "NVIDIA Ampere GA102 GPU architecture white paper"),
    Card(r"\bV100-SXM2\b", 125.0, 15.7, "NVIDIA V100 data sheet", bfloat16=False),
    Card(r"\bV100-PCIE\b", 112.0, 14.0, "NVIDIA V100 data sheet", bfloat16=False),
    Card(r"\bV100S-PCIE\b", 130.0, 16.4, "NVIDIA V100 data sheet", bfloat16=False),
    Card(r"\bT4$", 65.0, 8.1, "NVIDIA T4 data sheet", bfloat16=False),
)


def card_of(device: str) -> Card | None:
    """The card that a driver calls `device`, such as `NVIDIA A100-SXM4-40GB`, if it is known.

    A part of a card (`... MIG 3g.20gb`) does not count as one.
    """
    if re.search(r"\bMIG\b", device):
        return None
    return next((card for card in CARDS if re.search(card.pattern, device)), None)


def peak_share(device: str, flops: float, seconds: float, computes_in: str) -> float | None:
    """The share of a card's peak that a measurement reached; `None` if the peak is not known.

    Args:
        device: Name of the card, by its driver.
        flops: Operations that the model needed.
        seconds: Seconds that they took.
        computes_in: `float32`, `bfloat16` or `float16`.
    """
    card = card_of(device)
    peak = card.peak(computes_in) if card else None
    return None if peak is None else flops / seconds / (peak * 1e12)
