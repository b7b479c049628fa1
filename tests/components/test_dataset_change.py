"""What a schedule's run does and notes, with a real dataset and real executors."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from captioned_examples import picture
from tfx.types import Artifact, Channel, standard_artifacts
from tfx.types.experimental.simple_artifacts import File

from components.caption_example_gen.sources import DatasetError, DatasetSpec
from components.dataset_change import DatasetChange, DatasetDone, executors


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    folder = tmp_path / "set"
    folder.mkdir()
    for number in range(3):
        add(folder, number)
    return folder


def add(folder: Path, number: int) -> None:
    content = picture(32, 32, (40 * number, 0, 0), "PNG")
    (folder / f"{number}.png").write_bytes(content)
    (folder / f"{number}.txt").write_text(f"picture {number}")


def look(dataset: Path, memory: Path, **given: Any) -> Artifact:
    change = File()
    spec = DatasetSpec(**({"dataset": ""} | given))
    component = DatasetChange(str(dataset), spec, str(memory))
    executors.ChangeExecutor().Do({}, {"change": [change]}, dict(component.exec_properties))
    return change


def done(change: Artifact, memory: Path) -> None:
    executors.DoneExecutor().Do(
        {"change": [change], "pushed_model": [standard_artifacts.PushedModel()]},
        {"done": [File()]},
        {"memory": str(memory)},
    )


def changed(change: Artifact) -> bool:
    return bool(change.get_int_custom_property("changed"))


def test_a_run_is_due_until_one_with_that_content_came_to_its_end(
    dataset: Path, tmp_path: Path
) -> None:
    memory = tmp_path / "last_content" / "settings.json"
    # A run that failed notes nothing.
    first = look(dataset, memory)
    again = look(dataset, memory)
    assert changed(first)
    assert changed(again)
    done(again, memory)
    assert not changed(look(dataset, memory))
    add(dataset, 3)
    third = look(dataset, memory)
    assert changed(third)
    # What was added after that look is the next run's, whatever this one read.
    add(dataset, 4)
    done(third, memory)
    fourth = look(dataset, memory)
    assert changed(fourth)
    done(fourth, memory)
    assert not changed(look(dataset, memory))
    (dataset / "0.txt").write_text("another caption")
    assert changed(look(dataset, memory))


def test_another_place_and_a_damaged_note_are_a_change(dataset: Path, tmp_path: Path) -> None:
    memory = tmp_path / "content.json"
    done(look(dataset, memory), memory)
    moved = dataset.rename(tmp_path / "elsewhere")
    assert changed(look(moved, memory))
    done(look(moved, memory), memory)
    assert json.loads(memory.read_text())["content_of"] == str(moved)
    for damaged in ("{", "[]", ""):
        memory.write_text(damaged)
        assert changed(look(moved, memory))


def test_a_dataset_that_cannot_be_read_fails(tmp_path: Path) -> None:
    with pytest.raises(DatasetError):
        look(tmp_path / "nothing", tmp_path / "content.json")


def test_what_is_read_is_all_of_the_spec(tmp_path: Path) -> None:
    spec = DatasetSpec(dataset="here", config="c", caption="a photo")
    made = DatasetChange("there", spec, "gs://bucket/content.json")
    how = json.loads(made.exec_properties["spec"])
    assert DatasetSpec(dataset="here", **how) == spec
    assert made.exec_properties["dataset"] == "there"
    assert {*how} == {f.name for f in dataclasses.fields(DatasetSpec)} - {"dataset"}
    pushed = Channel(type=standard_artifacts.PushedModel)
    end = DatasetDone(made.outputs["change"], pushed, "gs://bucket/content.json")
    assert {*end.inputs} == {"change", "pushed_model"}
