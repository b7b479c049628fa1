"""The one configuration tree.

`pipeline/default.yaml` documents every key and holds every default. A user's file and then the
flags of the command line override it, key by key; the result is validated as a whole and frozen,
with nothing left open. Importing this package does not import TensorFlow.
"""

from pipeline.config.checks import prompt_notes
from pipeline.config.layering import DEFAULT_FILE, default_values
from pipeline.config.loading import REPO_ROOT, load_config, save_config
from pipeline.config.resolving import (
    check_keys,
    check_output_folder,
    resolve_base_weights,
    resolve_clip_model,
    resolve_dataset,
    trained_preset,
)
from pipeline.config.schema import (
    ConfigError,
    DatasetConfig,
    EvaluationConfig,
    PriorConfig,
    RunConfig,
)

__all__ = [
    "DEFAULT_FILE",
    "REPO_ROOT",
    "ConfigError",
    "DatasetConfig",
    "EvaluationConfig",
    "PriorConfig",
    "RunConfig",
    "check_keys",
    "check_output_folder",
    "default_values",
    "load_config",
    "prompt_notes",
    "resolve_base_weights",
    "resolve_clip_model",
    "resolve_dataset",
    "save_config",
    "trained_preset",
]
