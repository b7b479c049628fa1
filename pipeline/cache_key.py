"""A cache key that both stacks agree on.

TFX hashes the serialized input artifacts of a step. Protocol buffers promise no order of a map's
entries between their versions, and keep none: where one property's name begins with another's, as
`loss_baseline` does with `loss`, 3.20 and 6 put them in opposite order. So what one stack made
would not be found by the other. Nor would what StatisticsGen made: it is given TFDV's options as
JSON, in which TFDV 1.16 spells out an option that 1.21 no longer has, unset as it always is here.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ml_metadata.proto import metadata_store_pb2
from tfx import types
from tfx.orchestration.portable import cache_utils


@contextlib.contextmanager
def stable_cache_keys() -> Iterator[None]:
    """Within this, TFX's launcher looks up and stores executions under keys of ours."""
    tfx: Any = cache_utils
    of_tfx = tfx.get_cache_context

    def get_cache_context(
        *,
        input_artifacts: Mapping[str, Sequence[types.Artifact]] | None = None,
        parameters: Mapping[str, Any] | None = None,
        **others: Any,
    ) -> metadata_store_pb2.Context:
        stable = {
            key: [_Stable(artifact) for artifact in artifacts]
            for key, artifacts in (input_artifacts or {}).items()
        }
        context: metadata_store_pb2.Context = of_tfx(
            input_artifacts=stable,
            parameters={key: _set_options(value) for key, value in (parameters or {}).items()},
            **others,
        )
        return context

    tfx.get_cache_context = get_cache_context
    try:
        yield
    finally:
        tfx.get_cache_context = of_tfx


def _set_options(parameter: Any) -> Any:
    """The parameter; of a JSON object, as options are given in, only what is set in it."""
    if not isinstance(parameter, str) or not parameter.startswith("{"):
        return parameter
    try:
        options = json.loads(parameter)
    except json.JSONDecodeError:
        return parameter
    return json.dumps(
        {key: value for key, value in options.items() if value is not None}, sort_keys=True
    )


class _Stable:
    """Stands for an artifact, of which TFX asks one thing: to be serialized."""

    def __init__(self, artifact: types.Artifact) -> None:
        self._artifact = artifact.mlmd_artifact

    @property
    def mlmd_artifact(self) -> _Stable:
        return self

    def SerializeToString(self, deterministic: bool) -> bytes:  # noqa: N802
        """The artifact's bytes, the entries of its maps sorted by their names."""
        rest = metadata_store_pb2.Artifact()
        rest.CopyFrom(self._artifact)
        entries = []
        for field in ("properties", "custom_properties"):
            values = getattr(self._artifact, field)
            for name in sorted(values):
                value = values[name].SerializeToString(deterministic=deterministic)
                entries.append(repr((field, name, value)))
            rest.ClearField(field)
        return rest.SerializeToString(deterministic=deterministic) + "".join(entries).encode()
