from __future__ import annotations

import pytest
from made_store import (
    CACHED,
    CANCELED,
    COMPLETE,
    FAILED,
    FIRST_DAY,
    HOSTILE,
    MINUTE,
    RUNNING,
    Settings,
    StoreMaker,
    make_thousand,
)


@pytest.fixture(scope="session")
def many(tmp_path_factory):
    """A store of 120 runs; returns its path. Nobody may write to it."""
    path = tmp_path_factory.mktemp("many") / "metadata.sqlite"
    make_thousand(path, 120)
    return path


@pytest.fixture(scope="session")
def thousand(tmp_path_factory):
    """A store of a thousand runs, for slow tests; returns its path."""
    path = tmp_path_factory.mktemp("thousand") / "metadata.sqlite"
    make_thousand(path)
    return path


@pytest.fixture(scope="session")
def small(tmp_path_factory):
    """A store of six runs; returns (path, the artifacts of each run).

    `first` from base weights, `second` with another learning rate against `first`, `again` all
    from the cache, `other data` with other data, `failed` in the scorer, `running` in the Trainer.
    """
    maker = StoreMaker()
    made = {}
    made["first"] = maker.run("first", at=FIRST_DAY, loss=0.17)
    made["second"] = maker.run(
        "second",
        Settings(learning_rate=1e-4),
        FIRST_DAY + 10 * MINUTE,
        baseline=made["first"]["model"],
        loss=0.16,
    )
    made["again"] = maker.run("again", at=FIRST_DAY + 20 * MINUTE, loss=0.17)
    made["other data"] = maker.run(
        "other data",
        Settings(dataset="data/bad", fingerprint="bad" * 5 + "0"),
        FIRST_DAY + 30 * MINUTE,
        baseline=made["second"]["model"],
        loss=0.19,
        blessed=False,
    )
    made["failed"] = maker.run(
        "failed",
        Settings(steps=9),
        FIRST_DAY + 40 * MINUTE,
        stop=("LossScorer", FAILED, "ResourceExhaustedError: out of memory"),
    )
    made["running"] = maker.run(
        "running", Settings(steps=10), FIRST_DAY + 50 * MINUTE, stop=("Trainer", RUNNING, "")
    )
    path = tmp_path_factory.mktemp("small") / "metadata.sqlite"
    maker.save(path)
    return path, made


@pytest.fixture(scope="session")
def hostile(tmp_path_factory):
    """A store whose every text is hostile; returns its path."""
    folder = tmp_path_factory.mktemp("hostile")
    maker = StoreMaker(pipeline=HOSTILE[0])
    for number, text in enumerate(HOSTILE):
        artifact = maker.artifact(text, f"{folder}/{text}", **{text: text, "loss": 0.5})
        maker.execution(
            text,
            text,
            FAILED if number == 0 else CANCELED if number == 1 else COMPLETE,
            {text: text, "failure_reason": text, "config": f'{{"{number}": "<b>nested</b>"}}'},
            {},
            {text: [artifact]},
            FIRST_DAY + number,
        )
        maker.execution(text, "next", CACHED, {}, {text: [artifact]}, {}, FIRST_DAY + number)
    pushed = maker.artifact("PushedModel", "", pushed=1, pushed_version=HOSTILE[1])
    maker.execution(HOSTILE[2], "ServingPusher", COMPLETE, {}, {}, {"pushed_model": [pushed]})
    path = folder / "metadata.sqlite"
    maker.save(path)
    return path
