"""The cache's key: the same whatever order protocol buffers have for a map."""

from __future__ import annotations

import hashlib

import pytest
from ml_metadata.proto import metadata_store_pb2
from tfx import types
from tfx.orchestration.portable import cache_utils
from tfx.types import standard_artifacts

from pipeline import cache_key


def artifact(**properties: str | int) -> types.Artifact:
    examples = standard_artifacts.Examples()
    examples.uri = "/out/examples/1"
    examples.span = 3
    for name, value in properties.items():
        setter = examples.set_int_custom_property
        if isinstance(value, str):
            setter = examples.set_string_custom_property
        setter(name, value)
    return examples


def serialized(examples: types.Artifact) -> bytes:
    return cache_key._Stable(examples).mlmd_artifact.SerializeToString(deterministic=True)


def test_a_name_that_begins_with_another_comes_after_it() -> None:
    """The bytes themselves: computed on the one stack, they are what the other gives."""
    found = serialized(artifact(dataset_kind="parquet", dataset="creatures", loss=1))
    assert found.index(b"'dataset'") < found.index(b"'dataset_kind'") < found.index(b"'loss'")
    assert hashlib.sha256(found).hexdigest() == (
        "3b1b513b69a58116493d84fb9a832b137842b89df87f4356197509ce46a2cc2c"
    )


def test_everything_that_tfx_looks_at_counts() -> None:
    base = artifact(dataset="creatures")
    others = [artifact(dataset="dragons"), artifact(dataset="creatures", more=1), artifact()]
    others[0].uri = base.uri
    moved = artifact(dataset="creatures")
    moved.uri = "/out/examples/2"
    spanned = artifact(dataset="creatures")
    spanned.span = 4
    keys = [serialized(each) for each in [base, *others, moved, spanned]]
    assert len(set(keys)) == len(keys)
    assert serialized(artifact(dataset="creatures")) == keys[0]


def test_tfx_gets_its_own_function_back(monkeypatch) -> None:
    asked = []

    def of_tfx(**arguments):
        asked.append(arguments)
        return metadata_store_pb2.Context(id=7)

    monkeypatch.setattr(cache_utils, "get_cache_context", of_tfx)
    with cache_key.stable_cache_keys():
        found = cache_utils.get_cache_context(
            metadata_handle="m",
            input_artifacts={"examples": [artifact(dataset="x")]},
            parameters={"options": '{"_slice_sqls": null, "_num": 3}', "steps": 5},
        )
    assert found.id == 7
    assert cache_utils.get_cache_context is of_tfx
    [arguments] = asked
    assert arguments["metadata_handle"] == "m"
    assert arguments["parameters"] == {"options": '{"_num": 3}', "steps": 5}
    [given] = arguments["input_artifacts"]["examples"]
    assert given.mlmd_artifact.SerializeToString(deterministic=True) == serialized(
        artifact(dataset="x")
    )


@pytest.mark.parametrize("text", ["", "{not JSON", '["a", null]', "null", '{"a": 0, "b": ""}'])
def test_what_is_not_an_unset_option_counts(text: str) -> None:
    assert cache_key._set_options(text) == text
