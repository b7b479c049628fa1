"""Whose a failure is: what is told in a line, and what is told whole."""

from __future__ import annotations

import errno
import os
import traceback

import pytest
import tensorflow as tf

from pipeline.failures import explanation, explanation_in
from serving.serving_directory import CorruptCopyError
from storage.user_errors import UserError
from trainer.weights.errors import WeightsError


def raised(error: BaseException, cause: BaseException | None = None) -> BaseException:
    try:
        if cause is not None:
            raise error from cause
        raise error
    except BaseException as caught:
        return caught


def in_beams_words(error: BaseException) -> str:
    """As Beam's workers hand it on: the traceback, with the step's name at its end."""
    named = type(error)(f"{error.args[0]} [while running 'Check-ptransform-7']", *error.args[1:])
    return "".join(traceback.format_exception(raised(named)))


def test_what_a_user_can_mend_is_its_message() -> None:
    assert explanation(raised(UserError("set it to 1"))) == "set it to 1"
    assert explanation(raised(RuntimeError("step"), WeightsError("no file"))) == "no file"


@pytest.mark.parametrize(
    "error",
    [
        ValueError("x"),
        KeyError("dataset"),
        RuntimeError("the text speaks of storage.user_errors.UserError: in passing"),
        TypeError("'NoneType' object is not callable"),
        AssertionError(),
        OSError("no number"),
        tf.errors.InvalidArgumentError(None, None, "shapes differ"),
    ],
    ids=repr,
)
def test_a_fault_of_ours_is_none_of_the_users(error: Exception) -> None:
    assert explanation(raised(error)) is None
    assert explanation_in("".join(traceback.format_exception(raised(error)))) is None


def test_a_fault_while_a_users_error_is_handled_is_ours() -> None:
    def handle_badly() -> None:
        try:
            raise UserError("mend it")
        except UserError:
            {}["gone"]

    with pytest.raises(KeyError) as caught:
        handle_badly()
    assert explanation(caught.value) is None
    assert explanation_in("".join(traceback.format_exception(caught.value))) is None


@pytest.mark.parametrize(
    "error",
    [UserError("mend it"), WeightsError("mend it"), CorruptCopyError("mend it")],
    ids=lambda error: type(error).__name__,
)
def test_beam_hands_on_text_alone(error: Exception) -> None:
    text = in_beams_words(error)
    assert explanation(raised(RuntimeError(text))) == "mend it"
    assert explanation_in(f"INFO: a log\n{text}\nW0000 one line more\n") == ("mend it")


def test_a_table_comes_with_its_line_through_beam_too() -> None:
    message = "2 rows cannot be used\n  reason   rows\n  blank: 1"
    assert explanation(raised(RuntimeError(in_beams_words(UserError(message))))) == message


@pytest.mark.parametrize(
    ("number", "way_out"),
    [
        (errno.ENOSPC, "make room there"),
        (errno.EDQUOT, "make room there"),
        (errno.EROFS, "make it accessible"),
        (errno.EACCES, "make it accessible"),
        (errno.EFBIG, "ulimit -f"),
        (errno.EIO, "Input/output error"),
        (errno.ENOENT, "put it back"),
    ],
    ids=errno.errorcode.get,
)
def test_what_the_disk_did_is_told_with_its_file(number: int, way_out: str) -> None:
    error = raised(OSError(number, os.strerror(number), "/some/file"))
    told = explanation(error)
    assert told is not None
    assert told.startswith(f"/some/file: {os.strerror(number)}")
    assert way_out in told
    # TFX fails to note the failure on a full disk, too; Beam turns it into text.
    fails_too = raised(ValueError("it cannot be noted"))
    fails_too.__context__ = error
    assert explanation(fails_too) == told
    text = "".join(traceback.format_exception(error))
    assert explanation(raised(RuntimeError(text))) == told


def test_a_real_full_disk_is_told() -> None:
    with pytest.raises(OSError, match="No space") as caught, open("/dev/full", "w") as full:
        full.write("x")
    assert "make room there" in str(explanation(caught.value))
    with pytest.raises(tf.errors.OpError) as refused:
        tf.io.write_file("/dev/full", "x" * 100_000)
    told = str(explanation(refused.value))
    assert "No space left on device" in told
    assert "\n" not in told


def test_what_databases_and_memory_say_is_told() -> None:
    full = RuntimeError("Cannot commit: database or disk is full")
    assert "make room there" in str(explanation(raised(full)))
    for error in (
        MemoryError(),
        tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor with shape[9]"),
        OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)),
    ):
        assert "--batch-size" in str(explanation(raised(error)))
