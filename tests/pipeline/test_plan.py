"""What a run says that it would do, held against what it then does."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

import pytest
from ml_metadata.proto import metadata_store_pb2 as mlmd

from pipeline import housekeeping, plan
from pipeline.config import load_config
from pipeline.lineage.model import Execution, State
from storage.model_manifest import ModelManifest

STEPS = ("Source", "Train", "Latest", "Judge", "Publish")


def fates(screen: str, width: int = 9) -> dict[str, tuple[str, str]]:
    """Of each step in a plan's table: what becomes of it, and why."""
    rows = {}
    for line in screen.splitlines():
        name, _, rest = line.strip().partition(" ")
        if line.startswith("  ") and name in STEPS:
            fate, told = rest.strip()[:width].strip(), rest.strip()[width:]
            rows[name] = (fate, told.strip())
    return rows


def contents(folder: Path) -> dict[str, str]:
    """Every file in a folder with its hash, and every folder in it."""
    return {
        str(path): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        for path in folder.rglob("*")
    }


def test_a_plan_is_what_the_run_then_does_and_changes_nothing(zygote, tmp_path, dataset) -> None:
    output = tmp_path / "out"

    def run(*flags: str) -> str:
        status, ran = zygote.run("--dataset", str(dataset), "--output", str(output), *flags)
        assert status == 0, ran.err()
        return ran.out()

    first = run("--steps", "5", "--plan")
    assert not output.exists()
    assert {name: fate for name, (fate, _) in fates(first).items()} == {
        **dict.fromkeys(STEPS, "runs"),
        "Latest": "looked up",
    }
    assert "not known before a first run" in first

    run("--steps", "5")
    before = contents(output)
    again = fates(run("--steps", "5", "--plan"))
    assert again.pop("Latest")[0] == "looked up"
    assert {fate for fate, _ in again.values()} == {"cached"}

    screen = run("--steps", "7", "--plan")
    planned = fates(screen)
    assert {name: fate for name, (fate, _) in planned.items()} == {
        "Source": "cached",
        "Train": "runs",
        "Latest": "looked up",
        "Judge": "may run",
        "Publish": "may run",
    }
    assert planned["Train"][1].endswith("this had changed: steps of Train")
    assert planned["Judge"][1].endswith("if Train makes something new")
    assert "time" in screen
    assert "up to" in screen
    assert contents(output) == before

    did = run("--steps", "7")
    for name in STEPS:
        what = {"cached": "cached", "looked up": "resolved"}.get(planned[name][0], "executed")
        assert any(line.split()[:2] == [name, what] for line in did.splitlines())


def test_what_the_run_would_refuse_the_plan_refuses(zygote, tmp_path, dataset) -> None:
    status, ran = zygote.run(
        "--dataset", str(dataset), "--output", str(tmp_path / "out"), "--steps", "0", "--plan"
    )
    assert status == 2
    assert "training.steps" in ran.err()
    assert not (tmp_path / "out").exists()


def test_memory_is_a_like_trainings_or_what_the_parameters_take(tmp_path: Path) -> None:
    config = load_config(None, {"model.preset": ("--preset", "tiny")})
    store = housekeeping.open_store(str(tmp_path))
    preset_bytes = 4 * (3_267_136 + 7_328_068 + 1_070_359)
    trained_bytes = 4 * (3_267_136 + 7_328_068)
    # Weights; gradients, two moments and the average of what is trained.
    expected = (preset_bytes + 4 * trained_bytes) / 1e6
    assert plan.memory_text(config, store).startswith(f"{expected:.0f} MB for weights")

    folder = tmp_path / "model" / "Format-Serving"
    folder.mkdir(parents=True)
    training = {name: getattr(config.training, name) for name in plan.OF_MEMORY}
    assert training["precision"] == "auto"
    training["precision"] = "bfloat16"
    manifest = ModelManifest("tiny", 128, training=training, peak_memory_bytes=3_348_238_336)
    manifest.write(str(folder))
    kind = store.put_artifact_type(mlmd.ArtifactType(name="Model"))
    uri = str(tmp_path / "model")
    store.put_artifacts([mlmd.Artifact(type_id=kind, uri=uri, state=mlmd.Artifact.LIVE)])
    assert plan.memory_text(config, store).startswith("3.3 GB in all, as measured in a former")
    larger = dataclasses.replace(config.training, batch_size=64)
    other = plan.memory_text(dataclasses.replace(config, training=larger), store)
    assert other.startswith(f"{expected:.0f} MB for weights")


@pytest.mark.parametrize(
    ("pictures", "seconds"),
    [pytest.param(700 * 32, 20.0, id="twice as many"), pytest.param(None, 10.0, id="not known")],
)
def test_a_training_takes_longer_for_more_pictures(pictures: int | None, seconds: float) -> None:
    former = Execution(
        id=1,
        node="Trainer",
        type="",
        state=State.COMPLETE,
        started=0,
        ended=10_000,
        settings={"steps": 350, "custom_config.training.batch_size": 32},
        error="",
        run_id=None,
    )
    assert plan.seconds_again(former, pictures) == seconds
    other = dataclasses.replace(former, node="LatentGen")
    assert plan.seconds_again(other, pictures) == 10.0
