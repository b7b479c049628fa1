"""The page about what was taken out, and the losses on it."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_runs
import test_loss_scorer
from browser import browser, findings_of_file
from built_encoders import build_once
from drawings import COPIES, drawing, saved
from ingested_rows import generate, sha256
from scipy import stats
from test_loss_scorer import IMAGE_SIZE, NUM_STRATA, SEED, FormulaModel
from tfx.dsl.components.base.base_beam_executor import BaseBeamExecutor
from tfx.types import Channel, standard_artifacts

from components import WithdrawnReport as ReportArtifact
from components.caption_example_gen.captions import CaptionTemplate, TagShuffle
from components.caption_example_gen.sources import DatasetSpec
from components.latent_gen.encoding import Way
from components.latent_gen.executor import Executor as LatentGenExecutor
from components.tfrecords import read_shard
from components.withdrawn_report import WithdrawnReport, executor, losses
from storage import row_index
from storage.withdrawn import KnowingRelease, KnownBy, WithdrawnRow
from trainer import presets
from trainer.presets import ENCODERS
from trainer.weights.base_model import BaseModel

PRESET = small_runs.preset()
BASE_MODEL = BaseModel.locate(PRESET, IMAGE_SIZE, "random")
PICTURES = [saved(drawing(seed)) for seed in range(12)]
COPY = COPIES["half the size"](drawing(1))


@pytest.fixture(scope="module", autouse=True)
def small_is_tiny():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(presets, "PRESETS", {**presets.PRESETS, "tiny": PRESET})
        build_once(patch)
        yield


@dataclasses.dataclass(frozen=True)
class Run:
    """What a run left before the report."""

    folder: Path
    dataset: Path
    rejects: Any
    latents: standard_artifacts.Examples
    model: standard_artifacts.Model

    def report(self, target: Path, known_by: KnownBy | None = None, **changed: Any) -> Any:
        component = WithdrawnReport(
            Channel(type=type(self.rejects)),
            Channel(type=standard_artifacts.Examples),
            Channel(type=standard_artifacts.Model),
            dataset=str(self.dataset),
            spec=DatasetSpec(str(self.dataset)),
            base_model=BASE_MODEL,
            known_by=known_by,
            num_strata=NUM_STRATA,
            min_draws=3,
            seed=SEED,
        )
        report = ReportArtifact()
        report.uri = str(target)
        inputs = {"rejects": [self.rejects], "latents": [self.latents], "model": [self.model]}
        properties = {**component.exec_properties, **changed}
        executor.Executor().Do(inputs, {"report": [report]}, properties)
        return report


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Twelve pictures and a copy, of which three are withdrawn, by two people."""
    folder = tmp_path_factory.mktemp("run")
    dataset = folder / "set"
    dataset.mkdir()
    for number, picture in enumerate((*PICTURES, COPY)):
        (dataset / f"{number:02}.png").write_bytes(picture)
        (dataset / f"{number:02}.txt").write_text(f"drawing <b>{number}</b>")
    withdrawn = folder / "withdrawn.txt"
    withdrawn.write_text(
        f"sha256:{sha256(PICTURES[1])} # asked by A\n"
        f"caption:drawing <b>2</b> # asked by B\n"
        f"sha256:{sha256(PICTURES[3])} # asked by A\n"
        f"sha256:{'0' * 64} # asked by A\n"
    )
    examples, rejects = generate(folder, dataset, withdrawn=str(withdrawn), eval_fraction=0.5)
    latents = standard_artifacts.Examples()
    latents.uri = str(folder / "latents")
    context = BaseBeamExecutor.Context(
        beam_pipeline_args=["--direct_num_workers=1", "--sdk_container_image=none"],
        tmp_dir=str(folder / "beam"),
    )
    LatentGenExecutor(context).Do(
        {"examples": [examples]},
        {"latents": [latents]},
        {
            "preset": "tiny",
            "image_size": IMAGE_SIZE,
            "base_weights": "random",
            "encoders_hash": BASE_MODEL.hash(ENCODERS),
            "flip": "never",
            "crop": "centre",
            "crop_seed": 0,
            "tag_variants": 0,
            "tag_keep": 1,
            "tag_dropout": 0.0,
            "tag_seed": 0,
            "latents_index": "",
            "code_version": "",
        },
    )
    model = standard_artifacts.Model()
    model.uri = str(test_loss_scorer.save(FormulaModel(0.5), folder / "model", training_id="t1"))
    return Run(folder, dataset, rejects, latents, model)


KNOWN_BY = KnownBy(
    (
        KnowingRelease("1", "trained on it", (f"sha256:{sha256(PICTURES[1])}",)),
        KnowingRelease("2", "trained on it", ("caption:drawing <b>2</b>",)),
    ),
    ("0",),
)


@pytest.fixture(scope="module")
def report(run: Run) -> Any:
    """Of a dataset in which a withdrawn picture has another name since, and another one is gone."""
    later = run.folder / "later"
    shutil.copytree(run.dataset, later)
    for suffix in ("png", "txt"):
        (later / f"02.{suffix}").rename(later / f"x.{suffix}")
        (later / f"03.{suffix}").unlink()
    return run.report(run.folder / "report", KNOWN_BY, dataset=str(later))


def read(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "withdrawn.json").read_text("utf-8"))
    return found


def test_a_picture_is_scored_as_if_it_were_held_out(run: Run) -> None:
    """Encoded here, at the same timesteps and noise, it has the loss that it has there."""
    way = Way(BASE_MODEL, False, "centre", 0, TagShuffle(), CaptionTemplate())
    candidate = str(Path(run.model.uri, "Format-Serving"))
    task = losses.task(BASE_MODEL, candidate, way, NUM_STRATA, SEED, 8, in_buckets=False)
    [path] = Path(run.latents.uri, "Split-eval").iterdir()
    records = list(read_shard(str(path)))
    rows = [
        WithdrawnRow(row.id, row.picture, row.caption, "", 0, 0, "")
        for row in row_index.read_rows(str(run.folder / "run-0" / "examples" / "rows"), "eval")
    ]
    pictures = {sha256(picture): picture for picture in PICTURES}
    own, held_out = losses.score(rows, pictures, records, way, task, min_draws=30)
    assert set(own.by_example) == set(held_out.by_example) == {row.id for row in rows}
    for name, found in own.by_example.items():
        assert len(found) == NUM_STRATA * -(-30 // len(rows))
        np.testing.assert_allclose(found, held_out.by_example[name], rtol=1e-5)
    assert losses.gap(own, held_out).value == pytest.approx(0, abs=1e-6)


def test_the_json_says_what_was_found(run: Run, report: Any) -> None:
    found = read(Path(report.uri))
    assert {row["caption"]: (row["line"], bool(row["near"])) for row in found["rows"]} == {
        "drawing <b>1</b>": (1, False),
        "drawing <b>12</b>": (1, True),
        "drawing <b>2</b>": (2, False),
        "drawing <b>3</b>": (3, False),
    }
    assert found["training_id"] == "t1"
    assert [r["version"] for r in found["known_by"]["releases"]] == ["1", "2"]
    assert found["not_scored"] == "1 pictures are no longer in the dataset"
    compared = found["compared"]
    losses_of = {row["caption"]: row["loss"] for row in found["rows"]}
    assert losses_of.pop("drawing <b>3</b>") is None
    shown = list(losses_of.values())
    assert compared["withdrawn"]["mean"] == pytest.approx(np.mean(shown))
    # A copy is no picture of its own.
    assert (compared["withdrawn"]["pictures"], compared["withdrawn"]["examples"]) == (2, 3)
    held_out = compared["held_out"]
    assert held_out["pictures"] == run.latents.get_int_custom_property("num_eval")
    gap = compared["gap"]
    assert gap["value"] == pytest.approx(1 - compared["withdrawn"]["mean"] / held_out["mean"])
    assert gap["lower"] < gap["value"] < gap["upper"]
    assert report.get_int_custom_property("withdrawn_rows") == 4
    assert report.get_float_custom_property("withdrawn_gap") == pytest.approx(gap["value"])


def test_each_asker_is_told_of_theirs_alone(report: Any) -> None:
    folder = Path(report.uri, "requests")
    assert sorted(path.name for path in folder.iterdir()) == ["01", "02"]
    first, second = (read(folder / name) for name in ("01", "02"))
    assert {entry["reason"] for entry in first["entries"]} == {"asked by A"}
    assert {row["line"] for row in first["rows"]} == {1, 3}
    assert [r["version"] for r in first["known_by"]["releases"]] == ["1"]
    assert [row["caption"] for row in second["rows"]] == ["drawing <b>2</b>"]
    assert [r["version"] for r in second["known_by"]["releases"]] == ["2"]
    # Of one picture there is no interval.
    assert second["compared"]["gap"]["lower"] is None
    assert "a single picture has no interval" in second["compared"]["verdict"]
    page = (folder / "02" / "withdrawn.html").read_text("utf-8")
    assert "asked by A" not in page
    assert sha256(PICTURES[1]) not in page


def test_the_page_shows_it_and_holds_no_picture(report: Any) -> None:
    page = Path(report.uri, "withdrawn.html").read_text("utf-8")
    assert "drawing &lt;b&gt;2&lt;/b&gt;" in page
    assert "4 rows were taken out" in page
    assert "1 name no row" in page
    assert "<img" not in page
    assert "Unknown of release 0: what they were trained on" in page
    names = {path.name for path in Path(report.uri).rglob("*") if path.is_file()}
    assert names == {"withdrawn.html", "withdrawn.json"}


def test_a_screen_reader_finds_nothing_amiss(report: Any) -> None:
    with browser() as chromium:
        assert findings_of_file(chromium, Path(report.uri, "withdrawn.html")) == []


def test_without_the_dataset_nothing_is_scored(run: Run, tmp_path: Path) -> None:
    gone = run.report(tmp_path / "none", dataset=str(tmp_path / "nowhere"))
    found = read(Path(gone.uri))
    assert found["compared"] is None
    assert found["known_by"]["problem"] == "not looked up"
    assert found["not_scored"] == "the dataset can no longer be read"
    page = Path(gone.uri, "withdrawn.html").read_text("utf-8")
    assert "the dataset can no longer be read" in page
    assert str(tmp_path) not in page
    assert not gone.has_custom_property("withdrawn_loss")


def scores(*pictures: float, base: float = 1.0) -> losses.Scores:
    """A row for each picture."""
    by_example = {str(i): np.array([[loss, base]]) for i, loss in enumerate(pictures)}
    return losses.Scores(by_example, {name: int(name) for name in by_example})


def test_the_interval_is_welchs() -> None:
    withdrawn, held_out = (0.10, 0.14, 0.12), (0.20, 0.22, 0.30, 0.24, 0.19)
    found = losses.gap(scores(*withdrawn), scores(*held_out))
    parts = [np.var(each, ddof=1) / len(each) for each in (withdrawn, held_out)]
    freedom = sum(parts) ** 2 / (parts[0] ** 2 / 2 + parts[1] ** 2 / 4)
    reach = stats.t.ppf(0.975, math.floor(freedom)) * math.sqrt(sum(parts))
    difference, scale = np.mean(held_out) - np.mean(withdrawn), np.mean(held_out)
    assert found.value == pytest.approx(difference / scale)
    assert found.lower == pytest.approx((difference - reach) / scale)
    assert found.upper == pytest.approx((difference + reach) / scale)
    assert found.is_shown


def test_the_base_weights_say_which_pictures_are_harder() -> None:
    """Easy pictures have a low loss, also where nobody has seen them."""
    easy, hard = (
        losses.Scores(
            {"a": np.array([[low, low + 0.2]]), "b": np.array([[low + 0.02, low + 0.21]])},
            {"a": 1, "b": 2},
        )
        for low in (0.1, 0.5)
    )
    assert losses.gap(easy, hard).is_shown
    added = losses.gap_added(easy, hard)
    assert added.value == pytest.approx(0, abs=1e-9)
    assert not added.is_shown
    assert losses.gap_added(scores(0.1, 0.11, 0.12), scores(0.5, 0.51, 0.53)).is_shown


def test_copies_of_a_picture_are_no_evidence_of_their_own() -> None:
    several = losses.Scores(
        {name: np.array([[0.1, 1.0]] * 9) for name in "abc"}, dict.fromkeys("abc", 7)
    )
    assert several.losses.pictures == 1
    assert not losses.gap(several, scores(0.5, 0.51, 0.53)).has_interval
