"""The work of DatasetChange and DatasetDone.

A file in the pipeline's root records what the last completed run had read. A run that fails leaves
the file unchanged, so that the next one runs again.
"""

from __future__ import annotations

import json
import logging
from typing import Any

from tfx import types
from tfx.dsl.components.base import base_executor
from tfx.types import artifact_utils

from components.caption_example_gen.sources import (
    DatasetSpec,
    dataset_fingerprint,
    open_dataset,
)
from storage import filesystem

CHANGED = "changed"
_CONTENT, _OF = "content", "content_of"

logger = logging.getLogger(__name__)


class ChangeExecutor(base_executor.BaseExecutor):
    """Compares the dataset with the last completed run."""

    def Do(  # noqa: N802
        self,
        input_dict: dict[str, list[types.Artifact]],
        output_dict: dict[str, list[types.Artifact]],
        exec_properties: dict[str, Any],
    ) -> None:
        """See `DatasetChange`.

        Raises:
            DatasetError: The dataset is missing, unreadable or lacks the columns.
        """
        self._log_startup(input_dict, output_dict, exec_properties)
        spec = DatasetSpec(
            **json.loads(exec_properties["spec"]), dataset=exec_properties["dataset"]
        )
        found = {_OF: spec.dataset, _CONTENT: dataset_fingerprint(spec, open_dataset(spec))}
        changed = found != _remembered(exec_properties["memory"])
        change = artifact_utils.get_single_instance(output_dict["change"])
        change.set_int_custom_property(CHANGED, int(changed))
        for name, text in found.items():
            change.set_string_custom_property(name, text)
        logger.info(
            "The content of %s is %s, %s.",
            spec.dataset,
            found[_CONTENT],
            "which differs from the last completed run: all steps will run"
            if changed
            else "the same as in the last completed run: there is nothing to do",
        )


class DoneExecutor(base_executor.BaseExecutor):
    """Records what was read."""

    def Do(  # noqa: N802
        self,
        input_dict: dict[str, list[types.Artifact]],
        output_dict: dict[str, list[types.Artifact]],
        exec_properties: dict[str, Any],
    ) -> None:
        """See `DatasetDone`."""
        self._log_startup(input_dict, output_dict, exec_properties)
        change = artifact_utils.get_single_instance(input_dict["change"])
        done = artifact_utils.get_single_instance(output_dict["done"])
        found = {name: change.get_string_custom_property(name) for name in (_OF, _CONTENT)}
        for name, text in found.items():
            done.set_string_custom_property(name, text)
        path = exec_properties["memory"]
        filesystem.make_folder(filesystem.parent(path))
        filesystem.write_atomically(path, (json.dumps(found, indent=1) + "\n").encode())


def _remembered(path: str) -> dict[str, str] | None:
    """What `DatasetDone` recorded last; `None` if there is nothing or it cannot be read."""
    if not filesystem.is_file(path):
        return None
    try:
        found = json.loads(filesystem.read_bytes(path))
    except ValueError:
        # The file only decides whether a run begins.
        return None
    return found if isinstance(found, dict) else None
