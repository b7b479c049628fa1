"""A captioned-image dataset -> Examples (splits train and eval), and the rows that were rejected.

`CaptionExampleGen` is looked up on first use: the runner inspects the dataset with
`components.caption_example_gen.sources` before it needs TFX and Beam, which are slow to import.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from components.caption_example_gen.component import CaptionExampleGen

__all__ = ["CaptionExampleGen"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from components.caption_example_gen import component

    return getattr(component, name)
