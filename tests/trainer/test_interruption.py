"""Runs that are killed, or told to stop, against one that was never stopped."""

import os
import signal
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from small_runs import Zygote, ends_identical

from trainer.training.interruption import StopRequest

FEATURES = [
    {"precision": "float16", "accumulation_steps": 2},
    {"lora_rank": 2, "lora_alpha": 1.0, "gradient_checkpointing": True},
    {"train_text_encoder": True, "precision": "bfloat16", "min_snr_gamma": 5.0},
    {"lora_rank": 3, "train_text_encoder": True, "noise_offset": 0.1},
]


def killed(zygote: Zygote, folder: Path, step: int, number: signal.Signals, **order) -> str:
    status, log = zygote.run(folder=str(folder), signal=number.name, at_step=step, **order)
    assert status == (1 if number == signal.SIGTERM else -number), log
    return log


def test_a_run_killed_again_and_again_ends_bit_for_bit_like_one_that_never_was(
    zygote: Zygote, tmp_path: Path
) -> None:
    whole, folder = tmp_path / "whole", tmp_path / "killed"
    # A record spans the checkpoints of steps 2 and 4.
    order = {"overrides": {"log_every_steps": 5}, "plain": True}
    status, log = zygote.run(folder=str(whole), **order)
    assert status == 0, log

    killed(zygote, folder, 2, signal.SIGKILL, **order)
    assert not list(folder.glob("ckpt-*"))
    log = killed(zygote, folder, 4, signal.SIGKILL, **order)
    assert "Resuming" not in log
    log = killed(zygote, folder, 3, signal.SIGTERM, **order)
    assert "Resuming at step 2 of 6." in log
    assert (
        "TrainingInterruptedError: training was told to stop (SIGTERM) and saved step 3 of 6: the "
        "same command goes on from there"
    ) in log
    status, log = zygote.run(folder=str(folder), **order)
    assert status == 0
    assert "Resuming at step 3 of 6." in log
    ends_identical(whole, folder)


@pytest.mark.slow
@pytest.mark.parametrize("step", [2, 3, 4, 5, 6])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=lambda n: n.name)
def test_killed_at_any_step(
    zygote: Zygote, tmp_path: Path, step: int, number: signal.Signals
) -> None:
    whole, folder = tmp_path / "whole", tmp_path / "killed"
    assert zygote.run(folder=str(whole))[0] == 0
    if step == 6 and number == signal.SIGTERM:
        # Nothing is left to be done.
        assert zygote.run(folder=str(folder), signal=number.name, at_step=step)[0] == 0
    else:
        killed(zygote, folder, step, number)
        assert zygote.run(folder=str(folder))[0] == 0
    ends_identical(whole, folder)


@pytest.mark.slow
@pytest.mark.parametrize("overrides", FEATURES, ids=str)
def test_every_feature_resumes_bit_for_bit(
    zygote: Zygote, tmp_path: Path, overrides: Mapping
) -> None:
    whole, folder = tmp_path / "whole", tmp_path / "killed"
    assert zygote.run(folder=str(whole), overrides=overrides)[0] == 0
    killed(zygote, folder, 4, signal.SIGKILL, overrides=overrides)
    killed(zygote, folder, 5, signal.SIGTERM, overrides=overrides)
    status, log = zygote.run(folder=str(folder), overrides=overrides)
    assert status == 0
    assert "Resuming at step 5 of 6." in log
    ends_identical(whole, folder)


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT], ids=lambda n: n.name
)
def test_a_stop_is_noted_and_what_was_before_is_put_back(number: signal.Signals) -> None:
    heard = []
    before = signal.signal(number, lambda number, frame: heard.append(number))
    try:
        with StopRequest() as stop:
            assert not stop.made
            os.kill(os.getpid(), number)
            assert stop.made
            assert stop.signal == number
        assert heard == []
        os.kill(os.getpid(), number)
        assert heard == [number]
    finally:
        signal.signal(number, before)


@pytest.fixture
def interruptible() -> Iterator[None]:
    """As in a terminal: what a shell starts in the background ignores SIGINT."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_a_second_interrupt_is_not_waited_with() -> None:
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        assert stop.made


def test_an_interrupt_that_is_ignored_stays_so() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with StopRequest() as stop:
            os.kill(os.getpid(), signal.SIGINT)
            assert not stop.made
    finally:
        signal.signal(signal.SIGINT, before)


def test_other_threads_handle_no_signals() -> None:
    errors = []

    def train() -> None:
        try:
            with StopRequest() as stop:
                assert not stop.made
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=train)
    thread.start()
    thread.join()
    assert errors == []
