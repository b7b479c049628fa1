"""The PinnedSchemaGen component."""

from __future__ import annotations

import hashlib

from tfx.components.schema_gen.import_schema_gen import executor
from tfx.dsl.components.base import base_component, executor_spec
from tfx.dsl.io import fileio
from tfx.types import channel_utils, component_spec, standard_artifacts, standard_component_specs


class PinnedSchemaGenSpec(component_spec.ComponentSpec):
    """The spec of TFX's ImportSchemaGen, with a hash of the file."""

    PARAMETERS = {
        **standard_component_specs.ImportSchemaGenSpec.PARAMETERS,
        "schema_hash": component_spec.ExecutionParameter(type=str),
    }
    INPUTS = standard_component_specs.ImportSchemaGenSpec.INPUTS
    OUTPUTS = standard_component_specs.ImportSchemaGenSpec.OUTPUTS


class PinnedSchemaGen(base_component.BaseComponent):
    """TFX's ImportSchemaGen, which also notices when the file changes.

    Outputs:
      schema: `standard_artifacts.Schema`, a copy of the file.
    """

    SPEC_CLASS = PinnedSchemaGenSpec
    EXECUTOR_SPEC = executor_spec.ExecutorClassSpec(executor.Executor)

    def __init__(self, schema_file: str) -> None:
        """Makes the component.

        Args:
            schema_file: Path or URL of a `schema.pbtxt`.
        """
        with fileio.open(schema_file, "rb") as f:
            schema_hash = hashlib.sha256(f.read()).hexdigest()
        super().__init__(
            PinnedSchemaGenSpec(
                schema_file=schema_file,
                schema_hash=schema_hash,
                schema=channel_utils.as_channel([standard_artifacts.Schema()]),
            )
        )
