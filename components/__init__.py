"""Custom TFX components, one folder each, and the artifact types they exchange.

The artifact classes can be imported from here, because this is where the Vertex container looks for
a type called `components.RejectedRows`. They are imported on first use: reading a dataset's
fingerprint must not import TFX.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

# Importing TFX switches TensorFlow to Keras 2 if this variable is unset.
os.environ.setdefault("TF_USE_LEGACY_KERAS", "0")

if TYPE_CHECKING:
    from components.artifacts import (
        DatasetReport,
        EvaluationReport,
        RejectedRows,
        WithdrawnReport,
    )

__all__ = ["DatasetReport", "EvaluationReport", "RejectedRows", "WithdrawnReport"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from components import artifacts

    return getattr(artifacts, name)
