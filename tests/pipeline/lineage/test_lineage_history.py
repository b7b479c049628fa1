"""Releases over time, what was added between two, and who knows a picture."""

from __future__ import annotations

import hashlib
import json
import math
import re
import shutil
from pathlib import Path

import pytest
import tensorflow as tf
from made_store import Settings, StoreMaker

from components.tfrecords import write_shard
from pipeline import lineage
from pipeline.lineage import cli, history, pages
from pipeline.lineage.model import LineageError
from storage.row_index import IndexedRow

PICTURE = b"the bytes of a picture"
DIGEST = hashlib.sha256(PICTURE).hexdigest()
OTHER = "0" * 64


def rows(*captions: str, **pictures: str) -> bytes:
    named = {caption: f"picture of {caption}" for caption in captions} | pictures
    return b"".join(IndexedRow(f"{p}/{c}", p, c).line() for c, p in named.items())


@pytest.fixture(scope="module")
def weeks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three releases and a model that was not blessed; the last one's files were not kept."""
    folder = tmp_path_factory.mktemp("weeks")
    maker = StoreMaker(folder=str(folder))
    splits = {
        "one": ({"train": rows("cat", "dog"), "eval": rows("fox", "owl")}, 0.16, True),
        "two": (
            {"train": rows("cat", "bat"), "eval": rows("fox", "owl", dragon=DIGEST)},
            0.3,
            False,
        ),
        "three": ({"train": rows("cat", "bat", dragon=DIGEST), "eval": rows("fox")}, 0.12, True),
        "four": ({}, 0.1, True),
    }
    for run, (files, loss, blessed) in splits.items():
        made = maker.run(run, Settings(fingerprint=run), loss=loss, blessed=blessed)
        for split, lines in files.items():
            path = Path(maker.artifacts[made["examples"][0].place][1].uri, "rows")
            path.mkdir(parents=True, exist_ok=True)
            (path / f"{split}-00000.jsonl").write_bytes(lines)
        for step in (0, 160):
            drawn = Path(
                maker.artifacts[made["model_run"][0].place][1].uri, f"validation/step_{step:06}"
            )
            drawn.mkdir(parents=True)
            (drawn / "00.png").write_bytes(PICTURE)
        if files:
            model = Path(maker.artifacts[made["model"][0].place][1].uri)
            model.mkdir(parents=True)
            (model / "weights").write_bytes(bytes(3_000_000))
    maker.save(folder / "metadata.sqlite")
    return folder


def test_releases_are_told_with_what_is_new_in_each(weeks: Path) -> None:
    location = lineage.locate(str(weeks))
    with location.open() as store:
        first, second, third = history.history(store, location.roots).releases
    assert [r.version for r in (first, second, third)] == ["1", "2", "3"]
    assert [r.run.name for r in (first, second, third)] == ["one", "three", "four"]
    assert (first.rows, first.changes, first.size) == (4, None, 3_000_000)
    assert second.rows == 4
    assert second.run.shown_change == "-40.0 %"
    [drawn] = second.pictures
    assert (drawn.prompt, drawn.file.name) == ("a dragon", "validation/step_000160/00.png")
    assert sorted((c.kind, c.now or c.before) for c in second.changes.changes) == [
        ("added", "bat"),
        ("added", "dragon"),
        ("removed", "dog"),
        ("removed", "owl"),
    ]
    # What is not here any more is not made up.
    assert (third.rows, third.changes, third.size) == (None, None, None)


@pytest.fixture
def judged(tmp_path: Path) -> Path:
    """Four releases that were judged by different examples; one of them with other noise."""
    maker = StoreMaker(folder=str(tmp_path))
    # Of every release, the losses of its held-out examples at two timesteps.
    weeks = {
        "one": (0, {"fox": (0.5, 0.3), "owl": (0.1, 0.1), "bee": (0.2, 0.2)}),
        "two": (1, {"fox": (0.9, 0.9), "owl": (0.9, 0.9)}),
        "three": (0, {"owl": (0.2, 0.4), "fox": (0.3, 0.1), "elk": (0.7, 0.7)}),
        "four": (0, {"fox": (0.1, 0.1), "owl": (0.1, 0.3), "bee": (math.nan, 0.1)}),
    }
    for run, (seed, losses) in weeks.items():
        made = maker.run(run, Settings(fingerprint=run), scores_seed=seed)
        path = Path(maker.artifacts[made["scores"][0].place][1].uri, "Split-eval")
        path.mkdir(parents=True)
        records = [
            score(name, timestep, loss)
            for name, several in losses.items()
            for timestep, loss in zip((100, 600), several, strict=True)
        ]
        # What measures something else stands among them.
        records.append(score("fox", 100, 7.0, name="text_part"))
        write_shard(str(path / "scores-00000-of-00001.gz"), records, str(tmp_path))
        drift = {"one": None, "two": "none"}.get(run, "caption/words 0.31, image/format 0.50")
        if drift:
            anomalies = maker.artifacts[made["anomalies"][0].place][1]
            anomalies.custom_properties["drift"].string_value = drift
    maker.save(tmp_path / "metadata.sqlite")
    return tmp_path


def score(example: str, timestep: int, loss: float, name: str = "loss") -> bytes:
    values = {
        "id": tf.train.Feature(bytes_list=tf.train.BytesList(value=[example.encode()])),
        "timestep": tf.train.Feature(int64_list=tf.train.Int64List(value=[timestep])),
        name: tf.train.Feature(float_list=tf.train.FloatList(value=[loss])),
    }
    return tf.train.Example(features=tf.train.Features(feature=values)).SerializeToString()


def test_all_releases_are_compared_on_the_same_held_out_examples(judged: Path, capsys) -> None:
    assert cli.main(["--store", str(judged), "--json", "history"]) == 0
    found = json.loads(capsys.readouterr().out)
    # Fox and owl are in all of them that were judged alike; the second was given other noise.
    assert found["fixed_examples"] == 2
    losses = [release["fixed_loss"] for release in found["releases"]]
    assert losses[1] is None
    assert [losses[i] for i in (0, 2, 3)] == pytest.approx([0.25, 0.25, 0.15])
    drifts = [release["drift"] for release in found["releases"]]
    assert drifts == [None, "none", *["caption/words 0.31, image/format 0.50"] * 2]
    assert cli.main(["--store", str(judged), "history"]) == 0
    shown = capsys.readouterr().out
    assert "the same 2 held-out examples, at the same timesteps and noise, for the 3" in shown
    location = lineage.locate(str(judged))
    with location.open() as store:
        page = pages.Pages(store, pages.Urls(), location.roots).history()
    assert "<td>caption/words 0.31, image/format 0.50</td>" in page
    assert "the same 2 held-out examples" in page


def test_what_is_damaged_or_gone_is_left_out(judged: Path, capsys) -> None:
    scores = sorted(judged.rglob("scores-*.gz"), key=lambda path: path.stat().st_mtime_ns)
    scores[0].write_bytes(scores[0].read_bytes()[:-30])
    scores[3].unlink()
    assert cli.main(["--store", str(judged), "--json", "history"]) == 0
    losses = [r["fixed_loss"] for r in json.loads(capsys.readouterr().out)["releases"]]
    assert losses == [None, None, pytest.approx((0.2 + 0.4 + 0.3 + 0.1 + 1.4) / 6), None]
    scores[1].unlink()
    scores[2].unlink()
    assert cli.main(["--store", str(judged), "history"]) == 0
    assert "There is no held-out example on which all releases" in capsys.readouterr().out


def test_the_page_shows_the_same_prompt_of_each_release(weeks: Path) -> None:
    location = lineage.locate(str(weeks))
    with location.open() as store:
        page = pages.Pages(store, pages.Urls(), location.roots).history()
    assert ">2 rows added, 2 removed<" in page
    [row] = re.findall(r'<tr><th scope="row">a dragon</th>.*?</tr>', page)
    sources = re.findall(r'src="(.*?)"', row)
    assert len(set(sources)) == 3
    assert all(re.fullmatch(r"/files/\d+/validation/step_000160/00.png", s) for s in sources)


def test_history_as_json_names_the_pictures(weeks: Path, capsys) -> None:
    assert cli.main(["--store", str(weeks), "--json", "history"]) == 0
    releases = json.loads(capsys.readouterr().out)["releases"]
    [drawn] = releases[1]["pictures"]
    assert Path(drawn["file"]["path"]).read_bytes() == PICTURE


def test_what_was_added_between_two_releases(weeks: Path, capsys) -> None:
    assert cli.main(["--store", str(weeks), "added", "1", "release:2"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == "2 rows added, 2 removed; before, there were 4 rows"
    kept = ["  added: bat", "  added: dragon", "  removed: dog", "  removed: owl"]
    assert sorted(shown[1:]) == kept
    assert cli.main(["--store", str(weeks), "added", "1", "9"]) == 1
    assert "there is no release '9'" in capsys.readouterr().err


def test_who_knows_a_picture(weeks: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "dragon.png").write_bytes(PICTURE)
    for what in (
        str(tmp_path / "dragon.png"),
        DIGEST,
        DIGEST.upper(),
        f"{DIGEST}/dragon",
        "dragon",
    ):
        assert cli.main(["--store", str(weeks), "--json", "known", what]) == 0
        found = json.loads(capsys.readouterr().out)
        # The model of the second week has never been released.
        assert (found["trained_on"], found["held_out"]) == (["2"], [])
        assert (found["captions"], found["unknown"]) == (["dragon"], ["3"])
    location = lineage.locate(str(weeks))
    with location.open() as store:
        cat, fox, owl = (
            history.known(store, what, location.roots) for what in ("cat", "fox", "owl")
        )
        with pytest.raises(
            LineageError, match=r"SHA-256 000000000000\.\.\.; for 3 this is no longer known"
        ):
            history.known(store, OTHER, location.roots)
    assert cat.trained_on == ("1", "2")
    assert (fox.trained_on, fox.held_out) == ((), ("1", "2"))
    assert (owl.trained_on, owl.held_out) == ((), ("1",))
    assert cli.main(["--store", str(weeks), "known", "cat"]) == 0
    assert "first known to" in capsys.readouterr().out


def test_a_model_that_was_trained_on_from_another_knows_what_that_knew(tmp_path: Path) -> None:
    maker = StoreMaker(folder=str(tmp_path))
    one = maker.run("one", Settings(fingerprint="one"), blessed=False)
    made = {name: [maker.artifact("Examples", str(tmp_path / name))] for name in ("raw", "latents")}
    maker.execution("two", "CaptionExampleGen", outputs={"examples": made["raw"]})
    maker.execution("two", "LatentGen", inputs={"e": made["raw"]}, outputs={"l": made["latents"]})
    model = [maker.artifact("Model", str(tmp_path / "model"))]
    inputs = {"examples": made["latents"], "start_model": one["model"]}
    maker.execution("two", "Trainer", inputs=inputs, outputs={"model": model})
    pushed = [maker.artifact("PushedModel", pushed_version="1", pushed_destination="s")]
    maker.execution("two", "ServingPusher", inputs={"model": model}, outputs={"p": pushed})
    for uri, lines in (
        (maker.artifacts[one["examples"][0].place][1].uri, rows("cat")),
        (str(tmp_path / "raw"), rows("dog")),
    ):
        folder = Path(uri, "rows")
        folder.mkdir(parents=True)
        (folder / "train-00000.jsonl").write_bytes(lines)
    maker.save(tmp_path / "metadata.sqlite")
    location = lineage.locate(str(tmp_path))
    with location.open() as store:
        assert history.known(store, "cat", location.roots).trained_on == ("1",)
        assert history.known(store, "dog", location.roots).trained_on == ("1",)
        [release] = history.history(store, location.roots).releases
        # Its own dataset is the latest alone.
        assert release.rows == 1
    shutil.rmtree(tmp_path / "raw")
    with location.open() as store:
        assert history.known(store, "cat", location.roots).unknown == ("1",)
