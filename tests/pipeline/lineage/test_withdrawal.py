"""What models know of what is withdrawn, and that none of those is started from unasked."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from recorded_pictures import CAT, DOG, SMALL_CAT, digest, record_releases

from pipeline import housekeeping, lineage, withdrawal
from pipeline.config import ConfigError, RunConfig, load_config
from pipeline.lineage.affected import Affected, affected
from pipeline.starting import AT_RUN_TIME, Start
from storage.commands import CHECKOUT
from storage.withdrawn import KnowingRelease, KnownBy


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return record_releases(tmp_path_factory.mktemp("withdrawal"))


@pytest.fixture(scope="module")
def models(output: Path) -> list[Start]:
    """What each release was pushed from."""
    location = lineage.locate(str(output))
    with location.open() as store:
        found = store.artifacts(store.artifacts_of_type("Model"))
    return [Start(m.uri, f"release {i}, model {m.id}", "") for i, m in enumerate(found, start=1)]


def settings(folder: Path, *lines: str, **more: Any) -> RunConfig:
    path = folder / "withdrawn.txt"
    path.write_text("\n".join(lines), encoding="utf-8")
    flags = {"dataset.withdrawn": ("--withdrawn", str(path))}
    return load_config(None, flags | {f"model.{k}": ("--given", v) for k, v in more.items()})


def look_up(config: RunConfig, start: Start | None, output: Path) -> KnownBy | None:
    return withdrawal.look_up(config, start, str(output), [str(output)])


CAT_LINE, DOG_LINE = (f"sha256:{digest(picture)}" for picture in (CAT, DOG))
BEFORE = "started from a model that was"


def test_releases_that_know_are_named(output: Path, tmp_path: Path) -> None:
    config = settings(tmp_path, f"{DOG_LINE} # why", "caption:a cat # why", "caption:a bat # why")
    found = look_up(config, None, output)
    assert found == KnownBy(
        (
            KnowingRelease("1", "trained on it", (DOG_LINE, "caption:a cat")),
            KnowingRelease("2", "trained on it", (DOG_LINE, "caption:a cat")),
        )
    )
    assert KnownBy.of_json(found.to_json()) == found
    assert withdrawal.told(config, None, found) == (
        "dataset.withdrawn lists 3 entries; learned by releases 1, 2."
    )
    assert look_up(load_config(None, {}), None, output) is None


def test_what_knows_only_a_copy_knows_it(output: Path, tmp_path: Path) -> None:
    """The third release's mirrored cat was held out, which teaches nothing."""
    small = settings(tmp_path, f"sha256:{digest(SMALL_CAT)} # why")
    found = look_up(small, None, output)
    assert found is not None
    assert {r.version: r.how for r in found.releases} == {"1": "trained on it", "2": BEFORE}


@pytest.mark.parametrize(
    ("release", "how"),
    [(1, "it was trained on"), (2, "a model before it was trained on")],
)
def test_no_model_that_knows_is_started_from(
    output: Path, tmp_path: Path, models: list[Start], release: int, how: str
) -> None:
    start = models[release - 1]
    given = {"start_from": f"release:{release}"}
    config = settings(tmp_path, "# asked for", f"{CAT_LINE} # why", **given)
    with pytest.raises(ConfigError) as error:
        look_up(config, start, output)
    said = str(error.value)
    assert said.startswith(
        f"model.start_from = 'release:{release}' is refused: for {start.shown}, dataset.withdrawn "
        f"lists what {how}: "
    )
    assert "'a cat' (row " in said
    assert ", line 2)" in said
    assert said.endswith(
        "Start from release:4, which has not learned from it, or from base, or allow it "
        "with --allow-withdrawn true"
    )
    allowed = settings(tmp_path, f"{CAT_LINE} # why", allow_withdrawn=True, **given)
    found = look_up(allowed, start, output)
    assert found is not None
    assert "Training starts from release" in withdrawal.told(allowed, start, found)


def test_others_are_started_from(output: Path, tmp_path: Path, models: list[Start]) -> None:
    config = settings(tmp_path, f"{CAT_LINE} # why", start_from="release:3")
    assert look_up(config, models[2], output) == look_up(config, None, output)
    assert look_up(config, AT_RUN_TIME, output) == look_up(config, None, output)
    fox = settings(tmp_path, "caption:a fox # why", start_from="latest_blessed")
    with pytest.raises(
        ConfigError, match="the latest blessed model, if there is any then, dataset"
    ):
        look_up(fox, AT_RUN_TIME, output)


def test_what_nobody_can_tell_of_is_not_started_from(
    output: Path, tmp_path: Path, models: list[Start]
) -> None:
    config = settings(tmp_path, f"{CAT_LINE} # why", start_from="release:3")
    elsewhere = Start("/another/model", "the model in /another/model", "")
    with pytest.raises(ConfigError, match=r"/another/model, it is unknown here what it was"):
        look_up(config, elsewhere, output)
    with pytest.raises(ConfigError, match=r"it is unknown here what it was trained on\. Start"):
        look_up(config, elsewhere, tmp_path)
    with pytest.raises(ConfigError, match=r"cannot be looked up \(there is no lineage to ask"):
        withdrawal.look_up(config, models[2], "", [])
    assert look_up(config, AT_RUN_TIME, tmp_path) == KnownBy()
    problem = withdrawal.look_up(config, None, "", [])
    assert problem == KnownBy(problem="there is no lineage to ask here")
    folder = tmp_path / "copy"
    shutil.copytree(output, folder)
    # The store names places in the first folder, which may not be read for this one.
    with pytest.raises(ConfigError, match="it is no longer known what was in artifact"):
        look_up(config, models[2], folder)
    assert look_up(config, None, folder) == KnownBy((), ("1", "2", "3", "4"))


def test_a_run_keeps_its_lock(output: Path, tmp_path: Path) -> None:
    """Whoever looks into the store of a folder that it works in must not let others in."""
    config = settings(tmp_path, f"{CAT_LINE} # why")
    asked = (
        "import pathlib, sys; from pipeline.lineage.locations import lock_holder; "
        "print(lock_holder(pathlib.Path(sys.argv[1])))"
    )
    with housekeeping.output_lock(str(output)):
        assert look_up(config, None, output) is not None
        holder = subprocess.run(
            [sys.executable, "-c", asked, str(output)],
            env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
            capture_output=True,
            text=True,
            check=True,
        )
    assert holder.stdout.strip() == str(os.getpid())


def test_it_is_what_the_question_says(output: Path, tmp_path: Path) -> None:
    location = lineage.locate(str(output))
    with location.open() as store:
        asked: Affected = affected(store, location.roots, caption="a cat")
    found = look_up(settings(tmp_path, "caption:a cat # why"), None, output)
    assert found is not None
    knowing = {r.version: r.how for r in asked.releases if r.how != "held out"}
    assert {r.version: r.how for r in found.releases} == knowing
