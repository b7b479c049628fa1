"""A cache key computed from the content of a step's inputs, the same on both stacks.

TFX hashes the serialized input artifacts of a step, including their ids and addresses. A step that
runs again leaves new artifacts, so all steps after it would run again, too, even if their inputs
are identical to the last bit. Here an artifact is identified by its content: the digest of its
files, which is stored as a property the first time it is needed, and all properties except those
that only say which artifact it is.

Protocol buffers do not guarantee the order of a map's entries across versions: if one property's
name begins with another's, as `loss_baseline` does with `loss`, 3.20 and 6 put them in opposite
order. One stack would then not find what the other made. The same holds for StatisticsGen, which
gets TFDV's options as JSON: TFDV 1.16 writes out an option that 1.21 no longer has, although it is
never set here.

Paths below the output folder are taken relative to it, so that the folder can be moved.
"""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from ml_metadata.proto import metadata_store_pb2
from tfx import types
from tfx.orchestration import metadata
from tfx.orchestration.portable import cache_utils

from pipeline.lineage.model import CONTENT_DIGEST, NOT_CONTENT, NOTED_SETTINGS
from pipeline.lineage.moved import Relocation
from storage.filesystem import content_digest

_OUTPUT = "<output>"


@contextlib.contextmanager
def stable_cache_keys(output: str) -> Iterator[None]:
    """Within this context, TFX's launcher looks up and stores executions under our own keys.

    Args:
        output: The run's output folder, absolute.
    """
    places = Relocation([output], _OUTPUT)
    tfx: Any = cache_utils
    of_tfx = tfx.get_cache_context

    def get_cache_context(
        metadata_handle: metadata.Metadata,
        *,
        input_artifacts: Mapping[str, Sequence[types.Artifact]] | None = None,
        parameters: Mapping[str, Any] | None = None,
        **others: Any,
    ) -> metadata_store_pb2.Context:
        inputs = input_artifacts or {}
        _keep_digests(itertools.chain.from_iterable(inputs.values()), metadata_handle)
        stable = {
            key: [_Stable(artifact, places) for artifact in artifacts]
            for key, artifacts in inputs.items()
        }
        context: metadata_store_pb2.Context = of_tfx(
            metadata_handle=metadata_handle,
            input_artifacts=stable,
            parameters={
                key: _set_options(places.apply(value) if isinstance(value, str) else value)
                for key, value in (parameters or {}).items()
                if key not in NOTED_SETTINGS
            },
            **others,
        )
        return context

    tfx.get_cache_context = get_cache_context
    try:
        yield
    finally:
        tfx.get_cache_context = of_tfx


def _set_options(parameter: Any) -> Any:
    """The parameter; if it is a JSON object, as options are, only the keys that are set."""
    if not isinstance(parameter, str) or not parameter.startswith("{"):
        return parameter
    try:
        options = json.loads(parameter)
    except json.JSONDecodeError:
        return parameter
    return json.dumps(
        {key: value for key, value in options.items() if value is not None}, sort_keys=True
    )


def _keep_digests(artifacts: Iterable[types.Artifact], handle: metadata.Metadata) -> None:
    """Adds the digest of their content to artifacts that lack it, here and in the store."""
    new = []
    for artifact in artifacts:
        if artifact.has_custom_property(CONTENT_DIGEST):
            continue
        # Files that have since been removed have no content to hash.
        with contextlib.suppress(FileNotFoundError):
            artifact.set_string_custom_property(CONTENT_DIGEST, content_digest(artifact.uri))
            new.append(artifact.mlmd_artifact)
    if new:
        handle.store.put_artifacts(new)


class _Stable:
    """Stands in for an artifact, which TFX only ever serializes here."""

    def __init__(self, artifact: types.Artifact, places: Relocation) -> None:
        self._artifact = artifact.mlmd_artifact
        self._places = places

    @property
    def mlmd_artifact(self) -> _Stable:
        return self

    def SerializeToString(self, deterministic: bool) -> bytes:  # noqa: N802
        """The artifact's content: its type and its properties, sorted by name."""
        has_digest = CONTENT_DIGEST in self._artifact.custom_properties
        facts: list[tuple[Any, ...]] = [
            (self._artifact.type_id, "" if has_digest else self._places.apply(self._artifact.uri))
        ]
        for field in ("properties", "custom_properties"):
            values = getattr(self._artifact, field)
            facts += [
                (
                    field,
                    name,
                    self._placed(values[name]).SerializeToString(deterministic=deterministic),
                )
                for name in sorted(values)
                if name not in NOT_CONTENT
            ]
        return repr(facts).encode()

    def _placed(self, value: metadata_store_pb2.Value) -> metadata_store_pb2.Value:
        if not value.HasField("string_value"):
            return value
        return metadata_store_pb2.Value(string_value=self._places.apply(value.string_value))
