"""Training on Spot machines: custom jobs that are taken away, do not come, or fail."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import math
import re
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from tfx.types import standard_artifacts
from tfx.utils import json_utils

from components.diffusion_trainer import custom_job
from components.diffusion_trainer.custom_job import Used, in_words
from components.diffusion_trainer.worker_job import CONFIG_KEY, Spot, WorkerJob
from components.diffusion_tuner import custom_job as tuner_job
from pipeline.vertex.emulation import custom_jobs
from pipeline.vertex.emulation.custom_jobs import EmulatedJobs, Market, Offer
from pipeline.vertex.emulation.emulator import FreshProcesses

# Does twenty steps, one after another, and goes on from where it was.
WORKER = """
import pathlib, sys, time
done = pathlib.Path("steps")
for step in range(int(done.read_text()), 20):
    time.sleep(0.05)
    if "fail" in sys.argv and step == 10:
        sys.exit("step ten fails")
    done.with_name("next").write_text(str(step + 1))
    done.with_name("next").rename(done)
"""
NOWHERE = Offer(after_seconds=math.inf)


@dataclasses.dataclass
class Training:
    """What is trained, and the jobs that were made for it."""

    folder: Path
    market: Market = custom_jobs.plenty
    spot: Spot = dataclasses.field(default_factory=lambda: Spot(30.0, 5, "ordinary"))
    argument: str = "work"
    jobs: EmulatedJobs | None = None

    @property
    def steps(self) -> int:
        return int((self.folder / "steps").read_text())

    @property
    def job(self) -> WorkerJob:
        return WorkerJob("p", "us-central1", "i", 1, "g2-standard-12", "NVIDIA_L4", 1)

    def states(self) -> list[tuple[bool, str]]:
        """Of each job, whether it was one on Spot machines, and how it ended."""
        assert self.jobs is not None
        return [
            ("scheduling" in job["jobSpec"], job["state"].removeprefix("JOB_STATE_").lower())
            for job in self.jobs._jobs
        ]

    @contextlib.contextmanager
    def served(self) -> Iterator[tuple[WorkerJob, Callable[[bool], custom_job._Client]]]:
        """The job at a server of its own, and what starts it."""
        self.jobs = EmulatedJobs(FreshProcesses(self.folder), self.folder, {}, self.market)
        with custom_jobs.serve(self.jobs) as address:
            job = dataclasses.replace(self.job, spot=self.spot, api_endpoint=address)

            def launched(on_spot: bool) -> custom_job._Client:
                client = custom_job._Client(job)
                spec = job.job_spec(on_spot=on_spot)
                spec["worker_pool_specs"][0]["container_spec"]["command"] = [
                    *("python", "-m", "worker", self.argument)
                ]
                labels = {custom_job.STEP_LABEL: "step"}
                client.launch_job("p", {"display_name": "d", "job_spec": spec, "labels": labels})
                return client

            yield job, launched

    def run(self) -> Sequence[Used]:
        with self.served() as (job, launched):
            return custom_job.run(job, launched, 0.02)

    def run_again(self, on_spot: bool, when: Callable[[], bool]) -> Sequence[Used]:
        """A step whose machine dies once its job has come so far, and that is started again."""
        with self.served() as (job, launched):
            launched(on_spot)
            deadline = time.monotonic() + 30
            while not when():
                assert time.monotonic() < deadline
                time.sleep(0.02)
            # What another step has started is none of its business.
            assert custom_job.end_earlier(job, "other", 0.02) == custom_job.Earlier()
            earlier = custom_job.end_earlier(job, "step", 0.02)
            done = self.steps
            time.sleep(0.2)
            assert self.steps == done
            return custom_job.run(job, launched, 0.02, earlier)


@pytest.fixture
def training(tmp_path: Path) -> Callable[..., Training]:
    (tmp_path / "worker.py").write_text(WORKER)
    (tmp_path / "steps").write_text("0")
    return lambda **what: Training(tmp_path, **what)


def taken_away_at(training: Training, *steps: int) -> Market:
    """Where the first jobs lose their machines when so many steps are done."""

    def market(number: int) -> Offer:
        if number > len(steps):
            return Offer()
        return Offer(taken_away=lambda seconds: training.steps >= steps[number - 1])

    return market


def test_what_is_taken_away_goes_on_from_where_it_was(training) -> None:
    it = training()
    # The second has not even begun.
    it.market = taken_away_at(it, 4, 0, 11)
    used = it.run()
    assert it.steps == 20
    assert it.states() == [(True, "failed")] * 3 + [(True, "succeeded")]
    assert [each.lost for each in used] == [True, True, True, False]
    assert all(each.on_spot and each.hours > 0 for each in used)


@pytest.mark.parametrize("otherwise", ["ordinary", "stop"])
def test_where_none_comes_it_is_done_as_was_told(training, otherwise, caplog) -> None:
    it = training(market=lambda number: NOWHERE, spot=Spot(0.3, 5, otherwise))
    if otherwise == "stop":
        with pytest.raises(
            RuntimeError, match=r"available within 0.005 minutes; .*spot_wait_minutes"
        ):
            it.run()
        assert it.states() == [(True, "cancelled")]
        assert it.steps == 0
        return
    used = it.run()
    assert it.states() == [(True, "cancelled"), (False, "succeeded")]
    assert [(each.on_spot, each.lost) for each in used] == [(False, False)]
    assert it.steps == 20
    assert "Continuing with ordinary machines: no Spot machine" in caplog.text


def test_after_a_loss_it_is_waited_for_no_longer_than_at_the_start(training) -> None:
    it = training(spot=Spot(0.3, 5, "ordinary"))
    first = taken_away_at(it, 4)
    it.market = lambda number: first(1) if number == 1 else NOWHERE
    used = it.run()
    assert it.states() == [(True, "failed"), (True, "cancelled"), (False, "succeeded")]
    assert [(each.on_spot, each.lost) for each in used] == [(True, True), (False, False)]
    assert it.steps == 20


def test_what_is_lost_too_often_is_not_tried_for_ever(training) -> None:
    it = training(spot=Spot(30.0, 1, "ordinary"))
    it.market = taken_away_at(it, 2, 4, 6, 8)
    used = it.run()
    assert it.states() == [(True, "failed"), (True, "failed"), (False, "succeeded")]
    assert sum(each.lost for each in used) == 2

    (it.folder / "steps").write_text("0")
    it.spot = dataclasses.replace(it.spot, otherwise="stop")
    with pytest.raises(RuntimeError, match=r"were taken away 2 times; vertex.spot_otherwise"):
        it.run()


def test_a_failure_is_no_loss(training) -> None:
    it = training(argument="fail")
    with pytest.raises(RuntimeError, match=r"JOB_STATE_FAILED: .*step ten fails"):
        it.run()
    assert it.states() == [(True, "failed")]


@pytest.mark.parametrize("on_spot", [True, False])
def test_a_step_that_is_started_again_ends_its_first_job_and_goes_on(training, on_spot) -> None:
    it = training()
    used = it.run_again(on_spot, lambda: it.steps >= 4)
    # Where Spot machines were given up, they are not waited for once more.
    assert it.states() == [(on_spot, "cancelled"), (on_spot, "succeeded")]
    assert [(each.on_spot, each.lost) for each in used] == [(on_spot, False)] * 2
    assert all(each.hours > 0 for each in used)
    assert it.steps == 20


def test_what_was_waited_before_a_step_was_started_again_counts(training) -> None:
    it = training(market=lambda number: NOWHERE, spot=Spot(1.0, 5, "ordinary"))
    since = time.monotonic()
    used = it.run_again(True, lambda: time.monotonic() - since > 1.1)
    assert it.states() == [(True, "cancelled"), (True, "cancelled"), (False, "succeeded")]
    # Of the second, one look is enough.
    assert seconds(it.jobs._jobs[1]) < 0.9
    assert [each.on_spot for each in used] == [False]


def seconds(job: dict[str, Any]) -> float:
    """How long a job was there, from its creation to its end."""
    ended, created = (
        datetime.datetime.fromisoformat(job[name].replace("Z", "+00:00"))
        for name in ("endTime", "createTime")
    )
    return (ended - created).total_seconds()


def test_a_step_has_one_label_whichever_try_it_is() -> None:
    def label(uri: str, worker: Any = custom_job.Executor.WORKER) -> str:
        model = standard_artifacts.Model()
        model.uri = uri
        return custom_job._step_label({"model": [model]}, worker)

    first = label("gs://bucket/root/123/run-1/Trainer_4711/model")
    assert first == label("gs://bucket/root/123/run-1/Trainer_4712/model")
    assert re.fullmatch(r"[0-9a-f]{16}", first)
    assert first != label("gs://bucket/root/123/run-2/Trainer_4711/model")
    assert first != label("gs://bucket/root/123/run-1/Tuner_4711/model", tuner_job.Worker)


class Quick(FreshProcesses):
    """Does something quick in the place of every container."""

    def started(
        self, argv: Sequence[str], log: Path, environment: Mapping[str, str]
    ) -> subprocess.Popen[bytes]:
        return super().started(["python", "-c", "pass"], log, environment)


def test_the_step_itself_ends_what_its_earlier_try_has_left(tmp_path: Path) -> None:
    jobs = EmulatedJobs(Quick(tmp_path), tmp_path, {}, lambda number: NOWHERE)
    with custom_jobs.serve(jobs) as address:
        job = dataclasses.replace(
            Training(tmp_path).job, labels={"team": "x"}, api_endpoint=address
        )

        def step(run: str, spot: Spot | None = None) -> standard_artifacts.TunerResults:
            results = standard_artifacts.TunerResults()
            results.uri = f"gs://bucket/root/123/{run}/Tuner_{len(jobs._jobs)}/tuner_results"
            config = {CONFIG_KEY: dataclasses.replace(job, spot=spot).to_json()}
            tuner_job.Executor().Do(
                {}, {"tuner_results": [results]}, {"custom_config": json_utils.dumps(config)}
            )
            return results

        waits = ThreadPoolExecutor(1).submit(step, "one", Spot(60.0, 0, "ordinary"))
        deadline = time.monotonic() + 30
        while not jobs._jobs:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        step("two")
        assert jobs.get(1)["state"] == "JOB_STATE_PENDING"
        # The first one's machine is taken for dead: another try of that step begins.
        results = step("one")
        with pytest.raises(RuntimeError, match="ended as JOB_STATE_CANCELLED"):
            waits.result(timeout=30)
        labels = [made["labels"] for made in jobs._jobs[:3]]
        assert {each["team"] for each in labels} == {"x"}
        one, two, again = (each[custom_job.STEP_LABEL] for each in labels)
        assert one == again != two
        hours = results.get_string_custom_property(custom_job.MACHINE_HOURS)
        assert re.fullmatch(r"0\.\d+ h of 1 x g2-standard-12 with 1 NVIDIA_L4", hours)


def test_hours_are_told_by_kind() -> None:
    job = Training(Path()).job
    used = [Used(True, 0.5, True), Used(True, 0.25, True), Used(True, 1.0, False)]
    machine = "1 x g2-standard-12 with 1 NVIDIA_L4"
    assert in_words(job, used) == f"1.75 h of {machine} (Spot), taken away 2 times"
    both = [Used(True, 0.5, True), Used(False, 2.0, False)]
    assert (
        in_words(job, both) == f"0.50 h of {machine} (Spot), taken away 1 time; 2.00 h of {machine}"
    )
    plain = dataclasses.replace(job, accelerator="", workers=2)
    assert in_words(plain, [Used(False, 2.0, False)]) == "2.00 h of 2 x g2-standard-12"
