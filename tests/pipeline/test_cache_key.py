"""The cache's key: of what artifacts hold, in whatever order protocol buffers have a map."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from ml_metadata.proto import metadata_store_pb2
from tfx import types
from tfx.orchestration import metadata
from tfx.orchestration.portable import cache_utils
from tfx.proto.orchestration import pipeline_pb2
from tfx.types import standard_artifacts

from pipeline import cache_key
from pipeline.lineage.moved import Relocation
from storage.filesystem import content_digest

OUTPUT = "/runs/mine"


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
    return cache_key._Stable(
        examples, Relocation([OUTPUT], "<output>")
    ).mlmd_artifact.SerializeToString(deterministic=True)


def key_of(
    handle: metadata.Metadata, artifacts: list[types.Artifact], **parameters: int | str
) -> str:
    """TFX's own key of a step with these inputs."""
    with cache_key.stable_cache_keys(OUTPUT):
        context = cache_utils.get_cache_context(
            metadata_handle=handle,
            pipeline_node=pipeline_pb2.PipelineNode(),
            pipeline_info=pipeline_pb2.PipelineInfo(id="pipeline"),
            input_artifacts={"examples": artifacts},
            parameters={"steps": 5, **parameters},
        )
    return str(context.name)


@pytest.fixture
def handle() -> Iterator[metadata.Metadata]:
    config = metadata_store_pb2.ConnectionConfig()
    config.fake_database.SetInParent()
    with metadata.Metadata(config) as handle:
        yield handle


@pytest.fixture
def publish(
    handle: metadata.Metadata, tmp_path: Path
) -> Callable[[str, dict[str, str | int]], types.Artifact]:
    """Leaves an artifact as a step does: with an id, a name and a folder of its own."""

    def publish(text: str, properties: dict[str, str | int]) -> types.Artifact:
        made = artifact(**properties)
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        (folder / "data").write_text(text)
        made.uri, made.name = str(folder), folder.name
        made.state = types.artifact.ArtifactState.PUBLISHED
        made.type_id = handle.store.put_artifact_type(made.artifact_type)
        [made.id] = handle.store.put_artifacts([made.mlmd_artifact])
        [stored] = handle.store.get_artifacts_by_id([made.id])
        made.set_mlmd_artifact(stored)
        return made

    return publish


def test_a_name_that_begins_with_another_comes_after_it() -> None:
    """The bytes themselves: computed on the one stack, they are what the other gives."""
    found = serialized(artifact(dataset_kind="parquet", dataset="creatures", loss=1))
    assert found.index(b"'dataset'") < found.index(b"'dataset_kind'") < found.index(b"'loss'")
    assert hashlib.sha256(found).hexdigest() == (
        "8019031096c75b81327f2825d02277cf0f3d7f00694276e9708a4816f727163f"
    )


def test_what_an_artifact_holds_counts_and_not_which_one_it_is(handle, publish) -> None:
    facts = {"dataset": "creatures", "current_model_id": 1, "tfx_version": "1.16.0"}
    first = publish("pictures", facts)
    again = publish("pictures", {**facts, "current_model_id": 2, "tfx_version": "1.21.0"})
    assert (first.id, first.uri, first.name) != (again.id, again.uri, again.name)
    key = key_of(handle, [first])
    assert key_of(handle, [again]) == key

    spanned = publish("pictures", facts)
    spanned.span = 4
    others = [
        [publish("drawings", facts)],
        [publish("pictures", {**facts, "dataset": "dragons"})],
        [publish("pictures", {**facts, "more": 1})],
        [publish("pictures", {})],
        [spanned],
        [first, again],
        [],
    ]
    keys = [key, *(key_of(handle, artifacts) for artifacts in others)]
    assert len(set(keys)) == len(keys)


def test_files_are_read_once_and_the_digest_is_kept(handle, publish) -> None:
    made = publish("pictures", {})
    key = key_of(handle, [made])
    [stored] = handle.store.get_artifacts_by_id([made.id])
    digest = content_digest(made.uri)
    assert stored.custom_properties["content_digest"].string_value == digest
    assert stored.uri == made.uri
    assert stored.state == metadata_store_pb2.Artifact.LIVE

    shutil.rmtree(made.uri)
    content_digest.cache_clear()
    later = artifact()
    later.set_mlmd_artifact(stored)
    assert key_of(handle, [later]) == key


def test_removed_files_without_a_digest_are_told_apart_by_their_place(handle, publish) -> None:
    """Former versions kept no digests."""
    gone = [publish("pictures", {}) for _ in range(2)]
    for made in gone:
        shutil.rmtree(made.uri)
    keys = [key_of(handle, [made]) for made in gone]
    assert keys[0] != keys[1]
    assert keys == [key_of(handle, [made]) for made in gone]
    assert not any(made.has_custom_property("content_digest") for made in gone)


def test_the_place_of_the_output_folder_is_in_no_key(handle, publish) -> None:
    def key(output: str, dataset: str, options: str) -> str:
        made = artifact(dataset=dataset, content_digest="0")
        made.type_id = 1
        with cache_key.stable_cache_keys(output):
            context = cache_utils.get_cache_context(
                metadata_handle=handle,
                pipeline_node=pipeline_pb2.PipelineNode(),
                pipeline_info=pipeline_pb2.PipelineInfo(id="pipeline"),
                input_artifacts={"examples": [made]},
                parameters={"options": options, "push_destination": f"{output}/serving_model"},
            )
        return str(context.name)

    one = key("/a", "/a/pictures", '{"dir": "/a/checkpoints"}')
    assert one == key("/b/é", "/b/é/pictures", '{"dir": "/b/\\u00e9/checkpoints"}')
    assert one != key("/b", "/a/pictures", '{"dir": "/b/checkpoints"}')
    assert one != key("/b", "/b/pictures", '{"dir": "/b-2/checkpoints"}')


def test_tfx_gets_its_own_function_back(monkeypatch) -> None:
    asked = []

    def of_tfx(**arguments):
        asked.append(arguments)
        return metadata_store_pb2.Context(id=7)

    monkeypatch.setattr(cache_utils, "get_cache_context", of_tfx)
    with cache_key.stable_cache_keys(OUTPUT):
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


def test_what_a_step_only_writes_down_is_not_in_the_key(handle: metadata.Metadata) -> None:
    keys = [key_of(handle, [], training_dataset=place) for place in ("/a/pictures", "/b/pictures")]
    assert keys[0] == keys[1] == key_of(handle, [])
    assert keys[0] != key_of(handle, [], dataset="/a/pictures")
