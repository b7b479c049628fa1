"""The one configuration tree.

`pipeline/default.yaml` says what every key means and holds every default. A file of the user's
and then the command line's flags are laid over it, key by key; what results is validated whole
and frozen, with nothing left open. Importing this package imports no TensorFlow.
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
