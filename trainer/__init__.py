"""Stable Diffusion fine-tuning: the model and its training, usable without TFX.

Only `trainer.run_fn` knows TFX. This package holds everything needed to fine-tune from a notebook
(see docs/training.md for an example). A name is imported when it is first used.
"""

import importlib
import os
from typing import Any

# Importing tensorflow_transform (any TFX import does) switches TensorFlow to Keras 2 if this
# variable is unset, and KerasCV then builds tf_keras models. Everything here is Keras 3.
os.environ.setdefault("TF_USE_LEGACY_KERAS", "0")

_HOMES = {
    "BaseModel": "trainer.weights.base_model",
    "FineTuner": "trainer.training.fine_tuner",
    "TrainingConfig": "trainer.training_config",
    "decode_image": "storage.images",
    "export_models": "trainer.export.saved_models",
    "get_preset": "trainer.presets",
    "preset_names": "trainer.presets",
    "resize_cover": "storage.images",
    "serving_modules": "trainer.export.saved_models",
    "to_model_range": "storage.images",
    "tokenize": "trainer.text.tokenizer",
}

__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *__all__]
